"""What head and worker say to each other over the worker's standard streams: one JSON object a line.

The head writes the plan first and orders after it; the worker answers each and says when it serves. The end of the
worker's input means that the head is gone.
"""

from __future__ import annotations

from typing import IO, Any, Final, Literal

import msgspec

from headwater.core.errors import HeadwaterError, InvalidError, UpstreamError

LINE_BYTES_MAX: Final = 16 * 2**20


class Plan(msgspec.Struct, frozen=True):
    """What a worker needs to begin. It travels over a pipe: an address of a database may hold a password."""

    number: int
    listener: int  # descriptor of the public socket
    folder: str  # the private folder
    settings: dict[str, Any]
    policy: str  # TOML
    upstreams: str  # TOML
    upstreams_folder: str  # where its relative paths are looked up
    vouchers: bool  # whether the head takes vouchers
    chain: str | None  # RPC address where this worker may read the chain
    stall_s: float
    body_timeout_s: float


class Order(msgspec.Struct, frozen=True):
    """What a worker is told: to take over other upstreams."""

    upstreams: str  # TOML


class Said(msgspec.Struct, frozen=True):
    """What a worker answers."""

    what: Literal["ready", "reloaded", "failed"]
    code: str = ""
    message: str = ""
    fix: str | None = None


def said_of(error: Exception) -> Said:
    """How a worker tells that it failed."""
    if isinstance(error, HeadwaterError):
        return Said("failed", error.code, error.message, error.fix)
    return Said("failed", "internal_error", type(error).__name__)


def error_of(said: Said) -> HeadwaterError:
    """What a worker failed with, as the head tells it."""
    return UpstreamError(f"a worker failed: {said.message}", code=said.code or "worker_failed", fix=said.fix)


def write_line(stream: IO[bytes], value: msgspec.Struct) -> None:
    """Write one object."""
    stream.write(msgspec.json.encode(value) + b"\n")
    stream.flush()


def read_plan(stream: IO[bytes]) -> Plan:
    """The plan, which comes first.

    Raises:
        InvalidError: ``worker_plan_invalid``: nobody but `headwater serve` starts a worker.
    """
    try:
        return msgspec.json.decode(stream.readline(LINE_BYTES_MAX), type=Plan)
    except msgspec.DecodeError as error:
        raise InvalidError(
            f"no plan on standard input: {str(error)[:100]}",
            code="worker_plan_invalid",
            fix="use `headwater serve --workers N`, which starts the workers",
        ) from None


def read_order(stream: IO[bytes]) -> Order | None:
    """The next order; None when the head is gone."""
    line = stream.readline(LINE_BYTES_MAX)
    return msgspec.json.decode(line, type=Order) if line else None


def read_said(stream: IO[bytes]) -> Said | None:
    """The next answer; None when the worker has ended, or does not keep to this."""
    line = stream.readline(LINE_BYTES_MAX)
    try:
        return msgspec.json.decode(line, type=Said) if line else None
    except msgspec.DecodeError:
        return None
