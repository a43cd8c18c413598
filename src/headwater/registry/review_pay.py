"""How a policy's reviewers' line is shared: by tasks done, multiplied by what the reports were worth.

Whoever is not measured yet keeps their tasks for a later share; whoever's reports were worth nothing has spent them.
Knows nothing of policies or ledgers: it gives parts of a line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headwater.core.ids import ContributorId
from headwater.core.money import PPB, allocate


@dataclass(frozen=True, slots=True)
class Work:
    """What a reviewer has done that no share has counted yet."""

    reviewer: ContributorId
    tasks: int  # answered in time, gold among them
    multiplier_ppm: int | None  # None while too little is known: the tasks wait
    slashed: bool = False  # nothing is paid to whom gold has shown up


@dataclass(frozen=True, slots=True)
class LineShares:
    """The parts of a line, and whose work it counted."""

    shares: tuple[tuple[ContributorId, int], ...]  # ppb, sorted by reviewer, each > 0; sum to 10^9, or none
    counted: tuple[ContributorId, ...]  # their tasks are spent
    waiting: tuple[ContributorId, ...]  # their tasks are kept


def share_line(works: Iterable[Work]) -> LineShares:
    """Divide a line among reviewers; without anybody to pay there are no shares and nobody's work is counted."""
    known = sorted((work for work in works if work.tasks), key=lambda work: work.reviewer)
    waiting = tuple(work.reviewer for work in known if work.multiplier_ppm is None and not work.slashed)
    counted = [work for work in known if work.multiplier_ppm is not None or work.slashed]
    weights = [0 if work.slashed else work.tasks * (work.multiplier_ppm or 0) for work in counted]
    if not any(weights):
        return LineShares((), (), tuple(work.reviewer for work in known))
    parts = allocate(PPB, weights)
    shares = tuple((work.reviewer, part) for work, part in zip(counted, parts, strict=True) if part)
    return LineShares(shares, tuple(work.reviewer for work in counted), waiting)
