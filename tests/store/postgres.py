"""A private PostgreSQL cluster for tests: under a temporary folder, on a socket of its own, gone when it is closed.

PostgreSQL refuses to run as root, so then it runs as `nobody` (through `setpriv` or `runuser`) in a folder given to it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest

NEEDED = ("initdb", "pg_ctl", "postgres")
SETTINGS = "-c listen_addresses='' -c shared_buffers=64MB -c max_connections=300"
FORGETFUL = " -c fsync=off -c full_page_writes=off"
"""Nothing of a test's cluster outlives the run, so nothing is forced to the disk."""
STAND_IN = "nobody"


class Cluster:
    """A running server; databases in it cost little, so every test may have one."""

    def __init__(self, folder: Path, durable: bool) -> None:
        self.folder, self.durable = folder, durable
        self.data = folder / "data"
        folder.chmod(0o711)
        self.data.mkdir()
        if os.getuid() == 0:
            user = pwd.getpwnam(STAND_IN)
            for path in (folder, self.data):
                os.chown(path, user.pw_uid, user.pw_gid)
        self._as_server("initdb", "-D", str(self.data), "-U", "headwater", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def url(self, database: str = "postgres") -> str:
        """Where a database of the cluster is reached."""
        return f"postgresql://headwater@/{database}?host={self.folder}"

    def fresh(self) -> str:
        """The URL of a new empty database."""
        import psycopg

        name = f"test_{uuid4().hex}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"{SETTINGS}{'' if self.durable else FORGETFUL} -k {self.folder}"
        self._as_server(
            "pg_ctl", "-D", str(self.data), "-w", "-t", "60", "-l", str(self.folder / "log"), "-o", options, "start"
        )

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; ``immediate`` is what a crash looks like."""
        self._as_server("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "-m", mode, "stop")

    def _as_server(self, name: str, *arguments: str) -> None:
        command = [str(program(name)), *arguments]
        if os.getuid() == 0:
            if shutil.which("runuser"):
                command = ["runuser", "-u", STAND_IN, "--", *command]
            else:
                command = ["setpriv", f"--reuid={STAND_IN}", "--clear-groups", *command]
        run = subprocess.run(command, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{name}: {run.stdout[-500:]}{run.stderr[-500:]}")


def program(name: str) -> str | None:
    """Where one of the server's programs is: on PATH, or where Debian keeps it."""
    folders = [os.environ.get("PATH", ""), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)]
    return shutil.which(name, path=os.pathsep.join(folders))


def missing() -> str:
    """Why there can be no cluster here, or nothing."""
    absent = [name for name in NEEDED if program(name) is None]
    if absent:
        return f"no {', '.join(absent)} on PATH: install PostgreSQL 13 or later to run the stores on it"
    packages = [name for name in ("psycopg",) if find_spec(name) is None]
    return f"{', '.join(packages)} not installed: pip install 'headwater[postgres]'" if packages else ""


@contextmanager
def cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """A private cluster for as long as the block runs; a durable one forces every commit to the disk."""
    folder = Path(tempfile.mkdtemp(prefix="hw-pg-"))  # short: a socket's path may have 107 characters
    made = None
    try:
        made = Cluster(folder, durable)
        yield made
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """One cluster for all tests of a run; they are skipped where PostgreSQL is not installed."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with cluster() as running:
        yield running
