"""The receipt log for the processes that do not own it: they hand receipts in, this process appends them.

One thread for each connection calls `ReceiptLog.append_each`, so all processes' receipts share its syncs, and a
receipt is acknowledged when it is on the disk. A connection belongs to a run (one life of one process): `fence` ends a
run's appending for good, and when it returns nothing of that run is under way. That is what makes recovery safe: after
it the log has all receipts of a dead process that it will ever have, those included that it sent in its last moment.

A peer cannot hurt the log: the socket is its owner's alone, in a folder of the same kind; frames are bounded and
read in bounded time; what is no request ends its connection. Knows nothing of what receipts say or pay.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, UpstreamError
from headwater.store.log_wire import (
    VERSION,
    Answer,
    Append,
    Appended,
    Fault,
    Hello,
    Request,
    Size,
    fault_of,
    read_request,
    send_frame,
)
from headwater.store.receipt_admission import Entry
from headwater.store.receipt_log import ReceiptLog

CONNECTIONS_MAX: Final = 256
FRAME_S: Final = 30.0
"""In which a frame that has begun must be whole, and an answer taken."""

SOCKET_PATH_BYTES_MAX: Final = 107
"""What the kernel takes for the path of a Unix socket."""

_log = logging.getLogger("headwater.log")


class LogService:
    """Serves `log` at `path`. Start it before those who append, close it before the log.

    Args:
        path: of the socket; its folder must be its owner's alone.
        frame_s: how long a peer may take over a frame.
    """

    def __init__(self, log: ReceiptLog, path: Path, *, frame_s: float = FRAME_S) -> None:
        self._log, self.path, self._frame_s = log, path, frame_s
        self._gate = threading.Lock()  # guards the two below
        self._open: set[_Connection] = set()
        self._fenced: set[str] = set()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen from now on.

        Raises:
            InvalidError: ``socket_path_too_long``, ``socket_folder_open`` when others may enter its folder.
            ConflictError: ``socket_in_use``, something is at the path.
            UpstreamError: ``socket_unopenable``.
        """
        if len(os.fsencode(self.path)) > SOCKET_PATH_BYTES_MAX:
            raise InvalidError(
                f"a socket at {self.path}", code="socket_path_too_long", fix="set TMPDIR to a shorter path"
            )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if self.path.parent.stat().st_mode & 0o077:
                raise InvalidError(
                    f"{self.path.parent} may be entered by others", code="socket_folder_open", fix="make it with 0700"
                )
            listener.bind(os.fspath(self.path))
            self.path.chmod(0o600)
            listener.listen(CONNECTIONS_MAX)
        except OSError as error:
            listener.close()
            if self.path.exists():
                raise ConflictError(
                    f"something is at {self.path}", code="socket_in_use", fix="give every gateway a folder of its own"
                ) from error
            raise UpstreamError(
                f"no socket at {self.path}: {error.strerror}", code="socket_unopenable", fix="check its folder"
            ) from error
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._thread = threading.Thread(target=self._accept, args=(listener,), name="log service", daemon=True)
        self._thread.start()

    def connections(self) -> int:
        """Processes that are connected and have said who they are."""
        with self._gate:
            return len({one.run_id for one in self._open if one.run_id is not None})

    def fence(self, run_id: str) -> None:
        """End a run's appending for good. When this returns, nothing of it is under way any more."""
        with self._gate:
            self._fenced.add(run_id)
            ended = [one for one in self._open if one.run_id == run_id]
        for one in ended:
            with one.appending:  # whoever has it now is appending; whoever comes later finds the fence
                one.end()

    def close(self) -> None:
        """Accept nobody any more and end every connection; what is being appended is finished first."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        listener.close()
        self.path.unlink(missing_ok=True)
        with self._gate:
            left = list(self._open)
        for one in left:
            with one.appending:
                one.end()
        for one in left:
            one.thread.join()

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is not None:
            try:
                sock, _ = listener.accept()
            except OSError:
                if self._listener is not None:
                    _log.exception("the log's socket takes no more connections")
                return
            with self._gate:
                welcome = len(self._open) < CONNECTIONS_MAX and _is_ours(sock)
                if welcome:
                    one = _Connection(sock)
                    one.thread = threading.Thread(target=self._serve, args=(one,), name="log peer", daemon=True)
                    self._open.add(one)
            if welcome:
                one.thread.start()
            else:
                sock.close()

    def _serve(self, one: _Connection) -> None:
        """The thread of one connection."""
        try:
            while (request := read_request(one.sock, self._frame_s)) is not None:
                send_frame(one.sock, self._answer(one, request))
        except InvalidError as error:
            _log.warning("a peer of the log is let go: %s", error.message[:200])
            with suppress(OSError):
                send_frame(one.sock, fault_of(error))
        except OSError:
            pass  # it has gone, or is too slow
        finally:
            with self._gate:
                self._open.discard(one)
            one.end()
            one.sock.close()

    def _answer(self, one: _Connection, request: Request) -> Answer:
        if isinstance(request, Hello):
            return self._greet(one, request)
        if one.run_id is None:
            raise InvalidError("a request before the greeting", code="frame_invalid", fix="send who asks first")
        if isinstance(request, Append):
            return self._append(one, request.receipts)
        return Size(len(self._log))

    def _greet(self, one: _Connection, hello: Hello) -> Answer:
        if hello.version != VERSION:
            return fault_of(
                ConflictError(
                    f"the log is served in version {VERSION}, asked for {hello.version}",
                    code="log_version_other",
                    fix="start the gateway again, so that all its processes are of one version",
                )
            )
        with self._gate:
            one.run_id = hello.run_id
        return Size(len(self._log))

    def _append(self, one: _Connection, receipts: list[tuple[bytes, str]]) -> Answer:
        with one.appending:
            with self._gate:
                fenced = one.run_id in self._fenced
            if fenced:
                return fault_of(
                    ConflictError(
                        "this run was taken for dead and recovered", code="run_fenced", fix="end this process"
                    )
                )
            if not receipts:
                return Appended([])
            try:
                outcomes = self._log.append_each(receipts)
            except HeadwaterError as error:
                return fault_of(error)
            except Exception:
                _log.exception("receipts of %s could not be appended", one.run_id)
                return Fault("InvariantError", "log_failed", "the log's process failed to append", None)
        return Appended([one.index if isinstance(one, Entry) else fault_of(one) for one in outcomes])


class _Connection:
    """A peer: its socket, its thread, and which run it is once it has said so."""

    __slots__ = ("appending", "run_id", "sock", "thread")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.thread: threading.Thread
        self.run_id: str | None = None
        self.appending = threading.Lock()

    def end(self) -> None:
        """Wake whoever reads from it or writes to it."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


def _is_ours(sock: socket.socket) -> bool:
    """Whether the peer runs as this user; the folder's permissions say so too, and root may enter any."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", said)[1]) == os.geteuid()
