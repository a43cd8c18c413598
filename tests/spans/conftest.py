"""Shared by the span tests: real text from the demo corpus, and a small reference."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from headwater.attribution.spans import Reference, build_reference, read_reference

_LOREM = b"""the quick brown fox jumps over the lazy dog while a slow green turtle walks under the busy bridge
and the people of the town look at the river and talk about the weather and the price of bread"""


@pytest.fixture(scope="session")
def reference() -> Reference:
    """A tiny reference in which nothing is common property and unseen words are worth most."""
    return read_reference(build_reference([_LOREM, b"and the people talk about the weather"]))


@pytest.fixture(scope="session")
def proposals() -> tuple[tuple[str, bytes], ...]:
    """Python Enhancement Proposals, by name: real prose in the public domain."""
    spec = find_spec("opep")
    if spec is None or spec.origin is None:
        pytest.skip("the demo corpus is not installed")
    folder = Path(spec.origin).parent / "peps"
    return tuple((path.stem, path.read_bytes()) for path in sorted(folder.glob("*.md")))
