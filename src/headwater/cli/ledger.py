"""`headwater ledger …`: what every account holds, how it came to that, and whether it all adds up.

All but `expire` only read, and all may be run while a server writes. Exit status: 0 all well, 1 problems were
found, 2 the question was wrong. With `--json`, amounts are nano units as decimal strings.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.home import Home as OpenedHome
from headwater.cli.home import home_database
from headwater.cli.options import HomeOption, settings
from headwater.cli.output import out, print_error, print_json
from headwater.cli.rails_backing import backing_json, backing_line, shares_behind
from headwater.cli.record_checks import chain_problems, record_problems
from headwater.cli.statement_view import (
    Form,
    earnings_json,
    print_csv,
    print_earnings,
    print_earnings_csv,
    print_tables,
    print_text,
    statement_json,
)
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.ids import ContributorId
from headwater.core.instants import parse_instant
from headwater.core.limits import STATEMENT_LINES_MAX
from headwater.core.money import format_units
from headwater.ledger import Balance, Side, Statement, parse_account
from headwater.ledger.earnings import accounts_of, causes, earnings
from headwater.receipts import Receipt
from headwater.settings import Settings
from headwater.store.call_store import CallStore
from headwater.store.database import INT64_MAX
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger

app = App(name="ledger", help="Balances, statements and the proof that everything adds up.")

AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON, amounts in nano units.")]
Asset = Annotated[str, Parameter(name="--asset", help="Currency or token.")]


@app.command
def balance(
    account: str | None = None,
    /,
    *,
    asset: Asset = "",
    at: Annotated[str, Parameter(help="Of one account, before this instant, such as 2026-11-22T14:00:00Z.")] = "",
    home: HomeOption = None,
    json: AsJson = False,
) -> int:
    """What an account holds, or every account with the totals.

    Parameters
    ----------
    account
        Such as contributor:ctr_…, payer:key_…, commons or cash; every account when left out.
    """

    def show(ledger: Ledger, _: CallStore) -> int:
        if account is not None:
            parse_account(account)
        if at:
            return _show_balance_at(ledger, account, asset, at, json)
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


def _show_balance_at(ledger: Ledger, account: str | None, asset: str, at: str, json: bool) -> int:
    if account is None:
        raise InvalidError("--at needs an account", code="account_invalid", fix="name one account")
    assets = [asset] if asset else [b.asset for b in ledger.balances() if b.account == account]
    found = {one: ledger.balance_at(account, one, parse_instant(at)) for one in assets}
    if json:
        rows = [
            {"account": account, "asset": one, "at": at, "balance_units": str(units)} for one, units in found.items()
        ]
        print_json({"balances": rows})
    else:
        for one, units in found.items():
            out.print(f"{escape(account)} held {format_units(units)} {escape(one)} at {at}", soft_wrap=True)
    return 0


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
    form: Annotated[Form, Parameter(name="--format", help="table, text, csv or json.")] = "table",
    home: HomeOption = None,
    json: AsJson = False,
) -> int:
    """What moved an account, oldest first; for a contributor: what was used, in how many answers, what it earned.

    Parameters
    ----------
    account
        An account such as contributor:ctr_…, payer:key_…, commons or cash; or a contributor, ctr_….
    """
    shown: Form = "json" if json else form

    def show(ledger: Ledger, _: CallStore) -> int:
        period = (parse_instant(since) if since else 0, parse_instant(until) if until else INT64_MAX)
        if account.startswith("ctr_"):
            return _show_earnings(ledger, home, ContributorId(account), asset, period, shown)
        parse_account(account)
        assets = [asset] if asset else [b.asset for b in ledger.balances() if b.account == account]
        pages = [
            ledger.statement(account, one, since_ns=period[0], until_ns=period[1], limit=limit, skip=skip)
            for one in assets
        ]
        match shown:
            case "json":
                print_json([statement_json(page) for page in pages])
            case "csv":
                print_csv(pages)
            case "text":
                print_text(pages)
            case "table":
                print_tables(pages, account)
        return 0

    return _with_ledger(home, shown == "json", show)


def _show_earnings(
    ledger: Ledger, home: HomeOption, contributor: ContributorId, asset: str, period: tuple[int, int], form: Form
) -> int:
    accounts = accounts_of(contributor)
    assets = [asset] if asset else sorted({b.asset for b in ledger.balances() if b.account in accounts})
    several = []
    with OpenedHome(settings(home), create=False) as opened, ledger.db.snapshot():
        for one in assets:
            statements = [_whole(ledger, account, one, period) for account in accounts]
            named = causes(line for page in statements for line in page.lines)
            receipts = {id: Receipt.from_bytes(opened.log.get(id).raw) for id in named}
            several.append(earnings(contributor, one, statements, receipts))
        behind = shares_behind(opened.path, opened.registry, accounts)
    if form == "json":
        # Of the three accounts one is paid out, so there is one line at most.
        holders = [backing_json(one) for one in behind.values()]
        print_json([earnings_json(one) | ({"share_holders": holders[0]} if holders else {}) for one in several])
    elif form == "csv":
        print_earnings_csv(several)
    else:
        print_earnings(several, contributor)
        for account, issued in behind.items():
            out.print(escape(backing_line(account, issued)), soft_wrap=True)
    return 0


def _whole(ledger: Ledger, account: str, asset: str, period: tuple[int, int]) -> Statement:
    """A statement with all its lines."""
    pages: list[Statement] = []
    while not pages or pages[-1].more:
        taken = sum(len(page.lines) for page in pages)
        pages.append(
            ledger.statement(
                account, asset, since_ns=period[0], until_ns=period[1], limit=STATEMENT_LINES_MAX, skip=taken
            )
        )
    lines = tuple(line for page in pages for line in page.lines)
    return Statement(pages[0].account, asset, pages[0].opening_units, lines, pages[-1].closing_units, False)


@app.command
def expire(
    *,
    at: Annotated[str, Parameter(help="As of this instant, such as 2026-11-22T14:00:00Z; now by default.")] = "",
    home: HomeOption = None,
    json: AsJson = False,
) -> int:
    """Give back the credit of reservations whose deadline has passed. Safe to repeat, also while a server writes."""

    def show(ledger: Ledger, _: CallStore) -> int:
        now = time.time_ns()
        at_ns = parse_instant(at) if at else now
        if at_ns > now:
            raise InvalidError(f"{at} is not past", code="instant_invalid", fix="a deadline passes in its own time")
        released = []
        while found := ledger.expire(at_ns=at_ns):
            released += [ledger.transfer(id) for id in found]
        if json:
            rows = [
                {"id": t.id, "payer": t.debit_account, "units": str(t.amount_units), "asset": t.asset, "cause": t.cause}
                for t in released
            ]
            print_json({"expired": rows})
        for t in () if json else released:
            line = f"{format_units(t.amount_units)} {t.asset} back to {t.debit_account}, set aside for {t.cause}"
            out.print(escape(line), soft_wrap=True)
        if not json and not released:
            out.print("no reservation is past its deadline")
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
        with _opened(settings(home)) as (ledger, calls):
            return show(ledger, calls)
    except HeadwaterError as error:
        print_error(error, as_json=as_json)
        # A damaged file is what `check` looks for; everything else here is a wrong question.
        return 1 if error.code == "database_corrupt" else 2


@contextmanager
def _opened(given: Settings) -> Iterator[tuple[Ledger, CallStore]]:
    with home_database(given) as db:
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
