"""Webhooks: each final receipt is told once per endpoint, signed, tried again, and never to the wrong receiver."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from headwater.core.errors import UpstreamError
from headwater.core.instants import SECOND_NS
from headwater.gateway.webhooks import WebhookSender, webhook_routes
from headwater.store.outbound import Reply
from headwater.store.webhook_store import RETRY_S, WebhookStore
from toy.desk import Desk, open_desk


class Receiver(ThreadingHTTPServer):
    """Takes webhooks and answers as it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taker)
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Taker(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.append(({k.lower(): v for k, v in self.headers.items()}, raw))  # type: ignore[attr-defined]
        statuses = self.server.statuses  # type: ignore[attr-defined]
        self.send_response(statuses.pop(0) if statuses else 204)
        self.end_headers()


@dataclass
class Post:
    """A gateway whose webhooks are stepped by hand, with a clock that is set."""

    desk: Desk
    sender: WebhookSender
    receiver: Receiver
    skipped_ns: list[int] = field(default_factory=lambda: [0])

    def ask(self, method: str, path: str, body: object = None, secret: str | None = None) -> Any:
        """A request with the desk's key unless told otherwise."""
        raw = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {secret or self.desk.secret}", "Content-Type": "application/json"}
        with urlopen(Request(self.desk.url + path, raw, headers, method=method), timeout=20) as response:
            text = response.read()
        return json.loads(text) if text else None

    def listen(self, url: str | None = None, **fields: object) -> dict[str, Any]:
        """An endpoint at the receiver."""
        return self.ask("POST", "/v1/webhooks", {"url": url or self.receiver.url, **fields})  # type: ignore[no-any-return]

    def answer(self, secret: str | None = None) -> str:
        """The receipt of a paid answer."""
        client = self.desk.client(secret)
        got = client.chat.completions.with_raw_response.create(
            model=next(iter(self.desk.app.model_names)), messages=[{"role": "user", "content": "hello"}]
        )
        self.desk.settled()
        return str(self.desk.get("/v1/receipts/" + got.headers["headwater-receipt"], secret)["id"])

    def skip(self, seconds: float) -> None:
        """Set the clock ahead."""
        self.skipped_ns[0] += int(seconds * SECOND_NS)


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    """A gateway and a receiver."""
    receiver = Receiver()
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    made: list[Any] = []
    skipped = [0]

    def late(app: Any, service: Any) -> None:
        parts = service.flow.parts
        sender = WebhookSender(
            WebhookStore(parts.calls.db),
            parts.log,
            parts.calls,
            lambda: time.time_ns() + skipped[0],
            allowed=("127.0.0.1",),
        )
        made.append(sender)
        webhook_routes(sender)(app, service)

    with open_desk(tmp_path / "home", more=[late]) as desk:
        yield Post(desk, made[0], receiver, skipped)
        made[0].close()
    receiver.shutdown()
    receiver.server_close()


def test_a_final_receipt_arrives_signed(post: Post) -> None:
    """The receiver checks the signature with the secret it was given and reads which receipt is final."""
    made = post.listen()
    receipt = post.answer()
    post.sender.step()

    ((headers, raw),) = post.receiver.taken
    secret = base64.b64decode(made["secret"].removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + raw
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == "v1," + expected
    body = json.loads(raw)
    assert (body["type"], body["data"]["receipt"]) == ("receipt.final", receipt)
    assert body["data"]["price"] == post.desk.get(f"/v1/receipts/{receipt}")["price"]


def test_each_receipt_is_told_once(post: Post) -> None:
    """However often the log is looked at, and by however many senders."""
    post.listen()
    post.answer()
    post.answer()
    parts = post.desk.toy.flow.parts
    other = WebhookSender(post.sender.store, parts.log, parts.calls, time.time_ns, allowed=("127.0.0.1",))
    for _ in range(3):
        post.sender.step()
        other.step()
    other.close()

    assert len(post.receiver.taken) == 2
    assert len({headers["webhook-id"] for headers, _ in post.receiver.taken}) == 2


def test_a_failed_delivery_comes_again_with_the_same_id(post: Post) -> None:
    """After the pause of the schedule, not before; then it is delivered."""
    made = post.listen()
    post.receiver.statuses[:] = [500, 503]
    post.answer()
    post.sender.step()
    post.sender.step()
    assert len(post.receiver.taken) == 1
    post.skip(RETRY_S[0] + 1)
    post.sender.step()
    post.skip(RETRY_S[1] + 1)
    post.sender.step()

    assert len({headers["webhook-id"] for headers, _ in post.receiver.taken}) == 1
    assert len(post.receiver.taken) == 3
    (message,) = post.ask("GET", f"/v1/webhooks/{made['id']}/messages")["data"]
    assert (message["state"], message["tries"], message["answer"]) == ("delivered", 3, "204")


def test_a_message_is_given_up_after_the_last_try_and_replayed_on_request(post: Post) -> None:
    """Three days of failures end it; its owner can have it delivered again."""
    made = post.listen()
    post.receiver.statuses[:] = [500] * (len(RETRY_S) + 1)
    post.answer()
    for pause_s in (0, *RETRY_S):
        post.skip(pause_s + 1)
        post.sender.step()
    path = f"/v1/webhooks/{made['id']}/messages"
    (message,) = post.ask("GET", path)["data"]
    assert (message["state"], message["tries"]) == ("given_up", len(RETRY_S) + 1)

    post.ask("POST", f"{path}/{message['id']}/replay")
    post.sender.step()
    assert post.ask("GET", path)["data"][0]["state"] == "delivered"


def test_a_receiver_that_is_gone_is_left_alone(post: Post) -> None:
    """410 switches the endpoint off at once; its owner may switch it on again."""
    made = post.listen()
    post.receiver.statuses[:] = [410]
    post.answer()
    post.sender.step()
    post.answer()
    post.sender.step()

    assert len(post.receiver.taken) == 1
    assert post.ask("GET", "/v1/webhooks")["data"][0]["state"] == "off"
    post.ask("POST", f"/v1/webhooks/{made['id']}/on")
    post.answer()
    post.sender.step()
    assert len(post.receiver.taken) >= 2


def test_keys_hear_of_their_own_receipts_only(post: Post) -> None:
    """Another key's answers make no message, and its endpoints do not exist for this one."""
    made = post.listen()
    other, _ = post.desk.toy.key()
    post.answer(other)
    post.sender.step()

    assert post.receiver.taken == []
    assert post.ask("GET", "/v1/webhooks", secret=other)["data"] == []
    for method, path in (("DELETE", ""), ("GET", "/messages"), ("POST", "/on"), ("POST", "/messages/msg_1/replay")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post.ask(method, f"/v1/webhooks/{made['id']}{path}", secret=other)
        assert refused.value.code == 404


def test_a_deleted_endpoint_hears_nothing_more(post: Post) -> None:
    """What was owed to it is given up."""
    made = post.listen()
    post.receiver.statuses[:] = [500]
    post.answer()
    post.sender.step()
    post.ask("DELETE", f"/v1/webhooks/{made['id']}")
    post.skip(10)
    post.sender.step()

    assert len(post.receiver.taken) == 1
    assert post.ask("GET", "/v1/webhooks")["data"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "http://hooks.example/x"},
        {"url": "https://user:secret@hooks.example/x"},
        {"url": "file:///etc/passwd"},
        {"url": "https://hooks.example/x", "events": ["everything"]},
        {"url": "https://hooks.example/x", "colour": "red"},
        {"url": 7},
        {},
    ],
)
def test_bad_endpoints_are_refused(post: Post, fields: dict[str, object]) -> None:
    """Nothing is kept of them."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        post.ask("POST", "/v1/webhooks", fields)
    assert refused.value.code == 400
    assert post.ask("GET", "/v1/webhooks")["data"] == []


def test_a_private_address_behind_a_public_name_gets_nothing(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard looks at the addresses a name has when it delivers; the message waits and says why."""
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: look_up(host.replace("inside.example", "127.0.0.1"), *more, **named),
    )
    made = post.listen("https://inside.example/x")
    post.answer()
    post.sender.step()

    (message,) = post.ask("GET", f"/v1/webhooks/{made['id']}/messages")["data"]
    assert (message["state"], message["answer"]) == ("owed", "address_not_public")


@pytest.mark.parametrize("host", ["localhost", "[::1]", "0x7f000001", "10.0.0.8"])
def test_a_private_address_written_out_is_refused_at_once(post: Post, host: str) -> None:
    """Nobody has to wait for a delivery to learn that it will never come."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        post.listen(f"https://{host}/x")
    assert json.load(refused.value)["code"] == "address_not_public"


def test_the_eleventh_endpoint_is_refused(post: Post) -> None:
    """Endpoints of a key are bounded."""
    for n in range(10):
        post.listen(f"https://hooks.example/{n}")
    with pytest.raises(urllib.error.HTTPError) as refused:
        post.listen("https://hooks.example/11")
    assert json.load(refused.value)["code"] == "webhooks_too_many"


def test_what_was_owed_survives_the_process(post: Post) -> None:
    """A sender that died after writing a message down is followed by one that delivers it."""
    post.listen()
    post.answer()
    parts = post.desk.toy.flow.parts

    def dies(*_: object) -> Reply:
        raise UpstreamError("down", code="host_unreachable")

    first = WebhookSender(post.sender.store, parts.log, parts.calls, time.time_ns, send=dies)
    first.step()
    first.close()
    post.skip(RETRY_S[0] + 1)
    post.sender.step()

    assert len(post.receiver.taken) == 1


def test_the_thread_delivers_by_itself(post: Post) -> None:
    """Started, it needs nobody to step it."""
    post.listen()
    post.sender.start()
    post.answer()
    until = time.monotonic() + 10
    while not post.receiver.taken and time.monotonic() < until:
        time.sleep(0.05)

    assert len(post.receiver.taken) == 1
