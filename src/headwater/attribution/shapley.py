"""Exact division of a game's worth among its players, from a table of coalitions.

Owen's value for players that belong to owners: owners join in every order, and inside an owner its
parts join in every order while no other owner is half present. With one part an owner it is the
Shapley value. Splitting one's part in several therefore never changes an owner's total by gaming the
number of players, only by changing what coalitions explain.

Source: Owen, 1977, Values of games with a priori unions; Shapley, 1953, A value for n-person games.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

Coalition = frozenset[int]
"""The players present, as indices into the prompt's player parts."""


def coalitions(unions: Sequence[Sequence[int]]) -> tuple[Coalition, ...]:
    """Every coalition whose worth the Owen value needs: any set of whole unions with part of one union.

    Args:
        unions: a partition of the players 0..n-1.

    Returns:
        Distinct coalitions, smallest first; with singleton unions all 2^n subsets.
    """
    needed: set[Coalition] = set()
    for index, union in enumerate(unions):
        others = [other for position, other in enumerate(unions) if position != index]
        for present in _subsets(range(len(others))):
            whole = frozenset(player for position in present for player in others[position])
            needed.update(whole | frozenset(some) for some in _subsets(union))
    return tuple(sorted(needed or {frozenset()}, key=lambda c: (len(c), sorted(c))))


def coalition_count(unions: Sequence[Sequence[int]]) -> int:
    """How many coalitions `coalitions` would give, without listing them.

    A set of whole unions is counted once; with part of one union (neither all of it nor nothing) it is one more each.
    """
    if not unions:
        return 1
    rest = 1 << (len(unions) - 1)
    return 2 * rest + rest * sum((1 << len(union)) - 2 for union in unions)


def owen_values(worth: Mapping[Coalition, NDArray[np.float64]], unions: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Each player's Owen value, per token.

    Args:
        worth: for every coalition of `coalitions(unions)`, its worth per token, (tokens,).
        unions: a partition of the players 0..n-1.

    Returns:
        (players, tokens); summed over players it is worth(everybody) - worth(nobody), per token.
    """
    tokens = worth[frozenset()].shape[0]
    values = np.zeros((sum(len(union) for union in unions), tokens))
    for index, union in enumerate(unions):
        others = [other for position, other in enumerate(unions) if position != index]
        for present in _subsets(range(len(others))):
            whole = frozenset(player for position in present for player in others[position])
            outer = _weight(len(present), len(others))
            for player in union:
                rest = [other for other in union if other != player]
                for some in _subsets(rest):
                    inner = _weight(len(some), len(rest))
                    before = whole | frozenset(some)
                    values[player] += outer * inner * (worth[before | {player}] - worth[before])
    return values


def _weight(present: int, others: int) -> float:
    """The chance that exactly a given set of `present` of `others` comes before a player, in a random order."""
    return 1.0 / ((others + 1) * comb(others, present))


def _subsets(items: Sequence[int]) -> list[tuple[int, ...]]:
    return [subset for size in range(len(items) + 1) for subset in combinations(items, size)]
