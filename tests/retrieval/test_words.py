"""Words of a question and of texts."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import lists, sampled_from

from headwater.retrieval.terms import question_terms, singular, terms
from headwater.retrieval.words import CORPUS_MIN, WordIndex

VOCABULARY = ["river", "hill", "sea", "mill", "stone"]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Why were f-strings added to Python?", ["f-string", "string", "added", "python"]),
        ("What does the walrus operator do?", ["walrus", "operator"]),
        ("How should I name my classes?", ["name", "class"]),
        ("Does dict.has_key work in `__init__`?", ["dict.has_key", "dict", "key", "init"]),
        ("Was ist ein Flußübergang?", ["ist", "ein", "flussübergang"]),
    ],
)
def test_a_question_is_about_its_content_words(question: str, expected: list[str]) -> None:
    """Function words go, compounds give themselves and their parts, plurals meet their singular."""
    assert question_terms(question) == expected


SMALL_TALK = """Say hello|Thanks!|What is your name?|My name is…|How are you today?|What's the time?|What time is it?
Tell me a joke.|Good morning!|Who are you?|Thank you very much for your help|ok|YES||???"""


@pytest.mark.parametrize("chat", re.split(r"[|\n]", SMALL_TALK))
def test_small_talk_asks_for_nothing(chat: str) -> None:
    """A text that only makes conversation has no terms to look up."""
    assert question_terms(chat) == []


def test_documents_keep_the_words_that_questions_drop() -> None:
    """A greeting inside a document is still a word of it."""
    assert terms("Say hello to the world") == ["say", "hello", "world"]


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("queries", "query"),
        ("strings", "string"),
        ("boxes", "box"),
        ("matches", "match"),
        ("this", "this"),
        ("status", "status"),
        ("class", "class"),
        ("bus", "bus"),
    ],
)
def test_plurals_meet_their_singular(plural: str, one: str) -> None:
    """Both forms give one term."""
    assert singular(plural) == singular(one) == one


def brute_force(corpus: list[list[str]], question: list[str]) -> list[float]:
    """The fraction by its formula, one text at a time."""
    mean = sum(map(len, corpus)) / len(corpus)
    holding = Counter(word for words in corpus for word in set(words))
    weights = {t: math.log(1 + (CORPUS_MIN - holding[t] + 0.5) / (holding[t] + 0.5)) for t in question}
    scores = []
    for words in corpus:
        length = 1.2 * (1 - 0.5 + 0.5 * len(words) / mean)
        parts = [weights[t] * words.count(t) / (words.count(t) + length) for t in question]
        scores.append(sum(parts) / sum(weights.values()))
    return scores


@settings(deadline=None, max_examples=60)
@given(
    lists(lists(sampled_from(VOCABULARY), min_size=1, max_size=9), min_size=1, max_size=8),
    lists(sampled_from([*VOCABULARY, "unheard"]), min_size=1, max_size=4, unique=True),
)
def test_scores_are_the_formula(corpus: list[list[str]], question: list[str]) -> None:
    """The sparse index agrees with the formula evaluated text by text, words that occur nowhere included."""
    scores = WordIndex.build(corpus).scores(question)

    assert np.allclose(scores, brute_force(corpus, question), atol=1e-5)
    assert ((scores >= 0) & (scores < 1)).all()


def test_an_empty_corpus_scores_nothing() -> None:
    """No texts, or texts without a term, are no error."""
    assert WordIndex.build([]).scores(["river"]).shape == (0,)
    assert WordIndex.build([[], []]).scores(["river"]).tolist() == [0.0, 0.0]
    assert WordIndex.build([["river"]]).scores([]).tolist() == [0.0]
