"""The usual case of the fast lane: a connection that calls again with the head it called with before.

Only the first such request goes through the parser. The next ones are taken by the bytes of their head (`KnownHead`)
and the length in it; their key is looked up each time. Whatever is not exactly the same goes to the parser, as ever.
"""

from __future__ import annotations

from typing import Any, cast

from headwater.core.known_head import KnownHead
from headwater.gateway.errors import Failure
from headwater.gateway.http import HttpProtocol
from headwater.gateway.lane import Lane, LaneCaller

_Headers = tuple[tuple[bytes, bytes], ...]
_Found = tuple[str, bytes, _Headers]
"""The path of a request, the secret of its key, and its headers but for the length."""


class RepeatedProtocol(HttpProtocol):
    """One connection; knows the head of the last request on it that the lane took."""

    _between = True  # no byte of another request has been read
    _given = b""  # to the parser, while it reads a head that began with these bytes
    _missing = 0  # bytes of a body that come without the parser

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._missing:
            self._take(data)
            return
        if self._between:
            if self._known is not None and self._again(self._known, self._lane, data):
                return
            self._given = data
        super().data_received(data)
        self._given = b""

    def connection_made(self, transport: Any) -> None:
        """The socket is open."""
        super().connection_made(transport)
        self._known: KnownHead[_Found] | None = None if self._lane is None else KnownHead()

    # The parser's side

    def on_message_begin(self) -> None:
        """A request begins."""
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        given, self._given = self._given, b""
        super().on_headers_complete()
        caller = self._collecting
        if given and caller is not None and self._known is not None and self._known.learning:
            length = next(value for name, value in caller.headers if name == b"content-length")
            secret = next(value[7:] for name, value in caller.headers if name == b"authorization")
            headers = tuple(pair for pair in caller.headers if pair[0] != b"content-length")
            self._known.learn(given, length, (caller.path, secret, headers))

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._between = True
        super().on_message_complete()

    def _refuse(self, failure: Failure) -> None:
        self._known = None  # nothing more is read of this connection
        super()._refuse(failure)

    # Without it

    def _again(self, known: KnownHead[_Found], lane: Lane | None, data: bytes) -> bool:
        """Take a request whose head is the last one's; False when it is another, or cannot be taken now."""
        at = known.match(data)
        if at is None or lane is None or known.found is None:
            return False
        size, start = at
        if not lane.room.fits(size) or not (self.cycle is None or self.cycle.response_complete):
            return False
        path, secret, headers = known.found
        key = lane.known(secret)
        if key is None or self.transport.is_closing():
            return False
        self._unset_keepalive_if_required()
        caller = LaneCaller(lane, self, path, (*headers, (b"content-length", b"%d" % size)), key, size)
        self._collecting = self._at_work = caller
        self.cycle = cast(Any, caller)
        self._missing = size
        self._take(data[start:])
        if self._missing:
            caller.timer = self.loop.call_later(lane.body_timeout_s, self._late, caller)
        return True

    def _take(self, data: bytes) -> None:
        """The body of such a request, or the rest of it; what comes behind it is another request."""
        caller, missing = self._collecting, self._missing
        rest = b""
        if len(data) > missing:
            data, rest = data[:missing], data[missing:]
        self._missing = missing - len(data)
        if caller is not None:  # otherwise it came too late, and the connection is being closed
            caller.add(data)
            if not self._missing:
                self._complete(caller)
        if rest:
            self.data_received(rest)
