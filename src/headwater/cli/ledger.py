"""`headwater ledger …`: what every account holds, how it came to that, and whether it all adds up.

Reads only, and may be run while a server writes. Exit status: 0 all well, 1 problems were found, 2 the
question was wrong. With `--json`, amounts are nano units as decimal strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.home import Home as OpenedHome
from headwater.cli.options import HomeOption, settings
from headwater.cli.output import out, print_error, print_json
from headwater.cli.record_checks import chain_problems, record_problems
from headwater.core.errors import HeadwaterError
from headwater.core.instants import format_instant, parse_instant
from headwater.core.money import format_units
from headwater.ledger import Balance, Line, Side, parse_account
from headwater.store.call_store import CallStore
from headwater.store.database import INT64_MAX, Database
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger

app = App(name="ledger", help="Balances, statements and the proof that everything adds up.")

AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON, amounts in nano units.")]
Asset = Annotated[str, Parameter(name="--asset", help="Currency or token.")]


@app.command
def balance(account: str | None = None, /, *, asset: Asset = "", home: HomeOption = None, json: AsJson = False) -> int:
    """What an account holds, or every account with the totals.

    Parameters
    ----------
    account
        Such as contributor:ctr_…, payer:key_…, commons or cash; every account when left out.
    """

    def show(ledger: Ledger, _: CallStore) -> int:
        if account is not None:
            parse_account(account)
        found = [b for b in ledger.balances() if account in (None, b.account) and asset in ("", b.asset)]
        totals = [t for t in ledger.totals() if asset in ("", t.asset)]
        if json:
            value = {"balances": [_balance_json(b) for b in found]}
            if account is None:
                value["totals"] = [
                    {k: str(v) if k.endswith("_units") else v for k, v in asdict(total).items()} for total in totals
                ]
            print_json(value)
            return 0
        table = Table(
            Column("account", overflow="fold"), "asset", *_right("balance", "reserved", "available"), box=None
        )
        for b in found:
            amounts = (b.balance_units, b.reserved_out_units, b.available_units)
            table.add_row(escape(b.account), escape(b.asset), *map(format_units, amounts))
        out.print(table if found else "nothing was booked yet")
        if account is None:
            for total in totals:
                have, owe = format_units(total.have_units), format_units(total.owe_units)
                sign = "=" if total.have_units == total.owe_units else "[bold red]≠[/]"
                out.print(f"{escape(total.asset)}: have {have} {sign} owe {owe}, {total.accounts_count} accounts")
        return 0

    return _with_ledger(home, json, show)


@app.command
def statement(
    account: str,
    /,
    *,
    asset: Asset = "",
    since: Annotated[str, Parameter(help="First instant, such as 2026-11-22T14:00:00Z.")] = "",
    until: Annotated[str, Parameter(help="Instant after the last.")] = "",
    limit: Annotated[int, Parameter(help="Most lines to show.")] = 100,
    skip: Annotated[int, Parameter(help="Lines to leave out at the start.")] = 0,
    home: HomeOption = None,
    json: AsJson = False,
) -> int:
    """What moved an account, oldest first, with the balance after each line.

    Parameters
    ----------
    account
        Such as contributor:ctr_…, payer:key_…, commons or cash.
    """

    def show(ledger: Ledger, _: CallStore) -> int:
        parse_account(account)
        since_ns = parse_instant(since) if since else 0
        until_ns = parse_instant(until) if until else INT64_MAX
        assets = [asset] if asset else [b.asset for b in ledger.balances() if b.account == account]
        pages = [
            ledger.statement(account, one, since_ns=since_ns, until_ns=until_ns, limit=limit, skip=skip)
            for one in assets
        ]
        if json:
            print_json(
                [
                    {
                        "account": page.account,
                        "asset": page.asset,
                        "opening_units": str(page.opening_units),
                        "lines": [_line_json(line) for line in page.lines],
                        "closing_units": str(page.closing_units),
                        "more": page.more,
                    }
                    for page in pages
                ]
            )
            return 0
        if not pages:
            out.print(f"{escape(account)}: nothing was booked yet")
        for page in pages:
            title = f"{page.account}, {page.asset}: opening {format_units(page.opening_units)}"
            out.print(escape(title), soft_wrap=True)
            texts = (Column("with", overflow="fold"), *_right("change", "balance"), Column("cause", overflow="fold"))
            table = Table(Column("at", no_wrap=True), "what", *texts, box=None)
            for line in page.lines:
                moved = format_units(line.change_units) if line.state == "posted" else f"({line.state})"
                table.add_row(
                    format_instant(line.at_ns)[:19] + "Z",  # whole seconds; --json has the rest
                    line.code.name.lower(),
                    escape(line.other_account),
                    moved,
                    format_units(line.balance_units),
                    escape(line.cause),
                )
            out.print(table)
            out.print(f"closing {format_units(page.closing_units)}" + (", more lines follow" if page.more else ""))
        return 0

    return _with_ledger(home, json, show)


@app.command
def check(
    *,
    books_only: Annotated[bool, Parameter(negative=())] = False,
    home: HomeOption = None,
    json: AsJson = False,
) -> int:
    """Add everything up again: assets, balances, reservations, charges, payouts, receipts, epochs and the chain.

    Parameters
    ----------
    books_only
        Look at the ledger and the journal of calls alone, not at receipts, epochs and chain.
    """

    def show(ledger: Ledger, calls: CallStore) -> int:
        with ledger.db.snapshot():
            problems = (*ledger.db.integrity(), *calls.check())
            codes = Counter(t.code.name.lower() for t in ledger.transfers())
            totals = ledger.totals()
        looked = "receipts, epochs and chain were not looked at"
        if not books_only:
            with OpenedHome(settings(home), create=False) as opened:
                chain, looked = chain_problems(opened)
                problems = (*problems, *record_problems(opened), *chain)
        balanced = all(total.have_units == total.owe_units for total in totals)
        if json:
            print_json(
                {
                    "sound": not problems,
                    "problems": [asdict(problem) for problem in problems],
                    "transfers": dict(sorted(codes.items())),
                    "balanced": balanced,
                    "chain": looked,
                }
            )
            return 1 if problems else 0
        for problem in problems:
            out.print(f"[bold red]problem[/] {escape(str(problem))}", soft_wrap=True)
        counted = ", ".join(f"{count} {name}" for name, count in sorted(codes.items())) or "none"
        out.print(f"transfers: {counted}")
        for total in totals:
            out.print(
                f"{escape(total.asset)}: have {format_units(total.have_units)}, owe {format_units(total.owe_units)},"
                f" sum {format_units(total.have_units - total.owe_units)}"
            )
        out.print(looked, markup=False, soft_wrap=True)
        out.print(
            f"[bold red]{len(problems)} {'problem' if len(problems) == 1 else 'problems'}[/]"
            if problems
            else "[green]everything adds up[/]"
        )
        return 1 if problems else 0

    return _with_ledger(home, json, show)


def _with_ledger(home: HomeOption, as_json: bool, show: Callable[[Ledger, CallStore], int]) -> int:
    try:
        with _opened(settings(home).home) as (ledger, calls):
            return show(ledger, calls)
    except HeadwaterError as error:
        print_error(error, as_json=as_json)
        # A damaged file is what `check` looks for; everything else here is a wrong question.
        return 1 if error.code == "database_corrupt" else 2


@contextmanager
def _opened(home: Path) -> Iterator[tuple[Ledger, CallStore]]:
    with Database(home / "headwater.db", create=False) as db:
        ledger = Ledger(db)
        yield ledger, CallStore(db, ledger, KeyStore(db))


def _right(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, justify="right", no_wrap=True) for name in names)


def _balance_json(b: Balance) -> dict[str, str]:
    return {
        "account": b.account,
        "asset": b.asset,
        "side": "debit" if parse_account(b.account).side is Side.DEBIT else "credit",
        "balance_units": str(b.balance_units),
        "reserved_out_units": str(b.reserved_out_units),
        "reserved_in_units": str(b.reserved_in_units),
        "available_units": str(b.available_units),
    }


def _line_json(line: Line) -> dict[str, str]:
    return {
        "at": format_instant(line.at_ns),
        "transfer_id": line.transfer_id,
        "code": line.code.name.lower(),
        "state": str(line.state),
        "other_account": line.other_account,
        "amount_units": str(line.amount_units),
        "change_units": str(line.change_units),
        "balance_units": str(line.balance_units),
        "cause": line.cause,
    }
