"""Disputes, enrolment and consent over HTTP: a key stakes its own credit and speaks for nobody but its own."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from headwater.cli.disputing import record_json
from headwater.corrections import Books
from headwater.disputes import Court, Disputes
from headwater.gateway.disputes import Matters, matters_routes
from headwater.receipts.signing import recover_address
from headwater.registry import unenrolled
from headwater.registry.dispute import Rules
from headwater.registry.enrolment import Seams
from headwater.store.consent_store import ConsentStore
from headwater.store.enrolment_store import Enrolments
from headwater.store.epoch_store import EpochStore
from toy.desk import Desk, open_desk

VICTIM = unenrolled("toy", "The Victim")


@dataclass
class Counter:
    """A gateway with the routes, and what they work on."""

    desk: Desk
    matters: Matters

    def ask(self, method: str, path: str, body: object = None, secret: str | None = None) -> Any:
        """A request with the desk's key unless told otherwise."""
        raw = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {secret or self.desk.secret}", "Content-Type": "application/json"}
        with urlopen(Request(self.desk.url + path, raw, headers, method=method), timeout=20) as response:
            return json.load(response)

    def refused(self, method: str, path: str, body: object = None, secret: str | None = None) -> tuple[int, str]:
        """(status, code) of a request that fails."""
        with pytest.raises(urllib.error.HTTPError) as error:
            self.ask(method, path, body, secret)
        return error.value.code, json.load(error.value)["code"]

    def document(self, title: str = "Rivers") -> str:
        """A document of the toy home."""
        return next(c.id for c in self.desk.toy.registry.contributions() if c.title == title)


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    """A counter over a toy home."""
    made: list[Matters] = []

    def late(app: Any, service: Any) -> None:
        parts = service.flow.parts
        books = Books(
            parts.registry, parts.ledger, parts.log, EpochStore(parts.calls.db), parts.policy.currency, 0, {},
            lambda _: "", time.time_ns,
        )  # fmt: skip
        court = Court(
            books, parts.calls.db, parts.signer, Rules(), dict, lambda c: parts.calls.get(c).payer, lambda: "x"
        )
        consents, disputes = ConsentStore(parts.calls.db), Disputes(court)
        seams = Seams(recover_address, lambda _: (), lambda *_: b"")
        office = Enrolments(parts.calls.db, parts.registry, parts.ledger, parts.policy.currency, seams)
        made.append(
            Matters(
                disputes,
                office,
                consents,
                lambda case: {"dispute": case.id, "phase": case.phase, "bond_units": str(case.bond_units)},
                record_json,
                lambda one: {"contribution": one},
                lambda one, *_: {"erased": one},
                time.time_ns,
            )
        )
        matters_routes(made[0])(app, service)

    with open_desk(tmp_path / "home", more=[late]) as desk:
        desk.toy.registry.add_contributor(VICTIM)
        yield Counter(desk, made[0])


def claim(here: Counter, **changes: object) -> dict[str, object]:
    """The victim's claim to "Rivers"."""
    owners = [{"contributor": VICTIM.id, "share_ppb": 10**9}]
    return {"kind": "registration", "contribution": here.document(), "by": VICTIM.id, "statement": "mine",
            "owners": owners} | changes  # fmt: skip


def test_a_key_opens_a_dispute_for_whom_it_speaks_and_stakes_its_own_credit(counter: Counter) -> None:
    """Refused until the operator let it speak; then the bond is gone from its credit and all can read the case."""
    assert counter.refused("POST", "/v1/disputes", claim(counter)) == (403, "not_its_spokesman")
    counter.matters.enrolments.let_speak(VICTIM.id, counter.desk.key.account, "operator", 1)
    before = counter.desk.toy.ledger.available(counter.desk.key.account, "USD")
    opened = counter.ask("POST", "/v1/disputes", claim(counter))

    assert opened["phase"] == "evidence"
    assert before - counter.desk.toy.ledger.available(counter.desk.key.account, "USD") == int(opened["bond_units"])
    other, _ = counter.desk.toy.key("a stranger")
    assert counter.ask("GET", f"/v1/disputes/{opened['dispute']}", secret=other)["dispute"] == opened["dispute"]
    assert counter.ask("GET", "/v1/disputes")["data"][0]["dispute"] == opened["dispute"]
    path = f"/v1/disputes/{opened['dispute']}"
    assert counter.refused("POST", path + "/answer", {"text": "no"}, other) == (403, "not_its_spokesman")
    assert counter.refused("POST", path + "/appeal", {"text": "no"}, other) == (403, "not_a_side")
    assert counter.ask("POST", path + "/evidence", {"text": "see the archive"}, other)["phase"] == "evidence"
    assert counter.refused("POST", "/v1/disputes", claim(counter)) == (409, "dispute_open")


@pytest.mark.parametrize(
    "body", [{}, {"kind": "murder"}, {"extra": 1}, [], {"owners": [{"contributor": "x"}]}, {"statement": 5}]
)
def test_bodies_that_are_not_right_are_refused_with_the_fields(counter: Counter, body: Any) -> None:
    """400 and a stable code, whatever is sent."""
    wrong = claim(counter, **body) if isinstance(body, dict) and body else body
    assert counter.refused("POST", "/v1/disputes", wrong) == (400, "request_invalid")


def test_a_claim_to_a_name_is_public_and_can_be_objected_to(counter: Counter) -> None:
    """Opened by anybody, with its statement; an unfit proof is refused; an objection is kept with the key."""
    other, key = counter.desk.toy.key("somebody")
    opened = counter.ask("POST", "/v1/enrolments", {"contributor": VICTIM.id, "address": "0x" + "11" * 20})
    path = f"/v1/enrolments/{opened['enrolment']}"
    assert opened["statement"].startswith("headwater enrolment 1 enr_")
    assert counter.refused("POST", path + "/proofs", {"method": "ssh", "text": "x"}) == (400, "signature_invalid")
    contested = counter.ask("POST", path + "/objections", {"text": "that is not her"}, other)
    assert contested["state"] == "contested"
    assert contested["objections"] == [{"by": key.account, "why": "that is not her"}]
    assert counter.ask("GET", "/v1/enrolments")["data"] == [contested]


def test_a_notice_takes_down_and_only_the_owners_key_counters_or_erases(counter: Counter) -> None:
    """Filed twice it is one notice; strangers neither counter nor erase."""
    rivers = counter.document()
    owner = counter.desk.toy.registry.get(rivers).owners[0].contributor_id  # type: ignore[arg-type]
    notice = counter.ask("POST", f"/v1/contributions/{rivers}/takedowns", {"claimant": "C", "reason": "mine"})
    again = counter.ask("POST", f"/v1/contributions/{rivers}/takedowns", {"claimant": "C", "reason": "mine"})
    assert (notice, notice["state"]) == (again, "suspended")
    path = f"/v1/contributions/{rivers}/takedowns/{notice['notice']}/counter"
    assert counter.refused("POST", path, {"text": "no"}) == (403, "not_its_spokesman")
    assert counter.refused("POST", f"/v1/contributions/{rivers}/erase", {"text": "x"}) == (403, "not_its_spokesman")
    counter.matters.enrolments.let_speak(owner, counter.desk.key.account, "operator", 1)
    assert counter.ask("POST", path, {"text": "it is mine"})["state"] == "countered"
    assert counter.ask("POST", f"/v1/contributions/{rivers}/erase", {"text": "x"}) == {"erased": rivers}
    assert counter.refused("GET", "/v1/contributions/ctb_none/consent") == (404, "contribution_missing")
