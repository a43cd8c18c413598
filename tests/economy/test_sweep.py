"""Sweeps find what matters, go on where they stopped, and stop cleanly when the disk is full."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headwater.core.errors import InvalidError, MissingError, UpstreamError
from headwater.economy import sweep
from headwater.economy.outputs import write_runs, write_whole
from headwater.economy.scenario import default_scenario, scenario_from
from headwater.economy.simulation import simulate

pytest.importorskip("SALib")

TABLE = {
    "agents": {"contributors": 150, "users": 150, "apps": 5},
    "run": {"days": 15, "seeds": 1},
    "sweep": {"params": {"generic_share": [0.0, 0.9], "evidence.tail": [1.1, 1.2], "claim_week": [0.1, 0.2]}},
}


def test_morris_finds_the_assumption_that_matters():
    """What nobody supplies depends on generic answers, and hardly on how often people claim."""
    scenario = scenario_from(TABLE)
    points, problem, unit = sweep.morris_points(scenario, 3)
    results = sweep.run_points(scenario, points, folder=None)

    factors = sweep.morris_factors(problem, unit, [r["residual_share"] for r in results])

    assert factors[0].name == "evidence.generic_share"
    assert factors[-1].strength == pytest.approx(0.0, abs=1e-9)


def test_sobol_indices_of_a_known_function_are_the_known_ones():
    """For y = 2 a + b over the unit square the total indices are .8 and .2."""
    ranges = {"generic_share": [0.0, 1.0], "overlap": [0.0, 1.0], "niche": [0.0, 1.0]}
    scenario = scenario_from({"sweep": {"params": ranges}})
    points, problem, _ = sweep.sobol_points(scenario, ["evidence.generic_share", "evidence.overlap"], 1024)
    values = [2 * dict(p)["evidence.generic_share"] + dict(p)["evidence.overlap"] for p in points]

    factors = sweep.sobol_factors(problem, values)

    assert [f.name for f in factors] == ["evidence.generic_share", "evidence.overlap"]
    assert [f.strength for f in factors] == pytest.approx([0.8, 0.2], abs=0.05)


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Finished runs are read from disk, a broken file is run again, and the results are the same."""
    scenario = scenario_from(TABLE)
    points, _, _ = sweep.morris_points(scenario, 2)
    whole = sweep.run_points(scenario, points, folder=None)
    seen = []

    def stop():
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run_points(scenario, points, folder=tmp_path, on_run=stop)
    kept = sorted(tmp_path.glob("points/*.json"))
    assert len(kept) == 4
    kept[0].write_text("{", "utf-8")
    ran = []
    real = sweep.simulate
    monkeypatch.setattr(sweep, "simulate", lambda *a: ran.append(1) or real(*a))

    again = sweep.run_points(scenario, points, folder=tmp_path)

    assert again == whole
    assert len(ran) == len(set(points)) - 3
    assert not list(tmp_path.glob("points/.*"))


def test_a_larger_sample_goes_on_from_a_smaller_one(tmp_path):
    """Runs are known again under another sample size or range, because neither changes what a run is."""
    scenario = scenario_from(TABLE)
    points, _, _ = sweep.morris_points(scenario, 2)
    sweep.run_points(scenario, points[:3], folder=tmp_path)
    larger = replace(scenario.with_values({"samples": 512, "paths": 5}), ranges=scenario.ranges[:1])

    assert sweep.estimate(larger, points[:3], tmp_path).known == 3
    assert sweep.estimate(scenario.with_values({"fee_nano": 7}), points[:3], tmp_path).known == 0


def test_two_processes_give_what_one_gives(tmp_path):
    """Runs are spread over processes without changing a figure."""
    scenario = scenario_from(TABLE)
    points, _, _ = sweep.morris_points(scenario, 2)

    assert sweep.run_points(scenario, points[:3], folder=tmp_path, processes=2) == sweep.run_points(
        scenario, points[:3], folder=None
    )


def test_a_sweep_says_what_it_will_cost(tmp_path):
    """The estimate counts runs, those already known, and CPU seconds."""
    scenario = scenario_from(TABLE)
    points, _, _ = sweep.morris_points(scenario, 2)
    sweep.run_points(scenario, points[:2], folder=tmp_path)

    cost = sweep.estimate(scenario, points, tmp_path)

    assert (cost.runs, cost.known) == (8, 2)
    assert cost.cpu_s == pytest.approx(6 * cost.cpu_s_each)


def test_a_full_disk_stops_cleanly(tmp_path, monkeypatch):
    """The error says what to do, what was there stays, and no half-written file is left."""
    path = tmp_path / "table.csv"
    write_whole(path, b"before")

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UpstreamError) as stopped:
        write_whole(path, b"after")

    assert stopped.value.code == "disk_full"
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_ranges_outputs_and_samples_are_checked():
    """Nothing to vary, an unknown figure and a sample that is no power of two are refused."""
    with pytest.raises(InvalidError, match="no ranges"):
        sweep.morris_points(default_scenario(), 2)
    with pytest.raises(InvalidError, match=r"sweep\.output"):
        sweep.check_output("happiness")
    with pytest.raises(InvalidError, match="power of two"):
        sweep.sobol_points(scenario_from(TABLE), ["evidence.tail"], 100)


def test_a_missing_extra_names_itself(monkeypatch):
    """Without Ray the sweep says which extra to install."""
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    scenario = scenario_from(TABLE)
    points, _, _ = sweep.morris_points(scenario, 2)
    with pytest.raises(MissingError, match=r"headwater\[ray\]"):
        sweep.run_points(scenario, points, folder=None, ray=True)


def test_a_run_leaves_tables_and_a_description_that_names_it(tmp_path):
    """Parquet tables and run.json hold seeds, version, scenario and policy digests."""
    import json

    parquet = pytest.importorskip("pyarrow.parquet")
    scenario = scenario_from({**TABLE, "attack": {"kind": "spam", "accounts": 5}})
    runs = [simulate(scenario, seed) for seed in (1, 2)]

    written = write_runs(tmp_path, runs, cpu_s=1.0)

    assert {p.name for p in written} == {
        "steps.parquet", "flows.parquet", "agents_final.parquet", "figures.parquet", "attacks.parquet", "run.json",
    }  # fmt: skip
    described = json.loads((tmp_path / "run.json").read_bytes())
    assert described["scenario_digest"] == scenario.digest
    assert described["policy_digest"] == scenario.policy.digest
    assert described["seeds"] == [1, 2]
    steps = parquet.read_table(tmp_path / "steps.parquet").to_pydict()
    assert steps["calls"][-1] == int(runs[1].tally[0])
    assert np.diff(steps["contributors"][: len(runs[0].series)]).min() >= 0
