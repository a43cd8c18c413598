"""The bodies of admin requests: what an operator may say of a key, as it stands on the wire."""

from __future__ import annotations

from typing import Any, Final, Literal

from msgspec import UNSET, Struct, UnsetType

from headwater.core.instants import parse_instant
from headwater.core.money import parse_units
from headwater.store.key_limits import KeyLimits

GRACE_S: Final = 86_400
"""How long a rotated key's old secret works unless the request says otherwise."""


class LimitFields(Struct, forbid_unknown_fields=True):
    """Limits on the wire: amounts in the currency as decimal strings; null takes one away, absent leaves it."""

    budget: str | UnsetType | None = UNSET
    budget_day: str | UnsetType | None = UNSET
    budget_month: str | UnsetType | None = UNSET
    requests_per_minute: int | UnsetType | None = UNSET
    tokens_per_minute: int | UnsetType | None = UNSET
    money_per_minute: str | UnsetType | None = UNSET
    models: list[str] | UnsetType | None = UNSET
    routes: list[str] | UnsetType | None = UNSET
    expires_at: str | UnsetType | None = UNSET

    def limits(self, before: KeyLimits) -> KeyLimits:
        """`before` with what is said here."""
        changes: dict[str, Any] = {}
        for name, units in (
            ("budget_day", "budget_day_units"),
            ("budget_month", "budget_month_units"),
            ("money_per_minute", "units_per_minute"),
        ):
            if (text := getattr(self, name)) is not UNSET:
                changes[units] = None if text is None else parse_units(text, where=name)
        for name in ("requests_per_minute", "tokens_per_minute"):
            if (count := getattr(self, name)) is not UNSET:
                changes[name] = count
        for name in ("models", "routes"):
            if (names := getattr(self, name)) is not UNSET:
                changes[name] = tuple(names or ())
        if self.expires_at is not UNSET:
            changes["expires_at_ns"] = None if self.expires_at is None else parse_instant(self.expires_at)
        return before.changed(**changes)

    def whole_budget(self, before: int | None) -> int | None:
        """The budget over the key's life, nano units."""
        if self.budget is UNSET:
            return before
        return None if self.budget is None else parse_units(self.budget, where="budget")


class NewKey(Struct, forbid_unknown_fields=True):
    """A key to be made."""

    label: str
    mode: Literal["test", "live"] = "test"
    limits: LimitFields | UnsetType = UNSET


class Rotation(Struct, forbid_unknown_fields=True):
    """How a secret is replaced."""

    grace_s: int = GRACE_S


class NewDeposit(Struct, forbid_unknown_fields=True):
    """Money that a payer has sent."""

    amount: str
    reference: str
