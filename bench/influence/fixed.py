"""One recorded run, repeated in the same order without 4 % of its examples: is the loss foreseen?

There is no noise of seeds here, so a perfect score is 1. What is foreseen is the summed loss of each query (`each`)
and of all queries together (`summed`), which is what the audit is made for: one adjoint for one summed loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.influence.parts import BenchTask
from bench.influence.truth import query_losses, trained_state
from headwater.attribution.influence import AdamW, InfluenceIndex, TrainRecord, audit_influence
from headwater.attribution.influence.measures import rank_correlation
from headwater.attribution.influence.unroll import replay

DROPS, DROPPED, BATCH, EPOCHS, RATE = 40, 10, 8, 4, 3e-3
AUDITED = 8  # queries whose own loss is audited, beside the sum of all


def _record(task: BenchTask) -> TrainRecord:
    mixing = torch.Generator().manual_seed(77)
    batches = []
    for _ in range(EPOCHS):
        order = torch.randperm(len(task.examples), generator=mixing).tolist()
        batches += [order[low : low + BATCH] for low in range(0, len(order), BATCH)]
    model = task.blank()
    return TrainRecord(model, trained_state(model), None, task.examples, batches, task.task, AdamW(RATE))


def _losses(task: BenchTask, record: TrainRecord, weights: Any) -> Any:
    flat = replay(record, weights)[-1][0]
    model = task.blank()
    with torch.no_grad():
        sizes = [record.start[name].numel() for name in record.start]
        named = dict(model.named_parameters())
        for name, part in zip(record.start, torch.split(flat, sizes), strict=True):
            named[name].copy_(part.view(named[name].shape))
    return model, query_losses(task, model)


def fixed_run(task: BenchTask, cache: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Rank correlations of what was foreseen with what was measured, and what the audit costs."""
    record, path, count = _record(task), cache / "fixed-truth.npz", len(task.examples)
    model, full = _losses(task, record, None)
    if path.exists():
        with np.load(path) as stored:
            out, losses = stored["out"], stored["losses"]
    else:
        rng = np.random.default_rng(4)
        out = np.stack([rng.permutation(count)[:DROPPED] for _ in range(DROPS)])
        rows = []
        for number, places in enumerate(out):
            say(f"fixed: run {number + 1} of {DROPS}")
            weights = np.ones(count, dtype=np.float32)
            weights[places] = 0
            rows.append(_losses(task, record, weights)[1])
        losses = np.stack(rows)
        np.savez(path, out=out, losses=losses)
    rise = losses - full

    def foreseen(scores: Any) -> Any:
        return np.stack([scores[:, places].sum(1) for places in out])

    def audit(chosen: list[Any]) -> Any:
        return audit_influence(record, lambda call: task.task.losses(call, chosen).sum())

    started = time.process_time()
    summed = audit(task.queries)
    cpu = time.process_time() - started
    each = np.stack([audit([query]) for query in task.queries[:AUDITED]])
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        index = InfluenceIndex.build(model, task.examples, task.task, Path(folder) / "i").scores(task.queries)
    column = rise.sum(1)[:, None]
    return {
        "dropped": f"{DROPPED} of {count}",
        "runs": DROPS,
        "audit": {
            "summed": round(float(rank_correlation(foreseen(summed[None]), column)[0]), 3),
            "each": round(float(rank_correlation(foreseen(each), rise[:, :AUDITED]).mean()), 3),
            "cpu_s": round(cpu, 1),
        },
        "index": {
            "summed": round(float(rank_correlation(foreseen(index).sum(1)[:, None], column)[0]), 3),
            "each": round(float(rank_correlation(foreseen(index), rise).mean()), 3),
        },
    }
