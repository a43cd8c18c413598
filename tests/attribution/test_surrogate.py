"""Grade C: credit from shared words alone, conserved, each word once, and refused where it has no skill."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution import Layout, Part, Rules
from headwater.attribution.spans.reference import default_reference
from headwater.attribution.spans.tokens import tokenise
from headwater.attribution.surrogate import (
    SHIPPED,
    WORD_FLOOR_BITS,
    Calibration,
    attribute_text,
    fit_calibration,
    overlap_bits,
)
from headwater.core.errors import InvalidError, RefusedError
from headwater.core.money import PPB

TRUSTED = Calibration(1.0, 5.0, 0.5, 2.0, 6.0, 10, 0.7, 0.6)
GOLD = "zephyr quartz lantern brimstone orchard velvet"
OTHER = "marmalade trombone gazebo kestrel papyrus walrus"


def layout(*texts: str, owners=None, question: str = "which?") -> Layout:
    parts = [
        Part(f"part-{i}", owners[i] if owners else f"owner-{i}", text, registered_at_ns=i)
        for i, text in enumerate(texts)
    ]
    return Layout((*parts, Part("fixed", "", question, fixed=True)))


def worth(text: str) -> float:
    """Bits of the words above the floor, one by one."""
    reference = default_reference()
    found = (reference.microbits(int(word)) / 1e6 for word in tokenise(text.encode()).hashes)
    return sum(max(0.0, bits - WORD_FLOOR_BITS) for bits in found)


words = st.lists(st.sampled_from([*GOLD.split(), *OTHER.split(), "the", "of", "🦊", "سلام"]), max_size=10).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(words, max_size=4), answer=words.filter(lambda text: tokenise(text.encode()).hashes.size > 0))
def test_parts_and_base_model_sum_to_the_answer_at_every_word(texts, answer) -> None:
    """Nothing is credited twice: parts and base model add up at each word, and weights with the residual to 10^9."""
    found = attribute_text(layout(*texts), answer, calibration=TRUSTED)
    at_words = found.base_token_bits + sum((s.token_bits for s in found.shares), np.zeros(found.tokens))

    assert found.grade == "C"
    assert at_words.sum() == pytest.approx(found.total_bits, abs=1e-9)
    assert (found.base_token_bits >= -1e-9).all()
    assert sum(s.weight_ppb for s in found.shares) + found.residual_ppb == PPB
    assert all(s.bits == pytest.approx(s.token_bits.sum()) for s in found.shares)


def test_a_word_goes_mostly_to_the_source_that_holds_the_longer_run() -> None:
    """A word that two sources hold is divided by the runs around it: three words here against one there."""
    scores = overlap_bits(layout(GOLD, "lantern trombone gazebo"), "the zephyr quartz lantern gazebo")

    three, one = worth("zephyr quartz") + 3 / 4 * worth("lantern"), worth("lantern") / 4 + worth("gazebo")
    assert scores == pytest.approx([three, one])


def test_a_run_that_two_owners_hold_is_halved_and_not_doubled() -> None:
    """Equal claims get equal parts; one owner with two sources has one claim."""
    rules = Rules(copy_threshold=1.0)
    texts = (f"{GOLD} one", f"two {GOLD}", f"{GOLD} three")
    apart = overlap_bits(layout(*texts), GOLD, rules=rules)
    shared = overlap_bits(layout(*texts, owners=["a", "b", "b"]), GOLD, rules=rules)

    assert apart == pytest.approx([worth(GOLD) / 3] * 3)
    assert shared == pytest.approx([worth(GOLD) / 2, worth(GOLD) / 4, worth(GOLD) / 4])


def test_a_copy_of_an_earlier_source_earns_nothing() -> None:
    """Ownership is settled before words are counted."""
    found = attribute_text(layout(GOLD, GOLD), GOLD, calibration=TRUSTED)

    assert found.shares[0].weight_ppb > 0
    assert found.shares[1].bits == found.shares[1].weight_ppb == 0


def test_words_of_the_question_are_nobodys() -> None:
    """What the caller said himself is not credited to whoever repeats it."""
    asked = overlap_bits(layout(GOLD, question="What about zephyr and quartz?"), "zephyr quartz lantern")

    assert asked == pytest.approx([worth("lantern")])


def test_shares_that_are_not_sure_are_not_paid() -> None:
    """Below the calibrated threshold the interval includes zero and the weight is nothing."""
    found = attribute_text(layout(GOLD), GOLD, calibration=replace(TRUSTED, sure_bits=1e6))

    assert found.shares[0].bits > 0 >= found.shares[0].low_bits
    assert found.shares[0].weight_ppb == 0
    assert found.residual_ppb == PPB


def test_an_estimator_without_skill_is_refused() -> None:
    """Not surely better than an equal split: nothing may be paid on it."""
    with pytest.raises(RefusedError) as caught:
        attribute_text(layout(GOLD), GOLD, calibration=replace(TRUSTED, skill=0.3, skill_low=-0.01))

    assert caught.value.code == "estimator_without_skill"


def test_an_answer_without_words_is_refused() -> None:
    """Punctuation says nothing of its source."""
    with pytest.raises(InvalidError) as caught:
        attribute_text(layout(GOLD), "… !?", calibration=TRUSTED)

    assert caught.value.code == "answer_empty"


def test_the_calibration_that_ships_has_skill() -> None:
    """Grade C can be paid on as installed, from few bits on, and never claims more than was measured."""
    assert SHIPPED.payable
    assert SHIPPED.cases >= 10
    assert 0 < SHIPPED.slope < 2
    assert SHIPPED.low_ratio <= 1 <= SHIPPED.high_ratio


def test_a_line_is_found_again() -> None:
    """The slope of made-up measurements, and where they are sure."""
    rng = np.random.default_rng(1)
    overlap = [rng.uniform(0, 40, 6) for _ in range(30)]
    measured = [0.7 * x + rng.normal(0, 1.0, 6) for x in overlap]
    found = fit_calibration(overlap, measured, skill=0.5, skill_low=0.4)

    assert found.slope == pytest.approx(0.7, abs=0.02)
    assert found.sure_bits < 4
    assert found.low_ratio < 1 < found.high_ratio


@pytest.mark.parametrize("overlap", [[], [np.zeros(3)]])
def test_nothing_to_calibrate_on_is_refused(overlap) -> None:
    """No overlap, no line."""
    with pytest.raises(InvalidError) as caught:
        fit_calibration(overlap, overlap, skill=0, skill_low=0)

    assert caught.value.code == "calibration_empty"
