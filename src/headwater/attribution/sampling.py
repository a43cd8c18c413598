"""Shapley values of a game too large to play out, from complementary pairs of coalitions chosen one by one.

A player's Shapley value depends only on ``u(S) = v(S) - v(everybody without S)``, which is odd: it changes
sign when S is turned over. In signs ``z = ±1`` an odd game is a sum of products of one, three, five … of
them, ``u = Σ_T c_T Π_T z``, and player i's value is ``Σ_{T∋i} c_T / |T|``. The coefficients are estimated as a
Gaussian process is: single players free, products of three and five held small in proportion to the players
in them, whose strengths are read from the first pairs (each player alone, and everybody without it). What
was measured is interpolated, so the values sum to ``v(everybody) - v(nobody)`` by construction. Further pairs
are chosen greedily, each the one that takes most variance from the players' values. What a rough model of
the game (`rough_game`) already explains is taken from the measurements first and its exact values are
added afterwards.

Source: Covert and Lee, 2021, paired sampling; the odd part of set functions is folklore. What differs here:
the prior in proportion to strengths, the choice of pairs by it, and the rough model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError

Floats = NDArray[np.float64]
Values = Callable[[Sequence[int]], Floats]
"""Worth per token of coalitions, given as bit masks of players: (masks,) -> (masks, tokens)."""

FREE = 30.0  # prior deviation of a single player's coefficient, in strengths of the strongest
TRIPLE, QUINTUPLE = 0.3, 0.1  # of a product of three or five players, in the geometric mean of their strengths
FAINT = 0.02  # added to every strength, in strengths of the strongest: nobody is taken to be nothing
NUGGET = 1e-6  # of the mean variance: what products of seven and more may hold
ROUND = 8  # pairs scored before looking whether it is enough
CANDIDATES = 1_024  # coalitions among which the next pair is chosen
TRIPLES_PLAYERS, QUINTUPLES_PLAYERS = 20, 10  # only the strongest take part in products
ROUGH_PLAYERS, ROUGH_MAX = 12, 1.2  # up to so many players, and at most so much of the rough model
ROUGH_USUAL, ROUGH_TRUST = 0.5, 0.06  # how much of it until pairs say otherwise, and how much they must say
USUAL, KNOWN = 0.1, 6  # products were so large beside the prior, in games measured whole; counted as so many pairs
WIDTH = 1.96  # deviations on each side of a 95 % interval


@dataclass(frozen=True, slots=True)
class Sampled:
    """Estimated values, per token, and how far off each sum may be."""

    values_pt: Floats  # (players, tokens); sums over players to v(everybody) - v(nobody), at each token
    spread: Floats  # (players,) bits: half the width of the 95 % interval of a player's sum


def sample(values: Values, players: int, passes: int, *, seed: int, tolerance_bits: float = 0.0) -> Sampled:
    """Estimate every player's Shapley value with at most `passes` coalitions.

    Args:
        values: scores coalitions; asked in rounds, the same for the same arguments and answers.
        players: two or more.
        passes: at least 2; from ``2 * players + 2`` on every player is seen alone and missing.
        seed: decides among how many coalitions a large game looks for pairs.
        tolerance_bits: stop after the round in which every spread is at most this; 0 never stops early.

    Raises:
        InvalidError: fewer than two passes.
    """
    if passes < 2:
        raise InvalidError(
            f"{passes} passes for {players} players", code="budget_too_small", fix="allow 2 passes or more"
        )
    everybody = (1 << players) - 1
    ends = list(dict.fromkeys(_turned(mask, everybody) for mask in (everybody, *(1 << i for i in range(players)))))
    pairs = ends[: passes // 2]
    seen = _Seen(values, everybody)
    seen.measure(pairs)
    rest = passes // 2 - len(pairs)
    complete = len(pairs) == len(ends)
    rough = rough_game(*seen.edges(players)) if complete and players <= ROUGH_PLAYERS else None
    game = _Game(players, _strengths(seen, players), rough)
    waiting = game.choose(pairs, rest, _candidates(players, set(pairs), seed)) if rest else []
    found = game.estimate(seen)
    while waiting and not (tolerance_bits and found.spread.max() <= tolerance_bits):
        batch, waiting = waiting[:ROUND], waiting[ROUND:]
        seen.measure(batch)
        found = game.estimate(seen)
    return found


def rough_game(nobody: Floats, everybody: Floats, alone: Floats, without: Floats) -> Floats:
    """A guess at every coalition's worth: sources that each may give the token, and would not give it twice.

    Per token, ``1 - p(S) = (1 - p(nobody)) Π_{i in S} (1 - p(i)) / (1 - p(nobody))``, never below the least
    probability that was seen. So a second copy adds little, which is what products of three must learn otherwise.

    Args:
        nobody, everybody: (tokens,) log2 p.
        alone, without: (players, tokens) log2 p with one player only, and with all but one.

    Returns:
        (2 ** players, tokens) log2 p by bit mask.
    """
    chance = np.exp2(np.stack([nobody, everybody]))
    least = np.exp2(np.minimum(np.minimum(alone.min(axis=0), without.min(axis=0)), np.minimum(nobody, everybody)))
    misses = np.log(np.clip((1 - np.exp2(alone)) / (1 - chance[0] + 1e-12), 1e-6, None))
    present = np.arange(1 << len(alone))[:, None] >> np.arange(len(alone)) & 1
    table: Floats = np.log2(np.clip(1 - (1 - chance[0]) * np.exp(present @ misses), least, 1.0))
    return table


def _shapley(table: Floats) -> Floats:
    """(players, tokens) exact values of a whole game given by bit mask."""
    players = len(table).bit_length() - 1
    masks = np.arange(len(table))
    sizes = np.array([mask.bit_count() for mask in range(len(table))])
    values = np.zeros((players, table.shape[1]))
    for i in range(players):
        before = masks[masks >> i & 1 == 0]
        weight = np.array([1 / (players * comb(players - 1, size)) for size in sizes[before].tolist()])
        values[i] = weight @ (table[before | 1 << i] - table[before])
    return values


class _Seen:
    """Pairs measured so far, in order."""

    def __init__(self, values: Values, everybody: int) -> None:
        self._values, self._everybody = values, everybody
        self._row: dict[int, Floats] = {}
        self.pairs: list[int] = []

    def measure(self, pairs: Sequence[int]) -> None:
        """Score both coalitions of each pair."""
        masks = [mask for pair in pairs for mask in (pair, self._everybody ^ pair)]
        self._row |= zip(masks, self._values(masks), strict=True)
        self.pairs += pairs

    def odd(self) -> Floats:
        """(pairs, tokens) of v(S) - v(everybody without S)."""
        return np.array([self._row[pair] - self._row[self._everybody ^ pair] for pair in self.pairs])

    def row(self, mask: int) -> Floats | None:
        """(tokens,) worth of a coalition, if it has been scored."""
        return self._row.get(mask)

    def edges(self, players: int) -> tuple[Floats, Floats, Floats, Floats]:
        """Worth of nobody, everybody, each player alone and everybody without it; all must be scored."""
        alone = np.array([self._row[1 << i] for i in range(players)])
        without = np.array([self._row[self._everybody ^ 1 << i] for i in range(players)])
        return self._row[0], self._row[self._everybody], alone, without


class _Game:
    """The prior over odd games of so many players with such strengths."""

    def __init__(self, players: int, strengths: Floats, rough: Floats | None) -> None:
        self.players, self._rough = players, rough
        self._rough_values = None if rough is None else _shapley(rough)
        self._terms = _terms(strengths)
        self._deviation = _deviations(self._terms, strengths)
        self._part = np.zeros((players, len(self._terms)))  # of a coefficient in each player's value
        for column, term in enumerate(self._terms):
            self._part[list(term), column] = 1 / len(term)

    @cached_property
    def _shared(self) -> Floats:
        """(players, terms): prior covariance of values and coefficients."""
        return self._part * self._deviation**2

    def _signs(self, masks: Sequence[int]) -> Floats:
        """(masks, terms) products of signs."""
        z = np.array([[1.0 if mask >> i & 1 else -1.0 for i in range(self.players)] for mask in masks])
        return np.stack([z[:, list(term)].prod(axis=1) for term in self._terms], axis=1)

    def choose(self, pairs: Sequence[int], count: int, candidates: Sequence[int]) -> list[int]:
        """The next pairs, best first: each takes the most variance from the values, given all before it."""
        masks = [*pairs, *candidates]
        signs = self._signs(masks)
        between = (signs * self._deviation**2) @ signs.T
        with_values = self._shared @ signs.T
        floor = 1e-9 * float(np.diag(between).max())
        chosen: list[int] = []
        for step in range(len(pairs) + min(count, len(candidates))):
            variance = np.diag(between)
            if step < len(pairs):
                best = step
            else:
                gain = np.where(variance > floor, (with_values**2).sum(axis=0) / np.maximum(variance, floor), -1.0)
                gain[: len(pairs)] = -2.0
                gain[[masks.index(mask, len(pairs)) for mask in chosen]] = -2.0
                best = int(np.argmax(np.round(gain / max(float(gain.max()), 1e-300), 9)))  # ties to the first
                chosen.append(masks[best])
            if variance[best] > floor:
                column = between[:, best] / variance[best]
                with_values = with_values - np.outer(with_values[:, best], column)
                between = between - np.outer(between[:, best], column)
        return chosen

    def estimate(self, seen: _Seen) -> Sampled:
        """Values and spreads from measured pairs."""
        signs, odd_mt = self._signs(seen.pairs), seen.odd()
        between = (signs * self._deviation**2) @ signs.T
        between[np.diag_indices(len(between))] += NUGGET * float(np.trace(between)) / len(between)
        inverse = np.linalg.inv(between)
        left_mt, added_pt = odd_mt, np.zeros((self.players, odd_mt.shape[1]))
        if self._rough is not None and self._rough_values is not None:
            turned = (1 << self.players) - 1 - np.array(seen.pairs)
            rough_mt = self._rough[seen.pairs] - self._rough[turned]
            guess = rough_mt.sum(axis=1)
            power = float(guess @ inverse @ guess)
            fits = float(guess @ inverse @ odd_mt.sum(axis=1))
            part = min(max((fits + ROUGH_TRUST * ROUGH_USUAL) / (power + ROUGH_TRUST), 0.0), ROUGH_MAX)
            left_mt, added_pt = odd_mt - part * rough_mt, part * self._rough_values
        reach = self._shared @ signs.T
        weights_pm = reach @ inverse
        values_pt = weights_pm @ left_mt + added_pt
        values_pt += (odd_mt[0] - values_pt.sum(axis=0)) / self.players  # rounding; the first pair is the whole
        variance = np.einsum("pt,pt->p", self._part, self._shared) - np.einsum("pm,pm->p", weights_pm, reach)
        # How large the game's products turned out beside the prior, with some pairs' worth of what other games showed.
        totals, free = left_mt.sum(axis=1), max(len(seen.pairs) - self.players, 0)
        scale = float(np.sqrt((KNOWN * USUAL**2 + max(float(totals @ inverse @ totals), 0.0)) / (KNOWN + free)))
        return Sampled(values_pt, WIDTH * scale * np.sqrt(variance.clip(min=0.0)))


def _turned(mask: int, everybody: int) -> int:
    """Of a coalition and its complement the one that is asked for: that with the last player."""
    return max(mask, everybody ^ mask)


def _strengths(seen: _Seen, players: int) -> Floats:
    """(players,) bits > 0: how much each player moves the tokens, first and last; unseen ones as the strongest."""
    everybody = (1 << players) - 1
    nobody, whole = seen.row(0), seen.row(everybody)
    assert nobody is not None
    assert whole is not None
    found = {}
    for i in range(players):
        alone, without = seen.row(1 << i), seen.row(everybody ^ 1 << i)
        if alone is not None and without is not None:
            found[i] = float(np.abs(alone - nobody).sum() + np.abs(whole - without).sum()) / 2
    strongest = max([float(np.abs(whole - nobody).sum()) / players, *found.values(), 1e-6])
    return np.array([found.get(i, strongest) + FAINT * strongest for i in range(players)])


def _terms(strengths: Floats) -> list[tuple[int, ...]]:
    """Single players, then products of three and five of the strongest."""
    order = np.argsort(-strengths, kind="stable").tolist()
    terms: list[tuple[int, ...]] = [(i,) for i in range(len(strengths))]
    for size, limit in ((3, TRIPLES_PLAYERS), (5, QUINTUPLES_PLAYERS)):
        terms += combinations(sorted(order[:limit]), size)
    return terms


def _deviations(terms: Sequence[tuple[int, ...]], strengths: Floats) -> Floats:
    """Prior deviation of each coefficient, in bits."""
    ratio = {1: FREE, 3: TRIPLE, 5: QUINTUPLE}
    strongest = float(strengths.max())
    return np.array(
        [ratio[len(term)] * (strongest if len(term) == 1 else _geometric_mean(strengths[list(term)])) for term in terms]
    )


def _geometric_mean(numbers: Floats) -> float:
    return float(np.exp(np.log(numbers).mean()))


def _candidates(players: int, taken: set[int], seed: int) -> list[int]:
    """Coalitions to choose from: all of them, or so many drawn with sizes as Shapley weighs them."""
    everybody = (1 << players) - 1
    if 1 << (players - 1) <= CANDIDATES:
        return [mask for mask in range(1 << (players - 1), everybody) if mask not in taken]
    rng = np.random.default_rng([seed, players])
    sizes = np.arange(2, players - 1)
    chance = 1 / (sizes * (players - sizes))
    found: dict[int, None] = {}
    while len(found) < CANDIDATES:
        size = int(rng.choice(sizes, p=chance / chance.sum()))
        mask = sum(1 << int(i) for i in rng.choice(players, size, replace=False))
        found.setdefault(_turned(mask, everybody))
    return [mask for mask in found if mask not in taken]
