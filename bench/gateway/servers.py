"""The servers of a measurement: the mock upstream, this gateway and others, each in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway."""

    name: str
    port: int
    key: str
    process: int


@contextlib.contextmanager
def upstream() -> Iterator[int]:
    """The mock upstream; gives its port."""
    process = subprocess.Popen([sys.executable, "-m", "bench.gateway.upstream", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def ours(folder: Path, upstream_port: int, *, workers: int = 1, database: str = "") -> Iterator[Gateway]:
    """This gateway over a new home under `folder`, in one of its name, with a funded key.

    Args:
        workers: processes that answer calls; with more than one there is a head beside them.
        database: address of an empty PostgreSQL schema; the home's file without it.
    """
    name = "headwater" + (f"-x{workers}" if workers > 1 else "") + ("-pg" if database else "")
    home, file = folder / name, folder / "upstreams.toml"
    settings = {"HEADWATER_UPSTREAMS": str(file), "HEADWATER_LOCAL_MODEL": "no", "HEADWATER_DATABASE": database}
    file.write_text(
        f'[upstream.mock]\nbase_url = "http://127.0.0.1:{upstream_port}/v1"\n'
        '[model."gpt-4o-mini"]\ntargets = [{ upstream = "mock", model = "gpt-4o-mini" }]\n'
        'request_price = "0.001"\ninput_token_price = "0.000001"\noutput_token_price = "0.000002"\n'
    )
    command = [str(Path(sys.executable).parent / "headwater")]

    def said(*words: str) -> dict[str, str]:
        asked = [*command, *words, "--home", str(home), "--json"]
        raw = subprocess.run(asked, check=True, capture_output=True, env={**os.environ, **settings}).stdout
        value: dict[str, str] = json.loads(raw)
        return value

    key = said("key", "create", "bench")
    said("key", "deposit", key["key_id"], "100000", "--reference", "bench")
    port = free_port()
    serve = [*command, "serve", "--home", str(home), "--port", str(port), "--workers", str(workers)]
    with started(serve, settings, port) as process:
        yield Gateway(name, port, key["secret"], process)


@contextlib.contextmanager
def ferro(folder: Path, upstream_port: int) -> Iterator[Gateway]:
    """Ferro, as its wheel installs it."""
    port, key = free_port(), "fgw_" + secrets.token_hex(16)
    (folder / "ferro.yaml").write_text("strategy:\n  mode: fallback\ntargets:\n  - virtual_key: openai\n")
    settings = {
        "GATEWAY_CONFIG": str(folder / "ferro.yaml"),
        "MASTER_KEY": key,
        "OPENAI_API_KEY": "unused",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}",
        "PORT": str(port),
        "RATE_LIMIT_RPS": "1000000",
        "RATE_LIMIT_BURST": "1000000",
        "LOG_LEVEL": "error",
    }
    command = str(Path(sys.executable).parent / "ferrogw")
    with started([command if Path(command).exists() else "ferrogw", "serve"], settings, port) as process:
        yield Gateway("ferro", port, key, process)


@contextlib.contextmanager
def litellm(folder: Path, upstream_port: int, command: str) -> Iterator[Gateway]:
    """LiteLLM's proxy by its command."""
    port, key = free_port(), "sk-" + secrets.token_hex(16)
    (folder / "litellm.yaml").write_text(
        "model_list:\n  - model_name: gpt-4o-mini\n    litellm_params:\n      model: openai/gpt-4o-mini\n"
        f"      api_base: http://127.0.0.1:{upstream_port}/v1\n      api_key: unused\n"
        f"general_settings:\n  master_key: {key}\n"
    )
    asked = [command, "--config", str(folder / "litellm.yaml"), "--port", str(port), "--host", "127.0.0.1"]
    with started(asked, {"LITELLM_LOG": "ERROR"}, port, wait_s=120) as process:
        yield Gateway("litellm", port, key, process)


@contextlib.contextmanager
def started(command: list[str], settings: dict[str, str], port: int, *, wait_s: float = 60) -> Iterator[int]:
    """A process that listens on `port`; gives its id."""
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
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=wait_s).close()
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tree(root: int) -> list[int]:
    """A process and those it started."""
    found = [root]
    for process in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_s(root: int) -> float:
    """User and system seconds of a process and those it started."""
    total = 0
    for process in tree(root):
        with contextlib.suppress(OSError):
            columns = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(columns[11]) + int(columns[12])
    return total / _TICKS


def rss_mb(process: int) -> float:
    """Resident memory of a process."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0
