"""The k-gram table against counting by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution.spans import grams
from headwater.attribution.spans.grams import (
    AGAIN,
    COPIED,
    FIRST,
    LINE_POSITIONS,
    LINE_WORDS,
    PADDING,
    WEIGHTS,
    first_slot,
    gram_hash,
    gram_table,
    line_of,
    next_slot,
    occurrences_at,
    state_of,
)

K = 4


def look_up(table, tokens, gram):
    """First position and count of a k-gram, or None, as a query finds them."""
    words = table.lines
    window = np.array([*gram, 0, 0, 0, 0], dtype=np.int32)
    hashed = gram_hash(window, 0, len(gram), WEIGHTS)
    line = line_of(np.uint64(hashed), words.size // LINE_WORDS)
    fingerprint = np.uint8(hashed & 255)
    line, slot = first_slot(words.view(np.uint64), line, np.uint64(fingerprint))
    while line >= 0:
        position = int(words[LINE_WORDS * line + LINE_POSITIONS + slot])
        if tuple(tokens[position : position + len(gram)]) == gram:
            return position, int(occurrences_at(words, table.frequent, line, slot))
        line, slot = next_slot(words.view(np.uint8), line, slot + 1, fingerprint)
    return None


def check(documents: list[list[int]]) -> None:
    flat = [token for document in documents for token in (*document, 0)]
    size = len(flat)
    tokens = np.array(flat + [0] * PADDING, dtype=np.int32)
    order = np.array(sorted(range(size), key=lambda i: flat[i:]), dtype=np.int32)
    symbols = np.searchsorted(np.sort(flat), np.arange(max(flat) + 2)).astype(np.int32)
    table, states = gram_table(tokens, order, symbols, K)
    count: Counter[tuple[int, ...]] = Counter()
    first: dict[tuple[int, ...], tuple[int, int]] = {}
    expected, at = {}, 0
    for number, document in enumerate(documents):
        for i in range(len(document) - K + 1):
            gram = tuple(document[i : i + K])
            count[gram] += 1
            before = first.setdefault(gram, (number, at + i))
            if before == (number, at + i):
                expected[at + i] = FIRST
            else:
                expected[at + i] = AGAIN if before[0] == number else COPIED
        at += len(document) + 1

    assert [int(state_of(states, i)) for i in range(size)] == [expected.get(i, 0) for i in range(size)]
    if not count:
        assert table.lines.size == 0
        return
    assert {gram: look_up(table, tokens, gram) for gram in count} == {g: (first[g][1], n) for g, n in count.items()}
    assert look_up(table, tokens, (9999, 9999, 9999, 9999)) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), max_size=60), min_size=1, max_size=6))
def test_first_position_count_and_state_of_every_gram(documents):
    """Few words, so that k-grams repeat within and between documents."""
    check(documents)


@pytest.mark.parametrize("size", [5000, 20_000])
def test_lines_that_run_over_and_counts_that_run_out(size):
    """Many distinct k-grams with crowded lines, and some that occur far more than five bits hold."""
    rng = np.random.default_rng(size)
    check([rng.integers(1, 40, size).tolist(), [1, 2, 3, 4, 5] * 500, rng.integers(1, 40, size).tolist()])


@pytest.mark.parametrize("size", [4, 12, 40, 103, 260, 1000, 5003])
def test_a_text_that_never_repeats_fits(size):
    """Every k-gram is distinct, however few the sample saw of them."""
    check([list(range(1, size + 1))])


def test_a_sample_that_saw_too_few_is_made_up_for(monkeypatch):
    """Words chosen so that the sample misses them only cost another try."""
    monkeypatch.setattr(grams, "_distinct", lambda *_: 40)
    check([list(range(1, 3000))])
