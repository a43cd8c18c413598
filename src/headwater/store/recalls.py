"""Credit that another process holds and does not use is asked back: a datagram with the payer's key id.

Each process of a gateway has a socket in the private folder. Whoever cannot lease enough asks all others, who give
back what they hold of that payer and have not promised. A datagram that is lost costs a repetition, never money: what
is leased, given back and taken is decided in the books alone.

Knows nothing of leases.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from headwater.core.errors import InvalidError, UpstreamError
from headwater.store.log_service import SOCKET_PATH_BYTES_MAX
from headwater.store.runs import run_mark

KEY_ID_BYTES_MAX: Final = 200
_BEGIN: Final = "recall-"


class Recalls:
    """This process among those that share `folder`, which is its owner's alone.

    Raises:
        InvalidError: ``socket_path_too_long``.
        UpstreamError: ``socket_unopenable``.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder, self._path = folder, folder / (_BEGIN + run_mark(run_id))
        if len(os.fsencode(self._path)) > SOCKET_PATH_BYTES_MAX:
            raise InvalidError(
                f"a socket at {self._path}", code="socket_path_too_long", fix="set TMPDIR to a shorter path"
            )
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._thread: threading.Thread | None = None
        self._closed = False
        try:
            self._sock.bind(os.fspath(self._path))
            self._path.chmod(0o600)
        except OSError as error:
            self._sock.close()
            raise UpstreamError(
                f"no socket at {self._path}: {error.strerror}", code="socket_unopenable", fix="check its folder"
            ) from error

    def ask(self, key_id: str) -> int:
        """Ask all others for what they hold of a payer and do not use; how many were asked."""
        asked = 0
        for path in self._folder.glob(_BEGIN + "*"):
            if path == self._path:
                continue
            try:
                self._sock.sendto(key_id.encode(), socket.MSG_DONTWAIT, os.fspath(path))
                asked += 1
            except ConnectionRefusedError:
                with suppress(OSError):
                    path.unlink()  # of a process that died
            except OSError:
                pass  # it has just gone, or has been asked enough for now
        return asked

    def listen(self, told: Callable[[str], object]) -> None:
        """Have `told` called, on a thread of its own, with the key id of each payer that is asked for."""
        self._thread = threading.Thread(target=self._wait, args=(told,), name="recalls", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear no more; what is being told is finished first."""
        if self._closed:
            return
        self._closed = True
        self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self._sock.close()

    def _wait(self, told: Callable[[str], object]) -> None:
        while not self._closed:
            try:
                said = self._sock.recv(KEY_ID_BYTES_MAX)
            except OSError:
                return
            if said and not self._closed:
                told(said.decode("utf-8", "replace"))
