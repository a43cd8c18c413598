"""A running gateway over a toy home, on real loopback HTTP, and ways to talk to it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from headwater.gateway import Gateway, GatewayOptions, create_app, serving
from headwater.gateway.native import Routes
from headwater.store.key_store import KeyRecord
from toy.home import Engine, ToyHome, open_home


@dataclass
class Desk:
    """A running gateway, its home, a funded key and where to find it."""

    toy: ToyHome
    app: Gateway
    url: str
    secret: str
    key: KeyRecord

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])

    def client(self, secret: str | None = None, **options: object) -> openai.OpenAI:
        """OpenAI's own client, which does not retry unless it is told to."""
        settings: dict[str, object] = {"max_retries": 0, "timeout": 30, **options}
        return openai.OpenAI(base_url=self.url + "/v1", api_key=secret or self.secret, **settings)  # type: ignore[arg-type]

    def post(self, body: object, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions") -> Any:
        """A request without the client, as the bytes are; an error status raises HTTPError."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json", **(headers or {})}
        return urllib.request.urlopen(urllib.request.Request(self.url + path, raw, given), timeout=20)

    def get(self, path: str, secret: str | None = None) -> Any:
        """The JSON of a route, asked with a key."""
        headers = {"Authorization": f"Bearer {secret or self.secret}"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=20) as response:
            return json.load(response)

    def settled(self) -> None:
        """Wait until every answered call has its receipt."""
        until = time.monotonic() + 20
        while self.app.answering.state().generating + self.app.answering.state().waiting:
            assert time.monotonic() < until
            time.sleep(0.005)
        assert self.app.worker.wait_idle(20)

    def booked(self) -> None:
        """Wait until no relayed call is at work, then bring the books up."""
        assert self.app.relays is not None
        meter = self.app.relays.meter
        until = time.monotonic() + 10
        while meter.state().held or meter.state().waiting:
            assert time.monotonic() < until, meter.state()
            time.sleep(0.005)
        meter.settle_books()


@contextmanager
def open_desk(
    home: Path,
    engine: Engine | None = None,
    upstreams: str | None = None,
    more: Sequence[Routes] = (),
    **options: float,
) -> Iterator[Desk]:
    """A running gateway over `home`, with the upstreams that a TOML names, and more native routes."""
    with open_home(home, engine) as toy:
        secret, key = toy.key()
        relays = None if upstreams is None else toy.relays(upstreams)
        app = create_app(toy.flow, toy.keys, options=GatewayOptions(**options), relays=relays, more=more)  # type: ignore[arg-type]
        with serving(app) as url:
            try:
                yield Desk(toy, app, url, secret, key)
            finally:
                toy.model.held.set()
        assert toy.calls.check() == ()
