"""The words in which a worker has its receipts appended by the process that owns the log: frames over a Unix socket.

A frame is its length (4 bytes, most significant first) and that much MessagePack: one array, its first item says what
it is. A connection begins with `Hello`; then each request is answered before the next is read. An error travels as
its class, code, message and fix and is raised again as what it was. Both ends are of one installation: another
version is refused, never guessed at.

Knows nothing of who appends what.
"""

from __future__ import annotations

import socket
from typing import Final, TypeVar

import msgspec

from headwater.core import errors
from headwater.core.errors import HeadwaterError, InvalidError, UpstreamError
from headwater.core.limits import RECEIPT_SIZE_BYTES_MAX

VERSION: Final = 1
FRAME_BYTES_MAX: Final = 16 * RECEIPT_SIZE_BYTES_MAX
"""Longest frame that is read; senders divide what would be longer."""

_LENGTH_BYTES: Final = 4


class Hello(msgspec.Struct, array_like=True, tag="hello", frozen=True):
    """Who connects; answered by `Size`."""

    version: int
    run_id: str


class Append(msgspec.Struct, array_like=True, tag="append", frozen=True):
    """Receipts to store, (canonical bytes, signature) each; answered by `Appended`."""

    receipts: list[tuple[bytes, str]]


class Count(msgspec.Struct, array_like=True, tag="count", frozen=True):
    """How many receipts are there? Answered by `Size`."""


class Fault(msgspec.Struct, array_like=True, tag="fault", frozen=True):
    """An error, of one receipt or of a whole request."""

    kind: str  # name of its class in core.errors
    code: str
    message: str
    fix: str | None


class Appended(msgspec.Struct, array_like=True, tag="appended", frozen=True):
    """Where each receipt stands, or why it does not."""

    outcomes: list[int | Fault]


class Size(msgspec.Struct, array_like=True, tag="size", frozen=True):
    """How many receipts the log holds."""

    size: int


Words = TypeVar("Words")
Request = Hello | Append | Count
Answer = Appended | Size | Fault

_KINDS: Final[dict[str, type[HeadwaterError]]] = {
    kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HeadwaterError)
}
_encode: Final = msgspec.msgpack.Encoder().encode
_requests: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_answers: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)


def fault_of(error: HeadwaterError) -> Fault:
    """An error as it travels: as the nearest of the classes of core.errors."""
    kind = next(base.__name__ for base in type(error).__mro__ if base.__name__ in _KINDS)
    return Fault(kind, error.code, error.message, error.fix)


def error_of(fault: Fault) -> HeadwaterError:
    """What `fault_of` was given, to be raised; of a class nobody knows, an `UpstreamError`."""
    return _KINDS.get(fault.kind, UpstreamError)(fault.message, code=fault.code, fix=fault.fix)


def send_frame(sock: socket.socket, words: Request | Answer) -> None:
    """Send one frame.

    Raises:
        OSError: the other end has gone, or reads nothing for as long as the socket's time allows.
    """
    body = _encode(words)
    sock.sendall(len(body).to_bytes(_LENGTH_BYTES, "big") + body)


def read_request(sock: socket.socket, frame_s: float) -> Request | None:
    """The next request, waited for as long as it takes; None when the other end has closed.

    Args:
        frame_s: a frame that has begun is whole after so long, or nobody waits for its rest.

    Raises:
        InvalidError: ``frame_invalid``.
        OSError: the connection broke, also in the middle of a frame.
    """
    body = _read_frame(sock, frame_s)
    return None if body is None else _decoded(_requests, body)


def read_answer(sock: socket.socket) -> Answer:
    """The answer to what was asked.

    Raises:
        InvalidError: ``frame_invalid``.
        OSError: the other end has gone.
    """
    body = _read_frame(sock, None)
    if body is None:
        raise ConnectionResetError("closed by the other end")
    return _decoded(_answers, body)


def _decoded(decoder: msgspec.msgpack.Decoder[Words], body: bytes | bytearray) -> Words:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(f"a frame of {len(body)} bytes: {error}") from None


def _read_frame(sock: socket.socket, frame_s: float | None) -> bytearray | None:
    sock.settimeout(None)
    first = sock.recv(_LENGTH_BYTES)
    if not first:
        return None
    sock.settimeout(frame_s)
    head = bytearray(first)
    if len(head) < _LENGTH_BYTES:
        head += _exactly(sock, _LENGTH_BYTES - len(head))
    size = int.from_bytes(head, "big")
    if size > FRAME_BYTES_MAX:
        raise _invalid(f"a frame of {size} bytes, the limit is {FRAME_BYTES_MAX}")
    return _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytearray:
    # Grown as it comes: a length alone, which costs its sender nothing, claims no memory here.
    found = bytearray()
    while len(found) < size:
        piece = sock.recv(min(size - len(found), 2**18))
        if not piece:
            raise ConnectionResetError("closed in the middle of a frame")
        found += piece
    return found


def _invalid(message: str) -> InvalidError:
    return InvalidError(message, code="frame_invalid", fix="have both ends run the same version of headwater")
