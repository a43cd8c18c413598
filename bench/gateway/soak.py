"""A soak: plain calls, streams, hang-ups at every stage, refusals and failing upstreams, all at once for a while.

    python -m bench.gateway.soak [--seconds 30] [--json]

Watches the gateway's memory and descriptors meanwhile; then stops it and looks into its home: nothing may be
reserved, every check of the ledger must hold, and what the payer has lost must be what its receipts say.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from bench.gateway.load import load, request
from bench.gateway.servers import Gateway, ours, rss_mb, upstream
from bench.gateway.upstream import BROKEN_TOKENS, FAILING_TOKENS, GARBAGE_TOKENS
from headwater.cli.home import Home
from headwater.receipts import Receipt
from headwater.settings import Settings

PLAIN, STREAMS, RUDE = 8, 8, 24
"""Connections that call and wait, that read streams, and that hang up or ask for trouble."""

WARM_PART = 3
"""One part in so many of the time is for warming up: growth counts from there."""


@dataclass(frozen=True, slots=True)
class Soak:
    """What a soak saw."""

    seconds: float
    answers: int  # whole ones
    failures: int  # of callers who did nothing wrong
    rude: int  # hang-ups and requests that had to fail
    receipts: int
    receipts_warm: int  # about, when growth began to count
    rss_mb_warm: float
    rss_mb_end: float
    descriptors_warm: int
    descriptors_end: int
    leases_left: int
    reserved_units_left: int
    unexplained_units: int  # lost by the payer and on no receipt
    problems: tuple[str, ...]  # of the books

    @property
    def bytes_per_receipt(self) -> float:
        """Memory that each receipt after the warming up came with."""
        return (self.rss_mb_end - self.rss_mb_warm) * 2**20 / max(self.receipts - self.receipts_warm, 1)


def soak(folder: Path, seconds: float) -> Soak:
    """Run one."""
    with ExitStack() as stack:
        port = stack.enter_context(upstream())
        gateway = stack.enter_context(ours(folder, port))
        seen = uvloop.run(_storm(gateway, seconds))
        time.sleep(0.7)  # the last calls are booked, and who hung up has been noticed
        end = (rss_mb(gateway.process), _descriptors(gateway.process))
    with Home(Settings(home=folder / gateway.name), create=False) as home:
        (key,) = home.keys.list()
        balance = home.ledger.balance(f"payer:{key.key_id}", home.policy.currency)
        charged = sum(Receipt.from_bytes(logged.raw).price for logged in home.log.entries())
        deposited = 100_000 * 10**9
        return Soak(
            *(seen.seconds, seen.answers, seen.failures, seen.rude, len(home.log)),
            receipts_warm=len(home.log) // WARM_PART,
            rss_mb_warm=round(seen.warm[0], 1),
            rss_mb_end=round(end[0], 1),
            descriptors_warm=seen.warm[1],
            descriptors_end=end[1],
            leases_left=home.db.query("SELECT count(*) FROM leases")[0][0],
            reserved_units_left=balance.reserved_out_units,
            unexplained_units=deposited - balance.balance_units - charged,
            problems=tuple(map(str, (*home.calls.check(), *home.db.integrity()))),
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    seconds: float
    answers: int
    failures: int
    rude: int
    warm: tuple[float, int]


async def _storm(gateway: Gateway, seconds: float) -> _Seen:
    began = time.monotonic()
    plain = asyncio.create_task(load(gateway.port, gateway.key, connections=PLAIN, seconds=seconds, stream=False))
    streams = asyncio.create_task(load(gateway.port, gateway.key, connections=STREAMS, seconds=seconds, stream=True))
    rude = [asyncio.create_task(_rude(gateway, number, began + seconds)) for number in range(RUDE)]
    await asyncio.sleep(seconds / WARM_PART)
    warm = (rss_mb(gateway.process), _descriptors(gateway.process))
    runs = [await plain, await streams]
    done = sum(await asyncio.gather(*rude))
    whole = sum(len(run.latencies_s) for run in runs)
    return _Seen(time.monotonic() - began, whole, sum(run.failures for run in runs), done, warm)


async def _rude(gateway: Gateway, seed: int, until_s: float) -> int:
    """Callers that leave, and requests that must fail; how many there were."""
    rng, done = random.Random(seed), 0
    host = f"127.0.0.1:{gateway.port}"
    ways = (_leave_in_head, _leave_in_body, _leave_before_answer, _leave_in_stream, _fail, _fail, _fail)
    while time.monotonic() < until_s:
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            try:
                async with asyncio.timeout(10):
                    await rng.choice(ways)(reader, writer, host, gateway.key, rng)
            finally:
                writer.transport.abort()
        done += 1
        await asyncio.sleep(0.002)
    return done


async def _leave_in_head(_r: asyncio.StreamReader, w: asyncio.StreamWriter, h: str, k: str, rng: random.Random) -> None:
    w.write(request(h, k, stream=False)[: rng.randrange(1, 120)])
    await asyncio.sleep(rng.random() * 0.01)


async def _leave_in_body(_r: asyncio.StreamReader, w: asyncio.StreamWriter, h: str, k: str, rng: random.Random) -> None:
    w.write(request(h, k, stream=False)[: -rng.randrange(1, 500)])
    await asyncio.sleep(rng.random() * 0.01)


async def _leave_before_answer(
    _r: asyncio.StreamReader, w: asyncio.StreamWriter, h: str, k: str, rng: random.Random
) -> None:
    w.write(request(h, k, stream=rng.random() < 0.5))
    await asyncio.sleep(rng.random() * 0.003)


async def _leave_in_stream(
    r: asyncio.StreamReader, w: asyncio.StreamWriter, h: str, k: str, rng: random.Random
) -> None:
    w.write(request(h, k, stream=True))
    await r.readexactly(rng.randrange(1, 6_000))


async def _fail(r: asyncio.StreamReader, w: asyncio.StreamWriter, h: str, k: str, rng: random.Random) -> None:
    whole = request(h, k, stream=rng.random() < 0.5)
    change = rng.randrange(6)
    if change < 3:
        limit = (FAILING_TOKENS, GARBAGE_TOKENS, BROKEN_TOKENS)[change]
        whole = whole.replace(b'"max_tokens":200', b'"max_tokens":%d' % limit)
    elif change == 3:
        whole = whole.replace(b'"gpt-4o-mini"', b'"gpt-4o-minx"')
    elif change == 4:
        whole = whole.replace(k.encode(), k[:-4].encode() + b"0000")
    else:
        whole = whole.replace(b'"messages":[', b'"messages":]')
    w.write(whole)
    await r.readuntil(b"\r\n\r\n")
    await asyncio.sleep(rng.random() * 0.01)


def _descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def main() -> None:
    """Run and print; status 1 when the books do not hold."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=30.0)
    arguments.add_argument("--json", action="store_true")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = soak(Path(folder), asked.seconds)
    told = {**asdict(seen), "bytes_per_receipt": round(seen.bytes_per_receipt)}
    print(json.dumps(told, indent=2) if asked.json else "\n".join(f"{name:22}{value}" for name, value in told.items()))
    raise SystemExit(bool(seen.problems or seen.leases_left or seen.reserved_units_left or seen.unexplained_units))


if __name__ == "__main__":
    main()
