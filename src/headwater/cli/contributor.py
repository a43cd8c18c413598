"""`headwater contributor …`: who can own contributions, and enrolling somebody whose money waits."""

from __future__ import annotations

import time

from cyclopts import App
from rich.markup import escape
from rich.table import Column, Table

from headwater import ledger
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.cli.receipt_view import state_of
from headwater.core.ids import AccountId, ContributorId
from headwater.core.money import format_units
from headwater.registry import account_for

app = App(name="contributor", help="Who can own contributions, and whose money waits.")


@app.command(name="list")
def list_(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """Everybody who has earned something or has enrolled."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        asset = opened.policy.currency
        rows = [(c, opened.ledger.balance(account_for(c), asset).balance_units) for c in opened.registry.contributors()]
        rows = sorted((row for row in rows if row[1] or row[0].enrolled), key=lambda row: -row[1])
        if json:
            print_json(
                [{"id": c.id, "name": c.name, "enrolled": c.enrolled, "due_units": str(units)} for c, units in rows]
            )
        else:
            right = Column(f"due {asset}", justify="right")
            table = Table("name", right, "state", Column("contributor", no_wrap=True), box=None)
            for one, units in rows:
                table.add_row(escape(one.name), format_units(units), state_of(one), one.id)
            out.print(table if rows else "nobody has earned anything yet")
            if rows:
                out.print(
                    "[dim]in escrow: not enrolled, the money waits; simulated: the same, for names of the demo[/]"
                )
    return result.status


@app.command
def enroll(contributor: str, address: str, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Give a contributor a payout address and release what waits in escrow under its name.

    Parameters
    ----------
    contributor
        Its id, `ctr_…`. Who runs this vouches that the address is the contributor's.
    address
        EVM address, 0x….
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        units = release_escrow(opened, ContributorId(contributor), address)
        if json:
            print_json({"contributor": contributor, "released_units": str(units)})
        else:
            out.print(f"enrolled; {format_units(units)} {opened.policy.currency} left escrow for its account")
    return result.status


def release_escrow(home: Home, contributor: ContributorId, address: str) -> int:
    """Enrol a contributor and move its escrow to its own account, in one commit; gives nano units moved."""
    with home.db.transaction():
        home.registry.enroll(contributor, address)
        escrow = AccountId(f"escrow:{contributor}")
        asset = home.policy.currency
        waiting = home.ledger.balance(escrow, asset).balance_units
        if waiting:
            draft = ledger.enroll(contributor, waiting, asset=asset, cause=f"enroll:{contributor}")
            home.ledger.post([draft], key=f"enroll:{contributor}:{time.time_ns()}", at_ns=time.time_ns())
    return waiting
