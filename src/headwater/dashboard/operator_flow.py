"""Where callers' money went in a period, by layer: lines of the policy, kinds of contribution, whose account.

Leakage is money whose supplier nobody could name, as part of what was paid: the residual that went to the commons, and
what a poorer measurement left there. The take is everything that does not reach contributors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from headwater.core.money import PPB
from headwater.dashboard.charts import Series, lines
from headwater.dashboard.periods import brief, day_text
from headwater.dashboard.readings_keeper import Keeper
from headwater.dashboard.sankey import Flow, Node, Sankey, sankey
from headwater.dashboard.strings import say
from headwater.ledger import Code
from headwater.store.readings_queries import Flow as Flowed
from headwater.store.readings_queries import Inequality

POOL: Final = ("contributors", "residual", "grade_discount")
"""Lines that are no cut of the price: what is left of it for contributors."""

_KIND_TONES: Final = {
    "document": "c0",
    "prompt": "prompt",
    "feedback": "c3",
    "adapter": "adapter",
    "base_model": "base",
}
_LINE_TONES: Final = ("c1", "c6", "c4", "c7", "c5")


def overview(keeper: Keeper, first: int, last: int) -> dict[str, Any]:
    """Figures of a period, days inclusive."""
    ask = keeper.ask()
    flows, calls = ask.flows(first, last), ask.calls(first, last)
    moved = ask.moved(first, last)
    paid = calls.price_units
    take = sum(flow.units for flow in flows if flow.line not in POOL)
    leaked = sum(f.units for f in flows if f.line in POOL and f.holder == "commons")
    escrow = sum(f.units for f in flows if f.holder == "escrow")
    by_line: defaultdict[str, int] = defaultdict(int)
    for flow in flows:
        by_line[flow.line] += flow.units
    people = sum(f.units for f in flows if f.holder in ("contributor", "escrow") and f.line in POOL)
    margin = by_line.get("platform", 0)
    return {
        "first": first,
        "last": last,
        "calls": asdict(calls),
        "paid_units": paid,
        "take_units": take,
        "leaked_units": leaked,
        "escrow_units": escrow,
        "people_units": people,
        "people_ppb": _part(people, paid),
        "margin_units": margin,
        "margin_ppb": _part(margin, paid),
        "take_ppb": _part(take, paid),
        "leaked_ppb": _part(leaked, paid),
        "lines": [{"line": line, "units": units, "ppb": _part(units, paid)} for line, units in by_line.items()],
        "flows": [asdict(flow) for flow in flows],
        "moved": {code.name.lower(): units for code, units in sorted(moved.items())},
        "settled_units": moved.get(Code.PAID, 0),
        "inequality": [asdict(one) for one in ask.inequality("day", first, last)],
        "by_day": [
            {"day": day, "answers": one.answers, "price_units": one.price_units, "unsupplied": one.unsupplied}
            for day, one in ask.calls_by_day(first, last)
        ],
        "lines_by_day": [{"day": d, "line": line, "units": units} for d, line, units in ask.lines_by_day(first, last)],
    }


def diagram(flows: Sequence[dict[str, Any]], currency: str) -> Sankey:
    """The flows of a period as a Sankey: callers, lines, kinds of contribution, and whose account it ended in."""
    drawn: defaultdict[tuple[str, str], int] = defaultdict(int)
    nodes = {"callers": Node(say("operator.node_callers"), "c5"), "pool": Node(say("operator.node_pool"), "c2")}
    for number, flow in enumerate(Flowed(**row) for row in flows):
        holder = f"holder:{flow.holder}"
        nodes.setdefault(holder, Node(say(f"operator.holder_{flow.holder}"), _holder_tone(flow.holder)))
        if flow.line in POOL:
            via = f"kind:{flow.kind}" if flow.line == "contributors" else f"line:{flow.line}"
            if flow.line == "contributors":
                label = say(f"operator.kind_{flow.kind or 'none'}", default=flow.kind)
                nodes.setdefault(via, Node(label, _KIND_TONES.get(flow.kind, "c3")))
            else:
                nodes.setdefault(via, Node(say(f"operator.line_{flow.line}"), "residual"))
            drawn["callers", "pool"] += flow.units
            drawn["pool", via] += flow.units
            drawn[via, holder] += flow.units
        else:
            via = f"line:{flow.line}"
            nodes.setdefault(via, Node(flow.line, _LINE_TONES[number % len(_LINE_TONES)]))
            drawn["callers", via] += flow.units
            drawn[via, holder] += flow.units
    return sankey(
        [Flow(source, target, units) for (source, target), units in drawn.items()],
        nodes,
        title=say("operator.sankey_title"),
        money=lambda units: brief(units, currency),
    )


def take_chart(found: dict[str, Any]) -> Any:
    """Take and leakage day by day, as parts of what was paid."""
    days = [row["day"] for row in found["by_day"]]
    if not days:
        return ""
    price = {row["day"]: row["price_units"] for row in found["by_day"]}
    take: defaultdict[int, int] = defaultdict(int)
    left: defaultdict[int, int] = defaultdict(int)
    for row in found["lines_by_day"]:
        (left if row["line"] in POOL else take)[row["day"]] += row["units"] if row["line"] != "contributors" else 0
    return lines(
        [day_text(day)[5:] for day in days],
        (
            Series(say("operator.take"), tuple(100 * take[day] / max(1, price[day]) for day in days), "c1"),
            Series(say("operator.untraced"), tuple(100 * left[day] / max(1, price[day]) for day in days), "c4", True),
        ),
        title=say("operator.take_chart", first=day_text(days[0]), last=day_text(days[-1])),
        show=lambda value: f"{value:.3g} %",
    )


def inequality_chart(rows: Sequence[dict[str, Any]]) -> Any:
    """Gini, Theil and Herfindahl measures of each day's earnings."""
    found = [Inequality(**row) for row in rows]
    if not found:
        return ""
    return lines(
        [day_text(one.period)[5:] for one in found],
        (
            Series("Gini", tuple(one.gini for one in found), "c0"),
            Series("Theil", tuple(one.theil for one in found), "c1", True),
            Series("HHI", tuple(one.hhi for one in found), "c2"),
        ),
        title=say("operator.inequality_chart", last=f"{found[-1].gini:.2f}"),
        show=lambda value: f"{value:.3g}",
    )


def _holder_tone(holder: str) -> str:
    return {"contributor": "c2", "escrow": "c6", "operator": "c1"}.get(holder, "residual")


def _part(units: int, whole: int) -> int:
    return int(units * PPB // whole) if whole else 0
