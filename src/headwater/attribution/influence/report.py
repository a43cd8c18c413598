"""The report of an evaluation: one page that needs nothing else, and the same as plain values.

Bars are drawn as SVG inside the page, with the ceiling as a line and errors as whiskers. Knows nothing of models.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from headwater.attribution.influence.evaluation import Evaluation, Row, fit_for_payout
from headwater.core.errors import RefusedError

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#17212b}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{padding:.3rem .6rem;text-align:right}"
    "th:first-child,td:first-child{text-align:left}tr+tr{border-top:1px solid #d5dde4}"
    ".no{color:#a33}.yes{color:#176b4d}"
    "svg text{font:13px system-ui,sans-serif;fill:#17212b}"
)


def as_values(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """What the page shows, for programs."""
    return [asdict(e) | {"payout": {row.name: verdict(e, row.name) or "fit" for row in e.rows}} for e in evaluations]


def verdict(evaluation: Evaluation, name: str) -> str | None:
    """Why an estimator is refused for payout; none if it is fit."""
    try:
        fit_for_payout(evaluation, name)
    except RefusedError as error:
        return error.message
    return None


def page(evaluations: Sequence[Evaluation]) -> str:
    """The whole HTML page."""
    parts = [_section(evaluation) for evaluation in evaluations]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Influence, held against retraining</title><style>{_STYLE}</style>"
        "<h1>Influence, held against retraining</h1>"
        "<p>Models were trained again on random halves of the data. A score says how well an estimator foresaw, from "
        "one model trained on everything, which half gives a lower loss on each query: 1 is perfect order, 0 none. "
        "Training is noisy, so nothing can reach more than the ceiling. ± is one standard error over subsets.</p>"
        + "".join(parts)
        + "</html>"
    )


def _section(e: Evaluation) -> str:
    better = dict(e.better_than_baseline)
    rows = "".join(
        f"<tr><td>{html.escape(r.name)}<td>{r.example.value:.3f} ± {r.example.error:.3f}"
        f"<td>{r.contributor.value:.3f} ± {r.contributor.error:.3f}<td>{r.aggregate:.2f}"
        f"<td>{'' if r.mislabelled_auc is None else f'{r.mislabelled_auc:.2f}'}<td>{r.cpu_s:.1f}"
        f"<td>{better[r.name]:.0%}<td>{_verdict_cell(e, r)}"
        for r in e.rows
    )
    return (
        f"<h2>{html.escape(e.task)}</h2><p>{e.examples} examples of {e.contributors} contributors, "
        f"{e.queries} queries; "
        f"{e.subsets} halves at each level, {e.seeds} trainings of each. Ceiling {e.example_ceiling:.3f} by example, "
        f"{e.contributor_ceiling:.3f} by contributor. 90 % intervals hold {e.coverage:.0%} of measured effects.</p>"
        f"{_bars(e)}<table><tr><th>estimator<th>by example<th>by contributor<th>summed queries<th>wrong labels found"
        f"<th>CPU s<th>beats grad-dot<th>payout</tr>{rows}</table>"
    )


def _verdict_cell(e: Evaluation, row: Row) -> str:
    reason = verdict(e, row.name)
    return "<span class=yes>fit</span>" if reason is None else f"<span class=no title='{html.escape(reason)}'>no</span>"


def _bars(e: Evaluation) -> str:
    left, width, step = 120, 520, 44
    height = step * len(e.rows) + 30

    def x(value: float) -> float:
        return left + max(0.0, min(value, 1.0)) * width

    parts = []
    for place, row in enumerate(e.rows):
        top = 8 + place * step
        parts.append(f"<text x='{left - 8}' y='{top + 20}' text-anchor='end'>{html.escape(row.name)}</text>")
        for number, (measured, colour) in enumerate(((row.example, "#2f7ebc"), (row.contributor, "#3c9d6f"))):
            y = top + number * 16
            parts.append(
                f"<rect x='{left}' y='{y}' width='{x(measured.value) - left:.1f}' height='13' fill='{colour}'/>"
                f"<path d='M{x(measured.value - measured.error):.1f} {y + 6.5}"
                f"H{x(measured.value + measured.error):.1f}' stroke='#17212b'/>"
            )
    for ceiling, colour in ((e.example_ceiling, "#2f7ebc"), (e.contributor_ceiling, "#3c9d6f")):
        parts.append(f"<path d='M{x(ceiling):.1f} 0V{height - 26}' stroke='{colour}' stroke-dasharray='4 3'/>")
    parts.append(
        f"<text x='{left}' y='{height - 8}'>blue: by example · green: by contributor · dashed: ceilings</text>"
    )
    label = f"Scores of {len(e.rows)} estimators on {html.escape(e.task)}"
    return f"<svg viewBox='0 0 700 {height}' role='img' aria-label='{label}'>{''.join(parts)}</svg>"
