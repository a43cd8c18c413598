"""Attribute an answer to the parts of its prompt, in bits: exactly where the budget allows, else by sampling.

Ownership is settled before the game: parts of one owner are one player, and a near-copy of another
owner's part joins the earliest one and earns nothing, so copying and splitting never raise an income.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.bits import Attribution, Grade, Share, microbits, sure_and_unsure, weigh
from headwater.attribution.budget import Budget
from headwater.attribution.layout import Layout, Part, Scorer
from headwater.attribution.owners import owner_values
from headwater.attribution.ownership import Ownership, everyone_apart, settle_ownership
from headwater.attribution.reference import Reference
from headwater.attribution.reproduced import Copied
from headwater.attribution.shapley import coalition_count, coalitions, owen_values
from headwater.attribution.worth import Worth, WorthCache
from headwater.core.errors import InvalidError, InvariantError

ESTIMATOR = "owen-context"
VERSION = "2"
CONSERVATION_BITS = 1e-6
"""How far the parts may be from the whole before we stop: rounding of float64, nothing more."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How raw bits become weights; the policy sets them and the receipt carries them."""

    model_weight_ppm: int = 100_000  # millionths: one bit of the base model, beside one bit of a contribution
    evidence_floor_millibits: int = 5_000  # contributions that together explain less are noise
    copy_threshold: float = 0.8  # Jaccard similarity of word shingles from which a part is a copy
    merge: bool = True  # near-copies and parts of one owner are one player; False measures every part by itself


def attribute(
    scorer: Scorer,
    layout: Layout,
    answer: str | Sequence[int],
    *,
    budget: Budget | None = None,
    seed: int = 0,
    reference: Reference | None = None,
    rules: Rules | None = None,
    copied: Sequence[Copied] = (),
    worth_cache: WorthCache | None = None,
) -> Attribution:
    """Who supplied how many bits of `answer`.

    Args:
        scorer: the weights that answered.
        layout: the whole prompt; its players share the credit. Absent players are left out, order is kept.
        answer: token ids as generated, or text, read without special tokens.
        budget: how many prompts may be scored; when every coalition fits, the account is exact (grade A).
        seed: of what a sampled account (grade B) draws; the same seed gives the same account.
        reference: what counts as zero bits, per token; without one the bits are plain log2 p.
        rules: how bits become weights.
        copied: answer tokens that repeat registered texts which are not in the layout.
        worth_cache: keeps what was scored, so that a call repeated after a failure goes on where it stopped.

    Returns:
        Shares in prompt order, then the reproduced ones, with weights and residual that sum to 10^9.

    Raises:
        InvalidError: no answer tokens, a budget below two passes, or a prompt that does not fit the window.
        UpstreamError: the scorer gave something that is not a log-probability.
        InvariantError: the parts do not add up to the whole.
    """
    budget, rules = budget or Budget(), rules or Rules()
    tokens = scorer.tokenize(answer, control=False) if isinstance(answer, str) else tuple(answer)
    if not tokens:
        raise InvalidError(
            "the answer has no tokens", code="answer_empty", fix="attribute answers of at least one token"
        )
    players = layout.players
    worth = Worth(scorer, layout, tokens, worth_cache)
    ownership = settle_ownership(players, rules.copy_threshold) if rules.merge else everyone_apart(players)
    audible = tuple(tuple(i for i in union if i not in worth.silent) for union in ownership.unions)
    unions = tuple(union for union in audible if union)
    grade, values_pt, spread = _values(worth, unions, len(players), len(tokens), budget, seed)
    nobody, everybody = worth.rows([frozenset(), frozenset(range(len(players))) - worth.silent])
    gap = float(np.abs(nobody + values_pt.sum(axis=0) - everybody).max())
    if gap > CONSERVATION_BITS:
        raise InvariantError(f"parts and whole differ by {gap} bits at a token", code="bits_not_conserved")
    for copy, original in ownership.copies:
        values_pt[original] += values_pt[copy]
        values_pt[copy] = 0.0
        spread[original] += spread[copy]
        spread[copy] = 0.0
    explained = reference.bits(tokens) if reference is not None else np.zeros(len(tokens))
    return _account(
        players,
        ownership,
        _Measured(values_pt, spread, nobody + explained, everybody + explained, grade, worth.passes, len(unions)),
        copied,
        rules,
        seed,
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """A game that was played, per part."""

    values_pt: NDArray[np.float64]  # (parts, tokens)
    spread: NDArray[np.float64]  # (parts,) half a 95 % interval; zero when exact
    nobody: NDArray[np.float64]  # (tokens,)
    everybody: NDArray[np.float64]  # (tokens,)
    grade: Grade
    passes: int
    players: int


def _values(
    worth: Worth, unions: tuple[tuple[int, ...], ...], parts: int, tokens: int, budget: Budget, seed: int
) -> tuple[Grade, NDArray[np.float64], NDArray[np.float64]]:
    """(parts, tokens) bits and (parts,) spreads; parts outside the unions have neither."""
    values_pt, spread = np.zeros((parts, tokens)), np.zeros(parts)
    inside = [i for union in unions for i in union]
    number = {i: place for place, i in enumerate(inside)}
    ranked = tuple(tuple(number[i] for i in union) for union in unions)
    count = coalition_count(unions)
    early = budget.tolerance_bits > 0 and len(unions) > 2  # sampled until sure enough, or until all is scored
    sampled = tuple(owner_values(worth, unions, budget, seed)) if early or count > budget.passes else None
    if sampled is None or worth.passes == count:
        wanted = coalitions(ranked)
        rows = worth.rows([frozenset(inside[i] for i in coalition) for coalition in wanted])
        values_pt[inside] = owen_values(dict(zip(wanted, rows, strict=True)), ranked)
        return "A", values_pt, spread
    for i, row, wide in sampled:
        values_pt[i], spread[i] = row, wide
    return "B", values_pt, spread


def _reproduced(copied: Copied, nobody: NDArray[np.float64]) -> Share:
    token_bits = np.zeros_like(nobody)
    token_bits[list(copied.tokens)] = nobody[list(copied.tokens)].clip(min=0)
    bits = float(token_bits.sum())
    return Share(copied.part_id, copied.owner, "reproduced", 0, bits, bits, bits, token_bits)


def _account(
    players: Sequence[Part],
    ownership: Ownership,
    measured: _Measured,
    copied: Sequence[Copied],
    rules: Rules,
    seed: int,
) -> Attribution:
    base_bits = float(measured.nobody.sum())
    grounded = []
    for part, values, spread in zip(players, measured.values_pt, measured.spread.tolist(), strict=True):
        bits = float(values.sum())
        grounded.append(Share(part.id, part.owner, "grounded", 0, bits, bits - spread, bits + spread, values))
    # Words that were copied are the base model's no longer; they are counted once, with whoever wrote them.
    reproduced = [_reproduced(one, measured.nobody) for one in copied]
    sure, unsure = sure_and_unsure(
        [(microbits(share.bits), microbits(share.low_bits)) for share in grounded], [share.owner for share in grounded]
    )
    weights, residual = weigh(
        sure,
        [microbits(share.bits) for share in reproduced],
        microbits(base_bits),
        model_weight_ppm=rules.model_weight_ppm,
        evidence_floor_millibits=rules.evidence_floor_millibits,
        unsure=unsure,
    )
    ids = [part.id for part in players]
    return Attribution(
        shares=tuple(
            replace(share, weight_ppb=weight) for share, weight in zip((*grounded, *reproduced), weights, strict=True)
        ),
        base_bits=base_bits,
        total_bits=float(measured.everybody.sum()),
        base_token_bits=measured.nobody,
        residual_ppb=residual,
        grade=measured.grade,
        passes=measured.passes,
        tokens=len(measured.nobody),
        estimator=ESTIMATOR,
        version=VERSION,
        players=measured.players,
        merged=tuple(tuple(ids[i] for i in union) for union in ownership.unions if len(union) > 1),
        copies=tuple((ids[copy], ids[original]) for copy, original in ownership.copies),
        seed=seed,
    )
