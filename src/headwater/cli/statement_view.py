"""Statements as they are shown: tables for people, plain text for letters, CSV for spreadsheets, JSON for programs."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.output import out
from headwater.core.instants import format_instant
from headwater.core.money import format_units
from headwater.ledger import Line, Statement
from headwater.ledger.earnings import Earnings

Form = Literal["table", "text", "csv", "json"]

FIELDS = (
    "account",
    "asset",
    "at",
    "transfer_id",
    "code",
    "state",
    "other_account",
    "amount_units",
    "change_units",
    "balance_units",
    "cause",
)
"""Columns of a statement as CSV."""


def line_json(line: Line) -> dict[str, str]:
    """One line, amounts in nano units as decimal strings."""
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


def statement_json(page: Statement) -> dict[str, Any]:
    """One account's statement."""
    return {
        "account": page.account,
        "asset": page.asset,
        "opening_units": str(page.opening_units),
        "lines": [line_json(line) for line in page.lines],
        "closing_units": str(page.closing_units),
        "more": page.more,
    }


def print_csv(pages: Iterable[Statement]) -> None:
    """All lines of all pages under one heading."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(FIELDS)
    for page in pages:
        for line in page.lines:
            writer.writerow([page.account, page.asset, *line_json(line).values()])


def print_text(pages: Iterable[Statement]) -> None:
    """Plain text without colours or frames, 100 columns or fewer unless a name is longer."""
    for page in pages:
        _say(f"{page.account}, {page.asset}", f"opening {format_units(page.opening_units)}")
        for line in page.lines:
            moved = format_units(line.change_units) if line.state == "posted" else f"({line.state})"
            at = format_instant(line.at_ns)[:19] + "Z"
            _say(f"{at}  {line.code.name.lower():<10} {moved:>20} {format_units(line.balance_units):>20}  {line.cause}")
        _say(f"closing {format_units(page.closing_units)}" + (", more lines follow" if page.more else ""), "")


def print_tables(pages: Sequence[Statement], account: str) -> None:
    """For a terminal."""
    if not pages:
        out.print(f"{escape(account)}: nothing was booked yet")
    for page in pages:
        title = f"{page.account}, {page.asset}: opening {format_units(page.opening_units)}"
        out.print(escape(title), soft_wrap=True)
        texts = (
            Column("with", overflow="fold"),
            *(Column(name, justify="right", no_wrap=True) for name in ("change", "balance")),
            Column("cause", overflow="fold"),
        )
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


def earnings_json(one: Earnings) -> dict[str, Any]:
    """A contributor's statement, amounts in nano units as decimal strings."""
    amounts = {
        name: str(getattr(one, name))
        for name in (
            "opening_units",
            "earned_units",
            "corrected_units",
            "claimed_units",
            "closing_units",
            "escrow_units",
            "due_units",
            "claimable_units",
            "price_units",
            "fees_units",
        )
    }
    used = [
        {
            "contribution": row.contribution or None,
            "channels": list(row.channels),
            "estimator": row.estimator,
            "version": row.version,
            "grade": row.grade,
            "answers": row.answers_count,
            "earned_units": str(row.earned_units),
        }
        for row in one.used
    ]
    return {"contributor": one.contributor, "asset": one.asset, "answers": one.answers_count, **amounts, "used": used}


def print_earnings_csv(several: Iterable[Earnings]) -> None:
    """What was used, one row each."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        ["contributor", "asset", "contribution", "channels", "estimator", "version", "grade", "answers", "earned_units"]
    )
    for one in several:
        for row in one.used:
            writer.writerow(
                [
                    one.contributor,
                    one.asset,
                    row.contribution,
                    " ".join(row.channels),
                    row.estimator,
                    row.version,
                    row.grade,
                    row.answers_count,
                    row.earned_units,
                ]
            )


def print_earnings(several: Sequence[Earnings], contributor: str) -> None:
    """In plain words."""
    if not several:
        _say(f"{contributor}: nothing was booked yet")
    for one in several:
        money = {
            name: format_units(int(value)) for name, value in earnings_json(one).items() if name.endswith("_units")
        }
        _say(
            f"{one.contributor}, {one.asset}",
            f"opening    {money['opening_units']:>20}",
            f"earned     {money['earned_units']:>20}  in {one.answers_count} answers",
            f"corrected  {money['corrected_units']:>20}",
            f"claimed    {money['claimed_units']:>20}  paid on chain",
            f"closing    {money['closing_units']:>20}",
            f"  escrow   {money['escrow_units']:>20}  waits until its owner enrols",
            f"  due      {money['due_units']:>20}  waits for the next root",
            f"  claimable{money['claimable_units']:>20}  in a posted root",
            f"Callers paid {money['price_units']} for those answers; the operator's lines took {money['fees_units']}.",
        )
        for row in one.used:
            name, how = (
                row.contribution or "(no contribution named)",
                f"{row.estimator} {row.version}, grade {row.grade}",
            )
            where = f" ({', '.join(row.channels)})" if row.channels else ""
            _say(f"  {name}{where}: {format_units(row.earned_units)} in {row.answers_count} answers, by {how}")
        _say("Every part is an estimate by the method named; the receipts say how sure it is and what no one supplied.")


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
