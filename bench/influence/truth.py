"""Ground truth by retraining, kept on disk: what is there is not trained again, and a run that is stopped goes on.

    TASK-truth.npz   masks and losses of halves of examples and of contributors; what is not trained yet is not a number
    TASK-models.pt   trained weights of the full-data models
    TASK-fixed.npz   one run repeated in the same order without 4 % of its examples

Knows nothing of estimators.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.influence.parts import BenchTask, halves

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]
EXAMPLE_SEED, GROUP_SEED = 21, 22


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Losses (s, r, q) of models trained on halves; rows that are not complete have been left out."""

    masks: Masks
    losses: Floats  # mean over the seeds that were trained (s, q)
    ceiling: float  # what an oracle of the noiseless losses would score


def query_losses(task: BenchTask, model: nn.Module) -> NDArray[np.float32]:
    """(q,) losses."""
    with torch.no_grad():
        parts = [task.task.losses(model, task.queries[low : low + 32]) for low in range(0, len(task.queries), 32)]
    found: NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Trained weights by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def models_of(task: BenchTask, folder: Path, say: Callable[[str], None]) -> list[dict[str, Tensor]]:
    """Trained weights of the full-data models."""
    path = folder / f"{task.name}-models.pt"
    found: list[dict[str, Tensor]] = torch.load(path, weights_only=True) if path.exists() else []
    for seed in range(len(found), task.models):
        say(f"{task.name}: training model {seed + 1} of {task.models}")
        found.append(trained_state(task.train(np.arange(len(task.examples)), seed)))
        torch.save(found, path)
    return found


def truths_of(task: BenchTask, folder: Path, say: Callable[[str], None], *, train: bool = True) -> dict[str, Truth]:
    """Ground truth by level: `example`, and `contributor` where there are any.

    The last seeds come last, so that a run that is cut short has one training of every half first.
    """
    path, count = folder / f"{task.name}-truth.npz", len(task.examples)
    shape = (task.subsets, task.seeds, len(task.queries))
    masks = {"example": halves(count, task.subsets, EXAMPLE_SEED)}
    if task.groups is not None:
        masks["contributor"] = halves(int(task.groups.max()) + 1, task.subsets, GROUP_SEED)[:, task.groups]
    losses = {level: np.full(shape, np.nan) for level in masks}
    if path.exists():
        with np.load(path) as stored:
            masks = {level: stored[f"{level}_masks"] for level in masks}
            losses = {level: stored[f"{level}_losses"].astype(np.float64) for level in masks}
    jobs = [
        (level, s, r)
        for r in range(task.seeds)
        for s in range(task.subsets)
        for level in masks
        if s < len(losses[level]) and r < losses[level].shape[1] and np.isnan(losses[level][s, r, 0])
    ]
    for done, (level, s, r) in enumerate(jobs if train else ()):
        say(f"{task.name}: training half {done + 1} of {len(jobs)}")
        seed = 100 * (s + 1) + r + (50_000 if level == "example" else 0)
        losses[level][s, r] = query_losses(task, task.train(np.flatnonzero(masks[level][s]), seed))
        values = {f"{level}_masks": masks[level] for level in masks} | {f"{k}_losses": v for k, v in losses.items()}
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **values)
        os.replace(partial, path)
    return {level: _truth(masks[level], losses[level]) for level in masks}


def _truth(masks: Masks, losses: Floats) -> Truth:
    trained = ~np.isnan(losses[:, :, 0])
    some = trained.any(1)
    return Truth(masks[some], np.nanmean(losses[some], axis=1), _ceiling(losses[some], trained[some]))


def _ceiling(losses: Floats, trained: Masks) -> float:
    """Root of the reliability of the actual mix of seeds (Spearman-Brown from those with two)."""
    two = trained[:, 1] if trained.shape[1] > 1 else np.zeros(len(trained), dtype=bool)
    if two.sum() < 6:
        return float("nan")
    a, b = (losses[two, k].argsort(0).argsort(0) for k in (0, 1))
    single = float(np.mean([np.corrcoef(a[:, q], b[:, q])[0, 1] for q in range(a.shape[1])]))
    seeds = trained.sum(1)
    return float(np.sqrt(np.mean(np.maximum(seeds * single / (1 + (seeds - 1) * single), 0))))
