"""Invoices for money that comes by hand: what an operator does with them, their forms, and the admin routes."""

# Annotations stay live here: FastAPI resolves them, and those of a route may name what its function encloses.

import csv
import io
import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from msgspec import Struct

from headwater.core.canonical import refuse_deep
from headwater.core.errors import InvalidError
from headwater.core.instants import format_instant, parse_instant
from headwater.core.money import format_units, parse_units
from headwater.gateway.administration import Administration
from headwater.gateway.bodies import body_up_to
from headwater.gateway.native import Routes, Service, json_response
from headwater.store.invoice_store import Invoice, InvoiceStore, Payment
from headwater.store.key_store import KeyRecord

BODY_BYTES_MAX: Final = 16 * 1024

_NAME: Final = re.compile(r"(?:HW-)?0*([1-9][0-9]{0,17})")
_FORMULA: Final = ("=", "+", "-", "@", "\t")


@dataclass(frozen=True, slots=True)
class Invoicing:
    """What is done with invoices, each act with its entry in the audit trail, in one commit."""

    store: InvoiceStore
    acts: Administration

    def create(
        self, actor: str, key_id: str, *, begin: str | None = None, end: str | None = None, amount: str | None = None
    ) -> Invoice:
        """Invoice a period's calls, or an amount of credit.

        Args:
            begin: first instant of the period, RFC 3339.
            end: its end, which is not in it.
            amount: in the currency, instead of a period.

        Raises:
            MissingError: no such key.
            InvalidError: neither or both; and as `InvoiceStore`.
        """
        acts = self.acts
        if (begin is None) != (end is None) or (begin is None) == (amount is None):
            raise InvalidError(
                "an invoice is for a period or for an amount", code="period_invalid", fix="give both ends, or an amount"
            )
        with acts.keys.db.transaction():
            now_ns, key = acts.now_ns(), acts.keys.get(key_id)
            if amount is not None:
                made = self.store.for_credit(key.key_id, parse_units(amount), asset=acts.asset, now_ns=now_ns)
            else:
                assert begin is not None
                assert end is not None
                ends = (parse_instant(begin), parse_instant(end))
                made = self.store.for_period(key.key_id, *ends, asset=acts.asset, now_ns=now_ns)
            said = {"invoice": made.name, "amount": format_units(made.amount_units), "currency": made.asset}
            acts.trail.record(now_ns, actor, "invoice.create", key_id, said)
            return made

    def paid(self, actor: str, number: int, reference: str) -> tuple[Invoice, bool]:
        """The rest of an invoice's money came: it becomes the key's credit, once; (the invoice, whether it was booked
        before).

        Raises:
            As `InvoiceStore.pay`.
        """
        with self.acts.keys.db.transaction():
            return self._booked(actor, self.store.pay(number, reference, self.acts.now_ns()), reference)

    def received(self, actor: str, number: int, reference: str, amount_units: int) -> tuple[Invoice, bool]:
        """So much money came for an invoice: all of it becomes the key's credit, once. As `paid`.

        Raises:
            As `InvoiceStore.receive`.
        """
        with self.acts.keys.db.transaction():
            payment = self.store.receive(number, reference, amount_units, self.acts.now_ns())
            return self._booked(actor, payment, reference)

    def _booked(self, actor: str, payment: Payment, reference: str) -> tuple[Invoice, bool]:
        invoice = payment.invoice
        amount = format_units(payment.amount_units)
        posted, _ = self.acts.deposit(actor, invoice.key_id, amount, f"{invoice.name} {reference}")
        return invoice, posted.replayed


def invoice_number(text: str) -> int:
    """A number as people write it, HW-000012 or 12.

    Raises:
        InvalidError: ``invoice_invalid``.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise InvalidError(f"invoice {text[:40]!r}", code="invoice_invalid", fix="give its number, such as HW-000012")
    return int(match[1])


def invoice_json(invoice: Invoice) -> dict[str, Any]:
    """An invoice on the wire; amounts as decimal strings."""
    return {
        "invoice": invoice.name,
        "key_id": invoice.key_id,
        "period": None
        if invoice.from_ns is None or invoice.until_ns is None
        else {"from": format_instant(invoice.from_ns), "until": format_instant(invoice.until_ns)},
        "lines": [
            {"model": line.model, "calls": line.calls, "amount": format_units(line.amount_units)}
            for line in invoice.lines
        ],
        "amount": format_units(invoice.amount_units),
        "currency": invoice.asset,
        "created_at": format_instant(invoice.created_at_ns),
        "received": format_units(invoice.received_units),
        "status": invoice.status,
        "reference": invoice.reference,
        "paid_at": None if invoice.paid_at_ns is None else format_instant(invoice.paid_at_ns),
    }


def export_json(store: InvoiceStore, invoice: Invoice) -> dict[str, Any]:
    """An invoice with every call on it."""
    calls = [
        {
            "call": call.call_id,
            "receipt": call.receipt_id,
            "model": call.model,
            "at": format_instant(call.at_ns),
            "price": format_units(call.price_units),
        }
        for call in store.calls(invoice)
    ]
    return {**invoice_json(invoice), "calls": calls}


def export_csv(store: InvoiceStore, invoice: Invoice) -> str:
    """An invoice's calls as CSV, a line each, whose prices sum to the invoice; credit is one line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("invoice", "key", "at", "model", "call", "receipt", "price", "currency"))
    if invoice.from_ns is None:
        bought = (format_instant(invoice.created_at_ns), "credit", "", "", format_units(invoice.amount_units))
        writer.writerow((invoice.name, invoice.key_id, *bought, invoice.asset))
    for call in store.calls(invoice):
        model = f"'{call.model}" if call.model.startswith(_FORMULA) else call.model  # a table would run it
        row = (format_instant(call.at_ns), model, call.call_id, call.receipt_id or "", format_units(call.price_units))
        writer.writerow((invoice.name, invoice.key_id, *row, invoice.asset))
    return text.getvalue()


class _NewInvoice(Struct, forbid_unknown_fields=True):
    key_id: str
    begin: str | None = None
    end: str | None = None
    amount: str | None = None


class _Paid(Struct, forbid_unknown_fields=True):
    reference: str


def invoice_routes(invoicing: Invoicing) -> Routes:
    """The admin routes, for `create_app(more=…)`."""
    store = invoicing.store

    def add(app: FastAPI, service: Service) -> None:
        def admin(request: Request) -> KeyRecord:
            """The operator's key."""
            return service.payer(request)

        Admin = Annotated[KeyRecord, Depends(admin)]
        Body = Annotated[bytes, Depends(body_up_to(BODY_BYTES_MAX))]

        @app.get("/v1/admin/invoices", response_class=Response, tags=["admin"])
        def invoices(_: Admin, key_id: str | None = None, open_only: bool = False) -> Response:
            """Invoices by number."""
            return json_response({"data": [invoice_json(one) for one in store.list(key_id, open_only=open_only)]})

        @app.post("/v1/admin/invoices", response_class=Response, tags=["admin"])
        def create(raw: Body, admin: Admin) -> Response:
            """Invoice a key's calls from `begin` until `end`, or an `amount` of credit."""
            wanted = _read(raw, _NewInvoice)
            made = invoicing.create(
                admin.key_id, wanted.key_id, begin=wanted.begin, end=wanted.end, amount=wanted.amount
            )
            return json_response(invoice_json(made), 201)

        @app.get("/v1/admin/invoices/{number}", response_class=Response, tags=["admin"])
        def invoice(number: str, _: Admin, form: str = "json") -> Response:
            """One invoice with its calls; `form=csv` for a table."""
            found = store.get(invoice_number(number))
            if form == "csv":
                headers = {"content-disposition": f'attachment; filename="{found.name}.csv"'}
                return Response(export_csv(store, found), 200, headers, media_type="text/csv")
            if form != "json":
                raise InvalidError(f"form {form[:20]!r}", code="form_invalid", fix="use json or csv")
            return json_response(export_json(store, found))

        @app.post("/v1/admin/invoices/{number}/paid", response_class=Response, tags=["admin"])
        def paid(number: str, raw: Body, admin: Admin) -> Response:
            """The money came: it is credit from now on; the same reference is booked once."""
            found, replayed = invoicing.paid(admin.key_id, invoice_number(number), _read(raw, _Paid).reference)
            return json_response({**invoice_json(found), "replayed": replayed})

    return add


def _read(raw: bytes, shape: Any) -> Any:
    refuse_deep(raw)
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(str(error), code="request_invalid", fix="see /docs for the fields of this route") from None
