"""Money that a bank's list says has come, matched with the invoices it is for, line by line.

    reference,amount,currency,text
    2026-11-02/0007,50.00,USD,your invoice HW-000012

`reference` is the bank's own name for the payment, by which it is booked once; `text` names one invoice. A line that
is wrong is told with its number and books nothing; the others are booked, each in a commit of its own, so the same list
may be given again when it has been put right, and lists may overlap. All that came becomes credit: part of an invoice,
or more than it, too.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.money import parse_units
from headwater.gateway.invoices import Invoicing, invoice_number
from headwater.store.invoice_store import Invoice

COLUMNS: Final = ("reference", "amount", "currency", "text")
SIZE_BYTES_MAX: Final = 8 * 2**20
LINES_MAX: Final = 100_000
_NUMBER: Final = re.compile(r"\bHW-?0*([1-9][0-9]{0,17})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Matched:
    """What became of one line."""

    line: int  # in the file, counted from 1
    reference: str
    invoice: Invoice | None  # as it is with the payment; None for a line that is wrong
    amount_units: int
    status: str  # booked, repeated, or the code of what is wrong
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Payment:
    reference: str
    number: int
    amount_units: int


def read_list(raw: bytes) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The lines of a bank's list, with their numbers.

    Raises:
        InvalidError: ``list_invalid`` when it is too large, not UTF-8, or lacks a column.
    """
    if len(raw) > SIZE_BYTES_MAX:
        raise _no_list(f"{len(raw)} bytes", f"split it into lists of at most {SIZE_BYTES_MAX} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no_list(f"no UTF-8 at byte {error.start}", "export it as UTF-8") from None
    first = text.partition("\n")[0]
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=";" if first.count(";") > first.count(",") else ","
    )
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise _no_list(f"no column {', '.join(missing)}", f"head it with {','.join(COLUMNS)}")
        for count, row in enumerate(reader, 1):
            if count > LINES_MAX:
                raise _no_list(f"more than {LINES_MAX} lines", "split it")
            yield reader.line_num, {name: (row.get(name) or "").strip() for name in COLUMNS}
    except csv.Error as error:
        raise _no_list(f"line {reader.line_num}: {error}", "export it as CSV") from None


def match(invoicing: Invoicing, actor: str, raw: bytes, *, book: bool = True) -> tuple[Matched, ...]:
    """Book what a bank's list says has come; what became of each line.

    Args:
        book: False says what would become of the lines, and leaves the books as they are.

    Raises:
        InvalidError: ``list_invalid``.
    """
    lines = tuple(read_list(raw))
    if book:
        return tuple(_booked(invoicing, actor, line, row) for line, row in lines)
    found: tuple[Matched, ...] = ()
    with suppress(_Undone), invoicing.acts.keys.db.transaction():
        found = tuple(_booked(invoicing, actor, line, row) for line, row in lines)
        raise _Undone
    return found


class _Undone(Exception):
    """Ends the transaction of a dry run."""


def _booked(invoicing: Invoicing, actor: str, line: int, row: Mapping[str, str]) -> Matched:
    try:
        payment = _payment(row, invoicing.acts.asset)
        known = invoicing.store.get(payment.number)
        if known.asset != invoicing.acts.asset:
            raise InvalidError(f"{known.name} is in {known.asset}", code="currency_other", fix="book it by hand")
        known, replayed = invoicing.received(actor, payment.number, payment.reference, payment.amount_units)
    except HeadwaterError as error:
        return Matched(line, row["reference"], None, 0, error.code, error.message)
    return Matched(line, payment.reference, known, payment.amount_units, "repeated" if replayed else "booked")


def _payment(row: Mapping[str, str], asset: str) -> _Payment:
    if row["currency"] != asset:
        raise InvalidError(
            f"a payment in {row['currency'][:20]!r}, the books are in {asset}",
            code="currency_other",
            fix="book it by hand",
        )
    units = parse_units(row["amount"], where="amount")
    if units <= 0:
        raise InvalidError(f"an amount of {row['amount'][:40]}", code="amount_out_of_range", fix="list what came in")
    named = {invoice_number(number) for number in _NUMBER.findall(row["text"])}
    if len(named) != 1:
        what = "no invoice" if not named else f"{len(named)} invoices"
        raise InvalidError(f"the text names {what}", code="invoice_not_named", fix="book it with `invoice paid`")
    return _Payment(row["reference"], named.pop(), units)


def _no_list(why: str, fix: str) -> InvalidError:
    return InvalidError(f"not a list of payments: {why}", code="list_invalid", fix=fix)
