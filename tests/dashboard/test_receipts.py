"""Receipts on a page: for whom they are, what adds up, and what a browser is given to check them with."""

from __future__ import annotations

import base64
import hashlib

import pytest
from pages_site import PagesSite, Visitor

from headwater.core.money import parse_units
from headwater.dashboard.passwords import set_password
from headwater.receipts import InclusionProof, Receipt, recover
from headwater.receipts.log import leaf_hash, verify_inclusion

QUESTION = "what does a river do in the sea?"
PASSWORD = "a password of some length"


@pytest.fixture(scope="module")
def asked(shared: PagesSite) -> tuple[Visitor, str]:
    """A caller, and the receipt of a call of theirs."""
    who = shared.caller()
    return who, str(shared.toy.calls.get(shared.ask(who, QUESTION)).receipt_id)


def test_every_unit_of_the_price_is_on_a_line(shared, asked):
    """Lines and payouts each sum to the price, and each line has a rule in words."""
    who, id = asked
    data = who.get(f"/receipts/{id}.json").json

    assert sum(line["units"] for line in data["lines"]) == data["price_units"]
    assert sum(payout["units"] for payout in data["payouts"]) == data["price_units"]
    assert all(line["rule"] for line in data["lines"])
    assert sum(share["weight_ppb"] for share in data["shares"]) + data["residual_ppb"] == 10**9


def test_the_drawing_and_its_table_hold_the_whole_price(shared, asked):
    """What leaves the payer in the drawing's table is the price, to the unit, and the drawing is labelled."""
    who, id = asked
    page = who.get(f"/receipts/{id}")
    price = who.get(f"/receipts/{id}.json").json["price_units"]
    table = page.text.split("figures-table")[1].split("</table>")[0]
    rows = [row.split("<td") for row in table.split("<tr>")[2:]]
    left = sum(
        parse_units(row[3].split(">")[1].split(" ")[0].replace(",", "")) for row in rows if ">payer<" in "<" + row[1]
    )

    assert left == price
    assert any(tag == "svg" and a.get("role") in ("img", "group") and a.get("aria-label") for tag, a in page.elements)


def test_the_proof_is_enough_to_check_the_receipt(shared, asked):
    """Bytes, signature and path that the page hands to the browser satisfy the checks of the verifier."""
    who, id = asked
    proof = who.get(f"/receipts/{id}/proof").json
    raw = base64.b64decode(proof["receipt"])
    log = proof["log"]
    path = tuple(bytes.fromhex(node) for node in log["path"])

    assert hashlib.sha256(raw).hexdigest() == id == proof["id"]
    assert recover(Receipt.from_bytes(raw), raw, proof["signature"]) == proof["operator"]
    inclusion = InclusionProof(log["index"], log["size"], path, bytes.fromhex(log["root"]))
    assert verify_inclusion(leaf_hash(raw), inclusion)
    assert who.get(f"/receipts/{id}/file").body == raw


def test_a_receipt_is_for_its_payer_its_people_and_the_operator(shared, asked):
    """Anybody else sees what somebody sees who made up an id."""
    who, id = asked
    other = shared.caller(shared.toy.key("another")[0])
    set_password(shared.site.folder, PASSWORD)
    operator = shared.visitor()
    operator.get("/sign-in")
    operator.post("/sign-in/operator", {"password": PASSWORD})

    for path in (f"/receipts/{id}", f"/receipts/{id}/proof", f"/receipts/{id}/file"):
        assert who.get(path).status == operator.get(path).status == 200
        refused, unknown = other.get(path), other.get(path.replace(id, "0" * 64))
        assert refused.status == unknown.status == shared.visitor().get(path).status == 404
        problem = [other.get(p, accept="application/json").json for p in (path, path.replace(id, "0" * 64))]
        assert problem[0]["detail"].replace(id, "") == problem[1]["detail"].replace("0" * 64, "")


def test_the_list_says_whose_a_receipt_is_to_nobody_else(shared, asked):
    """In the log's list others see a place and an id; model, price and time are for who may see the receipt."""
    who, id = asked
    mine = next(row for row in who.get("/receipts.json").json["receipts"] if row["id"] == id)
    theirs = next(row for row in shared.visitor().get("/receipts.json").json["receipts"] if row["id"] == id)

    assert mine["yours"]["price_units"] > 0
    assert theirs == {"log_index": mine["log_index"], "id": id, "yours": None}
