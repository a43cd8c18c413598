"""Requests on their way from a worker to the head, and responses on their way back: what is kept of their heads.

A head is never copied: the request line is written from what was parsed, fields that belong to one connection are
left out, and how long a body is is said once, by us. Trailers are dropped. Who the caller is travels in one field,
which is taken out of everything that comes from outside. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headwater.core.errors import InvalidError

CALLER: Final = b"headwater-caller"
"""The field that says who the caller is; believed on the head's own socket alone."""

Headers = tuple[tuple[bytes, bytes], ...]

_ONE_CONNECTION: Final = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings"),
    )
)
"""Fields of one connection; none of them goes on (RFC 9110, 7.6.1)."""

_OURS: Final = frozenset((b"content-length", b"expect", CALLER))
"""Fields that are written anew where they are needed."""

_KEPT: Final = frozenset((b"host", b"authorization", b"content-type", b"content-encoding"))
"""Fields that nobody can have taken out by naming them in `Connection`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, as the server that accepted it knows."""

    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    scheme: str

    def to_field(self) -> bytes:
        """The value of the field that carries it."""
        return msgspec.json.encode([self.client, self.server, self.scheme])

    @classmethod
    def from_field(cls, value: bytes) -> Origin:
        """What `to_field` wrote.

        Raises:
            InvalidError: ``caller_invalid``: it did not.
        """
        try:
            client, server, scheme = msgspec.json.decode(
                value, type=tuple[tuple[str, int] | None, tuple[str, int | None] | None, str]
            )
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidError(
                f"not a caller: {str(error)[:100]}", code="caller_invalid", fix="ask through a worker"
            ) from None
        return cls(client, server, scheme)


@dataclass(frozen=True, slots=True)
class Body:
    """How a request's body is framed."""

    length: int | None  # bytes; None for one whose length is not known before its end
    awaited: bool = False  # the caller sends it only when it is told to go on

    @property
    def empty(self) -> bool:
        """Whether there is none."""
        return self.length == 0


def body_of(headers: Sequence[tuple[bytes, bytes]]) -> Body:
    """How the body of a request that was parsed is framed: by chunks if it says so, else by its length, else none.

    Raises:
        InvalidError: ``request_ambiguous``: two lengths, a length beside chunks, another coding, or no number.
    """
    lengths = {value.strip() for name, value in headers if name == b"content-length"}
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    awaited = any(name == b"expect" and value.strip().lower() == b"100-continue" for name, value in headers)
    if len(lengths) > 1 or (lengths and codings):
        raise _ambiguous("its body has more than one length")
    if codings:
        if codings != [b"chunked"]:
            raise _ambiguous("its body is coded otherwise than in chunks")
        return Body(None, awaited)
    if not lengths:
        return Body(0)
    (length,) = lengths
    if not length.isdigit() or len(length) > 18:
        raise _ambiguous("the length of its body is no number")
    return Body(int(length), awaited)


def request_head(scope: Mapping[str, Any], body: Body) -> bytes:
    """The head of a request to the head process.

    Args:
        scope: ASGI's, of the request that is passed on.
        body: how the body is framed that will follow.
    """
    target: bytes = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    lines = [b"%b %b HTTP/1.1\r\n" % (scope["method"].encode("ascii"), target)]
    lines += [b"%b: %b\r\n" % pair for pair in end_to_end(scope["headers"])]
    if body.length is None:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif body.length or scope["method"] in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d\r\n" % body.length)
    if body.awaited and not body.empty:
        lines.append(b"expect: 100-continue\r\n")
    origin = Origin(scope.get("client"), scope.get("server"), scope.get("scheme", "http"))
    lines.append(b"%b: %b\r\n\r\n" % (CALLER, origin.to_field()))
    return b"".join(lines)


def response_headers(headers: Headers) -> Headers:
    """The fields of a response that go on to the caller; a length stays, the date is the server's that sends it."""
    lengths = tuple(pair for pair in headers if pair[0] == b"content-length")
    return (*(pair for pair in end_to_end(headers) if pair[0] != b"date"), *lengths[:1])


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Fields that go on, names in lower case: without those of one connection, those it names, and ours."""
    headers = tuple(headers)
    named = {
        token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")
    } - _KEPT
    return tuple(pair for pair in headers if pair[0] not in _ONE_CONNECTION | _OURS and pair[0] not in named)


def _ambiguous(what: str) -> InvalidError:
    return InvalidError(f"the request cannot be passed on: {what}", code="request_ambiguous", fix="send one length")
