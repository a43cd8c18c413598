"""`headwater settle …`: whom to push at which gas price, publish what roots are made of, watch roots."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.chain import Chain
from headwater.chain.oracle import read_fees
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.cli.settling import open_chain, settlement, tokens
from headwater.core.errors import InvalidError, MissingError
from headwater.core.instants import SECOND_NS
from headwater.settlement.claim import plan_pushes
from headwater.settlement.fees import FeeParameters
from headwater.settlement.planning import Action, Due, Plan, plan, sweep
from headwater.settlement.tree import PayoutTree
from headwater.store.epoch_store import EpochRecord

app = App(name="settle", help="Plan settlement at a gas price, publish it, and watch what is posted.")
app.command("headwater.cli.settle_publish:publish", name="publish")
app.command("headwater.cli.watch:watch", name="watch")

GWEI: Final = 10**9
SWEEP_GWEI: Final = ("0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1", "3", "10")
DAY_NS: Final = 86_400 * SECOND_NS
_BAR: Final = 40
_ACTIONS: Final[tuple[Action, ...]] = ("push", "claim", "wait")
_COLOURS: Final = {"push": "#2f7d5b", "claim": "#d9a441", "wait": "#b8b8b8"}


@app.command(name="plan")
def plan_settlement(
    number: int | None = None,
    /,
    *,
    gas_price: Annotated[str | None, Parameter(help="L2 gas price in gwei; the chain's by default.")] = None,
    ether: Annotated[str, Parameter(help="What an ether is worth, in tokens.")] = "3000",
    svg: Annotated[Path | None, Parameter(help="Write the plot over gas prices to this file.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Push, claim or wait, payee by payee: nothing is sent. Fees stay within one percent of the money moved.

    Parameters
    ----------
    number
        The epoch; the newest by default.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        record = _record(opened, number)
        tree = settlement(opened, chain).tree(record.epoch)
        dues = _dues(opened, chain, record, tree)
        prices = _prices(chain, gas_price)
        ether_units = _units(ether, "ether", 10**6)
        posted = chain.root_at(record.epoch) is not None

        def ranges(indices: Any) -> Any:
            return plan_pushes(tree, indices)

        now = plan(dues, prices, ether_units=ether_units, ranges=ranges, posted=posted)
        steps = [_units(step, "gas price", GWEI) for step in SWEEP_GWEI]
        plans = sweep(dues, prices, steps, ether_units=ether_units, ranges=ranges, posted=posted)
        if svg is not None:
            svg.write_text(plot(plans), "utf-8")
        if json:
            print_json(_as_json(record.epoch, now, plans, ether_units, prices))
        else:
            _show(record.epoch, now, plans, ether_units, prices)
            if svg is not None:
                out.print(f"plot written to {escape(str(svg))}")
    return result.status


def plot(plans: tuple[Plan, ...]) -> str:
    """The shares of pushed, claiming and waiting payees over gas prices, as an SVG document."""
    step, high, left, top = 56, 220, 52, 34
    width = left + step * len(plans) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{high + 90}" font-family="sans-serif" '
        'font-size="11">',
        f'<text x="{left}" y="18" font-size="13">Payees by what a gas price does to them</text>',
    ]
    for percent in (0, 50, 100):
        at = top + high - high * percent // 100
        parts.append(f'<text x="{left - 8}" y="{at + 4}" text-anchor="end">{percent} %</text>')
    for place, one in enumerate(plans):
        x, y, all_ = left + place * step, float(top + high), max(1, len(one.decisions))
        for action in _ACTIONS:
            tall = high * one.count(action) / all_
            y -= tall
            parts.append(
                f'<rect x="{x}" y="{y:.1f}" width="{step - 8}" height="{tall:.1f}" fill="{_COLOURS[action]}">'
                f"<title>{action}: {one.count(action)} payees, {tokens(one.units(action))} tokens</title></rect>"
            )
        parts.append(f'<text x="{x + (step - 8) / 2}" y="{top + high + 16}" text-anchor="middle">{_gwei(one)}</text>')
    parts.append(f'<text x="{left}" y="{top + high + 34}">gas price, gwei</text>')
    for place, action in enumerate(_ACTIONS):
        x = left + place * 90
        parts.append(f'<rect x="{x}" y="{top + high + 42}" width="10" height="10" fill="{_COLOURS[action]}"/>')
        parts.append(f'<text x="{x + 15}" y="{top + high + 51}">{action}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _record(home: Home, number: int | None) -> EpochRecord:
    if number is not None:
        return home.epochs.get(number)
    last = home.epochs.last()
    if last is None:
        raise MissingError("no epoch has been closed", code="epoch_missing", fix="run headwater epoch close")
    return last


def _dues(home: Home, chain: Chain, record: EpochRecord, tree: PayoutTree) -> list[Due]:
    """What every payee of an epoch is still owed, and what it earned in a day since the first epoch."""
    first = home.epochs.all()[0]
    days = max(1, (record.closed_at_ns - first.closed_at_ns) // DAY_NS)
    accounts = {payee.index: payee.account for payee in home.epochs.payees()}
    dues = []
    on_chain = chain.paid_many(leaf.index for leaf in tree.leaves)
    for leaf in tree.leaves:
        paid = on_chain[leaf.index]
        if leaf.amount > paid:
            account = accounts[leaf.index]
            dues.append(Due(leaf.index, account, leaf.amount - paid, paid > 0, leaf.amount // days))
    return dues


def _prices(chain: Chain, gas_price: str | None) -> FeeParameters:
    prices = read_fees(chain.sender)
    if gas_price is None:
        return prices
    return replace(prices, base_fee_wei=_units(gas_price, "gas price", GWEI), tip_wei=0)


def _units(text: str, where: str, unit: int) -> int:
    try:
        value = int(Decimal(text) * unit)
    except (InvalidOperation, ValueError, OverflowError):
        value = 0
    if value <= 0:
        raise InvalidError(f"{where} is {text!r}", code="price_invalid", fix="give a number above 0, such as 0.01")
    return value


def _gwei(one: Plan) -> str:
    return f"{Decimal(one.gas_price_wei) / GWEI:f}".rstrip("0").rstrip(".") or "0"


def _as_json(epoch: int, now: Plan, plans: tuple[Plan, ...], ether_units: int, prices: FeeParameters) -> Any:
    return {
        "epoch": epoch,
        "gas_price_wei": str(now.gas_price_wei),
        "data_fee": prices.fork.name.lower(),
        "ether_token_units": str(ether_units),
        "post": now.post,
        "fees_multiple": now.fees_multiple,
        "moved_token_units": str(now.moved_units),
        "push_fee_wei": str(now.push_fee_wei),
        "post_fee_wei": str(now.post_fee_wei),
        "fee_share_ppb": now.share_ppb,
        "payees": [
            {
                "index": one.due.index,
                "account": one.due.account,
                "due_token_units": str(one.due.units),
                "action": one.action,
                "fee_wei": str(one.fee_wei),
                "threshold_token_units": str(one.threshold_units),
                "days": one.days,
            }
            for one in now.decisions
        ],
        "sweep": [
            {"gas_price_wei": str(one.gas_price_wei), "fee_share_ppb": one.share_ppb}
            | {action: one.count(action) for action in _ACTIONS}
            for one in plans
        ],
    }


def _show(epoch: int, now: Plan, plans: tuple[Plan, ...], ether_units: int, prices: FeeParameters) -> None:
    out.print(
        f"[bold]epoch {epoch}[/] at {_gwei(now)} gwei, data fee {prices.fork.name.lower()}, "
        f"an ether at {tokens(ether_units)} tokens"
    )
    table = Table(
        "account",
        Column("due", justify="right"),
        "",
        Column("pushed from", justify="right"),
        Column("days until", justify="right"),
        box=None,
    )
    for one in sorted(now.decisions, key=lambda one: -one.due.units)[:40]:
        days = "never" if one.days is None else "" if one.action == "push" else str(one.days)
        table.add_row(escape(one.due.account), tokens(one.due.units), one.action, tokens(one.threshold_units), days)
    out.print(table if now.decisions else "nothing is due")
    if len(now.decisions) > 40:
        out.print(f"[dim]and {len(now.decisions) - 40} more; --json lists all[/]")
    root = "is on the chain" if not now.post_fee_wei else "worth posting now" if now.post else "not worth posting yet"
    out.print(f"root: {root}; {tokens(now.moved_units)} tokens pushed, fees {now.share_ppb / 10**7:.3f} % of that")
    out.print("\ngas price, gwei   [green]push[/] [yellow]claim[/] [dim]wait[/]")
    for at in plans:
        all_ = max(1, len(at.decisions))
        ends = [round(_BAR * sum(at.count(a) for a in _ACTIONS[: i + 1]) / all_) for i in range(3)]
        bar = f"[green]{'█' * ends[0]}[/][yellow]{'▓' * (ends[1] - ends[0])}[/][dim]{'░' * (ends[2] - ends[1])}[/]"
        counts = " ".join(str(at.count(action)) for action in _ACTIONS)
        out.print(f"{_gwei(at):>8} {bar} {counts}")
