"""Datanets as values: one id everywhere, terms for each use, rules within bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.canonical import canonical, digest
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.ids import ContributorId
from headwater.core.instants import DAY_NS
from headwater.registry import License
from headwater.registry.datanet import Card, Datanet, Rules, UseTerms, license_of, may_use, read_datanet
from headwater.registry.datanet_cards import read_croissant, read_readme, write_croissant, write_readme
from headwater.registry.deadlines import STEP_NS_MAX, moved_on, start
from headwater.registry.submission import Derivation, cut, derive, read_derivation

HOLDER = "0x" + "ab" * 20
CARD = Card(
    'Rivers: "all" of them',
    "CC-BY-4.0",
    (UseTerms("train", 5_000_000, 2 * DAY_NS, "with credit", (HOLDER,)), UseTerms("ground")),
    summary="Where they rise.\n\nAnd where they end.",
    languages=("en", "de"),
    keywords=("water", "maps"),
    terms="https://example.org/terms",
    citation="Rivers, 2026",
)
NET = Datanet("rivers", ContributorId("ctr_" + "1" * 32), "0x" + "2" * 40, 1_700_000_000_000_000_000, CARD)


def test_a_charter_reads_back_and_its_id_outlives_every_revision() -> None:
    """The id follows from what never changes; the digest from everything."""
    revised = NET.revised(replace(CARD, title="Streams"), Rules(quorum=5))

    assert read_datanet(NET.to_bytes()) == NET
    assert (revised.id, revised.digest == NET.digest) == (NET.id, False)
    assert replace(NET, created_at_ns=NET.created_at_ns + 1).id != NET.id


@given(place=st.integers(0, len(NET.to_bytes()) - 1), byte=st.integers(0, 255))
def test_a_changed_charter_is_another_one_or_none(place: int, byte: int) -> None:
    """No byte can be changed without it showing."""
    raw = bytearray(NET.to_bytes())
    raw[place] = byte
    try:
        read = read_datanet(bytes(raw))
    except InvalidError:
        return
    assert (read == NET) == (bytes(raw) == NET.to_bytes())


@pytest.mark.parametrize(
    "wrong",
    [
        {"quorum": 2}, {"quorum": 0}, {"appeal_quorum": 17}, {"gold_ppm": 40_000}, {"gold_ppm": 100_001},
        {"answer_ns": 0}, {"review_ns": DAY_NS}, {"appeal_ns": -1}, {"personal_data": "keep"}, {"chars_max": 0},
        {"near_duplicates": "keep"}, {"licenses": ("no such licence",)},
    ],
)  # fmt: skip
def test_rules_that_could_stall_or_mislead_are_refused(wrong: dict[str, Any]) -> None:
    """Even quorums, gold outside 5 to 10 %, windows that never end, words that mean nothing."""
    with pytest.raises(InvalidError):
        Rules(**wrong)


def test_each_use_has_its_own_conditions() -> None:
    """Not offered, ended, somebody else's, or too cheap: each is said by its code."""
    asked = [
        may_use(NET, "reproduce", 0),
        may_use(NET, "train", 2 * DAY_NS),
        may_use(NET, "train", 0, holder="0x" + "0" * 40),
        may_use(NET, "train", 0, holder=HOLDER, offer_units=4_999_999),
    ]

    assert [one and one[0] for one in asked] == [
        "use_not_permitted", "license_expired", "holder_not_permitted", "price_below_floor",
    ]  # fmt: skip
    assert may_use(NET, "train", 0, holder=HOLDER, offer_units=5_000_000) is None
    assert may_use(NET, "ground", 10**18) is None


def test_an_accepted_item_permits_what_both_permit() -> None:
    """The contributor's floor and end stand where they are stricter; a licence nobody named is refused."""
    offered = License("CC-BY-4.0", frozenset({"train", "ground", "reproduce"}), 9_000_000, DAY_NS)

    taken = license_of(NET, offered)

    assert (taken.uses, taken.price_floor_units, taken.expires_at_ns) == ({"train", "ground"}, 9_000_000, DAY_NS)
    for wrong, code in (
        (replace(offered, expression="MIT"), "license_not_accepted"),
        (replace(offered, uses=frozenset({"train"})), "uses_too_narrow"),
    ):
        with pytest.raises(InvalidError) as refused:
            license_of(NET, wrong)
        assert refused.value.code == code


def test_cards_come_back_from_both_forms_as_they_were() -> None:
    """README front matter and Croissant lose nothing that the card says, but what they have no field for."""
    croissant = write_croissant(NET, 3, NET.created_at_ns, {"data.jsonl": ("0" * 64, 12)})

    assert read_croissant(canonical(croissant)) == CARD
    assert read_readme(write_readme(NET, 3, 12)) == CARD
    assert croissant["conformsTo"] == "http://mlcommons.org/croissant/1.1"


def test_cards_of_others_are_read_and_grant_no_use() -> None:
    """A licence given as an address or a lower-case word is understood; silence permits nothing."""
    readme = "---\nlicense: cc-by-sa-4.0\nlanguage: en\ntags: [a, b]\n---\n# Their data\n\nWords.\n"
    theirs = {
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "Their data",
        "license": "https://creativecommons.org/licenses/by-sa/4.0/",
        "description": "Words.",
        "inLanguage": "en",
        "keywords": ["a", "b"],
    }

    cards = (read_readme(readme), read_croissant(canonical(theirs)))

    assert cards[0] == cards[1]
    assert (cards[0].license_expression, cards[0].uses, cards[0].title) == ("CC-BY-SA-4.0", (), "Their data")


@pytest.mark.parametrize(
    "text",
    ["", "no front matter", "---\nlicense: [\n---\n# A\n", "---\nlicense: nobody-knows\n---\n# A\n", "---\n- 1\n---\n",
     "---\na: &x [1]\nb: *x\nlicense: mit\n---\n# A\n"],
)  # fmt: skip
def test_what_is_no_card_is_refused(text: str) -> None:
    """Whatever is wrong with it, the refusal is ours."""
    with pytest.raises(InvalidError) as refused:
        read_readme(text)
    assert refused.value.code == "card_invalid"


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_no_croissant_without_a_crash(raw: bytes) -> None:
    """Hostile bytes are refused on purpose."""
    with pytest.raises(HeadwaterError):
        read_croissant(raw)


@given(words=st.lists(st.text("ab é\n日", max_size=9), max_size=40).map("".join), chars_max=st.integers(1, 30))
def test_cut_rows_are_all_of_their_parent_and_can_be_made_again(words: str, chars_max: int) -> None:
    """Runs are in order, touch, are short enough, and each row follows from parent and lineage."""
    parent, runs = words.encode(), cut(words, chars_max)

    assert b"".join(parent[begin:end] for begin, end in runs) == parent
    assert all(len(parent[begin:end].decode()) <= chars_max for begin, end in runs)
    for begin, end in runs:
        lineage = Derivation(digest(parent), "cut", begin, end)
        assert derive(parent, read_derivation(lineage.to_text())) == parent[begin:end]
    if runs:
        with pytest.raises(InvalidError):
            derive(parent + b".", Derivation(digest(parent), "cut", 0, 1))


@given(readings=st.lists(st.integers(-(10**18), 4 * 10**18), max_size=30))
def test_the_deadline_clock_never_goes_back_nor_leaps(readings: list[int]) -> None:
    """Whatever the machine's clock shows, counted time grows by at most a step for each reading."""
    clock = start(10**18)
    for now_ns in readings:
        later = moved_on(clock, now_ns)
        assert 0 <= later.counted_ns - clock.counted_ns <= min(STEP_NS_MAX, max(0, now_ns - clock.read_ns))
        clock = later
