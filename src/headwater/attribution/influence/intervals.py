"""How sure a contributor's score is: a bootstrap over what was sampled to get it.

What varies is the queries (another week asks other questions), the contributor's own examples (another sample of
its work) and, where there are several, the checkpoints. An audit by retraining adds what no resampling can see:
how far predicted and measured effects differ. Knows nothing of models or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError

DRAWS = 1000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What an audit by retraining found: measured effect is `slope` times the score, give or take `spread`."""

    slope: float
    spread: float  # standard deviation of (measured - slope * score), in units of the measured effect


@dataclass(frozen=True, slots=True, eq=False)
class Intervals:
    """Mean score of each contributor over the queries, with the interval it lies in."""

    contributors: tuple[str, ...]
    estimate: Floats  # (c,)
    low: Floats  # (c,)
    high: Floats  # (c,)
    level: float

    @property
    def sure(self) -> NDArray[np.bool_]:
        """(c,) whose interval leaves out zero."""
        return (self.low > 0) | (self.high < 0)


def bootstrap_intervals(
    scores: NDArray[np.float32],
    contributors: tuple[str, ...],
    *,
    level: float,
    seed: int,
    example_variance: Floats | None = None,
    calibration: Calibration | None = None,
) -> Intervals:
    """Intervals for the mean over queries.

    Args:
        scores: (checkpoint, query, contributor).
        level: such as 0.9.
        example_variance: (c,) variance of the mean score from which examples a contributor happened to give.
        calibration: of an audit; scales scores to measured effects and widens.

    Raises:
        InvalidError: a level outside (0, 1), or no queries.
    """
    if not 0.0 < level < 1.0:
        raise InvalidError(f"level {level} is not between 0 and 1", code="level_invalid", fix="use such as 0.9")
    checkpoints, queries, count = scores.shape
    if not queries:
        raise InvalidError("no queries", code="queries_empty", fix="give at least one query")
    values = scores.astype(np.float64)
    estimate = values.mean((0, 1))
    rng = np.random.default_rng(seed)
    draws = np.empty((DRAWS, count))
    for draw in range(DRAWS):
        picked = values[rng.integers(0, checkpoints, checkpoints)].mean(0)
        weights = np.bincount(rng.integers(0, queries, queries), minlength=queries) / queries
        draws[draw] = weights @ picked
    # A bootstrap of k values varies (k - 1) / k as much as a fresh sample of k does.
    widen = np.sqrt(queries / (queries - 1)) if queries > 1 else 1.0
    deviation = (draws - draws.mean(0)) * widen
    if example_variance is not None:
        deviation += rng.standard_normal(draws.shape) * np.sqrt(np.maximum(example_variance, 0.0))
    if calibration is not None:
        estimate = estimate * calibration.slope
        deviation = deviation * calibration.slope + rng.standard_normal(draws.shape) * calibration.spread
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(deviation, (tail, 1.0 - tail), axis=0)
    return Intervals(contributors, estimate, estimate + low, estimate + high, level)
