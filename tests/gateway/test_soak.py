"""A short soak of the served gateway, in a process of its own, under everything callers and upstreams do at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.gateway.soak import soak

MEMORY_MB_MAX = 48
"""That may come in a soak's last two thirds: the index of the log grows, caches fill, nothing else may."""


@pytest.mark.slow
def test_nothing_is_left_behind_by_a_storm_of_callers(tmp_path: Path) -> None:
    """Whoever did nothing wrong is answered; afterwards nothing is reserved and every charge is on a receipt."""
    seen = soak(tmp_path, 15.0)

    assert seen.answers > 200
    assert seen.rude > 200
    assert seen.receipts > seen.answers  # those who left in the middle of a stream paid for what they got
    assert seen.problems == ()
    assert (seen.leases_left, seen.reserved_units_left, seen.unexplained_units) == (0, 0, 0)
    assert seen.descriptors_end <= seen.descriptors_warm + 8
    assert seen.rss_mb_end - seen.rss_mb_warm < MEMORY_MB_MAX
    # A failing upstream may be left alone for a moment, and whoever asks then is told so.
    assert seen.failures <= seen.answers // 10
