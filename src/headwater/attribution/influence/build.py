"""Builds an influence index in a folder, checkpoint by checkpoint, shard by shard.

Everything decided before the first gradient is written down in ``building.json``; a build that was killed goes on
behind its last whole shard if that description is the same, and is refused if it is another. Shards, bases and
the manifest are each written whole or not at all; the manifest comes last. Memory depends on the batch and the row,
never on the number of examples.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headwater.attribution.influence.build_settings import (
    DEEP_RIDGE,
    BuildSettings,
    Contributors,
    auto_row_bytes,
    group_of_examples,
)
from headwater.attribution.influence.capture import PROBE_EXAMPLES, Capture, half_is_faster, trainable_linears
from headwater.attribution.influence.curvature import (
    STATISTICS_EXAMPLES_MAX,
    Advance,
    LayerBasis,
    fit_bases,
    fold_rows,
    not_finite,
    row_values,
)
from headwater.attribution.influence.files import file_digest, whole_file
from headwater.attribution.influence.manifest import (
    FORMAT,
    MANIFEST_FILE,
    CheckpointPart,
    Manifest,
    Shard,
    StoredFile,
    read_manifest,
    write_manifest,
)
from headwater.attribution.influence.model_state import (
    State,
    as_before,
    entries_to_keep,
    examples_digest,
    load_state,
    model_digest,
)
from headwater.attribution.influence.ridge import Ridge, RowSource, fit_ridge, no_ridge, scaled_down
from headwater.attribution.influence.rows import RowLayout
from headwater.attribution.influence.task import Task
from headwater.core.canonical import canonical, digest_of
from headwater.core.errors import ConflictError, InvalidError

SHARD_BYTES = 64 << 20
BUILDING_FILE = "building.json"
POSITIONS_MAX = 512  # positions in a batch: bounds what the model keeps for its backward pass
BATCH_NUMBERS_MAX = 1 << 22  # gradients of a batch, in numbers
CONTRIBUTOR_BLOCK = 256
CONTRIBUTORS_BYTES_MAX = 64 << 20  # of the sums of all contributors, where low-rank pairs are followed
WIDER = 2.5


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A build, decided: the same on every machine that works on it."""

    folder: Path
    settings: BuildSettings
    names: tuple[str, ...]  # contributors
    groups: NDArray[np.int64]  # (n,)
    modules: tuple[str, ...] | None
    examples_digest: str
    model_digests: tuple[str, ...]
    states: tuple[State, ...]  # empty mapping: the weights the model has

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the result."""
        return digest_of(
            {
                "format": FORMAT,
                "settings": self.settings.as_json(),
                "contributors": list(self.names),
                "groups": [int(x) for x in self.groups],
                "modules": None if self.modules is None else list(self.modules),
                "examples": self.examples_digest,
                "models": list(self.model_digests),
            }
        )


def plan_build(
    model: nn.Module,
    examples: Sequence[Any],
    path: Path,
    contributors: Contributors | None,
    modules: Sequence[str] | None,
    checkpoints: Sequence[State],
    settings: BuildSettings,
) -> Plan:
    """Check the input and write down what is to be built.

    Raises:
        InvalidError: no examples, modules that cannot be followed, bad contributors.
        ConflictError: the folder holds another index, finished or begun.
    """
    if not len(examples):
        raise InvalidError("no examples", code="examples_empty", fix="give at least one training example")
    chosen = None if modules is None else tuple(modules)
    trainable_linears(model, chosen)
    names, groups = group_of_examples(contributors, len(examples))
    states: list[State] = [entries_to_keep(model, state) for state in checkpoints] or [{}]
    digests = []
    with as_before(model, states):
        for state in states:
            load_state(model, state)
            digests.append(model_digest(model))
    plan = Plan(path, settings, names, groups, chosen, examples_digest(examples), tuple(digests), tuple(states))
    path.mkdir(parents=True, exist_ok=True)
    begun = path / BUILDING_FILE
    if (path / MANIFEST_FILE).exists():
        if read_manifest(path).settings_digest != plan.fingerprint:
            raise ConflictError(
                f"{path.name!r} holds an index of other examples, weights or settings",
                code="index_exists",
                fix="build into another folder",
            )
    elif begun.exists():
        if json.loads(begun.read_bytes()).get("fingerprint") != plan.fingerprint:
            raise ConflictError(
                f"{path.name!r} holds a stopped build of other examples, weights or settings",
                code="build_differs",
                fix="remove the folder, or build into another one",
            )
    else:
        with whole_file(begun) as out:
            out.write(canonical({"fingerprint": plan.fingerprint, "format": FORMAT}))
    return plan


def build(
    model: nn.Module,
    examples: Sequence[Any],
    task: Task,
    plan: Plan,
    advance: Advance,
    spread: Spread | None = None,
) -> Manifest:
    """Do what is left of a plan; `advance` is told of examples as they are done, `spread` may do shards elsewhere."""
    if (plan.folder / MANIFEST_FILE).exists():
        return read_manifest(plan.folder)
    parts = []
    with as_before(model, plan.states):
        for number, state in enumerate(plan.states):
            load_state(model, state)
            prepared = prepare_checkpoint(model, examples, task, plan, number, advance)
            if spread is not None:
                spread(model, examples, task, plan, prepared, advance)
            for low, high in prepared.ranges:
                write_shard(model, examples, task, plan, prepared, low, high, advance)
            parts.append(finish_checkpoint(plan, prepared))
    return finish(plan, parts)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One checkpoint's basis and how its rows are cut into shards."""

    number: int
    basis: Basis
    layout: RowLayout
    ranges: tuple[tuple[int, int], ...]
    folder: Path


def prepare_checkpoint(
    model: nn.Module, examples: Sequence[Any], task: Task, plan: Plan, number: int, advance: Advance
) -> Prepared:
    """The statistics pass, or its result if it is on disk already."""
    folder = plan.folder / f"checkpoint-{number}"
    folder.mkdir(exist_ok=True)
    basis_file = folder / "basis.pt"
    settings = plan.settings
    if not basis_file.exists():
        modules = trainable_linears(model, plan.modules)
        half = half_is_faster(modules) if settings.half is None else settings.half
        with Capture(model, modules, merge=True, half=half) as capture:
            unused = capture.probe(task.losses, examples)
            if plan.modules is not None and unused:
                raise InvalidError(
                    f"the losses do not depend on {', '.join(unused)}", code="module_unused", fix="leave it out"
                )
            positions = _positions(capture, task, examples)
            numbers = sum(module.weight.numel() for module in modules.values())
            batch = settings.batch or int(
                np.clip(min(POSITIONS_MAX // positions, BATCH_NUMBERS_MAX // numbers), 4, 256)
            )
            fitted = fit_bases(
                capture,
                modules,
                examples,
                task,
                damping=settings.damping,
                positions=positions,
                row_bytes=settings.row_bytes or auto_row_bytes(numbers),
                bits=settings.bits,
                batch=batch,
                seed=settings.seed + number,
                folder=folder,
                advance=advance,
                wide=wide_rows(len(plan.names), settings.row_bytes or auto_row_bytes(numbers)),
            )
        followed = {b.name for b in fitted.bases}
        second = {first: name for name, first in capture.layout.pairs.items()}
        stored = {
            "batch": batch,
            "damping": fitted.damping,
            "bits": fitted.bits,
            "merged": fitted.merged and settings.ridge is None,
            "usual": fitted.usual,
            "half": half,
            "unused": [name for name in modules if not {name, second.get(name)} & followed],
            "modules": list(modules),
            "bases": [
                (b.name, b.inputs, b.outputs, b.keep.to(torch.int32), b.weight, b.signs.to(torch.int8), b.folded)
                for b in fitted.bases
            ],
        }
        buffer = io.BytesIO()
        torch.save(stored, buffer)
        with whole_file(basis_file) as out:
            out.write(buffer.getbuffer())
    else:
        advance(min(len(examples), STATISTICS_EXAMPLES_MAX))
    basis = read_basis(basis_file)
    layout = RowLayout(tuple(b.folded for b in basis.bases), basis.bits)
    each = max(1, SHARD_BYTES // layout.record.itemsize)
    total = len(examples)
    ranges = tuple((low, min(low + each, total)) for low in range(0, total, each))
    return Prepared(number, basis, layout, ranges, folder)


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """What `basis.pt` holds: how rows of one checkpoint are made."""

    bases: tuple[LayerBasis, ...]
    modules: tuple[str, ...]  # layers that are followed
    unused: tuple[str, ...]
    batch: int
    bits: int
    merged: bool  # rows are scaled down as they are written, and there is no second stage
    usual: float  # norm of the row of an example whose labels the model drew
    half: bool  # the model's products are in bfloat16

    @property
    def width(self) -> int:
        """Numbers of a row before it is folded."""
        return sum(basis.width for basis in self.bases)


def read_basis(path: Path) -> Basis:
    """Read a checkpoint's basis."""
    stored = torch.load(path, weights_only=True)
    bases = tuple(
        LayerBasis(name, i, o, keep.long(), weight, signs.float(), folded)
        for name, i, o, keep, weight, signs, folded in stored["bases"]
    )
    unused = tuple(stored["unused"])
    watched = tuple(name for name in stored["modules"] if name not in unused)
    batch, bits, usual = int(stored["batch"]), int(stored["bits"]), float(stored["usual"])
    return Basis(bases, watched, unused, batch, bits, bool(stored["merged"]), usual, bool(stored["half"]))


def wide_rows(contributors: int, row_bytes: int) -> float:
    """How many times wider contributors' sums are than rows of examples; 1 where there would be too many numbers."""
    numbers = CONTRIBUTORS_BYTES_MAX // (4 * max(contributors, 1))
    return float(np.clip(numbers / (8 * row_bytes), 1.0, WIDER)) if contributors else 1.0


def _positions(capture: Capture, task: Task, examples: Sequence[Any]) -> int:
    """Most positions of an example that a layer sees: tokens, or 1."""
    few = [examples[i] for i in range(min(PROBE_EXAMPLES, len(examples)))]
    signals = capture.signals(task.losses, few)
    return max((sum(a.shape[1] for a, _ in signal) for signal in signals.values()), default=1)


def write_shard(
    model: nn.Module,
    examples: Sequence[Any],
    task: Task,
    plan: Plan,
    prepared: Prepared,
    low: int,
    high: int,
    advance: Advance,
) -> None:
    """Rows of the examples from `low` to `high`, as one file; skipped if it is there."""
    path = shard_path(prepared, low)
    if path.exists() and path.stat().st_size == (high - low) * prepared.layout.record.itemsize:
        advance(high - low)
        return
    modules, basis = trainable_linears(model, plan.modules), prepared.basis
    limit = plan.settings.clip * basis.usual if basis.merged else 0.0
    factors: list[NDArray[np.float32]] = []
    sums = np.zeros((len(plan.names), basis.width) if basis.merged else (0, 0), dtype=np.float32)
    with Capture(model, modules, merge=True, half=basis.half) as capture, whole_file(path) as out:
        capture.probe(task.losses, examples)
        for start in range(low, high, basis.batch):
            stop = min(start + basis.batch, high)
            values = example_rows(capture, task, examples, basis.bases, start, stop)
            if basis.merged:
                scale = scaled_down(np.linalg.norm(values, axis=1), limit)
                values *= scale[:, None]
                factors.append(scale)
                for group, row in zip(plan.groups[start:stop], values, strict=True):
                    if group >= 0:
                        sums[group] += row
            out.write(prepared.layout.encode(fold_rows(torch.from_numpy(values), basis.bases).numpy()).tobytes())
            advance(stop - start)
        if basis.merged:  # before the shard itself, which says that all of it is there
            with whole_file(path.with_suffix(".sums")) as beside:
                beside.write(np.concatenate(factors).astype("<f4").tobytes())
                beside.write(sums.astype("<f4").tobytes())


def example_rows(
    capture: Capture, task: Task, examples: Sequence[Any], bases: Sequence[LayerBasis], start: int, stop: int
) -> NDArray[np.float32]:
    """(stop - start, width) rows.

    Raises:
        InvalidError: a gradient that is not finite.
    """
    signals = capture.signals(task.losses, [examples[i] for i in range(start, stop)])
    values = row_values(signals, bases, stop - start)
    if not bool(torch.isfinite(values.sum())):
        bad = (~torch.isfinite(values)).any(1).nonzero()[:, 0] + start
        name = next(b.name for b in bases if b.name in signals and not bool(b.row(signals[b.name]).isfinite().all()))
        raise not_finite(name, [int(i) for i in bad])
    rows: NDArray[np.float32] = values.numpy()
    return rows


def shard_path(prepared: Prepared, low: int) -> Path:
    """File of the shard that begins with example `low`."""
    return prepared.folder / f"rows-{low:09d}.bin"


def open_rows(folder: Path, layout: RowLayout, shards: Sequence[Path]) -> RowSource:
    """Memory-mapped rows; `shards` are relative to the folder."""
    return RowSource(layout, [np.memmap(folder / path, dtype=layout.record, mode="r") for path in shards])


def finish_checkpoint(plan: Plan, prepared: Prepared) -> CheckpointPart:
    """Solve the second stage, sum up contributors, and describe what is on disk."""
    folder, layout = prepared.folder, prepared.layout
    paths = [shard_path(prepared, low) for low, _ in prepared.ranges]
    source = open_rows(folder, layout, [Path(path.name) for path in paths])
    settings, basis, sums = plan.settings, prepared.basis, None
    if basis.merged:
        factors, sums = _read_sums(plan, prepared)
        ridge = no_ridge(factors, settings.clip * basis.usual)
    else:
        strength = DEEP_RIDGE if settings.ridge is None else settings.ridge
        ridge = fit_ridge(source, ridge=strength, clip=settings.clip, seed=settings.seed + prepared.number)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        places=ridge.places,
        inverse=ridge.inverse,
        strength=ridge.strength,
        factors=ridge.factors,
        limit=ridge.limit,
    )
    with whole_file(folder / "ridge.npz") as out:
        out.write(buffer.getbuffer())
    contributors = None
    if plan.names and sums is not None:
        with whole_file(folder / "contributors.bin") as out:
            out.write(sums.astype("<f4").tobytes())
        contributors = _stored(plan.folder, folder / "contributors.bin")
    elif plan.names:
        contributors = _write_contributors(plan, folder / "contributors.bin", source, ridge)
    state = plan.states[prepared.number]
    state_file = None
    if state:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        with whole_file(folder / "state.pt") as out:
            out.write(buffer.getbuffer())
        state_file = _stored(plan.folder, folder / "state.pt")
    return CheckpointPart(
        model_digest=plan.model_digests[prepared.number],
        state=state_file,
        basis=_stored(plan.folder, folder / "basis.pt"),
        ridge=_stored(plan.folder, folder / "ridge.npz"),
        contributors=contributors,
        modules=basis.modules,
        modules_unused=basis.unused,
        widths=layout.widths,
        bits=layout.bits,
        shards=tuple(
            Shard(low, high - low, _stored(plan.folder, path))
            for (low, high), path in zip(prepared.ranges, paths, strict=True)
        ),
    )


def _read_sums(plan: Plan, prepared: Prepared) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(n,) how far each example was scaled down, and (c, width) the sums of contributors, over all shards."""
    factors = np.empty(len(plan.groups), dtype=np.float32)
    sums = np.zeros((len(plan.names), prepared.basis.width), dtype=np.float32)
    for low, high in prepared.ranges:
        values = np.fromfile(shard_path(prepared, low).with_suffix(".sums"), dtype="<f4")
        factors[low:high] = values[: high - low]
        sums += values[high - low :].reshape(sums.shape)
    return factors, sums


def _write_contributors(plan: Plan, path: Path, source: RowSource, ridge: Ridge) -> StoredFile:
    """Sum of each contributor's rows, float32, clipped and corrected: a query is one product with them."""
    width, sample = source.layout.width, source.take(ridge.places)
    order = np.argsort(plan.groups, kind="stable")
    bounds = np.searchsorted(plan.groups[order], np.arange(len(plan.names) + 1))
    sums: list[NDArray[np.float32]] = []
    with whole_file(path) as out:
        for low, high in pairwise(bounds):
            total = np.zeros(width, dtype=np.float64)
            for start in range(int(low), int(high), 256):
                places = order[start : min(start + 256, int(high))]
                total += ridge.factors[places].astype(np.float64) @ source.layout.decode(source.take(places))
            sums.append(total.astype(np.float32))
            if len(sums) == CONTRIBUTOR_BLOCK or high == bounds[-1]:
                out.write(ridge.corrected(np.stack(sums), sample, source.layout).astype("<f4").tobytes())
                sums.clear()
    return _stored(plan.folder, path)


def finish(plan: Plan, parts: Sequence[CheckpointPart]) -> Manifest:
    """Write the manifest: from here on the index can be opened."""
    membership = None
    if plan.names:
        path = plan.folder / "membership.bin"
        with whole_file(path) as out:
            out.write(plan.groups.astype("<i8").tobytes())
        membership = _stored(plan.folder, path)
    manifest = Manifest(
        format=FORMAT,
        examples=len(plan.groups),
        examples_digest=plan.examples_digest,
        contributors=plan.names,
        membership=membership,
        damping="auto" if plan.settings.damping is None else repr(plan.settings.damping),
        ridge="auto" if plan.settings.ridge is None else repr(plan.settings.ridge),
        bits=plan.settings.bits,
        seed=plan.settings.seed,
        settings_digest=plan.fingerprint,
        checkpoints=tuple(parts),
    )
    write_manifest(plan.folder, manifest)
    (plan.folder / BUILDING_FILE).unlink(missing_ok=True)
    return manifest


def _stored(root: Path, path: Path) -> StoredFile:
    return StoredFile(os.fspath(path.relative_to(root)), path.stat().st_size, file_digest(path))


Progress = Callable[[int, int], None]
Spread = Callable[[nn.Module, Sequence[Any], Task, Plan, Prepared, Advance], None]
"""Writes shards of a prepared checkpoint in other processes; what it leaves out is written by the caller."""
