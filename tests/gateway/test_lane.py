"""The fast lane beside the ASGI way: the same answers, and nothing odd gets through or stays behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from headwater.gateway.http import HttpProtocol
from toy.desk import Desk, open_desk
from toy.raw import answer, at_rest, body, connect, raw, until
from toy.upstream import Upstream, models_file, upstream

MODELS = ("fine", "endless", "status-429", "silent")


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    """The upstream."""
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def desk(server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway before it, with little patience."""
    config = models_file(server.url, MODELS)
    with open_desk(tmp_path_factory.mktemp("home"), upstreams=config, body_timeout_s=0.4, stall_s=0.4) as running:
        yield running


@pytest.fixture
def lane(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of requests that took the lane from here on; its key is known."""
    desk.post(body("fine")).read()
    assert desk.app.lane is not None
    taken: list[str] = []
    real = desk.app.lane.answer

    def answer(caller, hand_over):
        taken.append(caller.path)
        return real(caller, hand_over)

    monkeypatch.setattr(desk.app.lane, "answer", answer)
    return taken


def test_both_ways_answer_alike(desk: Desk, lane: list[str]) -> None:
    """Status, headers and body have the same form, whichever way a request took."""
    with connect(desk) as sock, sock.makefile("rb") as stream:
        found = []
        for odd in ((), ("Expect: 100-continue",)):
            for model in ("fine", "status-429", "nobody"):
                sock.sendall(raw(desk, body(model), *odd))
                if odd:
                    assert stream.readline().startswith(b"HTTP/1.1 100")
                    stream.readline()
                status, headers, content = answer(stream)
                found.append((status, sorted(headers), sorted(json.loads(content))))
    assert found[:3] == found[3:]
    assert [status for status, _, _ in found[:3]] == [200, 429, 404]
    assert len(lane) == 3


def test_a_body_may_come_in_pieces(desk: Desk, lane: list[str]) -> None:
    """Head and body apart, and the body byte for byte at its ends."""
    whole = raw(desk, body("fine"))
    with connect(desk) as sock, sock.makefile("rb") as stream:
        for piece in (whole[:40], whole[40:-30], whole[-30:-1], whole[-1:]):
            sock.sendall(piece)
            time.sleep(0.02)
        assert answer(stream)[0] == 200
    assert len(lane) == 1


def test_a_body_that_does_not_come_is_not_waited_for(desk: Desk, lane: list[str]) -> None:
    """408, and the connection ends with it."""
    with connect(desk) as sock, sock.makefile("rb") as stream:
        sock.sendall(raw(desk, body("fine"))[:-5])
        status, headers, content = answer(stream)
        assert (status, json.loads(content)["error"]["code"]) == (408, "request_timeout")
        assert headers["connection"] == "close"
        assert stream.read() == b""
    assert lane == []
    until(lambda: at_rest(desk))


def test_requests_may_come_one_behind_the_other(desk: Desk, lane: list[str]) -> None:
    """Three in one write get three answers, in their order, though only the first is taken by the lane."""
    with connect(desk) as sock, sock.makefile("rb") as stream:
        sock.sendall(raw(desk, body("fine")) + raw(desk, body("status-429")) + raw(desk, body("fine")))
        assert [answer(stream)[0] for _ in range(3)] == [200, 429, 200]
        sock.sendall(raw(desk, body("fine")))
        assert answer(stream)[0] == 200
    assert len(lane) == 2


def test_a_model_in_process_is_handed_over(desk: Desk, lane: list[str]) -> None:
    """What is not relayed is answered by whoever answers it, also on a connection that is used on."""
    with connect(desk) as sock, sock.makefile("rb") as stream:
        for model in ("toy", "fine", "toy"):
            sock.sendall(raw(desk, body(model, max_tokens=4)))
            status, _, content = answer(stream)
            assert (status, json.loads(content)["model"]) == (200, model)
        sock.sendall(raw(desk, b'{"model": '))
        status, _, content = answer(stream)
        assert (status, json.loads(content)["error"]["code"]) == (400, "invalid_json")
    assert len(lane) == 4


def test_a_caller_who_leaves_early_leaves_nothing_behind(desk: Desk, lane: list[str]) -> None:
    """In the body, and while the upstream thinks: nothing stays held, nothing is charged for no answer."""
    with connect(desk) as sock:
        sock.sendall(raw(desk, body("fine"))[:-5])
        time.sleep(0.02)
    with connect(desk) as sock:
        sock.sendall(raw(desk, body("endless", stream=True)))
        sock.recv(100)
    until(lambda: at_rest(desk) and len(lane) == 1)


def test_a_stream_that_nobody_reads_is_cut(desk: Desk, lane: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream is let go and the call comes to its end, with what was passed on charged."""
    made: list[HttpProtocol] = []
    real = HttpProtocol.connection_made
    monkeypatch.setattr(HttpProtocol, "connection_made", lambda self, of: (made.append(self), real(self, of))[1])
    before = len(desk.toy.log)
    with connect(desk) as sock:
        sock.sendall(raw(desk, body("endless", stream=True)))
        sock.recv(2_000)
        assert desk.app.loop is not None
        # The transport says so when its buffers are full; filling them at the upstream's pace would take long.
        desk.app.loop.call_soon_threadsafe(made[0].pause_writing)
        until(lambda: at_rest(desk))
    assert len(lane) == 1
    assert len(desk.toy.log) == before + 1


def test_a_key_that_is_in_use_all_the_time_is_still_looked_up(desk: Desk, lane: list[str]) -> None:
    """Revoked, it is refused a second later at the latest."""
    secret, key = desk.toy.key()
    desk.post(body("fine"), {"Authorization": f"Bearer {secret}"}).read()
    with connect(desk) as sock, sock.makefile("rb") as stream:
        sock.sendall(raw(desk, body("fine"), secret=secret))
        assert answer(stream)[0] == 200
        desk.toy.keys.revoke(key.key_id, time.time_ns())
        end = time.monotonic() + 1.5
        status = 200
        while status == 200:
            assert time.monotonic() < end
            sock.sendall(raw(desk, body("fine"), secret=secret))
            status = answer(stream)[0]
            time.sleep(0.05)
    assert status == 401
    assert lane
