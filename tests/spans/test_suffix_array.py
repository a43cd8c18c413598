"""The suffix array is the order of all suffixes, whatever the string."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headwater.attribution.spans.suffix_array import suffix_array


def by_sorting(symbols: list[int]) -> list[int]:
    return sorted(range(len(symbols)), key=lambda i: symbols[i:])


def by_doubling(symbols: NDArray[np.int32]) -> NDArray[np.int64]:
    """Prefix doubling: another algorithm altogether, quick enough for long repetitive strings."""
    rank, step = symbols.astype(np.int64) + 1, 1
    while True:
        second = np.concatenate([rank[step:], np.zeros(min(step, rank.size), dtype=np.int64)])
        order = np.lexsort((second, rank))
        changed = (rank[order][1:] != rank[order][:-1]) | (second[order][1:] != second[order][:-1])
        fresh = np.empty_like(rank)
        fresh[order] = np.concatenate([[1], 1 + np.cumsum(changed)])
        rank, step = fresh, step * 2
        if rank.max(initial=0) == rank.size or step > 2 * rank.size:
            return order


@settings(deadline=None)  # the first example compiles
@given(st.lists(st.integers(0, 3), max_size=80))
def test_short_strings_are_sorted_as_by_comparison(symbols):
    """All suffixes of small strings, ties and all."""
    assert suffix_array(np.array(symbols, dtype=np.int32), 4).tolist() == by_sorting(symbols)


def fibonacci(size: int) -> NDArray[np.int32]:
    one, two = [0], [0, 1]
    while len(two) < size:
        one, two = two, two + one
    return np.array(two[:size], dtype=np.int32)


ADVERSARIAL = {
    "one symbol": np.zeros(50_000, dtype=np.int32),
    "two symbols in turn": np.arange(50_001, dtype=np.int32) % 2,
    "rising": np.arange(50_000, dtype=np.int32),
    "falling": np.arange(50_000, dtype=np.int32)[::-1].copy(),
    "fibonacci": fibonacci(50_000),
    "thue-morse": np.array([bin(i).count("1") & 1 for i in range(50_000)], dtype=np.int32),
    "a period of 97": (np.arange(50_000) * np.arange(50_000) % 97).astype(np.int32),
    "a block twice": np.tile(np.random.default_rng(1).integers(0, 9, 25_000), 2).astype(np.int32),
    "deep recursion": np.tile(np.tile([2, 1, 0, 1], 50), 200).astype(np.int32),
    "de bruijn-like": np.random.default_rng(2).integers(0, 2, 60_000).astype(np.int32),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_strings_agree_with_prefix_doubling(name):
    """Runs, periods and self-similar strings, which break hasty sorters."""
    symbols = ADVERSARIAL[name]

    assert np.array_equal(suffix_array(symbols, int(symbols.max()) + 1), by_doubling(symbols))


def test_real_words_agree_with_an_independent_library(proposals):
    """On a million words the order is that of pydivsufsort."""
    divsufsort = pytest.importorskip("pydivsufsort").divsufsort
    words = b" ".join(text for _, text in proposals[:200]).split()
    _, symbols = np.unique(np.array(words), return_inverse=True)
    symbols = symbols.astype(np.int32)

    assert np.array_equal(suffix_array(symbols, int(symbols.max()) + 1), divsufsort(symbols))
