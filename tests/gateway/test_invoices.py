"""Invoices: what the calls of a period cost, credit that is bought, and money that is booked once."""

from __future__ import annotations

import csv
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.core.errors import HeadwaterError
from headwater.core.instants import SECOND_NS, format_instant
from headwater.core.money import parse_units
from headwater.gateway import create_app, serving
from headwater.gateway.administration import Administration
from headwater.gateway.invoices import Invoicing, export_csv, export_json, invoice_number, invoice_routes
from headwater.store.audit_trail import AuditTrail
from headwater.store.invoice_store import SETTLED_NS, InvoiceStore
from headwater.store.key_limits import NO_LIMITS
from toy.home import NANO, ToyHome, open_home

BODY = json.dumps({"model": "toy", "messages": [{"role": "user", "content": "x"}]}).encode()


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[ToyHome]:
    """A home."""
    with open_home(tmp_path / "home") as home:
        yield home


def invoicing(toy: ToyHome, now_ns: int) -> Invoicing:
    """Invoices of a home at a time."""
    acts = Administration(toy.keys, toy.ledger, AuditTrail(toy.db), toy.currency, lambda: now_ns, lambda n: b"\x07" * n)
    return Invoicing(InvoiceStore(toy.db), acts)


def code(call: Any) -> str:
    """Why it is refused."""
    with pytest.raises(HeadwaterError) as caught:
        call()
    return caught.value.code


def test_an_invoice_is_what_the_ledger_charged_call_by_call(toy: ToyHome):
    """Its amount, its lines, its calls and the ledger agree, and its receipts are those of the log."""
    began = time.time_ns()
    secret, key = toy.key()
    other, _ = toy.key("somebody else")
    app = create_app(toy.flow, toy.keys)
    with serving(app) as url:
        for one in (secret, secret, secret, other):
            asked = urllib.request.Request(url + "/v1/chat/completions", BODY, {"Authorization": f"Bearer {one}"})
            urllib.request.urlopen(asked, timeout=20).read()
        assert app.worker.wait_idle(20)
    work = invoicing(toy, time.time_ns() + 2 * SETTLED_NS)
    ends = {"begin": format_instant(began - SECOND_NS), "end": format_instant(time.time_ns() + SECOND_NS)}
    made = work.create("cli", key.key_id, **ends)
    assert made.amount_units == toy.spent(key) > 0
    assert [(line.model, line.calls) for line in made.lines] == [("toy", 3)]

    rows = list(csv.DictReader(io.StringIO(export_csv(work.store, made))))
    assert sum(parse_units(row["price"]) for row in rows) == made.amount_units
    assert [toy.calls.get(row["call"]).receipt_id or "" for row in rows] == [row["receipt"] for row in rows]
    assert all(len(row["receipt"]) == 64 for row in rows)
    assert len(export_json(work.store, made)["calls"]) == 3
    assert code(lambda: work.create("cli", key.key_id, **ends)) == "period_invoiced"


def test_numbers_have_no_gaps_and_refused_invoices_take_none(toy: ToyHome):
    """One, then refusals, then two."""
    work, (_, key) = invoicing(toy, time.time_ns()), toy.key()
    assert work.create("cli", key.key_id, amount="5.00").name == "HW-000001"
    wrong: list[tuple[dict[str, str], str]] = [
        ({"amount": "0"}, "amount_out_of_range"),
        ({"amount": "-1"}, "amount_out_of_range"),
        ({}, "period_invalid"),
        ({"begin": "2026-01-01T00:00:00Z"}, "period_invalid"),
        ({"begin": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z", "amount": "1"}, "period_invalid"),
        ({"begin": "2026-02-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}, "period_invalid"),
        ({"begin": "2026-02-01T00:00:00Z", "end": "2200-01-01T00:00:00Z"}, "period_invalid"),
        ({"begin": "2020-01-01T00:00:00Z", "end": "2020-02-01T00:00:00Z"}, "invoice_empty"),
    ]
    for fields, why in wrong:
        assert code(lambda one=fields: work.create("cli", key.key_id, **one)) == why
    assert code(lambda: work.create("cli", "key_none", amount="1")) == "key_unknown"
    assert work.create("cli", key.key_id, amount="5.00").name == "HW-000002"


def test_an_invoice_is_paid_once(toy: ToyHome):
    """The same reference again books nothing; another one, or one that paid something else, is refused."""
    work, (_, key) = invoicing(toy, time.time_ns()), toy.key(units=0)
    made, second = (work.create("cli", key.key_id, amount="5.00") for _ in range(2))
    assert [work.paid("cli", made.number, "transfer 17")[1] for _ in range(2)] == [False, True]
    assert toy.ledger.available(key.account, toy.currency) == 5 * NANO
    assert code(lambda: work.paid("cli", made.number, "transfer 18")) == "invoice_paid"
    assert code(lambda: work.paid("cli", second.number, "transfer 17")) == "reference_used"
    assert code(lambda: work.paid("cli", second.number, "")) == "reference_invalid"
    assert code(lambda: work.paid("cli", 99, "x")) == "invoice_unknown"
    assert [one.name for one in work.store.list(open_only=True)] == ["HW-000002"]
    acts = [entry.action for entry in AuditTrail(toy.db).entries(limit=10)]
    assert acts == ["key.deposit", "invoice.create", "invoice.create"]
    assert toy.calls.check() == ()


def test_numbers_are_read_as_people_write_them():
    """With the letters or without."""
    assert [invoice_number(text) for text in ("HW-000012", "12", "HW-12")] == [12, 12, 12]
    for text in ("", "0", "HW-", "-1", "1" * 40, "12 "):
        assert code(lambda one=text: invoice_number(one)) == "invoice_invalid"


def test_admins_invoice_over_http_and_others_do_not(toy: ToyHome):
    """Create, look, export and pay; an ordinary key is refused."""
    secret, admin = toy.key("operator")
    toy.keys.limit(admin.key_id, NO_LIMITS.changed(routes=("admin",)), None)
    plain, key = toy.key("payer", units=0)
    app = create_app(toy.flow, toy.keys, more=[invoice_routes(invoicing(toy, time.time_ns()))])
    with serving(app) as url:

        def http(path: str, body: Any = None, who: str = secret) -> tuple[int, str]:
            data = None if body is None else json.dumps(body).encode()
            asked = urllib.request.Request(url + "/v1/admin/invoices" + path, data, {"Authorization": f"Bearer {who}"})
            try:
                with urllib.request.urlopen(asked, timeout=20) as response:
                    return response.status, response.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        assert http("", {"key_id": key.key_id, "amount": "2"}, plain)[0] == 403
        assert http("", {"key_id": key.key_id, "amount": "2"})[0] == 201
        assert json.loads(http("/HW-000001")[1])["status"] == "open"
        assert json.loads(http("/1/paid", {"reference": "t1"})[1])["status"] == "paid"
        assert http("/1?form=csv")[1].count("\n") == 2
        assert http("/1?form=pdf")[0] == 400
        assert http("", {"key_id": key.key_id, "amount": 2})[0] == 400
        assert len(json.loads(http("")[1])["data"]) == 1
    assert toy.ledger.available(key.account, toy.currency) == 2 * NANO
