"""The gateway beside others, on loopback, interleaved: key check, hold, signed receipt and durable append on.

    python -m bench.gateway [--rounds 5] [--seconds 4] [--litellm BIN] [--json]

One mock upstream, one load client and the gateways share the machine's cores; each round runs every gateway
with 1, 16 and 64 connections and 4 streams, in an order that turns. CPU is the user and system time of the
gateway's process tree per answer. The peers forward and check one key; they keep no books. Ferro comes with
the bench extra; LiteLLM is run when its `litellm` command is named, from an environment of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.gateway.load import Run, load

CASES = (("1", 1, False), ("16", 16, False), ("64", 64, False), ("4 streams", 4, True))
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway."""

    name: str
    port: int
    key: str
    process: int


def main() -> None:
    """Run and print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=4.0)
    arguments.add_argument("--litellm", help="path of the litellm command in an environment of its own")
    arguments.add_argument("--json", action="store_true")
    asked = arguments.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(_upstream())
        gateways = [stack.enter_context(_ours(folder, upstream))]
        if shutil.which("ferrogw", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
            gateways.append(stack.enter_context(_ferro(folder, upstream)))
        else:
            print("ferrogw is not installed (pip install -e '.[bench]'): no peer in this run", file=sys.stderr)
        if asked.litellm:
            gateways.append(stack.enter_context(_litellm(folder, upstream, asked.litellm)))
        table = _measure(gateways, asked.rounds, asked.seconds)
    print(json.dumps(table, indent=2) if asked.json else _text(table))


def _measure(gateways: list[Gateway], rounds: int, seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    seen: dict[tuple[str, str], list[dict[str, float]]] = {}
    for each in gateways:  # warm
        uvloop.run(load(each.port, each.key, connections=16, seconds=1.0, stream=False))
    for turn in range(rounds):
        for case, connections, stream in CASES:
            for each in gateways[turn % len(gateways) :] + gateways[: turn % len(gateways)]:
                before = _cpu_s(each.process)
                run = uvloop.run(load(each.port, each.key, connections=connections, seconds=seconds, stream=stream))
                time.sleep(0.2)  # the books follow
                seen.setdefault((each.name, case), []).append(_figures(run, _cpu_s(each.process) - before))
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (name, case), runs in seen.items():
        median = {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}
        table.setdefault(name, {})[case] = {figure: round(value, 3) for figure, value in median.items()}
    for each in gateways:
        table[each.name]["memory"] = {"rss_mb": round(sum(_rss_mb(p) for p in _tree(each.process)), 1)}
    return table


def _figures(run: Run, cpu_s: float) -> dict[str, float]:
    answers = max(len(run.latencies_s), 1)
    return {
        "answers_per_s": run.rate,
        "p50_ms": run.latency_ms(0.5),
        "p99_ms": run.latency_ms(0.99),
        "first_ms": run.first_ms(0.5),
        "cpu_ms": 1000 * cpu_s / answers,
        "failures": run.failures,
    }


def _text(table: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [f"{'gateway':12}{'load':>12}{'answers/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'first ms':>10}{'CPU ms':>10}"]
    for name, cases in table.items():
        for case, f in cases.items():
            if case == "memory":
                lines.append(f"{name:12}{'memory':>12}{f['rss_mb']:>12.0f} MB")
                continue
            failed = f"  {f['failures']:.0f} failed" if f["failures"] else ""
            lines.append(
                f"{name:12}{case:>12}{f['answers_per_s']:>12.0f}{f['p50_ms']:>10.2f}{f['p99_ms']:>10.2f}"
                f"{f['first_ms']:>10.2f}{f['cpu_ms']:>10.3f}{failed}"
            )
    return "\n".join(lines)


# The servers


@contextlib.contextmanager
def _upstream() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-m", "bench.gateway.upstream", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _ours(folder: Path, upstream: int) -> Iterator[Gateway]:
    home, file = folder / "home", folder / "upstreams.toml"
    file.write_text(
        f'[upstream.mock]\nbase_url = "http://127.0.0.1:{upstream}/v1"\n'
        '[model."gpt-4o-mini"]\ntargets = [{ upstream = "mock", model = "gpt-4o-mini" }]\n'
        'request_price = "0.001"\ninput_token_price = "0.000001"\noutput_token_price = "0.000002"\n'
    )
    command = [str(Path(sys.executable).parent / "headwater")]

    def said(*words: str) -> dict[str, str]:
        raw = subprocess.run([*command, *words, "--home", str(home), "--json"], check=True, capture_output=True).stdout
        value: dict[str, str] = json.loads(raw)
        return value

    key = said("key", "create", "bench")
    said("key", "deposit", key["key_id"], "100000", "--reference", "bench")
    port = _free_port()
    settings = {"HEADWATER_UPSTREAMS": str(file), "HEADWATER_LOCAL_MODEL": "no"}
    with _started([*command, "serve", "--home", str(home), "--port", str(port)], settings, port) as process:
        yield Gateway("headwater", port, key["secret"], process)


@contextlib.contextmanager
def _ferro(folder: Path, upstream: int) -> Iterator[Gateway]:
    port, key = _free_port(), "fgw_" + secrets.token_hex(16)
    (folder / "ferro.yaml").write_text("strategy:\n  mode: fallback\ntargets:\n  - virtual_key: openai\n")
    settings = {
        "GATEWAY_CONFIG": str(folder / "ferro.yaml"),
        "MASTER_KEY": key,
        "OPENAI_API_KEY": "unused",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}",
        "PORT": str(port),
        "RATE_LIMIT_RPS": "1000000",
        "RATE_LIMIT_BURST": "1000000",
        "LOG_LEVEL": "error",
    }
    command = str(Path(sys.executable).parent / "ferrogw")
    with _started([command if Path(command).exists() else "ferrogw", "serve"], settings, port) as process:
        yield Gateway("ferro", port, key, process)


@contextlib.contextmanager
def _litellm(folder: Path, upstream: int, command: str) -> Iterator[Gateway]:
    port, key = _free_port(), "sk-" + secrets.token_hex(16)
    (folder / "litellm.yaml").write_text(
        "model_list:\n  - model_name: gpt-4o-mini\n    litellm_params:\n      model: openai/gpt-4o-mini\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: unused\n"
        f"general_settings:\n  master_key: {key}\n"
    )
    asked = [command, "--config", str(folder / "litellm.yaml"), "--port", str(port), "--host", "127.0.0.1"]
    with _started(asked, {"LITELLM_LOG": "ERROR"}, port, wait_s=120) as process:
        yield Gateway("litellm", port, key, process)


@contextlib.contextmanager
def _started(command: list[str], settings: dict[str, str], port: int, *, wait_s: float = 60) -> Iterator[int]:
    process = subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + wait_s
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > until or process.poll() is not None:
                raise SystemExit(f"{command[0]} did not start")
            time.sleep(0.1)
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tree(root: int) -> list[int]:
    """A process and those it started."""
    found = [root]
    for process in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _cpu_s(root: int) -> float:
    total = 0
    for process in _tree(root):
        with contextlib.suppress(OSError):
            columns = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(columns[11]) + int(columns[12])
    return total / _TICKS


def _rss_mb(process: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
