"""Intake of a batch: what lands, what is explained, what was there already."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis.strategies import booleans, lists, sampled_from, tuples

from headwater.core.ids import ContributorId
from headwater.registry import Candidate, Contribution, Intake, Known, Ownership, admit, owned_equally

ADA, BO, EVE = (ContributorId("ctr_" + letter * 32) for letter in "abe")
PEOPLE = frozenset({ADA, BO})


def offered(content: bytes = b"some words", *, owner: ContributorId = ADA, where: str = "a.txt") -> Candidate:
    """A candidate that can be admitted."""
    return Candidate(
        where=where,
        kind="document",
        title="A title",
        content=content,
        owners=owned_equally([owner]),
        license_expression="CC0-1.0",
        uses=frozenset({"ground"}),
        registered_at_ns=7,
        source=where,
    )


def known_after(intake: Intake) -> Known:
    """What the registry holds once `intake` is recorded."""
    held: dict[str, tuple[Contribution, ...]] = {}
    for admitted in intake.accepted:
        digest = admitted.contribution.content_digest
        held[digest] = (*held.get(digest, ()), admitted.contribution)
    return Known(PEOPLE, held)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (offered(b""), "content_empty"),
        (offered(b" \n\t"), "content_empty"),
        (offered(b"\xef\xbb\xbf \n"), "content_empty"),
        (offered(b"caf\xe9"), "content_not_utf8"),
        (offered(b"a\x00b"), "content_binary"),
        (offered(b"x" * (8 * 2**20 + 1)), "content_too_large"),
        (offered(owner=EVE), "owner_unknown"),
        (replace(offered(), owners=()), "owners_count"),
        (replace(offered(), owners=(Ownership(ADA, 1),)), "shares_do_not_sum"),
        (replace(offered(), owners=(Ownership(ADA, 5 * 10**8),) * 2), "owner_repeated"),
        (replace(offered(), license_expression="Nonsense-9"), "license_unknown"),
        (replace(offered(), uses=frozenset({"eat"})), "license_use_unknown"),  # type: ignore[arg-type]
        (replace(offered(), price_floor_units=-1), "price_floor_invalid"),
        (replace(offered(), title=""), "title_invalid"),
        (replace(offered(), kind="poem"), "kind_unknown"),  # type: ignore[arg-type]
    ],
)
def test_each_fault_is_named_and_the_good_ones_still_land(bad: Candidate, code: str) -> None:
    """One bad item in a batch stops nothing but itself."""
    good = offered(b"good words", owner=BO, where="b.txt")

    intake = admit([replace(bad, where="bad.txt"), good], Known(PEOPLE))

    assert [a.contribution.title for a in intake.accepted] == ["A title"]
    assert [(p.where, p.code) for p in intake.problems] == [("bad.txt", code)]
    assert all(p.message and p.fix for p in intake.problems)


def test_every_fault_of_an_item_is_told_at_once() -> None:
    """A reader mends an item in one go."""
    strangers = owned_equally([EVE, ContributorId("ctr_" + "f" * 32)])

    intake = admit([replace(offered(b""), owners=strangers)], Known(PEOPLE))

    assert [p.code for p in intake.problems] == ["content_empty", "owner_unknown", "owner_unknown"]


def test_the_same_bytes_belong_to_the_first_owner_in_the_batch_and_before() -> None:
    """A copy is refused whether the original came in the same batch or long ago."""
    first = admit([offered(), offered(owner=BO, where="copy.txt")], Known(PEOPLE))
    later = admit([offered(owner=BO, where="copy.txt"), replace(offered(owner=BO), kind="prompt")], known_after(first))

    assert [p.code for p in first.problems] == ["content_of_another_owner"]
    assert [p.code for p in later.problems] == ["content_of_another_owner"] * 2
    assert not later.accepted


def test_admitting_a_batch_again_changes_nothing() -> None:
    """The second time everything is unchanged, also when it comes twice."""
    batch = [offered(), offered(b"more", owner=BO), offered()]
    first = admit(batch, Known(PEOPLE))
    second = admit(batch, known_after(first))

    assert (len(first.accepted), len(first.unchanged)) == (2, 1)
    assert second.accepted == ()
    assert second.problems == ()
    assert len(second.unchanged) == 3


def test_registered_terms_cannot_be_changed_by_adding_again() -> None:
    """Other shares or another licence for the same bytes are a contradiction, not an update."""
    known = known_after(admit([offered()], Known(PEOPLE)))

    for changed in (replace(offered(), license_expression="MIT"), replace(offered(), uses=frozenset())):
        assert [p.code for p in admit([changed], known).problems] == ["terms_differ"]


def test_one_owner_may_register_the_same_bytes_as_two_kinds() -> None:
    """A text can be a document and a prompt of the same person."""
    intake = admit([offered(), replace(offered(), kind="prompt")], Known(PEOPLE))

    assert len({a.contribution.id for a in intake.accepted}) == 2


@given(
    lists(tuples(sampled_from([b"", b"one", b"two", b"\xff"]), sampled_from([ADA, BO, EVE]), booleans()), max_size=8)
)
def test_every_item_ends_in_exactly_one_place(items: list[tuple[bytes, ContributorId, bool]]) -> None:
    """Accepted, unchanged or explained: nothing is dropped and nothing counted twice."""
    batch = [
        replace(offered(content, owner=owner, where=str(i)), license_expression="MIT" if fine else "Nope")
        for i, (content, owner, fine) in enumerate(items)
    ]

    intake = admit(batch, Known(PEOPLE))

    refused = {p.where for p in intake.problems}
    assert len(intake.accepted) + len(intake.unchanged) + len(refused) == len(batch)
    owners_by_bytes: dict[bytes, set[ContributorId]] = {}
    for admitted in intake.accepted:
        owners_by_bytes.setdefault(admitted.content, set()).update(
            o.contributor_id for o in admitted.contribution.owners
        )
    assert all(len(owners) == 1 for owners in owners_by_bytes.values())
