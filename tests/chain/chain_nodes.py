"""An anvil node, and a proxy in front of any node that behaves badly when it is told to."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Rule = Callable[[str, list[Any], Callable[[], Any]], Any]
"""(method, params, ask the real node for its result) -> result; raises `Silence` to hang up without an answer."""


class Silence(Exception):
    """The proxy closes the connection."""


class Refusal(Exception):
    """The proxy answers with this JSON-RPC error."""


def ask(url: str, method: str, *params: Any) -> Any:
    """The result of one JSON-RPC call."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.loads(answer.read())
    if "error" in found:
        raise Refusal(found["error"])
    return found["result"]


class Proxy:
    """A JSON-RPC server on loopback that asks another one, unless its rule says otherwise."""

    def __init__(self, upstream: str) -> None:
        self.rule: Rule | None = None
        self.seen: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                method, params = request["method"], request.get("params", [])
                outer.seen.append(method)
                answer = {"jsonrpc": "2.0", "id": request["id"]}
                try:
                    real = lambda: ask(upstream, method, *params)  # noqa: E731
                    answer["result"] = outer.rule(method, params, real) if outer.rule else real()
                except Silence:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                except Refusal as refusal:
                    error = refusal.args[0]
                    answer["error"] = error if isinstance(error, dict) else {"code": -32000, "message": error}
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def anvil(folder: Path, *, chain_id: int = 31_337, mining: bool = True, more: tuple[str, ...] = ()) -> Iterator[str]:
    """An anvil process on a free port; the test is skipped where there is none."""
    binary = _binary()
    if binary is None:
        pytest.skip("no anvil: npm install @foundry-rs/anvil into a folder and name it in HEADWATER_ANVIL")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--port", str(port), "--chain-id", str(chain_id), "--silent", "--accounts", "1", *more]
    process = subprocess.Popen([str(binary), *arguments, *([] if mining else ["--no-mining"])], cwd=folder)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


def _binary() -> Path | None:
    named = os.environ.get("HEADWATER_ANVIL")
    if named:
        root = Path(named)
        if root.is_file():
            return root
        return next((path for path in sorted(root.glob("**/bin/anvil*")) if os.access(path, os.X_OK)), None)
    found = shutil.which("anvil")
    return Path(found) if found else None
