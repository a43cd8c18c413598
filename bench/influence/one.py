"""One estimator on one task in a process of its own, so that CPU and memory are its alone; prints JSON.

Seconds are CPU seconds of the process. Memory is the peak above what the process held before the estimator began,
with torch, the model and the data loaded. The second query is the same batch asked again under other items (the
last first), so that nothing that was kept of the first answers it.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.influence.parts import BenchTask
from headwater.attribution.influence import InfluenceIndex
from headwater.attribution.influence.estimators import grad_cos, grad_dot

Scores = NDArray[np.float32]
Ask = Callable[[list[Any]], Scores]


def _peer(
    task: BenchTask, _model: nn.Module, states: list[dict[str, Tensor]], folder: Path
) -> tuple[Ask, dict[str, Any]]:
    from bench.influence.peer import Kronfluence

    made = []
    for number, state in enumerate(states):
        own = task.blank()
        own.load_state_dict(state, strict=False)
        made.append(Kronfluence(task, own, folder / str(number)))
    return (lambda queries: np.mean([each.scores(queries) for each in made], axis=0)), {}


def _index(
    task: BenchTask, model: nn.Module, states: list[dict[str, Tensor]], folder: Path
) -> tuple[Ask, dict[str, Any]]:
    names = None if task.groups is None else [f"c{g:02d}" for g in task.groups]
    index = InfluenceIndex.build(
        model, task.examples, task.task, folder / "index", contributors=names, checkpoints=states
    )
    facts = {"row_bytes": index.manifest.row_bytes, "bits": index.manifest.checkpoints[0].bits}
    return index.scores, facts


def _plain(estimator: Any) -> Any:
    def make(
        task: BenchTask, model: nn.Module, states: list[dict[str, Tensor]], _folder: Path
    ) -> tuple[Ask, dict[str, Any]]:
        def ask(queries: list[Any]) -> Scores:
            found = []
            for state in states:
                model.load_state_dict(state, strict=False)
                found.append(estimator(model, task.examples, queries, task.task))
            mean: Scores = np.mean(found, axis=0)
            return mean

        return ask, {}

    return make


ESTIMATORS = {
    "headwater": _index,
    "kronfluence": _peer,
    "grad-dot": _plain(grad_dot),
    "grad-cos": _plain(grad_cos),
}


def measure(task: BenchTask, states: list[dict[str, Tensor]], name: str, scores_file: Path) -> None:
    """Build, ask, ask again; scores go to a file, figures to standard output."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = task.blank()
    model.load_state_dict(states[0], strict=False)
    held = _memory_mb()
    if name == "kronfluence":
        import bench.influence.peer  # noqa: F401 - its own imports are not its work
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        ask, facts = ESTIMATORS[name](task, model, states, Path(folder))
        built = time.process_time()
        scores = ask(task.queries)
        first = time.process_time()
        again = ask(task.queries[::-1])
        second = time.process_time()
    if not np.allclose(again[::-1], scores, rtol=0.05, atol=0.05 * float(np.abs(scores).max())):
        facts["unsteady"] = True
    np.save(scores_file, scores)
    figures = {
        "build_cpu_s": round(built - start, 2),
        "first_query_cpu_s": round(first - built, 2),
        "second_query_cpu_s": round(second - first, 3),
        "total_cpu_s": round(first - start, 2),
        "memory_mb": round(_peak_mb() - held),
        "process_mb": round(_peak_mb()),
    }
    print(json.dumps(figures | facts))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _memory_mb() -> float:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
