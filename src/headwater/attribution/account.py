"""Attribute an answer to the parts of its prompt, exactly, in bits.

Ownership is settled before the game: parts of one owner are one player, and a near-copy of another
owner's part joins the earliest one and earns nothing, so copying and splitting never raise an income.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.bits import Attribution, Share, microbits, weigh
from headwater.attribution.layout import Layout, Part, Scorer
from headwater.attribution.reference import Reference
from headwater.attribution.reproduced import Copied
from headwater.attribution.shapley import Coalition, coalitions, owen_values
from headwater.core.errors import InvalidError, InvariantError, UpstreamError
from headwater.core.limits import COALITIONS_MAX, PLAYERS_EXACT_MAX
from headwater.registry.near_duplicates import merge_near_duplicates

ESTIMATOR = "owen-context"
VERSION = "1"
CONSERVATION_BITS = 1e-6
"""How far the parts may be from the whole before we stop: rounding of float64, nothing more."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How raw bits become weights; the policy sets them and the receipt carries them."""

    model_weight_ppm: int = 100_000  # millionths: one bit of the base model, beside one bit of a contribution
    evidence_floor_millibits: int = 5_000  # contributions that together explain less are noise
    copy_threshold: float = 0.8  # Jaccard similarity of word shingles from which a part is a copy


def attribute(
    scorer: Scorer,
    layout: Layout,
    answer: str | Sequence[int],
    *,
    reference: Reference,
    rules: Rules | None = None,
    copied: Sequence[Copied] = (),
) -> Attribution:
    """Who supplied how many bits of `answer`, exactly.

    Args:
        scorer: the weights that answered.
        layout: the whole prompt; its players share the credit. Absent players are left out, order is kept.
        answer: token ids as generated, or text.
        reference: what counts as zero bits, per token.
        rules: how bits become weights.
        copied: answer tokens that repeat registered texts which are not in the layout.

    Returns:
        Shares in prompt order, then the reproduced ones, grade A, with weights and residual that sum to 10^9.

    Raises:
        InvalidError: no answer tokens, too many players, or a prompt that does not fit the window.
        UpstreamError: the scorer gave something that is not a log-probability.
        InvariantError: the parts do not add up to the whole.
    """
    rules = rules or Rules()
    tokens = scorer.tokenize(answer, control=False) if isinstance(answer, str) else tuple(answer)
    if not tokens:
        raise InvalidError(
            "the answer has no tokens", code="answer_empty", fix="attribute answers of at least one token"
        )
    unions, copies = settle_ownership(layout.players, rules.copy_threshold)
    _refuse_too_many(unions)
    wanted = coalitions(unions)
    pieces = [scorer.tokenize(part.text, control=part.control) for part in layout.parts]
    logp_ct = scorer.score([_prompt(layout, pieces, present) for present in wanted], tokens)
    if logp_ct.shape != (len(wanted), len(tokens)) or not np.isfinite(logp_ct).all():
        raise UpstreamError("the scorer gave log-probabilities that are not finite", code="scorer_not_finite")
    worth = dict(zip(wanted, logp_ct + reference.bits(tokens), strict=True))
    values_pt = owen_values(worth, unions)
    everybody, nobody = worth[frozenset(range(len(layout.players)))], worth[frozenset()]
    gap = float(np.abs(nobody + values_pt.sum(axis=0) - everybody).max())
    if gap > CONSERVATION_BITS:
        raise InvariantError(f"parts and whole differ by {gap} bits at a token", code="bits_not_conserved")
    for copy, original in copies.items():
        values_pt[original] += values_pt[copy]
        values_pt[copy] = 0.0
    reproduced = tuple(_reproduced(one, nobody) for one in copied)
    return _account(layout.players, values_pt, nobody, everybody, reproduced, rules, len(wanted), len(unions))


def settle_ownership(
    players: Sequence[Part], copy_threshold: float
) -> tuple[tuple[tuple[int, ...], ...], dict[int, int]]:
    """Decide who plays before anything is measured.

    Args:
        players: the parts that can be taken away, earliest registered first among copies.
        copy_threshold: Jaccard similarity of word shingles from which a later part is a copy.

    Returns:
        (unions, copies): unions partition the players so that one owner, with the copies of its
        parts, is one player; copies maps a part to the earliest part it copies when another owner holds that.
    """
    union_of = list(range(len(players)))
    copies: dict[int, int] = {}

    def join(a: int, b: int) -> None:
        low, high = sorted((union_of[a], union_of[b]))
        union_of[:] = [low if union == high else union for union in union_of]

    for group in merge_near_duplicates([part.text for part in players], copy_threshold):
        original = min(group, key=lambda i: (players[i].registered_at_ns, i))
        for i in group:
            join(i, original)
            if players[i].owner != players[original].owner:
                copies[i] = original
    for i, part in enumerate(players):
        for j in range(i):
            if players[j].owner == part.owner:
                join(i, j)
    unions = tuple(tuple(i for i, union in enumerate(union_of) if union == label) for label in dict.fromkeys(union_of))
    return unions, copies


def _refuse_too_many(unions: Sequence[Sequence[int]]) -> None:
    count = sum(2 ** (len(unions) - 1 + len(union)) for union in unions)
    if len(unions) > PLAYERS_EXACT_MAX or count > COALITIONS_MAX:
        raise InvalidError(
            f"{len(unions)} players with {sum(map(len, unions))} parts are too many to measure exactly",
            code="players_too_many",
            fix=f"offer at most {PLAYERS_EXACT_MAX} sources and prompts of different owners",
        )


def _prompt(layout: Layout, pieces: Sequence[Sequence[int]], present: Coalition) -> list[int]:
    prompt: list[int] = []
    player = -1
    for part, piece in zip(layout.parts, pieces, strict=True):
        player += not part.fixed
        if part.fixed or player in present:
            prompt += piece
    return prompt


def _reproduced(copied: Copied, nobody: NDArray[np.float64]) -> Share:
    token_bits = np.zeros_like(nobody)
    token_bits[list(copied.tokens)] = nobody[list(copied.tokens)].clip(min=0)
    bits = float(token_bits.sum())
    return Share(copied.part_id, copied.owner, "reproduced", 0, bits, bits, bits, token_bits)


def _account(
    players: Sequence[Part],
    values_pt: NDArray[np.float64],
    nobody: NDArray[np.float64],
    everybody: NDArray[np.float64],
    reproduced: Sequence[Share],
    rules: Rules,
    passes: int,
    unions: int,
) -> Attribution:
    bits = values_pt.sum(axis=1)
    base_bits = float(nobody.sum())
    grounded = [
        Share(part.id, part.owner, "grounded", 0, float(b), float(b), float(b), values)
        for part, b, values in zip(players, bits, values_pt, strict=True)
    ]
    # Words that were copied are the base model's no longer; they are counted once, with whoever wrote them.
    weights, residual = weigh(
        [microbits(share.bits) for share in grounded],
        [microbits(share.bits) for share in reproduced],
        microbits(base_bits),
        model_weight_ppm=rules.model_weight_ppm,
        evidence_floor_millibits=rules.evidence_floor_millibits,
    )
    shares = tuple(
        replace(share, weight_ppb=weight) for share, weight in zip((*grounded, *reproduced), weights, strict=True)
    )
    return Attribution(
        shares=shares,
        base_bits=base_bits,
        total_bits=float(everybody.sum()),
        base_token_bits=nobody,
        residual_ppb=residual,
        grade="A",
        passes=passes,
        tokens=len(nobody),
        estimator=ESTIMATOR,
        version=VERSION,
        players=unions,
    )
