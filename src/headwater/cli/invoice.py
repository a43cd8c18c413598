"""`headwater invoice …`: invoices for money that comes by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.home import Home
from headwater.cli.operations import administration
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.core.errors import MissingError
from headwater.core.money import format_units
from headwater.gateway.invoice_matching import SIZE_BYTES_MAX, Matched, match
from headwater.gateway.invoices import Invoicing, export_csv, export_json, invoice_json, invoice_number
from headwater.store.invoice_store import InvoiceStore

app = App(name="invoice", help="Invoices for what a key used or for credit, and booking the money that came.")


def invoicing(home: Home) -> Invoicing:
    """Invoices of a home."""
    return Invoicing(InvoiceStore(home.db), administration(home))


@app.command
def create(
    key_id: str,
    /,
    *,
    begin: Annotated[str | None, Parameter(name="--from", help="First instant of the period, RFC 3339 in UTC.")] = None,
    end: Annotated[str | None, Parameter(name="--until", help="End of the period; it is not in it.")] = None,
    amount: Annotated[str | None, Parameter(help="Credit to be bought, in the currency, instead of a period.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Invoice what a key's calls of a period cost, or an amount of credit.

    Parameters
    ----------
    key_id
        The key, `key_…`.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        made = invoicing(opened).create("cli", key_id, begin=begin, end=end, amount=amount)
        if json:
            print_json(invoice_json(made))
        else:
            out.print(f"{made.name}: {format_units(made.amount_units, places=2)} {made.asset} of {made.key_id}")
            for line in made.lines if made.from_ns is not None else ():
                out.print(f"  {line.model}: {line.calls} calls, {format_units(line.amount_units)}", markup=False)
    return result.status


@app.command(name="list")
def list_(
    *,
    key: Annotated[str | None, Parameter(help="Only those of this key.")] = None,
    open_only: Annotated[bool, Parameter(name="--open", negative=(), help="Only those that are not paid.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """All invoices."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        rows = [invoice_json(one) for one in InvoiceStore(opened.db).list(key, open_only=open_only)]
        if json:
            print_json(rows)
        elif not rows:
            out.print("no invoices")
        else:
            for row in rows:
                came = "" if row["status"] in ("open", "paid") else f", {row['received']} received"
                asked = f"{row['amount']:>18} {row['currency']}"
                out.print(
                    f"{row['invoice']}  {row['status']:<8} {asked}  {row['key_id']}{came}", markup=False, soft_wrap=True
                )
    return result.status


@app.command
def paid(
    number: str,
    /,
    *,
    reference: Annotated[str, Parameter(help="The payment that came; it is booked once.")],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Book what an invoice still asks for as credit of its key.

    Parameters
    ----------
    number
        The invoice, such as HW-000012.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        invoice, replayed = invoicing(opened).paid("cli", invoice_number(number), reference)
        if json:
            print_json({**invoice_json(invoice), "replayed": replayed})
        else:
            seen = " (was booked before)" if replayed else ""
            out.print(f"{invoice.name} is paid: {format_units(invoice.amount_units, places=2)} {invoice.asset}{seen}")
    return result.status


@app.command(name="match")
def match_(
    file: Path,
    /,
    *,
    dry_run: Annotated[bool, Parameter(negative=(), help="Say what would become of the lines; book nothing.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Book a bank's list of payments against the invoices that their texts name. Status 1 when a line is wrong.

    Parameters
    ----------
    file
        CSV in UTF-8 with the columns reference, amount, currency and text.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        raw = read_file(file)
        found = match(invoicing(opened), "cli", raw, book=not dry_run)
        wrong = [one for one in found if one.invoice is None]
        if json:
            print_json([_matched_json(one) for one in found])
        else:
            table = Table("line", "reference", "invoice", Column("amount", justify="right"), "what", "status", box=None)
            for one in found:
                name, status = (one.invoice.name, one.invoice.status) if one.invoice else ("", one.problem)
                amount = format_units(one.amount_units, places=2) if one.invoice else ""
                table.add_row(str(one.line), escape(one.reference), name, amount, one.status, escape(status))
            out.print(table)
            came = sum(one.amount_units for one in found if one.status != "repeated")
            new = f"{format_units(came, places=2)} new{' (dry run)' * dry_run}"
            out.print(f"{len(found) - len(wrong)} of {len(found)} lines, {new}")
        if wrong:
            result.status = 1
    return result.status


def read_file(file: Path) -> bytes:
    """A bank's list.

    Raises:
        MissingError: no such file.
    """
    try:
        with file.open("rb") as source:
            return source.read(SIZE_BYTES_MAX + 1)
    except OSError as error:
        raise MissingError(f"{file}: {error.strerror}", code="file_missing", fix="name a CSV file") from None


def _matched_json(one: Matched) -> dict[str, object]:
    found: dict[str, object] = {"line": one.line, "reference": one.reference, "status": one.status}
    if one.invoice is None:
        return {**found, "problem": one.problem}
    shown = invoice_json(one.invoice)
    return {**found, "amount": format_units(one.amount_units), "invoice": shown["invoice"], "is": shown["status"]}


@app.command
def export(
    number: str,
    /,
    *,
    form: Annotated[Literal["csv", "json"], Parameter(help="A line a call, or the whole invoice.")] = "csv",
    home: HomeOption = None,
) -> int:
    """Write an invoice with its calls and receipts to standard output.

    Parameters
    ----------
    number
        The invoice, such as HW-000012.
    """
    with outcome(form == "json") as result, Home(settings(home), create=False) as opened:
        store = InvoiceStore(opened.db)
        invoice = store.get(invoice_number(number))
        if form == "json":
            print_json(export_json(store, invoice))
        else:
            sys.stdout.write(export_csv(store, invoice))
    return result.status
