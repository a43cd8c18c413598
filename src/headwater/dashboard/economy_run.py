"""Runs scenarios of the economy in a process of its own: ``python -m headwater.dashboard.economy_run FOLDER``.

The folder's job names the cases: a policy each, and the assumptions they share. Every case runs with the same seeds, so
that a difference between two is theirs and not luck's. Progress is written at most five times a second.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from headwater.core.errors import HeadwaterError
from headwater.dashboard.jobs import write_json
from headwater.economy import ABOUT, Finished, Scenario, default_scenario, figures, flows, simulate
from headwater.economy.questions import interval
from headwater.economy.simulation import SERIES
from headwater.splits import Policy

_EVERY_S: Final = 0.2


def scenario_of(case: dict[str, Any]) -> Scenario:
    """The scenario of a case.

    Raises:
        InvalidError: an unknown assumption or an impossible value.
    """
    values = dict(case["values"])
    if case.get("policy"):
        values["policy"] = Policy.from_toml(case["policy"])
    return default_scenario().with_values(values)


def main(folder: Path) -> int:
    """Run every case of the job in `folder`."""
    spec = msgspec.json.decode((folder / "job.json").read_bytes())["spec"]
    os.nice(10)
    try:
        cases = [(case["label"], scenario_of(case)) for case in spec["cases"]]
        progress = _Progress(folder, sum(one.run.days * one.run.seeds for _, one in cases))
        results = [_result(label, one, progress) for label, one in cases]
    except HeadwaterError as error:
        sys.stderr.write(f"{error.message} [{error.code}]\n")
        return 1
    write_json(folder / "result.json", {"cases": results, "about": ABOUT})
    return 0


class _Progress:
    """Says how far it is."""

    def __init__(self, folder: Path, total: int) -> None:
        self._folder, self._total = folder, total
        self._done, self._at_s = 0, 0.0
        self._label = ""

    def begin(self, label: str) -> None:
        """Another case begins."""
        self._label = label
        self._write()

    def day(self, _: int) -> None:
        """A day is over."""
        self._done += 1
        if time.monotonic() - self._at_s > _EVERY_S or self._done == self._total:
            self._write()

    def _write(self) -> None:
        self._at_s = time.monotonic()
        value = {"done": self._done, "total": self._total, "label": self._label, "cpu_s": time.process_time()}
        write_json(self._folder / "progress.json", value)


def _result(label: str, scenario: Scenario, progress: _Progress) -> dict[str, Any]:
    progress.begin(label)
    runs: list[Finished] = []
    for seed in range(scenario.run.seed, scenario.run.seed + scenario.run.seeds):
        runs.append(simulate(scenario, seed, on_day=progress.day))
    every = [figures(run) for run in runs]
    means = {name: interval([values[name] for values in every]) for name in every[0]}
    return {
        "label": label,
        "scenario": scenario.digest,
        "policy": scenario.policy.digest,
        "seeds": [run.seed for run in runs],
        "figures": {name: {"mean": mean, "half": half} for name, (mean, half) in means.items()},
        "flows": [[a, b, units] for a, b, units in flows(runs[0])],
        "series": {name: [row[place] for row in runs[0].series] for place, name in enumerate(SERIES)},
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
