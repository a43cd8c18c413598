"""Credit of an earlier answer reaches the sources it came from, and nothing is lost on the way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.attribution.bits import Share
from headwater.attribution.passing_on import Earlier, pass_on
from headwater.core.errors import InvalidError
from headwater.core.money import PPB, share_ppb


def share(part: str, bits: list[float], weight: int, channel: str = "grounded") -> Share:
    total = sum(bits)
    return Share(part, f"owner of {part}", channel, weight, total, total - 1, total + 1, np.array(bits))  # type: ignore[arg-type]


bits = st.lists(st.floats(-20, 20), min_size=3, max_size=3)


@given(
    one=bits,
    two=bits,
    weight=st.integers(0, PPB),
    parts=st.lists(st.integers(0, 10**6), max_size=4),
    residual=st.integers(0, 10**6),
)
def test_bits_intervals_and_weights_are_conserved(one, two, weight, parts, residual) -> None:
    """Whatever an earlier receipt says, sums per token and in weight stay the same."""
    weights, rest = share_ppb(parts, residual)
    earlier = Earlier(tuple((f"doc-{i}", f"o{i}", w) for i, w in enumerate(weights)), rest)
    before = [share("turn", one, weight), share("doc-0", two, PPB - weight)]

    after = pass_on(before, {"turn": earlier})

    assert sum(s.weight_ppb for s in after) == PPB
    np.testing.assert_allclose(sum(s.token_bits for s in after), np.array(one) + np.array(two), atol=1e-9)
    assert sum(s.low for s in after) == pytest.approx(sum(s.low for s in before))
    assert len({s.part_id for s in after}) == len(after)


def test_a_source_of_the_earlier_answer_that_is_in_the_prompt_again_has_one_share() -> None:
    """What it earns through the turn and by itself is added."""
    earlier = Earlier((("doc", "ann", 600_000_000),), 400_000_000)

    turn, doc = pass_on([share("turn", [10.0], 500), share("doc", [4.0], 500)], {"turn": earlier})

    assert (turn.part_id, turn.bits, turn.weight_ppb) == ("turn", pytest.approx(4.0), 200)
    assert (doc.part_id, doc.bits, doc.weight_ppb) == ("doc", pytest.approx(10.0), 800)


def test_turns_that_are_not_ours_and_copied_words_keep_their_credit() -> None:
    """Only a grounded share of a part with a receipt is passed on."""
    earlier = {"turn": Earlier((("doc", "ann", PPB),), 0)}
    before = [share("said", [3.0], 1), share("turn", [2.0], 1, "reproduced")]

    assert [(s.part_id, s.bits) for s in pass_on(before, earlier)] == [("said", 3.0), ("turn", 2.0)]


def test_weights_that_are_no_whole_are_refused() -> None:
    """An earlier answer's weights and residual are those of a receipt: 10^9 together."""
    with pytest.raises(InvalidError) as caught:
        Earlier((("doc", "ann", 5),), 5)
    assert caught.value.code == "shares_not_whole"
