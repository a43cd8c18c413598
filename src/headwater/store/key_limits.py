"""What an API key may do: models, routes, money by day and month, rates, and until when.

A value and how it is written down; None or an empty tuple is no limit. The budget over a key's whole life is a
column of its own (`key_store`). Days and months are UTC's. Knows nothing of what a key has done.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from headwater.core.errors import InvalidError
from headwater.core.instants import SECOND_NS
from headwater.core.limits import TRANSFER_UNITS_MAX

DAY_NS: Final = 86_400 * SECOND_NS
KEY_MODELS_MAX: Final = 64
RATE_MAX: Final = 10**12
ROUTES: Final = ("chat", "embeddings", "receipts", "feedback", "admin")
"""What a key may be for. `admin` is never included unless it is named."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of a key.

    Raises:
        InvalidError: ``limits_invalid``, an amount or a name out of range.
    """

    models: tuple[str, ...] = ()  # names it may ask for; none is all
    routes: tuple[str, ...] = ()  # of ROUTES; none is all but `admin`
    budget_day_units: int | None = None  # nano units that calls of one UTC day may commit
    budget_month_units: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    units_per_minute: int | None = None  # nano units
    expires_at_ns: int | None = None

    def __post_init__(self) -> None:
        unknown = [route for route in self.routes if route not in ROUTES]
        if unknown:
            raise _invalid(f"route {unknown[0][:80]!r}", f"use {', '.join(ROUTES)}")
        if len(self.models) > KEY_MODELS_MAX or not all(0 < len(m) <= 200 and m.isprintable() for m in self.models):
            raise _invalid(f"{len(self.models)} models", f"name up to {KEY_MODELS_MAX} models as /v1/models does")
        for name, most, least in (
            ("budget_day_units", TRANSFER_UNITS_MAX, 0),
            ("budget_month_units", TRANSFER_UNITS_MAX, 0),
            ("requests_per_minute", RATE_MAX, 1),
            ("tokens_per_minute", RATE_MAX, 1),
            ("units_per_minute", TRANSFER_UNITS_MAX, 1),
            ("expires_at_ns", 2**63 - 1, 0),
        ):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not least <= value <= most):
                raise _invalid(f"{name} is {value!r}", f"use a whole number from {least}, or none")

    @property
    def rated(self) -> bool:
        """Whether there is any limit per minute."""
        return (self.requests_per_minute, self.tokens_per_minute, self.units_per_minute) != (None, None, None)

    @property
    def dated(self) -> bool:
        """Whether there is a budget that begins anew."""
        return self.budget_day_units is not None or self.budget_month_units is not None

    def permits_model(self, model: str) -> bool:
        """Whether calls may name `model`."""
        return not self.models or model in self.models

    def permits_route(self, route: str) -> bool:
        """Whether the key is for `route`, one of ROUTES."""
        return route in self.routes if self.routes else route != "admin"

    def changed(self, **changes: Any) -> KeyLimits:
        """These with some replaced."""
        return replace(self, **changes)

    def to_json(self) -> str:
        """As it is kept."""
        given = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        return msgspec.json.encode(given).decode()

    @classmethod
    def from_json(cls, text: str) -> KeyLimits:
        """Read what `to_json` wrote."""
        fields = msgspec.json.decode(text, type=dict[str, Any])
        for name in ("models", "routes"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)


NO_LIMITS: Final = KeyLimits()


def day_of(at_ns: int) -> int:
    """The UTC day of an instant, counted from 1970."""
    return at_ns // DAY_NS


def month_begin(at_ns: int) -> int:
    """The first day of the UTC month of an instant, counted from 1970.

    >>> month_begin(0), month_begin(40 * DAY_NS)
    (0, 31)
    """
    then = datetime.fromtimestamp(at_ns // SECOND_NS, UTC)
    return day_of(at_ns) - (then.day - 1)


def _invalid(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="limits_invalid", fix=fix)
