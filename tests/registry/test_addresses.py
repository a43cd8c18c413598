"""E-mail addresses are taken out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis.strategies import from_regex, text

from headwater.registry.addresses import without_addresses

ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Ada <ada@example.org>, Bo", "Ada , Bo"),
        (r"Ada \<<ada@example.org>\>, Bo", "Ada \\, Bo"),
        ("write to ada.l+x@mail.example.co.uk.", "write to …."),
        (r"ada\@example.org (Ada)", "… (Ada)"),
        ("see mailto:ada@example.org now", "see … now"),
        ("Ada <ada at example.org>", "Ada "),
        ("Ada <ada--at--example.org>", "Ada "),
        (r"Ada \<ada\_l at red-example.com\>", "Ada \\"),
        ("ada at example.com (Ada)", "… (Ada)"),
        ("ada (at) example dot com", "…"),
        ("https://example.org/list/dev@example.org/thread/X/", "https://example.org/list/…/thread/X/"),
        ("the code is hosted at https://example.com", "the code is hosted at https://example.com"),
        ("a decorator @functools.wraps and x @ y", "a decorator @functools.wraps and x @ y"),
        ("nothing to do here", "nothing to do here"),
    ],
)
def test_addresses_go_and_other_text_stays(before: str, after: str) -> None:
    """Plain, bracketed, escaped and spelt-out addresses are removed; matrix products and links are not."""
    assert without_addresses(before) == after


@given(text(max_size=40), from_regex(ADDRESS, fullmatch=True), text(max_size=40))
def test_no_address_survives_whatever_surrounds_it(before: str, address: str, after: str) -> None:
    """Whatever stands around an address, no address is left."""
    assert not ADDRESS.search(without_addresses(before + address + after))
