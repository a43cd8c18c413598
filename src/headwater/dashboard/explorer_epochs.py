"""The explorer's records of money: receipts by their place in the log, closed epochs with their roots, transactions."""

# Annotations stay live here: FastAPI resolves them.

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from headwater.core.errors import HeadwaterError
from headwater.core.instants import format_instant
from headwater.dashboard.pages import Pages
from headwater.dashboard.receipts import may_see
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.receipts import Receipt
from headwater.settlement.epoch import read_manifest
from headwater.store.epoch_store import EpochRecord

PAGE: Final = 50


def epoch_routes(router: APIRouter, site: Site, pages: Pages) -> None:
    """Add ``/receipts``, ``/epochs`` and ``/transactions``."""
    log = site.flow.parts.log

    @router.get("/receipts", response_class=Response)
    def receipts(request: Request, before: int = 0) -> Response:
        session, size = pages.session(request), len(log)
        newest = min(before, size) if before > 0 else size
        found = []
        for index in range(newest - 1, max(-1, newest - 1 - PAGE), -1):
            logged = log.at(index)
            row: dict[str, Any] = {"log_index": index, "id": logged.entry.id, "yours": None}
            if session is not None:
                receipt = Receipt.from_bytes(logged.raw)
                if may_see(session, receipt):
                    row["yours"] = {
                        "issued_at": format_instant(receipt.issued_at_ns),
                        "issued_at_ns": receipt.issued_at_ns,
                        "model": receipt.model.name,
                        "price_units": receipt.price,
                        "grade": receipt.attribution.grade,
                    }
            found.append(row)
        data = {
            "size": size,
            "root": log.root().hex(),
            "receipts": found,
            "older": found[-1]["log_index"] if found and found[-1]["log_index"] > 0 else None,
            "at_start": newest == size,
        }
        return pages.show(request, "explorer/receipts.html", say("explorer.receipts"), data)

    @router.get("/epochs", response_class=Response)
    def epochs(request: Request, before: int = 0) -> Response:
        last = site.epochs.last()
        newest = 0 if last is None else last.epoch
        top = min(before - 1, newest) if before > 0 else newest
        found = [_epoch(site.epochs.get(number)) for number in range(top, max(0, top - PAGE), -1)]
        data = {
            "epochs": found,
            "older": found[-1]["epoch"] if found and found[-1]["epoch"] > 1 else None,
            "at_start": top == newest,
        }
        return pages.show(request, "explorer/epochs.html", say("explorer.epochs"), data)

    @router.get("/epochs/{number}", response_class=Response)
    def epoch(request: Request, number: int) -> Response:
        record = site.epochs.get(number)
        manifest = read_manifest(record.manifest)
        data = _epoch(record) | {
            "manifest_digest": record.manifest_digest,
            "payees": [
                {"index": row["index"], "address": row["address"], "token_units": row["cumulative_token_units"]}
                for row in manifest["payees"][:PAGE]
            ],
            "payees_count": len(manifest["payees"]),
            "held_count": sum(1 for row in manifest["totals"] if row["held"]),
            "policies": manifest["policy_digests"],
            "previous": manifest["previous"],
            "chain": _chain(site, record),
        }
        return pages.show(request, "explorer/epoch.html", say("explorer.epoch", number=number), data)

    @router.get("/epochs/{number}/manifest", response_class=Response)
    def manifest(number: int) -> Response:
        return Response(site.epochs.get(number).manifest, media_type="application/json")

    @router.get("/transactions", response_class=Response)
    def transactions(request: Request) -> Response:
        rows = site.db.query(
            "SELECT epoch, transaction_hash, closed_at_ns FROM epochs WHERE transaction_hash IS NOT NULL"
            " ORDER BY epoch DESC LIMIT ?",
            (PAGE,),
        )
        found = [{"epoch": number, "hash": hash, "closed_at_ns": at_ns} for number, hash, at_ns in rows]
        return pages.show(request, "explorer/transactions.html", say("explorer.transactions"), {"transactions": found})


def _epoch(record: EpochRecord) -> dict[str, Any]:
    manifest = read_manifest(record.manifest)
    return {
        "epoch": record.epoch,
        "closed_at_ns": record.closed_at_ns,
        "log_from": manifest["log_from"],
        "log_size": record.log_size,
        "receipts": record.log_size - manifest["log_from"],
        "log_root": manifest["log_root"],
        "tree_root": manifest["tree_root"],
        "data_hash": record.data_hash.hex(),
        "paid_units": int(manifest["paid_units"]),
        "total_units": int(manifest["total_units"]),
        "contract": manifest["contract"],
        "chain_id": manifest["chain_id"],
        "transaction": record.transaction_hash,
    }


def _chain(site: Site, record: EpochRecord) -> dict[str, Any] | None:
    """What the chain says of an epoch; None without a chain, or while it cannot be asked."""
    if site.books is None:
        return None
    chain = site.books.chain
    try:
        root = chain.root_at(record.epoch)
        return {
            "root": None if root is None else root.hex(),
            "data_hash": chain.data_hash(record.epoch).hex(),
            "status": chain.status_of(record.epoch),
        }
    except HeadwaterError:
        return None
