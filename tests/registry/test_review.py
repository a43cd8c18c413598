"""Reviewers: who may judge, who is drawn, what votes decide, and what reports and gold answers are worth."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.core.ids import ContributorId
from headwater.registry.review import (
    Parties,
    Vote,
    drawing_order,
    eligible,
    follows,
    one_of_each_cluster,
    sample,
    seed_of,
    tally,
)
from headwater.registry.review_gold import GoldRecord, chance_of_so_few, commitment, is_gold, slash
from headwater.registry.review_pay import Work, share_line
from headwater.registry.review_scores import TASKS_MIN, Task, measure

A, B, C, D, E = (ContributorId(f"ctr_{name * 32}") for name in "abcde")


def test_who_has_an_interest_does_not_judge_nor_does_their_cluster() -> None:
    """Contributor, owner and whoever acts with one of them are left out; so is who was asked before."""
    parties = Parties(frozenset({A}), B)

    assert eligible([A, B, C, D, E], parties, {A: "one", C: "one"}, seen=[D]) == (E,)
    assert one_of_each_cluster([C, D, E], {C: "two", E: "two"}) == (C, D)
    assert one_of_each_cluster([C, D, E], {C: "two", E: "two"}, asked=[E]) == (D,)


def test_the_same_public_value_draws_the_same_people_and_every_task_others() -> None:
    """The order depends on seed and task, not on how the pool was listed; over many tasks it is even."""
    pool = [ContributorId(f"ctr_{number:032x}") for number in range(10)]
    seed = seed_of("block 0xabc")

    assert drawing_order(seed, "t", pool) == drawing_order(seed, "t", pool[::-1])
    first = [drawing_order(seed, f"task {number}", pool)[0] for number in range(2_000)]
    assert all(140 < first.count(one) < 260 for one in pool)
    assert drawing_order(seed_of("block 0xabd"), "t", pool) != drawing_order(seed, "t", pool)


@given(rows=st.integers(0, 300), most=st.integers(1, 50))
def test_a_sample_is_of_the_batch_and_no_larger_than_asked(rows: int, most: int) -> None:
    """All rows when they are few, otherwise just so many different ones."""
    drawn = sample(b"seed", "bat_1", rows, most)

    assert len(drawn) == min(rows, most) == len(set(drawn))
    assert set(drawn) <= set(range(rows))


def test_a_full_quorum_decides_and_too_few_votes_never_do() -> None:
    """Every combination of up to five votes, against counting them by hand."""
    for size in range(6):
        for votes in product(("accept", "refuse"), repeat=size):
            for_, against = votes.count("accept"), votes.count("refuse")
            majority = "accept" if for_ > against else "refuse" if against > for_ else None
            assert tally(votes, 5, over=False) == (majority if size == 5 else None)
            assert tally(votes, 5, over=True) == (majority if size >= 3 else None)


def test_the_rest_of_a_batch_follows_its_sample() -> None:
    """One refused in ten is let through, more is not, and nobody decides for nobody."""
    assert (follows(9, 1), follows(8, 2), follows(0, 0)) == ("accept", "refuse", None)


@pytest.mark.parametrize(
    "wrong",
    [{"verdict": "maybe"}, {"verdict": "refuse"}, {"verdict": "accept", "reasons": ("harmful",)},
     {"verdict": "refuse", "reasons": ("ugly",)}, {"verdict": "accept", "note": "x" * 1_001}],
)  # fmt: skip
def test_a_vote_without_its_reason_is_refused(wrong: dict[str, Any]) -> None:
    """Whoever refuses says why, in words that others can count."""
    with pytest.raises(InvalidError):
        Vote(A, **wrong)


def _tasks(reports: list[tuple[str, ...]], names: tuple[ContributorId, ...]) -> list[Task]:
    return [Task(f"t{place}", dict(zip(names, row, strict=True))) for place, row in enumerate(reports)]  # type: ignore[arg-type]


@given(rows=st.lists(st.tuples(*[st.sampled_from(["accept", "refuse"])] * 2), min_size=TASKS_MIN, max_size=60))
def test_correlated_agreement_is_agreement_on_the_task_beyond_agreement_between_tasks(
    rows: list[tuple[str, str]],
) -> None:
    """Against its definition over all pairs of tasks, scaled by what copying the peer would reach."""
    same = Fraction(sum(mine == theirs for mine, theirs in rows), len(rows))
    across = Fraction(sum(mine == theirs for (mine, _), (_, theirs) in product(rows, rows)), len(rows) ** 2)
    accepts = Fraction(sum(theirs == "accept" for _, theirs in rows), len(rows))
    most = 2 * accepts * (1 - accepts)
    expected = (same - across) / most if most else Fraction(0)

    assert measure(A, _tasks(rows, (A, B))).agreement_ppm == int(expected * 10**6)


@given(mine=st.sampled_from(["accept", "refuse"]), theirs=st.lists(st.sampled_from(["accept", "refuse"]), min_size=20))
def test_a_constant_report_is_worth_nothing_whatever_the_others_say(mine: str, theirs: list[str]) -> None:
    """Both measures are exactly nought."""
    found = measure(A, _tasks([(mine, one) for one in theirs], (A, B)))

    assert (found.agreement_ppm, found.determinant_ppm, found.multiplier_ppm) == (0, 0, 0)


def test_the_multiplier_is_bounded_and_waits_for_enough_tasks() -> None:
    """Perfect agreement reaches the cap, contrary reports nothing, and nineteen tasks say nothing yet."""
    votes = ["accept", "accept", "refuse", "refuse"] * 10
    other = {"accept": "refuse", "refuse": "accept"}

    assert measure(A, _tasks([(one, one) for one in votes], (A, B))).multiplier_ppm == 1_500_000
    contrary = measure(A, _tasks([(other[one], one) for one in votes], (A, B)))
    assert (contrary.agreement_ppm, contrary.multiplier_ppm) == (-1_000_000, 0)
    assert measure(A, _tasks([(one, one) for one in votes[:19]], (A, B))).multiplier_ppm is None


def test_gold_comes_as_often_as_the_rules_say_and_nobody_can_guess_it() -> None:
    """Eight in a hundred of all tasks; another secret hides others; the commitment names the secret."""
    drawn = [is_gold(b"s" * 32, f"rvt_{number}", A, 80_000) for number in range(20_000)]
    share = sum(drawn) / (len(drawn) + sum(drawn))

    assert 0.075 < share < 0.085
    assert drawn != [is_gold(b"t" * 32, f"rvt_{number}", A, 80_000) for number in range(20_000)]
    assert commitment(b"s" * 32) != commitment(b"t" * 32)


@given(answered=st.integers(0, 60), right=st.integers(0, 60))
def test_nobody_is_slashed_for_what_a_careful_reviewer_may_do_by_chance(answered: int, right: int) -> None:
    """Only on enough gold, only when chance hardly explains it, and never more than the cap."""
    right = min(right, answered)
    found = slash(GoldRecord(A, answered, right))

    chance = chance_of_so_few(answered, right, Fraction(4, 5))
    assert (found is not None) == (answered >= 10 and chance < Fraction(5, 1_000))
    if found is not None:
        assert 0 < found.bps <= 5_000


@given(
    works=st.lists(
        st.tuples(st.integers(0, 500), st.one_of(st.none(), st.integers(0, 1_500_000)), st.booleans()), max_size=8
    )
)
def test_a_line_is_shared_whole_or_not_at_all(works: list[tuple[int, int | None, bool]]) -> None:
    """Shares sum to a whole; who is slashed or worthless gets none; nobody is both counted and waiting."""
    given_ = [Work(ContributorId(f"ctr_{place}"), *one) for place, one in enumerate(works)]
    shared = share_line(given_)

    assert sum(part for _, part in shared.shares) in (0, 10**9)
    assert not set(shared.counted) & set(shared.waiting)
    paid = dict(shared.shares)
    for work in given_:
        if work.slashed or not work.multiplier_ppm:
            assert work.reviewer not in paid
