"""How well scores predict retraining: rank correlations, their errors, and the most that any score could reach.

Losses are those of models trained on half of the examples; predictions are sums of scores over the half. Knows
nothing of models: arrays in, numbers out.

Source of the score: Park et al., 2023, "TRAK", section 2 (linear datamodeling score).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]
DRAWS = 400


def half_subsets(groups: NDArray[np.int64], count: int, seed: int) -> Masks:
    """(count, n) which examples are in: half of the groups of each draw, whole groups at a time."""
    rng = np.random.default_rng(seed)
    names = np.unique(groups)
    if len(names) < 2:
        raise InvalidError("one group cannot be halved", code="subsets_impossible", fix="give at least two")
    masks: Masks = np.stack([np.isin(groups, rng.permutation(names)[: len(names) // 2]) for _ in range(count)])
    return masks


def ranks(values: Floats) -> Floats:
    """Ranks along the first axis, equal values sharing their mean rank."""
    order = np.argsort(values, axis=0, kind="stable")
    found = np.empty(values.shape)
    for column in np.ndindex(values.shape[1:]):
        key = (slice(None), *column)
        sorted_values = values[key][order[key]]
        _, first, count = np.unique(sorted_values, return_index=True, return_counts=True)
        found[(order[key], *column)] = np.repeat(first + (count - 1) / 2, count)
    return found


def rank_correlation(a: Floats, b: Floats) -> Floats:
    """(q,) Spearman correlation of (s, q) columns; 0 where a column is constant."""
    x, y = (ranks(v) - (len(v) - 1) / 2 for v in (a, b))
    scale = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    found: Floats = np.divide((x * y).sum(0), scale, out=np.zeros(x.shape[1]), where=scale > 0)
    return found


def predicted(scores: NDArray[np.float32], masks: Masks) -> Floats:
    """(s, q) predicted losses: the more helpful examples a subset holds, the lower."""
    return -(masks.astype(np.float64) @ scores.T.astype(np.float64))


def datamodeling_score(scores: NDArray[np.float32], masks: Masks, losses: Floats) -> float:
    """Mean over queries of the rank correlation of predicted and measured (s, q) losses."""
    return float(rank_correlation(predicted(scores, masks), losses).mean())


def aggregate_score(scores: NDArray[np.float32], masks: Masks, losses: Floats) -> float:
    """The same for the mean loss of all queries, which is what a billing period pays for."""
    return float(rank_correlation(predicted(scores, masks).mean(1)[:, None], losses.mean(1)[:, None])[0])


@dataclass(frozen=True, slots=True)
class Measured:
    """A score with its standard error over subsets."""

    value: float
    error: float

    @property
    def low(self) -> float:
        """One-sided 95 % bound."""
        return self.value - 1.645 * self.error


def bootstrap_scores(
    scores: dict[str, NDArray[np.float32]], masks: Masks, losses: Floats, *, seed: int
) -> tuple[dict[str, Measured], dict[str, Floats]]:
    """Each estimator's score with its error, and the paired draws (draw,) of it: the same subsets for all."""
    rng = np.random.default_rng(seed)
    predictions = {name: predicted(value, masks) for name, value in scores.items()}
    draws: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(DRAWS):
        picked = rng.integers(0, len(masks), len(masks))
        # Ranks of the whole set stand in for ranks within a draw: ties then need no second sort.
        for name in scores:
            draws[name].append(_correlation(predictions[name][picked], losses[picked]))
    paired = {name: np.array(found) for name, found in draws.items()}
    return {
        name: Measured(float(rank_correlation(predictions[name], losses).mean()), float(paired[name].std()))
        for name in scores
    }, paired


def _correlation(a: Floats, b: Floats) -> float:
    x, y = (np.argsort(np.argsort(v, axis=0), axis=0) - (len(v) - 1) / 2 for v in (a, b))
    return float(((x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))).mean())


def noise_ceiling(losses: Floats) -> float:
    """What a perfect score would reach, given that training itself is noisy.

    The root of the reliability of mean losses over seeds, stepped up from one seed to all (Spearman-Brown).

    Args:
        losses: (s, r, q), r >= 2 seeds.
    """
    seeds = losses.shape[1]
    if seeds < 2:
        return float("nan")
    pairs = [(a, b) for a in range(seeds) for b in range(a + 1, seeds)]
    single = float(np.mean([rank_correlation(losses[:, a], losses[:, b]).mean() for a, b in pairs]))
    return float(np.sqrt(max(0.0, seeds * single / (1.0 + (seeds - 1) * single))))


def area_under_curve(values: Floats, positive: NDArray[np.bool_]) -> float:
    """Chance that a positive has the higher value: the area under the ROC curve."""
    order = ranks(values[:, None])[:, 0] + 1
    hits, misses = int(positive.sum()), int((~positive).sum())
    return float((order[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))
