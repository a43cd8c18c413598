"""The state of a run: one array per column, and the books of everybody who is not a contributor.

Money is int64 nano units in columns and unbounded `int` in books. Nothing is stored twice: what a
contributor is due is `accrued - settled`, what waits for the next root is `accrued - posted`.

Columns, by table (bytes a row):
    contributor  today, accrued, maturing, posted, settled, seen (8 each); pay, swing, effort, cost (4);
                 born, lost_on (2); phase, enrolled, attacker (1)                                       = 71
    asset        card of quality, parent, born (16); owner, holder, content, pull (4); earned, table (8)  = 48
    user         rate, app (4); spent (8); pot (8, subscriptions only)                                  = 16
    wish         call, worth (8); app (4); fate (1): a row for each call that somebody would make today = 21
    app          quality, coordinator, niche (4); price, markup, calls, income (8)
    coordinator  take_bps, income, last_income, direction (8)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvariantError

EMPTY, ACTIVE, STOPPED = 0, 1, 2
"""Phases of a contributor row: not used yet, contributing, no longer contributing."""

NICHE_SIZE = 16
"""Assets on an app's own list."""

Column = NDArray[Any]


class State:
    """Columns by name (``table.column``) and books by name; both are plain and may be looked at freely."""

    __slots__ = ("_rooms", "books", "columns", "day", "payouts")

    def __init__(self) -> None:
        self.columns: dict[str, Column] = {}
        self._rooms: dict[str, Column] = {}  # memory of columns whose table changes its size from day to day
        self.books: dict[str, int] = {}
        self.payouts: dict[str, int] = {
            "received": 0,
            "fees": 0,
            "unreachable": 0,
            "expired": 0,
        }  # where settled money went
        self.day = 0

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def add(self, table: str, rows: int, /, **columns: Any) -> None:
        """Add columns of a table, given as numpy types; all start at zero."""
        for name, kind in columns.items():
            self.columns[f"{table}.{name}"] = np.zeros(rows, kind)

    def resize(self, table: str, rows: int) -> None:
        """Give every column of a table so many rows; what they hold is undefined until it is written."""
        for name in [name for name in self.columns if name.startswith(f"{table}.")]:
            room = self._rooms.get(name)
            if room is None or room.size < rows:
                # An eighth more than is needed, so that tomorrow's few more do not need new memory.
                room = self._rooms[name] = np.empty(rows + rows // 8, self.columns[name].dtype)
            self.columns[name] = room[:rows]

    def rows(self, table: str) -> int:
        """How many rows a table has."""
        return next(int(column.shape[0]) for name, column in self.columns.items() if name.startswith(f"{table}."))

    def table_bytes(self, table: str) -> int:
        """Bytes that the columns of a table take."""
        # Columns that are views of another one take no room of their own.
        own = sum(c.nbytes for name, c in self.columns.items() if name.startswith(f"{table}.") and c.base is None)
        return own + sum(room.nbytes for name, room in self._rooms.items() if name.startswith(f"{table}."))

    def book(self, name: str, amount: int) -> None:
        """Add nano units, which may be negative, to a book."""
        self.books[name] = self.books.get(name, 0) + int(amount)

    def held(self) -> Iterator[tuple[str, int]]:
        """Whoever holds money or has received it, with how much: (name, nano units)."""
        yield "contributors", int(self["contributor.accrued"].sum()) + int(self["contributor.today"].sum())
        yield "assets", int(self["asset.earned"].sum())
        yield "apps", int(self["app.income"].sum())
        yield "coordinators", int(self["coordinator.income"].sum())
        if "user.pot" in self.columns:
            yield "pots", int(self["user.pot"].sum())
        yield from ((name, amount) for name, amount in self.books.items() if not name.startswith("in:"))

    def check(self) -> None:
        """Every unit that came in is held by somebody, and nobody was paid more than was due.

        Books called ``in:…`` are money that entered; every other book and column holds money.

        Raises:
            InvariantError: units were lost or made, or a row was paid more than a root held.
        """
        entered = sum(amount for name, amount in self.books.items() if name.startswith("in:"))
        held = sum(amount for _, amount in self.held())
        if entered != held:
            raise InvariantError(
                f"day {self.day}: {entered} nano entered and {held} nano are held, {held - entered:+d}",
                code="economy_not_exact",
                fix="a behaviour moved money without its other side; run with guard = true to find it",
            )
        settled = int(self["contributor.settled"].sum())
        if settled != sum(self.payouts.values()):
            raise InvariantError(
                f"day {self.day}: {settled} nano were settled, {sum(self.payouts.values())} are accounted for",
                code="economy_not_exact",
                fix="a payment was booked without saying who received it",
            )


def paid_beyond_due(state: State) -> int:
    """Rows where more was settled than posted, or more posted than accrued; always 0."""
    accrued, posted, settled = (state[f"contributor.{c}"] for c in ("accrued", "posted", "settled"))
    return int(np.count_nonzero((settled > posted) | (posted > accrued) | (settled < 0)))
