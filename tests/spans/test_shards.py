"""Shards by time of registration answer as one index does, to the byte."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest

from headwater.attribution.spans import Document, ShardedIndex, SpanIndex
from headwater.core.errors import ConflictError, InvalidError


@pytest.fixture
def whole(tmp_path, reference, proposals):
    """An index of real documents with copies, edited copies and a removed one, out of order in time."""
    rng = random.Random(4)
    docs = [Document(name, f"o{i % 7}", rng.randrange(1000), text) for i, (name, text) in enumerate(proposals[:60])]
    docs += [Document(f"copy-{d.id}", "copier", rng.randrange(1000), d.raw) for d in docs[:20]]
    for d in docs[20:26]:
        words = d.raw.split()
        edited = b" ".join(b"altered%d" % i if i % 10 == 9 else w for i, w in enumerate(words))
        docs.append(Document(f"edit-{d.id}", "editor", rng.randrange(1000), edited))
    with SpanIndex.create(tmp_path / "whole", reference=reference, background=False) as index:
        index.add(docs[::2])
        index.add(docs[1::2])
        index.remove(docs[3].id)
        yield index


def questions(proposals: tuple[tuple[str, bytes], ...]) -> list[bytes]:
    rng = random.Random(9)
    out = [b"", b"...", b"nothing of this is anywhere"]
    for _ in range(60):
        parts = []
        for _ in range(rng.randrange(1, 5)):
            text = rng.choice(proposals[:70])[1]
            begin = rng.randrange(len(text))
            parts.append(text[begin : begin + rng.randrange(20, 900)])
        out.append(b" ".join(parts))
    return out


def same(whole: SpanIndex, sharded: ShardedIndex, proposals: tuple[tuple[str, bytes], ...]) -> None:
    for text in questions(proposals):
        one, many = whole.trace(text), sharded.trace(text)
        assert repr(many).encode() == repr(one).encode()
        assert sharded.credit(many) == whole.credit(one)
        assert sharded.count(text[:40]) == whole.count(text[:40])


@pytest.mark.parametrize("starts", [[0], [0, 500], [0, 100, 101, 700, 990]])
def test_shards_answer_as_one_index(tmp_path, whole, proposals, starts):
    """Spans, offsets, counts, clusters, digests and credit are those of the whole."""
    folders = [tmp_path / f"shard{i}" for i in range(len(starts))]
    whole.split(folders, starts)

    same(whole, ShardedIndex.local(folders), proposals)


def test_shards_that_do_not_belong_together_are_refused(tmp_path, whole, reference):
    """Other k, other reference, starts out of order, a trace from elsewhere."""
    for starts in ([], [5, 1], [999_999, 10**7]):
        with pytest.raises(InvalidError):
            whole.split([tmp_path / f"x{i}" for i in range(len(starts))], starts)
    SpanIndex.create(tmp_path / "k4", gram_tokens=4, reference=reference).close()
    SpanIndex.create(tmp_path / "k8", reference=reference).close()
    with pytest.raises(InvalidError, match="differ"):
        ShardedIndex.local([tmp_path / "k4", tmp_path / "k8"])
    with pytest.raises(ConflictError):
        ShardedIndex.local([tmp_path / "k8"]).credit(whole.trace("x"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_ray_processes_answer_as_one_index(tmp_path: Path, whole, proposals):
    """Three actors in processes of their own on this machine."""
    import ray

    folders = [tmp_path / f"shard{i}" for i in range(3)]
    whole.split(folders, [0, 300, 600])
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
        object_store_memory=100 * 2**20, _temp_dir=str(tmp_path / "ray")[-60:] if len(str(tmp_path)) < 60 else None,
    )  # fmt: skip
    try:
        same(whole, ShardedIndex.ray(folders, num_cpus=0.5), proposals)
    finally:
        ray.shutdown()
