"""How unequal an outcome is, in measures that can be checked against closed forms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Amounts = NDArray[np.int64] | NDArray[np.float64]


def gini(amounts: Amounts) -> float:
    """Gini coefficient: 0 when all are equal, near 1 when one has everything; 0 for nothing at all."""
    values = np.sort(np.asarray(amounts, np.float64))
    total = float(values.sum())
    if values.size == 0 or total <= 0:
        return 0.0
    ranks = np.arange(1, values.size + 1)
    return float((2 * ranks - values.size - 1) @ values / (values.size * total))


def top_share(amounts: Amounts, part: float) -> float:
    """What the largest `part` of the population holds, 0..1; part of a person counts in part."""
    values = np.sort(np.asarray(amounts, np.float64))[::-1]
    total = float(values.sum())
    if values.size == 0 or total <= 0:
        return 0.0
    whole, rest = divmod(part * values.size, 1.0)
    k = int(whole)
    edge = float(values[k]) * rest if k < values.size else 0.0
    return (float(values[:k].sum()) + edge) / total


def hhi(amounts: Amounts) -> float:
    """Herfindahl-Hirschman index: sum of squared shares; its inverse is the effective number."""
    values = np.asarray(amounts, np.float64)
    total = float(values.sum())
    return float(((values / total) ** 2).sum()) if total > 0 else 0.0


def nakamoto(amounts: Amounts, threshold: float = 0.5) -> int:
    """Smallest number of holders who together hold more than `threshold` of everything; 0 for nothing."""
    values = np.sort(np.asarray(amounts, np.float64))[::-1]
    total = float(values.sum())
    if total <= 0:
        return 0
    return int(np.searchsorted(np.cumsum(values), threshold * total, side="right")) + 1


def theil(groups: Sequence[Amounts]) -> tuple[float, float, float]:
    """Theil's T of everybody, and its exact parts (total, between groups, within groups)."""
    arrays = [np.asarray(group, np.float64) for group in groups if len(group)]
    everyone = np.concatenate(arrays) if arrays else np.zeros(0)
    total, n = float(everyone.sum()), everyone.size
    if total <= 0:
        return 0.0, 0.0, 0.0
    between = within = 0.0
    for values in arrays:
        held = float(values.sum())
        if held <= 0:
            continue
        share = held / total
        between += share * np.log(share / (values.size / n))
        within += share * _theil(values)
    return _theil(everyone), float(between), float(within)


def lorenz(amounts: Amounts, points: int = 200) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The Lorenz curve at `points` + 1 even population shares: (population, held), both 0..1."""
    values = np.sort(np.asarray(amounts, np.float64))
    population = np.linspace(0.0, 1.0, points + 1)
    if values.size == 0 or values.sum() <= 0:
        return population, population
    held = np.concatenate([[0.0], np.cumsum(values) / values.sum()])
    return population, np.interp(population, np.linspace(0.0, 1.0, values.size + 1), held)


def pareto_quantiles(n: int, tail: float) -> NDArray[np.float64]:
    """`n` values of a Pareto law at the quantiles (i + 0.5) / n, smallest first, minimum 1.

    Spacing by quantile removes the luck of the largest draw, which otherwise decides every tail measure.
    """
    return np.asarray((1.0 - (np.arange(n) + 0.5) / n) ** (-1.0 / tail))


def pareto_gini(tail: float) -> float:
    """Gini of a Pareto law with exponent `tail` > 1."""
    return 1.0 / (2.0 * tail - 1.0)


def pareto_top_share(tail: float, part: float) -> float:
    """What the largest `part` holds under a Pareto law with exponent `tail` > 1."""
    return float(part ** (1.0 - 1.0 / tail))


def _theil(values: NDArray[np.float64]) -> float:
    mean = values.mean()
    ratio = values[values > 0] / mean
    return float((ratio * np.log(ratio)).sum() / values.size)
