"""How long pages take to make with 1,000,000 receipts and 100,000 contributors in the store, server-side.

    python -m bench.dashboard [--folder DIR] [--receipts 1000000] [--people 100000] [--works 120000] [--rounds 25]

The store is built by `bench.dashboard_store` through the functions that a running gateway uses, and kept in the folder:
the next run takes it as it is. Every page is asked for over ASGI in this process, by an operator who has signed in,
without a network: what is measured is the whole of the server's work, compression included. Pages of single
things are asked for in turn over many of them, so that no page is only ever measured warm. Prints wall milliseconds,
and the median of the CPU milliseconds of all threads, which say more on a machine that others use too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bench.dashboard_store import build
from headwater.cli.home import Home
from headwater.dashboard import Site, dashboard_app
from headwater.dashboard.readings_inequality import refresh
from headwater.dashboard.sessions import COOKIE, Sessions
from headwater.gateway import create_app
from headwater.receipts import Receipt
from headwater.store.readings import Readings


def main() -> None:
    """Build the store if it is not there, and print p50 and p95 of every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "headwater-pages")
    parser.add_argument("--receipts", type=int, default=1_000_000)
    parser.add_argument("--people", type=int, default=100_000)
    parser.add_argument("--works", type=int, default=120_000)
    parser.add_argument("--rounds", type=int, default=25)
    chosen = parser.parse_args()
    home = build(chosen.folder, receipts=chosen.receipts, people=chosen.people, works=chosen.works)
    site = _site(home)
    _read(site)
    ((people,),) = home.db.query("SELECT count(*) FROM contributors")
    print(f"{len(home.log):,} receipts, {people:,} contributors, {os.cpu_count()} processors")
    app, cookie = dashboard_app(site), _signed_in(site)
    pages = _pages(home, site, random.Random(1))
    print(f"{'page':34} {'bytes':>9} {'p50 ms':>8} {'p95 ms':>8} {'CPU ms':>8}")
    slow = 0
    for name, paths in pages.items():
        took: list[float] = []
        spent: list[float] = []
        size = 0
        for turn in range(chosen.rounds):
            path = paths[turn % len(paths)]
            begun, cpu = time.perf_counter(), time.process_time()
            status, size = asyncio.run(_get(app, path, cookie))
            took.append(1_000 * (time.perf_counter() - begun))
            spent.append(1_000 * (time.process_time() - cpu))
            if status != 200:
                sys.exit(f"{path} gave {status}")
        ranked = sorted(took)
        p50, p95 = statistics.median(ranked), ranked[int(0.95 * (len(ranked) - 1))]
        slow += p50 > 100
        print(
            f"{name:34} {size:>9,} {p50:>8.1f} {p95:>8.1f} {statistics.median(spent):>8.1f}"
            f"{'   above 100' if p50 > 100 else ''}"
        )
    print(f"{len(pages) - slow} of {len(pages)} pages within 100 ms at p50")
    sys.exit(1 if slow else 0)


def _site(home: Home) -> Site:
    return Site(
        gateway=create_app(home.flow({}, None, None), home.keys),
        folder=home.path,
        settings=home.settings,
        db=home.db,
        registry=home.registry,
        ledger=home.ledger,
        keys=home.keys,
        epochs=home.epochs,
        adapters=home.adapters,
        books=None,
        policy_text=home.policy_by_digest,
        now_ns=time.time_ns,
        random_bytes=os.urandom,
    )


def _read(site: Site) -> None:
    """Bring the readings up to date, and say what that cost."""
    readings = Readings(site.folder, site.flow.parts.log, site.ledger.db)
    begun = time.process_time()
    counted = readings.catch_up()
    while refresh(readings.db):
        pass
    spent = time.process_time() - begun
    readings.close()
    if counted:
        print(f"readings: {counted:,} receipts counted in {spent:.0f} CPU-s, {counted / spent:,.0f} a CPU-s")


def _pages(home: Home, site: Site, rng: random.Random) -> dict[str, list[str]]:
    """Names and the addresses that each is measured on."""
    receipts = [Receipt.from_bytes(home.log.at(rng.randrange(len(home.log))).raw) for _ in range(40)]
    paid = [p.account.partition(":")[2] for r in receipts for p in r.payouts if ":ctr_" in p.account]
    used = [share.contribution for r in receipts for share in r.attribution.shares]
    readings = Readings(site.folder, site.flow.parts.log, site.ledger.db)
    best = readings.db.query(
        "SELECT contributor FROM earned_months JOIN people USING (person) GROUP BY 1 ORDER BY sum(units) DESC LIMIT 3"
    )
    month = readings.db.query("SELECT max(month) FROM earned_months")[0][0]
    readings.close()
    top, last = [who for (who,) in best], f"{month // 12:04d}-{month % 12 + 1:02d}"
    return {
        "/": ["/"],
        "/explore": ["/explore"],
        "/operator": ["/operator"],
        "/operator, everything": ["/operator?days=all"],
        "/operator/policy": ["/operator/policy"],
        "/operator/keys": ["/operator/keys"],
        "/operator/settlement": ["/operator/settlement"],
        "/operator/audit": ["/operator/audit"],
        "/economy": ["/economy"],
        "/factory": ["/factory"],
        "/factory, by title": ["/factory?q=document+99"],
        "/contributors": ["/contributors"],
        "/contributors, by name": [f"/contributors?q=person+{rng.randrange(10**5)}" for _ in range(9)],
        "statement": [f"/contributors/{who}" for who in paid],
        "statement of a month": [f"/contributors/{who}?period={last}" for who in paid],
        "statement, the best paid": [f"/contributors/{who}" for who in top],
        "statement as CSV": [f"/contributors/{who}/statement.csv" for who in top],
        "receipt": [f"/receipts/{receipt.id}" for receipt in receipts],
        "/receipts": ["/receipts"],
        "contribution": [f"/contributions/{one}" for one in used],
        "/contributions": ["/contributions"],
        "/search": ["/search?q=document+77", "/search?q=person"],
        "/epochs": ["/epochs"],
    }


def _signed_in(site: Site) -> str:
    """The cookie of an operator."""
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    scope |= {"scheme": "http", "server": ("localhost", 80)}
    response = Response()
    Sessions.open(site).sign_in(Request(scope), response, "operator", "bench")
    return response.headers["set-cookie"].split(";")[0].removeprefix(f"{COOKIE}=")


async def _get(app: Any, path: str, cookie: str) -> tuple[int, int]:
    """Ask for a page; (status, bytes sent)."""
    plain, _, query = path.partition("?")
    headers: Sequence[tuple[bytes, bytes]] = (
        (b"host", b"localhost"),
        (b"accept", b"text/html"),
        (b"accept-encoding", b"gzip"),
        (b"cookie", f"{COOKIE}={cookie}".encode()),
    )
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": plain,
        "raw_path": plain.encode(),
        "query_string": query.encode(),
        "headers": list(headers),
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
    }
    seen = {"status": 0, "bytes": 0}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen["status"] = message["status"]
        seen["bytes"] += len(message.get("body", b""))

    await app(scope, receive, send)
    return seen["status"], seen["bytes"]


if __name__ == "__main__":
    main()
