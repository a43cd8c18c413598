"""Heads of HTTP messages that come again on one connection: what a parser found in the last one holds for the next.

A client that calls over and over sends the same head but for the length of the body, and so does a server. Where
the bytes are the same around that number, parsing them again would say the same; so the parser reads the first of them
and this remembers it. One head for a connection, kept as long as the connection is.
"""

from __future__ import annotations

import re
from typing import Final, Generic, TypeVar

Found = TypeVar("Found")

VAIN_MAX: Final = 8
"""Heads in a row that were remembered for nothing, as of a client that numbers its requests: then it is left."""

_DIGITS_MAX: Final = 9
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})(?=\r\n)", re.IGNORECASE)


class KnownHead(Generic[Found]):
    """The last head of a connection, and what was found in it."""

    __slots__ = ("_after", "_before", "_vain", "found")

    def __init__(self) -> None:
        self._before = self._after = b""  # around the digits of the length; the second ends with the head
        self._vain = 0
        self.found: Found | None = None

    @property
    def learning(self) -> bool:
        """Whether it is worth telling it of heads: not where they never came again."""
        return self._vain < VAIN_MAX

    def match(self, data: bytes) -> tuple[int, int] | None:
        """Whether bytes begin with this head, all of it: (length of the body, where the body begins)."""
        before = self._before
        if not before or not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + _DIGITS_MAX + 1)
        if end < 0 or not data[start:end].isdigit() or not data.startswith(self._after, end):
            return None
        self._vain = 0
        return int(data[start:end]), end + len(self._after)

    def learn(self, data: bytes, length: bytes, found: Found) -> None:
        """Remember the head that bytes begin with, if all of it is there.

        Args:
            data: as it was given to the parser, which took it for the beginning of a message.
            length: the one length of the body that the parser found, in digits.
            found: whatever else it found.
        """
        if not self.learning:
            return
        self._vain += 1
        self._before, self.found = b"", None
        end = data.find(b"\r\n\r\n")
        match = _LENGTH.search(data, 0, end + 2) if end >= 0 else None
        if match is not None and match[1] == length:
            self._before, self._after, self.found = data[: match.start(1)], data[match.end() : end + 4], found
