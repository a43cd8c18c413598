"""The influence index: which training examples, and whose, lowered the loss of a query.

Rows of all examples lie whitened on disk, so a query costs its own gradient and one product with the rows;
contributors are rows summed beforehand. A score is positive where training on the example lowered the query's
loss. The model must be the one that the index was built from, to the bit: any other is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headwater.attribution.influence.build import (
    Basis,
    Spread,
    build,
    example_rows,
    open_rows,
    plan_build,
    read_basis,
)
from headwater.attribution.influence.build_settings import BuildSettings, Contributors, automatic
from headwater.attribution.influence.capture import Capture, Layout, trainable_linears
from headwater.attribution.influence.curvature import fold_rows
from headwater.attribution.influence.intervals import Calibration, Intervals, bootstrap_intervals
from headwater.attribution.influence.manifest import CheckpointPart, Manifest, read_manifest, verify_files
from headwater.attribution.influence.model_state import (
    State,
    as_before,
    examples_digest,
    load_state,
    model_digest,
)
from headwater.attribution.influence.ridge import Records, Ridge, RowSource, product
from headwater.attribution.influence.rows import Floats, RowLayout
from headwater.attribution.influence.task import Task
from headwater.core.errors import ConflictError, InvalidError, Problem

ASKED_BYTES_MAX = 32 << 20  # of the last queries' rows, kept so that another question about them is a product


@dataclass(frozen=True, slots=True, eq=False)
class _Checkpoint:
    part: CheckpointPart
    state: State
    basis: Basis
    rows: RowSource
    ridge: Ridge
    sample: Records
    contributors: Floats | None  # (c, width)


class InfluenceIndex:
    """A finished index, opened with the model and the task it was built for. Make one with `build` or `open`."""

    def __init__(self, folder: Path, manifest: Manifest, model: nn.Module, task: Task) -> None:
        self.folder, self.manifest = folder, manifest
        self._model, self._task = model, task
        self._checkpoints = tuple(_load(folder, manifest, part) for part in manifest.checkpoints)
        self._layouts: dict[int, Layout] = {}
        self._asked: tuple[str, tuple[Floats, ...]] | None = None  # the last queries and their rows
        self._groups: NDArray[np.int64] | None = None
        if manifest.membership is not None:
            self._groups = np.fromfile(folder / manifest.membership.name, dtype="<i8")

    @classmethod
    def build(
        cls,
        model: nn.Module,
        examples: Sequence[Any],
        task: Task,
        path: str | os.PathLike[str],
        contributors: Contributors | None = None,
        modules: Sequence[str] | None = None,
        checkpoints: Sequence[State] = (),
        damping: float | str = "auto",
        bits: int = 8,
        seed: int = 0,
        *,
        ridge: float | str = "auto",
        clip: float | str = "auto",
        row_bytes: int | None = None,
        batch: int | None = None,
        precision: str = "auto",
        spread: Spread | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> InfluenceIndex:
        """Build an index, or go on with a build of the same inputs that was stopped.

        Args:
            model: any module with linear layers; it is given back as it was.
            examples: what the model was trained on.
            task: how its loss is measured.
            path: folder of the index.
            contributors: one name for each example, or name -> places of its examples.
            modules: linear layers by name; by default all with trainable weights.
            checkpoints: state dicts, loaded in turn, whose scores are averaged; by default the present weights.
            damping: times the mean curvature of each layer.
            bits: most bits of each number of a row, 1 to 32; fewer are taken where a row would not fit its bytes.
            seed: of drawn labels and samples.
            ridge: times the trace of the rows' second moment.
            clip: times the median self-influence norm, beyond which examples and queries are scaled down; 0: never.
            row_bytes: most bytes of a row, for each example and checkpoint; by default 9,600, or more
                where more than 41,472 numbers are trained.
            batch: examples differentiated at a time; by default as memory allows.
            precision: "float32" or "bfloat16" of the model's own products; "auto": bfloat16 where layers are wide and
                the machine has instructions for it. Everything after them is float32.
            spread: writes shards elsewhere, such as `on_ray.ray_shards()`.
            progress: called with (examples passed, examples to pass).

        Raises:
            InvalidError: bad input; the message says which and what to do.
            ConflictError: the folder holds something else.
            UpstreamError: the disk is full or refuses.
        """
        auto = automatic(model, modules)
        chosen = BuildSettings(
            damping=None if damping == "auto" else _number("damping", damping, 0.0),
            ridge=auto.ridge if ridge == "auto" else _number("ridge", ridge, 0.0),
            clip=_number("clip", clip, auto.clip),
            bits=bits,
            row_bytes=row_bytes,
            batch=batch,
            seed=seed,
            half=_precision(precision),
        )
        RowLayout((1,), bits)
        folder = Path(path)
        plan = plan_build(model, examples, folder, contributors, modules, checkpoints, chosen)
        total, done = 2 * len(examples) * len(plan.states), 0

        def advance(count: int) -> None:
            nonlocal done
            done = min(done + count, total)
            if progress is not None:
                progress(done, total)

        return cls(folder, build(model, examples, task, plan, advance, spread), model, task)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, model: nn.Module, task: Task) -> InfluenceIndex:
        """Open a finished index.

        Raises:
            MissingError: no index, or one whose build has not ended.
            InvalidError: a changed manifest.
            ConflictError: the model is not the one it was built from.
        """
        folder = Path(path)
        index = cls(folder, read_manifest(folder), model, task)
        with as_before(model, [c.state for c in index._checkpoints]):
            for checkpoint in index._checkpoints:
                index._enter(checkpoint)
        return index

    @property
    def contributors(self) -> tuple[str, ...]:
        """Names, in the order of the columns of `contributor_scores`."""
        return self.manifest.contributors

    def scores(self, queries: Sequence[Any]) -> Floats:
        """(query, example) float32; positive: training on the example lowered the query's loss.

        Raises:
            ConflictError: the model has changed.
            InvalidError: no queries, or a query whose gradient is not finite.
        """
        total = np.zeros((len(queries), self.manifest.examples), dtype=np.float32)
        for checkpoint, rows in self._query_rows(queries):
            ridge, basis = checkpoint.ridge, checkpoint.basis
            if not basis.merged:
                total += ridge.scores(rows, checkpoint.rows, checkpoint.sample)
                continue
            fair = ridge.clipped(rows, checkpoint.sample, checkpoint.rows.layout)
            narrow = fold_rows(torch.from_numpy(fair), basis.bases).numpy()
            found = np.concatenate(
                [product(narrow, checkpoint.rows.block(*place).T) for place in checkpoint.rows.blocks()], axis=1
            )
            total += found if checkpoint.contributors is None else self._anchored(found, fair, checkpoint.contributors)
        mean: Floats = total / np.float32(len(self._checkpoints))
        return mean

    def _anchored(self, scores: Floats, rows: Floats, contributors: Floats) -> Floats:
        """Scores moved so that those of a contributor add up to its own, which more numbers have gone into."""
        assert self._groups is not None
        sums = product(rows, contributors.T)
        count = np.bincount(self._groups, minlength=len(self.contributors)).astype(np.float32)
        for query, row in enumerate(scores):
            own = np.bincount(self._groups, row, len(count)).astype(np.float32)
            row += ((sums[query] - own) / count)[self._groups]
        return scores

    def contributor_scores(self, queries: Sequence[Any]) -> Floats:
        """(query, contributor) float32: the sums of each contributor's example scores, from rows summed beforehand.

        Raises:
            InvalidError: the index has no contributors.
            ConflictError: the model has changed.
        """
        mean: Floats = self._by_checkpoint(queries).mean(0)
        return mean

    def _by_checkpoint(self, queries: Sequence[Any]) -> Floats:
        """(checkpoint, query, contributor)."""
        if not self.contributors:
            raise InvalidError(
                "the index was built without contributors", code="contributors_missing", fix="build with contributors=…"
            )
        found = []
        for checkpoint, rows in self._query_rows(queries):
            assert checkpoint.contributors is not None
            fair = checkpoint.ridge.clipped(rows, checkpoint.sample, checkpoint.rows.layout)
            found.append(product(fair, checkpoint.contributors.T))
        return np.stack(found).astype(np.float32)

    def intervals(
        self, queries: Sequence[Any], level: float = 0.9, *, seed: int = 0, calibration: Calibration | None = None
    ) -> Intervals:
        """Each contributor's mean score over the queries, with an interval.

        Args:
            queries: a sample of what will be asked.
            level: such as 0.9.
            seed: of the resampling.
            calibration: from an audit by retraining: scores become measured effects, and its errors are added.

        Raises:
            InvalidError: no contributors, no queries or a bad level.
            ConflictError: the model has changed.
        """
        by_checkpoint = self._by_checkpoint(queries)
        return bootstrap_intervals(
            by_checkpoint,
            self.contributors,
            level=level,
            seed=seed,
            example_variance=self._example_variance(queries),
            calibration=calibration,
        )

    def _example_variance(self, queries: Sequence[Any]) -> NDArray[np.float64]:
        """(c,) variance of a contributor's mean score, from the spread of its examples."""
        assert self._groups is not None
        per_example = self.scores(queries).mean(0).astype(np.float64)
        count = np.bincount(self._groups, minlength=len(self.contributors))
        mean = np.bincount(self._groups, per_example, len(count)) / count
        squares = np.bincount(self._groups, (per_example - mean[self._groups]) ** 2, len(count))
        return squares * count / np.maximum(count - 1, 1)

    def clipping(self) -> Floats:
        """(example,) how far each example was scaled down as an outlier, 1 for not at all; mean over checkpoints."""
        factors: Floats = np.mean([c.ridge.factors for c in self._checkpoints], axis=0, dtype=np.float32)
        return factors

    def verify(self) -> tuple[Problem, ...]:
        """Read every file again and compare digests; empty when all is as it was built."""
        return verify_files(self.folder, self.manifest)

    def _enter(self, checkpoint: _Checkpoint) -> None:
        load_state(self._model, checkpoint.state)
        digest = model_digest(self._model)
        if digest != checkpoint.part.model_digest:
            raise ConflictError(
                f"the model is {digest[:19]}…, the index was built from {checkpoint.part.model_digest[:19]}…",
                code="model_changed",
                fix="load the weights that the index was built from, or build it again",
            )

    def _query_rows(self, queries: Sequence[Any]) -> Iterator[tuple[_Checkpoint, Floats]]:
        """Each checkpoint with the (query, width) rows of the queries in its basis."""
        if not len(queries):
            raise InvalidError("no queries", code="queries_empty", fix="give at least one query")
        asked = _digest_if_any(queries)
        known = self._asked[1] if asked and self._asked is not None and self._asked[0] == asked else ()
        found: list[Floats] = []
        with as_before(self._model, [c.state for c in self._checkpoints]):
            for number, checkpoint in enumerate(self._checkpoints):
                self._enter(checkpoint)
                rows = known[number] if known else self._gradients(checkpoint, number, queries)
                found.append(rows)
                yield checkpoint, rows
        if sum(rows.nbytes for rows in found) <= ASKED_BYTES_MAX:
            self._asked = asked, tuple(found)

    def _gradients(self, checkpoint: _Checkpoint, number: int, queries: Sequence[Any]) -> Floats:
        """(query, width); how examples lie in a batch is found out once and again where a batch does not fit it."""
        basis, layout = checkpoint.basis, self._layouts.get(number)
        modules = trainable_linears(self._model, basis.modules)
        with Capture(self._model, modules, merge=True, half=basis.half) as capture:
            if layout is None:
                capture.probe(self._task.losses, queries)
            else:
                capture.layout = layout
            batch, count = basis.batch, len(queries)
            try:
                parts = [
                    example_rows(capture, self._task, queries, basis.bases, low, min(low + batch, count))
                    for low in range(0, count, batch)
                ]
            except InvalidError as error:
                if layout is None or error.code != "rows_unassigned":
                    raise
                del self._layouts[number]
                return self._gradients(checkpoint, number, queries)
            self._layouts[number] = capture.layout
        return np.concatenate(parts)


def _digest_if_any(queries: Sequence[Any]) -> str:
    """What the last queries are known by; empty for items without bytes to digest, which are never taken as known."""
    try:
        return examples_digest(queries)
    except InvalidError:
        return ""


def _precision(name: str) -> bool | None:
    known = {"auto": None, "float32": False, "bfloat16": True}
    if name not in known:
        raise InvalidError(f"precision {name!r}", code="precision_invalid", fix=f"use {', '.join(known)}")
    return known[name]


def _number(name: str, value: float | str, automatic: float) -> float:
    if isinstance(value, str):
        if value != "auto":
            raise InvalidError(f"{name} {value!r}", code=f"{name}_invalid", fix=f"use {name}='auto' or a number")
        return automatic
    return float(value)


def _load(folder: Path, manifest: Manifest, part: CheckpointPart) -> _Checkpoint:
    layout = RowLayout(part.widths, part.bits)
    rows = open_rows(folder, layout, [Path(shard.file.name) for shard in part.shards])
    with np.load(folder / part.ridge.name) as stored:
        ridge = Ridge(
            stored["places"], stored["inverse"], float(stored["strength"]), stored["factors"], float(stored["limit"])
        )
    basis = read_basis(folder / part.basis.name)
    contributors = None
    if part.contributors is not None:
        shape = (len(manifest.contributors), basis.width if basis.merged else layout.width)
        contributors = np.memmap(folder / part.contributors.name, dtype="<f4", mode="c", shape=shape)  # never written
    state: State = {} if part.state is None else torch.load(folder / part.state.name, weights_only=True)
    return _Checkpoint(part, state, basis, rows, ridge, rows.take(ridge.places), contributors)
