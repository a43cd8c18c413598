"""The demo's closing table: what came in, which layer took what, who is owed what, and what nobody supplied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.output import out
from headwater.cli.receipt_view import account_name
from headwater.core.money import format_units
from headwater.receipts import Receipt
from headwater.splits import COMMONS
from headwater.splits.waterfall import CONTRIBUTORS, RESIDUAL
from headwater.store.registry_store import RegistryStore


@dataclass(frozen=True, slots=True)
class Closing:
    """Where the money of some receipts went, in nano units; the parts sum to `paid_in`."""

    paid_in: int
    take: tuple[tuple[str, int], ...]  # by line of the policy
    enrolled: tuple[tuple[str, int], ...]  # contributors who can be paid, by name
    escrow: tuple[tuple[str, int], ...]  # contributors whose money waits, by name, residual not included
    residual: tuple[tuple[str, int], ...]  # base model or commons
    commons: int  # of all this, what went to the commons: its supplier is unknown


def closing(receipts: Sequence[Receipt], registry: RegistryStore) -> Closing:
    """Add up the payouts of `receipts`."""
    take: defaultdict[str, int] = defaultdict(int)
    people: dict[str, defaultdict[str, int]] = {"contributor": defaultdict(int), "escrow": defaultdict(int)}
    residual: defaultdict[str, int] = defaultdict(int)
    commons = 0
    for receipt in receipts:
        for payout in receipt.payouts:
            commons += payout.amount if payout.account == COMMONS else 0
            if payout.line == CONTRIBUTORS:
                people[payout.account.split(":")[0]][account_name(payout.account, registry)] += payout.amount
            elif payout.line == RESIDUAL:
                residual[account_name(payout.account, registry)] += payout.amount
            else:
                take[payout.line] += payout.amount
    return Closing(
        sum(receipt.price for receipt in receipts),
        _sorted(take),
        _sorted(people["contributor"]),
        _sorted(people["escrow"]),
        _sorted(residual),
        commons,
    )


def print_closing(totals: Closing, currency: str, *, names_max: int = 12) -> None:
    """The table; every group sums to its head line, and the head lines to what was paid in."""
    table = Table("", Column(currency, justify="right"), Column("of what was paid", justify="right"), box=None)

    def head(words: str, units: int) -> None:
        table.add_row(f"[bold]{words}[/]", f"[bold]{format_units(units)}[/]", _percent(units, totals.paid_in))

    def rows(named: Sequence[tuple[str, int]]) -> None:
        for name, units in named[:names_max]:
            table.add_row(f"  {escape(name)}", format_units(units), "")
        if len(named) > names_max:
            rest = sum(units for _, units in named[names_max:])
            table.add_row(f"  and {len(named) - names_max} more", format_units(rest), "")

    head("paid in by callers", totals.paid_in)
    for words, group in (
        ("take, by layer", totals.take),
        ("contributors, enrolled", totals.enrolled),
        ("contributors in escrow: not enrolled, simulated", totals.escrow),
        ("residual: no registered contribution supplied it", totals.residual),
    ):
        head(words, sum(units for _, units in group))
        rows(group)
    head("leakage: supplier unknown, kept by the commons", totals.commons)
    out.print(table)


def closing_json(totals: Closing) -> dict[str, Any]:
    """The same as data; amounts are nano units as decimal strings."""
    groups = ("take", "enrolled", "escrow", "residual")
    return {
        "paid_in_units": str(totals.paid_in),
        **{group: {name: str(units) for name, units in getattr(totals, group)} for group in groups},
        "leakage_units": str(totals.commons),
    }


def _sorted(named: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(named.items(), key=lambda row: (-row[1], row[0])))


def _percent(part: int, whole: int) -> str:
    if whole == 0:
        return "-"
    hundredths = (part * 10_000 + whole // 2) // whole  # rounded half up, for reading only
    return f"{hundredths // 100}.{hundredths % 100:02d} %"
