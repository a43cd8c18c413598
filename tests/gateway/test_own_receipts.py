"""The list of a key's own calls over HTTP: whose they are, in which order, a page at a time."""

from __future__ import annotations

import json
import os
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from headwater.cli import main
from headwater.cli.home import Home
from headwater.core.ids import call_id, is_call_id
from headwater.core.limits import CALLS_PAGE_MAX
from headwater.gateway.own_calls import PAGE
from headwater.settings import Settings
from headwater.store.call_store import CallStore
from headwater.store.key_store import KeyRecord
from toy.desk import Desk, open_desk
from toy.gang import ASK, asked, call, models, open_gang, wait_for
from toy.upstream import USAGE, Upstream, upstream


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    """An upstream."""
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def both(server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway with models in process and a model that an upstream answers."""
    with open_desk(tmp_path_factory.mktemp("home"), upstreams=models(server)) as running:
        yield running


def begun(desk: Desk, key: KeyRecord, count: int) -> list[str]:
    """Calls of a key that are in the journal and released, oldest first."""
    return [_released(desk.toy.calls, key, desk.toy.currency) for _ in range(count)]


def _released(calls: CallStore, key: KeyRecord, currency: str) -> str:
    one, now_ns = call_id(os.urandom(16)), time.time_ns()
    calls.begin(
        call_id=one,
        key_id=key.key_id,
        idempotency_key=None,
        request_digest="sha256:" + "0" * 64,
        model="toy",
        ceiling_units=0,
        asset=currency,
        at_ns=now_ns,
    )
    calls.release(one, failure="model_failed", at_ns=now_ns)
    return str(one)


def refused(desk: Desk, path: str, secret: str) -> dict[str, Any]:
    """The body of a refusal with status 400."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        desk.get(path, secret)
    assert caught.value.code == 400
    told: dict[str, Any] = json.loads(caught.value.read())
    return told


def test_a_call_whose_header_was_lost_is_found(both: Desk) -> None:
    """Answered in process or by an upstream: the newest first, with what its own route says and what it used."""
    secret, _ = both.toy.key("forgetful")
    client = both.client(secret)
    answers = [client.chat.completions.create(model=model, messages=ASK, max_tokens=8) for model in ("toy", "fine")]  # type: ignore[arg-type]
    both.settled()
    both.booked()
    page = both.get("/v1/receipts", secret)

    assert [one["call"] for one in page["data"]] == [answer.headwater["receipt"] for answer in reversed(answers)]  # type: ignore[attr-defined]
    assert page["next"] is None
    for one, answer in zip(page["data"], reversed(answers), strict=True):
        whole = both.get(f"/v1/receipts/{one['call']}", secret)
        assert one["usage"] == whole["receipt"]["usage"]
        assert answer.usage is not None
        assert one["usage"]["completion_tokens"] == answer.usage.completion_tokens > 0
        assert {name: value for name, value in one.items() if name != "usage"} == {
            name: value for name, value in whole.items() if name not in ("receipt", "signature", "log")
        }
        assert (one["status"], is_call_id(one["call"]), len(one["id"])) == ("final", True, 64)
    assert page["data"][0]["usage"]["prompt_tokens"] == USAGE["prompt_tokens"]


def test_a_key_sees_its_own_calls_alone(both: Desk) -> None:
    """Two keys take turns; neither list has a call of the other's, and no other's call is a place to read on from."""
    (one, first), (two, second) = both.toy.key("one"), both.toy.key("two")
    mine: list[str] = []
    theirs: list[str] = []
    for _ in range(4):
        mine += begun(both, first, 1)
        theirs += begun(both, second, 2)

    assert [each["call"] for each in both.get("/v1/receipts", one)["data"]] == mine[::-1]
    assert [each["call"] for each in both.get("/v1/receipts", two)["data"]] == theirs[::-1]
    not_mine = refused(both, f"/v1/receipts?before={theirs[2]}", one)
    nobodys = refused(both, f"/v1/receipts?before={'call_' + '0' * 32}", one)
    assert not_mine["detail"].replace(theirs[2], "") == nobodys["detail"].replace("call_" + "0" * 32, "")
    assert not_mine["code"] == nobodys["code"] == "page_invalid"
    with pytest.raises(urllib.error.HTTPError) as caught:
        both.get("/v1/receipts", "hw_test_" + "A" * 43)
    assert caught.value.code == 401


@pytest.mark.parametrize("limit", [None, 1, 7, CALLS_PAGE_MAX])
def test_whoever_reads_on_while_calls_come_sees_each_once(both: Desk, limit: int | None) -> None:
    """250 calls are read page by page while this key and another call between pages: no repeat, no gap, none new."""
    (secret, key), (_, other) = both.toy.key(f"busy {limit}"), both.toy.key("noise")
    there = begun(both, key, 250 if limit != 1 else 20)
    size = f"limit={limit}" if limit else ""
    seen: list[str] = []
    page = both.get(f"/v1/receipts?{size}", secret)
    while True:
        seen += [each["call"] for each in page["data"]]
        assert len(page["data"]) == min(limit or PAGE, len(there) - (len(seen) - len(page["data"])))
        if page["next"] is None:
            break
        assert page["next"] == seen[-1]
        begun(both, other, 1)
        begun(both, key, 2)
        page = both.get(f"/v1/receipts?{size}&before={page['next']}", secret)

    assert seen == there[::-1]


def test_a_key_that_never_called_has_an_empty_list(both: Desk) -> None:
    """No data, and nothing further."""
    secret, _ = both.toy.key("quiet")

    assert both.get("/v1/receipts", secret) == {"data": [], "next": None}


def test_what_is_at_work_and_what_failed_is_listed_without_a_receipt(desk: Desk) -> None:
    """A call that failed says why; one that is still being answered is pending, without price or tokens."""
    with pytest.raises(urllib.error.HTTPError):
        desk.post({"model": "toy", "messages": [{"role": "user", "content": "[fail=0]"}]})
    body = {"model": "toy-dear", "messages": [{"role": "user", "content": "[hold] x"}], "stream": True}
    with desk.post(body) as response:
        response.readline()
        newest, failed = desk.get("/v1/receipts")["data"]
        desk.toy.model.held.set()
        response.read()

    assert (failed["status"], failed["failure"], failed["id"], failed["usage"]) == (
        *("released", "model_failed"),
        *(None, None),
    )
    assert (newest["status"], newest["model"], newest["price"], newest["usage"]) == ("pending", "toy-dear", None, None)
    assert "failure" not in newest


@pytest.mark.parametrize(
    "limit", ["0", "-1", str(CALLS_PAGE_MAX + 1), "many", "1.5", "", "٣", "1e2", " 5", "9" * 5_000, "0x10"]
)
def test_a_wrong_limit_is_told_with_what_may_be_asked(both: Desk, limit: str) -> None:
    """400 with the code, the value as it came, cut when it is long, and the range."""
    told = refused(both, f"/v1/receipts?limit={quote(limit)}", both.secret)

    assert told["code"] == "page_invalid"
    assert repr(limit[:80]) in told["detail"]
    assert f"use 1 to {CALLS_PAGE_MAX}" in told["detail"]
    assert len(told["detail"]) < 200


@pytest.mark.parametrize("before", ["", "0", "call_", "call_xyz", "f" * 64, "call_" + "A" * 32, "x" * 5_000, "'; --"])
def test_a_wrong_place_to_read_on_from_is_told(both: Desk, before: str) -> None:
    """400 with the code, the value as it came, cut when it is long, and where to take it from."""
    told = refused(both, f"/v1/receipts?before={quote(before)}", both.secret)

    assert told["code"] == "page_invalid"
    assert repr(before[:80]) in told["detail"]
    assert "`next` of a page" in told["detail"]
    assert len(told["detail"]) < 250


def test_the_description_says_how_to_page(both: Desk) -> None:
    """The route with both parameters, neither needed, and the range of the first."""
    found = both.get("/openapi.json")["paths"]["/v1/receipts"]["get"]["parameters"]

    assert {one["name"]: one["required"] for one in found} == {"limit": False, "before": False}
    (limit,) = (one["schema"] for one in found if one["name"] == "limit")
    (shape,) = (one for one in limit["anyOf"] if one["type"] == "integer")
    assert (shape["minimum"], shape["maximum"], shape["default"]) == (1, CALLS_PAGE_MAX, PAGE)


def test_the_operator_lists_the_calls_of_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its payer is told them, page by page; a key that is not there, or a place without a key, is refused."""

    def said(*arguments: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as end:
            main(["receipt", "list", *arguments, "--home", str(tmp_path)])
        printed = capsys.readouterr()
        return end.value.code, printed.out or printed.err

    def listed(*arguments: str) -> tuple[Any, dict[str, Any]]:
        status, shown = said(*arguments, "--json")
        return status, json.loads(shown)

    with Home(Settings(home=tmp_path), create=True) as home:
        _, key = home.keys.create("one", os.urandom(32), time.time_ns())
        _, other = home.keys.create("two", os.urandom(32), time.time_ns())
        calls = CallStore(home.db, home.ledger, home.keys, run_id="run_test")
        there = [_released(calls, whose, home.policy.currency) for whose in (key, other, key, key)]
        calls.close()

    status, first = listed("--key", key.key_id, "--limit", "2")
    assert (status, [one["call"] for one in first["data"]], first["next"]) == (0, [there[3], there[2]], there[2])
    _, second = listed("--key", key.key_id, "--before", there[2])
    assert ([one["call"] for one in second["data"]], second["next"]) == ([there[0]], None)
    _, shown = said("--key", key.key_id, "--limit", "1")
    assert f"{there[3]} " in shown
    assert f"older ones: --before {there[3]}" in shown
    for arguments, code in (
        (("--key", "key_nobody"), "key_unknown"),
        (("--key", key.key_id, "--limit", "0"), "page_invalid"),
        (("--key", key.key_id, "--before", there[1]), "page_invalid"),
        (("--before", there[0]), "page_invalid"),
    ):
        status, told = listed(*arguments)
        assert (status, told["error"]["code"]) == (1, code)


@pytest.mark.slow
def test_calls_of_every_worker_are_in_one_list(server: Upstream, tmp_path: Path) -> None:
    """Each of two workers answers calls of one key; either line lists them all within moments, newest booked first."""
    with open_gang(tmp_path, models(server)) as gang:
        wanted = []
        for name in ("w1", "w2", "w1"):
            line = gang.line_to(name)
            status, _, raw = asked(line, "POST", "/v1/chat/completions", call("fine"), gang.secret)
            line.close()
            assert status == 200
            wanted.append(json.loads(raw)["headwater"]["receipt"])

        def listed() -> Any:
            found = gang.json("/v1/receipts")["data"]
            return set(wanted) <= {one["call"] for one in found} and found

        found = wait_for(listed)  # among them are those that found the way to a worker
        assert {one["status"] for one in found} == {"final"}
        assert len({one["call"] for one in found}) == len(found) < PAGE
        second = gang.json(f"/v1/receipts?limit=1&before={found[0]['call']}")
        assert second == {"data": found[1:2], "next": found[1]["call"]}
