"""Shards of an index as Ray tasks (extra ``ray``): the same manifest as one process gives, byte for byte.

The statistics pass, the second stage and the manifest stay with the caller. A task writes one shard into the folder
of the index, which all workers must see, and is deterministic, so one that is run twice does no harm. The model,
the examples and the task are sent to each worker once. Knows nothing of clusters: it uses the Ray that is running,
or starts one on this machine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from headwater.attribution.influence.build import Plan, Prepared, Spread, shard_path, write_shard
from headwater.attribution.influence.curvature import Advance
from headwater.attribution.influence.task import Task
from headwater.core.errors import MissingError

BLAS_THREADS = 1


def ray_shards(*, workers_max: int = 8) -> Spread:
    """For ``InfluenceIndex.build(…, spread=ray_shards())``.

    Args:
        workers_max: shards at work at a time.

    Raises:
        MissingError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingError("Ray is not installed", code="ray_missing", fix='pip install "headwater[ray]"') from None

    def spread(
        model: nn.Module, examples: Sequence[Any], task: Task, plan: Plan, prepared: Prepared, _advance: Advance
    ) -> None:
        waiting = [(low, high) for low, high in prepared.ranges if not shard_path(prepared, low).exists()]
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        sent = ray.put((model, list(examples), task, plan, prepared))
        remote = ray.remote(num_cpus=1)(_shard)
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < workers_max:
                running.append(remote.remote(sent, *waiting.pop(0)))
            done, running = ray.wait(running)
            ray.get(done)  # an error of a shard is the build's
        # The shards are found on disk, and counted, by the caller.

    return spread


def _shard(sent: tuple[nn.Module, list[Any], Task, Plan, Prepared], low: int, high: int) -> None:
    model, examples, task, plan, prepared = sent
    torch.set_num_threads(BLAS_THREADS)
    model.eval()
    write_shard(model, examples, task, plan, prepared, low, high, lambda _: None)
