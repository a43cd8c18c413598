"""`headwater attribution eval …`: how well estimators divide credit, on planted cases, the demo's corpus and model.

Exit status: 0 done, 1 refused or something is missing, 2 wrong usage.
"""

from __future__ import annotations

import json as json_codec
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from headwater.attribution.evaluate import (
    METHODS,
    OUTSIDE,
    PLAYERS,
    Case,
    Comparison,
    Entry,
    Setting,
    chosen,
    compare,
)
from headwater.cli.attribution_measure import Bench
from headwater.cli.options import JsonOption, outcome
from headwater.cli.output import err, out, print_json, progress
from headwater.core.errors import InvalidError
from headwater.models import shipped_reference

app = App(name="eval", help="How well estimators divide credit among the sources of an answer.")

CASES = 24
PASSES = 32
DRAWS = 5
METHODS_LEGEND = """How each method divides an answer among its sources, beside exact Shapley values in bits.
  passes        prompts scored for one answer                     gap           bits that parts and whole differ by
  misallocated  pay that goes to the wrong source (95 % range)    gold 1st      the planted source is ranked first
  worst         the same, of the worst answer                     unused cited  pay of a source that is cited, not used
  by bits       the same, answers weighted by their bits          to copy       pay of a copy of the planted source
  rank          order of the sources, 1 is that of exact          skill         1 exact, 0 no better than equal shares
  held out      how well unseen removals are predicted, 1 best    CPU-s         of one answer
"to copy" is raw: two copies are worth the same to any method, and ownership settles it before pay, below."""
ACCOUNTS_LEGEND = (
    "What is paid, after ownership, floor and intervals: copies and unused sources should have 0 %, the residual of\n"
    "generic questions 100 %, and no weak answer (one that owes its sources too little to tell) should pay."
)
QUICK_CASES, QUICK_PLAYERS, QUICK_PASSES = 8, 4, 12


@app.command
def context(
    *,
    cases: int = CASES,
    passes: int = PASSES,
    methods: str = "all",
    seed: int = 0,
    quick: Annotated[bool, Parameter(negative=())] = False,
    out_folder: Annotated[Path, Parameter(name="--out")] = Path(".headwater/evaluation"),
    json: JsonOption = False,
) -> int:
    """Divide credit among planted sources with every method, and compare with exact Shapley values.

    Parameters
    ----------
    cases
        How many of the shipped cases, from the first.
    passes
        Prompts that methods which sample may score.
    methods
        Names with commas between, or `all`.
    seed
        Which other sources are planted, their order, and who copies: another seed gives other cases.
    quick
        Eight cases of four sources with twelve passes, without attention: about a minute.
    out_folder
        Where measured tables are kept, so that a second run is cheap, and where report.json is written.
    """
    with outcome(json) as result:
        if passes < 8:
            raise InvalidError(f"a budget of {passes} passes", code="budget_invalid", fix="use 8 passes or more")
        names = chosen(methods)
        players = QUICK_PLAYERS if quick else PLAYERS
        if quick:
            cases, passes = min(cases, QUICK_CASES), min(passes, QUICK_PASSES)
            names = tuple(name for name in names if name != "attention")
        cpu, wall = time.process_time(), time.perf_counter()
        bench = Bench(out_folder)
        entries, outside, missing = _entries(bench, bench.cases(cases, seed=seed, players=players), names, quiet=json)
        names = tuple(name for name in names if name not in missing)
        costs = outside | _costs(bench, entries, names, passes)
        found = compare(entries, bench.scorer, shipped_reference(), names, passes=passes, draws=DRAWS, costs=costs)
        value: dict[str, Any] = {"seed": seed, "players": players} | asdict(found)
        value |= {"left_out": list(missing), "cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        report = out_folder / "report.json"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json_codec.dumps(value, indent=1) + "\n")
        if json:
            print_json(value)
        else:
            _show(found, missing)
            out.print(
                f"[dim]{value['cpu_s']:.0f} CPU-seconds, {value['wall_s']:.0f} by the clock; all figures: {report}[/]"
            )
    return result.status


def _entries(
    bench: Bench, cases: Sequence[Case], names: Sequence[str], *, quiet: bool
) -> tuple[list[Entry], dict[str, tuple[float, float]], tuple[str, ...]]:
    """Every case measured, what an answer costs by methods from outside, and those that could not be asked."""
    wanted = [name for name in names if name in OUTSIDE]
    entries: list[Entry] = []
    costs: dict[str, tuple[float, float]] = {}
    with progress(quiet=quiet) as bars:
        task = bars.add_task("measuring cases", total=len(cases))
        for case in cases:
            table = bench.measure(case)
            scores, cost = bench.outside(case, table, wanted)
            entries.append(Entry(case, table, scores))
            costs |= cost  # of one answer: the last
            bars.advance(task)
    missing = tuple(name for name in wanted if any(name not in entry.outside for entry in entries))
    return entries, costs, missing


def _costs(bench: Bench, entries: Sequence[Entry], names: Sequence[str], passes: int) -> dict[str, tuple[float, float]]:
    """(CPU, wall) seconds of an answer: for the exact table the mean, for the others those of one answer.

    Methods that look rows up are charged what scoring those rows by themselves costs.
    """
    tables = [entry.table for entry in entries]
    costs = {"exact": (_mean([t.cpu_s for t in tables]), _mean([t.wall_s for t in tables]))}
    entry = next((entry for entry in entries if entry.case.needs_gold), entries[0])
    for name in names:
        if name in (*OUTSIDE, "exact"):
            continue
        setting = Setting(entry.case, entry.table, bench.scorer, shipped_reference(), passes, 0, entry.outside)
        cpu, wall = time.process_time(), time.perf_counter()
        rows = METHODS[name](setting).rows
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        costs[name] = bench.cost(entry.case, entry.table, rows, name) if rows else (cpu, wall)
    return costs


def _show(found: Comparison, missing: Sequence[str]) -> None:
    """Two tables: how methods divide, and what the account pays."""
    table = Table(
        *(
            "method",
            "passes",
            "misallocated",
            "worst",
            "by bits",
            "rank",
            "held out",
            "gap",
            "gold 1st",
            "unused cited",
        ),
        *("to copy", "skill", "CPU-s"),
        box=None,
        header_style="bold",
    )
    for row in found.methods:
        table.add_row(
            row.method,
            f"{row.passes:.0f}",
            f"{row.misallocated:.1%} ({row.misallocated_low:.1%}–{row.misallocated_high:.1%})",
            f"{row.misallocated_worst:.0%}",
            f"{row.misallocated_weighted:.1%}",
            f"{row.rank_correlation:.2f}",
            f"{row.held_out:.2f}",
            "" if row.gap_bits is None else f"{row.gap_bits:.1g}" if row.gap_bits < 0.05 else f"{row.gap_bits:.1f}",
            f"{row.gold_first:.0%}",
            f"{row.unused_cited:.1%}",
            "" if row.copy_paid is None else f"{row.copy_paid:.0%}",
            f"{row.skill:.2f} (≥ {row.skill_low:.2f})" + (" [red]refused[/]" if row.refused else ""),
            "" if row.cpu_s is None else f"{row.cpu_s:.2f}",
            style="bold" if row.method == "sampled" else "",
        )
    wide = Console(width=max(out.width, 150), highlight=False)
    wide.print(f"{found.strong} of {found.cases} answers owe their sources enough to compare how it is divided")
    wide.print(table)
    wide.print(f"[dim]{METHODS_LEGEND}[/]")
    table = Table(
        *("account", "gold 1st", "to copies, most", "unused cited", "residual of generic, mean (least)"),
        *("weak answers that paid", "gap, bits"),
        box=None,
        header_style="bold",
    )
    for account in found.accounts:
        table.add_row(
            account.method,
            f"{account.gold_first:.0%}",
            f"{account.copies_paid:.2%}",
            f"{account.unused_cited:.1%}",
            f"{account.residual_generic:.1%} ({account.residual_generic_least:.1%})",
            f"{account.weak_paid} of {account.weak}",
            f"{account.gap_bits:.0e}",
        )
    wide.print()
    wide.print(table)
    wide.print(f"[dim]{ACCOUNTS_LEGEND}[/]")
    fitted = found.calibration
    if fitted is not None:
        wide.print(
            f"\nWithout any pass (grade C), fitted on {fitted.cases} answers: "
            f"{fitted.slope:.2f} bits for a bit of overlap, sure from "
            f"{fitted.sure_bits:.1f} bits; on the others skill {fitted.skill:.2f}, at least {fitted.skill_low:.2f}"
        )
    for name in missing:
        err.print(f"[yellow]{name} was left out:[/] what it needs is not installed")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
