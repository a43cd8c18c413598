"""How much of requests' bodies one process holds: each up to a size, all together up to a sum.

A body takes its place before it is read where its length is known, and as it comes where it is not; the place is given
back when its request is over, however it ends. Bodies that a socket's buffer would hold are not counted: connections
bound those, and a few who send slowly cannot shut everybody else out. Whoever has not said yet who pays gets half.
Belongs to one event loop. Knows nothing of HTTP.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from headwater.core.errors import InvalidError, UpstreamError
from headwater.core.limits import REQUEST_SIZE_BYTES_MAX

UNCOUNTED_BYTES: Final = 64 * 2**10
"""A body up to this size has a place at all times."""

TOGETHER_BYTES_MIN: Final = 512 * 2**20
TOGETHER_LARGEST: Final = 16
"""All bodies together may be as large as so many of the largest, and at least `TOGETHER_BYTES_MIN`."""

ASIDE_BYTES: Final = 2**20
"""What is done with a larger body as a whole takes milliseconds, and is done on a thread."""

RETURNED_BYTES: Final = 64 * 2**20
"""Once so much was taken, what the allocator kept of it goes back to the system when the last of it is given back."""


class Room:
    """The room of one process.

    Args:
        body_bytes_max: of one body.
        together_bytes_max: of all of them at once; None: unbounded.
        emptied: called when it is empty after much was taken; must not wait.
    """

    __slots__ = ("_emptied", "_most_bytes", "body_bytes_max", "taken_bytes", "together_bytes_max")

    def __init__(
        self, body_bytes_max: int, together_bytes_max: int | None, emptied: Callable[[], None] = lambda: None
    ) -> None:
        self.body_bytes_max, self.together_bytes_max, self._emptied = body_bytes_max, together_bytes_max, emptied
        self.taken_bytes = self._most_bytes = 0

    def move(self, size_bytes: int) -> None:
        """Take so many bytes more; give back, when it is below 0."""
        self.taken_bytes += size_bytes
        if self.taken_bytes:
            self._most_bytes = max(self._most_bytes, self.taken_bytes)
        elif self._most_bytes > RETURNED_BYTES:
            self._most_bytes = 0
            self._emptied()

    @classmethod
    def of(cls, body_bytes_max: int | None) -> Room:
        """The room for relayed bodies of at most so many bytes; None where nothing is relayed."""
        if body_bytes_max is None:
            return cls(REQUEST_SIZE_BYTES_MAX, None)
        return cls(body_bytes_max, max(TOGETHER_BYTES_MIN, TOGETHER_LARGEST * body_bytes_max), return_memory)

    def fits(self, size_bytes: int) -> bool:
        """Whether a body of that size can have a place now."""
        if size_bytes <= UNCOUNTED_BYTES:
            return True
        together = self.together_bytes_max
        return size_bytes <= self.body_bytes_max and (together is None or self.taken_bytes + size_bytes <= together)

    def place(self, *, known: bool = True) -> Place:
        """A place for one body, nothing taken yet; leave it by `with`.

        Args:
            known: whether it is known who pays.
        """
        return Place(self, known=known)


class Place:
    """What one request's body has taken."""

    __slots__ = ("_known", "_room", "_size_bytes", "_taken_bytes")

    def __init__(self, room: Room, *, known: bool = True) -> None:
        self._room, self._known = room, known
        self._size_bytes = self._taken_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """The body is so large by now, or said to be.

        Raises:
            InvalidError: ``request_too_large``.
            UpstreamError: ``bodies_busy``, the others leave no room for it now.
        """
        room = self._room
        if size_bytes > room.body_bytes_max:
            raise too_large(size_bytes, room.body_bytes_max)
        if size_bytes <= max(self._size_bytes, UNCOUNTED_BYTES):
            return
        more, together = size_bytes - self._taken_bytes, room.together_bytes_max
        if together is not None and room.taken_bytes + more > (together if self._known else together // 2):
            raise UpstreamError(
                f"bodies of {room.taken_bytes} bytes are at work, and this one has {size_bytes}",
                code="bodies_busy",
                fix="try again in a moment",
            )
        room.move(more)
        self._taken_bytes = self._size_bytes = size_bytes

    def give_back(self) -> None:
        """The request is over; any number of times."""
        if self._taken_bytes:
            self._room.move(-self._taken_bytes)
            self._taken_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.give_back()


def return_memory() -> None:
    """Have the allocator give back what it keeps free, on a thread; glibc's does so only when it is told."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        threading.Thread(target=trim, args=(0,), name="trim", daemon=True).start()


def too_large(size_bytes: int, bytes_max: int, what: str = "the body") -> InvalidError:
    """The error for more than is taken."""
    return InvalidError(
        f"{what} has {size_bytes} bytes or more, and {bytes_max} are taken",
        code="request_too_large",
        fix=f"send at most {bytes_max} bytes",
    )
