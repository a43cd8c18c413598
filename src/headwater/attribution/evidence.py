"""What an attribution needs of a call, as canonical bytes: the prompt's parts and the answer's tokens.

Kept in the call journal so that an interrupted attribution starts again from the same bytes; erased
when the text must go, after which the receipt's digests are all that is left. A random nonce is part
of the bytes, so that a digest gives nothing away about a text that could be guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headwater.attribution.layout import Layout, Part
from headwater.core.canonical import Json, canonical, parse_canonical
from headwater.core.errors import InvariantError
from headwater.core.instants import format_instant, parse_instant


class Tokenize(Protocol):
    """A model's tokeniser, as `Scorer.tokenize` and `Backend.tokenize` are."""

    def __call__(self, text: str, *, control: bool) -> Sequence[int]:
        """Token ids of one part; special tokens are honoured only when `control`."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several answers to one prompt."""

    text: str
    token_ids: tuple[int, ...]  # as generated, without the end-of-turn token
    token_ends: tuple[int, ...]  # byte offset in the UTF-8 of `text` at which each token ends
    finish_reason: str  # stop, length or cancelled (the caller hung up)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model gave."""

    text: str
    token_ids: tuple[int, ...]
    token_ends: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    others: tuple[Choice, ...] = ()  # further answers, when several were asked for
    answer_tokens: int | None = None  # as another server counted them; None: as many as there are ids
    wire: str = ""  # what of it is no text, to be given again as it was: log-probabilities, or a whole foreign body

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Every answer, the first one too."""
        return (Choice(self.text, self.token_ids, self.token_ends, self.finish_reason), *self.others)

    @property
    def tokens(self) -> int:
        """Answer tokens that are charged, of all answers."""
        if self.answer_tokens is not None:
            return self.answer_tokens
        return sum(len(choice.token_ids) for choice in self.choices)


def layout_bytes(layout: Layout, nonce: bytes) -> bytes:
    """The layout as canonical JSON; `read_layout` reads it back."""
    return canonical(
        {
            "nonce": nonce.hex(),
            "parts": [
                {
                    "id": part.id,
                    "owner": part.owner,
                    "text": part.text,
                    "fixed": part.fixed,
                    "control": part.control,
                    "registered_at": format_instant(part.registered_at_ns),
                    "kind": part.kind,
                    "adapter": part.adapter,
                }
                for part in layout.parts
            ],
        }
    )


def read_layout(raw: bytes) -> Layout:
    """The layout that `layout_bytes` wrote.

    Raises:
        InvariantError: the bytes are not a layout; what we wrote ourselves is damaged.
    """
    try:
        return Layout(
            tuple(
                Part(
                    row["id"],
                    row["owner"],
                    row["text"],
                    row["fixed"],
                    row["control"],
                    parse_instant(row["registered_at"]),
                    row.get("kind", "source"),  # journals of before there were kinds
                    row.get("adapter"),
                )
                for row in parse_canonical(raw)["parts"]
            )
        )
    except (KeyError, TypeError) as error:
        raise InvariantError(f"the journal holds no layout: {error!r}", code="evidence_damaged") from None


def answer_bytes(answer: Answer, nonce: bytes) -> bytes:
    """The answer as canonical JSON; `read_answer` reads it back."""
    row: dict[str, Json] = {
        "nonce": nonce.hex(),
        **_choice_json(answer.choices[0]),
        "prompt_tokens": answer.prompt_tokens,
    }
    if answer.others:
        row["others"] = [_choice_json(choice) for choice in answer.others]
    if answer.answer_tokens is not None:
        row["answer_tokens"] = answer.answer_tokens
    if answer.wire:
        row["wire"] = answer.wire
    return canonical(row)


def _choice_json(choice: Choice) -> dict[str, Json]:
    return {
        "text": choice.text,
        "token_ids": list(choice.token_ids),
        "token_ends": list(choice.token_ends),
        "finish_reason": choice.finish_reason,
    }


def read_answer(raw: bytes) -> Answer:
    """The answer that `answer_bytes` wrote.

    Raises:
        InvariantError: the bytes are not an answer; what we wrote ourselves is damaged.
    """
    try:
        row = parse_canonical(raw)
        first = _read_choice(row)
        return Answer(
            *(first.text, first.token_ids, first.token_ends, first.finish_reason, row["prompt_tokens"]),
            others=tuple(_read_choice(other) for other in row.get("others", ())),
            answer_tokens=row.get("answer_tokens"),
            wire=row.get("wire", ""),
        )
    except (KeyError, TypeError) as error:
        raise InvariantError(f"the journal holds no answer: {error!r}", code="evidence_damaged") from None


def _read_choice(row: dict[str, Any]) -> Choice:
    return Choice(row["text"], tuple(row["token_ids"]), tuple(row["token_ends"]), row["finish_reason"])


def prompt_ids(layout: Layout, tokenize: Tokenize) -> tuple[int, ...]:
    """The tokens the model reads: each part by itself, joined in order."""
    return tuple(token for part in layout.parts for token in tokenize(part.text, control=part.control))
