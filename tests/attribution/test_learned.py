from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.attribution.bits import Attribution, Share, microbits, weigh
from headwater.attribution.learned import Influence, LearnedRules, copies_among, share_learned, spread_learned
from headwater.core.errors import InvalidError, InvariantError

RULES = LearnedRules()


def _sure(**scores: float) -> list[Influence]:
    return [Influence(name, score, score - abs(score) / 2, score + abs(score) / 2) for name, score in scores.items()]


def _by_name(parts):
    return {part.contribution: part for part in parts}


@given(
    phi=st.integers(-(10**9), 10**9),
    scores=st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0, 1e3), st.floats(0, 1e3)), max_size=30),
    trainer=st.integers(0, 1_000_000),
)
def test_no_bit_is_lost_or_made(phi, scores, trainer):
    """Parts sum to φ exactly, each lies in its interval, and nobody has a negative part of a positive φ."""
    influences = [Influence(f"c{n}", score, score - a, score + b) for n, (score, a, b) in enumerate(scores)]

    parts = share_learned((phi, phi, phi), "a", influences, LearnedRules(trainer_ppm=trainer))

    assert sum(part.microbits for part in parts) == phi
    assert all(part.low_microbits <= part.microbits <= part.high_microbits for part in parts)
    assert phi < 0 or all(part.microbits >= 0 for part in parts)


def test_parts_follow_the_scores():
    """The trainer has the fixed part; what is left is in proportion to the positive scores."""
    parts = _by_name(share_learned((1_000, 1_000, 1_000), "a", _sure(x=3, y=1, z=-5), RULES))

    assert {name: part.microbits for name, part in parts.items()} == {"a": 200, "x": 600, "y": 200}
    assert parts["x"].low_microbits == 300
    assert parts["x"].high_microbits == 900


def test_what_may_be_nothing_is_paid_to_nobody():
    """A part whose interval includes zero stays in the account, unpaid, and swells no other part."""
    doubtful = [Influence("x", 3, 2, 4), Influence("y", 1, -1, 3)]

    parts = _by_name(share_learned((1_000, 1_000, 1_000), "a", doubtful, RULES))

    assert parts["y"].microbits == 200
    assert parts["y"].low_microbits <= 0
    assert parts["x"].microbits == 600
    assert parts["a"].microbits == 200


def test_a_trainer_gains_nothing_by_not_measuring():
    """Without an index, or where nobody helped, the trainer still has the fixed part and no more."""
    unmeasured = _by_name(share_learned((1_000, 1_000, 1_000), "a", _sure(x=3, y=1), RULES, measured=False))
    nobody = _by_name(share_learned((1_000, 1_000, 1_000), "a", _sure(x=-3, y=-1), RULES))

    for parts in (unmeasured, nobody):
        assert parts["a"].microbits == 200
        assert all(parts[name].low_microbits <= 0 for name in ("x", "y"))


def test_an_adapter_that_did_harm_is_its_trainers_alone():
    """Negative bits are kept with the adapter and blamed on no contributor."""
    (part,) = share_learned((-500, -500, -500), "a", _sure(x=3), RULES)

    assert (part.contribution, part.microbits) == ("a", -500)


def test_an_outlier_is_clipped():
    """A score far beyond the others counts a bounded number of times their median."""
    honest = _sure(a=1, b=1, c=1, d=1)
    fair = _by_name(share_learned((10**6,) * 3, "t", [*honest, *_sure(x=1)], RULES))
    crafted = _by_name(share_learned((10**6,) * 3, "t", [*honest, *_sure(x=1e9)], RULES))

    assert crafted["x"].microbits <= 8 * crafted["b"].microbits + 1
    assert crafted["x"].microbits < 4 * fair["x"].microbits


def test_copies_count_with_their_original():
    """m copies of a contribution earn together what it earns, and all of it goes to the first."""
    alone = _by_name(share_learned((10**6,) * 3, "t", _sure(x=4, y=4), RULES))
    split = _sure(x=1, copy1=1, copy2=1, copy3=1, y=4)

    parts = _by_name(share_learned((10**6,) * 3, "t", split, RULES, copy_of={f"copy{n}": "x" for n in (1, 2, 3)}))

    assert parts["x"].microbits == alone["x"].microbits
    assert set(parts) == {"t", "x", "y"}


def test_random_feedback_earns_about_nothing():
    """Scores that are noise with honest intervals are not paid; the little that is paid is what the level lets by."""
    rng = np.random.default_rng(0)
    paid = total = 0
    for _ in range(200):
        noise = rng.normal(size=20)
        influences = [Influence(f"n{i}", x, x - 1.96, x + 1.96) for i, x in enumerate(noise.tolist())]
        influences += _sure(real=20.0)
        for part in share_learned((10**6,) * 3, "t", influences, RULES):
            total += part.microbits
            paid += part.microbits if part.contribution.startswith("n") and part.low_microbits > 0 else 0

    assert paid / total < 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        [Influence("x", float("nan"), 0, 1)],
        [Influence("x", 1, 2, 3)],
        [Influence("x", 1, 0, 2), Influence("x", 1, 0, 2)],
    ],
)
def test_scores_that_are_none_are_refused(wrong):
    """Not finite, outside their interval, or given twice."""
    with pytest.raises(InvalidError):
        share_learned((1, 1, 1), "a", wrong, RULES)


def test_the_account_is_weighed_anew():
    """The adapter's share gives way to learned ones; weights and residual follow from the new parts."""
    tokens = np.array([1.0, 2.0])
    shares = (
        Share("doc", "o1", "grounded", 1, 3.0, 3.0, 3.0, tokens),
        Share("ada", "o2", "grounded", 2, 10.0, 10.0, 10.0, np.array([4.0, 6.0])),
        Share("cop", "o3", "reproduced", 3, 2.0, 2.0, 2.0, tokens),
    )
    found = Attribution(shares, 20.0, 33.0, tokens, 0, "A", 4, 2, "e", "1", 2)

    made = spread_learned(
        found,
        "ada",
        [Influence("x", 3, 2, 4), Influence("y", 1, -1, 3)],
        RULES,
        model_weight_ppm=100_000,
        evidence_floor_millibits=5_000,
    )

    names = [(share.part_id, share.channel, microbits(share.bits)) for share in made.shares]
    assert names == [
        ("doc", "grounded", 3_000_000),
        ("ada", "learned", 2_000_000),
        ("x", "learned", 6_000_000),
        ("y", "learned", 2_000_000),
        ("cop", "reproduced", 2_000_000),
    ]
    weights, residual = weigh(
        [3_000_000, 2_000_000, 6_000_000, 0],
        [2_000_000],
        20_000_000,
        model_weight_ppm=100_000,
        evidence_floor_millibits=5_000,
        unsure=2_000_000,
    )
    assert tuple(share.weight_ppb for share in made.shares) == weights
    assert made.residual_ppb == residual
    assert made.shares[3].weight_ppb == 0
    assert sum(share.token_bits for share in made.shares[1:4]) == pytest.approx(np.array([4.0, 6.0]))
    with pytest.raises(InvariantError):
        spread_learned(found, "none", [], RULES, model_weight_ppm=0, evidence_floor_millibits=0)


def test_copies_count_for_the_one_registered_first():
    """A text that nearly repeats an earlier one is its copy, however it is spaced; another text is not."""
    words = " ".join(f"word{k}" for k in range(40))
    texts = [("first", words), ("other", "something else altogether, said at length"), ("copy", words.upper() + " end")]

    assert copies_among(texts, RULES) == {"copy": "first"}
    parts = share_learned((900, 900, 900), "a", _sure(first=1.0, copy=1.0, other=1.0), RULES, copy_of={"copy": "first"})
    assert {part.contribution for part in parts} == {"a", "first", "other"}


def test_a_shelf_too_large_for_pairs_still_finds_equal_texts():
    """Beyond what is compared in pairs, texts that are equal but for case and spacing are found."""
    texts = [(f"c{k}", f"text number {k}") for k in range(600)] + [("again", "Text  NUMBER 7")]

    assert copies_among(texts, RULES) == {"again": "c7"}


def test_the_interval_rule_is_in_the_rules_digest():
    """Rules with another width of the interval, or another threshold for copies, have another digest."""
    digests = {
        RULES.digest,
        LearnedRules(interval_millisigmas=1_645).digest,
        LearnedRules(copy_resemblance_ppm=1).digest,
    }

    assert len(digests) == 3
    with pytest.raises(InvalidError):
        LearnedRules(interval_millisigmas=0)
