"""What a reviewer's reports are worth, measured against other reviewers' without knowing the truth.

Two measures, both nought in expectation for reports that do not depend on the task (constant, random, copied from a
habit) and highest for honest effort: *Correlated Agreement*, how much oftener two agree on one task than on two
different ones; and the *Determinant Mutual Information*, the product of the determinants of their joint reports over
two halves of the tasks. Both are divided by the most that anybody could reach against the same peers' reports, so
nobody's own reports move their own scale. The lower one counts. Whole numbers throughout: the same reports give the
same multiplier everywhere.

Sources: V. Shnayder, A. Agarwal, R. Frongillo and D. Parkes, "Informed truthfulness in multi-task peer prediction",
2016; Y. Kong, "Dominantly truthful multi-task peer prediction with a constant number of tasks", 2020. Here the peer is
all others who reported on the task, each with an equal part of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Final

from headwater.core.ids import ContributorId
from headwater.registry.review import Verdict

PPM: Final = 1_000_000

TASKS_MIN: Final = 20
"""Fewest tasks shared with others on which anybody is measured; until then their pay waits."""

FULL_PAY_PPM: Final = 400_000
"""The score that is paid at the plain rate: two who are right nine times in ten reach about 640,000."""

MULTIPLIER_PPM_MAX: Final = 1_500_000
"""Most that good reports multiply pay by; the least is nought."""

_HALVES = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """A reviewer's scores over the tasks shared with others."""

    reviewer: ContributorId
    shared_tasks: int
    agreement_ppm: int  # correlated agreement, of the most that is possible; negative when contrary
    determinant_ppm: int  # root of the determinant mutual information, of the most that is possible
    multiplier_ppm: int | None  # None while too few tasks are shared: nothing is paid yet, nothing is lost


@dataclass(frozen=True, slots=True)
class Task:
    """The reports on one task."""

    id: str
    reports: Mapping[ContributorId, Verdict]


def measure(reviewer: ContributorId, tasks: Sequence[Task]) -> Measured:
    """The scores of a reviewer.

    Args:
        tasks: any tasks in a fixed order, such as the one in which they were opened; those that the reviewer or
            nobody else reported on do not count.
    """
    shared = [task for task in tasks if reviewer in task.reports and len(task.reports) > 1]
    halves = [_joint(reviewer, shared[half::_HALVES]) for half in range(_HALVES)]
    agreement = _agreement(_joint(reviewer, shared)) if shared else Fraction(0)
    determinant = _determinant(halves) if len(shared) >= 2 * _HALVES else Fraction(0)
    agreement_ppm, determinant_ppm = _ppm(agreement), isqrt(max(0, _ppm(determinant)) * PPM)
    multiplier = None
    if len(shared) >= TASKS_MIN:
        lower = max(0, min(agreement_ppm, determinant_ppm))
        multiplier = min(MULTIPLIER_PPM_MAX, lower * PPM // FULL_PAY_PPM)
    return Measured(reviewer, len(shared), agreement_ppm, determinant_ppm, multiplier)


@dataclass(frozen=True, slots=True)
class _Joint:
    """Reports of one reviewer and of the peers on the same tasks, as parts of all."""

    both_accept: Fraction
    accept_refuse: Fraction  # the reviewer accepts, the peer refuses
    refuse_accept: Fraction
    both_refuse: Fraction

    @property
    def determinant(self) -> Fraction:
        """Nought when the two are independent."""
        return self.both_accept * self.both_refuse - self.accept_refuse * self.refuse_accept

    @property
    def most(self) -> Fraction:
        """The determinant of somebody who reported just what the peers did: it depends on the peers alone."""
        accepts = self.both_accept + self.refuse_accept
        return accepts * (1 - accepts)


def _joint(reviewer: ContributorId, tasks: Sequence[Task]) -> _Joint:
    seen: Counter[tuple[Verdict, Verdict, int]] = Counter()
    for task in tasks:
        mine, others = task.reports[reviewer], len(task.reports) - 1
        for peer, theirs in task.reports.items():
            if peer != reviewer:
                seen[mine, theirs, others] += 1
    counts: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
    for (mine, theirs, others), count in seen.items():
        counts[mine, theirs] += Fraction(count, others * len(tasks))
    return _Joint(
        counts["accept", "accept"], counts["accept", "refuse"], counts["refuse", "accept"], counts["refuse", "refuse"]
    )


def _agreement(joint: _Joint) -> Fraction:
    """Agreement on one task less agreement on two: for two answers, twice the determinant; of the most possible."""
    return joint.determinant / joint.most if joint.most else Fraction(0)


def _determinant(halves: Sequence[_Joint]) -> Fraction:
    first, second = halves
    most = first.most * second.most
    return first.determinant * second.determinant / most if most else Fraction(0)


def _ppm(value: Fraction) -> int:
    return int(value * PPM)
