"""Shards as Ray tasks give the index that one process gives."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray")

import headwater as hw
from headwater.attribution.influence import build as builder
from headwater.attribution.influence import on_ray


@pytest.mark.slow
def test_shards_of_ray_tasks_are_those_of_one_process(small, tmp_path, monkeypatch):
    """The manifest, which covers every byte, has the same digest; an error of a shard is the build's."""
    import ray

    monkeypatch.setattr(builder, "SHARD_BYTES", 4_000)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    given = (small.model, small.examples, small.task)
    plain = hw.InfluenceIndex.build(*given, tmp_path / "one", contributors=small.contributors)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=40)
    try:
        spread = hw.InfluenceIndex.build(
            *given, tmp_path / "ray", contributors=small.contributors, spread=on_ray.ray_shards(workers_max=2)
        )
    finally:
        ray.shutdown()
    assert len(plain.manifest.checkpoints[0].shards) > 2
    assert spread.manifest.digest == plain.manifest.digest
    assert spread.verify() == ()
