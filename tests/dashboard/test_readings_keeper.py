"""The keeper of readings: a page counts a little itself, leaves much to a thread, and never shows half of anything."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from measured import measured_site

from headwater.dashboard import readings_keeper
from headwater.dashboard.readings_inequality import refresh
from headwater.dashboard.readings_keeper import Keeper
from headwater.store.database import Database
from headwater.store.readings_tables import STEPS


def test_a_page_counts_a_little_and_leaves_much_to_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few new receipts are counted before the answer; of many it says how many are missing, and they come."""
    with measured_site(tmp_path) as measured:
        measured.ask("what does a river do in the sea?")
        keeper = Keeper(measured.site)
        assert keeper.fresh() == readings_keeper.Freshness(1, 0)
        monkeypatch.setattr(readings_keeper, "AT_ONCE", 0)
        measured.ask("say hello", "is a cloud water in the air?")
        first = keeper.fresh()
        assert first.counted + first.missing == 3
        until = time.monotonic() + 20
        while keeper.fresh().missing:
            assert time.monotonic() < until
            time.sleep(0.02)
        days = keeper.ask().days()
        assert days is not None
        assert keeper.ask().calls(*days).answers == 3
        assert len(keeper.ask().inequality("day", *days)) >= 1


def test_inequality_is_that_of_the_day_and_is_measured_anew_when_the_day_grows(tmp_path: Path) -> None:
    """Gini, Theil, HHI and top share by their definitions, from the amounts; only marked periods are measured."""
    rng = np.random.default_rng(3)
    amounts = rng.integers(1, 10**9, 200)
    with Database(tmp_path / "readings.db") as db:
        db.migrate("readings", STEPS)
        for person, units in enumerate(amounts.tolist(), 1):
            db.execute("INSERT INTO earned_days VALUES ('USD', 5, ?, ?, 1, 1, 0)", (person, units))
        db.execute("INSERT INTO stale VALUES ('USD', 'day', 5)")
        assert refresh(db) == 1
        assert refresh(db) == 0
        ((earners, total, gini, theil, hhi, top),) = db.query(
            "SELECT earners, units, gini, theil, hhi, top1 FROM inequality WHERE span = 'day' AND period = 5"
        )
        x = amounts.astype(float)
        assert (earners, total) == (200, int(amounts.sum()))
        assert gini == pytest.approx(np.abs(x[:, None] - x[None, :]).sum() / (2 * x.size**2 * x.mean()))
        assert theil == pytest.approx(float((x / x.mean() * np.log(x / x.mean())).mean()))
        assert hhi == pytest.approx(float(((x / x.sum()) ** 2).sum()))
        assert top == pytest.approx(np.sort(x)[-2:].sum() / x.sum())
        db.execute("UPDATE earned_days SET units = 1 WHERE person > 1")
        db.execute("INSERT INTO stale VALUES ('USD', 'day', 5)")
        refresh(db)
        assert db.query("SELECT gini FROM inequality")[0][0] > 0.99
