"""Grade C: who supplied an answer, judged from the texts alone, for models that give no log-probabilities.

A word of the answer that a part of the prompt holds is worth its reference bits above a floor. Each word is credited
once, divided among the players that hold it by how long a run of the answer around it they hold; words of the
fixed parts (the question) go to nobody. What is left is the base model's. One factor turns these bits into the bits
that grade A measures; it is fitted on shipped cases, with the interval, and how well it does there decides whether
it may be paid on at all.

It sees words, not causes: a source that repeats the answer and was never used is credited, a paraphrase is not.
Tokens are words of `spans.tokens`, not the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.account import Rules
from headwater.attribution.bits import Attribution, Share, microbits, sure_and_unsure, weigh
from headwater.attribution.layout import Layout
from headwater.attribution.ownership import Ownership, everyone_apart, settle_ownership
from headwater.attribution.spans.reference import Reference as WordReference
from headwater.attribution.spans.reference import default_reference
from headwater.attribution.spans.tokens import tokenise
from headwater.core.errors import InvalidError, RefusedError

ESTIMATOR = "overlap-bits"
VERSION = "1"
WORD_FLOOR_BITS = 6.0
"""A word that costs less says nothing about where it is from."""
RUN_WORDS_MAX = 32
"""Longer shared runs count as this long."""
MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Calibration:
    """What overlap is worth in measured bits, and how far to trust it. Made by `fit_calibration`."""

    slope: float  # measured bits for one bit of overlap
    sure_bits: float  # calibrated bits from which the interval stays above zero
    low_ratio: float  # 95 % of measured values lie between these, times the calibrated bits, where it is sure
    high_ratio: float
    spread_bits: float  # 95 % of measured values lie within so many bits, where it is not
    cases: int  # answers it was fitted on
    skill: float  # 1 - pay misallocated / pay misallocated by an equal split, on cases it was not fitted on
    skill_low: float  # lower end of its 95 % interval

    @property
    def payable(self) -> bool:
        """Whether it is surely better than an equal split."""
        return self.skill_low > 0


SHIPPED = Calibration(
    slope=1.008,
    sure_bits=3.542,
    low_ratio=0.179,
    high_ratio=2.467,
    spread_bits=4.359,
    cases=13,
    skill=0.725,
    skill_low=0.639,
)
"""Fitted by ``headwater attribution eval context --cases 32``, which prints it (docs/evaluation.md)."""


def attribute_text(
    layout: Layout,
    answer: str,
    *,
    rules: Rules | None = None,
    reference: WordReference | None = None,
    calibration: Calibration = SHIPPED,
) -> Attribution:
    """Who supplied how many bits of `answer`, from the texts alone.

    Args:
        layout: the whole prompt; its players share the credit.
        answer: what the model said.
        rules: how bits become weights, and whether ownership is settled first.
        reference: what words are worth; the one that ships by default.
        calibration: from overlap to bits, with its skill.

    Returns:
        Shares in prompt order, grade C; tokens are words, and the base model has the bits nobody is credited with.

    Raises:
        InvalidError: the answer has no words.
        RefusedError: the calibration shows no skill, so nothing may be paid on it.
    """
    if not calibration.payable:
        raise RefusedError(
            f"the skill of {ESTIMATOR} is {calibration.skill:.2f}, at least {calibration.skill_low:.2f}",
            code="estimator_without_skill",
            fix="measure with log-probabilities, or calibrate on cases where overlap tells sources apart",
        )
    rules = rules or Rules()
    players = layout.players
    ownership = settle_ownership(players, rules.copy_threshold) if rules.merge else everyone_apart(players)
    total_t, overlap_pt = _overlap(layout, answer, ownership, reference or default_reference())
    if not total_t.size:
        raise InvalidError("the answer has no words", code="answer_empty", fix="attribute answers of at least one word")
    # No word is worth more than the reference says, so that parts and base model add up to the whole.
    values_pt = overlap_pt * min(calibration.slope, 1.0)
    for copy, original in ownership.copies:
        values_pt[original] += values_pt[copy]
        values_pt[copy] = 0.0
    base_t = total_t - values_pt.sum(axis=0)
    grounded = []
    for part, values in zip(players, values_pt, strict=True):
        bits = float(values.sum())
        low, high = _interval(bits, calibration)
        grounded.append(Share(part.id, part.owner, "grounded", 0, bits, low, high, values))
    sure, unsure = sure_and_unsure(
        [(microbits(share.bits), microbits(share.low_bits)) for share in grounded], [share.owner for share in grounded]
    )
    weights, residual = weigh(
        sure,
        [],
        microbits(float(base_t.sum())),
        model_weight_ppm=rules.model_weight_ppm,
        evidence_floor_millibits=rules.evidence_floor_millibits,
        unsure=unsure,
    )
    return Attribution(
        shares=tuple(replace(share, weight_ppb=weight) for share, weight in zip(grounded, weights, strict=True)),
        base_bits=float(base_t.sum()),
        total_bits=float(total_t.sum()),
        base_token_bits=base_t,
        residual_ppb=residual,
        grade="C",
        passes=0,
        tokens=int(total_t.size),
        estimator=ESTIMATOR,
        version=VERSION,
        players=len(ownership.unions),
    )


def overlap_bits(
    layout: Layout, answer: str, *, rules: Rules | None = None, reference: WordReference | None = None
) -> NDArray[np.float64]:
    """(players,) bits of overlap with the answer, before any calibration."""
    rules = rules or Rules()
    players = layout.players
    ownership = settle_ownership(players, rules.copy_threshold) if rules.merge else everyone_apart(players)
    found: NDArray[np.float64] = _overlap(layout, answer, ownership, reference or default_reference())[1].sum(axis=1)
    return found


def fit_calibration(
    overlap: Sequence[NDArray[np.float64]], measured: Sequence[NDArray[np.float64]], *, skill: float, skill_low: float
) -> Calibration:
    """A calibration from answers whose shares were measured exactly.

    The slope is the least-squares line through zero. Sure is the smallest number of calibrated bits from which
    at least 39 of 40 parts were measured above zero.

    Args:
        overlap: for each answer the parts' overlap bits, (parts,).
        measured: for each answer the parts' measured bits, (parts,).
        skill: shown on other cases; `skill_low` is the lower end of its interval.

    Raises:
        InvalidError: no answers, or none of them overlaps a source.
    """
    x, y = (np.concatenate([np.zeros(0), *each]) for each in (overlap, measured))
    if not float(x @ x) > 0:
        raise InvalidError(
            "nothing overlaps in the cases", code="calibration_empty", fix="calibrate on answers that use their sources"
        )
    slope = max(0.0, float(x @ y) / float(x @ x))
    bits = x * slope
    order = np.argsort(-bits, kind="stable")
    wrong = np.cumsum(y[order] <= 0) * 40 <= np.arange(1, len(order) + 1)
    last = int(np.flatnonzero(wrong)[-1]) if wrong.any() else 0
    sure = max(float(bits[order[last]]), 1e-6)
    certain = bits >= sure
    ratios = y[certain] / bits[certain]
    doubtful = np.abs(y - bits)[~certain]
    return Calibration(
        slope=slope,
        sure_bits=sure,
        low_ratio=max(0.0, float(np.quantile(ratios, 0.025))),
        high_ratio=float(np.quantile(ratios, 0.975)),
        spread_bits=float(np.quantile(doubtful, 0.95)) if doubtful.size else sure,
        cases=len(overlap),
        skill=skill,
        skill_low=skill_low,
    )


def _interval(bits: float, calibration: Calibration) -> tuple[float, float]:
    if bits >= calibration.sure_bits:
        return bits * min(1.0, calibration.low_ratio), bits * max(1.0, calibration.high_ratio)
    return min(0.0, bits - calibration.spread_bits), bits + calibration.spread_bits


def _overlap(
    layout: Layout, answer: str, ownership: Ownership, reference: WordReference
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(words,) reference bits of the answer's words, and (players, words) the bits credited to each player."""
    words = _words(answer)
    total = np.array([reference.microbits(word) / MICRO for word in words])
    asked = {word for part in layout.parts if part.fixed for word in _words(part.text)}
    worth = np.array(
        [0.0 if word in asked else max(0.0, bits - WORD_FLOOR_BITS) for word, bits in zip(words, total, strict=True)]
    )
    texts = [_words(part.text) for part in layout.players]
    runs = np.array([_runs(words, text) for text in texts]).reshape(len(texts), len(words))
    credited = np.zeros_like(runs)
    of_union = np.array([runs[list(union)].max(axis=0, initial=0.0) for union in ownership.unions]).reshape(
        len(ownership.unions), len(words)
    )
    claims = np.maximum(of_union.sum(axis=0), 1.0)
    for union, claim in zip(ownership.unions, of_union, strict=True):
        inside = runs[list(union)]
        credited[list(union)] = worth * claim / claims * inside / np.maximum(inside.sum(axis=0), 1.0)
    return total, credited


def _runs(words: tuple[int, ...], text: tuple[int, ...]) -> NDArray[np.float64]:
    """(words,) how long the longest run is that holds each word of the answer and stands in `text`; 0 if none does."""
    lengths = np.zeros(len(words))
    for size in range(min(len(words), len(text), RUN_WORDS_MAX), 0, -1):
        held = {text[at : at + size] for at in range(len(text) - size + 1)}
        for at in range(len(words) - size + 1):
            if lengths[at : at + size].min() < size and words[at : at + size] in held:
                lengths[at : at + size] = np.maximum(lengths[at : at + size], size)
    return lengths


def _words(text: str) -> tuple[int, ...]:
    return tuple(int(hashed) for hashed in tokenise(text.encode("utf-8", "replace")).hashes)
