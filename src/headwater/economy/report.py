"""The report: one HTML page that stands alone, the same tables as CSV, and as plain text.

Every table says how many seeds it rests on, which three assumptions move its figure most, and what it assumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from headwater.economy.charts import bar_chart, heat_map, line_chart, sankey, scatter
from headwater.economy.figures import ABOUT, figures, flows
from headwater.economy.metrics import lorenz
from headwater.economy.outputs import csv_bytes, write_whole
from headwater.economy.questions import Answer, interval
from headwater.economy.simulation import Finished
from headwater.economy.state import ACTIVE
from headwater.economy.sweep import Factor
from headwater.economy.validation import Fact


@dataclass(frozen=True, slots=True)
class Material:
    """What a report is made of; anything may be empty."""

    title: str
    runs: tuple[Finished, ...] = ()
    answers: tuple[Answer, ...] = ()
    facts: tuple[Fact, ...] = ()
    sobol: tuple[tuple[str, tuple[Factor, ...]], ...] = ()  # (figure, factors)
    notes: tuple[str, ...] = ()


def write_report(folder: Path, material: Material) -> tuple[Path, ...]:
    """Write ``report.html``, ``report.txt`` and one CSV a table; returns the paths."""
    written = []
    for name, raw in (
        ("report.html", html_report(material).encode()),
        ("report.txt", text_report(material).encode()),
        *((f"{a.number.lower()}.csv", answer_csv(a)) for a in material.answers),
        *((("validation.csv", facts_csv(material.facts)),) if material.facts else ()),
    ):
        write_whole(folder / name, raw)
        written.append(folder / name)
    return tuple(written)


def answer_text(answer: Answer) -> str:
    """An answer as plain text: a table, its factors and its assumption."""
    headers = ["", *(f"{header} ({unit})" if unit else header for header, unit in answer.columns)]
    body = [
        [label, *(_cell(m, h, u, answer.seeds) for (m, h), (_, u) in zip(cells, answer.columns, strict=True))]
        for label, cells in answer.rows
    ]
    widths = [max(len(row[i]) for row in [headers, *body]) for i in range(len(headers))]
    lines = [f"{answer.number}  {answer.text}", ""]
    for row in (headers, *body):
        lines.append(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )
    lines += [
        "",
        f"{_of_seeds(answer.seeds)}; {answer.calls:,} calls, {answer.cpu_s:.0f} CPU-s",
    ]
    if answer.factors:
        lines.append(f"moves {ABOUT.get(answer.output, answer.output)} most: {_factors(answer.factors)}")
    lines.append(f"assumes: {answer.assumption}")
    return "\n".join(lines)


def answer_csv(answer: Answer) -> bytes:
    """An answer as CSV: one line a row, mean and half-width beside each other."""
    columns = ["row", *(name for header, unit in answer.columns for name in (f"{header} [{unit}]", f"{header} ±"))]
    return csv_bytes(columns, [[label, *(value for cell in cells for value in cell)] for label, cells in answer.rows])


def facts_text(facts: Sequence[Fact]) -> str:
    """The validation table as plain text."""
    lines = []
    for f in facts:
        lines += [
            f"{f.number:4} {'met   ' if f.met else 'MISSED'} {f.fact} ({f.kind})",
            f"       target {f.target}",
            f"       got    {f.got}",
            *([f"       fitted: {f.fitted}"] if f.fitted else []),
            *([f"       out of sample: {f.predicted}"] if f.predicted else []),
        ]
    for what, chosen in (
        ("exact", [f for f in facts if f.kind == "exact"]),
        ("with a number that was fitted", [f for f in facts if f.fitted]),
        ("with a number predicted out of sample", [f for f in facts if f.predicted]),
        ("missed", [f for f in facts if not f.met]),
    ):
        lines.append(f"{what}: {', '.join(f.number for f in chosen) or 'none'}")
    met = sum(f.met for f in facts)
    return "\n".join([*lines, f"{met} of {len(facts)} facts met"])


def facts_csv(facts: Sequence[Fact]) -> bytes:
    """The validation table as CSV."""
    rows = [
        (f.number, f.fact, f.kind, f.fitted, f.predicted, f.target, f.got, "met" if f.met else "missed") for f in facts
    ]
    return csv_bytes(("number", "fact", "kind", "fitted", "out of sample", "target", "got", "verdict"), rows)


def figures_text(runs: Sequence[Finished]) -> str:
    """All figures of some runs with intervals over their seeds, as plain text."""
    values = [figures(run) for run in runs]
    lines = []
    for name, about in ABOUT.items():
        mean, half = interval([v[name] for v in values])
        lines.append(f"{name:30} {mean:>14.6g} ± {half:<10.3g} {about}")
    s = runs[0].scenario
    order = "one after another" if s.run.sequential else "synchronous"
    lines.append(
        f"{len(runs)} seeds, n = {s.agents.contributors:,} contributors, updates {order}, policy "
        f"{s.policy.digest[:19]}…"
    )
    return "\n".join(lines)


def text_report(material: Material) -> str:
    """Everything as plain text."""
    parts = [material.title, *material.notes]
    if material.facts:
        parts.append(facts_text(material.facts))
    if material.runs:
        parts.append(figures_text(material.runs))
    parts += [answer_text(answer) for answer in material.answers]
    parts += [f"Sobol, {figure}: {_factors(factors, len(factors))}" for figure, factors in material.sobol]
    return "\n\n".join(parts) + "\n"


def html_report(material: Material) -> str:
    """Everything as one HTML page without a single outside reference."""
    parts = [f"<h1>{escape(material.title)}</h1>", *(f"<p>{escape(note)}</p>" for note in material.notes)]
    if material.runs:
        parts.append(_runs_html(material.runs))
    for answer in material.answers:
        parts.append(_answer_html(answer))
    for figure, factors in material.sobol:
        bars = [(f.name, f.strength, f.interval) for f in factors]
        parts.append(f"<section><h2>What moves {escape(ABOUT.get(figure, figure))}</h2>")
        parts.append(bar_chart(f"total Sobol index, {figure}", bars, x="total Sobol index") + "</section>")
    if material.facts:
        parts.append(_facts_html(material.facts))
    return _PAGE.replace("@title", escape(material.title)).replace("@body", "\n".join(parts))


def _runs_html(runs: Sequence[Finished]) -> str:
    run = runs[0]
    state = run.state
    people = state["contributor.phase"] > 0
    earned = state["contributor.accrued"][people]
    effort = (state["contributor.effort"] * state["contributor.cost"])[people]
    curves = [
        (f"{label}", list(zip(*(a.tolist() for a in lorenz(x)), strict=True)))
        for label, x in (("pay", earned), ("effort", effort))
    ]
    parts = [
        "<section><h2>The run</h2>",
        f"<p>{len(runs)} seeds of {run.scenario.run.days} days; scenario "
        f"<code>{run.scenario.digest[:23]}…</code>, policy "
        f"<code>{run.scenario.policy.digest[:23]}…</code>. Money lost or made: 0 units, checked every day.</p>",
        sankey("Where callers' money goes", flows(run)),
        "<div class=two>",
        line_chart("Lorenz curve of pay", curves, x="people, poorest first", y="part held", diagonal=True),
        line_chart(
            "Newcomers still contributing, by age", survival(run), x="days since entering", y="part still active"
        ),
        "</div>",
        _figures_html(runs),
        "</section>",
    ]
    return "".join(parts)


def survival(run: Finished) -> list[tuple[str, list[tuple[float, float]]]]:
    """Cohorts of newcomers: for each quarter of the run, the part still active at the end, by age at the end."""
    state, days = run.state, run.scenario.run.days
    born, phase = state["contributor.born"].astype(int), state["contributor.phase"]
    points = []
    for start in range(1, days, max(1, days // 12)):
        cohort = (born >= start) & (born < start + max(1, days // 12)) & (phase > 0)
        if cohort.any():
            points.append((float(days - start), float((phase[cohort] == ACTIVE).mean())))
    return [("cohort, at the end", sorted(points))] if points else []


def _figures_html(runs: Sequence[Finished]) -> str:
    values = [figures(run) for run in runs]
    rows = []
    for name, about in ABOUT.items():
        mean, half = interval([v[name] for v in values])
        rows.append(f"<tr><td>{escape(about)}</td><td class=n>{mean:.5g} ± {half:.2g}</td></tr>")
    return "<details><summary>All figures</summary><table>" + "".join(rows) + "</table></details>"


def _answer_html(answer: Answer) -> str:
    head = "".join(f"<th>{escape(h)}{f' ({u})' if u else ''}</th>" for h, u in answer.columns)
    body = "".join(
        f"<tr><td>{escape(label)}</td>"
        + "".join(
            f"<td class=n>{_cell(m, h, u, answer.seeds)}</td>"
            for (m, h), (_, u) in zip(cells, answer.columns, strict=True)
        )
        + "</tr>"
        for label, cells in answer.rows
    )
    parts = [
        f"<section><h2>{escape(answer.number)} · {escape(answer.text)}</h2>",
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>",
        f"<p class=small>{_of_seeds(answer.seeds)}; {answer.calls:,} calls. "
        f"<b>Assumes:</b> {escape(answer.assumption)}</p>",
    ]
    if answer.factors:
        bars = [(f.name, f.strength, f.interval) for f in answer.factors]
        parts.append(
            bar_chart(
                f"{answer.number}: strongest factors",
                bars[:6],
                x=f"mean absolute effect on: {ABOUT.get(answer.output, answer.output)}",
            )
        )
    if answer.number == "Q2":
        parts.append(_fee_map(answer))
    if answer.number == "Q9":
        parts.append(_attack_chart(answer))
    return "".join(parts) + "</section>"


def _fee_map(answer: Answer) -> str:
    """Q2 as a map: fee by row, payment rule by column, received share in the cell."""
    labels = [tuple(label.split(", ", 1)) for label, _ in answer.rows]
    fees, rules = list(dict.fromkeys(a for a, _ in labels)), list(dict.fromkeys(b for _, b in labels))
    share = {label: cells[0][0] for label, (_, cells) in zip(labels, answer.rows, strict=True)}
    names = [rule.replace("cumulative, pushed at T* by the line", "T*, claim any time") for rule in rules]
    return heat_map(
        "Received, by fee and threshold",
        fees,
        names,
        [[share[(f, r)] for r in rules] for f in fees],
        what="received by contributors / paid",
    )


def _attack_chart(answer: Answer) -> str:
    """Q9 as points: what an account costs before the attack stops paying, beside what comes back per unit spent."""
    headers = [h for h, _ in answer.columns]
    cost, back = headers.index("break-even cost an account"), headers.index("return per $")
    points = [
        (label, cells[cost][0], cells[back][0])
        for label, cells in answer.rows
        if cells[cost][0] > 0 and cells[back][0] < 1e3
    ]
    return scatter(
        "Attacks: return and break-even", points, x="break-even cost of an account, currency", y="return per unit spent"
    )


def _facts_html(facts: Sequence[Fact]) -> str:
    rows = "".join(
        f"<tr "
        f"class={'met' if f.met else 'missed'}><td>{f.number}</td><td>{escape(f.fact)}</td><td>{escape(f.kind)}</td>"
        f"<td>{escape(f.target)}</td><td>{escape(f.got)}</td><td>{'met' if f.met else 'missed'}</td></tr>"
        for f in facts
    )
    return (
        "<section><h2>Facts it must reproduce</h2><table><thead><tr><th></th><th>fact</th><th>kind</th><th>target</th>"
        f"<th>got</th><th>verdict</th></tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _of_seeds(seeds: int) -> str:
    return f"mean ± half of a 95 % interval over {seeds} seeds" if seeds > 1 else "one seed, so no interval"


def _cell(mean: float, half: float, unit: str, seeds: int) -> str:
    if np.isnan(mean):
        return "none"
    if seeds < 2:
        return f"{mean * 100:.1f}" if unit == "%" else f"{mean:.3g}"
    if unit == "%":
        return f"{mean * 100:.1f} ± {half * 100:.1f}"
    return f"{mean:.3g} ± {half:.1g}"


def _factors(factors: Sequence[Factor], count: int = 3) -> str:
    return ", ".join(f"{f.name} {f.strength:.3g} ± {f.interval:.1g}" for f in factors[:count])


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>@title</title><style>
:root{--ink:#1b1f23;--soft:#5c6670;--line:#d8dee4;--page:#ffffff;--panel:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa5b1;--line:#30363d;--page:#0d1117;--panel:#161b22}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1080px;
 margin:2rem auto;padding:0 1rem}
section{margin:2.5rem 0}table{border-collapse:collapse;width:100%;font-size:14px;display:block;overflow-x:auto}
td,th{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left}
td.n,th+th{text-align:right;white-space:nowrap}
tr.missed td{color:#d1495b}.small{color:var(--soft);font-size:14px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(340px,1fr));gap:1rem}
svg{width:100%;height:auto;background:var(--panel);border-radius:6px;margin:.5rem 0}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
.frame{fill:none;stroke:var(--line)}.guide{stroke:var(--soft);stroke-dasharray:4 4}
.error{stroke:var(--ink);stroke-width:1.5}.node{fill:var(--soft)}
</style></head><body>
@body
</body></html>
"""
