"""Case recipes: questions with the place of their answer in the corpus, and an answer in our own words.

A recipe holds no text of the corpus: it names a document, a section and which passage of it, with the
digest of that passage, so that another edition of the corpus is noticed and not measured by mistake.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from headwater.core.errors import InvalidError

FORMAT = "headwater-cases-1"


@dataclass(frozen=True, slots=True)
class Gold:
    """Where the answer stands."""

    pep: int
    section: str
    passage: int  # among the passages of that section
    digest: str  # first 16 hex digits of the SHA-256 of its UTF-8


@dataclass(frozen=True, slots=True)
class Recipe:
    """One question. Without a gold source it is a generic one, which no source should be paid for."""

    id: str
    question: str
    answer: str | None  # None: whatever the model says itself, greedily
    gold: Gold | None


@dataclass(frozen=True, slots=True)
class Recipes:
    """All that ship, in order; every fifth is generic."""

    passage_tokens: int  # the longest passage that the corpus is cut into
    cases: tuple[Recipe, ...]


def shipped_recipes() -> Recipes:
    """The recipes that ship with this version."""
    return read_recipes(resources.files(__package__).joinpath("recipes.json").read_bytes())


def read_recipes(raw: bytes) -> Recipes:
    """Recipes from their file.

    Raises:
        InvalidError: not such a file.
    """
    try:
        value = json.loads(raw)
        if value["format"] != FORMAT:
            raise ValueError(f"format is {value['format']!r}")
        cases = tuple(
            Recipe(row["id"], row["question"], row["answer"], None if row["gold"] is None else Gold(**row["gold"]))
            for row in value["cases"]
        )
        if len({case.id for case in cases}) != len(cases):
            raise ValueError("two cases have one id")
        return Recipes(int(value["passage_tokens"]), cases)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidError(
            f"the case recipes cannot be read: {error!r}", code="recipes_invalid", fix="install headwater again"
        ) from None
