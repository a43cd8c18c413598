"""Invoices: numbered without gaps, for what a key's calls cost in a period or for credit to be bought.

Payments of an invoice are kept by their references, each once; it is paid when they come to its amount, and what comes
beyond that is noted like the rest. What a call cost is what its receipt says and the ledger charged. A call is on one
invoice at most: periods of a key do not overlap, and end long enough ago that no call that began in them can still be
booked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from headwater.core.errors import ConflictError, InvalidError, MissingError
from headwater.core.instants import SECOND_NS, format_instant
from headwater.core.limits import TRANSFER_UNITS_MAX
from headwater.store.database import Sql

SETTLED_NS: Final = 3_600 * SECOND_NS
"""After so long a call that began is booked or given up."""
REFERENCE_CHARS_MAX: Final = 160

_STEPS: Final = (
    f"""
    CREATE TABLE invoices (
      number INTEGER PRIMARY KEY,
      key_id TEXT NOT NULL,
      from_ns INTEGER,
      until_ns INTEGER,
      amount_units INTEGER NOT NULL CHECK (amount_units BETWEEN 1 AND {TRANSFER_UNITS_MAX}),
      asset TEXT NOT NULL,
      lines TEXT NOT NULL,
      created_at_ns INTEGER NOT NULL,
      reference TEXT UNIQUE,
      paid_at_ns INTEGER,
      CHECK ((from_ns IS NULL) = (until_ns IS NULL)),
      CHECK ((reference IS NULL) = (paid_at_ns IS NULL))
    );
    CREATE INDEX invoices_by_key ON invoices (key_id, until_ns);
    """,
    f"""
    CREATE TABLE invoice_payments (
      reference TEXT PRIMARY KEY,
      number INTEGER NOT NULL,
      amount_units INTEGER NOT NULL CHECK (amount_units BETWEEN 1 AND {TRANSFER_UNITS_MAX}),
      at_ns INTEGER NOT NULL
    );
    CREATE INDEX invoice_payments_by_number ON invoice_payments (number);
    INSERT INTO invoice_payments (reference, number, amount_units, at_ns)
      SELECT reference, number, amount_units, paid_at_ns FROM invoices WHERE reference IS NOT NULL;
    """,
)
_COLUMNS: Final = "number, key_id, from_ns, until_ns, amount_units, asset, lines, created_at_ns, reference, paid_at_ns"
_RECEIVED: Final = "(SELECT COALESCE(SUM(p.amount_units), 0) FROM invoice_payments p WHERE p.number = invoices.number)"


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the calls to one model cost."""

    model: str
    calls: int
    amount_units: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """One invoice."""

    number: int  # from 1
    key_id: str
    from_ns: int | None  # of the period; None for credit that is bought
    until_ns: int | None  # the period ends before it
    amount_units: int  # nano units
    asset: str
    lines: tuple[Line, ...]
    created_at_ns: int
    reference: str | None  # of the payment that made it whole
    paid_at_ns: int | None
    received_units: int  # of all its payments

    @property
    def status(self) -> str:
        """open, part, paid or overpaid."""
        if self.reference is None:
            return "part" if self.received_units else "open"
        return "overpaid" if self.received_units > self.amount_units else "paid"

    @property
    def name(self) -> str:
        """Its number as people write it."""
        return f"HW-{self.number:06d}"


@dataclass(frozen=True, slots=True)
class Payment:
    """Money that came for an invoice."""

    invoice: Invoice  # as it is with it
    amount_units: int
    replayed: bool  # it was noted before


@dataclass(frozen=True, slots=True)
class InvoicedCall:
    """A call on an invoice."""

    call_id: str
    receipt_id: str | None  # None while its attribution is not done
    model: str
    at_ns: int
    price_units: int


class InvoiceStore:
    """The invoices in `db`, which holds the calls too."""

    def __init__(self, db: Sql) -> None:
        self.db = db
        db.migrate("invoices", _STEPS)

    def for_period(self, key_id: str, from_ns: int, until_ns: int, *, asset: str, now_ns: int) -> Invoice:
        """Invoice what the calls of a key cost that began in a period.

        Raises:
            InvalidError: ``period_invalid``, ``invoice_empty``.
            ConflictError: ``period_invoiced``, ``calls_open``.
        """
        if not 0 <= from_ns < until_ns or until_ns > now_ns - SETTLED_NS:
            raise InvalidError(
                f"a period from {format_instant(from_ns)} until {format_instant(until_ns)}",
                code="period_invalid",
                fix=f"end it after its beginning and {SETTLED_NS // SECOND_NS} s ago or earlier",
            )
        with self.db.transaction():
            for number, other_from, other_until in self.db.query(
                "SELECT number, from_ns, until_ns FROM invoices WHERE key_id = ? AND from_ns < ? AND until_ns > ?",
                (key_id, until_ns, from_ns),
            ):
                raise ConflictError(
                    f"invoice HW-{number:06d} is for {format_instant(other_from)} until {format_instant(other_until)}",
                    code="period_invoiced",
                    fix="choose a period that no invoice of this key has",
                )
            period = (key_id, asset, from_ns, until_ns)
            if self.db.query(
                "SELECT 1 FROM calls WHERE key_id = ? AND asset = ? AND created_at_ns >= ? AND created_at_ns < ?"
                " AND state = 'reserved' LIMIT 1",
                period,
            ):
                raise ConflictError(
                    "a call of the period is still at work", code="calls_open", fix="try again when it has ended"
                )
            lines = tuple(
                Line(model, int(calls), int(units))
                for model, calls, units in self.db.query(
                    "SELECT model, COUNT(*), SUM(price_units) FROM calls WHERE key_id = ? AND asset = ?"
                    " AND created_at_ns >= ? AND created_at_ns < ? AND price_units > 0 GROUP BY model ORDER BY model",
                    period,
                )
            )
            if not lines:
                raise InvalidError(
                    f"no call of {key_id} in the period cost anything",
                    code="invoice_empty",
                    fix="choose another period",
                )
            return self._add(key_id, from_ns, until_ns, lines, asset, now_ns)

    def for_credit(self, key_id: str, amount_units: int, *, asset: str, now_ns: int) -> Invoice:
        """Invoice credit that is to be bought.

        Raises:
            InvalidError: ``amount_out_of_range``.
        """
        if not 0 < amount_units <= TRANSFER_UNITS_MAX:
            raise InvalidError(f"{amount_units} nano", code="amount_out_of_range", fix="invoice more than 0")
        with self.db.transaction():
            return self._add(key_id, None, None, (Line("credit", 0, amount_units),), asset, now_ns)

    def pay(self, number: int, reference: str, now_ns: int) -> Payment:
        """Note that what an invoice still asks for was paid. Doing it again with the same reference changes nothing.

        Raises:
            As `receive`; ConflictError: ``invoice_paid`` with another reference.
        """
        with self.db.transaction():
            invoice, earlier = self.get(number), self._payment(reference)
            if earlier is not None and earlier[0] == number:
                return Payment(invoice, earlier[1], replayed=True)
            if invoice.reference is not None:
                raise ConflictError(
                    f"{invoice.name} was paid by {invoice.reference}", code="invoice_paid", fix="look at it again"
                )
            return self.receive(number, reference, invoice.amount_units - invoice.received_units, now_ns)

    def receive(self, number: int, reference: str, amount_units: int, now_ns: int) -> Payment:
        """Note a payment of an invoice, less than it asks for or more. The same again changes nothing.

        Raises:
            MissingError: ``invoice_unknown``.
            InvalidError: ``reference_invalid``, ``amount_out_of_range``.
            ConflictError: ``reference_used`` for another invoice or amount.
        """
        if not 0 < len(reference) <= REFERENCE_CHARS_MAX or not reference.isprintable():
            raise InvalidError(
                f"reference {reference[:80]!r}", code="reference_invalid", fix="name the payment that came"
            )
        if not 0 < amount_units <= TRANSFER_UNITS_MAX:
            raise InvalidError(f"{amount_units} nano", code="amount_out_of_range", fix="book more than 0")
        with self.db.transaction():
            invoice, earlier = self.get(number), self._payment(reference)
            if earlier == (number, amount_units):
                return Payment(invoice, amount_units, replayed=True)
            if earlier is not None:
                raise ConflictError(
                    f"{reference!r} has paid HW-{earlier[0]:06d}", code="reference_used", fix="give this payment's own"
                )
            self.db.execute(
                "INSERT INTO invoice_payments (reference, number, amount_units, at_ns) VALUES (?, ?, ?, ?)",
                (reference, number, amount_units, now_ns),
            )
            if invoice.reference is None and invoice.received_units + amount_units >= invoice.amount_units:
                self.db.execute(
                    "UPDATE invoices SET reference = ?, paid_at_ns = ? WHERE number = ?", (reference, now_ns, number)
                )
            return Payment(self.get(number), amount_units, replayed=False)

    def _payment(self, reference: str) -> tuple[int, int] | None:
        """(invoice, amount) of a payment that was noted."""
        rows = self.db.query("SELECT number, amount_units FROM invoice_payments WHERE reference = ?", (reference,))
        return (int(rows[0][0]), int(rows[0][1])) if rows else None

    def get(self, number: int) -> Invoice:
        """One invoice.

        Raises:
            MissingError: ``invoice_unknown``.
        """
        rows = (
            self.db.query(f"SELECT {_COLUMNS}, {_RECEIVED} FROM invoices WHERE number = ?", (number,))
            if number < 2**62
            else []
        )
        if not rows:
            named, fix = f"HW-{number:06d}", "see `headwater invoice list`"
            raise MissingError(f"no invoice {named}", code="invoice_unknown", fix=fix)
        return _invoice(rows[0])

    def list(self, key_id: str | None = None, *, open_only: bool = False) -> tuple[Invoice, ...]:
        """Invoices by number, of one key or of all."""
        return tuple(
            _invoice(row)
            for row in self.db.query(
                f"SELECT {_COLUMNS}, {_RECEIVED} FROM invoices WHERE key_id = coalesce(?1, key_id)"
                " AND (?2 = 0 OR reference IS NULL) ORDER BY number",
                (key_id, int(open_only)),
            )
        )

    def calls(self, invoice: Invoice) -> tuple[InvoicedCall, ...]:
        """The calls of an invoice's period, oldest first; none for credit."""
        if invoice.from_ns is None:
            return ()
        return tuple(
            InvoicedCall(*row)
            for row in self.db.query(
                "SELECT call_id, receipt_id, model, created_at_ns, price_units FROM calls"
                " WHERE key_id = ? AND asset = ? AND created_at_ns >= ?"
                " AND created_at_ns < ? AND price_units > 0 ORDER BY created_at_ns, call_id",
                (invoice.key_id, invoice.asset, invoice.from_ns, invoice.until_ns),
            )
        )

    def _add(
        self, key_id: str, from_ns: int | None, until_ns: int | None, lines: tuple[Line, ...], asset: str, now_ns: int
    ) -> Invoice:
        (last,) = self.db.query("SELECT COALESCE(MAX(number), 0) FROM invoices")[0]
        amount = sum(line.amount_units for line in lines)
        self.db.execute(
            f"INSERT INTO invoices ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            (last + 1, key_id, from_ns, until_ns, amount, asset, msgspec.json.encode(lines).decode(), now_ns),
        )
        return self.get(last + 1)


def _invoice(row: tuple[object, ...]) -> Invoice:
    values = list(row)
    values[10] = int(values[10])  # type: ignore[call-overload]
    values[6] = msgspec.json.decode(str(values[6]), type=tuple[Line, ...])
    return Invoice(*values)  # type: ignore[arg-type]
