"""The time that deadlines are counted in, kept: it survives restarts and a machine clock that jumps.

Whoever has deadlines asks `counted` with the machine's clock and compares with what it gives. See `registry.deadlines`.
"""

from __future__ import annotations

from headwater.registry.deadlines import Clock, moved_on, start
from headwater.store.database import Sql

_STEPS = (
    """
    CREATE TABLE deadline_clocks (
      name TEXT PRIMARY KEY,
      counted_ns INTEGER NOT NULL,
      read_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
)


class DeadlineClock:
    """The clock called `name` in `database`."""

    def __init__(self, database: Sql, name: str) -> None:
        self._database, self._name = database, name
        database.migrate("deadline_clocks", _STEPS)

    def counted(self, now_ns: int) -> int:
        """The instant that counts, after the machine's clock showed `now_ns`."""
        with self._database.transaction():
            rows = self._database.query("SELECT counted_ns, read_ns FROM deadline_clocks WHERE name = ?", (self._name,))
            clock = moved_on(Clock(*rows[0]), now_ns) if rows else start(now_ns)
            self._database.execute(
                "INSERT INTO deadline_clocks VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
                " SET counted_ns = excluded.counted_ns, read_ns = excluded.read_ns",
                (self._name, clock.counted_ns, clock.read_ns),
            )
        return clock.counted_ns
