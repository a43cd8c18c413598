"""What the next days may bring: a range, not a promise, from nothing but what was earned before.

Method: predictive draws by the Bayesian bootstrap over blocks of days. The past is cut into every run of seven days in a
row; each of many draws gives the runs random weights (Dirichlet, so that a short past is trusted less) and puts
together the days to come from runs drawn by those weights. The middle half of nothing is said: the page shows the
median and the 80 % interval of the sums. Weeks have shape and good days come together, which is why whole runs are
drawn. It knows no growth: when the past is unlike the future, it is wrong, and the page says how often it held before.

Source: Rubin, 1981, The Bayesian bootstrap; Künsch, 1989, on blocks. Differs in that blocks are weighted, not resampled
twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 7
HISTORY: Final = 84  # days that are looked back on
LEAST: Final = 21  # days that are needed
DRAWS: Final = 2_000
LOW: Final = 0.10
HIGH: Final = 0.90
_CHECKS: Final = 12  # earlier days from which the past is forecast, to see how often the interval held


@dataclass(frozen=True, slots=True)
class Forecast:
    """Sums over days to come, nano units."""

    days: int
    low_units: int
    middle_units: int
    high_units: int
    history_days: int  # how many days it rests on
    held: int  # of the checks on the past, how often the sum lay within the interval
    checks: int


def forecast(daily_units: Sequence[int], *, days: int = 28, seed: int = 0) -> Forecast | None:
    """The sum of the next `days`, from what was earned on each day so far, oldest first; None with too short a past.

    The same past and seed give the same figures.
    """
    past = np.asarray(daily_units, np.float64)
    if past.size < LEAST:
        return None
    low, middle, high = _sums(past[-HISTORY:], days, seed)
    held = checks = 0
    for back in range(_CHECKS):
        at = past.size - days - back * BLOCK
        if at < LEAST:
            break
        bottom, _, top = _sums(past[max(0, at - HISTORY) : at], days, seed + 1 + back)
        checks += 1
        held += bool(bottom <= past[at : at + days].sum() <= top)
    return Forecast(days, round(low), round(middle), round(high), min(past.size, HISTORY), held, checks)


def _sums(past: NDArray[np.float64], days: int, seed: int) -> tuple[float, float, float]:
    """The 10 %, 50 % and 90 % points of the sum over `days`.

    Args:
        past: (history,) a day's earnings, at least `BLOCK` of them.
    """
    rng = np.random.Generator(np.random.Philox(key=[0x4EAD_0001, seed]))
    starts = past.size - BLOCK + 1
    sums_b = np.convolve(past, np.ones(BLOCK), "valid")  # (starts,) what each run of days brought
    blocks, rest = divmod(days, BLOCK)
    # Runs overlap, so they tell less than as many weeks that do not: the weights vary as those of so many weeks.
    weights_db = rng.gamma(1.0 / BLOCK, size=(DRAWS, starts))
    weights_db /= weights_db.sum(axis=1, keepdims=True)
    cumulative_db = np.cumsum(weights_db, axis=1)
    drawn_d = np.zeros(DRAWS)
    for block in range(blocks + (rest > 0)):
        chosen_d = (cumulative_db < rng.random((DRAWS, 1))).sum(axis=1).clip(max=starts - 1)
        part = 1.0 if block < blocks else rest / BLOCK
        drawn_d += part * sums_b[chosen_d]
    low, middle, high = np.quantile(drawn_d, (LOW, 0.5, HIGH))
    return float(low), float(middle), float(high)
