"""`headwater economy …`: run scenarios, sweep assumptions, validate, ask, and write the report."""

from __future__ import annotations

import json as json_text
import math
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Table

from headwater.cli.home import home_database
from headwater.cli.options import JsonOption, outcome, settings
from headwater.cli.output import err, out, print_json, progress
from headwater.core.errors import InvalidError
from headwater.economy.catalogue import QUESTIONS
from headwater.economy.figures import figures
from headwater.economy.outputs import try_folder, write_runs, write_whole
from headwater.economy.questions import Answer, ask, question_of, runs_of
from headwater.economy.report import (
    Material,
    answer_csv,
    answer_text,
    facts_csv,
    facts_text,
    figures_text,
    write_report,
)
from headwater.economy.scenario import Scenario, default_scenario, describe, load_scenario
from headwater.economy.simulation import Finished, Opening, opening_of, simulate
from headwater.economy.sweep import (
    Factor,
    Point,
    check_output,
    estimate,
    morris_factors,
    morris_points,
    run_points,
    sobol_factors,
    sobol_points,
    write_sweep,
)
from headwater.economy.validation import CHECKS, Fact
from headwater.store.ledger_store import Ledger

app = App(name="economy", help="Simulate the economy that the rules make, with the product's own payout code.")

app.command("headwater.cli.economy_attacks:attacks", name="attacks")

ScenarioFile = Annotated[
    Path | None, Parameter(help="Scenario in TOML; without one, every assumption is at its default.")
]
Out = Annotated[Path, Parameter(name="--out", help="Folder for results; it is made if it is missing.")]
Sets = Annotated[
    tuple[str, ...],
    Parameter(name="--set", help="Change one assumption: section.key=value. Repeat for more.", negative=()),
]
PolicyFile = Annotated[
    str | None, Parameter(name="--policy", help="The operator's policy.toml, instead of the scenario's.")
]
Seeds = Annotated[int | None, Parameter(name="--seeds", help="Runs with seeds 1, 2, 3 … (or those after run.seed).")]


@app.command
def run(
    scenario: ScenarioFile = None, /, *, set: Sets = (), seeds: Seeds = None, out_folder: Out = Path("economy-run"),
    ledger: Annotated[
        Path | None, Parameter(name="--ledger", help="Home folder whose ledger balances the run starts from.")
    ] = None,
    policy: PolicyFile = None,
    json: JsonOption = False,
) -> int:  # fmt: skip
    """Run a scenario once per seed and write tables, a description and a report."""
    with outcome(json) as result:
        chosen = _scenario(scenario, set, {"run.seeds": seeds, "policy": policy})
        try_folder(out_folder)
        opening = None if ledger is None else _opening(ledger, chosen.policy.currency)
        begun = time.process_time()
        runs = _run_seeds(chosen, opening, quiet=json)
        spent = time.process_time() - begun
        written = [*write_runs(out_folder, runs, cpu_s=spent), *write_report(out_folder, Material("An economy", runs))]
        if json:
            values = {str(r.seed): figures(r) for r in runs}
            print_json(
                {"scenario": chosen.digest, "cpu_s": spent, "figures": values, "written": [p.name for p in written]}
            )
        else:
            out.print(escape(figures_text(runs)))
            out.print(f"{sum(int(r.tally[0]) for r in runs):,} calls in {spent:.1f} CPU-s, written to {out_folder}")
    return result.status


@app.command
def sweep(
    scenario: ScenarioFile = None, /, *, set: Sets = (), out_folder: Out = Path("economy-sweep"),
    processes: Annotated[int, Parameter(help="Runs at a time on this machine, one thread each.")] = 1,
    ray: Annotated[bool, Parameter(help="Spread the runs over a Ray cluster (extra `ray`).", negative=())] = False,
    estimate_only: Annotated[
        bool, Parameter(name="--estimate", help="Print what it would cost and stop.", negative=())
    ] = False,
    json: JsonOption = False,
) -> int:  # fmt: skip
    """Find which assumptions move a figure most; killed sweeps go on where they stopped."""
    with outcome(json) as result:
        chosen = _scenario(scenario, set, {})
        plan = chosen.sweep
        check_output(plan.output)
        if not estimate_only:
            try_folder(out_folder)
        factors: list[Factor] = []
        names = [name for name, *_ in chosen.ranges]
        if plan.method in ("morris", "morris+sobol"):
            points, problem, unit = morris_points(chosen, plan.paths)
            values = _sweep(chosen, "morris", points, out_folder, processes, ray, estimate_only, json)
            if values is None:
                return 0
            factors = morris_factors(problem, unit, [v[plan.output] for v in values])
            names = [f.name for f in factors[: plan.best]]
        if plan.method in ("sobol", "morris+sobol"):
            points, problem, unit = sobol_points(chosen, names, plan.samples)
            values = _sweep(chosen, "sobol", points, out_folder, processes, ray, estimate_only, json)
            if values is None:
                return 0
            factors = sobol_factors(problem, [v[plan.output] for v in values])
        rows = [asdict(f) for f in factors]
        kind = "total Sobol index" if plan.method != "morris" else "mean absolute effect"
        write_whole(
            out_folder / "factors.json",
            json_text.dumps(
                {"output": plan.output, "kind": kind, "scenario": chosen.digest, "factors": rows}, indent=1
            ).encode(),
        )
        if json:
            print_json({"output": plan.output, "kind": kind, "factors": rows})
        else:
            table = Table("assumption", kind, "± 95 %", "first order or spread", box=None)
            for f in factors:
                table.add_row(f.name, f"{f.strength:.4g}", f"{f.interval:.2g}", f"{f.first:.4g}")
            out.print(f"What moves {plan.output}:")
            out.print(table)
    return result.status


@app.command
def validate(
    *, quick: Annotated[bool, Parameter(help="Smaller runs for the stochastic facts.", negative=())] = False,
    out_folder: Annotated[Path | None, Parameter(name="--out", help="Folder for validation.csv.")] = None,
    json: JsonOption = False,
) -> int:  # fmt: skip
    """Check the twelve facts; status 1 when an exact one is missed."""
    with outcome(json) as result:
        if out_folder is not None:
            try_folder(out_folder)
        facts = _facts(quick, json)
        if out_folder is not None:
            write_whole(out_folder / "validation.csv", facts_csv(facts))
        if json:
            print_json([asdict(fact) for fact in facts])
        else:
            out.print(escape(facts_text(facts)), soft_wrap=True)
        result.status = 1 if any(f.kind == "exact" and not f.met for f in facts) else 0
    return result.status


@app.command(name="ask")
def ask_command(
    number: Annotated[str | None, Parameter(help="Q1 to Q12; without one, the questions are listed.")] = None, /, *,
    seeds: Annotated[int, Parameter(help="Runs per row.")] = 5,
    scale: Annotated[float, Parameter(help="Multiplies the numbers of people.")] = 1.0,
    factors: Annotated[int, Parameter(help="Morris paths for the strongest factors; 0 leaves them out.")] = 4,
    out_folder: Annotated[Path | None, Parameter(name="--out", help="Folder for the table as CSV and text.")] = None,
    json: JsonOption = False,
) -> int:  # fmt: skip
    """Answer one of the twelve questions with a table."""
    with outcome(json) as result:
        if number is None:
            for question in QUESTIONS.values():
                out.print(f"{question.number:4} {question.text}")
            return 0
        if out_folder is not None:
            try_folder(out_folder)
        answer = _ask(number, seeds, scale, factors, json)
        if out_folder is not None:
            write_whole(out_folder / f"{answer.number.lower()}.csv", answer_csv(answer))
            write_whole(out_folder / f"{answer.number.lower()}.txt", (answer_text(answer) + "\n").encode())
        if json:
            print_json(_without_nan(asdict(answer)))
        else:
            out.print(escape(answer_text(answer)), soft_wrap=True)
    return result.status


@app.command
def report(
    scenario: ScenarioFile = None, /, *, set: Sets = (), seeds: Annotated[int, Parameter(help="Runs per row.")] = 5,
    out_folder: Out = Path("economy-report"),
    questions: Annotated[str, Parameter(help="Questions to answer, like Q1,Q3; `all` or `none`.")] = "all",
    scale: Annotated[float, Parameter(help="Multiplies the numbers of people in questions.")] = 1.0,
    factors: Annotated[int, Parameter(help="Morris paths for the strongest factors; 0 leaves them out.")] = 4,
    facts: Annotated[bool, Parameter(help="Check the twelve facts too.")] = True,
    sweeps: Annotated[
        tuple[Path, ...], Parameter(name="--sweep", help="Folder of a finished sweep to show.", negative=())
    ] = (),
    policy: PolicyFile = None,
    json: JsonOption = False,
) -> int:  # fmt: skip
    """Run a scenario, answer questions, check facts, and write one self-contained page with CSV and text beside it."""
    with outcome(json) as result:
        chosen = _scenario(scenario, set, {"run.seeds": seeds, "policy": policy})
        wanted = [] if questions == "none" else list(QUESTIONS) if questions == "all" else questions.upper().split(",")
        # Everything that can be refused is refused before the first run.
        for number in wanted:
            question_of(number)
        finished_sweeps = tuple(_finished_sweep(folder) for folder in sweeps)
        try_folder(out_folder)
        runs = _run_seeds(chosen, None, quiet=json)
        answers = tuple(_ask(number, seeds, scale, factors, json) for number in wanted)
        material = Material(
            "What kind of economy do these rules make?",
            runs,
            answers,
            _facts(False, json) if facts else (),
            finished_sweeps,
            (
                "A model says what rules do to assumed behaviour. Attention, crowding out and an attacker's "
                "costs are guesses.",
            ),
        )
        written = write_report(out_folder, material)
        if json:
            print_json({"written": [path.name for path in written]})
        else:
            out.print(f"written to {out_folder}: {', '.join(path.name for path in written)}")
    return result.status


@app.command
def assumptions(*, json: JsonOption = False) -> int:
    """List every assumption with its default and what it means."""
    with outcome(json) as result:
        rows = [{"name": n, "default": d, "about": a} for n, d, a in describe()]
        if json:
            print_json(rows)
        else:
            table = Table("assumption", "default", "meaning", box=None)
            for row in rows:
                table.add_row(row["name"], str(row["default"]), row["about"])
            out.print(table)
    return result.status


def _scenario(path: Path | None, sets: Sequence[str], more: dict[str, Any]) -> Scenario:
    chosen = default_scenario() if path is None else load_scenario(path)
    values: dict[str, Any] = {name: value for name, value in more.items() if value is not None}
    for text in sets:
        name, equals, raw = text.partition("=")
        if not equals:
            raise InvalidError(f"--set {text!r} has no =", code="scenario_invalid", fix="write --set section.key=value")
        try:
            values[name] = tomllib.loads(f"x = {raw}")["x"]
        except tomllib.TOMLDecodeError:
            values[name] = raw
    return chosen.with_values(values) if values else chosen


def _run_seeds(chosen: Scenario, opening: Opening | None, *, quiet: bool) -> tuple[Finished, ...]:
    runs = []
    with progress(quiet=quiet) as bars:
        task = bars.add_task("days", total=chosen.run.days * chosen.run.seeds)
        for seed in range(chosen.run.seed, chosen.run.seed + chosen.run.seeds):
            runs.append(simulate(chosen, seed, opening=opening, on_day=lambda _: bars.advance(task)))
    return tuple(runs)


def _sweep(
    chosen: Scenario, name: str, points: list[Point], folder: Path, processes: int, ray: bool, only: bool, quiet: bool
) -> list[dict[str, float]] | None:
    cost = estimate(chosen, points, folder)
    err.print(
        f"{name}: {cost.runs} runs, {cost.known} known, about {cost.cpu_s:.0f} CPU-s "
        f"({cost.cpu_s / max(1, processes) / 60:.1f} minutes on {processes} process{'es' * (processes > 1)})"
    )
    if only:
        return None
    with progress(quiet=quiet) as bars:
        task = bars.add_task(name, total=cost.runs)
        values = run_points(
            chosen, points, folder=folder, processes=processes, ray=ray, on_run=lambda: bars.advance(task)
        )
    write_sweep(folder, name, points, values)
    return values


def _ask(number: str, seeds: int, scale: float, factors: int, quiet: bool) -> Answer:
    with progress(quiet=quiet) as bars:
        total = runs_of(number, seeds, factors) if number.upper() in QUESTIONS else None
        task = bars.add_task(number, total=total)
        return ask(number, seeds=seeds, scale=scale, factor_paths=factors, on_run=lambda: bars.advance(task))


def _facts(quick: bool, quiet: bool) -> tuple[Fact, ...]:
    facts = []
    with progress(quiet=quiet) as bars:
        task = bars.add_task("facts", total=len(CHECKS))
        for check in CHECKS:
            facts.append(check(quick))
            bars.advance(task)
    return tuple(facts)


def _finished_sweep(folder: Path) -> tuple[str, tuple[Factor, ...]]:
    try:
        table = json_text.loads((folder / "factors.json").read_bytes())
        return table["output"], tuple(Factor(**row) for row in table["factors"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidError(
            f"{folder} holds no finished sweep",
            code="sweep_missing",
            fix="run headwater economy sweep --out there first",
        ) from None


def _opening(home: Path, currency: str) -> Opening:
    with home_database(settings(home)) as database:
        balances = Ledger(database).balances()
    opening = opening_of({b.account: b.balance_units for b in balances if b.asset == currency})
    units = sum(row[1] for row in opening.rows)
    err.print(f"starting from {len(opening.rows)} accounts of the ledger with {units / 1e9:.9f} {currency}")
    return opening


def _without_nan(value: Any) -> Any:
    """JSON has no word for a number that does not exist: null."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
