"""`headwater home …`: where a home's records are, and moving them between its file and PostgreSQL servers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

from cyclopts import App, Parameter
from rich.progress import TaskID

from headwater.cli.home import home_database
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json, progress
from headwater.core.errors import Problem
from headwater.store.call_store import CallStore
from headwater.store.database import Sql
from headwater.store.database_address import parse_address
from headwater.store.home_database import FILE
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.moving import move_home
from headwater.store.receipt_log import ReceiptLog

app = App(name="home", help="Where a home's records are: a file in its folder, or PostgreSQL.")


@app.command
def show(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """Where the records are, and whether they are the ones that belong to the folder."""
    with outcome(json) as result:
        found = settings(home)
        with home_database(found) as database:
            tables = database.query("SELECT module, count(*) FROM migrations GROUP BY module ORDER BY module")
        place = found.shown("database") or str(found.home / FILE)
        if json:
            print_json({"home": str(found.home), "database": place, "steps": dict(tables)})
        else:
            out.print(f"{found.home}: records of {len(tables)} modules in {place}", markup=False, soft_wrap=True)
    return result.status


@app.command
def move(
    *,
    to: Annotated[
        str, Parameter(help="file, or a postgresql:// address; ?schema= names another schema than headwater.")
    ],
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Move the records to PostgreSQL, back to the home's file, or elsewhere: compared, checked, and only then used.

    Nothing may serve the home meanwhile. Where they are now is what the folder and the setting `database` say. What
    they were read from is kept: a file as headwater.moved.db, a schema as headwater_moved. Whatever ends a move on its
    way, the home is as it was; the same command goes on.
    """
    with outcome(json) as result:
        address, found = None if to == "file" else parse_address(to), settings(home)
        folder = found.home
        with progress(quiet=json) as bars:
            tasks: dict[str, TaskID] = {}

            def advanced(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(f"rows {what}", total=total)
                bars.update(tasks[what], completed=done)

            # A server that is at work has the log; while we have it, none can begin.
            log = folder / "receipts.log"
            with ReceiptLog.open(log) if log.exists() else nullcontext():
                moved = move_home(folder, address, setting=found.database, check=_unsound, progress=advanced)
        if json:
            rows = {"tables": moved.tables, "rows": moved.rows}
            print_json({"database": moved.place, **rows, "before": moved.before})
        else:
            wanted = "remove the setting `database`" if address is None else "set `database` to that address"
            out.print(
                f"{moved.rows} rows of {moved.tables} tables are in {moved.place}; every one was compared, and"
                f" everything adds up\n{wanted} (HEADWATER_DATABASE or headwater.toml); {moved.before} is what was"
                f" before",
                markup=False,
                soft_wrap=True,
            )
    return result.status


def _unsound(database: Sql) -> tuple[Problem, ...]:
    ledger = Ledger(database)
    return database.integrity() + CallStore(database, ledger, KeyStore(database)).check()
