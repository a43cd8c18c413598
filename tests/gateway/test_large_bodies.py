"""Large calls to models of other servers, over sockets: pictures, their price, and the room that bodies have."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import resource
import socket
import threading
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from headwater.core.money import NANO
from headwater.gateway import relay as relay_module
from headwater.gateway.passing import Request, Shape, read_request
from headwater.gateway.pictures import PICTURE_TOKENS_MAX
from headwater.gateway.room import UNCOUNTED_BYTES
from headwater.store.key_store import KeyLimits
from toy.desk import Desk, open_desk
from toy.raw import answer, at_rest, connect, until
from toy.upstream import USAGE, Upstream, upstream

MIB = 2**20
PRICE = 1_000_000 + USAGE["prompt_tokens"] * 1_000 + USAGE["completion_tokens"] * 2_000
NAMES = ("fine", "always", "silent", "status-503")


def picture(size_bytes: int) -> str:
    """The URL of a picture whose base64 has about so many bytes."""
    return (
        "data:image/jpeg;base64," + base64.b64encode(random.Random(size_bytes).randbytes(size_bytes * 3 // 4)).decode()
    )


def seen(url: str, text: str = "What is this?") -> list[dict[str, Any]]:
    """A chat about a picture."""
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url, "detail": "high"}}]
    return [{"role": "user", "content": parts}]


def config(server: Upstream) -> str:
    """Models of an upstream; a prompt token costs as much as an answer's half."""
    tables = "".join(
        f'[model."{name}"]\ntargets = [{{ upstream = "real", model = "{name}" }}]\nrequest_price = "0.001"\n'
        f'input_token_price = "0.000001"\noutput_token_price = "0.000002"\nanswer_tokens_max = 100\n'
        for name in NAMES
    )
    return f'[upstream.real]\nbase_url = "{server.url}"\nhead_s = 5\nsilence_s = 5\n{tables}'


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    """The upstream."""
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def desk(server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway before it, whose books are checked at the end."""
    home = tmp_path_factory.mktemp("home")
    with open_desk(home, upstreams=config(server), body_timeout_s=1.5) as running:
        yield running
        assert running.app.room.taken_bytes == 0


@pytest.fixture(autouse=True)
def clean(desk: Desk, server: Upstream) -> Iterator[None]:
    """After each: nothing held, nothing reserved, no place taken."""
    yield
    until(lambda: at_rest(desk) and desk.app.room.taken_bytes == 0)
    desk.booked()
    assert desk.toy.db.query("SELECT 1 FROM calls WHERE state = 'reserved'") == []
    server.asked.clear()


def head(desk: Desk, *fields: str, path: str = "/v1/chat/completions", secret: str | None = None) -> bytes:
    """A request's head."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {secret or desk.secret}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def known(desk: Desk) -> None:
    """Have the key checked a moment ago, so that what follows takes the lane."""
    json.load(desk.post({"model": "fine", "messages": [{"role": "user", "content": "x"}]}))


def told(answered: tuple[int, dict[str, str], bytes]) -> tuple[int, str, str, dict[str, str]]:
    """Status, code, text and headers of a refusal."""
    status, headers, body = answered
    error = json.loads(body)["error"]
    return status, error["code"], error["message"], headers


# Through


@pytest.mark.parametrize("way", ["lane", "chunked", "key", "continue"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_picture_of_20_mb_passes_byte_for_byte(desk: Desk, server: Upstream, way: str, stream: bool) -> None:
    """Twice on one connection, by every way there is, for a key whose credit would not pay its bytes."""
    secret, key = desk.toy.key("little", units=NANO // 10)  # 0.1; a token a byte would be 20
    messages = seen(picture(20_000_000 if way in ("lane", "key") else 5_000_000))
    body = json.dumps({"model": "fine", "messages": messages, "stream": stream, "max_tokens": 10}).encode()
    fields = [f"Idempotency-Key: {way}-{stream}"] if way == "key" else []
    fields += ["Expect: 100-continue"] if way == "continue" else []
    fields += ["Transfer-Encoding: chunked"] if way == "chunked" else [f"Content-Length: {len(body)}"]
    with connect(desk) as connection, connection.makefile("rb") as lines:
        answers = []
        for _ in range(2):
            connection.sendall(head(desk, *fields, secret=secret))
            if way == "continue":
                assert lines.readline() + lines.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
            if way == "chunked":
                for at in range(0, len(body), MIB):
                    connection.sendall(b"%x\r\n%b\r\n" % (len(body[at : at + MIB]), body[at : at + MIB]))
                connection.sendall(b"0\r\n\r\n")
            else:
                connection.sendall(body)
            answers.append(_read(lines))
    desk.booked()

    assert all(status == 200 and b'"price":"0.001023000"' in told for status, told in answers), answers
    assert [one["messages"] == messages for one in server.asked] == [True] * (1 if way == "key" else 2)
    assert desk.toy.spent(key, NANO // 10) == PRICE * (1 if way == "key" else 2)
    assert (answers[0] == answers[1]) is (way == "key")


def _read(lines: Any) -> tuple[int, bytes]:
    """A response, in chunks or not."""
    status = int(lines.readline().split()[1])
    headers = {}
    while line := lines.readline().strip():
        name, _, value = line.partition(b": ")
        headers[name] = value
    if b"content-length" in headers:
        return status, lines.read(int(headers[b"content-length"]))
    pieces = []
    while size := int(lines.readline(), 16):
        pieces.append(lines.read(size))
        lines.readline()
    lines.readline()
    return status, b"".join(pieces)


def test_pictures_of_responses_and_long_texts_pass_too(desk: Desk, server: Upstream) -> None:
    """OpenAI's client, its other route, and a prompt of 5 MB in text."""
    content = [{"type": "input_image", "image_url": picture(3 * MIB), "detail": "auto"}]
    assert desk.client().responses.create(model="fine", input=[{"role": "user", "content": content}]).id == "resp_1"  # type: ignore[arg-type,list-item]
    assert server.asked[-1]["input"][0]["content"] == content
    text = 'He said: "no", and\n' * 250_000
    desk.client().completions.create(model="fine", prompt=text, max_tokens=1)
    assert server.asked[-1]["prompt"] == text


def test_what_a_picture_may_cost_is_the_same_to_credit_limits_and_quotes(desk: Desk) -> None:
    """The ceiling of a picture, not its bytes: as credit, by the minute, as it is quoted; text pays by its bytes."""
    body = {"model": "fine", "messages": seen(picture(1_200_000)), "max_tokens": 10}
    raw = json.dumps(body).encode()
    beside = len(raw) - read_request(raw, "chat").text_bytes
    ceiling = 1_000_000 + (len(raw) - beside + PICTURE_TOKENS_MAX) * 1_000 + 10 * 2_000
    assert desk.app.relay is not None
    assert desk.app.relay.quote(raw, "/v1/chat/completions") == (ceiling, False)

    def asked(body: dict[str, Any], secret: str) -> int:
        with (
            contextlib.suppress(urllib.error.HTTPError),
            desk.post(body, {"Authorization": f"Bearer {secret}"}) as fine,
        ):
            return int(fine.status)
        return 402  # anything else is raised by the next line of the test that asks with enough

    enough, key = desk.toy.key("enough", units=ceiling)
    short, _ = desk.toy.key("short", units=ceiling - 1)
    dressed = [{"role": "user", "content": [{"type": "text", "text": picture(1_200_000)}]}]
    assert asked({**body, "messages": dressed}, enough) == 402
    assert asked(body, enough) == 200
    assert asked(body, short) == 402
    desk.booked()
    assert desk.toy.spent(key, ceiling) == PRICE

    limits = KeyLimits(tokens_per_minute=40_000)
    secret, key = desk.toy.keys.create("limited", os.urandom(32), 1, limits=limits)
    desk.toy.fund(key, 100 * NANO)
    for _ in range(3):  # each takes some 16,000 for a moment, and 16 for good
        desk.client(secret).chat.completions.create(**body)  # type: ignore[call-overload]


def test_a_picture_goes_beside_sources_and_too_much_text_does_not(desk: Desk, server: Upstream) -> None:
    """The short way and the attributed one take the same pictures; text that is read for sources stays within 2 MiB."""
    url = picture(6_000_000)
    asked = {"model": "always", "messages": seen(url), "headwater": {"retrieve": 1}, "max_tokens": 5}
    assert json.load(desk.post(asked))["headwater"]["status"] in ("pending", "final")
    assert server.asked[-1]["messages"][0]["content"][-1]["image_url"]["url"] == url
    desk.settled()
    with connect(desk) as connection, connection.makefile("rb") as lines:
        raw = json.dumps({**asked, "messages": seen(url, "x" * 3 * MIB)}).encode()
        connection.sendall(head(desk, f"Content-Length: {len(raw)}") + raw)
        status, code, message, _ = told(answer(lines))
    assert (status, code) == (413, "request_too_large")
    assert "beside its pictures" in message


# Too large


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_33_mib_are_413_whose_sender_reads_it_and_nothing_of_them_is_kept(desk: Desk, chunked: bool) -> None:
    """With the size, the limit and a fix, after which the connection goes on."""
    before_kib, piece = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, b"x" * MIB
    with connect(desk) as connection, connection.makefile("rb") as lines:
        connection.sendall(head(desk, "Transfer-Encoding: chunked" if chunked else f"Content-Length: {33 * MIB}"))
        for _ in range(33):
            connection.sendall(b"%x\r\n%b\r\n" % (MIB, piece) if chunked else piece)
        connection.sendall(b"0\r\n\r\n" if chunked else b"")
        status, code, message, _ = told(answer(lines))
        raw = json.dumps({"model": "fine", "messages": [{"role": "user", "content": "x"}]}).encode()
        connection.sendall(head(desk, f"Content-Length: {len(raw)}") + raw)
        assert answer(lines)[0] == 200

    assert (status, code) == (413, "request_too_large")
    assert f"{32 * MIB} are taken (fix: send at most {32 * MIB} bytes)" in message
    assert chunked or str(33 * MIB) in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < (80 if chunked else 16) * 1024


@pytest.mark.parametrize("model", ["toy", "nobody's"])
@pytest.mark.parametrize("warm", [False, True], ids=["asgi", "lane"])
def test_a_model_in_process_takes_no_more_than_it_did(desk: Desk, model: str, warm: bool) -> None:
    """413 with the size and its own limit, once the model is known."""
    raw = json.dumps({"model": model, "messages": [{"role": "user", "content": "x" * 2 * MIB}]}).encode()
    secret, _ = desk.toy.key("fresh")
    if warm:
        known(desk)
    with connect(desk) as connection, connection.makefile("rb") as lines:
        connection.sendall(head(desk, f"Content-Length: {len(raw)}", secret=None if warm else secret) + raw)
        status, code, message, _ = told(answer(lines))

    assert (status, code) == (413, "request_too_large")
    assert str(len(raw)) in message
    assert str(2 * MIB) in message


def test_without_other_servers_nothing_larger_is_taken(desk: Desk) -> None:
    """The setting is theirs alone; and other routes never had it."""
    raw = b'{"text": "' + b"x" * 3 * MIB + b'"}'
    with connect(desk) as connection, connection.makefile("rb") as lines:
        connection.sendall(head(desk, f"Content-Length: {len(raw)}", path="/v1/feedback") + raw)
        assert int(lines.readline().split()[1]) == 413


def test_without_upstreams_a_body_has_what_it_had(tmp_path: Any) -> None:
    """2 MiB, refused by the announced length."""
    with open_desk(tmp_path / "home") as alone, connect(alone) as connection, connection.makefile("rb") as lines:
        connection.sendall(head(alone, f"Content-Length: {2 * MIB + 1}"))
        status, code, message, _ = told(answer(lines))
    assert (status, code) == (413, "request_too_large")
    assert f"send at most {2 * MIB} bytes" in message


# Room


@pytest.fixture
def narrow(desk: Desk) -> Iterator[Desk]:
    """The gateway with room for 8 MiB of bodies."""
    room = desk.app.room
    together, room.together_bytes_max = room.together_bytes_max, 8 * MIB
    yield desk
    room.together_bytes_max = together


def begun(desk: Desk, way: str, sent: int) -> socket.socket:
    """A slow upload of 2 MiB, of which so much has come; the first call of a key goes the ASGI way."""
    connection = connect(desk)
    secret = desk.toy.key()[0] if way == "asgi" else desk.secret
    if way == "chunked":
        connection.sendall(head(desk, "Transfer-Encoding: chunked") + b"%x\r\n" % (2 * MIB) + b" " * sent)
    else:
        connection.sendall(head(desk, f"Content-Length: {2 * MIB}", secret=secret) + b" " * sent)
    return connection


@pytest.mark.parametrize("way", ["lane", "asgi", "chunked"])
@pytest.mark.parametrize("end", ["answered", "hang up", "late", "reset"])
def test_many_slow_uploads_leave_the_next_no_room_until_they_end(narrow: Desk, way: str, end: str) -> None:
    """503 that is retried, by the head alone; small calls pass all the while; then there is room again."""
    known(narrow)
    room = narrow.app.room
    raw = json.dumps({"model": "fine", "messages": [{"role": "user", "content": "x"}]}).encode()
    uploads = [begun(narrow, way, 2 * MIB - 4096) for _ in range(4)]
    try:
        until(lambda: room.taken_bytes >= 4 * (2 * MIB - 4096 - 65_536))
        with connect(narrow) as connection, connection.makefile("rb") as lines:
            connection.sendall(head(narrow, f"Content-Length: {3 * MIB}", "Expect: 100-continue"))
            status, code, message, headers = told(answer(lines))  # no 100 before it
        assert (status, code) == (503, "bodies_busy")
        assert str(3 * MIB) in message
        assert headers["x-should-retry"] == "true"
        assert int(headers["retry-after"]) >= 1
        assert narrow.client().chat.completions.create(model="fine", messages=[{"role": "user", "content": "x"}])
        assert len(raw) < UNCOUNTED_BYTES
        if end == "answered":
            rest = b" " * (4096 - len(raw)) + raw + (b"\r\n0\r\n\r\n" if way == "chunked" else b"")
            for upload in uploads:
                upload.sendall(rest)
                with upload.makefile("rb") as lines:
                    assert answer(lines)[0] == 200
        elif end == "late":
            for upload in uploads:
                with upload.makefile("rb") as lines:
                    assert told(answer(lines))[:2] == (408, "request_timeout")
        elif end == "reset":
            for upload in uploads:
                upload.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    finally:
        for upload in uploads:
            upload.close()
    until(lambda: room.taken_bytes == 0)
    known(narrow)


def test_a_body_keeps_its_place_until_its_answer_and_no_longer(narrow: Desk, server: Upstream) -> None:
    """While the upstream thinks it is there, in case another has to be asked; a refusal there frees it as well."""
    room = narrow.app.room
    body = {"model": "silent", "messages": seen(picture(5 * MIB))}
    server.hold.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: narrow.client().chat.completions.create(**body))  # type: ignore[call-overload]
        until(lambda: room.taken_bytes > 5 * MIB)
        with connect(narrow) as connection, connection.makefile("rb") as lines:
            connection.sendall(head(narrow, f"Content-Length: {4 * MIB}"))
            assert told(answer(lines))[:2] == (503, "bodies_busy")
        server.hold.set()
        with pytest.raises(openai.APIStatusError):
            asked.result()
    until(lambda: room.taken_bytes == 0)
    with pytest.raises(openai.APIStatusError):
        narrow.client().chat.completions.create(model="status-503", messages=seen(picture(MIB)))  # type: ignore[arg-type]
    until(lambda: room.taken_bytes == 0)


# The event loop


def test_a_large_body_is_read_on_a_thread_and_a_small_one_where_it_came(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes milliseconds is done aside."""
    threads: list[tuple[bool, bool]] = []

    def noting(raw: bytes, shape: Shape) -> Request:
        threads.append((len(raw) > MIB, threading.current_thread().name == "gateway"))
        return read_request(raw, shape)

    monkeypatch.setattr(relay_module, "read_request", noting)
    for messages in (seen(picture(2 * MIB)), [{"role": "user", "content": "x"}]):
        json.load(desk.post({"model": "fine", "messages": messages}))

    assert set(threads) == {(True, False), (False, True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "inside",
    [b"[]," * 7_000_000 + b"1", b'"",' * 7_000_000 + b"1", b'{"type":"data:image/"},' * 900_000 + b"1"],
    ids=["brackets", "quotes", "parts"],
)
def test_others_are_answered_while_a_body_is_read_that_is_hard_to_read(desk: Desk, inside: bytes) -> None:
    """20 MB of nothing but brackets, quotes or parts: the next call waits a fraction of a second at most."""
    raw = b'{"model": "fine", "messages": [' + inside + b"]}"
    secret, _ = desk.toy.key("poor", units=NANO)
    known(desk)
    request = head(desk, f"Content-Length: {len(raw)}", secret=secret) + raw
    waits: list[float] = []
    with connect(desk) as connection, connection.makefile("rb") as lines, ThreadPoolExecutor(1) as pool:
        hard = pool.submit(lambda: (connection.sendall(request), answer(lines))[1])
        while not hard.done():
            began = time.monotonic()
            assert desk.get("/v1/models")["object"] == "list"
            waits.append(time.monotonic() - began)
            time.sleep(0.005)
        assert told(hard.result())[:2] == (402, "insufficient_credit")
    print(f"{len(waits)} calls, the longest {1000 * max(waits):.0f} ms")
    assert max(waits) < 1.0, max(waits)
