"""An Ethereum chain inside the process: no node, no network, kept in a folder, readable by other processes.

It is reached in process through `provider()`, and by other processes through `serve()`, a JSON-RPC server
on 127.0.0.1 alone. With a folder it comes back as it was: the journal there is replayed and checked block by
block. Its ten accounts are derived from a seed in the folder; their ether is worth nothing, and so is its
test token. It is a demonstration and test chain: whoever has the folder can write its history.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from headwater.chain.journal import Journal
from headwater.chain.signer import KeySigner, derived_signer
from headwater.core.errors import ConflictError, UpstreamError
from headwater.core.limits import REQUEST_SIZE_BYTES_MAX

if TYPE_CHECKING:
    from web3.providers.base import JSONBaseProvider

ACCOUNTS_COUNT = 10
SEED_SIZE_BYTES = 32
REQUEST_TIMEOUT_S = 10
_HOST = "127.0.0.1"


class EmbeddedChain:
    """A running chain. Use it as a context manager, or `close` it."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        seed: bytes | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Start a chain, or continue the one in `folder`.

        Args:
            folder: where it is kept; without one it lives in memory and can take snapshots.
            seed: 32 bytes that its accounts are derived from; by default the folder's own, or fresh random ones.
            clock_ns: nanoseconds since 1970, for the timestamps of blocks.

        Raises:
            ConflictError: another process has the folder open, or the folder was made with another seed.
            UpstreamError: the journal is damaged, or replaying it gives other blocks.
        """
        from headwater.chain.evm import CHAIN_ID, Evm
        from headwater.chain.rpc import Rpc

        self._journal = None if folder is None else Journal(folder)
        try:
            self._seed = _seed(folder, seed)
            self.accounts: tuple[KeySigner, ...] = tuple(derived_signer(self._seed, i) for i in range(ACCOUNTS_COUNT))
            evm = Evm(tuple(bytes.fromhex(account.address[2:]) for account in self.accounts))
            self._rpc = Rpc(evm, clock_ns, self._journal)
        except BaseException:
            if self._journal is not None:
                self._journal.close()
            raise
        self.chain_id = CHAIN_ID
        self._server: _Server | None = None

    def provider(self) -> JSONBaseProvider:
        """A web3 provider that reaches this chain without a socket."""
        from web3.providers.base import JSONBaseProvider

        rpc = self._rpc

        class InProcess(JSONBaseProvider):
            """Sends the same bytes that an HTTP provider would."""

            def make_request(self, method: Any, params: Any) -> Any:
                return self.decode_rpc_response(rpc.respond(self.encode_rpc_request(method, params)))

            def make_batch_request(self, requests: Any) -> Any:
                return self.decode_rpc_response(rpc.respond(self.encode_batch_rpc_request(requests)))

        return InProcess()

    def serve(self, port: int = 0) -> str:
        """Answer JSON-RPC on 127.0.0.1 in the background; returns the address.

        Args:
            port: 0 takes any free one.

        Raises:
            UpstreamError: the port is taken.
        """
        if self._server is None:
            try:
                self._server = _Server((_HOST, port), self._rpc.respond)
            except OSError as error:
                raise UpstreamError(
                    f"port {port} cannot be opened: {error}", code="port_taken", fix="give another port, or 0 for any"
                ) from None
            threading.Thread(target=self._server.serve_forever, name="embedded-chain", daemon=True).start()
        return f"http://{_HOST}:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop answering and give the folder back."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], respond: Callable[[bytes], bytes]) -> None:
        self.respond = respond
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    """POST with a JSON body, from this machine, addressed to this machine."""

    protocol_version = "HTTP/1.1"
    server_version = "headwater"
    sys_version = ""
    timeout = REQUEST_TIMEOUT_S
    server: _Server

    def do_POST(self) -> None:
        # A web page can make a browser post here: it cannot set this content type without asking first, and a
        # name that was rebound to this machine shows in the Host header.
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in (_HOST, "localhost"):
            return self._answer(403, b'{"error":"unknown host"}')
        if self.headers.get_content_type() != "application/json":
            return self._answer(415, b'{"error":"send application/json"}')
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            return self._answer(411, b'{"error":"send a Content-Length"}')
        if int(length) > REQUEST_SIZE_BYTES_MAX:
            return self._answer(413, b'{"error":"request too large"}')
        return self._answer(200, self.server.respond(self.rfile.read(int(length))))

    def _answer(self, status: int, body: bytes) -> None:
        if status != 200:
            self.close_connection = True  # what is left of the body was not read
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status != 200:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests hold signed transactions."""


def _seed(folder: Path | None, seed: bytes | None) -> bytes:
    """The seed to use; it is kept in the folder from the first start on."""
    path = None if folder is None else folder / "seed"
    if path is None or not path.is_file():
        chosen = os.urandom(SEED_SIZE_BYTES) if seed is None else seed
        if path is not None:
            partial = path.with_suffix(".partial")
            partial.touch(mode=0o600)
            partial.write_text(chosen.hex() + "\n", encoding="ascii")
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        return chosen
    kept = bytes.fromhex(path.read_text(encoding="ascii"))
    if seed is not None and seed != kept:
        raise ConflictError(
            "this chain was made with another seed",
            code="seed_differs",
            fix="leave the seed out, or use another folder",
        )
    return kept
