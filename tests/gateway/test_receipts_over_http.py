"""Receipts, account, health and metrics over HTTP: who may read what, and whether it can be checked."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from headwater.core.canonical import canonical
from headwater.core.money import NANO, parse_units
from headwater.gateway import create_app, serving
from headwater.receipts import InclusionProof, Receipt, leaf_hash, recover, verify_inclusion
from headwater.store.database import Database
from toy.desk import Desk, open_desk
from toy.home import open_home


def grounded(desk: Desk, **extra: Any) -> Any:
    """An answer from sources."""
    question = [{"role": "user", "content": "a river begins where"}]
    wanted = {"model": "toy-grounded", "messages": question, "max_tokens": 30, **extra}
    return desk.client().chat.completions.create(**wanted)


def problem(desk: Desk, path: str, secret: str | None = None) -> tuple[int, str, dict[str, Any]]:
    """Status, content type and body of a refusal."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        desk.get(path, secret)
    return caught.value.code, caught.value.headers["content-type"], json.loads(caught.value.read())


def test_a_final_receipt_can_be_checked_by_a_stranger(shared: Desk) -> None:
    """Its canonical bytes hash to its id, the signature is the operator's, and the proof leads to the log's root."""
    call = grounded(shared).headwater["receipt"]
    shared.settled()
    found = shared.get(f"/v1/receipts/{call}")
    raw = canonical(found["receipt"])
    receipt = Receipt.from_bytes(raw)

    assert found["status"] == "final"
    assert hashlib.sha256(raw).hexdigest() == found["id"]
    assert recover(receipt, raw, found["signature"]) == receipt.operator == shared.toy.flow.parts.signer.address
    log = found["log"]
    path = tuple(bytes.fromhex(node) for node in log["path"])
    proof = InclusionProof(log["index"], log["size"], path, bytes.fromhex(log["root"]))
    assert verify_inclusion(leaf_hash(raw), proof)
    assert sum(payout.amount for payout in receipt.payouts) == parse_units(found["price"]) == receipt.price


def test_a_receipt_is_found_by_either_id(shared: Desk) -> None:
    """The call's id, known at once, and the receipt's own, known when it is final."""
    call = grounded(shared).headwater["receipt"]
    shared.settled()
    found = shared.get(f"/v1/receipts/{call}")

    assert shared.get(f"/v1/receipts/{found['id']}")["receipt"] == found["receipt"]


def test_nobody_else_may_read_a_receipt(shared: Desk) -> None:
    """Another key's receipt looks exactly like one that does not exist; no key, no answer."""
    call = grounded(shared).headwater["receipt"]
    shared.settled()
    id = shared.get(f"/v1/receipts/{call}")["id"]
    other, _ = shared.toy.key("another")

    for wanted in (call, id, "call_" + "0" * 32, "f" * 64, "x"):
        status, media, found = problem(shared, f"/v1/receipts/{wanted}", other)
        assert (status, media, found["code"]) == (404, "application/problem+json", "receipt_unknown")
        assert set(found) == {"type", "title", "status", "detail", "code"}
    status, media, found = problem(shared, f"/v1/receipts/{call}", "hw_test_" + "A" * 43)
    assert (status, found["code"]) == (401, "invalid_api_key")


def test_a_receipt_is_pending_until_it_is_final(desk: Desk) -> None:
    """While the scorer is down the call is pending and visibly retried; when it is back the receipt comes."""
    desk.toy.model.scoring_fails = 1
    call = grounded(desk).headwater["receipt"]
    until = time.monotonic() + 10
    while not desk.app.worker.state().retrying:
        assert time.monotonic() < until
        time.sleep(0.005)

    assert desk.get(f"/v1/receipts/{call}")["status"] == "pending"
    ready = desk.get("/readyz")
    assert (ready["status"], ready["attribution"]["retrying"]) == ("degraded", 1)
    while desk.get(f"/v1/receipts/{call}")["status"] != "final":
        assert time.monotonic() < until
        time.sleep(0.02)
    assert desk.get("/readyz")["status"] == "ready"


def test_a_call_that_failed_is_released_and_says_why(desk: Desk) -> None:
    """Its receipt status is `released`, with the stable code of the failure and no price."""
    with pytest.raises(urllib.error.HTTPError):
        desk.post({"model": "toy", "messages": [{"role": "user", "content": "[fail=0]"}]})
    ((call,),) = desk.toy.db.query("SELECT call_id FROM calls")

    found = desk.get(f"/v1/receipts/{call}")
    assert (found["status"], found["failure"], found["price"]) == ("released", "model_failed", None)


def test_the_account_shows_what_is_left_and_what_is_set_aside(desk: Desk) -> None:
    """While a call is at work its ceiling is reserved; nothing secret is shown."""
    body = {"model": "toy-dear", "messages": [{"role": "user", "content": "[hold] x"}], "stream": True}
    with desk.post(body) as response:
        response.readline()
        account = desk.get("/v1/account")
        desk.toy.model.held.set()
        response.read()

    assert (parse_units(account["balance"]), parse_units(account["reserved"])) == (100 * NANO, NANO)
    assert parse_units(account["available"]) == 99 * NANO
    assert desk.secret not in json.dumps(account)


def test_a_call_left_over_by_a_dead_process_gets_its_receipt_after_a_restart(tmp_path: Path) -> None:
    """Answered but not attributed when the process ended: the next start takes it up, once."""
    with open_desk(tmp_path) as desk:
        desk.toy.model.scoring_fails = 10**6
        call = grounded(desk).headwater["receipt"]
        secret, key = desk.secret, desk.key
        assert desk.get(f"/v1/receipts/{call}")["status"] == "pending"
        desk.app.worker.drain(0.5)
    with open_home(tmp_path) as toy, serving(create_app(toy.flow, toy.keys)) as url:
        again = Desk(toy, None, url, secret, key)  # type: ignore[arg-type]
        until = time.monotonic() + 10
        while again.get(f"/v1/receipts/{call}")["status"] != "final":
            assert time.monotonic() < until
            time.sleep(0.02)
        assert len(toy.log) == 1


def test_health_says_what_works(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """healthz answers while the process lives; readyz is 503 with the reason when a paid call would fail."""
    assert desk.get("/healthz")["status"] == "ok"
    ready = desk.get("/readyz")
    assert (ready["status"], set(ready["checks"].values())) == ("ready", {"ok"})
    assert ready["models"] == ["toy", "toy-dear", "toy-grounded"]
    desk.app.worker.drain(1)
    with pytest.raises(urllib.error.HTTPError) as caught:
        desk.get("/readyz")
    assert caught.value.code == 503
    assert json.loads(caught.value.read())["checks"]["attribution"] == "the worker is not running"


def test_readyz_sees_a_database_that_cannot_be_written(desk: Desk) -> None:
    """Another process holds the write lock for longer than we wait: not ready, with the code."""
    sqlite = isinstance(desk.toy.db, Database)
    desk.toy.db.execute("PRAGMA busy_timeout = 50" if sqlite else "SET lock_timeout TO 50")
    with Database(desk.toy.path / "headwater.db") as other, other.transaction():
        with pytest.raises(urllib.error.HTTPError) as caught:
            desk.get("/readyz")
        assert caught.value.code == 503
        assert json.loads(caught.value.read())["checks"]["database"] == "database_locked"


def test_metrics_are_in_prometheus_text_and_bounded(desk: Desk) -> None:
    """Every sample has a type; paths that callers make up do not become labels."""
    grounded(desk)
    desk.settled()
    for path in ("/made/up/1", "/made/up/2", "/v1/made-up", "/v1/receipts/x"):
        with pytest.raises(urllib.error.HTTPError):
            desk.get(path)
    with urllib.request.urlopen(desk.url + "/metrics") as response:
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = response.read().decode().splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    assert samples['headwater_requests_total{route="/v1/chat/completions",status="200"}'] == "1"
    assert samples['headwater_requests_total{route="other",status="404"}'] == "3"
    assert samples['headwater_calls_total{outcome="answered"}'] == "1"
    assert samples["headwater_receipts_issued_total"] == "1"
    assert "made" not in "".join(lines)
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {name.split("{")[0] for name in samples} <= typed


def test_the_description_of_the_native_routes_is_served(shared: Desk) -> None:
    """OpenAPI names the routes that take a key."""
    paths = shared.get("/openapi.json")["paths"]
    assert {"/v1/receipts/{id}", "/v1/account", "/healthz", "/readyz", "/metrics"} <= set(paths)


def test_the_bundle_route_exists_when_somebody_can_make_one(tmp_path: Path) -> None:
    """Only the payer gets the file, under the receipt's name; without a maker the route is unknown."""
    with open_home(tmp_path) as toy:
        secret, key = toy.key()
        app = create_app(toy.flow, toy.keys, bundle=lambda receipt: f'{{"of":"{receipt}"}}'.encode())
        with serving(app) as url:
            desk = Desk(toy, app, url, secret, key)
            call = grounded(desk).headwater["receipt"]
            desk.settled()
            id = desk.get(f"/v1/receipts/{call}")["id"]
            assert desk.get(f"/v1/receipts/{call}/bundle") == {"of": id}
            other, _ = toy.key("other")
            assert problem(desk, f"/v1/receipts/{call}/bundle", other)[2]["code"] == "receipt_unknown"
