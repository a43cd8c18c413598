"""Rules that turn the evidence of one call into scores, so that they can be compared on equal terms.

The game of a call: a source explains `evidence` bits; near-copies are one *cluster* and explain nothing
beyond the best of them; and a part `overlap` of every source's bits is common knowledge that any one source
would have supplied. With C the clusters that S meets and e the best evidence of each,

    v(S) = (1 - overlap) * sum_C e_C  +  overlap * max_C e_C

so v is zero for nobody, grows with every source and has a closed form for Shapley and Banzhaf values: each
max is an "airport game" (Littlechild and Owen, 1973, A simple expression for the Shapley value in a special case).

Knows nothing of money: scores become weights by `normalise` like any attribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.core.errors import InvalidError
from headwater.economy.compiled import Float64s, Int64s, compiled

# Numbers that kernels branch on.
DEDUP_SHAPLEY, SHAPLEY, PROPORTIONAL, BANZHAF, EQUAL, WINNER = range(6)


@dataclass(frozen=True, slots=True)
class SplitRule:
    """A way to share a payment among the sources of answers."""

    name: str
    kernel: int  # how one call is scored
    merges_copies: bool  # near-copies are one player, held by the earliest
    pooled: bool  # money of a period is pooled over all payers and divided by use ** exponent
    exponent: float
    about: str  # in words, for reports


RULES: dict[str, SplitRule] = {
    rule.name: rule
    for rule in (
        SplitRule("dedup-shapley", DEDUP_SHAPLEY, True, False, 1.0, "per call, Shapley over merged copies (ours)"),
        SplitRule("shapley", SHAPLEY, False, False, 1.0, "per call, Shapley with copies as players"),
        SplitRule(
            "banzhaf", BANZHAF, False, False, 1.0, "per call, Banzhaf, not renormalised; the rest to the commons"
        ),
        SplitRule("proportional", PROPORTIONAL, False, False, 1.0, "per call, by own evidence, copies paid in full"),
        SplitRule("equal", EQUAL, False, False, 1.0, "per call, the same for every source retrieved"),
        SplitRule("winner-takes", WINNER, True, False, 1.0, "per call, all to the strongest source"),
        SplitRule("pooled", EQUAL, False, True, 1.0, "monthly pool over all payers, by number of uses"),
        SplitRule("sqrt", EQUAL, False, True, 0.5, "monthly pool, by the square root of uses (concave)"),
        SplitRule("quadratic", EQUAL, False, True, 2.0, "monthly pool, by the square of uses (convex, early Steem)"),
        SplitRule("user-centric", EQUAL, False, False, 1.0, "each payer's own fee over that payer's own uses"),
    )
}


def split_rule(name: str) -> SplitRule:
    """The rule called `name`.

    Raises:
        InvalidError: no such rule.
    """
    if name not in RULES:
        raise InvalidError(f"split rule is {name!r}", code="scenario_invalid", fix=f"use one of {', '.join(RULES)}")
    return RULES[name]


@compiled
def score_call(
    rule: int,
    n: int,
    holder: Int64s,
    content: Int64s,
    evidence: Float64s,
    overlap: float,
    copies: bool,
    hidden_copies: bool,
    scores: Float64s,
    order: Int64s,
) -> float:
    """Score the `n` sources of one call.

    Args:
        rule: one of the kernel numbers above.
        holder: (>= n,) whose record each source is *recognised* as; equal numbers are merged by rules that merge.
        content: (>= n,) what each source really says; equal numbers explain the same bits.
        evidence: (>= n,) bits >= 0.
        overlap: 0..1.
        copies: whether any two sources may say the same; without it holder
            and content are not read (and content is overwritten).
        hidden_copies: whether there may be copies that are not recognised (equal content, other holder).
        scores: (>= n,) filled with bits. Where copies are merged the first source of a holder has its score.
        order: (>= n,) scratch.

    Returns:
        Bits of v(all) that the rule leaves to nobody; positive for Banzhaf only.
    """
    if rule == EQUAL:
        for i in range(n):
            scores[i] = 1.0
        return 0.0
    for i in range(n):
        scores[i] = evidence[i]
    if rule == PROPORTIONAL:
        return 0.0
    if rule in (DEDUP_SHAPLEY, WINNER):
        # Merge: the first of a holder's sources carries the best evidence, the others nothing.
        for i in range(1, n if copies else 0):
            for j in range(i):
                if holder[j] == holder[i]:
                    if evidence[i] > scores[j]:
                        scores[j] = evidence[i]
                    scores[i] = 0.0
                    break
        if rule == WINNER:
            best = 0
            for i in range(1, n):
                if scores[i] > scores[best]:
                    best = i
            for i in range(n):
                if i != best:
                    scores[i] = 0.0
            return 0.0
        if copies and hidden_copies:
            return _score_copies(False, n, content, scores, overlap, order)
        if overlap > 0.0:
            _airport(n, scores, overlap, 1.0 - overlap, False, order)
        return 0.0
    if not copies:
        for i in range(n):
            content[i] = i
    return _score_copies(rule == BANZHAF, n, content, scores, overlap, order)


@compiled
def _score_copies(banzhaf: bool, n: int, content: Int64s, scores: Float64s, overlap: float, order: Int64s) -> float:
    """Replace evidence by Shapley or Banzhaf values with every source a player: an airport game per content
    and one over all. A source without evidence changes nobody's value."""
    common, own, evidence = np.empty(n), np.empty(n), scores[:n].copy()
    member = np.empty(n, np.int64)
    for i in range(n):
        common[i] = evidence[i]
    _airport(n, common, overlap, 0.0, banzhaf, order)
    worth, best, total = 0.0, 0.0, 0.0
    for i in range(n):
        best = max(best, evidence[i])
        first = True
        for j in range(i):
            if content[j] == content[i]:
                first = False
        if not first:
            continue
        size, top = 0, 0.0
        for j in range(i, n):
            if content[j] == content[i]:
                member[size], own[size] = j, evidence[j]
                top = max(top, evidence[j])
                size += 1
        worth += (1.0 - overlap) * top
        _airport(size, own, 1.0 - overlap, 0.0, banzhaf, order)
        for k in range(size):
            scores[member[k]] = own[k]
    worth += overlap * best
    for i in range(n):
        scores[i] += common[i]
        total += scores[i]
    return max(0.0, worth - total) if banzhaf else 0.0


@compiled
def _airport(n: int, levels: Float64s, scale: float, keep: float, banzhaf: bool, order: Int64s) -> None:
    """Replace each level by keep * level + scale * its value in the game of the largest level.

    Levels sorted upwards, the step from one to the next is worth something only while no player that reaches
    it is present: 1/(number that reach it) of it to each under Shapley, 2^-(others that reach it) under Banzhaf.
    """
    for i in range(n):
        j = i
        while j > 0 and levels[order[j - 1]] > levels[i]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
    below, share = 0.0, 0.0
    for rank in range(n):
        who = order[rank]
        reach = n - rank
        step = levels[who] - below
        below = levels[who]
        share += step * (2.0 ** (1 - reach)) if banzhaf else step / reach
        levels[who] = keep * levels[who] + scale * share
