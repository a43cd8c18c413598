"""Contributions, their shares and the digest of a registry."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis.strategies import integers

from headwater.core.canonical import canonical
from headwater.core.errors import InvalidError
from headwater.core.ids import ContributorId
from headwater.registry import (
    KINDS,
    Contribution,
    License,
    Ownership,
    contribute,
    describe,
    equal_shares,
    owned_equally,
    snapshot_digest,
)

ADA, BO = ContributorId("ctr_" + "a" * 32), ContributorId("ctr_" + "b" * 32)
TERMS = License("CC0-1.0", frozenset({"ground"}), 5, 2**62, "see example")


def made(content: bytes = b"words", **changes: object) -> Contribution:
    """A contribution of Ada's."""
    fields = {
        "title": "A title",
        "owners": owned_equally([ADA]),
        "license": TERMS,
        "registered_at_ns": 1_700_000_000_123_456_789,
        "source": "notes.txt",
    } | changes
    return contribute("document", content, **fields)  # type: ignore[arg-type]


@given(integers(1, 256))
def test_equal_shares_sum_to_the_whole_and_differ_by_at_most_one(count: int) -> None:
    """However many owners, nothing is lost and nobody is favoured by more than one part in a billion."""
    shares = equal_shares(count)

    assert sum(shares) == 10**9
    assert max(shares) - min(shares) <= 1
    assert len(shares) == count


def test_the_id_follows_from_kind_and_bytes_only() -> None:
    """Title, owner and time do not change what a contribution is."""
    assert made().id == made(title="Other", owners=owned_equally([BO]), registered_at_ns=1).id
    assert made().id != made(b"other words").id
    assert (
        made().id
        != contribute(
            "prompt", b"words", title="A", owners=owned_equally([ADA]), license=TERMS, registered_at_ns=0, source=""
        ).id
    )


@pytest.mark.parametrize(
    ("owners", "code"),
    [
        ((), "owners_count"),
        ((Ownership(ADA, 10**9 - 1),), "shares_do_not_sum"),
        ((Ownership(ADA, 10**9), Ownership(BO, 1)), "shares_do_not_sum"),
        ((Ownership(ADA, 10**9 + 1), Ownership(BO, -1)), "shares_not_positive"),
        ((Ownership(ADA, 10**9), Ownership(BO, 0)), "shares_not_positive"),
        ((Ownership(ADA, 5 * 10**8), Ownership(ADA, 5 * 10**8)), "owner_repeated"),
        (tuple(Ownership(ContributorId(f"ctr_{i:032x}"), 1) for i in range(257)), "owners_count"),
    ],
)
def test_owners_that_cannot_be_paid_exactly_are_refused(owners: tuple[Ownership, ...], code: str) -> None:
    """Shares are positive, of distinct owners, and sum to 10^9."""
    with pytest.raises(InvalidError) as caught:
        made(owners=owners)

    assert caught.value.code == code


@pytest.mark.parametrize(
    "changes",
    [{"title": " "}, {"title": "x" * 301}, {"metadata": (("a", "1"), ("a", "2"))}, {"metadata": (("ä", "1"),)}],
)
def test_titles_and_metadata_have_limits(changes: dict[str, object]) -> None:
    """What cannot be shown or written canonically is refused."""
    with pytest.raises(InvalidError):
        made(**changes)


def test_content_beyond_the_limit_is_refused() -> None:
    """Neither nothing nor more than eight mebibytes can be contributed."""
    with pytest.raises(InvalidError):
        made(b"")
    with pytest.raises(InvalidError):
        made(b"x" * (8 * 2**20 + 1))


def test_an_unknown_kind_is_refused() -> None:
    """The kinds are those of the glossary."""
    with pytest.raises(InvalidError) as caught:
        contribute("poem", b"x", title="t", owners=owned_equally([ADA]), license=TERMS, registered_at_ns=0, source="")  # type: ignore[arg-type]

    assert caught.value.code == "kind_unknown"
    assert set(KINDS) == {"document", "prompt", "feedback", "adapter", "base_model", "tool", "review"}


def test_a_description_is_canonical_json() -> None:
    """Large instants and amounts are text, so that any machine writes the same bytes."""
    raw = canonical(describe(made(metadata=(("b", "2"), ("a", "1")))))

    assert b'"registered_at":"2023-11-14T22:13:20.123456789Z"' in raw
    assert b'"price_floor_units":"5"' in raw
    assert b'"metadata":{"a":"1","b":"2"}' in raw


def test_the_snapshot_digest_depends_on_content_and_not_on_order() -> None:
    """The same registry has the same digest however it is listed; any changed field changes it."""
    one, two = made(b"one"), made(b"two")

    assert snapshot_digest([one, two]) == snapshot_digest([two, one])
    for other in (
        replace(two, title="x"),
        replace(two, owners=owned_equally([BO])),
        replace(two, license=License("MIT", frozenset())),
    ):
        assert snapshot_digest([one, other]) != snapshot_digest([one, two])
    assert snapshot_digest([one]) != snapshot_digest([one, two])


def test_metadata_is_found_by_key() -> None:
    """A key that is not there gives nothing."""
    assert made(metadata=(("status", "Final"),)).meta("status") == "Final"
    assert made().meta("status") is None
