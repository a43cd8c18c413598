"""`headwater serve --workers N` over a home, in processes of its own, and ways to ask a certain worker."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from headwater.cli.home import Home
from headwater.core.money import NANO
from headwater.ledger import deposit
from headwater.settings import Settings
from headwater.store.key_store import KeyRecord
from toy.upstream import Upstream

ASK = [{"role": "user", "content": "Who is paid?"}]
MODELS = ("fine", "slowly", "endless", "status-503")
START_S = 60.0


def models(server: Upstream, *more: str) -> str:
    """An upstreams file with a model for each behaviour, and one that costs a whole unit."""
    tables = "".join(
        f'[model."{name}"]\ntargets = [{{ upstream = "real", model = "{name}" }}]\nrequest_price = "0.001"\n'
        'input_token_price = "0.000001"\noutput_token_price = "0.000002"\nanswer_tokens_max = 100\n'
        for name in (*MODELS, *more)
    )
    return (
        f'[upstream.real]\nbase_url = "{server.url}"\n{tables}'
        '[model.dear]\ntargets = [{ upstream = "real", model = "fine" }]\nrequest_price = "1"\n'
    )


@dataclass
class Gang:
    """Head and workers at work."""

    home: Path
    port: int
    process: subprocess.Popen[str]
    secret: str
    settings: Settings
    lines: Path  # what they said on standard error

    @property
    def url(self) -> str:
        """Where they listen."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, secret: str | None = None) -> openai.OpenAI:
        """OpenAI's own client."""
        return openai.OpenAI(base_url=self.url + "/v1", api_key=secret or self.secret, max_retries=0, timeout=30)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            return asked(connection, method, path, body, self.secret, **headers)
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """The JSON of a route, whatever its status."""
        return json.loads(self.ask("GET", path)[2])

    def line_to(self, worker: str) -> http.client.HTTPConnection:
        """A connection that a certain worker has accepted."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            _, headers, _ = asked(connection, "POST", "/v1/chat/completions", call("fine"), self.secret)
            if headers["x-request-id"].startswith(f"req_{worker}_"):
                return connection
            connection.close()
        raise AssertionError(f"no connection came to {worker}")

    def workers(self) -> dict[str, dict[str, Any]]:
        """How each worker is doing."""
        return {one["name"]: one for one in self.json("/readyz")["workers"]}

    def metric(self, name: str) -> float:
        """A figure of /metrics without labels, or the sum over its labels."""
        text = self.ask("GET", "/metrics")[2].decode()
        rows = [line for line in text.splitlines() if line.startswith((name + " ", name + "{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in rows)

    def key(self, units: int = 100 * NANO) -> tuple[str, KeyRecord]:
        """Another key with credit."""
        with Home(self.settings, create=False) as home:
            return funded(home, units)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Tell the head to stop and wait; its status."""
        self.process.send_signal(number)
        return self.process.wait(40)


def call(model: str, **more: object) -> dict[str, object]:
    """A call's body."""
    return {"model": model, "messages": ASK, "max_tokens": 50, **more}


def asked(
    connection: http.client.HTTPConnection, method: str, path: str, body: object, secret: str, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection: status, headers, body."""
    raw = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, raw, {"authorization": f"Bearer {secret}", **named})
    response = connection.getresponse()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def funded(home: Home, units: int) -> tuple[str, KeyRecord]:
    """A new key with credit, in an open home."""
    secret, key = home.keys.create("a caller", os.urandom(32), time.time_ns())
    draft = deposit(key.account, units, asset=home.policy.currency, cause=f"deposit:{key.key_id}")
    home.ledger.post([draft], key=f"deposit:{key.key_id}", at_ns=time.time_ns())
    return secret, key


@contextmanager
def open_gang(
    folder: Path,
    upstreams: str,
    *,
    workers: int = 2,
    prepare: Callable[[Home], None] = lambda _: None,
    **environment: str,
) -> Iterator[Gang]:
    """Head and workers over a new home in `folder`, with a funded key; checked when they have ended.

    Args:
        prepare: what is done to the home before it is served.
        environment: of all processes, beside the test's own.
    """
    home, file = folder / "home", folder / "upstreams.toml"
    file.write_text(upstreams, "utf-8")
    settings = Settings(home=home, database=environment.get("HEADWATER_DATABASE", ""))
    with Home(settings) as opened:
        opened.signer  # noqa: B018  # made before two could make it
        secret, _ = funded(opened, 100 * NANO)
        prepare(opened)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    lines = folder / "lines"
    command = [sys.executable, "-m", "headwater", "serve", "--home", str(home), "--port", str(port)]
    with lines.open("w") as said:
        process = subprocess.Popen(
            [*command, "--workers", str(workers), "--upstreams", str(file), "--no-local-model"],
            env={**os.environ, "HEADWATER_LOG_FORMAT": "text", "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
    gang = Gang(home, port, process, secret, settings, lines)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "listening" in first, first + lines.read_text()
        yield gang
    finally:
        if process.poll() is None:
            gang.stop()
        assert process.stdout is not None
        process.stdout.close()
    with Home(settings, create=False) as opened:
        assert opened.calls.check() == ()


def wait_for(found: Callable[[], Any], within_s: float = START_S) -> Any:
    """Wait until something is true, and give it."""
    until = time.monotonic() + within_s
    while not (seen := found()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return seen
