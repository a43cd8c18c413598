"""Near-duplicates."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis.strategies import floats, lists, sampled_from

from headwater.registry import merge_near_duplicates, resemblance, shingles

TEXT = "the river rises in the hills and runs down to the sea past mills and meadows"
WORDS = TEXT.split()


def test_a_small_edit_is_a_near_duplicate_and_another_text_is_not() -> None:
    """Case, punctuation and one changed word do not hide a copy."""
    text = " ".join(WORDS * 3)
    edited = text.upper().replace("HILLS", "mountains", 1) + "!"

    assert merge_near_duplicates([text, "Tea is brewed from leaves.", edited], 0.7) == ((0, 2), (1,))


@given(lists(lists(sampled_from(WORDS), max_size=12).map(" ".join), max_size=7), floats(0.05, 1.0))
def test_groups_are_the_components_of_the_resemblance_graph(texts: list[str], threshold: float) -> None:
    """Two texts share a group exactly when a chain of pairs at or above the threshold joins them."""
    sets = [
        {tuple(w[i : i + 3]) for i in range(max(1, len(w) - 2))} if (w := t.casefold().split()) else set()
        for t in texts
    ]

    def close(i: int, j: int) -> bool:
        union = sets[i] | sets[j]
        return bool(union) and len(sets[i] & sets[j]) / len(union) >= threshold

    reach = {i: {i} for i in range(len(texts))}
    for _ in texts:
        for i, j in combinations(range(len(texts)), 2):
            if close(i, j) or reach[i] & reach[j]:
                reach[i] = reach[j] = reach[i] | reach[j]
    expected = sorted({tuple(sorted(group)) for group in reach.values()})

    assert sorted(merge_near_duplicates(texts, threshold)) == expected


def test_texts_without_words_resemble_nothing() -> None:
    """Two empty texts are not copies of each other."""
    assert resemblance(shingles(""), shingles("…")) == 0.0
    assert merge_near_duplicates(["", "!!"], 0.5) == ((0,), (1,))


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01])
def test_a_threshold_outside_its_range_is_a_mistake(threshold: float) -> None:
    """Zero would merge everything."""
    with pytest.raises(ValueError, match="threshold"):
        merge_near_duplicates(["a"], threshold)
