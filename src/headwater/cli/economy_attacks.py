"""`headwater economy attacks`: what each attack returns per unit spent, and what guards cost newcomers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from rich.table import Column, Table

from headwater.cli.options import JsonOption, outcome
from headwater.cli.output import out, print_json
from headwater.core.money import NANO
from headwater.economy.abuse import DEFAULT_GUARD, attack_rows, collusions, grid


def attacks(
    *,
    over_grid: Annotated[bool, Parameter(name="--grid", negative=(), help="Every guard of the grid as well.")] = False,
    seed: Annotated[int, Parameter(help="Of the simulated people.")] = 1,
    json: JsonOption = False,
) -> int:
    """What each attack returns per unit spent: 0 is break-even, -1 loses all. Status 1 when one pays all the same."""
    with outcome(json) as result:
        rows, panels = attack_rows(seed=seed), tuple(collusions())
        points = grid(seed) if over_grid else ()
        result.status = int(any(row.guarded >= 0 for row in rows))
        if json:
            print_json(
                {
                    "guard": asdict(DEFAULT_GUARD),
                    "attacks": [asdict(row) for row in rows],
                    "panels": [asdict(one) for one in panels],
                    "grid": [asdict(point) for point in points],
                }
            )
            return result.status
        right = {"justify": "right"}
        table = Table("attack", *(Column(n, **right) for n in ("earns $", "spends $", "no guard", "guarded")), box=None)  # type: ignore[arg-type]
        for row in rows:
            amounts = (f"{row.income_units / NANO:.2f}", f"{row.spent_units / NANO:.2f}")
            table.add_row(row.attack, *amounts, f"{row.unguarded:+.2f}", f"{row.guarded:+.2f}")
        out.print(table)
        for one in panels:
            out.print(
                f"{one.colluders} of {one.pool} reviewers collude: hold {one.wins:.1%} of first panels, "
                f"{one.wins_twice:.1%} of both; return {one.returned:+.2f}"
            )
        for point in points:
            guard = point.guard
            out.print(
                f"{guard.probation_days} days, stake {guard.stake_units / NANO:.0f}, found {guard.found_day:.0%} a day,"
                f" "
                f"wrongly {guard.false_day:.2%}: newcomers lose {point.newcomer_loss:.1%}, "
                f"best attack {point.worst_return:+.2f} ({point.worst_attack})"
            )
    return result.status
