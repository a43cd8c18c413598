"""What each method would misallocate, with intervals, and which may be paid on at all.

Dividing is compared in the game where every source stands by itself; what the account does beyond dividing
(ownership, floors, who is left unpaid) is measured apart, under the rules that are in force.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.account import Rules, attribute
from headwater.attribution.bits import Attribution
from headwater.attribution.budget import Budget
from headwater.attribution.evaluate.methods import METHODS, Estimate, Scores, Setting
from headwater.attribution.evaluate.planting import Case
from headwater.attribution.evaluate.tables import CaseTable, TableScorer
from headwater.attribution.layout import Scorer
from headwater.attribution.reference import Reference
from headwater.attribution.surrogate import Calibration, attribute_text, fit_calibration, overlap_bits
from headwater.core.errors import MissingError

STRONG_BITS = 5.0
"""Sources that are worth less together are noise: nothing may be paid there, so dividing it is not compared."""
RESAMPLES = 2000
SAMPLING = ("sampled", "kernel-shap", "lasso")
"""Methods that draw at random: asked several times."""


@dataclass(frozen=True, slots=True)
class MethodReport:
    """One method over all cases. Fractions are 0..1."""

    method: str
    passes: float  # prompts scored for an answer, mean
    misallocated: float  # of the pay, mean over answers
    misallocated_low: float  # 95 % over answers
    misallocated_high: float
    misallocated_worst: float
    misallocated_weighted: float  # by the bits at stake
    rank_correlation: float  # Spearman, with the exact values
    held_out: float  # Spearman of predicted and measured bits over ablations by halves
    gap_bits: float | None  # how far the scores are from adding up to what there is; None if they are not bits
    gold_first: float  # where the answer needs it; copies count as their original
    unused_cited: float  # of the pay, to a source that is said to be cited and is not used
    copy_paid: float | None  # of the pay of original and exact copy, to the copy; None without such cases
    skill: float  # 1 - misallocated / misallocated by an equal split
    skill_low: float
    refused: bool  # not surely better than an equal split: may not be paid on
    cpu_s: float | None  # for an answer
    wall_s: float | None


@dataclass(frozen=True, slots=True)
class AccountReport:
    """What the account pays under the rules in force. Fractions are 0..1."""

    method: str
    gold_first: float  # where the answer needs it
    copies_paid: float  # of the pool, to copies of another owner's source: most in any case
    unused_cited: float  # of what sources are paid, to one that is not used: mean
    residual_generic: float  # of the pool, of generic questions: mean
    residual_generic_least: float
    weak_paid: int  # answers whose sources are worth too little, that paid somebody
    weak: int
    gap_bits: float  # largest difference between parts and whole


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole evaluation."""

    cases: int
    strong: int  # answers on which dividing is compared
    passes: int
    methods: tuple[MethodReport, ...]
    accounts: tuple[AccountReport, ...]
    calibration: Calibration | None  # fitted on half the cases, its skill shown on the other half


@dataclass(frozen=True, slots=True)
class Entry:
    """One measured case with the scores that were made outside."""

    case: Case
    table: CaseTable
    outside: Mapping[str, Scores]


def compare(
    entries: Sequence[Entry],
    scorer: Scorer,
    reference: Reference,
    names: Sequence[str],
    *,
    passes: int,
    draws: int,
    costs: Mapping[str, tuple[float, float]],
) -> Comparison:
    """Every method on every case.

    Args:
        entries: measured cases.
        scorer: reads the parts; it scores nothing here.
        reference: what counts as zero bits.
        names: methods, with the exact one and the equal split among them.
        passes: budget of those that sample.
        draws: how often those are asked, with seeds 0, 1, …
        costs: CPU and wall seconds an answer, by method.

    Raises:
        MissingError: no answer is worth enough to compare anything.
    """
    found = {name: _ask_all(name, entries, scorer, reference, passes, draws) for name in names}
    truth = [each[0].scores for each in found["exact"]]
    strong = [i for i, entry in enumerate(entries) if entry.case.needs_gold and paid(truth[i]).sum() >= STRONG_BITS]
    if not strong:
        raise MissingError(
            f"none of {len(entries)} cases has sources worth {STRONG_BITS} bits",
            code="cases_too_weak",
            fix="evaluate more cases",
        )
    wrong = {
        name: np.array([np.mean([misallocated(e.scores, truth[i]) for e in found[name][i]]) for i in strong])
        for name in names
    }
    reports = tuple(
        _report(name, entries, found[name], truth, strong, wrong[name], wrong["equal"], costs.get(name))
        for name in names
    )
    calibration = calibrate(entries, truth, strong)
    accounts = _accounts(entries, truth, scorer, reference, passes, calibration)
    return Comparison(len(entries), len(strong), passes, reports, accounts, calibration)


def paid(scores: Scores) -> Scores:
    """What would be paid on: scores above zero."""
    positive: Scores = np.clip(scores, 0.0, None)
    return positive


def misallocated(scores: Scores, truth: Scores) -> float:
    """The fraction of pay that goes to another source than the exact values say, 0..1.

    A method that would pay nobody leaves all of it unpaid: 1.
    """
    given, right = paid(scores), paid(truth)
    if not given.sum() > 0 or not right.sum() > 0:
        return float(given.sum() > 0 or right.sum() > 0)
    return float(np.abs(given / given.sum() - right / right.sum()).sum() / 2)


def spearman(left: Scores, right: Scores) -> float:
    """Rank correlation; ties share their mean rank; 0 where one side is all ties."""
    ranks = [_ranks(side) for side in (left, right)]
    centred = [side - side.mean() for side in ranks]
    size = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / size if size > 0 else 0.0


def skill_of(wrong: NDArray[np.float64], equal: NDArray[np.float64]) -> tuple[float, float]:
    """(skill, lower end of its 95 % interval) from misallocations of the same answers, resampled over answers."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(wrong), (RESAMPLES, len(wrong)))
    base = equal[draws].mean(axis=1)
    spread = 1 - np.divide(wrong[draws].mean(axis=1), base, out=np.ones(RESAMPLES), where=base > 0)
    whole = 1 - float(wrong.mean()) / float(equal.mean()) if equal.mean() > 0 else 0.0
    return whole, float(np.quantile(spread, 0.025)) if len(wrong) > 1 else -1.0


def calibrate(entries: Sequence[Entry], truth: Sequence[Scores], strong: Sequence[int]) -> Calibration | None:
    """Grade C fitted on every other strong answer, its skill shown on the rest.

    None with fewer than four such answers, or where none shares a word with a source.
    """
    if len(strong) < 4:
        return None
    overlap = {
        i: overlap_bits(entries[i].case.layout, entries[i].table.answer_text, rules=Rules(merge=False)) for i in strong
    }
    shown = strong[1::2]
    wrong = np.array([misallocated(overlap[i], truth[i]) for i in shown])
    equal = np.array([misallocated(np.ones(len(truth[i])), truth[i]) for i in shown])
    skill, low = skill_of(wrong, equal)
    fitted = strong[::2]
    if not any(overlap[i].any() for i in fitted):
        return None
    return fit_calibration([overlap[i] for i in fitted], [truth[i] for i in fitted], skill=skill, skill_low=low)


def _ask_all(
    name: str, entries: Sequence[Entry], scorer: Scorer, reference: Reference, passes: int, draws: int
) -> list[list[Estimate]]:
    """For each case what a method says, once or for every draw."""
    return [
        [
            METHODS[name](Setting(entry.case, entry.table, scorer, reference, passes, seed, entry.outside))
            for seed in range(draws if name in SAMPLING else 1)
        ]
        for entry in entries
    ]


def _report(
    name: str,
    entries: Sequence[Entry],
    found: Sequence[Sequence[Estimate]],
    truth: Sequence[Scores],
    strong: Sequence[int],
    wrong: NDArray[np.float64],
    equal: NDArray[np.float64],
    cost: tuple[float, float] | None,
) -> MethodReport:
    rng = np.random.default_rng(0)
    means = wrong[rng.integers(0, len(wrong), (RESAMPLES, len(wrong)))].mean(axis=1)
    stakes = np.array([paid(truth[i]).sum() for i in strong])
    worst = max(misallocated(e.scores, truth[i]) for i in strong for e in found[i])
    first, unused, copied, gaps, held = [], [], [], [], []
    for i in strong:
        case, table = entries[i].case, entries[i].table
        worth = table.worth()
        for estimate in found[i]:
            given = paid(estimate.scores)
            share = given / given.sum() if given.sum() > 0 else given
            if not case.own:
                first.append(_gold_first(case, estimate.scores))
                unused.append(float(share[list(case.places("cited"))].sum()))
            if case.places("copy"):
                copies, both = list(case.places("copy")), list(case.places("copy", "gold"))
                if share[both].sum() > 0:
                    copied.append(float(share[copies].sum() / share[both].sum()))
            gaps.append(abs(float(estimate.scores.sum() - (worth[-1] - worth[0]))))
            held.append(spearman(table.kept @ estimate.scores, table.held_logp.sum(axis=1)))
    skill, low = skill_of(wrong, equal)
    in_bits = found[0][0].in_bits
    return MethodReport(
        method=name,
        passes=float(np.mean([e.passes for i in strong for e in found[i]])),
        misallocated=float(wrong.mean()),
        misallocated_low=float(np.quantile(means, 0.025)),
        misallocated_high=float(np.quantile(means, 0.975)),
        misallocated_worst=worst,
        misallocated_weighted=float((wrong * stakes).sum() / stakes.sum()),
        rank_correlation=float(np.mean([spearman(e.scores, truth[i]) for i in strong for e in found[i]])),
        held_out=float(np.mean(held)),
        gap_bits=float(np.mean(gaps)) if in_bits else None,
        gold_first=_mean(first),
        unused_cited=_mean(unused),
        copy_paid=float(np.mean(copied)) if copied else None,
        skill=skill,
        skill_low=low,
        refused=name != "exact" and low <= 0,
        cpu_s=None if cost is None else cost[0],
        wall_s=None if cost is None else cost[1],
    )


def _accounts(
    entries: Sequence[Entry],
    truth: Sequence[Scores],
    scorer: Scorer,
    reference: Reference,
    passes: int,
    calibration: Calibration | None,
) -> tuple[AccountReport, ...]:
    """The account itself: exact, with a budget, and grade C where it has skill."""

    def measured(entry: Entry, budget: int) -> Attribution:
        stand_in = TableScorer(entry.case.layout, scorer, entry.table)
        return attribute(
            stand_in, entry.case.layout, entry.table.answer_ids, budget=Budget(passes=budget), reference=reference
        )

    made = [
        _account("exact", entries, truth, [measured(e, 4**e.table.players) for e in entries]),
        _account(f"sampled {passes}", entries, truth, [measured(e, passes) for e in entries]),
    ]
    if calibration is not None and calibration.payable:
        texts = [attribute_text(e.case.layout, e.table.answer_text, calibration=calibration) for e in entries]
        made.append(_account("grade C", entries, truth, texts))
    return tuple(made)


def _account(
    name: str, entries: Sequence[Entry], truth: Sequence[Scores], found: Sequence[Attribution]
) -> AccountReport:
    first, copies, unused, residual, gaps = [], [0.0], [], [], []
    weak, weak_paid = 0, 0
    for entry, right, account in zip(entries, truth, found, strict=True):
        weights = np.array([share.weight_ppb for share in account.shares]) / 1e9
        bits = np.array([share.bits for share in account.shares])
        gaps.append(abs(account.base_bits + float(bits.sum()) - account.total_bits))
        copies += weights[list(entry.case.places("copy"))].tolist()
        if not entry.case.needs_gold:
            residual.append(account.residual_ppb / 1e9)
        elif not entry.case.own:
            first.append(_gold_first(entry.case, bits))
            if weights.sum() > 0:
                unused.append(float(weights[list(entry.case.places("cited"))].sum() / weights.sum()))
        if paid(right).sum() < STRONG_BITS:
            weak += 1
            weak_paid += bool(weights.any())
    return AccountReport(
        name,
        _mean(first),
        max(copies),
        _mean(unused),
        _mean(residual),
        min(residual, default=0.0),
        weak_paid,
        weak,
        max(gaps),
    )


def _gold_first(case: Case, scores: Scores) -> float:
    """Whether the source that holds the answer, with exact copies of it, scores highest."""
    gold = list(case.places("gold", "copy"))
    rest = [i for i in range(len(scores)) if i not in gold]
    return float(scores[gold].sum() > max(scores[rest], default=0.0))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _ranks(values: Scores) -> Scores:
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values))
    for value in np.unique(values):
        same = values == value
        ranks[same] = ranks[same].mean()
    return ranks
