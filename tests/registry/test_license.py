"""Licence expressions and what a licence permits."""

from __future__ import annotations

import pytest

from headwater.core.errors import InvalidError
from headwater.registry import License, parse_expression


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("CC0-1.0", "CC0-1.0"),
        ("mit or apache-2.0", "MIT OR Apache-2.0"),
        ("(MIT AND Apache-2.0) OR CC-BY-4.0", "(MIT AND Apache-2.0) OR CC-BY-4.0"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("LicenseRef-house.terms-1", "LicenseRef-house.terms-1"),
        ("LicenseRef-public-domain OR CC0-1.0", "LicenseRef-public-domain OR CC0-1.0"),
        ("DocumentRef-a:LicenseRef-b", "DocumentRef-a:LicenseRef-b"),
    ],
)
def test_expressions_take_their_normal_form(written: str, normal: str) -> None:
    """SPDX expressions and LicenseRef names are read; a second reading changes nothing."""
    assert parse_expression(written) == normal
    assert parse_expression(normal) == normal


@pytest.mark.parametrize(
    "written",
    [
        "",
        "  ",
        "Nonsense-1.0",
        "MIT AND",
        "(MIT",
        "MIT/BSD",
        "MIT WITH MIT",
        "LicenseRef-a b",
        "LicenseRef-ü",
        "(" * 400,
        "M" * 501,
    ],
)
def test_what_is_no_licence_is_refused_with_a_fix(written: str) -> None:
    """Unknown identifiers and broken expressions raise one stable code, however odd the text."""
    with pytest.raises(InvalidError) as caught:
        parse_expression(written)

    assert caught.value.code == "license_unknown"
    assert caught.value.fix


def test_uses_are_stated_and_never_read_out_of_an_expression() -> None:
    """A permissive expression alone grants nothing."""
    assert License("CC0-1.0", frozenset()).uses == frozenset()


def test_unknown_uses_floors_and_endless_terms_are_refused() -> None:
    """A licence cannot hold what the gate would not understand."""
    for bad in (
        {"uses": frozenset({"eat"})},
        {"uses": frozenset(), "price_floor_units": -1},
        {"uses": frozenset(), "terms": "x" * 2_001},
    ):
        with pytest.raises(InvalidError):
            License("MIT", **bad)  # type: ignore[arg-type]
