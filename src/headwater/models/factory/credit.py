"""Credit for what an adapter was trained on: its influence index, kept beside it, and asked about one answer.

The index is built once, after training, from the very examples and losses of the training and from the
checkpoints that the lineage record names. Asked about an answer it gives each training contribution's
score with an interval. Needs torch, on one thread; the same answer gives the same scores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from headwater.attribution.influence import InfluenceIndex, Task
from headwater.attribution.learned import Influence, LearnedRules
from headwater.core.errors import ConflictError, InvalidError, MissingError
from headwater.core.ids import ContributionId
from headwater.models.adapters import CHECKPOINTS, StoredAdapter
from headwater.models.factory.examples import Example, Stretch, tokenise, with_reference, with_states
from headwater.models.factory.factory import Base, recipe_of
from headwater.models.factory.network import TopLayers
from headwater.models.factory.rows import Dataset, Row
from headwater.models.factory.task import AdapterTask
from headwater.models.factory.training import checkpoint_name, one_thread, read_factors
from headwater.models.lora import Lora

INDEX = "influence"
NORMAL_OF_MAD = 1.4826  # its standard deviation for each median absolute deviation


@dataclass(frozen=True, slots=True)
class Scored:
    """What an index says of one answer."""

    influences: tuple[Influence, ...]
    index_digest: str
    seed: int


def build_index(
    stored: StoredAdapter,
    dataset: Dataset,
    base: Base,
    parent: Lora | None,
    *,
    checkpoints: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Build the influence index of an adapter, or go on with it; its digest.

    Args:
        dataset: what it was trained on; its digest must be the one of the lineage record.
        parent: the adapter it went on from.
        checkpoints: how many of the last checkpoints are averaged; the start is one where there are pairs only.

    Raises:
        ConflictError: the data or the parent are not those of the record.
        UpstreamError: the disk is full; nothing is served from it.
    """
    if dataset.digest != stored.lineage.data_digest or (parent.digest if parent else None) != stored.lineage.parent:
        raise ConflictError(
            f"these are not the rows that {stored.name!r} was trained on",
            code="data_differs",
            fix="give the same files, contributions and parent as to `adapter train`",
        )
    with one_thread():
        model = _model(stored, base)
        if parent is not None:
            model.load(parent)
        rows = tokenise(dataset.training, base.tokenizer, model.recipe.tokens_max)
        task = _task(model, max(example.tokens for example in rows))
        examples = with_states(rows, base.weights, model.recipe, stored.folder / ".states")
        examples = with_reference(model, examples)
        states = [_factors(stored, step) for step in _steps(stored, examples, checkpoints)]
        model.load_state_dict(states[-1])
        index = InfluenceIndex.build(
            model,
            examples,
            task,
            stored.folder / INDEX,
            contributors=[example.row.contribution for example in examples],
            checkpoints=states,
            seed=seed,
            progress=progress,
        )
    for left in stored.folder.glob(".states-*"):
        left.unlink()
    return index.manifest.digest


class AdapterCredit:
    """Scores of an adapter's training contributions for answers it gave. Safe for several threads, one at a time."""

    def __init__(self, stored: StoredAdapter, base: Base, rules: LearnedRules | None = None) -> None:
        """Load the trained layers and open the index; `rules` say how wide an interval is.

        Raises:
            MissingError: no index was built.
            ConflictError: the index was built for other weights.
        """
        self._stored, self._base, self._lock = stored, base, threading.Lock()
        self._sigmas = (rules or LearnedRules()).interval_millisigmas / 1000
        if not (stored.folder / INDEX).is_dir():
            raise MissingError(
                f"adapter {stored.name!r} has no influence index",
                code="influence_missing",
                fix="run the command again that trained it",
            )
        with one_thread():
            model = _model(stored, base)
            model.load_state_dict(_factors(stored, stored.lineage.checkpoints[-1][0]))
            self._model = model
            self._index = InfluenceIndex.open(stored.folder / INDEX, model=model, task=_task(model, 0))

    @property
    def digest(self) -> str:
        """The digest of the index."""
        return self._index.manifest.digest

    def score(self, prompt: Sequence[int], answer: Sequence[int]) -> Scored:
        """Each training contribution's influence on `answer` after `prompt`, both as token ids.

        Raises:
            InvalidError: an empty prompt or answer.
        """
        if not prompt or not answer:
            raise InvalidError(
                f"a prompt of {len(prompt)} and an answer of {len(answer)} tokens",
                code="answer_empty",
                fix="give at least one token of each",
            )
        kept = list(prompt)[-max(1, self._base.weights.shape.context_tokens_max - len(answer)) :]
        stretch = Stretch(np.array([*kept, *answer], dtype=np.int64), len(kept))
        row = Row("answer", ContributionId("ctb_answer"), "answer", "", "")
        with self._lock, one_thread(), TemporaryDirectory(prefix="headwater-") as folder:
            example = Example(row, (stretch,))
            [ready] = with_states([example], self._base.weights, self._model.recipe, Path(folder) / "states")
            scores = self._index.scores([ready])[0].astype(np.float64)
        influences = tuple(
            Influence(name, score, score - chance, score + chance)
            for name, (score, chance) in zip(self._index.contributors, self._by_contribution(scores), strict=True)
        )
        return Scored(influences, self.digest, self._index.manifest.seed)

    def _by_contribution(self, scores: NDArray[np.float64]) -> list[tuple[float, float]]:
        """Each contribution's score, and how far from zero it might lie although it did nothing.

        What all rows score on this answer tells: most have nothing to do with it, and their middle half
        says how loud that is; a contribution of n rows adds up n of them. So the interval asks whether these
        rows helped this answer, not whether other work of the same hand would have.
        """
        loud = NORMAL_OF_MAD * float(np.median(np.abs(scores - np.median(scores))))
        manifest = self._index.manifest
        assert manifest.membership is not None
        groups = np.fromfile(self._index.folder / manifest.membership.name, dtype="<i8")
        count = len(manifest.contributors)
        sums = np.bincount(groups, scores, count)
        rows = np.bincount(groups, minlength=count)
        return list(zip(sums.tolist(), (self._sigmas * loud * np.sqrt(rows)).tolist(), strict=True))


def _model(stored: StoredAdapter, base: Base) -> TopLayers:
    return TopLayers(base.weights, recipe_of(stored.lineage.recipe))


def _task(model: TopLayers, places_min: int) -> Task:
    task = AdapterTask(model.recipe.beta, places_min)
    return Task(task.losses, task.sampled_losses)


def _factors(stored: StoredAdapter, step: int) -> dict[str, torch.Tensor]:
    return read_factors(stored.folder / CHECKPOINTS / checkpoint_name(step))


def _steps(stored: StoredAdapter, examples: Sequence[Example], count: int) -> tuple[int, ...]:
    """The checkpoints to average, the last one at the end.

    Where only pairs were learned the start counts as well: at the end the gradients of learned pairs
    have vanished and a few that were not learned would decide alone.
    """
    steps = [step for step, _ in stored.lineage.checkpoints]
    chosen = steps[-count:]
    if all(len(example.stretches) == 2 for example in examples) and steps[0] not in chosen:
        chosen = [steps[0], *chosen]
    return tuple(chosen)
