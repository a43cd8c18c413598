from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.registry.feedback import Feedback, judge, read_feedback

RECEIPT = "ab" * 32
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=60)


@given(prompt=TEXT, answer=TEXT, better=TEXT, comment=TEXT)
def test_feedback_has_one_text(prompt, answer, better, comment):
    """What is registered is read back as it was said."""
    said = None
    with contextlib.suppress(InvalidError):  # the answer itself as the better one
        said = judge(RECEIPT, prompt, answer, rating="down", correction=better, comment=comment)

    assert said is None or read_feedback(said.to_bytes()) == said


def test_what_a_caller_says_becomes_what_may_be_learned():
    """A correction or a preferred answer is a pair; up makes an example of the answer; down alone teaches nothing."""
    corrected = judge(RECEIPT, "q", "a", correction="b")
    preferred = judge(RECEIPT, "q", "a", rating="down", preferred="b")
    up, down = judge(RECEIPT, "q", "a", rating="up"), judge(RECEIPT, "q", "a", rating="down")

    assert (corrected.chosen, corrected.rejected) == ("b", "a")
    assert (preferred.chosen, preferred.rejected) == ("b", "a")
    assert (up.chosen, up.rejected, up.trainable) == ("a", "", True)
    assert (down.chosen, down.rejected, down.trainable) == ("", "", False)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"correction": "b", "preferred": "c"},
        {"correction": " A "},
        {"rating": "sideways"},
        {"rating": "up", "comment": "x" * 3_000},
        {"correction": "b\x07"},
    ],
)
def test_what_says_nothing_is_refused(fields):
    """Nothing at all, two better answers, the answer itself, and texts out of bounds."""
    with pytest.raises(InvalidError):
        judge(RECEIPT, "q", "a", **fields)


def test_the_lesson_ignores_spelling_and_the_worse_answer():
    """The same better answer to the same prompt is the same lesson; another prompt or answer is another."""
    first = judge(RECEIPT, "Why?", "because", correction="For speed")

    assert first.lesson == judge("cd" * 32, "why? ", "dunno", correction="for  SPEED").lesson
    assert first.lesson != judge(RECEIPT, "How?", "because", correction="For speed").lesson
    assert first.lesson != judge(RECEIPT, "Why?", "because", correction="For money").lesson


def test_other_bytes_are_no_feedback():
    """A field more, a field less, another schema or another form."""
    raw = Feedback(RECEIPT, "q", "up", "a", "").to_bytes()

    for wrong in (b"{}", raw[:-1], raw.replace(b"/1", b"/2"), b" " + raw, raw.replace(b'"up"', b'"no"')):
        with pytest.raises(InvalidError):
            read_feedback(wrong)
