"""Addresses as people write them."""

from __future__ import annotations

import pytest
from eth_utils import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.settlement import format_address, parse_address


@given(raw=st.binary(min_size=20, max_size=20))
def test_addresses_are_written_as_everybody_writes_them(raw):
    """The mixed-case form is that of an independent library, and reads back to the same bytes."""
    text = format_address(raw)

    assert text == to_checksum_address(raw)
    assert parse_address(text) == parse_address(text.lower()) == raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "0x" + "1" * 39,
        "0x" + "1" * 41,
        "1" * 40,
        "0x" + "g" * 40,
        "0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    ],
)
def test_mistyped_addresses_are_refused(text):
    """Wrong length, wrong digits and a checksum with one letter in the wrong case are refused."""
    with pytest.raises(InvalidError):
        parse_address(text)


def test_an_address_has_twenty_bytes():
    """Other lengths have no written form."""
    with pytest.raises(InvalidError):
        format_address(bytes(19))
