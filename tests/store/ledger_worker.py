"""A process for the tests to kill: posts batches or serves calls, and says on standard output what was acknowledged."""

from __future__ import annotations

import os
import random
import resource
import sys
from pathlib import Path

from headwater.core.errors import HeadwaterError
from headwater.core.ids import call_id
from headwater.ledger import deposit, payouts
from headwater.store.call_store import CallStore
from headwater.store.database import Database
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger

USD = "USD"


def say(text: str) -> None:
    """One whole line, at once: a kill cannot cut it."""
    os.write(1, f"{text}\n".encode())


def post(ledger: Ledger, seed: int) -> None:
    """Post batch 0, 1, 2 … for ever."""
    number = 0
    while True:
        rng = random.Random(seed * 1_000_003 + number)
        amounts = [rng.randrange(1, 10**6) for _ in range(rng.randrange(1, 40))]
        drafts = [deposit(f"payer:key_{n}", amount, asset=USD, cause="d") for n, amount in enumerate(amounts)]
        ledger.post(drafts, key=f"batch:{number}", at_ns=number)
        say(str(number))
        number += 1


def serve(db: Database, seed: int, round_number: int, key_id: str) -> None:
    """Serve calls for ever: reserve, now and then keep progress, then answer or fail, then attribute."""
    calls = CallStore(db, Ledger(db), KeyStore(db), run_id=f"worker-{round_number}")
    rng = random.Random(seed + round_number)
    number = round_number * 1_000_000
    while True:
        number += 1
        call, price = call_id(number.to_bytes(16, "big")), 100 + number % 50
        calls.begin(
            call_id=call,
            key_id=key_id,
            idempotency_key=f"k{number}",
            request_digest="d",
            model="m",
            ceiling_units=200,
            asset=USD,
            at_ns=number,
        )
        say(f"{number} reserved")
        if rng.random() < 0.3:
            calls.progress(call, answer=b"part", evidence=b"{}", price_units=7, at_ns=number)
            say(f"{number} progress")
        if rng.random() < 0.2:
            calls.release(call, failure="upstream_failed", at_ns=number)
            say(f"{number} released")
            continue
        calls.answered(call, answer=b"answer %d" % number, evidence=b"{}", price_units=price, at_ns=number)
        say(f"{number} answered")
        receipt = f"{number:064x}"
        drafts = payouts([("contributor:ctr_1", 60), ("commons", price - 60)], asset=USD, receipt_id=receipt)
        calls.attributed(call, receipt, drafts, at_ns=number)
        say(f"{number} attributed")


def race(ledger: Ledger, name: str) -> None:
    """Try to reserve sixty single units."""
    for number in range(60):
        try:
            ledger.reserve("payer:key_1", 1, key=f"{name}:{number}", asset=USD, cause="call_1", at_ns=number)
            say("reserved")
        except HeadwaterError as error:
            say(error.code)


def fill(ledger: Ledger, seed: int) -> None:
    """Post until the operating system lets no file grow past 256 KiB more."""
    limit = 256 * 1024
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        post(ledger, seed)
    except HeadwaterError as error:
        say(error.code)


if __name__ == "__main__":
    task, path, *rest = sys.argv[1:]
    database = Database(Path(path))
    match task:
        case "post":
            post(Ledger(database), int(rest[0]))
        case "call":
            serve(database, int(rest[0]), int(rest[1]), rest[2])
        case "race":
            race(Ledger(database), rest[0])
        case "full":
            fill(Ledger(database), int(rest[0]))
