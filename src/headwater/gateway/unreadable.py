"""Requests that cannot be read as HTTP: what is told of them, and how they are known.

The parser is strict: a length beside chunks, two lengths, signs and spaces in numbers, folded lines, bare CR or LF and
NUL are errors of its own. What it lets pass and we do not read is refused here: other versions, codings beside
chunks, and chunks from a caller of HTTP/1.0. All of it is 4xx, as it is the caller's doing: nobody can make this
server's 5xx rise by it. Knows nothing of connections.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from httptools import HttpParserCallbackError, HttpParserError, HttpParserInvalidMethodError, HttpRequestParser

from headwater.core.errors import HeadwaterError, InvalidError
from headwater.gateway.errors import Failure, MethodError, failure_of
from headwater.gateway.passing import ROUTES
from headwater.gateway.wire import Message, Receive, Scope, Send, respond_failure

App = Callable[[Scope, Receive, Send], Awaitable[None]]

REFUSED: Final = "headwater.refused"
"""Under this name an ASGI scope holds the `Failure` of a request that could not be read; it has no other content."""

TARGET_BYTES_MAX: Final = 8_192

_MODELS: Final = re.compile(r"/v1/models(/|\?|$)")
_LINE: Final = re.compile(rb"(?:\r\n)*([!#$%&'*+.^_`|~0-9A-Za-z-]{1,40}) (/[\x21-\x7e]*) HTTP/1\.[01]\r\n")
_VERSIONS: Final = ("1.0", "1.1")
_FIX: Final = "give the length of a body once or send it in chunks, and end lines with CR LF"


def head_too_large(bytes_max: int, fields_max: int) -> InvalidError:
    """The refusal of a head that is too large."""
    return InvalidError(
        f"the head has more than {bytes_max} bytes or {fields_max} fields",
        code="head_too_large",
        fix="send fewer and shorter headers",
    )


def check_framing(version: str, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse what the parser takes and a server in between might take otherwise.

    Args:
        version: such as ``1.1``.
        target: path and query, as they came.
        headers: names in lower case.

    Raises:
        InvalidError: ``http_version_unsupported``, ``target_too_long``, ``transfer_coding_unsupported`` or
            ``http_invalid``.
    """
    if len(target) > TARGET_BYTES_MAX:
        raise InvalidError(
            f"the path and query have {len(target)} bytes",
            code="target_too_long",
            fix=f"use at most {TARGET_BYTES_MAX}",
        )
    if version not in _VERSIONS:
        raise InvalidError(
            f"HTTP/{version} is not spoken here", code="http_version_unsupported", fix="send HTTP/1.1, or HTTP/1.0"
        )
    for name, value in headers:
        if name != b"transfer-encoding":
            continue
        if version == "1.0":
            raise InvalidError("HTTP/1.0 knows no Transfer-Encoding", code="http_invalid", fix=_FIX)
        if value.strip().lower() != b"chunked":
            coding = value[:40].decode("latin-1")
            raise InvalidError(
                f"the body is coded as {coding!r}", code="transfer_coding_unsupported", fix="send it in chunks only"
            )


def unreadable(error: HttpParserError, data: bytes) -> Failure:
    """What to tell of a request that the parser could not read.

    Args:
        data: what it was given last.
    """
    line = _LINE.match(data) if isinstance(error, HttpParserInvalidMethodError) else None
    if line is not None and not _known(line[1]):
        return _unknown_method(line[1].decode("ascii"), line[2].decode("ascii"))
    why = error.__context__
    if isinstance(why, HeadwaterError):
        return failure_of(why)
    reason = "the target of the request is none" if isinstance(error, HttpParserCallbackError) else str(error)[:100]
    return failure_of(InvalidError(f"this is no HTTP request: {reason}", code="http_invalid", fix=_FIX))


def refusing(app: App, failure: Failure) -> App:
    """`app` for a request that could not be read: it words and counts the refusal. If it says anything else, because
    it does not look for one, the refusal is told here."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        told = False

        async def only(message: Message) -> None:
            nonlocal told
            if message["type"] == "http.response.start" and message["status"] != failure.status:
                told = True
                await respond_failure(send, failure)
            if not told:
                await send(message)

        scope[REFUSED] = failure
        await app(scope, receive, only)

    return refuse


def _known(method: bytes) -> bool:
    """Whether the parser knows a method: then it was a later request whose method it does not."""
    try:
        HttpRequestParser(object()).feed_data(method + b" ")
    except HttpParserError:
        return False
    return True


def _unknown_method(method: str, target: str) -> Failure:
    path = target.partition("?")[0]
    if path in ROUTES or _MODELS.match(path):
        return failure_of(MethodError(method, "POST" if path in ROUTES else "GET, HEAD"))
    return failure_of(
        InvalidError(f"nobody knows the method {method}", code="method_unknown", fix="see /docs for those there are")
    )
