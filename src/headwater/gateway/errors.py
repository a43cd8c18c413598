"""What a caller is told when a call fails: status, stable code, and whether trying again makes sense.

One `Failure`, two forms: OpenAI's envelope on OpenAI's routes, RFC 9457 on our own, the same `code` in
both. `x-should-retry` is what OpenAI's clients obey before anything else; without it they would repeat
a 409 that can never succeed. A failure nobody planned is told as 500 without its text, which may hold
what the caller wrote; of a database, log or chain that failed only the code is told. Knows nothing of HTTP
beyond status and headers.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Final

import msgspec

from headwater.core.errors import (
    ConflictError,
    HeadwaterError,
    InvalidError,
    InvariantError,
    MissingError,
    RefusedError,
    UpstreamError,
)

Headers = tuple[tuple[bytes, bytes], ...]

RETRY_AFTER_S: Final = 1
MESSAGE_CHARS_MAX: Final = 1_000

_STATUS_BY_CODE: Final = {
    "invalid_api_key": 401,
    "api_key_expired": 401,
    "voucher_not_signed": 401,
    "insufficient_credit": 402,
    "voucher_not_covered": 402,
    "payment_required": 402,
    "payment_refused": 402,
    "payment_not_settled": 402,
    "budget_exceeded": 402,
    "route_unknown": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "request_too_large": 413,
    "target_too_long": 414,
    "content_encoding_unsupported": 415,
    "rate_limit_exceeded": 429,
    "head_too_large": 431,
    "shutting_down": 503,
}
_STATUS_BY_KIND: Final = (
    (RefusedError, 403),
    (InvalidError, 400),
    (MissingError, 404),
    (ConflictError, 409),
    (UpstreamError, 503),
    (InvariantError, 500),
)
_TYPES: Final = {
    401: "invalid_request_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
_RETRIED: Final = (408, 429, 503)
_INSIDE: Final = ("database_", "disk_", "log_", "store_", "segments_", "transaction_", "key_file_", "chain_", "rpc_")
"""How codes of parts begin whose texts name hosts, users and paths: they are the operator's alone."""
_RETRIED_CODES: Final = ("call_in_progress",)


class RequestError(InvalidError):
    """A request is wrong; `param` is the field, as a client would write it."""

    def __init__(self, message: str, *, param: str | None, code: str, fix: str) -> None:
        super().__init__(message, code=code, fix=fix)
        self.param = param


class MethodError(InvalidError):
    """A route was asked with a method it does not take; `allow` are those it does."""

    def __init__(self, method: str, allow: str) -> None:
        super().__init__(f"{method[:20]} is not taken here", code="method_not_allowed", fix=f"use {allow}")
        self.allow = allow


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call failed, ready to be written down."""

    status: int
    code: str
    message: str
    param: str | None = None
    allow: str | None = None  # methods a route takes, with 405
    retry_after_s: int = RETRY_AFTER_S
    extra: Headers = ()

    @property
    def retried(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in _RETRIED or self.code in _RETRIED_CODES

    @property
    def type(self) -> str:
        """OpenAI's class of the error."""
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def headers(self) -> Headers:
        """Headers that go with it, without content type and length."""
        found: list[tuple[bytes, bytes]] = [(b"x-should-retry", b"true" if self.retried else b"false")]
        if self.retried:
            found.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        if self.status == 408:
            found.append((b"connection", b"close"))  # the rest of its body may come for ever
        if self.allow is not None:
            found.append((b"allow", self.allow.encode()))
        return (*found, *self.extra)

    def envelope(self) -> bytes:
        """OpenAI's form."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def problem(self) -> bytes:
        """RFC 9457's form."""
        title = self.code.replace("_", " ").capitalize()
        return msgspec.json.encode(
            {"type": "about:blank", "title": title, "status": self.status, "detail": self.message, "code": self.code}
        )


def place_of(error: BaseException) -> str:
    """Where an error arose, for the log: files, lines and code, never its text, which may quote a prompt."""
    return "".join(traceback.format_tb(error.__traceback__))


def failure_of(error: BaseException) -> Failure:
    """What to tell of `error`; anything that is not ours is 500 and says nothing of its cause."""
    if not isinstance(error, HeadwaterError) or isinstance(error, InvariantError):
        code = error.code if isinstance(error, HeadwaterError) else "internal_error"
        return Failure(500, code, "the server failed on this call; it was not charged unless its receipt says so")
    if isinstance(error, UpstreamError) and error.code.startswith(_INSIDE):
        told = "a part that this server needs failed; the call was not charged unless its receipt says so"
        return Failure(503, error.code, f"{told} (fix: try again in a moment)")
    status = _STATUS_BY_CODE.get(error.code) or next(s for kind, s in _STATUS_BY_KIND if isinstance(error, kind))
    message = error.message if error.fix is None else f"{error.message} (fix: {error.fix})"
    return Failure(
        status,
        error.code,
        message[:MESSAGE_CHARS_MAX],
        param=getattr(error, "param", None),
        allow=getattr(error, "allow", None),
        retry_after_s=getattr(error, "retry_after_s", RETRY_AFTER_S),
        extra=getattr(error, "headers", ()),
    )
