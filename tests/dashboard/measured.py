"""A site over the toy home, with answers measured and booked, and a client that signs in without a form."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from headwater.dashboard import Site, dashboard_app
from headwater.dashboard.sessions import COOKIE, Sessions
from headwater.flow import CallRequest, Message
from headwater.gateway import create_app
from headwater.models import Sampling
from headwater.models.adapters import AdapterStore
from headwater.receipts import Receipt
from headwater.settings import Settings
from headwater.settle import Settlement
from headwater.store.epoch_store import EpochStore
from toy.home import ToyHome, open_home

BASE = "http://pages.test"


@dataclass
class Measured:
    """The home, its site and its application."""

    home: ToyHome
    site: Site
    app: Any
    sessions: Sessions = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = Sessions.open(self.site)

    def client(self, role: str = "", subject: str = "") -> TestClient:
        """Somebody who has signed in, or nobody in particular."""
        client = TestClient(self.app, base_url=BASE, raise_server_exceptions=False)
        if role:
            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
            scope |= {"scheme": "http", "server": ("pages.test", 80)}
            response = Response()
            self.sessions.sign_in(Request(scope), response, role, subject)
            client.cookies.set(COOKIE, response.headers["set-cookie"].split(";")[0].partition("=")[2])
        return client

    def post(self, client: TestClient, path: str, form: dict[str, Any] | None = None) -> Any:
        """Send a form as a page of the site does; redirects are not followed."""
        page = client.get("/economy" if "headwater" in client.cookies else "/").text
        token = page.partition('name="csrf" content="')[2].partition('"')[0]
        return client.post(path, data={**(form or {}), "csrf": token}, follow_redirects=False)

    def ask(self, *questions: str) -> list[Receipt]:
        """Answer, measure and book questions."""
        found = []
        for question in questions:
            _, key = self.home.key()
            request = CallRequest("toy-grounded", (Message("user", question),), Sampling(12), "sha256:" + "0" * 64)
            opened = self.home.flow.open(request, key)
            for _ in self.home.flow.answer(opened):
                pass
            found.append(self.home.flow.attribute(opened.record.call_id))
        return found

    def people(self) -> list[str]:
        """Everybody whom a receipt pays."""
        accounts = {p.account for entry in self.home.log for p in Receipt.from_bytes(entry.raw).payouts}
        return sorted({a.split(":")[1] for a in accounts if a.startswith(("escrow:", "contributor:"))})


@contextmanager
def measured_site(path: Path, books: Settlement | None = None) -> Iterator[Measured]:
    """A site over a toy home in `path`."""
    with open_home(path / "home") as home:
        parts = home.flow.parts
        site = Site(
            gateway=create_app(home.flow, home.keys),
            folder=home.path,
            settings=Settings(home=home.path),
            db=home.db,
            registry=home.registry,
            ledger=home.ledger,
            keys=home.keys,
            epochs=EpochStore(home.db),
            adapters=AdapterStore(home.path / "adapters"),
            books=books,
            policy_text=lambda _: "",
            now_ns=time.time_ns,
            random_bytes=parts.random_bytes,
        )
        yield Measured(home, site, dashboard_app(site))
