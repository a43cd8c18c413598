"""What an operator does to keys and credit, each act with its entry in the audit trail, in one commit.

The command line and the admin routes both act through here. Secrets are given back once and never recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headwater import ledger
from headwater.core.canonical import digest_of
from headwater.core.errors import ConflictError, InvalidError
from headwater.core.instants import format_instant
from headwater.core.limits import TRANSFER_UNITS_MAX
from headwater.core.money import format_units, parse_units
from headwater.store.audit_trail import AuditTrail
from headwater.store.key_limits import KeyLimits, day_of, month_begin
from headwater.store.key_store import KeyRecord, KeyStore, Mode
from headwater.store.ledger_store import Ledger, Posted


@dataclass(frozen=True, slots=True)
class Administration:
    """Acts on the keys of a home; `actor` is a key id, or ``cli``."""

    keys: KeyStore
    ledger: Ledger
    trail: AuditTrail
    asset: str  # the policy's currency
    now_ns: Callable[[], int]
    random_bytes: Callable[[int], bytes]

    def create(
        self, actor: str, label: str, *, mode: Mode, budget_units: int | None, limits: KeyLimits
    ) -> tuple[str, KeyRecord]:
        """Make a key; its secret is given here and nowhere else."""
        with self.keys.db.transaction():
            now_ns = self.now_ns()
            secret, key = self.keys.create(
                label, self.random_bytes(32), now_ns, mode=mode, budget_units=budget_units, limits=limits
            )
            self.trail.record(now_ns, actor, "key.create", key.key_id, {"label": label, **self._limits(key)})
            return secret, key

    def limit(self, actor: str, key_id: str, limits: KeyLimits, budget_units: int | None) -> KeyRecord:
        """Give a key other limits."""
        with self.keys.db.transaction():
            before = self._limits(self.keys.get(key_id))
            key = self.keys.limit(key_id, limits, budget_units)
            after = self._limits(key)
            changed = {name: {"from": before[name], "to": after[name]} for name in after if before[name] != after[name]}
            self.trail.record(self.now_ns(), actor, "key.limit", key_id, changed)
            return key

    def rotate(self, actor: str, key_id: str, *, grace_ns: int) -> tuple[str, KeyRecord, int]:
        """Give a key a new secret; (secret, record, when the old one ends)."""
        with self.keys.db.transaction():
            now_ns = self.now_ns()
            secret, key = self.keys.rotate(key_id, self.random_bytes(32), now_ns, grace_ns=grace_ns)
            ends = {"old_secret_ends_at": format_instant(now_ns + grace_ns)}
            self.trail.record(now_ns, actor, "key.rotate", key_id, ends)
            return secret, key, now_ns + grace_ns

    def revoke(self, actor: str, key_id: str) -> KeyRecord:
        """Withdraw a key for good; doing it again changes nothing and is not recorded again."""
        with self.keys.db.transaction():
            if (key := self.keys.get(key_id)).revoked:
                return key
            now_ns = self.now_ns()
            key = self.keys.revoke(key_id, now_ns)
            self.trail.record(now_ns, actor, "key.revoke", key_id)
            return key

    def deposit(self, actor: str, key_id: str, amount: str, reference: str) -> tuple[Posted, int]:
        """Book money that a payer has sent; (how it was booked, the credit after it).

        Args:
            amount: in the currency, such as 5.00.
            reference: the payment it is for; the same reference of a key is never booked twice.

        Raises:
            MissingError: no such key.
            InvalidError: an amount that is not above 0, or no reference.
            ConflictError: this reference was booked with another amount.
        """
        units = parse_units(amount)
        if units <= 0:
            raise InvalidError(f"a deposit of {amount}", code="amount_out_of_range", fix="deposit more than 0")
        if units > TRANSFER_UNITS_MAX:
            raise InvalidError(
                f"a deposit of {amount} {self.asset}",
                code="amount_out_of_range",
                fix=f"deposit at most {format_units(TRANSFER_UNITS_MAX)} at a time",
            )
        if not 0 < len(reference) <= 200 or not reference.isprintable():
            raise InvalidError(
                f"reference {reference[:80]!r}", code="reference_invalid", fix="name the payment it is for"
            )
        with self.keys.db.transaction():
            key = self.keys.get(key_id)
            now_ns = self.now_ns()
            cause = "deposit:" + digest_of([key.key_id, reference]).removeprefix("sha256:")[:32]
            draft = ledger.deposit(key.account, units, asset=self.asset, cause=cause)
            try:
                posted = self.ledger.post([draft], key=cause, at_ns=now_ns)
            except ConflictError as error:
                raise ConflictError(
                    f"the reference {reference!r} of {key.key_id} was booked with another amount, now {amount}",
                    code=error.code,
                    fix="see the audit trail for what was booked; another payment needs a reference of its own",
                ) from None
            if not posted.replayed:
                said = {"amount": format_units(units), "currency": self.asset, "reference": reference}
                self.trail.record(now_ns, actor, "key.deposit", key_id, said)
            return posted, self.ledger.available(key.account, self.asset)

    def key_json(self, key: KeyRecord) -> dict[str, Any]:
        """A key as it is shown: what it may do, what it has committed, what is left."""
        return {
            "key_id": key.key_id,
            "label": key.label,
            "mode": key.mode,
            "created_at": format_instant(key.created_at_ns),
            "revoked": key.revoked,
            "currency": self.asset,
            "available": format_units(self.ledger.available(key.account, self.asset)),
            **limits_json(self.keys, key, self.now_ns()),
        }

    def _limits(self, key: KeyRecord) -> Mapping[str, Any]:
        shown = limits_json(self.keys, key, self.now_ns())
        return {name: value for name, value in shown.items() if not name.startswith("committed")}


def limits_json(keys: KeyStore, key: KeyRecord, now_ns: int) -> dict[str, Any]:
    """What a key may do and what it has committed, on the wire: amounts as decimal strings."""
    limits = key.limits
    return {
        "budget": _amount(key.budget_units),
        "budget_day": _amount(limits.budget_day_units),
        "budget_month": _amount(limits.budget_month_units),
        "committed": format_units(key.committed_units),
        "committed_day": format_units(keys.committed(key.key_id, day_of(now_ns), now_ns)),
        "committed_month": format_units(keys.committed(key.key_id, month_begin(now_ns), now_ns)),
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "money_per_minute": _amount(limits.units_per_minute),
        "models": list(limits.models),
        "routes": list(limits.routes),
        "expires_at": None if limits.expires_at_ns is None else format_instant(limits.expires_at_ns),
    }


def _amount(units: int | None) -> str | None:
    return None if units is None else format_units(units)
