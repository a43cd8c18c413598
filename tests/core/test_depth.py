"""How deep JSON is nested, found without parsing it: against the pattern that walks every byte."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headwater.core import canonical
from headwater.core.canonical import refuse_deep
from headwater.core.errors import InvalidError

_BYTE_BY_BYTE = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_SPELLED = st.lists(st.sampled_from([b'"', b"\\", b"[", b"]", b"{", b"}", b"a", b"\n", b",", b'\\"', b'\\\\"', b'"a"']))


def deep(raw: bytes, depth_max: int) -> bool:
    """Whether it is too deep, slowly."""
    if raw.count(b"[") + raw.count(b"{") <= depth_max:
        return False
    depth = 0
    for token in _BYTE_BY_BYTE.finditer(raw):
        kind = raw[token.start()]
        depth += (kind in b"[{") - (kind in b"]}")
        if depth > depth_max:
            return True
    return False


def refused(raw: bytes, depth_max: int) -> bool:
    """Whether it is refused."""
    try:
        refuse_deep(raw, depth_max)
    except InvalidError:
        return True
    return False


@pytest.mark.parametrize("at_once", [2**20, 0], ids=["at once", "in pieces"])
@given(pieces=_SPELLED, depth_max=st.integers(0, 4))
@example(pieces=[b'"', b"\\\\\\", b'"', b"[[", b'"', b"[["], depth_max=1)
@example(pieces=[b'"a\\', b'"', b"[[[", b"\\"], depth_max=1)
@example(pieces=[b"]]][[[["], depth_max=0)
def test_what_is_too_deep_is_the_same_as_byte_by_byte(at_once: int, pieces: list[bytes], depth_max: int) -> None:
    """Whatever it is, JSON or not: escapes, strings without an end, brackets that were never opened."""
    raw = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canonical, "_AT_ONCE_BYTES", at_once)
        assert refused(raw, depth_max) == deep(raw, depth_max)


def test_strings_hide_brackets_and_end_where_json_says() -> None:
    """Some of what is spelled so is too deep, and some is not, in strings and out of them."""
    assert refused(b'[["]]"', 1)
    assert not refused(b'["[[\\"[[", "]"]', 1)
    assert refused(b'{"a\\\\":[[1]]}', 2)
    assert not refused(b'{"a\\\\":[[1]]}', 3)
