"""Gateways over toy homes, for the tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy.desk import Desk, open_desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A gateway with the default options."""
    with open_desk(tmp_path / "home") as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One gateway for the tests of a module that do not mind each other."""
    with open_desk(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Desk]:
    """A gateway with one place at the model, one to wait, and little patience."""
    with open_desk(tmp_path / "home", parallel=1, waiting_max=1, stall_s=0.5, body_timeout_s=0.5) as running:
        yield running
