"""Puts an estimator to the test: retrain on half of the data, many times, and see who foresaw the losses.

Ground truth is retraining on half-subsets of examples and of contributors, each with several seeds, so that the
noise of training is known and the score has a ceiling. All estimators are judged on the same subsets; differences
are bootstrapped in pairs. `fit_for_payout` refuses what is less surely right than a plain product of gradients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headwater.attribution.influence.estimators import Estimator, Scores, grad_cos, grad_dot, trak
from headwater.attribution.influence.index import InfluenceIndex
from headwater.attribution.influence.intervals import Calibration, bootstrap_intervals
from headwater.attribution.influence.measures import (
    Floats,
    Masks,
    Measured,
    aggregate_score,
    area_under_curve,
    bootstrap_scores,
    half_subsets,
    noise_ceiling,
)
from headwater.attribution.influence.model_state import as_evaluated
from headwater.attribution.influence.task import Task
from headwater.core.errors import InvalidError, RefusedError

BASELINE = "grad-dot"
INDEX = "index"
INTERVAL_LEVEL = 0.9

Train = Callable[[NDArray[np.int64], int], nn.Module]
"""``train(places of examples, seed) -> model``."""


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """Losses of retrained models."""

    masks: Masks  # (s, n)
    losses: Floats  # (s, r, q)

    @property
    def ceiling(self) -> float:
        """The most a score can reach."""
        return noise_ceiling(self.losses)


@dataclass(frozen=True, slots=True)
class Row:
    """One estimator's results."""

    name: str
    example: Measured
    contributor: Measured
    aggregate: float  # contributor subsets, mean loss of all queries
    mislabelled_auc: float | None
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One task's results."""

    task: str
    examples: int
    queries: int
    contributors: int
    subsets: int
    seeds: int
    example_ceiling: float
    contributor_ceiling: float
    coverage: float  # part of contributors whose calibrated interval holds the measured effect
    rows: tuple[Row, ...]
    better_than_baseline: tuple[tuple[str, float], ...]  # chance over paired draws of contributor subsets

    def row(self, name: str) -> Row:
        """The results of one estimator.

        Raises:
            InvalidError: it was not evaluated.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise InvalidError(f"no estimator {name!r} was evaluated", code="estimator_unknown", fix="evaluate it")


def fit_for_payout(evaluation: Evaluation, name: str) -> Row:
    """The estimator's row, if money may follow it.

    Raises:
        RefusedError: its lower bound is under that of a plain product of gradients, at either level, or not above zero.
    """
    row, base = evaluation.row(name), evaluation.row(BASELINE)
    for level in ("example", "contributor"):
        ours, theirs = getattr(row, level), getattr(base, level)
        if ours.low < theirs.low or ours.low <= 0:
            raise RefusedError(
                f"{name} scores {ours.value:.3f}, at least {ours.low:.3f}, by {level}; {BASELINE} {theirs.low:.3f}",
                code="estimator_unfit",
                fix="use an estimator that surely beats a product of gradients on this model",
            )
    return row


def index_estimator(**options: Any) -> Estimator:
    """The influence index as an estimator, built in a temporary folder."""

    def estimate(model: nn.Module, examples: Sequence[Any], queries: Sequence[Any], task: Task) -> Scores:
        with tempfile.TemporaryDirectory() as folder:
            return InfluenceIndex.build(model, examples, task, Path(folder) / "index", **options).scores(queries)

    return estimate


def standard_estimators() -> dict[str, Estimator]:
    """The index and what it is compared with."""
    return {INDEX: index_estimator(), BASELINE: grad_dot, "grad-cos": grad_cos, "trak": trak()}


def retrain(
    train: Train, task: Task, queries: Sequence[Any], masks: Masks, seeds: int, seed: int, advance: Callable[[], None]
) -> GroundTruth:
    """Train on every subset with every seed, and measure the queries."""
    losses = np.empty((len(masks), seeds, len(queries)))
    for s, mask in enumerate(masks):
        for r in range(seeds):
            model = train(np.flatnonzero(mask), seed + 1 + s * seeds + r)
            losses[s, r] = query_losses(model, task, queries)
            advance()
    return GroundTruth(masks, losses)


@torch.no_grad()
def query_losses(model: nn.Module, task: Task, queries: Sequence[Any], batch: int = 64) -> Floats:
    """(q,) losses."""
    with as_evaluated(model):
        parts = [task.losses(model, list(queries[low : low + batch])) for low in range(0, len(queries), batch)]
    found: Floats = torch.cat(parts).double().numpy()
    return found


def evaluate(
    train: Train,
    examples: Sequence[Any],
    queries: Sequence[Any],
    contributors: Sequence[str],
    task: Task,
    estimators: Mapping[str, Estimator] | None = None,
    *,
    name: str = "task",
    subsets: int = 24,
    seeds: int = 2,
    seed: int = 0,
    mislabelled: NDArray[np.bool_] | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Retrain, score and compare.

    Args:
        train: ``train(places, seed)`` gives a model trained on those examples.
        contributors: one name for each example.
        estimators: by name; `grad-dot` is always added, since every other is judged against it.
        subsets: half-subsets of examples, and as many of contributors.
        seeds: trainings of each; at least 2, or there is no ceiling.
        mislabelled: (n,) examples known to be wrong, to be found by their own low score.
        clock: such as `time.process_time`, for the CPU column.
        progress: called with (models trained, models to train).

    Raises:
        InvalidError: fewer than 2 seeds or 4 subsets, or contributors that cannot be halved.
    """
    if seeds < 2 or subsets < 4:
        raise InvalidError(
            f"{subsets} subsets with {seeds} seeds", code="evaluation_small", fix="use at least 4 subsets and 2 seeds"
        )
    chosen = {**(estimators if estimators is not None else standard_estimators())}
    chosen.setdefault(BASELINE, grad_dot)
    names = list(dict.fromkeys(contributors))
    groups = np.array([names.index(c) for c in contributors])
    total, done = 2 * subsets * seeds, 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    every = np.arange(len(examples))
    truths = [
        retrain(
            train, task, queries, half_subsets(kind, subsets, seed + number), seeds, seed + number * 10_000, advance
        )
        for number, kind in enumerate((every, groups))
    ]
    model = train(every, seed)
    scores, cpu, auc = {}, {}, {}
    for key, estimator in chosen.items():
        started = clock()
        scores[key] = estimator(model, examples, queries, task)
        cpu[key] = clock() - started
        if mislabelled is not None and mislabelled.any():
            # A wrong label hurts: its score, summed over queries, should be low.
            auc[key] = area_under_curve(-scores[key].sum(0).astype(np.float64), mislabelled)
    levels = [bootstrap_scores(scores, t.masks, t.losses.mean(1), seed=seed) for t in truths]
    rows = tuple(
        Row(
            key,
            levels[0][0][key],
            levels[1][0][key],
            aggregate_score(scores[key], truths[1].masks, truths[1].losses.mean(1)),
            auc.get(key),
            cpu[key],
        )
        for key in chosen
    )
    paired = levels[1][1]
    first = INDEX if INDEX in scores else next(iter(scores))
    return Evaluation(
        task=name,
        examples=len(examples),
        queries=len(queries),
        contributors=len(names),
        subsets=subsets,
        seeds=seeds,
        example_ceiling=truths[0].ceiling,
        contributor_ceiling=truths[1].ceiling,
        coverage=interval_coverage(scores[first], groups, truths[1], seed=seed),
        rows=rows,
        better_than_baseline=tuple((key, float((paired[key] > paired[BASELINE]).mean())) for key in chosen),
    )


def measured_effects(truth: GroundTruth, groups: NDArray[np.int64]) -> Floats:
    """(c,) how much lower the mean loss of all queries is with a contributor than without.

    A least-squares fit of all contributors at once, with a small ridge, so that who else was in does not count.
    """
    count = int(groups.max()) + 1
    first = np.array([int(np.flatnonzero(groups == c)[0]) for c in range(count)])
    design = truth.masks[:, first].astype(np.float64)
    design -= design.mean(0)
    losses = truth.losses.mean((1, 2))
    ridge = 0.5 * len(design) / count * np.eye(count)
    effect: Floats = -np.linalg.solve(design.T @ design + ridge, design.T @ (losses - losses.mean()))
    return effect


def interval_coverage(scores: Scores, groups: NDArray[np.int64], truth: GroundTruth, *, seed: int) -> float:
    """Part of contributors whose 90 % interval, calibrated on the other half of them, holds the measured effect."""
    effect = measured_effects(truth, groups)
    count = len(effect)
    by_group = np.stack([scores[:, groups == c].sum(1) for c in range(count)], axis=1)
    mean = by_group.mean(0).astype(np.float64)
    rng = np.random.default_rng(seed)
    inside = []
    for _ in range(20):
        order = rng.permutation(count)
        fit, held = order[: count // 2], order[count // 2 :]
        calibration = calibrate(mean[fit], effect[fit], by_group[:, fit])
        found = bootstrap_intervals(
            by_group[None, :, held].astype(np.float32),
            tuple(map(str, held)),
            level=INTERVAL_LEVEL,
            seed=int(rng.integers(2**31)),
            calibration=calibration,
        )
        inside.append((found.low <= effect[held]) & (effect[held] <= found.high))
    return float(np.mean(inside))


def calibrate(mean: Floats, effect: Floats, by_query: NDArray[np.float32]) -> Calibration:
    """What one unit of score is worth in measured loss, and how far measured effects stray from it."""
    x, y = mean - mean.mean(), effect - effect.mean()
    square = float(x @ x)
    slope = max(float(x @ y) / square if square > 0 else 0.0, 0.0)
    left = effect - slope * mean
    sampling = slope**2 * float(by_query.var(0, ddof=1).mean()) / max(len(by_query), 2)
    # The spread includes the queries' own sampling, which the bootstrap adds again.
    spread = np.sqrt(max(float(left @ left) / max(len(left) - 1, 1) - sampling, 0.0))
    return Calibration(slope, spread)
