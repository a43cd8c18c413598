"""Payments by x402: each authorization once, what it is for, how far it has come, and the credit it gave.

A payment for a call is admitted before the call and gives its ceiling as credit; when the answer is there the chain
takes what the call costs; what the chain did not take is taken back from the credit. A top-up gives credit only when
the chain has paid. Every step is a row here in the commit that books its money, so that a process that dies in between
leaves something to go on from, and no authorization counts twice, however many processes are shown it.

    call:    verified -> settling -> settled -> done, or -> released
    top-up:  settling -> done, or -> released

Knows nothing of signatures or chains.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import ConflictError, InvalidError, RefusedError
from headwater.core.limits import TRANSFER_UNITS_MAX
from headwater.ledger import CASH, correction, deposit
from headwater.store.database import Sql
from headwater.store.key_store import KeyRecord, KeyStore
from headwater.store.ledger_store import Ledger

_STEPS: Final = (
    f"""
    CREATE TABLE x402_payments (
      network TEXT NOT NULL,
      payer TEXT NOT NULL,
      nonce TEXT NOT NULL,
      digest TEXT NOT NULL,
      scheme TEXT NOT NULL CHECK (scheme IN ('exact', 'upto')),
      purpose TEXT NOT NULL CHECK (purpose IN ('call', 'top-up')),
      request TEXT NOT NULL,
      key_id TEXT NOT NULL,
      token_units INTEGER NOT NULL CHECK (token_units BETWEEN 1 AND {TRANSFER_UNITS_MAX}),
      settled_token_units INTEGER NOT NULL DEFAULT 0,
      transaction_hash TEXT NOT NULL DEFAULT '',
      state TEXT NOT NULL CHECK (state IN ('verified', 'settling', 'settled', 'done', 'released')),
      tries INTEGER NOT NULL,
      owed_units INTEGER NOT NULL DEFAULT 0,
      from_block INTEGER NOT NULL,
      at_ns INTEGER NOT NULL,
      PRIMARY KEY (network, payer, nonce)
    );
    CREATE INDEX x402_payments_open ON x402_payments (state) WHERE state IN ('verified', 'settling', 'settled');
    CREATE INDEX x402_payments_request ON x402_payments (key_id, request);
    CREATE INDEX x402_payments_owed ON x402_payments (key_id) WHERE owed_units > 0;
    """,
)
_COLUMNS: Final = (
    "network, payer, nonce, digest, scheme, purpose, request, key_id, token_units, settled_token_units,"
    " transaction_hash, state, tries, owed_units, from_block, at_ns"
)


@dataclass(frozen=True, slots=True)
class Payment:
    """One authorization that a payer signed."""

    network: str  # CAIP-2
    payer: str  # lower case
    nonce: str
    digest: str  # of what was signed
    scheme: str
    purpose: str
    request: str  # the payer's own name for what it pays, or one made from the nonce
    key_id: str  # whose credit it is
    token_units: int  # at most
    settled_token_units: int
    transaction_hash: str
    state: str
    tries: int
    owed_units: int  # nano units of credit that are to be taken back
    from_block: int  # the chain's newest when it was admitted
    at_ns: int

    @property
    def name(self) -> tuple[str, str, str]:
        """What identifies it."""
        return self.network, self.payer, self.nonce


class PaymentStore:
    """The payments in `db`.

    Args:
        unit_nano: nano units of `asset` that a token unit is worth.
    """

    def __init__(self, db: Sql, ledger: Ledger, keys: KeyStore, *, asset: str, unit_nano: int) -> None:
        self.db, self.ledger, self.keys, self.asset, self.unit_nano = db, ledger, keys, asset, unit_nano
        db.migrate("x402_payments", _STEPS)

    def payer(self, address: str, at_ns: int) -> KeyRecord:
        """The record behind calls that an address pays one by one; apart from its other credit, which it cannot touch.

        Raises:
            RefusedError: ``payer_revoked``.
        """
        key = self.keys.payer(f"x402 {address}", at_ns)
        if key.revoked:
            raise RefusedError(f"{key.key_id} of {address} is revoked", code="payer_revoked", fix="ask the operator")
        return key

    def find(self, name: tuple[str, str, str]) -> Payment | None:
        """A payment by network, payer and nonce."""
        rows = self.db.query(
            f"SELECT {_COLUMNS} FROM x402_payments WHERE network = ? AND payer = ? AND nonce = ?", name
        )
        return Payment(*rows[0]) if rows else None

    def open(self) -> tuple[Payment, ...]:
        """Payments that a process has left in the middle, oldest first."""
        return tuple(
            Payment(*row)
            for row in self.db.query(
                f"SELECT {_COLUMNS} FROM x402_payments WHERE state IN ('verified', 'settling', 'settled')"
                " ORDER BY at_ns"
            )
        )

    def admit(
        self,
        name: tuple[str, str, str],
        *,
        digest: str,
        scheme: str,
        purpose: str,
        request: str,
        key: KeyRecord,
        token_units: int,
        from_block: int,
        at_ns: int,
    ) -> Payment:
        """Take a payment that was verified; one that was released may be tried again.

        A call has its ceiling as credit from now on.

        Raises:
            ConflictError: ``payment_used``.
            InvalidError: ``amount_out_of_range``.
        """
        units = token_units * self.unit_nano
        if not 0 < units <= TRANSFER_UNITS_MAX:
            raise InvalidError(f"a payment of {token_units} token units", code="amount_out_of_range", fix="pay less")
        with self.db.transaction():
            before = self.find(name)
            if before is not None and (before.state != "released" or before.digest != digest):
                raise used(before)
            tries = 1 if before is None else before.tries + 1
            owed = 0 if before is None else before.owed_units
            state = "verified" if purpose == "call" else "settling"
            self.db.execute(
                f"INSERT INTO x402_payments ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '', ?, ?, ?, ?, ?)"
                " ON CONFLICT (network, payer, nonce) DO UPDATE SET scheme = excluded.scheme,"
                " purpose = excluded.purpose, request = excluded.request, key_id = excluded.key_id,"
                " token_units = excluded.token_units,"
                " state = excluded.state, tries = excluded.tries, at_ns = excluded.at_ns",
                (
                    *name,
                    *(digest, scheme, purpose, request, key.key_id, token_units),
                    *(state, tries, owed, from_block, at_ns),
                ),
            )
            payment = self._get(name)
            if purpose == "call":
                self._deposit(payment, units, at_ns)
            return payment

    def settling(self, payment: Payment, token_units: int) -> None:
        """The chain is asked to take so much from now on."""
        self._set(payment, "settling", settled_token_units=token_units)

    def settled(self, payment: Payment, token_units: int, transaction_hash: str, at_ns: int) -> Payment:
        """The chain has paid. A top-up is credit from now on; a call's payment waits for the answer to be charged."""
        with self.db.transaction():
            now = self._get(payment.name)
            if now.state == "done":
                return now
            call = now.purpose == "call"
            self._set(
                now,
                "settled" if call else "done",
                settled_token_units=token_units,
                transaction_hash=transaction_hash,
            )
            if not call:
                self._deposit(now, token_units * self.unit_nano, at_ns)
            return self._get(payment.name)

    def done(self, payment: Payment) -> None:
        """The call was charged: what the chain did not take of the ceiling is to be taken back."""
        with self.db.transaction():
            now = self._get(payment.name)
            rest = (now.token_units - now.settled_token_units) * self.unit_nano
            self._set(now, "done", owed_units=now.owed_units + rest)

    def released(self, payment: Payment) -> None:
        """Nothing was taken on the chain: all of a call's ceiling is to be taken back."""
        with self.db.transaction():
            now = self._get(payment.name)
            rest = now.token_units * self.unit_nano if now.purpose == "call" else 0
            self._set(now, "released", settled_token_units=0, owed_units=now.owed_units + rest)

    def take_back(self, at_ns: int, *, limit: int = 100) -> int:
        """Take credit back that no payment stands behind, as far as no call holds it; nano units."""
        taken = 0
        rows = self.db.query(
            f"SELECT {_COLUMNS} FROM x402_payments WHERE owed_units > 0 ORDER BY at_ns LIMIT ?", (limit,)
        )
        for payment in (Payment(*row) for row in rows):
            with self.db.transaction():
                now = self._get(payment.name)
                account = f"payer:{now.key_id}"
                if not 0 < now.owed_units <= self.ledger.available(account, self.asset):
                    continue
                cause = f"{_cause(now)}:back"
                draft = correction(account, CASH, now.owed_units, asset=self.asset, cause=cause)
                self.ledger.post([draft], key=cause, at_ns=at_ns)
                self._set(now, now.state, owed_units=0)
                taken += now.owed_units
        return taken

    def topped_up(self, key_id: str, payer: str, request: str) -> Payment | None:
        """A top-up by a payer's own name for it, if it was paid."""
        rows = self.db.query(
            f"SELECT {_COLUMNS} FROM x402_payments WHERE key_id = ? AND payer = ? AND request = ?"
            " AND purpose = 'top-up' AND state = 'done'",
            (key_id, payer, request),
        )
        return Payment(*rows[0]) if rows else None

    def _get(self, name: tuple[str, str, str]) -> Payment:
        found = self.find(name)
        assert found is not None
        return found

    def _set(self, payment: Payment, state: str, **columns: int | str) -> None:
        names = {"state": state, **columns}
        self.db.execute(
            f"UPDATE x402_payments SET {', '.join(f'{name} = ?' for name in names)}"
            " WHERE network = ? AND payer = ? AND nonce = ?",
            (*names.values(), *payment.name),
        )

    def _deposit(self, payment: Payment, units: int, at_ns: int) -> None:
        cause = _cause(payment)
        draft = deposit(f"payer:{payment.key_id}", units, asset=self.asset, cause=cause)
        self.ledger.post([draft], key=cause, at_ns=at_ns)


def used(payment: Payment) -> ConflictError:
    """The refusal of an authorization that was shown before."""
    return ConflictError(
        f"the payment with nonce {payment.nonce[:80]} is {payment.state}",
        code="payment_used",
        fix="sign another one",
    )


def _cause(payment: Payment) -> str:
    return f"x402:{hashlib.sha256(':'.join(payment.name).encode()).hexdigest()[:32]}:{payment.tries}"
