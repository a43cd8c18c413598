"""Several workers behind one address: real processes, OpenAI's own client, a real upstream on loopback."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
from postgres import postgres  # noqa: F401 - a fixture

from headwater.cli.home import Home
from headwater.cli.workers import private_folder
from headwater.core.money import NANO
from headwater.receipts import Receipt
from toy.gang import ASK, Gang, asked, call, models, open_gang, wait_for
from toy.upstream import USAGE, WORDS, Upstream, upstream

PRICE = 1_000_000 + USAGE["prompt_tokens"] * 1_000 + USAGE["completion_tokens"] * 2_000
CHAT = "/v1/chat/completions"
NAMES = ("w1", "w2")
WRONG_MAX = 5


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    """The upstream."""
    with upstream() as running:
        yield running


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def gang(request: pytest.FixtureRequest, server: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    """A head and two workers, over a file and over PostgreSQL."""
    given = {"HEADWATER_FAILED_KEYS_PER_MINUTE": str(WRONG_MAX)}
    if request.param == "postgres":
        given["HEADWATER_DATABASE"] = request.getfixturevalue("postgres").fresh()
    with open_gang(tmp_path_factory.mktemp("gang"), models(server), **given) as running:
        yield running


def test_each_worker_answers_calls_and_their_receipts_are_in_one_log(gang: Gang) -> None:
    """A call by either has a receipt that the head shows: signed, logged, with the price that was charged."""
    for name in NAMES:
        line = gang.line_to(name)
        status, headers, raw = asked(line, "POST", CHAT, call("fine"), gang.secret)
        line.close()
        assert status == 200
        assert headers["x-request-id"].startswith(f"req_{name}_")
        bill = json.loads(raw)["headwater"]
        shown = wait_for(lambda bill=bill: _final(gang, bill["receipt"]))
        receipt = Receipt.from_bytes(json.dumps(shown["receipt"], separators=(",", ":"), sort_keys=True).encode())
        assert (receipt.price, shown["id"]) == (PRICE, bill["receipt_id"])


def test_streams_embeddings_and_responses_come_whole_through_workers(gang: Gang) -> None:
    """OpenAI's client sees no difference: chunks, usage, vectors, events of a response."""
    client = gang.client()
    chunks = list(
        client.chat.completions.create(
            model="fine",
            messages=ASK,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "".join(WORDS)
    assert chunks[-1].usage is not None
    assert client.embeddings.create(model="fine", input="a word", encoding_format="float").data[0].embedding
    events = list(client.responses.create(model="fine", input="Who?", stream=True))
    assert events[-1].type == "response.completed"


def test_native_routes_and_pages_come_from_the_head(gang: Gang) -> None:
    """Account, models, health, pages and what does not exist: statuses, types and lengths are those of the head."""
    assert gang.json("/v1/account")["currency"] == "USD"
    assert {model.id for model in gang.client().models.list()} >= {"fine", "dear"}
    status, headers, raw = gang.ask("GET", "/")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/html")
    assert raw.rstrip().endswith(b"</html>")
    head, whole = gang.ask("HEAD", "/healthz"), gang.ask("GET", "/healthz")
    assert head[2] == b""
    assert head[0] == whole[0] or head[0] == 405
    status, headers, raw = gang.ask("GET", "/v1/nothing")
    assert (status, json.loads(raw)["error"]["code"]) == (404, "route_unknown")
    assert headers["x-request-id"].startswith("req_")
    assert len([name for name in headers if name == "date"]) == 1
    assert gang.ask("GET", CHAT)[0] == 405


def test_a_call_with_sources_is_the_heads(gang: Gang) -> None:
    """It is attributed behind its answer, so its receipt is pending at first; the key's limits are the same."""
    status, headers, raw = gang.ask("POST", CHAT, call("fine", headwater={"sources": 0}))
    assert status == 200, raw
    assert not headers["x-request-id"].startswith("req_w")
    assert json.loads(raw)["headwater"]["status"] == "pending"
    wait_for(lambda: _final(gang, headers["headwater-receipt"]))


def test_wrong_keys_are_counted_once_for_all_workers(gang: Gang) -> None:
    """However many workers a guesser asks, it is told 401 as often as one process would, then 429; right keys go on."""
    found = []
    for _ in range(4):
        for path, method in ((CHAT, "POST"), ("/v1/account", "GET")):
            connection = http.client.HTTPConnection("127.0.0.1", gang.port, timeout=30)
            found.append(asked(connection, method, path, call("fine") if method == "POST" else None, "hw_wrong")[0])
            connection.close()
    assert found == [401] * WRONG_MAX + [429] * (len(found) - WRONG_MAX)
    assert gang.ask("POST", CHAT, call("fine"))[0] == 200


def test_two_workers_never_promise_the_same_money(gang: Gang) -> None:
    """Many calls at once over all workers, by a key that can pay three of them: three are answered."""
    secret, key = gang.key(3 * NANO)

    def ask(_: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", gang.port, timeout=30)
        try:
            while (found := asked(connection, "POST", CHAT, call("dear"), secret))[0] == 503:
                assert json.loads(found[2])["error"]["code"] == "credit_busy"  # who is told so tries again
                time.sleep(0.05)
            return found[0]
        finally:
            connection.close()

    with ThreadPoolExecutor(12) as pool:
        statuses = sorted(pool.map(ask, range(12)))
    assert statuses == [200] * 3 + [402] * 9
    wait_for(lambda: _balance(gang, key.account) == (0, 0))


def test_an_idempotency_key_that_comes_to_both_at_once_is_answered_once(gang: Gang, server: Upstream) -> None:
    """One of two equal requests is answered, the other told to wait or given the same; it is charged once."""
    lines = [gang.line_to(name) for name in NAMES]
    before, secret = len(server.asked), gang.key()[0]
    body = call("slowly", stream=True)

    def ask(line: http.client.HTTPConnection) -> tuple[int, bytes]:
        status, _, raw = asked(line, "POST", CHAT, body, secret, idempotency_key="once")
        return status, raw

    with ThreadPoolExecutor(2) as pool:
        first, second = sorted(pool.map(ask, lines))
    assert first[0] == 200
    assert second[0] == 409
    assert json.loads(second[1])["error"]["code"] == "call_in_progress"
    for line in lines:
        status, headers, raw = asked(line, "POST", CHAT, body, secret, idempotency_key="once")
        assert (status, headers["idempotent-replayed"], raw) == (200, "true", first[1])
        line.close()
    assert len(server.asked) == before + 1


def test_an_idempotency_key_is_one_to_the_workers_and_the_head(gang: Gang, server: Upstream) -> None:
    """A call by a worker and one with sources, which is the head's: the second conflicts, at work and ever after."""
    secret, key = gang.key()
    sourced, begun = {"headwater": {}}, len(server.asked)

    def ask(name: str, **more: object) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", gang.port, timeout=30)
        status, _, raw = asked(connection, "POST", CHAT, call("slowly", **more), secret, idempotency_key=name)
        connection.close()
        return status, "" if status == 200 else json.loads(raw)["error"]["code"]

    with ThreadPoolExecutor(1) as pool:
        for name, first, second in (("worker first", {}, sourced), ("head first", sourced, {})):
            expected = len(server.asked) + 1
            going = pool.submit(ask, name, stream=True, **first)
            wait_for(lambda expected=expected: len(server.asked) == expected)
            assert ask(name, stream=True, **second) == (409, "idempotency_conflict")
            assert going.result() == (200, "")
            assert ask(name, stream=True, **second) == (409, "idempotency_conflict")
    assert len(server.asked) == begun + 2
    wait_for(lambda: _balance(gang, key.account)[1] == 0)


def test_what_is_no_http_is_told_so_by_a_worker_and_never_reaches_the_head(gang: Gang) -> None:
    """One answer in OpenAI's form, with the worker's id, counted; the connection ends, and nothing is paid."""
    secret, key = gang.key()
    raw = json.dumps(call("fine")).encode()
    auth = f"Host: x\r\nAuthorization: Bearer {secret}\r\n"
    fine = f"POST {CHAT} HTTP/1.1\r\n{auth}Content-Length: {len(raw)}\r\n\r\n".encode() + raw
    chunks = f"Transfer-Encoding: chunked\r\n\r\n{len(raw):x}\r\n".encode() + raw + b"\r\n0\r\n\r\n"
    line = f"POST {CHAT} HTTP/1.1\r\n{auth}".encode()
    shapes = {
        "http_invalid": b"\x16\x03\x01\x02\x00",
        " http_invalid": fine.replace(b"Content-Length: ", b"Content-Length: +"),
        "http_invalid ": line + f"Content-Length: {len(raw)}\r\n".encode() + chunks,
        "transfer_coding_unsupported": line + chunks.replace(b"chunked", b"gzip, chunked", 1),
        "head_too_large": line + b"X: " + b"y" * 100_000,
        "method_not_allowed": line.replace(b"POST", b"BREW") + b"\r\n",
        "http_version_unsupported": line.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n",
    }
    for code, shape in shapes.items():
        with socket.create_connection(("127.0.0.1", gang.port), 10) as connection:
            connection.sendall(shape + fine)
            with connection.makefile("rb") as stream:
                answer = stream.read()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert json.loads(body)["error"]["code"] == code.strip(), answer
        assert b"\r\nconnection: close" in head
        assert re.search(rb"\r\nx-request-id: req_w[12]_", head), head
    wait_for(lambda: _balance(gang, key.account) == (100 * NANO, 0))
    counted = 'headwater_requests_total{route="other",status="431"}'
    wait_for(lambda: counted in gang.ask("GET", "/metrics")[2].decode())


@pytest.mark.parametrize("more", [{}, {"headwater": {}}], ids=["worker", "head"])
def test_a_stream_to_http_1_0_ends_with_its_connection(gang: Gang, more: dict[str, object]) -> None:
    """Without chunks, whichever process answers; a plain answer keeps the connection if it was asked to."""
    for stream in (True, False):
        raw = json.dumps(call("fine", stream=stream, **more)).encode()
        fields = f"Authorization: Bearer {gang.secret}\r\nContent-Length: {len(raw)}\r\n"
        with socket.create_connection(("127.0.0.1", gang.port), 10) as connection:
            if not stream:
                kept = f"POST {CHAT} HTTP/1.0\r\n{fields}Connection: keep-alive\r\n\r\n".encode()
                connection.sendall(kept + raw)
            connection.sendall(f"POST {CHAT} HTTP/1.0\r\n{fields}\r\n".encode() + raw)
            with connection.makefile("rb") as lines:
                answer = lines.read()
        assert answer.count(b"HTTP/1.1 200 ") == (1 if stream else 2)
        assert answer.count(b"connection: keep-alive") == (0 if stream else 1)
        assert b"transfer-encoding" not in answer
        assert answer.endswith(b"data: [DONE]\n\n") == stream


def test_every_worker_takes_over_a_changed_file(gang: Gang, server: Upstream) -> None:
    """SIGHUP to the head is enough; a file that is wrong changes nothing anywhere."""
    file = gang.home.parent / "upstreams.toml"
    lines = {name: gang.line_to(name) for name in NAMES}
    file.write_text("[upstream", "utf-8")
    gang.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reload refused" in gang.lines.read_text())
    assert all(asked(line, "POST", CHAT, call("fine"), gang.secret)[0] == 200 for line in lines.values())
    file.write_text(models(server, "crlf"), "utf-8")
    gang.process.send_signal(signal.SIGHUP)
    for line in lines.values():
        wait_for(lambda line=line: asked(line, "POST", CHAT, call("crlf"), gang.secret)[0] == 200)
        line.close()


def test_metrics_add_up_what_all_processes_did(gang: Gang) -> None:
    """A counter holds the calls of every worker, also of one that has ended."""
    before = gang.metric("headwater_calls_total")
    for name in NAMES:
        gang.line_to(name).close()
    wait_for(lambda: gang.metric("headwater_calls_total") >= before + 2)
    assert gang.metric("headwater_workers_alive") == len(NAMES)
    assert 0 < gang.metric("headwater_worker_resident_bytes") / len(NAMES) < 110 * 2**20


def test_a_large_picture_passes_through_a_worker_and_through_the_head(gang: Gang, server: Upstream) -> None:
    """Of 5 MB, on the lane, in chunks, with sources; the same limits hold for what a worker passes on."""
    url = "data:image/png;base64," + "Aa0+/b" * 850_000
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    line = gang.line_to("w1")
    plain = json.dumps(call("fine", messages=messages)).encode()
    sourced = json.dumps(call("fine", messages=messages, headwater={})).encode()
    for body in (plain, iter([plain]), sourced):
        line.request("POST", CHAT, body, {"authorization": f"Bearer {gang.secret}"})
        response = line.getresponse()
        answer = json.loads(response.read())
        assert response.status == 200, answer
        assert server.asked[-1]["messages"] == messages
        assert 1_000_000 <= round(float(answer["headwater"]["price"]) * 10**9) <= PRICE
    for body, model in ((b" " * 33 * 2**20, "any"), (json.dumps(call("nobody's", messages=messages)).encode(), "none")):
        status, _, raw = asked(line, "POST", CHAT, body, gang.secret)
        assert (status, json.loads(raw)["error"]["code"]) == (413, "request_too_large"), model
    line.close()


def test_a_killed_worker_is_replaced_and_its_credit_is_free_again(gang: Gang) -> None:
    """The calls of others go on, what it was charging is settled by the head, and another takes its place."""
    secret, key = gang.key()
    other, victim = gang.line_to("w1"), gang.line_to("w2")
    restarts, calls = gang.workers()["w2"]["restarts"], gang.metric("headwater_calls_total")
    raw = json.dumps(call("endless", stream=True))
    victim.request("POST", CHAT, raw, {"authorization": f"Bearer {secret}"})
    response = victim.getresponse()
    assert response.read(50)
    assert _balance(gang, key.account)[1] > 0
    os.kill(gang.workers()["w2"]["pid"], signal.SIGKILL)
    with pytest.raises((http.client.IncompleteRead, OSError)):
        response.read()
    assert asked(other, "POST", CHAT, call("fine"), secret)[0] == 200
    again = wait_for(lambda: (found := gang.workers()["w2"])["restarts"] > restarts and found["state"] == "serving")
    assert again
    # The other worker gives its own lease back when the payer is idle; the dead one's is the head's to free.
    wait_for(lambda: _balance(gang, key.account) == (100 * NANO - PRICE, 0))
    gang.line_to("w2").close()
    assert gang.metric("headwater_calls_total") >= calls + 1
    other.close()


def test_a_gang_that_is_told_to_stop_ends_its_streams_first(gang: Gang) -> None:
    """SIGTERM in the middle of a stream: it comes to its end with its receipt, then all processes have gone.

    The last test that asks this gang.
    """
    pids = [one["pid"] for one in gang.workers().values()]
    with gang.client().chat.completions.with_streaming_response.create(
        model="slowly",
        messages=ASK,
        stream=True,  # type: ignore[arg-type]
    ) as response:
        receipt, lines = response.headers["headwater-receipt"], response.iter_lines()
        said = [next(lines)]
        gang.process.send_signal(signal.SIGTERM)
        said += lines
    assert "data: [DONE]" in said
    assert all(any(f'"{word}"' in line for line in said) for word in WORDS)
    assert gang.process.wait(30) == 0
    assert not any(_lives(pid) for pid in pids)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", gang.port), 1)
    with Home(gang.settings, create=False) as home:
        assert receipt in {Receipt.from_bytes(logged.raw).call_id for logged in home.log.entries(0)}


@pytest.mark.slow
def test_workers_end_with_their_head(server: Upstream, tmp_path: Path) -> None:
    """A head that is killed leaves nobody who answers calls that could not be recorded."""
    with open_gang(tmp_path, models(server)) as gang:
        pids = [one["pid"] for one in gang.workers().values()]
        assert gang.ask("POST", CHAT, call("fine"))[0] == 200
        gang.process.kill()
        gang.process.wait()
        wait_for(lambda: not any(_lives(pid) for pid in pids), 10)
        with pytest.raises(openai.APIConnectionError):
            gang.client().models.list()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="short-") as made:
        yield Path(made)


def test_the_folder_of_a_killed_head_is_removed_by_the_next(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is free; the folder of one that lives is left alone, and so is anything else of that name."""
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    (short / "headwater-other").mkdir()
    dead = short / "headwater-dead"
    (dead / "claims").mkdir(parents=True)
    (dead / "alive").touch()
    with private_folder() as living, private_folder() as second:
        assert sorted(path.name for path in short.iterdir()) == sorted(["headwater-other", living.name, second.name])
        assert second.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in short.iterdir()] == ["headwater-other"]


def test_workers_without_upstreams_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They would have nothing to do, and that is said with the way out."""
    from headwater.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["serve", "--home", str(tmp_path / "home"), "--port", "0", "--workers", "2", "--no-local-model"])
    assert left.value.code == 1
    assert "workers_need_upstreams" in capfd.readouterr().err


def _final(gang: Gang, call_id: str) -> dict[str, object] | None:
    status, _, raw = gang.ask("GET", f"/v1/receipts/{call_id}")
    found: dict[str, object] = json.loads(raw)
    return found if status == 200 and found["status"] == "final" else None


def _balance(gang: Gang, account: str) -> tuple[int, int]:
    """(what an account has, what of it is set aside), in nano units."""
    with Home(gang.settings, create=False) as home:
        balance = home.ledger.balance(account, home.policy.currency)  # type: ignore[arg-type]
        return balance.balance_units, balance.reserved_out_units


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
