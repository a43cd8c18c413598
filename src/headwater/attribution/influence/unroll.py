"""Exact influence on one recorded training run, by going back through every step of the optimiser.

A run is recorded as its start, its batches and its optimiser. It is replayed, keeping every state, and one adjoint
is carried from the loss of interest back to the start: at each step the weight of every example in the batch gets
its derivative, and the adjoint passes through the step by a product with the batch's Hessian. The result is the
derivative of the final loss with respect to how much each example counts, for this run and no other. It costs a few
trainings for one loss, so it is meant for the summed loss of a billing period.

Invariants: the replay must end at the recorded weights to the bit, or the audit is refused. States are kept in
memory: steps x trained numbers x 4 bytes (x 3 for AdamW). Knows nothing of the index.

Source of the idea: Maclaurin et al., 2015, "Gradient-based hyperparameter optimization through reversible learning".
What differs: states are stored, not reversed, and hyperparameters are example weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from headwater.attribution.influence.task import Task
from headwater.core.errors import ConflictError, InvalidError


@dataclass(frozen=True, slots=True)
class Sgd:
    """Stochastic gradient descent as torch does it: ``v = momentum * v + g + decay * p;  p -= rate * v``."""

    rate: float
    momentum: float = 0.0
    decay: float = 0.0


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled decay, as torch does it."""

    rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    decay: float = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class TrainRecord:
    """Everything needed to run a training again.

    The loss of a step is the sum of its examples' losses over `divisor` (default: the size of the batch), so that
    leaving an example out does not change what the others weigh.
    """

    model: nn.Module  # in any state; only its structure and frozen weights count
    start: dict[str, Tensor]  # trained parameters by name, before the first step
    end: dict[str, Tensor] | None  # after the last, to check the replay; none: not checked
    examples: Sequence[Any]
    batches: Sequence[Sequence[int]]  # places of the examples of each step
    task: Task
    optimiser: Sgd | AdamW


State = tuple[Tensor, ...]  # parameters, then the optimiser's memory; each flat


class _Run:
    """A model's trained parameters as one flat vector, and its losses as functions of that vector."""

    def __init__(self, record: TrainRecord) -> None:
        named = dict(record.model.named_parameters())
        for name, value in record.start.items():
            if name not in named or named[name].shape != value.shape:
                raise InvalidError(
                    f"start has {name!r} of shape {tuple(value.shape)}, which the model has not",
                    code="record_invalid",
                    fix="record the trained parameters of this model by name",
                )
        self.names = list(record.start)
        self.shapes = [record.start[name].shape for name in self.names]
        self.record = record

    def flat(self, values: dict[str, Tensor]) -> Tensor:
        return torch.cat([values[name].detach().flatten() for name in self.names])

    def losses(self, flat: Tensor, items: list[Any]) -> Tensor:
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        parts = [p.view(s) for p, s in zip(torch.split(flat, sizes), self.shapes, strict=True)]
        values = dict(zip(self.names, parts, strict=True))

        def call(*arguments: Any, **options: Any) -> Any:
            return torch.func.functional_call(self.record.model, values, arguments, options)

        return self.record.task.losses(call, items)

    def weighted(self, flat: Tensor, batch: Sequence[int], weights: Tensor) -> Tensor:
        return (self.losses(flat, [self.record.examples[i] for i in batch]) * weights).sum() / len(batch)


def _step(optimiser: Sgd | AdamW, state: State, gradient: Tensor, count: int) -> State:
    """The state after one step; differentiable. `count` is 1 for the first."""
    if isinstance(optimiser, Sgd):
        p, v = state
        g = gradient + optimiser.decay * p
        v = g if count == 1 else optimiser.momentum * v + g
        return p - optimiser.rate * v, v
    p, m, s = state
    p = p * (1.0 - optimiser.rate * optimiser.decay)
    m = m + (gradient - m) * (1.0 - optimiser.beta1)
    s = optimiser.beta2 * s + (1.0 - optimiser.beta2) * gradient * gradient
    unbiased = (s / (1.0 - optimiser.beta2**count)).clamp_min(1e-30).sqrt() + optimiser.epsilon
    return p - (optimiser.rate / (1.0 - optimiser.beta1**count)) * m / unbiased, m, s


def replay(record: TrainRecord, weights: NDArray[np.float32] | None = None) -> list[State]:
    """All states of the run, the first before any step; `weights` (n,) count examples differently.

    Raises:
        InvalidError: no steps, or a batch that names an example which does not exist.
    """
    run = _Run(record)
    if not record.batches or any(
        not len(b) or not 0 <= min(b) <= max(b) < len(record.examples) for b in record.batches
    ):
        raise InvalidError("no steps, or a step without its examples", code="record_invalid", fix="record every batch")
    start = run.flat(record.start)
    memory = 1 if isinstance(record.optimiser, Sgd) else 2
    states: list[State] = [(start, *(torch.zeros_like(start) for _ in range(memory)))]
    scale = torch.ones(len(record.examples)) if weights is None else torch.from_numpy(weights)
    for count, batch in enumerate(record.batches, start=1):
        p = states[-1][0].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(run.weighted(p, batch, scale[list(batch)]), p)
        with torch.no_grad():
            states.append(_step(record.optimiser, states[-1], gradient, count))
    return states


def audit_influence(
    record: TrainRecord,
    loss: Callable[[Any], Tensor],
    *,
    tolerance: float = 1e-4,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """How much each example lowered `loss` in this very run: (n,), positive where it helped.

    The sum of a group's values is, to first order, how much higher the loss would be had the group been left out.

    Args:
        record: of the run.
        loss: of the final model, as a scalar: ``loss(model)``, where the model is called as it was in training.
        tolerance: largest difference from the recorded end, in units of the largest weight.

    Raises:
        ConflictError: the replay does not end where the recorded run ended.
        InvalidError: a record that cannot be replayed, or a loss that is not a finite scalar.
    """
    run = _Run(record)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        states = replay(record)
        if record.end is not None:
            end = run.flat(record.end)
            off = float((states[-1][0] - end).abs().max())
            if off > tolerance * float(end.abs().max()):
                raise ConflictError(
                    f"the replay ends {off:.3g} away from the recorded weights",
                    code="replay_differs",
                    fix="record order, optimiser and start as they were; train and audit on one thread",
                )
        p = states[-1][0].clone().requires_grad_(True)
        value = _call_loss(run, p, loss)
        (adjoint,) = torch.autograd.grad(value, p)
        carried: State = (adjoint, *(torch.zeros_like(adjoint) for _ in states[-1][1:]))
        found = torch.zeros(len(record.examples))
        total = len(record.batches)
        for count in range(total, 0, -1):
            batch = list(record.batches[count - 1])
            carried, per_example = _back(run, states[count - 1], batch, carried, count)
            found.index_add_(0, torch.tensor(batch), per_example)
            if progress is not None:
                progress(total - count + 1, total)
    # The derivative of the loss with respect to an example's weight; a helpful example's is negative.
    scores: NDArray[np.float32] = (-found).numpy()
    return scores


def _call_loss(run: _Run, flat: Tensor, loss: Callable[[Any], Tensor]) -> Tensor:
    sizes = [int(np.prod(shape)) for shape in run.shapes]
    parts = [p.view(s) for p, s in zip(torch.split(flat, sizes), run.shapes, strict=True)]
    values = dict(zip(run.names, parts, strict=True))

    def call(*arguments: Any, **options: Any) -> Any:
        return torch.func.functional_call(run.record.model, values, arguments, options)

    value = loss(call)
    if value.numel() != 1 or not bool(torch.isfinite(value)):
        raise InvalidError(
            f"the loss is {value.detach().flatten()[:4].tolist()}, not one finite number",
            code="loss_invalid",
            fix="give the sum or mean of what is audited",
        )
    return value


def _back(run: _Run, before: State, batch: list[int], carried: State, count: int) -> tuple[State, Tensor]:
    """The adjoint of the state before a step, and the derivative for each example of its batch."""
    inputs = tuple(x.clone().requires_grad_(True) for x in before)
    weights = torch.ones(len(batch), requires_grad=True)
    (gradient,) = torch.autograd.grad(run.weighted(inputs[0], batch, weights), inputs[0], create_graph=True)
    after = _step(run.record.optimiser, inputs, gradient, count)
    derived = torch.autograd.grad(after, (*inputs, weights), grad_outputs=carried, allow_unused=True)
    filled = [torch.zeros_like(x) if d is None else d for d, x in zip(derived, (*inputs, weights), strict=True)]
    return tuple(filled[:-1]), filled[-1]
