"""Claims on paper, what is due, and which ranges are pushed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError, MissingError
from headwater.settlement import Claim, Domain, Leaf, PayoutTree, changes_refused, claim_of, due, plan_pushes

DOMAIN = Domain(10, "0x" + "c0" * 20, "0x" + "70" * 20, 7)


def leaves(count: int, amount: int = 100) -> list[Leaf]:
    """`count` payees without gaps."""
    return [Leaf(i, f"0x{i + 1:040x}", amount + i) for i in range(count)]


def test_claim_survives_being_written_down():
    """A claim read back from its JSON is the same claim and still reaches the root."""
    tree = PayoutTree.build(leaves(11), DOMAIN)
    claim = claim_of(tree, 10)
    again = Claim.from_json(json.loads(json.dumps(claim.as_json())))

    assert again == claim
    assert again.holds(tree.root)
    assert not again.holds(bytes(32))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "other"},
        {"path": ["00"]},
        {"path": [1]},
        {"path": ["00" * 32] * 33},
        {"index": "x"},
        {"cumulative_token_units": "-1"},
        {"address": 5},
        {"address": "0x12"},
        {"epoch": 0},
        {"chain_id": None},
    ],
)
def test_claims_that_say_nonsense_are_refused(change):
    """A claim with a field that cannot be is refused as invalid, whatever the field."""
    value = claim_of(PayoutTree.build(leaves(3), DOMAIN), 1).as_json() | change
    with pytest.raises(InvalidError):
        Claim.from_json(value)


def test_due_is_what_is_missing_and_never_negative():
    """What was paid is taken off the cumulative amount; a lowered amount owes nothing."""
    leaf = Leaf(0, "0x" + "11" * 20, 100)

    assert [due(leaf, paid) for paid in (0, 30, 100, 170)] == [100, 70, 0, 0]
    with pytest.raises(InvalidError):
        due(leaf, -1)


@settings(deadline=None, max_examples=80)
@given(wanted=st.sets(st.integers(0, 699), max_size=60))
def test_pushes_cover_everybody_once(wanted):
    """The planned ranges hold every wanted index, are aligned, and never overlap."""
    tree = PayoutTree.build(BIG, DOMAIN)
    ranges = plan_pushes(tree, wanted)
    covered = [i for start, count in ranges for i in range(start, start + count)]

    assert wanted <= set(covered)
    assert len(covered) == len(set(covered))
    for start, count in ranges:
        assert count <= 256
        assert start % count == 0
        assert tree.prove_range(start, count).leaves


BIG = leaves(700)


def test_pushes_share_a_range_only_when_that_is_cheaper():
    """Neighbours go together, a lone payee goes alone."""
    tree = PayoutTree.build(BIG, DOMAIN)

    assert plan_pushes(tree, range(256)) == ((0, 256),)
    assert plan_pushes(tree, [3]) == ((3, 1),)
    assert plan_pushes(tree, [0, 1, 2, 255]) == ((0, 4), (255, 1))
    assert plan_pushes(tree, []) == ()
    with pytest.raises(MissingError):
        plan_pushes(tree, [700])


def test_epochs_that_follow_each_other_are_accepted():
    """Growing amounts and new payees at the end are no problem."""
    assert changes_refused(leaves(5), leaves(8, amount=200)) == ()


def test_epochs_that_break_a_promise_are_told_apart():
    """A payee left out, an index with another address, a lowered amount and a moved address are each named."""
    before = leaves(5)
    after = [
        before[0],
        Leaf(1, before[1].address, 1),
        Leaf(2, "0x" + "ee" * 20, 500),
        Leaf(7, before[4].address, 500),
    ]
    found = {(problem.where, problem.code) for problem in changes_refused(before, after)}

    assert found == {
        ("index 1", "leaf_lowered"),
        ("index 2", "leaf_reused"),
        ("index 3", "leaf_left_out"),
        ("index 4", "leaf_left_out"),
        ("index 4", "leaf_moved"),
    }
