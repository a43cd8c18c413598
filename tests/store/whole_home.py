"""A home with the tables of every store and something in them, and what two databases hold, to be compared."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import headwater.store
from headwater.core.canonical import digest
from headwater.core.ids import call_id
from headwater.ledger import deposit, payouts
from headwater.store.call_store import CallStore
from headwater.store.database import Database, Sql
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger


def all_steps() -> dict[str, tuple[str, ...]]:
    """What every store calls its steps, and them."""
    steps = {}
    for found in pkgutil.iter_modules(headwater.store.__path__):
        module = importlib.import_module(f"headwater.store.{found.name}")
        for name, where in re.findall(r"""\.migrate\("(\w+)", (\w+)\)""", inspect.getsource(module)):
            if name != "readings":  # derived, and kept in a file of their own
                steps[name] = getattr(module, where)
    return steps


def with_every_table(db: Sql) -> Sql:
    """A database with the tables of every store; first those that others refer to."""
    steps = all_steps()
    for name in ("registry", "calls", *steps):
        if name in steps:
            db.migrate(name, steps.pop(name))
    return db


def fill(folder: Path) -> None:
    """Make a home's file with the tables of every store, calls that were paid and a call at work."""
    with with_every_table(Database(folder / "headwater.db")) as db:
        ledger, keys = Ledger(db), KeyStore(db)
        calls = CallStore(db, ledger, keys, run_id="before")
        _, key = keys.create("Ångström \\ \\N %", bytes(range(32)), 5)
        ledger.post([deposit(key.account, 1_000, asset="USD", cause="d")], key="d", at_ns=1)
        for number in range(40):
            cid = call_id(number.to_bytes(16, "big"))
            calls.begin(call_id=cid, key_id=key.key_id, idempotency_key=f"k{number}", request_digest=digest(b"r"),
                        model="m", ceiling_units=20, asset="USD", at_ns=number)  # fmt: skip
            if number < 39:
                calls.answered(cid, answer=b"\x00\\x41\n", evidence=bytes(range(256)), price_units=10, at_ns=number)
                receipt = f"{number:064x}"
                paid = payouts([("commons", 10)], asset="USD", receipt_id=receipt)
                calls.attributed(cid, receipt, paid, at_ns=number)
        calls.close()


def sound(db: Sql) -> tuple:
    """What does not hold in a home's books."""
    ledger = Ledger(db)
    return CallStore(db, ledger, KeyStore(db)).check()


def content(db: Sql) -> dict[str, list[str]]:
    """Every row of every table of a home's database, as text and in no order; what is a schema's own is left out."""
    if hasattr(db, "schema"):
        names = db.query("SELECT tablename FROM pg_tables WHERE schemaname = ?", (db.schema,))
    else:
        names = db.query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
    rows = {name: db.query(f'SELECT * FROM "{name}"') for (name,) in names if name != "home_marks"}
    rows["migrations"] = [row for row in rows["migrations"] if row[0] not in ("home", "postgres")]
    return {name: sorted(map(repr, found)) for name, found in rows.items()}
