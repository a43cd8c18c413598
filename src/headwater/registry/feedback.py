"""Feedback: what somebody who paid for an answer says of it, as a value with one text.

It is registered as a contribution of kind ``feedback`` and earns nothing by being given: only if an
adapter is trained on it and answers turn out to owe it bits. A rating alone is kept and never trained
on. Pure: who may give it, how often and whether it is reviewed is decided above, here are the rules.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from headwater.core.canonical import Json, canonical, digest, parse_canonical
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.instants import SECOND_NS

Rating = Literal["up", "down"]
Review = Literal["pending", "accepted", "declined"]

SCHEMA: Final = "headwater.feedback/1"
TEXT_CHARS_MAX: Final = 20_000
COMMENT_CHARS_MAX: Final = 2_000
HOUR: Final = 3_600 * SECOND_NS
DAY: Final = 24 * HOUR
PER_HOUR_MAX: Final = 60
PER_DAY_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Feedback:
    """One judgement of one answer. `chosen` and `rejected` are a preference pair when both are there."""

    receipt: str  # id of the receipt of the call it is about
    prompt: str  # the caller's last words to the model
    rating: Rating | None
    chosen: str  # the better answer: a correction, the preferred one, or the answer itself when rated up
    rejected: str  # the answer that was worse; empty when there is none
    comment: str = ""

    def __post_init__(self) -> None:
        for name, most in (
            ("prompt", TEXT_CHARS_MAX),
            ("chosen", TEXT_CHARS_MAX),
            ("rejected", TEXT_CHARS_MAX),
            ("comment", COMMENT_CHARS_MAX),
        ):
            text = getattr(self, name)
            if len(text) > most:
                raise _invalid(f"{name} has {len(text)} characters", f"use at most {most}")
            if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r" for c in text):
                raise _invalid(f"{name} holds control characters", "send plain text")
        if self.rating is not None and self.rating not in get_args(Rating):
            raise _invalid(f"rating is {str(self.rating)[:40]!r}", f"use {' or '.join(get_args(Rating))}")
        if self.rating is None and not self.chosen:
            raise _invalid("there is neither a rating nor a better answer", "send at least one of them")
        if self.chosen and same_text(self.chosen, self.rejected):
            raise _invalid("the better answer is the answer itself", "send a different text, or a rating only")

    @property
    def trainable(self) -> bool:
        """Whether there is something to learn from: a bare rating says too little of what would be better."""
        return bool(self.chosen.strip())

    @property
    def lesson(self) -> str:
        """Digest of what it teaches: the prompt and the better answer, in whatever spelling.

        The answer rejected is no part of it: a model asked again says it in other words, and the lesson
        is the same.
        """
        return digest(f"{_plain(self.prompt)}\x00{_plain(self.chosen)}".encode())

    def to_bytes(self) -> bytes:
        """The canonical bytes that are registered."""
        value: Json = {
            "schema": SCHEMA,
            "receipt": self.receipt,
            "prompt": self.prompt,
            "rating": self.rating,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "comment": self.comment,
        }
        return canonical(value)


def judge(
    receipt: str,
    prompt: str,
    answer: str,
    *,
    rating: Rating | None = None,
    correction: str = "",
    preferred: str = "",
    comment: str = "",
) -> Feedback:
    """What a caller's fields say of `answer`.

    A correction or a preferred answer makes a pair with the answer as the rejected one. An answer
    rated up is an example to learn; one rated down, without saying what would be better, is not.

    Raises:
        InvalidError: both a correction and a preferred answer, nothing at all, or texts that cannot be used.
    """
    if correction and preferred:
        raise _invalid("there are both a correction and a preferred answer", "send one of them")
    better = correction or preferred
    if better:
        return Feedback(receipt, prompt, rating, better, answer, comment)
    return Feedback(receipt, prompt, rating, answer if rating == "up" else "", "", comment)


def read_feedback(content: bytes) -> Feedback:
    """The feedback that a contribution's bytes are.

    Raises:
        InvalidError: not feedback in its one form.
    """
    try:
        value = parse_canonical(content)
        if value.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        return Feedback(**value)
    except (HeadwaterError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidError(
            f"not registered feedback: {error}", code="feedback_invalid", fix="use feedback as it was registered"
        ) from None


def same_text(left: str, right: str) -> bool:
    """Whether two texts are the same to a reader: case, spacing and Unicode form do not count."""
    return _plain(left) == _plain(right)


def within_quota(given_at_ns: Sequence[int], now_ns: int) -> bool:
    """Whether somebody who gave feedback at these instants may give another piece now."""
    hour = sum(at > now_ns - HOUR for at in given_at_ns)
    day = sum(at > now_ns - DAY for at in given_at_ns)
    return hour < PER_HOUR_MAX and day < PER_DAY_MAX


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _invalid(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="feedback_invalid", fix=fix)
