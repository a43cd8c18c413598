"""What booking a metered call costs: `MeteredStore.book` on SQLite and PostgreSQL, in groups, in one run on one disk.

    python bench/booking.py [--calls 6400] [--group 64] [--payers 8] [--rounds 3]

A call is reserved, charged, paid out to four payees and recorded; after every group each payer's lease is renewed, as
the gateway does it. Rounds alternate; medians of CPU-seconds. On PostgreSQL the CPU of the server's processes counts
too, and both engines force every commit to the disk. Needs `initdb`, `pg_ctl` and `postgres` on PATH.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from headwater.core.canonical import digest
from headwater.core.ids import CallId, ReceiptId
from headwater.ledger import deposit
from headwater.store.call_store import CallStore, FinishedCall
from headwater.store.database import Database, Sql
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.metered_store import Lease, Metered, MeteredStore, Renewal
from ledger import server_cpu_s

ASSET = "USD"
PRICE_UNITS = 1_000_000
PAYEES = 4


class Desk:
    """The stores over a database, with payers who have credit."""

    def __init__(self, db: Sql, payers: int) -> None:
        ledger, keys = Ledger(db), KeyStore(db)
        self.calls = CallStore(db, ledger, keys, run_id="bench")
        self.metered = MeteredStore(db, ledger, keys, self.calls)
        self.payers = [keys.create(f"payer {n}", n.to_bytes(32, "big"), 1)[1].key_id for n in range(payers)]
        for key_id in self.payers:
            ledger.post([deposit(f"payer:{key_id}", 10**15, asset=ASSET, cause="d")], key=key_id, at_ns=1)
        self.leases: dict[str, Lease] = {}

    def book(self, group: int, number: int) -> None:
        """A group of calls, and new leases."""
        at_ns = 10 + number
        calls = [self._metered(number * group + place, at_ns) for place in range(group)]
        renewals = [Renewal(key, ASSET, self.leases.get(key), 0, 10**9, promised_units=0) for key in self.payers]
        self.leases |= self.metered.book(calls, renewals, logged=(number + 1) * group, at_ns=at_ns, nonce=str(number))

    def _metered(self, number: int, at_ns: int) -> Metered:
        call, receipt = CallId(f"call_{number:032x}"), ReceiptId(digest(str(number).encode()).removeprefix("sha256:"))
        text = digest(f"text {number}".encode())
        finished = FinishedCall(
            call, self.payers[number % len(self.payers)], "model", ASSET, PRICE_UNITS, f"{call}:metered#0", receipt,
            text, text, at_ns, at_ns,
        )  # fmt: skip
        payees = [
            (f"contributor:ctr_{(number * 7 + place) % 5_000:032x}", PRICE_UNITS // PAYEES) for place in range(PAYEES)
        ]
        return Metered(finished, tuple(payees))


def booked(db: Sql, options: argparse.Namespace, spent_s: Callable[[], float]) -> float:
    """CPU-seconds, as `spent_s` counts them, that booking all calls took; what was booked is checked afterwards."""
    desk = Desk(db, options.payers)
    desk.book(options.group, 0)
    before = spent_s()
    for number in range(1, options.calls // options.group + 1):
        desk.book(options.group, number)
    spent = spent_s() - before
    assert desk.calls.check() == ()
    desk.calls.close()
    return spent


def on_sqlite(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """CPU-seconds on a file: of the client, and in all."""
    with Database(folder / "headwater.db") as db:
        spent = booked(db, options, time.process_time)
    return spent, spent


def on_postgres(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """CPU-seconds on a private cluster: of the client, and of client and server."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/store"))
    from postgres import cluster

    from headwater.store.postgres import PostgresDatabase

    own: list[float] = []

    with cluster(durable=True) as server, PostgresDatabase(server.url(), folder=folder) as db:

        def spent_s() -> float:
            own.append(time.process_time())
            return own[-1] + server_cpu_s(server.data)

        spent = booked(db, options, spent_s)
    return own[1] - own[0], spent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=6_400)
    parser.add_argument("--group", type=int, default=64, help="calls in one commit")
    parser.add_argument("--payers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seen: dict[str, list[tuple[float, float]]] = {"SQLite": [], "PostgreSQL": []}
    for _ in range(options.rounds):
        for name, run in (("SQLite", on_sqlite), ("PostgreSQL", on_postgres)):
            with tempfile.TemporaryDirectory() as folder:
                seen[name].append(run(Path(folder), options))
    print(
        f"{options.calls} calls, {options.group} a commit, {PAYEES} payees each, {options.payers} leases renewed each"
    )
    for name, costs in seen.items():
        client, whole = (median(cost[which] for cost in costs) / options.calls * 1e6 for which in (0, 1))
        print(f"{name:12} {whole:8.1f} µs of CPU a call, {client:8.1f} of them the client's")


if __name__ == "__main__":
    main()
