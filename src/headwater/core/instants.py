"""Instants are nanoseconds since 1970-01-01T00:00:00Z as `int`; on the wire, RFC 3339 in UTC with nine decimals."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from headwater.core.errors import InvalidError

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORM = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?Z")


def format_instant(instant_ns: int) -> str:
    """RFC 3339 text of an instant.

    >>> format_instant(1_700_000_000_123_456_789)
    '2023-11-14T22:13:20.123456789Z'
    """
    seconds, nanos = divmod(instant_ns, SECOND_NS)
    return f"{_second(seconds)}.{nanos:09d}Z"


@lru_cache(maxsize=64)  # many instants of one second come together
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


def parse_instant(text: str) -> int:
    """The instant in nanoseconds.

    Raises:
        InvalidError: not RFC 3339 in UTC.
    """
    match = _FORM.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        seconds = _seconds(match[1])
    except ValueError:
        raise InvalidError(
            f"{text[:80]!r} is not an instant", code="instant_invalid", fix="write it like 2026-11-22T14:00:00Z"
        ) from None
    return seconds * SECOND_NS + int((match[2] or "").ljust(9, "0") or 0)


@lru_cache(maxsize=64)
def _seconds(text: str) -> int:
    return (datetime.fromisoformat(text + "+00:00") - _EPOCH) // timedelta(seconds=1)
