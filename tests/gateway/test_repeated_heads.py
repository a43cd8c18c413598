"""Heads that come again on a connection go around the parser, and nobody can tell by the answers."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from typing import IO

import pytest

from headwater.gateway.repeated import RepeatedProtocol
from toy.desk import Desk, open_desk
from toy.raw import answer, at_rest, body, connect, raw, until
from toy.upstream import models_file, upstream

SEED = 7


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway before an upstream, with little patience for bodies."""
    with upstream() as server:
        config = models_file(server.url, ("fine", "status-429"))
        with open_desk(tmp_path_factory.mktemp("home"), upstreams=config, body_timeout_s=0.4) as running:
            yield running


@pytest.fixture
def around(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each beginning of a request went around the parser."""
    desk.post(body("fine")).read()  # so that the key is known
    seen: list[bool] = []
    real = RepeatedProtocol._again

    def again(self, known, lane, data):
        seen.append(real(self, known, lane, data))
        return seen[-1]

    monkeypatch.setattr(RepeatedProtocol, "_again", again)
    return seen


def ask(sock: socket.socket, stream: IO[bytes], request: bytes) -> tuple[int, bytes]:
    """One request and the status and body of its answer."""
    sock.sendall(request)
    status, _, content = answer(stream)
    return status, content


def longer(words: int) -> bytes:
    """A body of another length."""
    return body("fine", user="u" * words)


def test_the_same_head_with_other_lengths_goes_around_and_another_head_does_not(desk: Desk, around: list[bool]) -> None:
    with connect(desk) as sock, sock.makefile("rb") as stream:
        requests = [
            raw(desk, body("fine")),
            raw(desk, body("fine")),
            raw(desk, longer(5_000)),
            raw(desk, body("nobody")),
            raw(desk, body("status-429")),
            raw(desk, body("fine"), "X-More: 1"),
            raw(desk, longer(1), "X-More: 1"),
        ]
        statuses = [ask(sock, stream, request)[0] for request in requests]
    assert statuses == [200, 200, 200, 404, 429, 200, 200]
    assert around == [False, True, True, True, True, False, True]


def test_a_call_in_process_after_a_relayed_one_gets_its_own_body(desk: Desk, around: list[bool]) -> None:
    """It is handed to the way that answers it, with the length that it has."""
    with connect(desk) as sock, sock.makefile("rb") as stream:
        assert ask(sock, stream, raw(desk, body("fine")))[0] == 200
        for words in (1, 300):
            status, content = ask(sock, stream, raw(desk, body("toy", max_tokens=4, user="u" * words)))
            assert (status, json.loads(content)["model"]) == (200, "toy")
    assert around == [False, True, True]


def test_a_body_may_come_in_pieces_and_with_the_next_request_behind_it(desk: Desk, around: list[bool]) -> None:
    whole = raw(desk, longer(100))
    with connect(desk) as sock, sock.makefile("rb") as stream:
        assert ask(sock, stream, whole)[0] == 200
        head = whole.index(b"\r\n\r\n") + 4
        for piece in (whole[:head], whole[head : head + 1], whole[head + 1 : -1], whole[-1:] + whole + whole):
            sock.sendall(piece)
            time.sleep(0.02)
        assert [answer(stream)[0] for _ in range(3)] == [200, 200, 200]
        assert ask(sock, stream, raw(desk, b""))[0] == 400
        assert ask(sock, stream, whole)[0] == 200
    assert around[:2] == [False, True]
    assert around[-2:] == [True, True]


def test_a_body_that_stays_away_after_a_known_head_is_told_so(desk: Desk, around: list[bool]) -> None:
    with connect(desk) as sock, sock.makefile("rb") as stream:
        assert ask(sock, stream, raw(desk, body("fine")))[0] == 200
        sock.sendall(raw(desk, body("fine"))[:-5])
        status, headers, content = answer(stream)
        assert (status, json.loads(content)["error"]["code"]) == (408, "request_timeout")
        assert headers["connection"] == "close"
        assert stream.read() == b""
    assert around == [False, True]
    until(lambda: at_rest(desk))


def test_a_caller_who_hangs_up_in_such_a_body_leaves_nothing(desk: Desk, around: list[bool]) -> None:
    before = len(desk.toy.log)
    with connect(desk) as sock, sock.makefile("rb") as stream:
        assert ask(sock, stream, raw(desk, body("fine")))[0] == 200
        sock.sendall(raw(desk, body("fine"))[:-5])
        until(lambda: len(around) == 2)
    until(lambda: at_rest(desk) and len(desk.toy.log) == before + 1)


def test_a_body_that_is_too_large_is_refused_after_a_known_head_too(desk: Desk, around: list[bool]) -> None:
    with connect(desk) as sock, sock.makefile("rb") as stream:
        assert ask(sock, stream, raw(desk, body("fine")))[0] == 200
        head = raw(desk, body("fine")).split(b"Content-Length")[0]
        status, content = ask(sock, stream, head + b"Content-Length: 999999999\r\n\r\n")
        assert (status, json.loads(content)["error"]["code"]) == (413, "request_too_large")
    assert around == [False, False]


@pytest.mark.parametrize("pause_s", [0, 0.05])
def test_nothing_is_taken_after_what_is_no_http(desk: Desk, around: list[bool], pause_s: float) -> None:
    """A known head behind garbage is not answered, nor paid for."""
    before = len(desk.toy.log)
    with connect(desk) as sock, sock.makefile("rb") as stream:
        whole = raw(desk, body("fine"))
        assert ask(sock, stream, whole)[0] == 200
        sock.sendall(b"\x00garbage\r\n\r\n")
        time.sleep(pause_s)
        sock.sendall(whole)
        assert answer(stream)[0] == 400
        assert stream.read() == b""
    until(lambda: at_rest(desk))
    assert len(desk.toy.log) == before + 1
    assert True not in around


def test_requests_of_all_kinds_cut_anywhere_are_answered_in_their_order(desk: Desk) -> None:
    """What a connection has carried before, and where its packets end, changes no answer."""
    chosen = random.Random(SEED)
    chunked = raw(desk, b"").split(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
    kinds = [
        (raw(desk, body("fine")), 200),
        (raw(desk, longer(40)), 200),
        (raw(desk, body("nobody")), 404),
        (raw(desk, body("status-429")), 429),
        (raw(desk, b"{"), 400),
        (f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {desk.secret}\r\n\r\n".encode(), 200),
        (chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body("fine")), body("fine")), 200),
    ]
    for _ in range(12):
        wanted = chosen.choices(kinds, weights=(8, 4, 1, 1, 1, 1, 1), k=12)
        sent = b"".join(request for request, _ in wanted)
        cuts = sorted(chosen.sample(range(1, len(sent)), chosen.randrange(12)))
        with connect(desk) as sock, sock.makefile("rb") as stream:
            for start, end in zip((0, *cuts), (*cuts, len(sent)), strict=True):
                sock.sendall(sent[start:end])
                time.sleep(chosen.choice((0, 0, 0.003)))
            assert [answer(stream)[0] for _ in wanted] == [status for _, status in wanted]
    until(lambda: at_rest(desk))
