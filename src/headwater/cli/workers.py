"""The head of several workers: what `headwater serve --workers N` runs around the gateway of a home."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from headwater.cli.home import Home
from headwater.cli.operations import Operations
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.gateway.app import Gateway
from headwater.gateway.serve import BACKLOG, App, serve_on
from headwater.gateway.workers import Behind, Plan, Supervisor
from headwater.gateway.workers.opened import HEAD_SOCKET, LOG_SOCKET, settings_as_json
from headwater.settings import Settings
from headwater.store.log_service import SOCKET_PATH_BYTES_MAX, LogService
from headwater.store.recalls import Recalls

PREFIX = "headwater-"
OWN_BYTES = 44
"""What folder and sockets add to the path of the folder they are in."""

ALIVE = "alive"
"""A file that is locked for as long as the head lives."""

HEAD_KEEP_ALIVE_S = 60
"""How long a worker's connection to the head may be idle: far longer than workers keep them."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that is this user's alone, for the sockets and files of one life of the gateway.

    Those that killed heads left are removed.
    """
    long = len(os.fsencode(tempfile.gettempdir())) > SOCKET_PATH_BYTES_MAX - OWN_BYTES
    place = Path("/tmp" if long else tempfile.gettempdir())
    for left in place.glob(PREFIX + "*"):
        _remove_dead(left)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=place) as made:
        folder = Path(made)
        draft = folder / "locking"
        with draft.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            draft.rename(folder / ALIVE)  # it has this name only while it is locked, or after we died
            yield folder


def _remove_dead(folder: Path) -> None:
    """Remove the folder of a head that is gone; anything else is left alone."""
    with suppress(OSError):
        found = folder.lstat()
        if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
            return
        with (folder / ALIVE).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def check_workers(settings: Settings) -> None:
    """Refuse workers that would have nothing to do.

    Raises:
        InvalidError: ``workers_need_upstreams``.
    """
    if not settings.upstreams:
        raise InvalidError(
            f"{settings.workers} workers and no upstreams: only calls to models of other servers are shared out",
            code="workers_need_upstreams",
            fix="name them with --upstreams FILE, or serve without --workers",
        )


def workers_possible(settings: Settings) -> tuple[bool, str]:
    """Whether the workers of the settings could be started here, and what was found."""
    try:
        check_workers(settings)
        with private_folder() as folder:
            _private_listener(folder / HEAD_SOCKET).close()
    except HeadwaterError as error:
        return False, f"{error.message} [{error.code}]"
    except OSError as error:
        return False, f"no private folder or socket: {error.strerror or error}"
    return True, f"{settings.workers} workers, with their sockets in {folder.parent}"


def serve_head(
    home: Home,
    gateway: Gateway,
    served: App,
    listener: socket.socket,
    folder: Path,
    acts: Operations,
    *,
    rpc_url: str | None,
    ready: Callable[[int], None],
) -> None:
    """Serve `served` behind workers until a signal; blocks.

    Args:
        served: the gateway, or the gateway with pages in front of it.
        listener: the public socket; only workers accept on it.
        folder: private, and of this life alone.
        rpc_url: of the chain, where workers can reach it.
        ready: called with the port once every worker serves.

    Raises:
        UpstreamError: ``gateway_not_started``, ``workers_not_started``.
    """
    relays, file = gateway.relays, acts.file
    assert relays is not None  # see `check_workers`
    assert file is not None
    stop, port = threading.Event(), int(listener.getsockname()[1])
    with ExitStack() as stack:
        service = LogService(home.log, folder / LOG_SOCKET)
        service.start()
        stack.callback(service.close)
        recalls = Recalls(folder, home.calls.run_id)
        stack.callback(recalls.close)
        relays.meter.join(recalls)
        plan = Plan(
            number=0,
            listener=-1,
            folder=str(folder),
            settings=settings_as_json(home.settings),
            policy=home.policy_text,
            upstreams=file.text or file.path.read_text("utf-8"),
            upstreams_folder=str(file.path.parent.resolve()),
            vouchers=gateway.vouchers is not None,
            chain=rpc_url,
            stall_s=gateway.options.stall_s,
            body_timeout_s=gateway.options.body_timeout_s,
        )

        def recover() -> None:
            relays.meter.recover_dead(fence=service.fence)
            gateway.sharing.sweep()

        supervisor = Supervisor(plan, listener, home.settings.workers, recover=recover, lost=stop.set)
        stack.callback(supervisor.stop)
        gateway.metrics.elsewhere = supervisor.elsewhere
        acts.reloader.spread = lambda: supervisor.reload(file.text)
        leaving = threading.Thread(target=supervisor.stop, name="leaving", daemon=True)

        def first() -> bool:
            """Workers end before the head does."""
            if leaving.ident is None:
                leaving.start()
            return not leaving.is_alive()

        def begun() -> None:
            supervisor.start()
            threading.Thread(target=_tell, args=(supervisor, ready, port), name="ready", daemon=True).start()

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _leave)  # the server raises it again when it has stopped
        serve_on(
            Behind(served),
            _private_listener(folder / HEAD_SOCKET),
            ready=begun,
            stop=stop,
            first=first,
            keep_alive_s=HEAD_KEEP_ALIVE_S,
        )
        if supervisor.error is not None and stop.is_set():
            raise supervisor.error


def _private_listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(BACKLOG)
    return listener


def _tell(supervisor: Supervisor, ready: Callable[[int], None], port: int) -> None:
    supervisor.all_ready.wait()
    ready(port)


def _leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    sys.exit(0)
