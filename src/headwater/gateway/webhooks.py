"""Tells receivers of final receipts: signed as Standard Webhooks says, tried again for three days, replayed on request.

A thread follows the receipt log, writes what is owed into the store and delivers it; it never stands between a caller
and an answer, and a gateway without endpoints does nothing here. A message says which receipt is final and what was
paid; whoever wants more asks with its key.
"""

# Annotations stay live here: FastAPI resolves them, and those of a route may name what its function encloses.

import base64
import hashlib
import hmac
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Final

import msgspec
from fastapi import Depends, FastAPI
from fastapi.responses import Response
from msgspec import Struct

from headwater.core.canonical import refuse_deep
from headwater.core.errors import HeadwaterError, InvalidError, MissingError
from headwater.core.instants import SECOND_NS, format_instant
from headwater.core.money import format_units
from headwater.gateway.bodies import body_up_to
from headwater.gateway.native import Routes, Service, json_response
from headwater.receipts import Receipt
from headwater.store.call_store import CallStore
from headwater.store.key_store import KeyRecord
from headwater.store.outbound import Reply, check_url, request
from headwater.store.receipt_log import ReceiptLog
from headwater.store.webhook_store import Endpoint, Message, WebhookStore

PAUSE_S: Final = 0.5
"""How often the log and the messages that are due are looked at."""
UNBOOKED_NS: Final = 600 * SECOND_NS
"""After so long a receipt that no call names is passed over; its call was never booked here."""
AT_ONCE: Final = 4
BODY_BYTES_MAX: Final = 16 * 1024

_log = logging.getLogger("headwater.webhooks")

Send = Callable[[str, str, bytes, dict[str, str]], Reply]
"""(method, url, body, headers) to the reply."""


def signature(secret: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of `webhook-signature`: version and base64 of an HMAC over id, time and body.

    >>> signature(bytes(32), "msg_1", 1, b"{}")[:3]
    'v1,'
    """
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


class WebhookSender:
    """Writes down what is owed and delivers it, on a thread of its own.

    Args:
        now_ns: wall clock.
        allowed: hosts of this network that may be named, and by plain http.
    """

    def __init__(
        self,
        store: WebhookStore,
        log: ReceiptLog,
        calls: CallStore,
        now_ns: Callable[[], int],
        *,
        allowed: Sequence[str] = (),
        send: Send | None = None,
    ) -> None:
        self.store, self._log, self._calls, self._now_ns = store, log, calls, now_ns
        self.allowed = tuple(allowed)
        self._send = send or (lambda method, url, body, headers: request(method, url, body, headers, allowed=allowed))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook")

    @property
    def size(self) -> int:
        """Receipts that are promised now."""
        return self._log.promised().size

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop; what is owed waits for the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(15)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def step(self) -> int:
        """Follow the log as far as it is booked, deliver what is due; how many messages were tried."""
        cursor = self.store.cursor()
        if cursor is None:
            return 0
        for index in range(cursor, self.size):
            if self._stop.is_set() or not self._follow(index):
                break
        due = self.store.due(self._now_ns())
        list(self._pool.map(self._deliver, due))
        return len(due)

    def _run(self) -> None:
        while not self._stop.wait(PAUSE_S):
            try:
                while self.step() and not self._stop.is_set():
                    pass
            except HeadwaterError as error:
                _log.warning("webhooks wait: %s", error.code)
            except Exception as error:
                _log.error("webhooks wait after %s", type(error).__name__)

    def _follow(self, index: int) -> bool:
        """Owe the messages of one receipt; false when its call is not booked yet."""
        logged = self._log.at(index)
        receipt = Receipt.from_bytes(logged.raw)
        try:
            key_id = self._calls.get(receipt.call_id).key_id
        except MissingError:
            if self._now_ns() - receipt.issued_at_ns < UNBOOKED_NS:
                return False
            key_id = ""
        event = "receipt.final" if receipt.supersedes is None else "receipt.superseded"
        body = {
            "type": event,
            "timestamp": format_instant(receipt.issued_at_ns),
            "data": {
                "receipt": hashlib.sha256(logged.raw).hexdigest(),
                "call": receipt.call_id,
                "model": receipt.model.name,
                "price": format_units(receipt.price),
                "currency": receipt.currency,
                "supersedes": receipt.supersedes,
            },
        }
        self.store.owe(index, key_id, event, msgspec.json.encode(body).decode(), self._now_ns())
        return True

    def _deliver(self, owed: tuple[Message, Endpoint]) -> None:
        message, endpoint = owed
        body, at_s = message.body.encode(), self._now_ns() // SECOND_NS
        headers = {
            "content-type": "application/json",
            "user-agent": "headwater-webhooks/1",
            "webhook-id": message.message_id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": signature(endpoint.secret, message.message_id, at_s, body),
        }
        try:
            status = self._send("POST", endpoint.url, body, headers).status
        except HeadwaterError as error:
            self.store.failed(message, error.code, self._now_ns())
            return
        if 200 <= status < 300:
            self.store.delivered(message.message_id, str(status))
        else:
            self.store.failed(message, str(status), self._now_ns(), gone=status == 410)


class _NewWebhook(Struct, forbid_unknown_fields=True):
    url: str
    events: list[str] = []


def webhook_routes(sender: WebhookSender) -> Routes:
    """The routes, for `create_app(more=…)`."""
    store = sender.store

    def add(app: FastAPI, service: Service) -> None:
        Payer = Annotated[KeyRecord, Depends(service.payer)]
        Body = Annotated[bytes, Depends(body_up_to(BODY_BYTES_MAX))]
        parts = service.flow.parts

        @app.post("/v1/webhooks", response_class=Response, tags=["webhooks"])
        def create(raw: Body, key: Payer) -> Response:
            """Tell an address of this key's final receipts; the secret to check signatures with is shown once."""
            refuse_deep(raw)
            try:
                wanted = msgspec.json.decode(raw, type=_NewWebhook)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise InvalidError(str(error), code="webhook_invalid", fix="give url and events") from None
            url = check_url(wanted.url, allowed=sender.allowed)
            made = store.add(key.key_id, url, wanted.events, parts.random_bytes(48), parts.now_ns(), start=sender.size)
            return json_response({"secret": made.secret_text, **_shown(made)}, 201)

        @app.get("/v1/webhooks", response_class=Response, tags=["webhooks"])
        def webhooks(key: Payer) -> Response:
            """This key's endpoints."""
            return json_response({"data": [_shown(one) for one in store.of(key.key_id)]})

        @app.delete("/v1/webhooks/{endpoint}", response_class=Response, tags=["webhooks"])
        def delete(endpoint: str, key: Payer) -> Response:
            """Tell it no more."""
            store.switch(endpoint, key.key_id, "gone")
            return Response(status_code=204)

        @app.post("/v1/webhooks/{endpoint}/on", response_class=Response, tags=["webhooks"])
        def on(endpoint: str, key: Payer) -> Response:
            """Switch an endpoint on again that was switched off after it failed for days."""
            store.switch(endpoint, key.key_id, "on")
            return json_response(_shown(store.get(endpoint, key.key_id)))

        @app.get("/v1/webhooks/{endpoint}/messages", response_class=Response, tags=["webhooks"])
        def messages(endpoint: str, key: Payer, limit: int = 100) -> Response:
            """The newest messages of an endpoint and how they went."""
            store.get(endpoint, key.key_id)
            return json_response({"data": [_message(one) for one in store.messages(endpoint, limit=limit)]})

        @app.post("/v1/webhooks/{endpoint}/messages/{message}/replay", response_class=Response, tags=["webhooks"])
        def replay(endpoint: str, message: str, key: Payer) -> Response:
            """Deliver a message again, under its own id."""
            store.get(endpoint, key.key_id)
            return json_response(_message(store.replay(endpoint, message, parts.now_ns())), 202)

    return add


def _shown(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.endpoint_id,
        "url": endpoint.url,
        "events": list(endpoint.events),
        "state": endpoint.state,
        "created_at": format_instant(endpoint.created_at_ns),
    }


def _message(message: Message) -> dict[str, Any]:
    return {
        "id": message.message_id,
        "event": message.event,
        "state": message.state,
        "tries": message.tries,
        "answer": message.answer,
        "due_at": format_instant(message.due_at_ns) if message.state == "owed" else None,
        "body": msgspec.Raw(message.body.encode()),
    }
