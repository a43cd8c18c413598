"""How unevenly contributors' money is spread, period by period: Gini, Theil and Herfindahl measures of what was earned.

The readings mark each day and month that something was added to; those are measured again here, each in one
transaction with its mark, so that a kill between two leaves a mark and nothing half-done. The measures are those of
the economy's reports.
"""

from __future__ import annotations

import numpy as np

from headwater.store.database import Database

_TABLES = {"day": "earned_days", "month": "earned_months"}


def refresh(db: Database, *, limit: int = 1_000) -> int:
    """Measure the periods that were added to; gives how many there were."""
    marks = db.query("SELECT asset, span, period FROM stale ORDER BY span, period LIMIT ?", (limit,))
    for asset, span, period in marks:
        _measure(db, asset, span, period)
    return len(marks)


def _measure(db: Database, asset: str, span: str, period: int) -> None:
    from headwater.economy.metrics import gini, hhi, theil, top_share  # its package compiles: only who counts waits

    table = _TABLES[span]
    with db.transaction():
        units = db.query(f"SELECT units FROM {table} WHERE asset = ? AND {span} = ? AND units > 0", (asset, period))
        amounts = np.array([one for (one,) in units], np.int64)
        uneven, _, _ = theil([amounts]) if amounts.size else (0.0, 0.0, 0.0)
        row = (*(asset, span, period, amounts.size, int(amounts.sum())), gini(amounts), uneven, hhi(amounts))
        db.execute("INSERT OR REPLACE INTO inequality VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                   (*row, top_share(amounts, 0.01)))  # fmt: skip
        db.execute("DELETE FROM stale WHERE asset = ? AND span = ? AND period = ?", (asset, span, period))
