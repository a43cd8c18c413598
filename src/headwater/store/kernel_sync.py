"""Syncing a file without waiting for it: the kernel does it, and an event loop is told through a descriptor.

A thread that only waits for the disk costs an interpreter far more than the wait: it is woken, asks for the one lock
all Python runs under, and wakes the loop in turn. Linux syncs on its own (`io_submit` with IOCB_CMD_FDSYNC, since 4.18)
and counts an eventfd up when it is done. Where that is not there (another system, a sandbox that forbids it)
`KernelSync.open` gives None, and a thread does the waiting.

One sync at a time. Knows nothing of what is in the file.
Source: Linux, include/uapi/linux/aio_abi.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from typing import Any, Final

_CALLS: Final = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
"""Numbers of io_setup, io_destroy, io_getevents and io_submit, by machine."""

_FDSYNC: Final = 3
_TELL: Final = 1  # IOCB_FLAG_RESFD


class _Request(ctypes.Structure):
    """struct iocb, as little-endian machines have it."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("handle", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("told", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """struct io_event."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class KernelSync:
    """Syncs files for one event loop. Use `KernelSync.open`."""

    def __init__(self, system: Any, context: ctypes.c_ulong, calls: tuple[int, int, int, int]) -> None:
        self._system, self._context = system, context
        _, self._destroy, self._collect, self._submit = calls
        self.told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when a sync is done."""

        self._request = _Request(opcode=_FDSYNC, flags=_TELL, told=self.told)
        self._requests = (ctypes.c_void_p * 1)(ctypes.addressof(self._request))
        self._events = (_Event * 1)()

    @classmethod
    def open(cls) -> KernelSync | None:
        """One for this process, or None where the kernel does not do it."""
        calls = _CALLS.get(platform.machine())
        if calls is None or not sys.platform.startswith("linux") or sys.byteorder != "little":
            return None
        # PyDLL keeps the interpreter's lock: giving it up costs more than these calls, none of which waits.
        system, context = ctypes.PyDLL(None, use_errno=True).syscall, ctypes.c_ulong(0)
        if system(calls[0], 2, ctypes.byref(context)) != 0:
            return None
        return cls(system, context, calls)

    def begin(self, handle: int) -> bool:
        """Begin to make what was written to `handle` durable, as fdatasync does; whether the kernel takes it on."""
        self._request.handle = handle
        return bool(self._system(self._submit, self._context, 1, self._requests) == 1)

    def ended(self) -> OSError | None:
        """What became of the sync that was begun. Waits for it, unless `told` was readable."""
        while (count := self._system(self._collect, self._context, 1, 1, self._events, None)) != 1:
            if count >= 0 or ctypes.get_errno() != errno.EINTR:
                return OSError(errno.EIO, "the kernel does not say how a sync ended")
        os.eventfd_read(self.told)
        result = self._events[0].result
        return None if result == 0 else OSError(-result, os.strerror(-result))

    def close(self) -> None:
        """Give it back; a sync under way is waited for."""
        self._system(self._destroy, self._context)
        os.close(self.told)
