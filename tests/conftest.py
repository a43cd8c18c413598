"""Which engine the tests' databases are on: SQLite's files, or with HEADWATER_TEST_ENGINE=postgres a server's schemas.

With the latter, whoever opens `Database(path)`, here or in a process that a test starts, is given a `PostgresDatabase`
whose schema is named after the path, on a private cluster that lasts for the run. Tests marked `sqlite` are about the
file and are left out then.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "store"))

ENGINE = os.environ.get("HEADWATER_TEST_ENGINE", "sqlite")


def pytest_configure(config: pytest.Config) -> None:
    """Put PostgreSQL under every database of the run, if that is asked for."""
    if ENGINE == "sqlite":
        return
    from postgres import cluster, missing

    if ENGINE != "postgres" or missing():
        raise pytest.UsageError(f"HEADWATER_TEST_ENGINE={ENGINE}: {missing() or 'use sqlite or postgres'}")
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return  # the tests run in other processes, each with a cluster of its own
    stack = ExitStack()
    config.add_cleanup(stack.close)
    os.environ["HEADWATER_TEST_URL"] = stack.enter_context(cluster()).url()
    paths = [str(HERE / "engine"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sys.path.insert(0, paths[0])
    from sitecustomize import put_postgres_under

    put_postgres_under(os.environ["HEADWATER_TEST_URL"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is about SQLite's file when there is none."""
    if ENGINE != "sqlite":
        for item in items:
            if item.get_closest_marker("sqlite"):
                item.add_marker(pytest.mark.skip(reason="about SQLite's file"))
