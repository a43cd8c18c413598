"""What `headwater serve` adds for operators: admin routes, reload, standards' files, webhooks, and logs as JSON."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from headwater.cli.home import Home
from headwater.cli.log import log_signer
from headwater.gateway.admin import admin_routes
from headwater.gateway.administration import Administration
from headwater.gateway.invoices import Invoicing, invoice_routes
from headwater.gateway.native import Routes
from headwater.gateway.reload import Reloader
from headwater.gateway.standards import Standards, standard_routes
from headwater.gateway.upstreams_file import read_upstreams
from headwater.gateway.webhooks import WebhookSender, webhook_routes
from headwater.receipts.content_telemetry import multibase_key
from headwater.store.audit_trail import AuditTrail
from headwater.store.invoice_store import InvoiceStore
from headwater.store.log_tiles import TileServer
from headwater.store.webhook_store import WebhookStore


def administration(home: Home) -> Administration:
    """The operator's acts on a home's keys, with their trail."""
    return Administration(home.keys, home.ledger, AuditTrail(home.db), home.policy.currency, time.time_ns, os.urandom)


@contextmanager
def operations(home: Home) -> Iterator[list[Routes]]:
    """Native routes for `create_app(more=…)`; while it is open, webhooks leave and SIGHUP reloads upstreams."""
    acts = administration(home)
    path = Path(home.settings.upstreams) if home.settings.upstreams else None

    def read() -> Any:
        assert path is not None
        return read_upstreams(path.read_text("utf-8"), environment=os.environ, folder=path.parent)

    reloader = Reloader(read if path is not None else None, acts.trail, time.time_ns)
    routes: list[Routes] = [admin_routes(acts, reloader), invoice_routes(Invoicing(InvoiceStore(home.db), acts))]
    if home.settings.public_url:
        signer = log_signer(home)
        tile = TileServer(home.log, signer).serve_tile if home.settings.publish_log else None
        name = home.settings.operator_name or home.signer.address
        routes.append(standard_routes(Standards(home.settings.public_url, name, multibase_key(signer.public), tile)))
    sender = WebhookSender(
        WebhookStore(home.db), home.log, home.calls, time.time_ns, allowed=home.settings.webhook_hosts.split()
    )
    routes.append(webhook_routes(sender))
    sender.start()
    before: Any = None
    on_main = threading.current_thread() is threading.main_thread()
    if on_main and hasattr(signal, "SIGHUP"):
        before = signal.signal(signal.SIGHUP, lambda *_: reloader.ask())
    try:
        yield routes
    finally:
        sender.close()
        if before is not None:
            signal.signal(signal.SIGHUP, before)


class JsonLines(logging.Formatter):
    """One JSON object a line; what the gateway logs holds no text of callers, and neither does this."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        fields: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["error"] = record.exc_info[0].__name__
        return msgspec.json.encode(fields).decode()


def log_to_stderr(form: str) -> None:
    """Write the gateway's own lines, a call each, to standard error as ``text`` or ``json``."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    ours = logging.getLogger("headwater")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
