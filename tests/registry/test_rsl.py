"""RSL: terms go out as the standard's XML and come back as they were; what is not understood grants nothing."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.registry.license import USES, License
from headwater.registry.rsl import NAMESPACE, Terms, read_rsl, write_rsl

HEAD = f'<rsl xmlns="{NAMESPACE}"><content url="/a"><license>'
TAIL = "</license></content></rsl>"

licenses = st.builds(
    License,
    expression=st.sampled_from(["CC0-1.0", "MIT OR Apache-2.0", "LicenseRef-own"]),
    uses=st.frozensets(st.sampled_from(USES)),
    price_floor_units=st.integers(0, 10**12),
    expires_at_ns=st.none() | st.integers(0, 4 * 10**9).map(lambda s: s * 10**9),
    terms=st.sampled_from(["", 'see <our> terms & "conditions"']),
)


@given(st.lists(licenses, max_size=4))
def test_terms_survive_the_way_out_and_back(given_licenses: list[License]) -> None:
    """Reading what was written gives the same licences, prices and expiry included."""
    terms = [Terms(f"/{n}", one, "USD" if one.price_floor_units else None) for n, one in enumerate(given_licenses)]

    assert list(read_rsl(write_rsl(terms))) == terms


def test_the_standards_words_are_used() -> None:
    """A reader that knows only the standard finds usages, payment and licence."""
    raw = write_rsl(
        [Terms("/a", License("CC-BY-4.0", frozenset({"ground"}), 2_000_000), "USD")], server="https://ai.example"
    )
    space = {"r": NAMESPACE}
    root = ElementTree.fromstring(raw)

    assert root.find("r:content", space).attrib == {"url": "/a", "server": "https://ai.example"}  # type: ignore[union-attr]
    assert root.findtext(".//r:permits[@type='usage']", namespaces=space) == "ai-input"
    assert root.findtext(".//r:prohibits[@type='usage']", namespaces=space) == "ai-train"
    assert root.findtext(".//r:payment[@type='use']/r:amount[@currency='USD']", namespaces=space) == "0.002"
    assert root.findtext(".//r:standard", namespaces=space) == "https://spdx.org/licenses/CC-BY-4.0.html"


@pytest.mark.parametrize(
    ("inner", "uses", "units"),
    [
        ('<permits type="usage">search</permits>', set(), 0),
        ('<permits type="usage">ai-all</permits><prohibits type="usage">ai-train</prohibits>', {"ground"}, 0),
        ('<permits type="usage">all</permits><permits type="geo">DE</permits>', {"ground", "train"}, 0),
        (
            '<permits type="usage">ai-input</permits>'
            '<payment type="use"><amount currency="USD">0.015</amount></payment>',
            {"ground"},
            15_000_000,
        ),
        ("", set(), 0),
    ],
)
def test_terms_of_strangers_are_understood(inner: str, uses: set[str], units: int) -> None:
    """Usages map to ours; a prohibition wins; what is not granted is not permitted."""
    (found,) = read_rsl((HEAD + inner + TAIL).encode())

    assert (set(found.license.uses), found.license.price_floor_units) == (uses, units)
    assert found.license.expression == "LicenseRef-RSL"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<rsl/>",
        b"no xml",
        b'<!DOCTYPE r [<!ENTITY a "b">]><rsl/>',
        (HEAD + '<permits type="usage">ai-everything</permits>' + TAIL).encode(),
        (HEAD + '<payment type="crawl"><amount currency="USD">1</amount></payment>' + TAIL).encode(),
        (HEAD + '<payment type="use"><amount currency="USD">a lot</amount></payment>' + TAIL).encode(),
        (HEAD + '<payment type="use"/>' + TAIL).encode(),
        (HEAD + '<payment type="free"/><payment type="free"/>' + TAIL).encode(),
        f'<rsl xmlns="{NAMESPACE}"><content/></rsl>'.encode(),
        f'<rsl xmlns="{NAMESPACE}"><content url="/a"/></rsl>'.encode(),
        b"<a>" * 100_000,
    ],
)
def test_what_is_not_understood_is_refused(raw: bytes) -> None:
    """Money and permission are never guessed."""
    with pytest.raises(InvalidError) as refused:
        read_rsl(raw)
    assert refused.value.code == "rsl_invalid"
