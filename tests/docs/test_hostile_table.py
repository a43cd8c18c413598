"""The table of hostile callers in the gateway's page names tests that there are, and all of those written for it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gateway.md"


def named() -> set[tuple[str, str]]:
    """(file, test) of each test in the table."""
    section = PAGE.read_text("utf-8").partition("## Hostile callers and upstreams")[2].partition("\n## ")[0]
    found = re.findall(r"`((?:tests/\w+/)?test_\w+)::(test_\w+)`", section)
    return {(name if "/" in name else f"tests/gateway/{name}", test) for name, test in found}


def test_every_test_in_the_table_exists() -> None:
    """A renamed test is renamed here too."""
    for name, test in named():
        assert f"def {test}(" in (ROOT / f"{name}.py").read_text("utf-8"), (name, test)
    assert len(named()) > 30


def test_every_hostile_test_is_in_the_table() -> None:
    """Those of the two files that hold nothing else."""
    for name in ("tests/gateway/test_hostile_callers", "tests/gateway/test_hostile_upstreams"):
        tests = re.findall(r"^def (test_\w+)\(", (ROOT / f"{name}.py").read_text("utf-8"), re.MULTILINE)
        assert tests
        assert {(name, test) for test in tests} <= named()
