"""The curvature of a layer: a rotation in which it is nearly diagonal, and the weight each direction gets.

One statistics pass differentiates losses on labels drawn from the model. Its signals give the two Kronecker
factors of a layer, their eigenvectors the rotation, and the mean square of the rotated per-example gradients the
curvature of each direction. Rows are stored in this basis, divided by the root of (curvature + damping x mean
curvature of the layer). All sums are float32 or better.

Source: George et al., 2018, "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", section 4.
What differs: damping is relative to each layer, and wide layers keep the leading eigenvectors of each factor only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.attribution.influence.capture import Capture, Signals, outer
from headwater.attribution.influence.files import disk_errors
from headwater.attribution.influence.rows import BITS, ROUNDING
from headwater.attribution.influence.task import Task
from headwater.core.errors import InvalidError

STATISTICS_EXAMPLES_MAX = 2048
SPILL_BYTES_MAX = 1 << 30
ENERGY_ENOUGH = 0.95  # part of the rows' energy at which fine numbers beat more of them
UNRELATED_SQUARE = 2e-4  # mean square cosine of the rows of unrelated examples
SIDE_MAX = 512  # eigenvectors kept of each factor of a layer

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class LayerBasis:
    """What turns a gradient of one layer into the numbers of a row."""

    name: str
    inputs: Tensor  # (in, ki) eigenvectors of the input factor
    outputs: Tensor  # (out, ko) eigenvectors of the output factor
    keep: Tensor  # (k,) places in the flattened (ko, ki) gradient
    weight: Tensor  # (k,) one over the root of curvature plus damping
    signs: Tensor  # (k,) of 1 and -1 where the row is folded to fewer numbers, else empty
    folded: int  # numbers of a stored row

    @property
    def width(self) -> int:
        """Numbers of a row that this layer fills, before it is folded."""
        return int(self.keep.numel())

    def fold(self, values: Tensor) -> Tensor:
        """(b, k) to (b, folded): numbers far apart are added up with random signs, which keeps products on average."""
        if not self.signs.numel():
            return values
        times = -(-self.width // self.folded)
        flat = torch.zeros(len(values), times * self.folded)
        torch.mul(values, self.signs, out=flat[:, : self.width])
        return flat.view(len(values), times, self.folded).sum(1)

    def row(self, signal: list[tuple[Tensor, Tensor]]) -> Tensor:
        """(b, k): one batch's rotated and weighted gradients."""
        values = rotated(signal, self.inputs, self.outputs)
        if self.width == values.shape[1]:
            return values.mul_(self.weight)
        return values[:, self.keep].mul_(self.weight)


def rotated(signal: list[tuple[Tensor, Tensor]], inputs: Tensor, outputs: Tensor) -> Tensor:
    """(b, ko * ki) gradients in the basis of the factors; the cheaper order of products is taken."""
    positions = sum(a.shape[1] for a, _ in signal)
    (n_in, k_in), (n_out, k_out) = inputs.shape, outputs.shape
    first = positions * (n_in * k_in + n_out * k_out + k_in * k_out)
    after = positions * n_in * n_out + n_out * n_in * k_in + n_out * k_out * k_in
    if first <= after:
        return outer([(a @ inputs, g @ outputs) for a, g in signal]).flatten(1)
    return (outputs.T @ (outer(signal) @ inputs)).flatten(1)


def row_values(signals: Signals, bases: Sequence[LayerBasis], size: int) -> Tensor:
    """(b, k) float32: the rows of a batch, layers side by side; a layer that did not run gives zeros."""
    parts = [
        basis.row(signals[basis.name]) if basis.name in signals else torch.zeros(size, basis.width) for basis in bases
    ]
    return torch.cat(parts, dim=1)


def draw_sides(
    modules: dict[str, nn.Linear], pairs: dict[str, str], row_bytes: int, times: float, seed: int
) -> dict[str, Tensor]:
    """(in, k) random directions for the inputs of each low-rank pair, by the name of its second layer.

    A pair's own gradients see the inputs through the first layer, a few directions that its training began with by
    chance; another run would have others. What the rows have to tell is the gradient of the layer that the pair
    stands for, so it is seen through as many fresh random directions as `times` the room of a row allows.
    """
    if not pairs:
        return {}
    numbers = sum(modules[second].out_features * modules[first].in_features for second, first in pairs.items())
    part = min(1.0, times * (row_bytes - 4 * len(pairs)) * 8 / min(BITS) / numbers)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for second, first in pairs.items():
        wide = modules[first].in_features
        count = max(4, min(int(part * wide), SIDE_MAX))
        found[second] = torch.randn(wide, count, generator=generator) / wide**0.5
    return found


def auto_damping(numbers: int, labels: int, *, merged: bool) -> float:
    """Damping for rows of so many numbers whose curvature is seen through so many drawn labels.

    The fewer labels to a number, the less a direction's measured curvature says. Constants and bounds were chosen by
    half-subset retraining of small classifiers and language models; scores change little within a factor of three.
    """
    if merged:
        return float(np.clip(0.02 * numbers / labels, 0.03, 1.0))
    return float(np.clip(0.1 * numbers / labels, 0.1, 1.0))


def fold_rows(values: Tensor, bases: Sequence[LayerBasis]) -> Tensor:
    """(b, width) rows as they are stored."""
    parts = torch.split(values, [basis.width for basis in bases], dim=1)
    return torch.cat([basis.fold(part) for basis, part in zip(bases, parts, strict=True)], dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What a statistics pass gives."""

    bases: tuple[LayerBasis, ...]
    bits: int  # of a stored number
    damping: float
    usual: float  # root mean square of the rows of examples whose labels the model drew
    merged: bool  # whether low-rank pairs are followed as the layers they stand for


class _Spill:
    """Signals of the statistics pass, kept in a temporary file until the basis is known."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with disk_errors(folder):
            self._file = tempfile.TemporaryFile(dir=folder, prefix="statistics-")  # noqa: SIM115 - closed by close()
        self._places: list[tuple[str, int, tuple[tuple[int, ...], ...]]] = []

    def add(self, name: str, signal: list[tuple[Tensor, Tensor]]) -> None:
        parts = [x for pair in signal for x in pair]
        pair_numbers = sum(x.numel() for x in parts)
        batch, n_in, n_out = len(signal[0][0]), signal[0][0].shape[-1], signal[0][1].shape[-1]
        if pair_numbers > batch * n_in * n_out:
            parts = [outer(signal)]
        with disk_errors(self._folder):
            self._places.append((name, self._file.tell(), tuple(tuple(x.shape) for x in parts)))
            for part in parts:
                self._file.write(part.contiguous().numpy().tobytes())

    def second_moments(self, bases: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        sums = {name: torch.zeros(o.shape[1] * i.shape[1]) for name, (i, o) in bases.items()}
        for name, place, shapes in self._places:
            self._file.seek(place)
            parts = [
                torch.from_numpy(
                    np.frombuffer(bytearray(self._file.read(4 * int(np.prod(s)))), dtype=np.float32).reshape(s)
                )
                for s in shapes
            ]
            inputs, outputs = bases[name]
            if len(parts) == 1:
                values = (outputs.T @ (parts[0] @ inputs)).flatten(1)
            else:
                values = rotated(list(zip(parts[0::2], parts[1::2], strict=True)), inputs, outputs)
            sums[name] += values.square_().sum(0)
        return sums

    def close(self) -> None:
        self._file.close()


def fit_bases(
    capture: Capture,
    modules: dict[str, nn.Linear],
    examples: Sequence[Any],
    task: Task,
    *,
    damping: float | None,
    positions: int,
    row_bytes: int,
    bits: int,
    batch: int,
    seed: int,
    folder: Path,
    advance: Advance,
    wide: float = 1.0,
) -> Fitted:
    """One statistics pass over (a sample of) the examples.

    Args:
        damping: times the mean curvature of a layer; none: see `auto_damping`.
        positions: labels of an example.
        row_bytes: of a stored row, scales included; directions with most energy after weighting are kept.
        bits: most bits of a stored number.
        wide: how many times the room of a row the random directions of low-rank pairs may take before it is folded.
        folder: where the temporary file may lie.

    Raises:
        InvalidError: gradients that are not finite, or no gradient at all.
    """
    rng = np.random.default_rng(seed)
    numbers = sum(module.weight.numel() for module in modules.values())
    count = max(min(len(examples), STATISTICS_EXAMPLES_MAX, SPILL_BYTES_MAX // (4 * numbers)), min(64, len(examples)))
    chosen = np.sort(rng.permutation(len(examples))[:count])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    task_losses = task.losses
    if task.sampled_losses is not None:
        sampled = task.sampled_losses

        def task_losses(model: Any, items: list[Any]) -> Tensor:
            return sampled(model, items, generator)

    factors: dict[str, tuple[Tensor, Tensor]] = {}
    drawn = draw_sides(modules, capture.layout.pairs, row_bytes, wide, seed)
    spill = _Spill(folder)
    try:
        for low in range(0, count, batch):
            places = chosen[low : low + batch]
            items = [examples[int(i)] for i in places]
            try:
                signals = capture.signals(task_losses, items)
            except RuntimeError:
                _refuse_infinite_losses(capture, task, items, [int(i) for i in places])
                raise
            for name, found in signals.items():
                signal = [(a @ drawn[name], g) for a, g in found] if name in drawn else found
                for a, g in signal:
                    if not bool(torch.isfinite(g.sum())) or not bool(torch.isfinite(a.sum())):
                        raise not_finite(name, [int(i) for i in places])
                    rows_a, rows_g = a.flatten(0, 1), g.flatten(0, 1)
                    if name not in factors:
                        factors[name] = (torch.zeros(a.shape[-1], a.shape[-1]), torch.zeros(g.shape[-1], g.shape[-1]))
                    factors[name][0].addmm_(rows_a.T, rows_a)
                    factors[name][1].addmm_(rows_g.T, rows_g)
                spill.add(name, signal)
            advance(len(places))
        sides = {name: (_leading(a), _leading(g)) for name, (a, g) in factors.items()}
        moments = {name: total / count for name, total in spill.second_moments(sides).items()}
    finally:
        spill.close()
    moments = {name: value for name, value in moments.items() if float(value.sum()) > 0.0}
    if not moments:
        raise InvalidError(
            "no loss has a gradient in the chosen layers",
            code="gradient_zero",
            fix="choose layers that the losses depend on, or a model that has not fitted every label exactly",
        )
    if damping is None:
        width = sum(value.numel() for value in moments.values())
        damping = auto_damping(width, count * positions, merged=bool(drawn))
    weights = {name: (value + damping * value.mean()).rsqrt() for name, value in moments.items()}
    sides |= {name: (drawn[name] @ sides[name][0], sides[name][1]) for name in drawn if name in sides}
    energy = {name: moments[name] * weights[name] ** 2 for name in moments}
    usual = float(torch.stack([value.sum() for value in energy.values()]).sum().sqrt())
    folded: dict[str, int] = {}
    if drawn:
        room, total = (row_bytes - 4 * len(energy)) * 8, sum(value.numel() for value in energy.values())
        kept = {name: torch.arange(value.numel()) for name, value in energy.items()}
        fine = [each for each in BITS if each <= bits and total * each <= room]
        if fine:
            bits = max(fine)
        else:
            bits = min(BITS)
            folded = {name: max(8, value.numel() * room // total) for name, value in energy.items()}
    else:
        kept, bits = _fit_row(energy, row_bytes, bits)
    signing = torch.Generator().manual_seed(seed + 1)
    bases = []
    for name in modules:
        if name in kept and kept[name].numel():
            count = kept[name].numel()
            signs = torch.empty(0)
            if folded.get(name, count) < count:
                signs = torch.randint(0, 2, (count,), generator=signing).float().mul_(2).sub_(1)
            stored = min(folded.get(name, count), count)
            bases.append(LayerBasis(name, *sides[name], kept[name], weights[name][kept[name]], signs, stored))
    return Fitted(tuple(bases), bits, damping, usual, bool(drawn))


def _leading(factor: Tensor) -> Tensor:
    """(d, min(d, SIDE_MAX)) eigenvectors of a factor, largest eigenvalue last."""
    vectors: Tensor = torch.linalg.eigh(factor / factor.diagonal().mean().clamp_min(1e-30))[1]
    return vectors[:, -SIDE_MAX:].contiguous()


def _fit_row(energy: dict[str, Tensor], row_bytes: int, bits_max: int) -> tuple[dict[str, Tensor], int]:
    """The directions to keep and the bits of each, so that a row of `row_bytes` loses least."""
    numbers = max((row_bytes - 4 * len(energy)) * 8, 32 * len(energy))
    every = torch.cat(list(energy.values())).sort(descending=True).values.cumsum(0)
    held = {each: min(numbers // each, len(every)) for each in BITS if each <= bits_max}
    part = {each: float(every[count - 1] / every[-1]) for each, count in held.items()}
    enough = [each for each, energy in part.items() if energy >= ENERGY_ENOUGH]
    if enough and max(enough) >= 8:
        best = max(enough)
    else:  # what rounding adds to a product of unrelated rows, beside what such products vary by
        noise = {each: ROUNDING[each] / (1 - ROUNDING[each]) / held[each] / UNRELATED_SQUARE for each in held}
        best = max(held, key=lambda each: part[each] - noise[each])
    return _most_energy(energy, numbers // best), best


def _most_energy(energy: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The `count` directions with most energy, for each layer in ascending order."""
    total = sum(value.numel() for value in energy.values())
    if count >= total:
        return {name: torch.arange(value.numel()) for name, value in energy.items()}
    least = torch.cat(list(energy.values())).topk(count).values[-1]
    return {name: (value >= least).nonzero()[:, 0] for name, value in energy.items()}


def _refuse_infinite_losses(capture: Capture, task: Task, items: list[Any], places: list[int]) -> None:
    """Labels cannot be drawn from predictions that are not numbers; say which example it was."""
    losses = capture.losses(task.losses, items)
    bad = [place for place, fine in zip(places, torch.isfinite(losses).tolist(), strict=True) if not fine]
    if bad:
        raise not_finite("(any)", bad)


def not_finite(name: str, places: Sequence[int]) -> InvalidError:
    """The error for a gradient that is infinite or not a number."""
    shown = ", ".join(map(str, places[:8])) + (", …" if len(places) > 8 else "")
    return InvalidError(
        f"the gradient of layer {name!r} is not finite for an example among {shown}",
        code="gradient_not_finite",
        fix="find the example whose loss is infinite or not a number and leave it out",
    )
