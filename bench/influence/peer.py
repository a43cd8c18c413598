"""Kronfluence's EK-FAC as its documentation uses it: default factors in float32, heuristic damping, on the CPU.

The same losses and the same drawn labels are given to it; train gradients are computed again for every batch of
queries, because it keeps no index of them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task as PeerTask
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.influence.parts import BenchTask

Scores = NDArray[np.float32]


class Items(torch.utils.data.Dataset[Any]):
    """A list as its data set; collating gives the list back."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> Any:
        return self._items[place]


class Adapted(PeerTask):  # type: ignore[misc]
    """Our task in its words."""

    def __init__(self, task: BenchTask) -> None:
        self._task = task
        self._modules = [
            name
            for name, module in task.blank().named_modules()
            if isinstance(module, nn.Linear) and module.weight.requires_grad
        ]

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        """Summed, as it asks for."""
        if sample and self._task.task.sampled_losses is not None:
            return self._task.task.sampled_losses(model, batch, None).sum()  # type: ignore[arg-type]
        return self._task.task.losses(model, batch).sum()

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        """The query's loss."""
        return self._task.task.losses(model, batch).sum()

    def get_influence_tracked_modules(self) -> list[str]:
        """The trained linear layers."""
        return self._modules


class Kronfluence:
    """Factors once, scores for as many batches of queries as are asked."""

    def __init__(self, task: BenchTask, model: nn.Module, folder: Path) -> None:
        logging.disable(logging.INFO)
        self._task, own = task, Adapted(task)
        self._analyzer = Analyzer(
            "a", prepare_model(model, own), own, cpu=True, output_dir=str(folder), disable_tqdm=True
        )
        from kronfluence.utils.dataset import DataLoaderKwargs

        self._analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=list))
        self._number = 0
        self._analyzer.fit_all_factors(
            "f",
            Items(task.examples),
            per_device_batch_size=task.batch,
            factor_args=FactorArguments(strategy="ekfac"),
            overwrite_output_dir=True,
        )

    def scores(self, queries: list[Any]) -> Scores:
        """(query, example)."""
        self._number += 1
        name = f"s{self._number}"
        self._analyzer.compute_pairwise_scores(
            name,
            "f",
            Items(queries),
            Items(self._task.examples),
            per_device_query_batch_size=self._task.batch,
            per_device_train_batch_size=self._task.batch,
            score_args=ScoreArguments(),
            overwrite_output_dir=True,
        )
        found: Scores = self._analyzer.load_pairwise_scores(name)["all_modules"].float().numpy()
        return found
