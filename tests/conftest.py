"""Which engine the tests' databases are on: SQLite's files, or with HEADWATER_TEST_ENGINE=postgres a server's schemas.

With the latter, whoever opens `Database(path)`, here or in a process that a test starts, is given a `PostgresDatabase`
whose schema is named after the path, on a private cluster that lasts for the run. Tests marked `sqlite` are about the
file and are left out then. Tests marked `both_engines` run on both in any run.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "store"), str(HERE / "engine")]

from postgres import cluster, missing, postgres  # noqa: E402, F401 - one is a fixture
from sitecustomize import let_a_server_take_over  # noqa: E402

let_a_server_take_over()
ENGINE = os.environ.get("HEADWATER_TEST_ENGINE", "sqlite")


def pytest_configure(config: pytest.Config) -> None:
    """Put PostgreSQL under every database of the run, if that is asked for."""
    if ENGINE == "sqlite":
        return
    if ENGINE != "postgres" or missing():
        raise pytest.UsageError(f"HEADWATER_TEST_ENGINE={ENGINE}: {missing() or 'use sqlite or postgres'}")
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return  # the tests run in other processes, each with a cluster of its own
    stack = ExitStack()
    config.add_cleanup(stack.close)
    _use(stack.enter_context(cluster()).url(), pytest.MonkeyPatch())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked `both_engines` on either, in a run that is not on one of them as a whole."""
    if ENGINE == "sqlite" and metafunc.definition.get_closest_marker("both_engines"):
        apart = metafunc.definition.get_closest_marker("sqlite")
        metafunc.parametrize("engine", ["sqlite"] if apart else ["sqlite", "postgres"], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is about SQLite's file when there is none."""
    if ENGINE != "sqlite":
        for item in items:
            if item.get_closest_marker("sqlite"):
                item.add_marker(pytest.mark.skip(reason="about SQLite's file"))


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What this test's databases are on."""
    name = getattr(request, "param", ENGINE)
    if name != ENGINE:
        _use(request.getfixturevalue("postgres").url(), monkeypatch)
    return str(name)


def _use(url: str, patch: pytest.MonkeyPatch) -> None:
    """Put a server under every database, of this process and of those that it starts, until `patch` is undone."""
    patch.setenv("HEADWATER_TEST_URL", url)
    patch.setenv("PYTHONPATH", str(HERE / "engine"), prepend=os.pathsep)
