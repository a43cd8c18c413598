"""PgBouncer before a test's cluster: a few sessions of the server, given to whoever asks for as long as a mode says."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from postgres import STAND_IN, Cluster

PORT = 6432  # only a part of the socket's name
SESSIONS = 2
CONFIGURATION = """
[databases]
transaction = host={server} user=headwater dbname={database} pool_mode=transaction
session = host={server} user=headwater dbname={database} pool_mode=session
statement = host={server} user=headwater dbname={database} pool_mode=statement
[pgbouncer]
listen_port = {port}
unix_socket_dir = {folder}
auth_type = any
default_pool_size = {sessions}
max_client_conn = 100
pidfile = {folder}/pid
"""


class Pooler:
    """Where a running pooler is reached."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def url(self, mode: str) -> str:
        """The address under which sessions are given for a ``transaction``, a ``session`` or a ``statement``."""
        return f"postgresql://headwater@/{mode}?host={self.folder}&port={PORT}"


@contextmanager
def pooler(server: Cluster) -> Iterator[Pooler]:
    """A pooler before a new database of `server` for as long as the block runs; skips where PgBouncer is missing."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("needs pgbouncer: apt-get install pgbouncer")
    folder = Path(tempfile.mkdtemp(prefix="hw-pool-"))
    database = server.fresh().partition("@/")[2].partition("?")[0]
    (folder / "ini").write_text(
        CONFIGURATION.format(
            server=server.folder, folder=folder, port=PORT, sessions=SESSIONS, database=database
        ).strip()
    )
    as_user = []
    if os.getuid() == 0:  # which it refuses to run as
        shutil.chown(folder, STAND_IN)
        as_user = ["-u", STAND_IN]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, *as_user, str(folder / "ini")], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while not _listens(folder / f".s.PGSQL.{PORT}"):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.02)
        yield Pooler(folder)
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _listens(place: Path) -> bool:
    """Whether somebody answers there; the socket is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as line:
        return line.connect_ex(str(place)) == 0
