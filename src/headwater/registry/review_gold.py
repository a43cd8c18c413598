"""Gold: tasks whose right answer is known, hidden among the others, and what follows from how they were answered.

Which tasks are gold is decided by a secret that was committed to before the first draw: whoever is shown the secret
later can check every choice, and nobody can guess one before. Gold alone is a ground to slash: it is the only
measure that does not depend on what other reviewers say. Knows nothing of bonds; it decides, others move money.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import Final

from headwater.core.canonical import digest
from headwater.core.ids import ContributorId
from headwater.core.money import BPS

PPM: Final = 1_000_000

SLASH_TASKS_MIN: Final = 10
"""Fewest gold tasks on which anybody is judged."""

HONEST_PPM: Final = 800_000
"""How often a careful reviewer is right on gold, at the least."""

DOUBT_PPM: Final = 5_000
"""Somebody is judged when one as careful as that would do no better in fewer than this many of a million cases."""

SLASH_BPS_MAX: Final = 5_000
"""Most that one decision takes of a bond."""


@dataclass(frozen=True, slots=True)
class GoldRecord:
    """How a reviewer has done on gold."""

    reviewer: ContributorId
    answered: int
    right: int

    @property
    def accuracy_ppm(self) -> int | None:
        """Part that was right; None before the first."""
        return self.right * PPM // self.answered if self.answered else None


@dataclass(frozen=True, slots=True)
class Slash:
    """The decision that part of a reviewer's bond is lost, and that they judge no more."""

    reviewer: ContributorId
    bps: int  # of the bond
    answered: int
    right: int
    chance_ppm: int  # that a careful reviewer does so badly


def commitment(secret: bytes) -> str:
    """What is published of the secret before it is used."""
    return digest(b"headwater gold\x00" + secret)


def is_gold(secret: bytes, task: str, reviewer: ContributorId, gold_ppm: int) -> bool:
    """Whether a reviewer who is given `task` is given a gold task beside it.

    A part g of *all* tasks are gold when g / (1 - g) gold tasks come with each real one.
    """
    drawn = int.from_bytes(hashlib.sha256(secret + f"\x00{task}\x00{reviewer}".encode()).digest()[:8], "big")
    return drawn * (PPM - gold_ppm) < gold_ppm << 64


def slash(record: GoldRecord) -> Slash | None:
    """The decision that a record on gold calls for, if any: only when chance hardly explains it.

    The part of the bond grows with how far below a careful reviewer they were. Exact binomial tail, in fractions.

    >>> slash(GoldRecord(ContributorId("ctr_1"), 12, 11)) is None
    True
    """
    if record.answered < SLASH_TASKS_MIN:
        return None
    chance = chance_of_so_few(record.answered, record.right, Fraction(HONEST_PPM, PPM))
    if chance * PPM >= DOUBT_PPM:
        return None
    missing = max(0, HONEST_PPM * record.answered - PPM * record.right)  # in millionths of a task, under the mark
    bps = min(SLASH_BPS_MAX, BPS * missing // (HONEST_PPM * record.answered))
    return Slash(record.reviewer, bps, record.answered, record.right, int(chance * PPM))


def chance_of_so_few(answered: int, right: int, accuracy: Fraction) -> Fraction:
    """The chance that somebody of this accuracy is right at most `right` times of `answered`."""
    return sum(
        (comb(answered, k) * accuracy**k * (1 - accuracy) ** (answered - k) for k in range(right + 1)), Fraction(0)
    )
