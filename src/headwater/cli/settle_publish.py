"""`headwater settle publish`: what roots are made of, where anybody reads it: a folder, an object store, the chain."""

from __future__ import annotations

import json as json_text
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter
from rich.markup import escape

from headwater.chain.change_sets import NOTHING, ChangeSender, Way
from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import err, out, print_json
from headwater.cli.settling import open_chain
from headwater.core.errors import InvalidError, MissingError
from headwater.settlement.publication import Cost
from headwater.store.epoch_store import EpochRecord
from headwater.store.object_store import open_store

PUBLICATIONS: Final = "publications.json"
_WAYS: Final[tuple[Way, ...]] = ("calldata", "blob")
_GWEI: Final = 10**9


def publish(
    *,
    to: Annotated[str, Parameter(help="calldata, blob, a folder, or a pyarrow address such as s3://bucket/folder.")],
    quote: Annotated[bool, Parameter(negative=(), help="Show what each way costs on the chain; send nothing.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Put what every closed epoch is made of where anybody can read it. Safe to repeat.

    A folder or an object store gets the manifest and the change set of each epoch. The chain gets the change sets, in
    transactions that do nothing but carry them: as calldata, or in blobs where the chain takes them. What it costs is
    shown before anything is sent. Publish before you post: a watcher challenges a root that it cannot recompute.
    """
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        if to == "calldata":
            value = _to_chain(opened, "calldata", quote, told=not json)
        elif to == "blob":
            value = _to_chain(opened, "blob", quote, told=not json)
        else:
            value = _to_store(opened, to, quote)
        if json:
            print_json(value)
        else:
            _show(value)
    return result.status


def _to_store(home: Home, to: str, quote: bool) -> dict[str, Any]:
    rows = []
    store = None if quote else open_store(to)
    for record in home.epochs.all():
        changes = _changes(home, record)
        if store is not None:
            store.write(f"epochs/{record.epoch}.json", record.manifest)
            if changes is not None:
                store.write(f"epochs/{record.epoch}.changes", changes)
        rows.append(_row(record, changes) | {"manifest_bytes": len(record.manifest)})
    return {"to": to, "epochs": rows}


def _to_chain(home: Home, way: Way, quote: bool, *, told: bool) -> dict[str, Any]:
    with open_chain(home) as (chain, _):
        sender, sent = ChangeSender(chain), _Publications(home.path / PUBLICATIONS, chain.manifest.payout)
        rows, totals, missing = [], dict.fromkeys(_WAYS, 0), []
        for record in home.epochs.all():
            changes = _changes(home, record)
            if changes is None:
                raise MissingError(
                    f"epoch {record.epoch} was closed before change sets were kept",
                    code="changes_missing",
                    fix="publish manifests to a folder or an object store",
                )
            row: dict[str, Any] = _row(record, changes) | {"transactions": list(sent.of(record, changes))}
            if not row["transactions"]:
                costs = sender.costs(changes)
                row["fees"] = {name: _cost(one) for name, one in costs.items()}
                for name, one in costs.items():
                    totals[name] += one.total_wei
                missing.append((record, changes, row))
            rows.append(row)
        takes_blobs = not missing or "blob" in missing[0][2]["fees"]
        if not takes_blobs:
            totals.pop("blob")
        if missing and told:
            prices = ", ".join(f"{name} {_ether(wei)} ether" for name, wei in totals.items())
            err.print(
                f"{len(missing)} epochs to publish: {prices}" + ("" if takes_blobs else "; no blobs on this chain")
            )
        previous = NOTHING if not rows else _before(rows)
        for record, changes, row in () if quote else missing:
            row["transactions"] = list(sender.send(record.epoch, changes, way, previous))
            previous = bytes.fromhex(row["transactions"][-1][2:])
            sent.keep(record, changes, row["transactions"])
        return {
            "to": way,
            "address": sender.address,
            "sent": 0 if quote else len(missing),
            "total_fee_wei": {name: str(wei) for name, wei in totals.items()},
            "epochs": rows,
        }


def _before(rows: list[dict[str, Any]]) -> bytes:
    """The last transaction of the epochs that stand before the first one that is missing."""
    last = NOTHING
    for row in rows:
        if not row["transactions"]:
            return last
        last = bytes.fromhex(row["transactions"][-1][2:])
    return last


class _Publications:
    """What a home has put on a chain, so that it is neither sent twice nor searched for."""

    def __init__(self, path: Path, payout: str) -> None:
        self._path, self._payout = path, payout
        self._kept: dict[str, Any] = {}
        if path.is_file():
            try:
                self._kept = json_text.loads(path.read_text("utf-8"))
                self._kept.get(payout, {}).items()
            except (ValueError, AttributeError):
                raise InvalidError(
                    f"{path.name} is damaged",
                    code="publications_damaged",
                    fix="remove it; what is sent again costs twice",
                ) from None

    def of(self, record: EpochRecord, changes: bytes) -> tuple[str, ...]:
        """The transactions that carry the change set of an epoch; none when it was not sent."""
        row = self._kept.get(self._payout, {}).get(str(record.epoch))
        return tuple(row["transactions"]) if row and row["bytes"] == len(changes) else ()

    def keep(self, record: EpochRecord, changes: bytes, transactions: list[str]) -> None:
        """Note what was sent, whole or not at all."""
        rows = self._kept.setdefault(self._payout, {})
        rows[str(record.epoch)] = {"bytes": len(changes), "transactions": transactions}
        draft = self._path.with_suffix(".partial")
        draft.write_text(json_text.dumps(self._kept, indent=1, sort_keys=True) + "\n", "utf-8")
        draft.replace(self._path)


def _changes(home: Home, record: EpochRecord) -> bytes | None:
    try:
        return home.epochs.changes(record.epoch)
    except MissingError:  # closed before change sets were kept; the manifest says as much
        return None


def _row(record: EpochRecord, changes: bytes | None) -> dict[str, Any]:
    return {
        "epoch": record.epoch,
        "data_hash": "0x" + record.data_hash.hex(),
        "changes_bytes": len(changes or b""),
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        "transactions": cost.transactions,
        "bytes": cost.data_bytes,
        "gas": cost.gas,
        "blobs": cost.blobs,
        "l2_wei": str(cost.fee.l2_wei),
        "l1_wei": str(cost.fee.l1_wei),
        "operator_wei": str(cost.fee.operator_wei),
        "blob_wei": str(cost.blob_wei),
        "total_wei": str(cost.total_wei),
    }


def _ether(wei: int) -> str:
    return f"{Decimal(wei) / 10**18:.9f}"


def _show(value: dict[str, Any]) -> None:
    for row in value["epochs"]:
        manifest = f"manifest {row['manifest_bytes']} bytes, " if "manifest_bytes" in row else ""
        text = f"epoch {row['epoch']}: {manifest}changes {row['changes_bytes']} bytes, data hash {row['data_hash']}"
        out.print(escape(text), soft_wrap=True)
        for name, fee in row.get("fees", {}).items():
            what = f"{fee['blobs']} blobs" if fee["blobs"] else f"{fee['bytes']} bytes"
            total = Decimal(fee["total_wei"]) / _GWEI
            out.print(f"  {name}: {fee['transactions']} transactions, {what}, {fee['gas']} gas, {total:f} gwei")
        for one in row.get("transactions", ()):
            out.print(f"  in {one}", soft_wrap=True)
    if not value["epochs"]:
        out.print("no epoch has been closed")
