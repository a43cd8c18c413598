"""`headwater epoch …`: close windows of receipts, post their roots, push what is due, compare with the chain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape
from rich.table import Column, Table

from headwater.cli.disputing import settle_before_close
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json
from headwater.cli.settling import open_chain, settlement, tokens
from headwater.core.errors import MissingError
from headwater.core.money import format_units
from headwater.settlement.changes import unpack
from headwater.settlement.epoch import read_manifest
from headwater.store.epoch_store import EpochRecord

app = App(name="epoch", help="Close windows of receipts and settle them on the chain.")
app.command("headwater.cli.epoch_audit:audit_epoch", name="audit")

Maturity = Annotated[
    int | None, Parameter(name="--maturity-s", help="Seconds a receipt may be disputed before it settles.")
]


@app.command
def close(*, maturity_s: Maturity = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """Close the window of all receipts that have matured; nothing is sent to the chain yet.

    What is due of disputes is done first, so that what is disputed does not settle.
    """
    with outcome(json) as result:
        chosen = settings(home, maturity_s=maturity_s)
        settle_before_close(chosen)
        with Home(chosen, create=False) as opened, open_chain(opened) as (chain, _):
            _print(settlement(opened, chain).close(), json)
    return result.status


@app.command
def post(number: int | None = None, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Post the root of a closed epoch (the newest by default). Safe to repeat."""
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        posted = settlement(opened, chain).post(_number(opened, number))
        if json:
            print_json(
                {
                    "epoch": posted.epoch,
                    "root": "0x" + posted.root.hex(),
                    "total_token_units": str(posted.total),
                    "data_hash": "0x" + posted.data_hash.hex(),
                    "transaction": posted.transaction,
                    "active_at_s": posted.active_at_s,
                }
            )
        else:
            out.print(f"epoch {posted.epoch} is on the chain: root 0x{posted.root.hex()}")
            out.print(f"promises {tokens(posted.total)} tokens in all, transaction {posted.transaction}")
    return result.status


@app.command
def push(number: int | None = None, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """Pay everybody whom an active epoch owes something, in as few transactions as pay off."""
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        books = settlement(opened, chain)
        which = _number(opened, number)
        rows: list[dict[str, int]] = []
        for start, paid in books.push(which):
            rows.append({"start": start, "payees": paid.payees, "token_units": paid.amount, "gas": paid.gas_used})
        books.sync()
        if json:
            print_json({"epoch": which, "pushes": rows})
        else:
            for row in rows:
                out.print(f"paid {row['payees']} payees {tokens(row['token_units'])} tokens for {row['gas']} gas")
            if not rows:
                out.print("nothing is due")
    return result.status


@app.command
def sync(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """Book what the chain has paid, then compare ledger and chain; status 1 when they differ."""
    with outcome(json) as result, Home(settings(home), create=False) as opened, open_chain(opened) as (chain, _):
        books = settlement(opened, chain)
        booked = books.sync()
        problems = books.reconcile()
        result.status = 1 if problems else 0
        if json:
            print_json({"booked_units": str(booked), "problems": [str(problem) for problem in problems]})
        else:
            out.print(f"booked {format_units(booked)} as paid on chain")
            for problem in problems:
                out.print(f"[bold red]problem[/] {escape(str(problem))}")
            if not problems:
                out.print("[green]ledger and chain agree[/]")
    return result.status


@app.command
def show(number: int | None = None, /, *, home: HomeOption = None, json: JsonOption = False) -> int:
    """An epoch as it was published (the newest by default)."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        _print(opened.epochs.get(_number(opened, number)), json)
    return result.status


@app.command
def changes(
    number: int | None = None, /, *, to: Path | None = None, home: HomeOption = None, json: JsonOption = False
) -> int:
    """What an epoch adds to the payout tree before it (the newest by default): enough to rebuild every root.

    Parameters
    ----------
    to
        Write the packed bytes to this file, as docs/epochs.md describes them.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        packed = opened.epochs.changes(_number(opened, number))
        found = unpack(packed)
        if to is not None:
            to.write_bytes(packed)
        rises = zip(found.indices.tolist(), found.increases.tolist(), strict=True)
        if json:
            print_json(
                {
                    "epoch": found.epoch,
                    "digest": found.digest(),
                    "size_bytes": len(packed),
                    "leaves_before": found.width_before,
                    "new_addresses": ["0x" + row.tobytes().hex() for row in found.addresses],
                    "changes": [{"index": index, "token_units": str(units)} for index, units in rises],
                }
            )
        else:
            total = sum(units for _, units in rises)
            out.print(f"epoch {found.epoch}: {len(found.indices)} payees, {len(found.addresses)} of them new")
            out.print(f"{tokens(total)} tokens more, {len(packed)} bytes, digest {found.digest()}")
    return result.status


def _number(home: Home, number: int | None) -> int:
    if number is not None:
        return number
    last = home.epochs.last()
    if last is None:
        raise MissingError("no epoch has been closed", code="epoch_missing", fix="run headwater epoch close")
    return last.epoch


def _print(record: EpochRecord, as_json: bool) -> None:
    manifest: dict[str, Any] = read_manifest(record.manifest)
    if as_json:
        print_json(manifest)
        return
    window = f"receipts {manifest['log_from']}..{manifest['log_size'] - 1}"
    out.print(f"[bold]epoch {record.epoch}[/]: {window}, paid {format_units(int(manifest['paid_units']))} in all")
    out.print(f"data hash 0x{record.data_hash.hex()}  root 0x{manifest['tree_root']}")
    table = Table("account", Column("earned so far", justify="right"), "", box=None)
    for row in manifest["totals"]:
        table.add_row(
            escape(row["account"]),
            format_units(int(row["cumulative_units"])),
            "waits until its owner enrols" if row["held"] else "in the root",
        )
    out.print(table)
    if record.transaction_hash:
        out.print(f"posted by {record.transaction_hash}")
