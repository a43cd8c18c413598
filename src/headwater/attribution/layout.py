"""The prompt as parts: what the model reads, in order, with who supplied each piece.

A fixed part (template markers, the caller's own question) is always present and earns nothing here;
every other part is a player that can be taken away. Players are sources, system prompts, tools, worked
examples, earlier turns, or an adapter: weights that are there or not, with no text of their own.

Two rules of reading, chosen by `Layout.joined`. Apart (the rule of the served path): parts are tokenised
one by one and joined as tokens, so taking one away never changes how its neighbours are read. Joined:
the text of the parts that are present is tokenised as one, as a model does that is sent plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError

PartKind = Literal["source", "prompt", "tool", "example", "turn", "adapter"]


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of the prompt, exactly as the model reads it."""

    id: str  # a contribution id for a player; any label that is unique in the layout for a fixed part
    owner: str  # parts with one owner are one player
    text: str
    fixed: bool = False
    control: bool = False  # template text, in which the model's special tokens are honoured; never a caller's text
    registered_at_ns: int = 0  # of two copies the earlier one is the original; ties go to the earlier part
    kind: PartKind = "source"  # what it is to a reader; all kinds play by the same rules
    adapter: str | None = None  # name under which the scorer knows the weights of a part of kind ``adapter``

    @property
    def contribution(self) -> str | None:
        """The contribution a player is from: several parts of one have a number after theirs. None for a turn."""
        return None if self.fixed or self.kind == "turn" else contribution_of(self.id)

    def __post_init__(self) -> None:
        if (self.kind == "adapter") != (self.adapter is not None) or (self.adapter is not None and self.text):
            raise InvalidError(
                f"part {self.id!r} of kind {self.kind} has adapter {self.adapter!r} and {len(self.text)} characters",
                code="part_invalid",
                fix="an adapter is named and has no text; any other part has text and names no adapter",
            )


def part_id(contribution: str, number: int) -> str:
    """The id of the part that is so many-th from one contribution, counted from 0.

    >>> part_id("ctb_1", 0), part_id("ctb_1", 2)
    ('ctb_1', 'ctb_1#3')
    """
    return contribution if not number else f"{contribution}#{number + 1}"


def contribution_of(part_id: str) -> str:
    """The contribution that a part with this id is from."""
    return part_id.partition("#")[0]


@dataclass(frozen=True, slots=True)
class Layout:
    """The whole prompt in order."""

    parts: tuple[Part, ...]
    joined: bool = False  # read the present parts as one text, not part by part

    def __post_init__(self) -> None:
        ids = [part.id for part in self.parts]
        if len(set(ids)) != len(ids):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise InvalidError(
                f"part ids must be unique, repeated: {twice[:3]}",
                code="layout_invalid",
                fix="give each part its own id",
            )

    @property
    def players(self) -> tuple[Part, ...]:
        """The parts that can be taken away, in prompt order."""
        return tuple(part for part in self.parts if not part.fixed)


class Scorer(Protocol):
    """Reads texts as tokens and says how likely an answer is after each of several prompts."""

    @property
    def digest(self) -> str:
        """What the weights and the arithmetic are, as ``sha256:…``; two scorers with one digest agree."""
        ...

    @property
    def context_tokens_max(self) -> int:
        """The longest prompt and answer together, in tokens."""
        ...

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:
        """Token ids of one part; special tokens are honoured only when `control`."""
        ...

    def score(self, contexts: Sequence[Sequence[int]], answer: Sequence[int]) -> NDArray[np.float64]:
        """log2 p(answer token | context, earlier answer tokens): (contexts, answer tokens), all <= 0 and finite.

        Contexts that share a prefix are scored as a tree: the shared tokens are computed once.
        """
        ...


@runtime_checkable
class AdapterScorer(Scorer, Protocol):
    """A scorer that can also be asked with adapters on top of the base weights."""

    def score_with(
        self, contexts: Sequence[Sequence[int]], answer: Sequence[int], adapters: Sequence[tuple[str, ...]]
    ) -> NDArray[np.float64]:
        """As `score`, with for each context the names of the adapters that are present, in layout order."""
        ...
