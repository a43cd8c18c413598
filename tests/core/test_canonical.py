import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.canonical import canonical, digest, parse_canonical
from headwater.core.errors import InvalidError
from headwater.core.ids import call_id, check_receipt_id, contribution_id, contributor_id, is_call_id, receipt_id
from headwater.core.instants import format_instant, parse_instant
from headwater.core.keccak import keccak256

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz_09", max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(value=values)
def test_canonical_bytes_are_json_and_read_back(value):
    """Any JSON reader sees the value that was written, and reading is strict about the form."""
    raw = canonical(value)

    assert json.loads(raw) == value
    assert parse_canonical(raw) == value
    assert canonical(json.loads(raw)) == raw


@given(value=values)
def test_canonical_bytes_are_those_of_an_independent_implementation(value):
    """The quick encoder writes what the reference implementation of RFC 8785 writes, control characters included."""
    assert canonical(value) == rfc8785.dumps(value)


def test_every_code_point_is_written_as_the_reference_writes_it():
    """Escapes are the same for each of the first 64k characters and at the edges of the planes beyond."""
    points = [*range(0xD800), *range(0xE000, 0x10000), 0x10000, 0x1F600, 0x10FFFF]
    text = "".join(map(chr, points))

    assert canonical([text]) == rfc8785.dumps([text])


def test_a_lone_surrogate_has_no_canonical_form():
    """What cannot be written as UTF-8 is refused with our error, not the library's."""
    with pytest.raises(InvalidError) as caught:
        canonical({"a": "\ud800"})

    assert caught.value.code == "not_canonical"


@pytest.mark.parametrize("value", [1.0, float("nan"), 2**53, {"é": 1}, {1: 2}, b"x", {"a": {"b": [0.5]}}])
def test_what_two_machines_could_write_differently_is_refused(value):
    """Floats, big integers and odd keys have no place in signed bytes."""
    with pytest.raises(InvalidError) as caught:
        canonical(value)

    assert caught.value.code == "not_canonical"


@pytest.mark.parametrize(
    "raw", [b'{"a": 1}', b'{"b":1,"a":2}', b'{"a":1,"a":1}', b"{", b"\xff", b'"\\u0061"', b"[" * 5000]
)
def test_other_forms_of_the_same_json_are_refused(raw):
    """One value has one form, so a signature covers one file."""
    with pytest.raises(InvalidError):
        parse_canonical(raw)


def test_digests_match_published_vectors():
    """SHA-256 and keccak-256 of the empty string, as published."""
    assert digest(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


def test_names_are_one_contributor_whatever_their_spacing_case_or_unicode_form():
    """A person does not become two by a double space or a decomposed accent."""
    assert contributor_id("peps", "Éric  V.") == contributor_id("peps", "e\u0301ric v. ")
    assert contributor_id("peps", "a") != contributor_id("other", "a")


def test_ids_have_their_form():
    """Ids say what they name and are checked where they enter."""
    assert is_call_id(call_id(bytes(16)))
    assert not is_call_id("call_123")
    assert contribution_id("document", b"x") != contribution_id("prompt", b"x")
    assert check_receipt_id(receipt_id(b"x")) == receipt_id(b"x")
    with pytest.raises(InvalidError):
        check_receipt_id("A" * 64)


@given(instant=st.integers(0, 4 * 10**18))
def test_instants_survive_text(instant):
    """Nanoseconds are kept."""
    assert parse_instant(format_instant(instant)) == instant


@pytest.mark.parametrize(
    "text", ["", "2026-11-22", "2026-11-22T14:00:00", "2026-13-01T00:00:00Z", "2026-11-22T14:00:00+01:00"]
)
def test_instants_without_utc_are_refused(text):
    """Local times are not accepted."""
    with pytest.raises(InvalidError):
        parse_instant(text)
