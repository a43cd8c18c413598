"""The training loop: AdamW over the factors, one thread, made durable as it goes, repeatable to the bit.

Which examples a step sees follows from the seed and the epoch alone, and nothing else is random, so a
run that was killed goes on from its last state and ends with the bits it would have had.

Source: Loshchilov and Hutter, 2019, decoupled weight decay.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, InvalidError, InvariantError, UpstreamError
from headwater.models.factory.examples import Example
from headwater.models.factory.network import TopLayers
from headwater.models.factory.recipe import Recipe
from headwater.models.factory.task import AdapterTask

STATE_FILE, LOCK_FILE = "state.npz", "lock"
BETAS, EPSILON = (0.9, 0.999), 1e-8
_DOMAIN = 0x5EED_0001


@dataclass(frozen=True, slots=True)
class Progress:
    """A step that was taken."""

    step: int  # from 1
    steps: int
    loss: float  # nats, the mean of the step's examples
    tokens: int  # read in this step


@dataclass(frozen=True, slots=True)
class Measured:
    """Losses on examples that were held out."""

    rows: int
    loss: float  # nats a token of texts and answers; 0 when there are none
    pairs: int
    pair_loss: float  # nats a pair; 0 when there are none
    pairs_right: int  # pairs whose chosen answer gained more than the rejected one


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run left behind; the model holds the final weights."""

    steps: int
    losses: tuple[float, ...]  # of each step
    checkpoints: tuple[tuple[int, str], ...]  # (step, digest of the factors) at the start and after each epoch
    resumed_at: int  # step the run went on from; 0 for one that was not interrupted


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread with repeatable algorithms only, and put both back afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(threads)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a training's folder for this process; the lock goes with the process, however it ends.

    Raises:
        ConflictError: another process is training there.
    """
    with (folder / LOCK_FILE).open("wb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConflictError(
                f"another process is training in {folder.name}", code="training_at_work", fix="wait until it ends"
            ) from None
        yield


def order(count: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """The examples of an epoch in the order they are seen: (count,)."""
    return np.random.Generator(np.random.Philox(key=[_DOMAIN + epoch, seed])).permutation(count)


def schedule(count: int, recipe: Recipe) -> tuple[tuple[int, ...], ...]:
    """The examples of every step, by number; the last step of an epoch may be smaller."""
    steps: list[tuple[int, ...]] = []
    for epoch in range(recipe.epochs):
        shuffled = order(count, epoch, recipe.seed).tolist()
        steps += [tuple(shuffled[at : at + recipe.batch]) for at in range(0, count, recipe.batch)]
    return tuple(steps[: recipe.steps_max or None])


def train(
    model: TopLayers,
    examples: Sequence[Example],
    task: AdapterTask,
    folder: Path,
    on_step: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train `model` in place, going on from the state in `folder` if there is one.

    Raises:
        InvalidError: no examples, or a loss that is not finite.
        UpstreamError: the disk is full; the last durable state stays.
        InvariantError: the state in the folder is damaged.
    """
    if not examples:
        raise InvalidError("there are 0 examples to train on", code="dataset_empty", fix="give longer texts or more")
    recipe = model.recipe
    steps = schedule(len(examples), recipe)
    per_epoch = -(-len(examples) // recipe.batch)
    state = _State.load(folder / STATE_FILE, model) or _State.begin(model)
    resumed_at = state.step
    if state.step == 0:
        state.keep(folder, model)
    for number in range(state.step, len(steps)):
        batch = [examples[at] for at in steps[number]]
        loss = _step(model, batch, task, state, recipe)
        if not np.isfinite(loss):
            where = ", ".join(example.row.where for example in batch)
            raise InvalidError(
                f"the loss of step {number + 1} is {loss} nats, on {where}",
                code="training_diverged",
                fix="lower the learning rate",
            )
        state.step, state.losses = number + 1, [*state.losses, loss]
        last = state.step == len(steps)
        if state.step % per_epoch == 0 or last:
            state.keep(folder, model)
        if state.step % recipe.checkpoint_steps == 0 or last:
            state.save(folder / STATE_FILE, model)
        if on_step is not None:
            on_step(Progress(state.step, len(steps), loss, sum(example.tokens for example in batch)))
    return Trained(len(steps), tuple(state.losses), tuple(state.checkpoints), resumed_at)


@torch.no_grad()
def measure(model: TopLayers, examples: Sequence[Example], task: AdapterTask) -> Measured:
    """Losses of examples under the weights the model has now."""
    alone, tokens, pair_loss, pairs, right = 0.0, 0, 0.0, 0, 0
    for example in examples:
        loss = float(task.losses(model, [example])[0])
        if len(example.stretches) == 2:
            pairs, pair_loss = pairs + 1, pair_loss + loss
            right += loss < float(np.log(2))
        else:
            tokens += example.stretches[0].learned
            alone += loss * example.stretches[0].learned
    return Measured(len(examples) - pairs, alone / max(tokens, 1), pairs, pair_loss / max(pairs, 1), right)


def _step(model: TopLayers, batch: Sequence[Example], task: AdapterTask, state: _State, recipe: Recipe) -> float:
    loss = task.losses(model, batch).mean()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    norm = float(torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(()))))
    shrink = min(1.0, recipe.clip_norm / (norm + 1e-12))
    number = state.step + 1
    rate = recipe.learning_rate * min(1.0, number / max(1, recipe.warmup_steps))
    with torch.no_grad():
        for parameter, gradient, first, second in zip(parameters, gradients, state.first, state.second, strict=True):
            slope = gradient * shrink
            first.mul_(BETAS[0]).add_(slope, alpha=1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
            ahead = first / (1 - BETAS[0] ** number)
            spread = (second / (1 - BETAS[1] ** number)).sqrt_().add_(EPSILON)
            parameter.mul_(1 - rate * recipe.weight_decay).addcdiv_(ahead, spread, value=-rate)
    return float(loss.detach())


@dataclass
class _State:
    """Everything a step depends on besides the data."""

    step: int
    first: list[torch.Tensor]  # AdamW's running means
    second: list[torch.Tensor]
    losses: list[float]
    checkpoints: list[tuple[int, str]]

    @classmethod
    def begin(cls, model: TopLayers) -> _State:
        first, second = ([torch.zeros_like(parameter) for parameter in model.parameters()] for _ in range(2))
        return cls(0, first, second, [], [])

    @classmethod
    def load(cls, path: Path, model: TopLayers) -> _State | None:
        if not path.exists():
            return None
        raw = path.read_bytes()
        body, stored = raw[:-32], raw[-32:]
        if hashlib.sha256(body).digest() != stored:
            raise InvariantError(
                f"{path} was altered or cut short",
                code="training_state_damaged",
                fix="delete its folder and begin anew",
            )
        with np.load(io.BytesIO(body), allow_pickle=False) as kept:
            groups = [
                [torch.from_numpy(kept[f"{kind}{n}"]) for n, _ in enumerate(model.parameters())] for kind in "pfs"
            ]
            checkpoints = [(int(step), str(text)) for step, text in zip(kept["at"], kept["digests"], strict=True)]
            state = cls(int(kept["step"]), groups[1], groups[2], kept["losses"].tolist(), checkpoints)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), groups[0], strict=True):
                parameter.copy_(value)
        return state

    def save(self, path: Path, model: TopLayers) -> None:
        arrays: dict[str, NDArray[np.generic]] = {}
        factors: list[torch.Tensor] = list(model.parameters())
        for kind, tensors in zip("pfs", (factors, self.first, self.second), strict=True):
            arrays |= {f"{kind}{n}": tensor.detach().numpy() for n, tensor in enumerate(tensors)}
        body = io.BytesIO()
        np.savez(
            body,
            allow_pickle=False,
            step=np.int64(self.step),
            losses=np.array(self.losses, dtype=np.float64),
            at=np.array([step for step, _ in self.checkpoints], dtype=np.int64),
            digests=np.array([text for _, text in self.checkpoints], dtype=np.str_),
            **arrays,
        )
        write_whole(path, body.getvalue() + hashlib.sha256(body.getvalue()).digest())

    def keep(self, folder: Path, model: TopLayers) -> None:
        """Keep the factors of this step as a checkpoint for the influence index."""
        if any(step == self.step for step, _ in self.checkpoints):
            return
        raw = factor_bytes(model)
        write_whole(folder / checkpoint_name(self.step), raw)
        self.checkpoints.append((self.step, digest(raw)))


def checkpoint_name(step: int) -> str:
    """The file of a checkpoint inside a training's folder."""
    return f"step-{step:07d}.npz"


def factor_bytes(model: TopLayers) -> bytes:
    """All factors, in the model's order and row order, as an npz file that is the same for the same bits."""
    body = io.BytesIO()
    np.savez(body, allow_pickle=False, **{name: value.numpy() for name, value in model.state_dict().items()})
    return body.getvalue()


def read_factors(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint as a state dict of `TopLayers`.

    Raises:
        InvalidError: not a checkpoint.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: torch.from_numpy(kept[name]) for name in kept.files}
    except (OSError, ValueError, KeyError) as error:
        raise InvalidError(
            f"{path.name} is not a checkpoint: {error}", code="checkpoint_invalid", fix="train the adapter again"
        ) from None


def write_whole(path: Path, raw: bytes) -> None:
    """Put a file in place whole and durable, or not at all.

    Raises:
        UpstreamError: ``disk_full`` or another failure of the disk; what stood there before stays.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as handle:
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UpstreamError(
            f"{path.name} of {len(raw)} bytes cannot be written: {error.strerror}",
            code="disk_full" if error.errno == 28 else "disk_failed",
            fix="free some space and run the command again: it goes on from the last state",
        ) from error
