"""Requests of clients that are neither wrong nor usual: they are answered, and told in plain words what is missing."""

from __future__ import annotations

import json
import socket
import urllib.error
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from headwater.core.errors import UpstreamError
from headwater.gateway.errors import Failure
from headwater.metered import MeteredReceipts
from toy.desk import Desk, open_desk
from toy.upstream import upstream


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway before an upstream with one model."""
    with upstream() as server:
        model = '[model.fine]\ntargets = [{ upstream = "real", model = "fine" }]\nrequest_price = "0.001"\n'
        config = f'[upstream.real]\nbase_url = "{server.url}"\n{model}'
        with open_desk(tmp_path_factory.mktemp("home"), upstreams=config) as running:
            yield running


def request(desk: Desk, model: str, *fields: str) -> bytes:
    """A call as its bytes."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {desk.secret}", *fields]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body


def read_answer(stream) -> tuple[int, bytes]:
    """Read one response with a length: status and body."""
    status, length = int(stream.readline().split()[1]), 0
    while line := stream.readline().strip():
        name, _, value = line.decode().partition(": ")
        length = int(value) if name.lower() == "content-length" else length
    return status, stream.read(length)


@pytest.mark.parametrize("model", ["fine", "toy"])
@pytest.mark.parametrize("pieces", [1, 7], ids=["at once", "in pieces"])
def test_a_wish_for_http_2_is_left_unheeded_and_the_call_answered(desk: Desk, model: str, pieces: int) -> None:
    """Java's own client asks so with its first request; neither its body nor the next request is lost."""
    wish = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")
    raw = request(desk, model, *wish)
    with socket.create_connection(("127.0.0.1", desk.port), 10) as connection:
        for start in range(0, len(raw), -(-len(raw) // pieces)):
            connection.sendall(raw[start : start + -(-len(raw) // pieces)])
        with connection.makefile("rb") as stream:
            first = read_answer(stream)
            connection.sendall(request(desk, model))
            second = read_answer(stream)

    assert [status for status, _ in (first, second)] == [200, 200]
    assert all("headwater" in json.loads(body) for _, body in (first, second))


def test_a_wish_for_another_protocol_hides_no_request(desk: Desk) -> None:
    """What follows on the connection is a request of its own, and ``close`` beside the wish is still kept."""
    wish = request(desk, "fine", "Connection: upgrade, close", "Upgrade: websocket")
    with socket.create_connection(("127.0.0.1", desk.port), 10) as connection, connection.makefile("rb") as stream:
        connection.sendall(wish)
        status, _ = read_answer(stream)
        rest = stream.read()
    with socket.create_connection(("127.0.0.1", desk.port), 10) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n" * 2)
        both = read_answer(stream)[0], read_answer(stream)[0]

    assert (status, rest, both) == (200, b"", (200, 200))


def test_a_model_that_is_not_there_is_refused_without_hiding_others(desk: Desk) -> None:
    """The advice does not name the models of one way as if there were no more."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        desk.post({"model": "nix", "messages": [{"role": "user", "content": "x"}]})
    told = json.load(refused.value)["error"]

    assert (refused.value.code, told["code"]) == (404, "model_not_found")
    assert "GET /v1/models" in told["message"]
    assert "choose one of" not in told["message"]


@pytest.mark.parametrize("model", ["toy", "fine"])
def test_a_key_for_an_upstream_is_refused_where_none_takes_it(desk: Desk, model: str) -> None:
    """Rather than answered at a price that its caller did not mean, also by a model that has no upstream."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    with pytest.raises(urllib.error.HTTPError) as refused:
        desk.post(body, {"Upstream-Authorization": "Bearer sk-mine"})
    assert (refused.value.code, json.load(refused.value)["error"]["code"]) == (400, "own_key_not_taken")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("max_tokens", 1.5, "max_tokens is a number with a fraction (fix: send a whole number)"),
        ("n", True, "n is true or false (fix: send a whole number)"),
        ("stream", "yes", "stream is a text (fix: send true or false)"),
        ("stream_options", [], "stream_options is a list (fix: send an object)"),
    ],
)
def test_a_field_of_the_wrong_kind_is_told_in_json_s_words(desk: Desk, field: str, value: object, said: str) -> None:
    """Callers write JSON: they are not told of another language's types."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        desk.post({"model": "fine", "messages": [], field: value})
    told = json.load(refused.value)["error"]

    assert (refused.value.code, told["param"], told["message"]) == (400, field, said)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_whose_receipt_cannot_be_made_holds_no_credit(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """The database may go between the hold and the receipt; what was held is free again then, and nothing charged."""
    assert desk.app.relays is not None
    meter = desk.app.relays.meter
    body = {"model": "fine", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "stream": stream}
    desk.post(body).read()
    meter.settle_books()
    spent = desk.toy.spent(desk.key)

    def gone(*_: object) -> NoReturn:
        raise UpstreamError("no postgres at 10.0.0.5", code="database_unreachable", fix="start the server")

    with monkeypatch.context() as broken:
        broken.setattr(MeteredReceipts, "receipt", gone)
        try:
            told = desk.post(body).read()
        except urllib.error.HTTPError as refused:
            told = refused.read()
    meter.settle_books()

    assert b"database_unreachable" in told
    assert not any(word in told for word in (b"[DONE]", b"postgres", b"10.0.0.5", b"start the server"))
    assert (meter.state().held, meter.state().waiting) == (0, 0)
    assert desk.toy.spent(desk.key) == spent
    assert desk.post(body).status == 200


def test_what_an_outage_left_unsettled_is_settled_by_the_next_call_of_any_kind(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no model runs in process, and no later call fails."""
    body = {"model": "fine", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "headwater": {}}

    def full(*_: object, **__: object) -> None:
        raise UpstreamError("no room", code="disk_full")

    with monkeypatch.context() as broken:
        broken.setattr(desk.toy.calls, "answered", full)
        broken.setattr(desk.toy.calls, "release", full)
        with pytest.raises(urllib.error.HTTPError):
            desk.post(body)
        assert desk.get("/readyz")["unsettled"] == 1
    assert json.loads(desk.post(body).read())["headwater"]["price"] == "0.001000000"
    desk.settled()

    assert desk.get("/readyz")["unsettled"] == 0


def test_a_call_that_may_have_been_reserved_when_the_database_went_is_released(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit may have come through or not: either way nothing stays reserved."""
    calls, body = desk.toy.calls, {"model": "fine", "messages": [{"role": "user", "content": "x"}], "headwater": {}}
    begin = calls.begin

    for committed in (True, False):

        def gone(*, committed: bool = committed, **asked: Any) -> NoReturn:
            if committed:
                begin(**asked)
            raise UpstreamError("lost", code="database_unreachable")

        with monkeypatch.context() as broken:
            broken.setattr(calls, "begin", gone)
            with pytest.raises(urllib.error.HTTPError):
                desk.post(body)
            assert desk.get("/readyz")["unsettled"] == 1
        desk.post(body).read()
        desk.settled()
        assert desk.get("/readyz")["unsettled"] == 0
    assert calls.db.query("SELECT call_id FROM calls WHERE state = 'reserved'") == []


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_a_server_did_wrong_is_not_called_the_caller_s_mistake(status: int) -> None:
    """Clients tell by the type whether their request was wrong."""
    assert Failure(status, "upstream_failed", "x").type == "server_error"
