"""Pages over a toy home on real loopback HTTP, and a visitor with cookies who follows forms as a browser would."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from headwater.dashboard import Site, dashboard_app, front
from headwater.gateway import Gateway, create_app, serving
from headwater.gateway.standards import Standards, standard_routes
from headwater.models.adapters import AdapterStore
from headwater.settings import Settings
from headwater.splits import Policy
from headwater.store.database import Database
from headwater.store.epoch_store import EpochStore
from headwater.store.key_store import KeyRecord, KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.registry_store import RegistryStore
from toy.home import ToyHome, open_home


@dataclass
class Reply:
    """What a visitor was given."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def elements(self) -> list[tuple[str, dict[str, str | None]]]:
        """Every start tag with its attributes."""
        parser = _Elements()
        parser.feed(self.text)
        return parser.found


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@dataclass
class Visitor:
    """Somebody with a browser: keeps cookies, sends forms with the token of the page they are on."""

    url: str
    cookies: dict[str, str] = field(default_factory=dict)
    csrf: str = ""

    def get(self, path: str, **headers: str) -> Reply:
        """A page."""
        return self._ask("GET", path, None, headers)

    def post(self, path: str, fields: Mapping[str, str] | None = None, **headers: str) -> Reply:
        """A form, with the token of the last page."""
        given = {"csrf": self.csrf, **(fields or {})}
        headers = {"content-type": "application/x-www-form-urlencoded", **headers}
        return self._ask("POST", path, urlencode(given).encode(), headers)

    def send(self, path: str, value: object, **headers: str) -> Reply:
        """A script's JSON, with the token in a header."""
        headers = {"content-type": "application/json", "x-csrf-token": self.csrf, **headers}
        return self._ask("POST", path, json.dumps(value).encode(), headers)

    def sign_in_by_key(self, secret: str) -> Reply:
        """Sign in as a caller."""
        self.get("/sign-in")
        return self.post("/sign-in/key", {"key": secret})

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.netloc, timeout=30)
        sent = {"cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items()), **headers}
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in sent.items()})
        response = connection.getresponse()
        reply = Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        for line in response.headers.get_all("set-cookie") or ():
            name, _, value = line.partition(";")[0].partition("=")
            if "Max-Age=0" in line or value in ("", '""'):
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        connection.close()
        found = re.search(r'<meta name="csrf" content="([^"]+)"', reply.text if _is_html(reply) else "")
        if found:
            self.csrf = found[1]
        return reply


def _is_html(reply: Reply) -> bool:
    return reply.headers.get("content-type", "").startswith("text/html") and "content-encoding" not in reply.headers


@dataclass
class PagesSite:
    """A running site over a toy home."""

    toy: ToyHome
    app: Gateway
    site: Site
    url: str
    secret: str
    key: KeyRecord
    clock_ns: list[int]  # added to the time that the pages see

    def visitor(self) -> Visitor:
        """Somebody new."""
        return Visitor(self.url)

    def caller(self, secret: str | None = None) -> Visitor:
        """Somebody who has signed in with a key."""
        who = self.visitor()
        reply = who.sign_in_by_key(secret or self.secret)
        assert reply.status == 303, reply.text
        who.get("/ask")  # its token is that of the new session
        return who

    def ask(self, who: Visitor, question: str, model: str = "toy-grounded", tokens: int = 24) -> str:
        """Ask on the page and wait for the receipt; gives the call."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "stream": True,
        }
        reply = who.send("/ask/stream", body)
        assert reply.status == 200, reply.text
        call = reply.headers["headwater-receipt"]
        until = time.monotonic() + 30
        while self.toy.calls.get(call).receipt_id is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        return call


@contextmanager
def open_pages(home: Path, **settings: Any) -> Iterator[PagesSite]:
    """Pages over the toy home at `home`."""
    with open_home(home) as toy, Database(home / "headwater.db") as db:
        secret, key = toy.key()
        app = create_app(toy.flow, toy.keys, more=[standard_routes(Standards("https://ai.example", "An operator"))])
        clock_ns = [0]
        site = Site(
            gateway=app,
            folder=home,
            settings=replace(Settings(home=home), **settings),
            db=db,
            registry=RegistryStore(db),
            ledger=Ledger(db),
            keys=KeyStore(db),
            epochs=EpochStore(db),
            adapters=AdapterStore(home / "adapters"),
            books=None,
            policy_text=lambda digest: _text(toy.flow.parts.policy, digest),
            now_ns=lambda: time.time_ns() + clock_ns[0],
            random_bytes=os.urandom,
        )
        with serving(front(app, dashboard_app(site))) as url:
            yield PagesSite(toy, app, site, url, secret, key, clock_ns)


def _text(policy: Policy, digest: str) -> str:
    assert digest == policy.digest
    value = policy.to_json()
    lines, discounts = value.pop("lines"), value.pop("grade_discount_bps")
    text = "".join(f"{k} = {json.dumps(v)}\n" for k, v in value.items()) + "[grade_discount_bps]\n"
    text += "".join(f"{k} = {v}\n" for k, v in discounts.items())
    return text + "".join(
        "[[lines]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in line.items()) for line in lines
    )
