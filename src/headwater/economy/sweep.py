"""Sweeps: which assumption moves a figure most, by Morris screening and then Sobol decomposition.

Every run of a sweep is one small file named by the digest of its scenario and seed, so that a sweep that was
killed, or met a full disk, goes on where it stopped, and two sweeps share what they have in common.
The same seeds are used at every point: differences are due to assumptions, not to luck.

Sources: Morris, 1991, Factorial sampling plans for preliminary computational experiments; Saltelli et al., 2010,
Variance based sensitivity analysis of model output; the estimators are SALib's.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError, MissingError
from headwater.economy.assumptions import Sweep
from headwater.economy.figures import ABOUT, figures
from headwater.economy.outputs import write_table, write_whole
from headwater.economy.scenario import Scenario
from headwater.economy.simulation import simulate

Point = tuple[tuple[str, Any], ...]
"""Assumptions of one run of a sweep: (section.key, value)."""

MORRIS_LEVELS = 4


@dataclass(frozen=True, slots=True)
class Factor:
    """How much one assumption moves the figure."""

    name: str
    strength: float  # Morris: mean absolute effect over the range; Sobol: total index
    interval: float  # half-width at 95 %, by bootstrap
    first: float  # Sobol: first-order index; Morris: standard deviation of the effect


@dataclass(frozen=True, slots=True)
class Cost:
    """What a sweep will take, from one run measured on this machine."""

    runs: int
    known: int  # runs that are already on disk
    cpu_s_each: float

    @property
    def cpu_s(self) -> float:
        """CPU seconds still to spend."""
        return (self.runs - self.known) * self.cpu_s_each


def morris_points(scenario: Scenario, paths: int) -> tuple[list[Point], dict[str, Any], NDArray[np.float64]]:
    """Points of `paths` Morris trajectories over the scenario's ranges: (points, SALib problem, unit sample)."""
    _salib()
    from SALib.sample import morris

    problem = _problem(scenario)
    unit = morris.sample(problem, paths, num_levels=MORRIS_LEVELS, seed=scenario.run.seed)
    return [_point(scenario, row) for row in unit], problem, unit


def sobol_points(
    scenario: Scenario, names: Sequence[str], samples: int
) -> tuple[list[Point], dict[str, Any], NDArray[np.float64]]:
    """Points of a Saltelli sample over some of the ranges: N (D + 2) runs."""
    _salib()
    from SALib.sample import sobol

    if samples & (samples - 1):
        raise InvalidError(f"sweep.samples is {samples}", code="scenario_invalid", fix="use a power of two")
    problem = _problem(scenario, names)
    unit = sobol.sample(problem, samples, calc_second_order=False, seed=scenario.run.seed)
    return [_point(scenario, row, problem["names"]) for row in unit], problem, unit


def estimate(scenario: Scenario, points: Sequence[Point], folder: Path | None) -> Cost:
    """What running `points` will cost, by timing one of them warm."""
    seeds = range(scenario.run.seed, scenario.run.seed + scenario.run.seeds)
    # The first run may compile; the second is timed.
    simulate(_at(scenario, points[0]).with_values({"run.days": 2}))
    start = time.process_time()
    simulate(_at(scenario, points[len(points) // 2]))
    each = time.process_time() - start
    known = 0 if folder is None else sum(_file(folder, scenario, p, s).exists() for p in points for s in seeds)
    return Cost(len(points) * len(seeds), known, each)


def run_points(
    scenario: Scenario,
    points: Sequence[Point],
    *,
    folder: Path | None,
    processes: int = 1,
    ray: bool = False,
    on_run: Callable[[], None] | None = None,
) -> list[dict[str, float]]:
    """The figures of every point, averaged over the scenario's seeds; what is on disk is not run again.

    Raises:
        UpstreamError: the disk is full; what was finished is kept.
    """
    jobs = [(p, s) for p in points for s in range(scenario.run.seed, scenario.run.seed + scenario.run.seeds)]
    results: dict[tuple[Point, int], dict[str, float]] = {}
    todo = []
    for job in dict.fromkeys(jobs):
        kept = None if folder is None else _kept(_file(folder, scenario, *job))
        if kept is None:
            todo.append(job)
        else:
            results[job] = kept
            if on_run is not None:
                on_run()
    for job, values in _execute(scenario, todo, processes, ray):
        results[job] = values
        if folder is not None:
            write_whole(_file(folder, scenario, *job), json.dumps(values).encode())
        if on_run is not None:
            on_run()
    means = []
    for point in points:
        of_seeds = [results[(point, s)] for s in range(scenario.run.seed, scenario.run.seed + scenario.run.seeds)]
        means.append({name: float(np.mean([v[name] for v in of_seeds])) for name in of_seeds[0]})
    return means


def morris_factors(problem: dict[str, Any], unit: NDArray[np.float64], values: Sequence[float]) -> list[Factor]:
    """Factors by mean absolute elementary effect, strongest first."""
    _salib()
    from SALib.analyze import morris

    got = morris.analyze(problem, unit, np.asarray(values), num_levels=MORRIS_LEVELS, seed=1)
    rows = zip(got["names"], got["mu_star"], got["mu_star_conf"], got["sigma"], strict=True)
    return sorted((Factor(str(n), float(m), float(c), float(s)) for n, m, c, s in rows), key=lambda f: -f.strength)


def sobol_factors(problem: dict[str, Any], values: Sequence[float]) -> list[Factor]:
    """Factors by total Sobol index with bootstrap intervals, strongest first."""
    _salib()
    from SALib.analyze import sobol

    y = np.asarray(values, np.float64)
    if float(y.std()) == 0.0:
        return [Factor(name, 0.0, 0.0, 0.0) for name in problem["names"]]
    got = sobol.analyze(problem, y, calc_second_order=False, seed=1)
    rows = zip(problem["names"], got["ST"], got["ST_conf"], got["S1"], strict=True)
    return sorted((Factor(str(n), float(t), float(c), float(s)) for n, t, c, s in rows), key=lambda f: -f.strength)


def write_sweep(folder: Path, name: str, points: Sequence[Point], results: Sequence[dict[str, float]]) -> Path:
    """All points of a sweep with all their figures, as one table."""
    names = [n for n, _ in points[0]]
    keys = sorted(results[0])
    rows = [
        (*(float(v) for _, v in point), *(values[k] for k in keys))
        for point, values in zip(points, results, strict=True)
    ]
    return write_table(folder, name, (*names, *keys), rows)


def check_output(name: str) -> None:
    """Refuse a figure that runs do not have."""
    if name not in ABOUT:
        raise InvalidError(f"sweep.output is {name!r}", code="scenario_invalid", fix=f"use one of {', '.join(ABOUT)}")


def _problem(scenario: Scenario, only: Sequence[str] | None = None) -> dict[str, Any]:
    names = [name for name, *_ in scenario.ranges if only is None or name in only]
    if not names:
        raise InvalidError(
            "the scenario has no ranges to sweep",
            code="scenario_invalid",
            fix='add [sweep] params = {fee_nano = [1e6, 1e9, "log"]}',
        )
    return {"num_vars": len(names), "names": names, "bounds": [[0.0, 1.0]] * len(names)}


def _point(scenario: Scenario, row: NDArray[np.float64], names: Sequence[str] | None = None) -> Point:
    """A unit sample as values: log ranges are spread evenly in logarithm, whole numbers are rounded."""
    ranges = {name: (low, high, log) for name, low, high, log in scenario.ranges}
    values: list[tuple[str, Any]] = []
    for name, u in zip(names or list(ranges), row, strict=True):
        low, high, log = ranges[name]
        value = low * (high / low) ** float(u) if log else low + (high - low) * float(u)
        values.append((name, round(value) if isinstance(scenario.value(name), int) else value))
    return tuple(values)


def _at(scenario: Scenario, point: Point) -> Scenario:
    return scenario.with_values(dict(point))


def _one(scenario: Scenario, job: tuple[Point, int]) -> dict[str, float]:
    return figures(simulate(_at(scenario, job[0]), job[1]))


def _execute(
    scenario: Scenario, jobs: Sequence[tuple[Point, int]], processes: int, ray: bool
) -> Iterator[tuple[tuple[Point, int], dict[str, float]]]:
    """Run jobs here, in processes (one thread each), or on a Ray cluster; results come as they finish."""
    if ray:
        yield from _on_ray(scenario, jobs)
    elif processes <= 1:
        for job in jobs:
            yield job, _one(scenario, job)
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as workers:
            futures = {workers.submit(_one, scenario, job): job for job in jobs}
            for done in as_completed(futures):
                yield futures[done], done.result()


def _on_ray(
    scenario: Scenario, jobs: Sequence[tuple[Point, int]]
) -> Iterator[tuple[tuple[Point, int], dict[str, float]]]:
    try:
        import ray
    except ImportError:
        raise MissingError(
            "Ray is not installed", code="extra_missing", fix="pip install 'headwater[ray]', or use --processes"
        ) from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    remote = ray.remote(num_cpus=1)(_one)
    shared = ray.put(scenario)
    waiting = {remote.remote(shared, job): job for job in jobs}
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1)
        for reference in done:
            yield waiting.pop(reference), ray.get(reference)


def _file(folder: Path, scenario: Scenario, point: Point, seed: int) -> Path:
    # What is varied and how often does not change a run: a larger sample goes on from a smaller one.
    plain = replace(scenario, sweep=Sweep(), ranges=()).digest
    mark = hashlib.sha256(f"{version('headwater')}\0{plain}\0{point!r}\0{seed}".encode()).hexdigest()[:32]
    return folder / "points" / f"{mark}.json"


def _kept(path: Path) -> dict[str, float] | None:
    """The figures in a finished file; a file that cannot be read counts as not run."""
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _salib() -> None:
    try:
        import SALib  # noqa: F401
    except ImportError:
        raise MissingError(
            "SALib is not installed", code="extra_missing", fix="pip install 'headwater[economy]'"
        ) from None
