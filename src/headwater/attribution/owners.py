"""A sampled game of owners: what each owner's parts together supply, and how an owner's bits divide among its parts.

Owners are sampled as whole players (`sampling`). Inside an owner of several parts the difference between two
parts is read from pairs in which one of them stands for the owner: alone, and with everybody else, and, as the
budget allows, with some of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.budget import Budget
from headwater.attribution.sampling import WIDTH, sample
from headwater.attribution.worth import Worth
from headwater.core.errors import InvalidError

INNER_SHARE = 3
"""Of a budget, one part in so many is kept for the division inside owners."""


def owner_values(
    worth: Worth, unions: Sequence[Sequence[int]], budget: Budget, seed: int
) -> Iterator[tuple[int, NDArray[np.float64], float]]:
    """For every part: its index, its bits per token, and half the 95 % interval of their sum.

    Raises:
        InvalidError: a budget below two passes.
    """

    def whole(mask: int) -> frozenset[int]:
        return frozenset(i for place, union in enumerate(unions) if mask >> place & 1 for i in union)

    if budget.passes < 2:
        raise InvalidError(
            f"{budget.passes} passes for {len(unions)} players", code="budget_too_small", fix="allow 2 passes or more"
        )
    several = [union for union in unions if len(union) > 1]
    reserved = budget.passes // INNER_SHARE
    if not any(_looks(reserved, union, several) for union in several):
        reserved = 0  # too few to look inside anybody: all of them go to the owners
    if len(unions) > 1:
        found = sample(
            lambda masks: worth.rows([whole(mask) for mask in masks]),
            len(unions),
            budget.passes - reserved,
            seed=seed,
            tolerance_bits=budget.tolerance_bits,
        )
        values_ut, spread_u = found.values_pt, found.spread
    else:
        nobody, everybody = worth.rows([frozenset(), whole(1)])
        values_ut, spread_u = (everybody - nobody)[None], np.zeros(1)
        reserved = budget.passes - 2
    rng = np.random.default_rng([seed, len(unions), 1])
    for place, union in enumerate(unions):
        if len(union) == 1:
            yield union[0], values_ut[place], float(spread_u[place])
            continue
        others = [other for number, other in enumerate(unions) if number != place]
        inner_it, wide_i = _inside(worth, union, others, _looks(reserved, union, several), rng)
        for i, row, wide in zip(union, inner_it, wide_i.tolist(), strict=True):
            yield i, values_ut[place] / len(union) + row, float(np.hypot(spread_u[place] / len(union), wide))


def _looks(reserved: int, union: Sequence[int], several: Sequence[Sequence[int]]) -> int:
    """How often an owner's parts can be seen alone and missing, from its share of the reserved passes."""
    return reserved * len(union) // sum(map(len, several)) // (2 * len(union))


def _inside(
    worth: Worth,
    union: Sequence[int],
    others: Sequence[Sequence[int]],
    looks: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How much more than its equal part each part of an owner supplies: (parts, tokens), sums to zero; and spreads.

    For a game whose parts simply add up, ``v(S + i) - v(rest without i)`` differs between two parts by twice
    the difference of what they add; half of it, averaged over sets S of others, is exact for two parts.
    """
    everybody = frozenset(i for other in (union, *others) for i in other)
    tokens = worth.rows([frozenset(), everybody]).shape[1]
    outers: list[frozenset[int]] = [frozenset()]
    seen = set(outers)
    limit = min(looks, 1 << len(others))
    while len(outers) < limit:
        size = int(rng.integers(0, len(others) + 1))
        picked = frozenset(i for number in rng.permutation(len(others))[:size] for i in others[number])
        if picked not in seen:
            seen.add(picked)
            outers.append(picked)
    if limit == 0:  # nothing left to look inside: equal parts, by rule, of what the owner is known to have supplied
        return np.zeros((len(union), tokens)), np.zeros(len(union))
    seen_sit = []
    for outer in outers:
        odd = np.array(
            [np.subtract(*worth.rows([outer | {i}, everybody - outer - {i}])) for i in union]
        )  # (parts, tokens)
        seen_sit.append((odd - odd.mean(axis=0)) / 2)
    stacked = np.array(seen_sit)
    mean = stacked.mean(axis=0)
    totals = stacked.sum(axis=2)  # (outers, parts)
    # One look is as unsure as it is large.
    error = totals.std(axis=0, ddof=1) / np.sqrt(len(outers)) if len(outers) > 1 else np.abs(totals[0]) / WIDTH
    return mean, WIDTH * error
