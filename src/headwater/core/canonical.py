"""Canonical bytes (RFC 8785) and the digests taken of them.

Everything signed, hashed or compared goes through `canonical`. Values hold strings, booleans, null,
lists, objects with ASCII keys and integers within 2^53; amounts travel as decimal strings, and
floats are refused because two machines may print them differently.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import msgspec

from headwater.core.errors import InvalidError
from headwater.core.limits import JSON_DEPTH_MAX

Json = Any
"""A JSON value; kept loose on purpose, `canonical` is what checks it."""

_AS_ISSUED = "use the bytes as they were issued"
_encode = msgspec.json.Encoder(order="sorted").encode  # RFC 8785 for the values `_plain` lets through
_STRING = (
    rb'"(?:[^"]*+(?<=[^\\]\\)")*+[^"]*+(?<!\\)"'  # quotes in it have one backslash before them: quick, and nearly all
    rb'|"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
)
_STRINGS = re.compile(_STRING, re.DOTALL)
_BETWEEN = re.compile(b"(?:" + _STRING + rb')|([^"]++)', re.DOTALL)
_AT_ONCE_BYTES = 2**20
_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(set(range(256)) - set(_BRACKETS))
_DOWN = b"]}"


def canonical(value: Json) -> bytes:
    """The RFC 8785 bytes of `value`.

    Raises:
        InvalidError: floats, integers beyond 2^53 - 1, non-ASCII keys or foreign types.

    >>> canonical({"b": 1, "a": ["x", None]})
    b'{"a":["x",null],"b":1}'
    """
    if not _plain(value):
        _refuse_ambiguous(value, "$")
    try:
        return _encode(value)
    except (UnicodeEncodeError, TypeError) as error:
        raise InvalidError(
            f"no canonical form: {error}", code="not_canonical", fix="use plain strings that are valid Unicode"
        ) from None


def parse_canonical(raw: bytes) -> Json:
    """The value whose canonical bytes are exactly `raw`.

    Raises:
        InvalidError: not JSON, nested too deep, a repeated key, or JSON that is not in canonical form.
    """
    refuse_deep(raw)
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object)
        same = canonical(value) == raw
    except (ValueError, RecursionError) as error:  # the libraries' own refusals are ValueErrors too
        raise InvalidError(f"not canonical JSON: {error}", code="not_canonical", fix=_AS_ISSUED) from None
    if not same:
        raise InvalidError("JSON is not in RFC 8785 form", code="not_canonical", fix=_AS_ISSUED)
    return value


def refuse_deep(raw: bytes, depth_max: int = JSON_DEPTH_MAX) -> None:
    """Refuse JSON that is nested deeper than `depth_max`, before it is parsed.

    A library that raises the recursion limit (EVM tools do) would let a deeply nested file overflow
    the stack of the whole process.

    Raises:
        InvalidError: ``json_too_deep``.
    """
    if _at_most(raw, depth_max):
        return
    if len(raw) <= _AT_ONCE_BYTES:
        brackets = _STRINGS.sub(b"", raw).translate(None, _NO_BRACKETS)
    else:  # piece by piece, so that a thread which does this leaves others their turn
        brackets = b"".join(
            match[1].translate(None, _NO_BRACKETS) for match in _BETWEEN.finditer(raw) if match[1] is not None
        )
    depth = 0
    for bracket in brackets:
        if bracket in _DOWN:
            depth -= 1
        else:
            depth += 1
            if depth > depth_max:
                raise InvalidError(f"JSON is nested deeper than {depth_max}", code="json_too_deep", fix=_AS_ISSUED)


def _at_most(raw: bytes, count: int) -> bool:
    """Whether there are so many opening brackets at most; counting them all would take longer than finding a few."""
    for bracket in (b"[", b"{"):
        at = raw.find(bracket)
        while at >= 0:
            count -= 1
            if count < 0:
                return False
            at = raw.find(bracket, at + 1)
    return True


def digest(raw: bytes) -> str:
    """SHA-256 of `raw` as ``sha256:<64 hex>``."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def digest_of(value: Json) -> str:
    """SHA-256 of the canonical bytes of `value`, as ``sha256:<64 hex>``."""
    return digest(canonical(value))


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"repeated key in {sorted(keys)}")
    return dict(pairs)


def _plain(value: Json) -> bool:
    """Whether `value` is made of exactly the types whose sorted compact JSON is RFC 8785's; quick."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        return bool(-(2**53) < value < 2**53)
    if kind is dict:
        return all(type(key) is str and key.isascii() and _plain(item) for key, item in value.items())
    return bool(kind is list or kind is tuple) and all(map(_plain, value))


def _refuse_ambiguous(value: Json, where: str) -> None:
    """Name the first thing in `value` that has no canonical form; subclasses of plain types are let through."""
    match value:
        case None | bool() | str():
            return
        case int() if abs(value) < 2**53:
            return
        case list() | tuple():
            for i, item in enumerate(value):
                _refuse_ambiguous(item, f"{where}[{i}]")
        case dict():
            for key, item in value.items():
                if not (isinstance(key, str) and key.isascii()):
                    raise InvalidError(f"{where}: key {key!r} is not ASCII", code="not_canonical", fix="use ASCII keys")
                _refuse_ambiguous(item, f"{where}.{key}")
        case _:
            raise InvalidError(
                f"{where}: {value!r} has no canonical form",
                code="not_canonical",
                fix="write amounts as decimal strings and scores as integers",
            )
