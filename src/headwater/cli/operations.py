"""What `headwater serve` adds for operators: admin routes, reload, standards' files and webhooks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.cli.home import Home
from headwater.cli.log import log_signer
from headwater.gateway.admin import admin_routes
from headwater.gateway.administration import Administration
from headwater.gateway.invoices import Invoicing, invoice_routes
from headwater.gateway.native import Routes
from headwater.gateway.reload import Reloader, UpstreamsFile
from headwater.gateway.standards import Standards, standard_routes
from headwater.gateway.webhooks import WebhookSender, webhook_routes
from headwater.receipts.content_telemetry import multibase_key
from headwater.store.audit_trail import AuditTrail
from headwater.store.invoice_store import InvoiceStore
from headwater.store.log_tiles import TileServer
from headwater.store.webhook_store import WebhookStore


def administration(home: Home) -> Administration:
    """The operator's acts on a home's keys, with their trail."""
    return Administration(home.keys, home.ledger, AuditTrail(home.db), home.policy.currency, time.time_ns, os.urandom)


@dataclass(frozen=True, slots=True)
class Operations:
    """What an operator does to a gateway that runs."""

    routes: list[Routes]  # for `create_app(more=…)`
    reloader: Reloader
    file: UpstreamsFile | None


@contextmanager
def operations(home: Home) -> Iterator[Operations]:
    """The operator's side of a gateway; while it is open, webhooks leave and SIGHUP reloads upstreams and documents."""
    acts = administration(home)
    file = UpstreamsFile(Path(home.settings.upstreams), os.environ) if home.settings.upstreams else None
    reloader = Reloader(file.read if file is not None else None, acts.trail, time.time_ns)
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
        yield Operations(routes, reloader, file)
    finally:
        sender.close()
        if before is not None:
            signal.signal(signal.SIGHUP, before)
