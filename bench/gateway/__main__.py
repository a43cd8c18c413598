"""The gateway beside others, on loopback, interleaved: key check, hold, signed receipt and durable append on.

    python -m bench.gateway [--rounds 5] [--seconds 4] [--workers N [--database URL]] [--litellm BIN]
        [--streams 1000] [--json]

One mock upstream, one load client and the gateways share the machine's cores; each round runs every gateway
with 1, 16 and 64 connections and 4 streams, in an order that turns. CPU is the user and system time of the
gateway's process tree per answer. Then each holds many slow streams at once while its memory is watched, and ours
is asked by vouchers instead of a key. The peers forward and check one key; they keep no books. Ferro comes with
the bench extra; LiteLLM is run when its `litellm` command is named, from an environment of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import uvloop

from bench.gateway.load import Run, load
from bench.gateway.servers import Gateway, cpu_s, ferro, litellm, ours, rss_mb, tree, upstream
from bench.gateway.voucher import voucher_latencies_s

CASES = (("1", 1, False), ("16", 16, False), ("64", 64, False), ("4 streams", 4, True))

Table = dict[str, dict[str, dict[str, float]]]


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=4.0)
    arguments.add_argument("--workers", type=int, default=1, help="also measure ours with so many worker processes")
    arguments.add_argument("--database", default="", help="address of an empty PostgreSQL schema for the workers")
    arguments.add_argument("--litellm", help="path of the litellm command in an environment of its own")
    arguments.add_argument("--streams", type=int, default=1_000, help="slow streams at once; 0 for none")
    arguments.add_argument("--json", action="store_true")
    asked = arguments.parse_args()
    before = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(upstream())
        gateways = [stack.enter_context(ours(folder, port))]
        if asked.workers > 1:
            gateways.append(stack.enter_context(ours(folder, port, workers=asked.workers, database=asked.database)))
        if shutil.which("ferrogw", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
            gateways.append(stack.enter_context(ferro(folder, port)))
        else:
            print("ferrogw is not installed (pip install -e '.[bench]'): no peer in this run", file=sys.stderr)
        if asked.litellm:
            gateways.append(stack.enter_context(litellm(folder, port, asked.litellm)))
        table = _measure(gateways, asked.rounds, asked.seconds)
        for each in gateways:
            if asked.streams:
                table[each.name]["streams at once"] = _streams(each, asked.streams)
        latencies = sorted(voucher_latencies_s(folder, port))
        table["headwater"]["voucher"] = {
            "p50_ms": round(1000 * statistics.median(latencies), 2),
            "p99_ms": round(1000 * latencies[int(0.99 * len(latencies))], 2),
        }
    table["machine"] = {"load": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)}}
    print(json.dumps(table, indent=2) if asked.json else _text(table))


def _measure(gateways: list[Gateway], rounds: int, seconds: float) -> Table:
    seen: dict[tuple[str, str], list[dict[str, float]]] = {}
    for each in gateways:  # warm
        uvloop.run(load(each.port, each.key, connections=16, seconds=1.0, stream=False))
    for turn in range(rounds):
        for case, connections, stream in CASES:
            for each in gateways[turn % len(gateways) :] + gateways[: turn % len(gateways)]:
                before = cpu_s(each.process)
                run = uvloop.run(load(each.port, each.key, connections=connections, seconds=seconds, stream=stream))
                time.sleep(0.5)  # the books follow
                seen.setdefault((each.name, case), []).append(_figures(run, cpu_s(each.process) - before))
    table: Table = {}
    for (name, case), runs in seen.items():
        median = {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}
        table.setdefault(name, {})[case] = {figure: round(value, 3) for figure, value in median.items()}
    for each in gateways:
        table[each.name]["memory"] = {"rss_mb": round(_memory_mb(each), 1)}
    return table


def _streams(gateway: Gateway, count: int) -> dict[str, float]:
    """One slow stream on each of many connections; the most memory seen meanwhile."""
    most, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            most[0] = max(most[0], _memory_mb(gateway))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        run = uvloop.run(load(gateway.port, gateway.key, connections=count, seconds=0.0, stream=True, slow=True))
    finally:
        done.set()
        watching.join()
    return {"whole": len(run.latencies_s), "failures": run.failures, "rss_mb": round(most[0], 1)}


def _memory_mb(gateway: Gateway) -> float:
    return sum(rss_mb(process) for process in tree(gateway.process))


def _figures(run: Run, cpu: float) -> dict[str, float]:
    answers = max(len(run.latencies_s), 1)
    return {
        "answers_per_s": run.rate,
        "p50_ms": run.latency_ms(0.5),
        "p99_ms": run.latency_ms(0.99),
        "first_ms": run.first_ms(0.5),
        "cpu_ms": 1000 * cpu / answers,
        "failures": run.failures,
    }


def _text(table: Table) -> str:
    lines = [f"{'gateway':12}{'load':>12}{'answers/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'first ms':>10}{'CPU ms':>10}"]
    for name, cases in table.items():
        for case, f in cases.items():
            if "cpu_ms" not in f:
                lines.append(f"{name:12}{case:>16}  " + "  ".join(f"{what} {value:g}" for what, value in f.items()))
                continue
            failed = f"  {f['failures']:.0f} failed" if f["failures"] else ""
            lines.append(
                f"{name:12}{case:>12}{f['answers_per_s']:>12.0f}{f['p50_ms']:>10.2f}{f['p99_ms']:>10.2f}"
                f"{f['first_ms']:>10.2f}{f['cpu_ms']:>10.3f}{failed}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
