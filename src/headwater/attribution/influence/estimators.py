"""Other ways to score, for comparison: gradient products, TRAK and similarity of inputs.

Each takes a model and lists and gives (query, example) scores, positive where training on the example lowered the
query's loss. They hold all gradients in memory and are meant for small tasks. Knows nothing of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headwater.attribution.influence.capture import Capture, outer, trainable_linears
from headwater.attribution.influence.model_state import as_evaluated
from headwater.attribution.influence.task import Task
from headwater.core.errors import InvalidError

Scores = NDArray[np.float32]
Estimator = Callable[[nn.Module, Sequence[Any], Sequence[Any], Task], Scores]
"""(model, examples, queries, task) -> (query, example)."""


def gradient_rows(model: nn.Module, items: Sequence[Any], task: Task, *, batch: int = 32) -> Tensor:
    """(n, parameters) per-example gradients of the trainable linear layers."""
    modules = trainable_linears(model)
    rows = []
    with as_evaluated(model), Capture(model, modules) as capture:
        capture.probe(task.losses, items)
        for low in range(0, len(items), batch):
            part = [items[i] for i in range(low, min(low + batch, len(items)))]
            signals = capture.signals(task.losses, part)
            rows.append(torch.cat([outer(signals[name]).flatten(1) for name in modules if name in signals], dim=1))
    return torch.cat(rows)


def grad_dot(model: nn.Module, examples: Sequence[Any], queries: Sequence[Any], task: Task) -> Scores:
    """Products of gradients: one step of plain training."""
    return _scores(gradient_rows(model, queries, task) @ gradient_rows(model, examples, task).T)


def grad_cos(model: nn.Module, examples: Sequence[Any], queries: Sequence[Any], task: Task) -> Scores:
    """Products of gradients of unit length."""
    rows = [nn.functional.normalize(gradient_rows(model, items, task), dim=1) for items in (queries, examples)]
    return _scores(rows[0] @ rows[1].T)


def trak(dimensions: int = 128, *, ridge: float = 1.0, seed: int = 0) -> Estimator:
    """Random projections of gradients with a ridge solve between them.

    Source: Park et al., 2023, "TRAK". What differs: gradients of the loss itself, since a task tells no more, and a
    ridge that is a multiple of the mean diagonal, without which a projection nearly as wide as the data fits noise.

    Raises:
        InvalidError: when called: a projection as wide as there are examples, without a ridge.
    """

    def estimate(model: nn.Module, examples: Sequence[Any], queries: Sequence[Any], task: Task) -> Scores:
        if dimensions >= len(examples) and ridge <= 0:
            raise InvalidError(
                f"a projection to {dimensions} numbers for {len(examples)} examples fits noise",
                code="projection_too_wide",
                fix="use fewer dimensions than examples, or a ridge above 0",
            )
        g, q = gradient_rows(model, examples, task), gradient_rows(model, queries, task)
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(g.shape[1], dimensions, generator=generator) / dimensions**0.5
        g, q = g @ projection, q @ projection
        kernel = g.T @ g
        kernel += ridge * kernel.diagonal().mean() * torch.eye(dimensions)
        return _scores(q @ torch.linalg.solve(kernel, g.T))

    return estimate


def input_similarity(features: Callable[[Any], Tensor]) -> Estimator:
    """Cosine of what `features` gives for an item: similarity, which is not attribution."""

    def estimate(_model: nn.Module, examples: Sequence[Any], queries: Sequence[Any], _task: Task) -> Scores:
        rows = [
            nn.functional.normalize(torch.stack([features(item).flatten().float() for item in items]), dim=1)
            for items in (queries, examples)
        ]
        return _scores(rows[0] @ rows[1].T)

    return estimate


def _scores(values: Tensor) -> Scores:
    found: Scores = values.float().numpy()
    return found
