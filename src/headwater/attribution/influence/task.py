"""A task: how a model's loss is measured on one batch, and on labels that the model draws itself.

Knows nothing of models or of torch; it is two callables that the index calls with plain lists of items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor

Losses = Callable[[Any, list[Any]], "Tensor"]
SampledLosses = Callable[[Any, list[Any], "Generator"], "Tensor"]


@dataclass(frozen=True, slots=True)
class Task:
    """What training minimised, example by example.

    Args:
        losses: ``losses(model, batch) -> (b,)``; the loss of each item, not reduced.
        sampled_losses: ``sampled_losses(model, batch, generator) -> (b,)``; the same with labels drawn from the
            model's own predictions. It gives the curvature. Left out, the real labels give it.
    """

    losses: Losses
    sampled_losses: SampledLosses | None = None
