"""Vouchers that were taken: the newest of each payer, and the credit it gave.

Taking a voucher is one commit: the payer's mark rises to its cumulative amount and what it rose by becomes prepaid
credit, as any deposit. So no voucher counts twice, however many processes are shown it, and everything behind a call
(leases, budgets, receipts) is as for an API key. A payer has a key record without a secret.

Knows nothing of signatures or chains: whoever calls `take` has checked both.
"""

from __future__ import annotations

from collections.abc import Mapping

from headwater.core.errors import ConflictError, InvalidError, RefusedError
from headwater.core.limits import TRANSFER_UNITS_MAX
from headwater.ledger import deposit
from headwater.settlement.typed_data import SigningDomain
from headwater.settlement.voucher import SignedVoucher, Voucher
from headwater.store.database import Sql
from headwater.store.key_store import KeyRecord, KeyStore
from headwater.store.ledger_store import Ledger

_STEPS = (
    f"""
    CREATE TABLE vouchers (
      domain TEXT NOT NULL,
      payer TEXT NOT NULL,
      payee TEXT NOT NULL,
      cumulative INTEGER NOT NULL CHECK (cumulative BETWEEN 1 AND {TRANSFER_UNITS_MAX}),
      signature BLOB NOT NULL,
      closed INTEGER NOT NULL DEFAULT 0,
      taken_at_ns INTEGER NOT NULL,
      PRIMARY KEY (domain, payer)
    );
    """,
)


class VoucherStore:
    """The vouchers in `db` for one Credit contract.

    Args:
        domain: of the contract.
        unit_nano: nano units of `asset` that a token unit is worth.
    """

    def __init__(
        self, db: Sql, ledger: Ledger, keys: KeyStore, *, domain: SigningDomain, asset: str, unit_nano: int
    ) -> None:
        self.db, self._ledger, self._keys = db, ledger, keys
        self.domain, self._asset, self._unit_nano = domain, asset, unit_nano
        self._separator = domain.separator().hex()
        db.migrate("vouchers", _STEPS)

    def take(self, signed: SignedVoucher, *, closed: int, at_ns: int) -> KeyRecord:
        """Raise a payer's mark to a voucher and give it the credit; the payer's key record.

        Args:
            closed: token units of this payer's vouchers that the chain has paid already.

        Raises:
            ConflictError: ``voucher_replayed``, it does not rise above what was taken or paid before.
            InvalidError: ``amount_out_of_range``.
            RefusedError: ``payer_revoked``.
        """
        voucher = signed.voucher
        with self.db.transaction():
            before = max(self.mark(voucher.payer), closed)
            if voucher.cumulative <= before:
                raise ConflictError(
                    f"the voucher of {voucher.payer} over {voucher.cumulative} token units was taken before: {before}",
                    code="voucher_replayed",
                    fix=f"sign one over more than {before}, cumulative since the first",
                )
            rise = (voucher.cumulative - before) * self._unit_nano
            if voucher.cumulative > TRANSFER_UNITS_MAX or rise > TRANSFER_UNITS_MAX:
                raise InvalidError(
                    f"a voucher that rises by {voucher.cumulative - before} token units",
                    code="amount_out_of_range",
                    fix="sign a smaller one",
                )
            self.db.execute(
                "INSERT INTO vouchers VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (domain, payer) DO UPDATE SET"
                " payee = excluded.payee, cumulative = excluded.cumulative, signature = excluded.signature,"
                " taken_at_ns = excluded.taken_at_ns",
                (
                    *(self._separator, voucher.payer, voucher.payee, voucher.cumulative, signed.signature),
                    *(closed, at_ns),
                ),
            )
            key = self._keys.payer(voucher.payer, at_ns)
            if key.revoked:
                raise RefusedError(
                    f"{key.key_id} of {voucher.payer} is revoked", code="payer_revoked", fix="ask the operator"
                )
            cause = f"voucher:{self._separator[:16]}:{voucher.payer}:{voucher.cumulative}"
            draft = deposit(key.account, rise, asset=self._asset, cause=cause)
            self._ledger.post([draft], key=cause, at_ns=at_ns)
            return key

    def key_of(self, payer: str) -> KeyRecord:
        """The record of a payer whose vouchers were taken.

        Raises:
            RefusedError: ``invalid_api_key`` when it was revoked, ``api_key_expired``.
        """
        rows = self.db.query(
            "SELECT taken_at_ns FROM vouchers WHERE domain = ? AND payer = ?", (self._separator, payer)
        )
        at_ns = int(rows[0][0]) if rows else 0
        return self._keys.in_force(self._keys.payer(payer, at_ns).key_id)

    def mark(self, payer: str) -> int:
        """Token units of the newest voucher of a payer; 0 when there is none."""
        rows = self.db.query("SELECT cumulative FROM vouchers WHERE domain = ? AND payer = ?", (self._separator, payer))
        return int(rows[0][0]) if rows else 0

    def waiting(self) -> tuple[SignedVoucher, ...]:
        """The newest voucher of every payer that is worth more than has been closed, the largest first."""
        return tuple(
            SignedVoucher(Voucher(payer, payee, cumulative), signature)
            for payer, payee, cumulative, signature in self.db.query(
                "SELECT payer, payee, cumulative, signature FROM vouchers WHERE domain = ? AND cumulative > closed"
                " ORDER BY cumulative - closed DESC, payer",
                (self._separator,),
            )
        )

    def closed_of(self, payer: str) -> int:
        """Token units of a payer's vouchers that the chain is known to have paid."""
        rows = self.db.query("SELECT closed FROM vouchers WHERE domain = ? AND payer = ?", (self._separator, payer))
        return int(rows[0][0]) if rows else 0

    def closed(self, amounts: Mapping[str, int]) -> None:
        """The chain has paid so many token units of each payer's vouchers in all."""
        self.db.executemany(
            "UPDATE vouchers SET closed = ? WHERE domain = ? AND payer = ?",
            [(amount, self._separator, payer.lower()) for payer, amount in amounts.items()],
        )
