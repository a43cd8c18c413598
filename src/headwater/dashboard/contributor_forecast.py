"""What the next four weeks may bring: a range, not a promise, from nothing but what was earned before.

Method: the level is the mean of the last eight weeks, and the interval is as wide as the same forecast, made at the end
of every earlier week, missed by: the larger of that mean square error and of the error that weeks without any
memory would give, with Student's factor for 80 % and as many degrees of freedom as weeks. So weeks that hang
together and incomes that grow or fade make it wider, and a short past makes it wider still. How often the interval
held on the past is shown beside it.

Knows nothing of why somebody earned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

WEEK: Final = 7
AHEAD: Final = 4  # weeks that are forecast
LEVEL: Final = 8  # weeks whose mean is the level
HISTORY: Final = 26  # weeks that are looked back on
LEAST: Final = 3  # weeks that are needed

_STUDENT: Final = (1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372)
"""The 90 % points of Student's distribution with 2, 3, … degrees of freedom: an 80 % interval on both sides."""
_STUDENT_20, _STUDENT_MANY = 1.345, 1.310


@dataclass(frozen=True, slots=True)
class Forecast:
    """The sum over the days to come, nano units."""

    days: int
    low_units: int
    middle_units: int
    high_units: int
    weeks: int  # whole weeks it rests on
    held: int  # of the checks on the past, how often the sum lay within the interval made before it
    checks: int


def forecast(daily_units: Sequence[int]) -> Forecast | None:
    """The sum of the next four weeks from what was earned on each day so far, oldest first; None with under 3 weeks."""
    days = np.asarray(daily_units, np.float64)
    count = days.size // WEEK
    if count < LEAST:
        return None
    weeks = days[days.size - count * WEEK :].reshape(count, WEEK).sum(axis=1)
    low, middle, high = interval(weeks)
    held = checks = 0
    for at in range(LEAST, count - AHEAD + 1):
        bottom, _, top = interval(weeks[:at])
        checks += 1
        held += bool(bottom <= weeks[at : at + AHEAD].sum() <= top)
    return Forecast(AHEAD * WEEK, round(low), round(middle), round(high), min(count, HISTORY), held, checks)


def interval(weeks_w: NDArray[np.float64]) -> tuple[float, float, float]:
    """The lower end, the middle and the upper end of the sum of the next `AHEAD` weeks.

    Args:
        weeks_w: (weeks,) what each week brought, oldest first, at least `LEAST` of them.
    """
    known_w = weeks_w[-HISTORY:]
    count, near = known_w.size, min(known_w.size, LEVEL)
    middle = AHEAD * float(known_w[-near:].mean())
    forgetful = float(known_w.var(ddof=1)) * (AHEAD + AHEAD**2 / near)
    missed = [
        float(known_w[at : at + AHEAD].sum() - AHEAD * known_w[max(0, at - LEVEL) : at].mean())
        for at in range(LEAST, count - AHEAD + 1)
    ]
    error = max(forgetful, float(np.mean(np.square(missed))) if missed else 0.0)
    half = _student(count - 1) * float(np.sqrt(error))
    return max(0.0, middle - half), middle, middle + half


def _student(freedom: int) -> float:
    if freedom - 2 < len(_STUDENT):
        return _STUDENT[max(0, freedom - 2)]
    return _STUDENT_20 if freedom <= 20 else _STUDENT_MANY
