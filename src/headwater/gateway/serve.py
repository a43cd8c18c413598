"""Serves the gateway over HTTP with uvicorn, from the command line or on a thread.

The socket is bound before anything else, so that a taken port is refused at once and a free one (port
0) is known when the server is ready. Request lines are not logged by the server: the gateway writes
its own, without anything a caller sent.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

import uvicorn

from headwater.core.errors import HeadwaterError, InvalidError, UpstreamError
from headwater.gateway.lane import Lane
from headwater.gateway.repeated import RepeatedProtocol
from headwater.gateway.wire import Receive, Scope, Send

if TYPE_CHECKING:
    from headwater.gateway.app import GatewayOptions

HEAD_S: Final = 15.0
"""How long a connection may stay open without a whole request head, new or between two requests."""

GRACE_S: Final = 15
"""How long answers at work may take to finish when the server is told to stop; then they are cut and charged."""

GARBAGE_MAX: Final = 20_000
"""New objects between two collections of the youngest; few of ours are cyclic, reference counts free the rest."""

BACKLOG: Final = 2_048

KEEP_ALIVE_S: Final = 5
"""How long a caller's connection may be idle between two requests."""


class App(Protocol):
    """An application as the server needs it."""

    @property
    def lane(self) -> Lane | None:
        """What takes calls without ASGI in between, if anything does."""
        ...

    @property
    def start_error(self) -> Exception | None:
        """Why its lifespan did not begin."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the lifespan."""
        ...


class Served(App, Protocol):
    """An application that can be served on a thread: the gateway, or the gateway with pages in front of it."""

    @property
    def options(self) -> GatewayOptions:
        """How long it may take to stop."""
        ...


class _Server(uvicorn.Server):
    """Says when it is ready, and stops when it is told to and nothing is to come before it."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        stop: threading.Event | None,
        first: Callable[[], bool] | None,
    ) -> None:
        super().__init__(config)
        self._ready, self._stop, self._first = ready, stop, first
        self._silent: dict[Any, tuple[object, float]] = {}  # connections without a request, and since when

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then the listener, then tell."""
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread():
            _collect_less()
        if self.started:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second."""
        if counter % 10 == 0:
            self._close_silent(time.monotonic())
        asked = await super().on_tick(counter) or (self._stop is not None and self._stop.is_set())
        return asked and (self.force_exit or self._first is None or self._first())

    def _close_silent(self, now_s: float) -> None:
        """Close connections without a request for too long; the server's own timer ends at the first byte."""
        silent: dict[Any, tuple[object, float]] = {}
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                continue  # a request is at work
            known, since_s = self._silent.get(connection, (cycle, now_s))
            if known is not cycle:
                since_s = now_s
            silent[connection] = (cycle, since_s)
            if now_s - since_s > HEAD_S and (transport := getattr(connection, "transport", None)) is not None:
                transport.close()
        self._silent = silent


def _collect_less() -> None:
    """Have a process that only serves collect less. Quicker switching of threads was tried, and costs more CPU."""
    gc.collect()
    gc.freeze()  # what is here now stays: collections need not look at it
    gc.set_threshold(GARBAGE_MAX, 20, 100)


def serve(
    app: App,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ready: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serve until a signal (on the main thread), or until `stop` is set. Blocks.

    Calls at work are finished first, and attribution gets its time; see `GatewayOptions.drain_s`.

    Args:
        port: 0 takes a free one.
        ready: called with the bound port once requests are answered.
        stop: ends the server when set; the way to stop it on a thread.

    Raises:
        InvalidError: ``address_invalid`` or ``port_taken``.
        UpstreamError: ``gateway_not_started``.
    """
    listener = listen(host, port)
    bound: int = listener.getsockname()[1]
    serve_on(app, listener, ready=lambda: ready(bound) if ready else None, stop=stop)


def serve_on(
    app: App,
    listener: socket.socket,
    *,
    ready: Callable[[], None],
    stop: threading.Event | None = None,
    first: Callable[[], bool] | None = None,
    keep_alive_s: int = KEEP_ALIVE_S,
) -> None:
    """Serve on a socket that listens already, and close it in the end; otherwise as `serve`.

    Args:
        ready: called once requests are answered.
        first: asked again and again after the server was told to stop: whether it may by now.
        keep_alive_s: how long a connection may be idle between two requests.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here goes by a caller's address
        http=RepeatedProtocol,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        lifespan="on",
        ws="none",
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=GRACE_S,
        backlog=BACKLOG,
    )
    # Its lines hold paths as sent, with whatever a caller put into them, and any handler would bring them back.
    logging.getLogger("uvicorn.access").disabled = True
    server = _Server(config, ready, stop, first)
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn's way to say that the application did not start
        if server.started:
            raise
        cause = app.start_error
        if isinstance(cause, HeadwaterError):
            raise cause from None
        raise UpstreamError(
            f"the gateway did not start: {type(cause).__name__}",
            code="gateway_not_started",
            fix="run `headwater doctor`",
        ) from cause
    finally:
        listener.close()


@contextlib.contextmanager
def serving(app: Served, host: str = "127.0.0.1", port: int = 0, *, start_timeout_s: float = 60.0) -> Iterator[str]:
    """Serve on a thread while the block runs; gives the base URL, such as ``http://127.0.0.1:40001``.

    Raises:
        HeadwaterError: it did not start; as `serve`.
    """
    begun, stop = threading.Event(), threading.Event()
    outcome: dict[str, Any] = {}

    def ready(bound: int) -> None:
        outcome["port"] = bound
        begun.set()

    def run() -> None:
        try:
            serve(app, host, port, ready=ready, stop=stop)
        except BaseException as error:
            outcome["error"] = error
        finally:
            begun.set()

    thread = threading.Thread(target=run, name="gateway", daemon=True)
    thread.start()
    try:
        if not begun.wait(start_timeout_s):
            raise UpstreamError(f"the gateway did not start within {start_timeout_s:g} s", code="gateway_not_started")
        if "error" in outcome:
            raise outcome["error"]
        yield f"http://{f'[{host}]' if ':' in host else host}:{outcome['port']}"
    finally:
        stop.set()
        thread.join(GRACE_S + app.options.drain_s + 5)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; 0 is any free port.

    Raises:
        InvalidError: ``address_invalid`` or ``port_taken``.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's delay off (40 ms an answer) only where it is.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        return listener
    except OSError as error:
        listener.close()
        taken = f"port {port} of {host} cannot be bound: {error.strerror or error}"
        raise InvalidError(taken, code="port_taken", fix="choose another --port, or 0 for any free one") from None
    except (OverflowError, ValueError, UnicodeError) as error:
        listener.close()
        raise InvalidError(
            f"{host[:80]!r} port {port}: {error}", code="address_invalid", fix="give an address and a port to 65535"
        ) from None
