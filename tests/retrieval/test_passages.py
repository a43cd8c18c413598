"""Cutting documents into passages."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers, lists, sampled_from, text

from headwater.retrieval import cut, estimate_tokens, trim

DOCUMENT = """PEP: 9001 Title: Rivers Author: Ada Lovelace Status: Final
Type: Informational Created: 01-Aug-2015

Abstract
========

This text says how rivers run. They rise in the hills, and they end in the sea.
A second sentence follows here, with a few more words in it.

    code = river.run()
    more_code(code, to="the sea")

Rationale
---------

Rivers run downhill because water is heavy. Nobody has ever seen one run uphill
by itself, whatever the weather and whoever was asked to look.

References
==========

.. [1] A long list of links that nobody wants to see quoted in an answer to them.

Afterword ''''''''''''

The one line heading above starts a section of its own, which is served again.

Copyright
=========

This document has been placed in the public domain by those who wrote it all.
"""


def word_count(passage: str) -> int:
    """A tokenizer that counts words."""
    return len(passage.split())


def test_passages_are_prose_of_one_section_with_its_heading() -> None:
    """Header, code, references and copyright are left out; each passage knows its heading."""
    spans = cut(DOCUMENT, 100)

    assert [(s.heading, DOCUMENT[s.start : s.end].split()[:3]) for s in spans] == [
        ("Abstract", ["This", "text", "says"]),
        ("Rationale", ["Rivers", "run", "downhill"]),
        ("Afterword", ["The", "one", "line"]),
    ]


def test_offsets_are_exact_and_passages_do_not_overlap() -> None:
    """A passage is the document's own characters, without space around it."""
    spans = cut(DOCUMENT, 12, word_count)

    for span in spans:
        passage = DOCUMENT[span.start : span.end]
        assert passage == passage.strip()
        assert word_count(passage) <= 12
    assert all(a.end <= b.start for a, b in pairwise(spans))


@given(text(max_size=400), integers(3, 40))
def test_any_text_is_cut_within_the_limit(document: str, tokens_max: int) -> None:
    """Whatever the text, passages are in order, disjoint, inside it and within the limit."""
    spans = cut(document, tokens_max, word_count)

    ends = [0]
    for span in spans:
        assert ends[-1] <= span.start < span.end <= len(document)
        assert word_count(document[span.start : span.end]) <= tokens_max
        ends.append(span.end)


@settings(max_examples=50)
@given(
    lists(
        sampled_from(["Water runs down the hill and over the stones to the mill.", "It is cold!", "Who knows why?"]),
        min_size=1,
        max_size=30,
    )
)
def test_prose_is_cut_between_sentences_and_nothing_of_it_is_lost(sentences: list[str]) -> None:
    """When every sentence fits, each passage is a run of whole sentences and together they are all of them."""
    document = " ".join(sentences)
    spans = cut(document, 25, word_count)

    for span in spans:
        assert document[span.start : span.end][-1] in ".!?"
    kept = " ".join(document[span.start : span.end] for span in spans)
    lost = len(document) - len(kept)
    assert lost == 0 or lost <= sum(map(len, sentences[-3:])) + 3  # only a last fragment may be too short to serve


@given(text(min_size=1, max_size=300), integers(1, 30))
def test_trimming_gives_the_longest_whole_words_that_fit(document: str, tokens_max: int) -> None:
    """The result fits, starts the text, and is never longer than what was given."""
    end = trim(document, 0, len(document), tokens_max, word_count)

    assert 0 <= end <= len(document)
    assert word_count(document[:end]) <= tokens_max
    if word_count(document) <= tokens_max:
        assert end == len(document)


def test_trimming_prefers_a_sentence_end() -> None:
    """A passage that is too long loses its last sentence, not half of it."""
    document = "One two three. Four five six. Seven eight nine."

    assert document[: trim(document, 0, len(document), 7, word_count)] == "One two three. Four five six."
    assert document[: trim(document, 0, len(document), 2, word_count)] == "One two"
    assert trim("Donaudampfschifffahrt", 0, 21, 3, len) == 0


def test_fragments_that_say_nothing_are_no_passages() -> None:
    """Short scraps, tables of numbers and lists of links are not served."""
    assert cut("See below.\n\n1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n\n- http://example.org/a/b/c\n", 100) == ()
    assert cut("", 100) == ()


def test_fenced_code_is_left_out() -> None:
    """A fence may hold empty lines and headings of its own."""
    fence = "```\nHead\n====\n\nThis sentence is inside the fence and has many words.\n```"
    document = (
        f"Words before the code that can be served as they are.\n\n{fence}\n\nWords after it that can be served too.\n"
    )

    assert [document[s.start : s.end].split()[1] for s in cut(document, 100)] == ["before", "after"]


@pytest.mark.parametrize(
    ("words", "low", "high"),
    [("the river runs down to the sea", 7, 8), ("internationalisation", 3, 4), ("3.14159", 7, 8), ("", 0, 0)],
)
def test_the_estimate_counts_long_words_and_digits_more_than_once(words: str, low: int, high: int) -> None:
    """It is a bound for planning; the serving model's own count decides in the end."""
    assert low <= estimate_tokens(words) <= high
