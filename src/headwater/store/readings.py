"""The readings of a home: sums of receipts and transfers, brought up to date in steps that a kill cannot spoil.

Invariants: a step's sums and the place it read up to are written in one transaction, so every receipt and every
transfer counts once, whoever reads and however often it is interrupted; the same records give the same rows,
read at once or piece by piece. What was read is remembered by the log's root: a log that is not the one
that was read empties the tables, and they are filled anew.

A receipt that corrects another is not counted again: what it moved stands in the ledger as corrections, which are.
Knows nothing of pages. The file is derived and lies beside the database, so that reading never makes a call wait.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

from headwater.core.instants import DAY_NS
from headwater.ledger import Code
from headwater.receipts.log import TreeHead
from headwater.store.database import Database, Sql
from headwater.store.readings_sums import Numbers, Sums, person_of, read_receipt
from headwater.store.readings_tables import STEPS, TABLES

RECEIPTS_A_STEP: Final = 8_192
TRANSFERS_A_STEP: Final = 100_000
FILE: Final = "readings.db"

_MOVES: Final = (Code.DEPOSIT, Code.SETTLE, Code.FUND, Code.PAID, Code.ENROLL, Code.CORRECTION)


class Logged(Protocol):
    """One entry of a receipt log."""

    @property
    def raw(self) -> bytes:
        """The receipt's canonical bytes."""
        ...


class Receipts(Protocol):
    """What is needed of the receipt log."""

    def promised(self) -> TreeHead:
        """Size and root of what will stay."""
        ...

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` entries."""
        ...

    def at(self, index: int) -> Logged:
        """One entry."""
        ...


class Readings:
    """The readings kept in `folder`; `log` and `ledger` are what they are read from."""

    def __init__(self, folder: Path, log: Receipts, ledger: Sql) -> None:
        self.db = Database(folder / FILE)
        self.db.migrate("readings", STEPS)
        self._log, self._ledger = log, ledger

    def close(self) -> None:
        """Close the file; what was read stays."""
        self.db.close()

    def place(self, source: str) -> int:
        """How far `receipts` or `transfers` have been read: receipts in the sums, or the last transfer's number."""
        rows = self.db.query("SELECT place FROM progress WHERE source = ?", (source,))
        return int(rows[0][0]) if rows else 0

    def behind(self) -> int:
        """Receipts that are not in the sums yet."""
        return max(0, self._log.promised().size - self.place("receipts"))

    def catch_up(self, on_step: Callable[[int, int], None] | None = None, *, steps_max: int | None = None) -> int:
        """Read what is new, receipts and transfers; gives how many receipts that was.

        Args:
            on_step: told (receipts read, receipts there are) after each step.
            steps_max: leave the rest for later after so many steps.
        """
        begun = self.place("receipts")
        size, done, steps = self._log.promised().size, -1, 0
        self._forget_another_log(size)
        begun = min(begun, self.place("receipts"))
        while done < size and (steps_max is None or steps < steps_max):
            done = self._receipts_step(size)
            steps += 1
            if on_step is not None:
                on_step(done, size)
        while self._transfers_step():
            pass
        return max(0, done - begun)

    def forget(self) -> None:
        """Empty every table; the next catch-up fills them anew."""
        with self.db.transaction():
            for table in TABLES:
                self.db.execute(f"DELETE FROM {table}")

    def _forget_another_log(self, size: int) -> None:
        rows = self.db.query("SELECT place, mark FROM progress WHERE source = 'receipts'")
        if rows and (rows[0][0] > size or self._log.root(rows[0][0]) != rows[0][1]):
            self.forget()

    def _receipts_step(self, size: int) -> int:
        """Read up to `RECEIPTS_A_STEP` more; gives the new place."""
        with self.db.transaction():  # the place is read in it: two processes never count the same receipt
            start = self.place("receipts")
            end = min(size, start + RECEIPTS_A_STEP)
            if end <= start:
                return start
            sums = Sums(self.db)
            for index in range(start, end):
                sums.take(index, read_receipt(self._log.at(index).raw))
            sums.write()
            self.db.execute("INSERT OR REPLACE INTO progress VALUES ('receipts', ?, ?)", (end, self._log.root(end)))
            return end

    def _transfers_step(self) -> bool:
        """Read the next transfers that are no calls; whether there may be more."""
        ((last,),) = self._ledger.query("SELECT coalesce(max(transfer), 0) FROM transfers")
        with self.db.transaction():
            start = self.place("transfers")
            end = min(last, start + TRANSFERS_A_STEP)
            if end <= start:
                return False
            moved: defaultdict[tuple[str, str, int, int], list[int]] = defaultdict(lambda: [0, 0])
            for debit, credit, asset, units, code, at_ns in self._ledger.query(
                "SELECT d.name, c.name, d.asset, t.amount_units, t.code, b.at_ns FROM transfers t"
                " JOIN accounts d ON d.account = t.debit JOIN accounts c ON c.account = t.credit"
                " JOIN batches b ON b.batch = t.batch"
                f" WHERE t.transfer > ? AND t.transfer <= ? AND t.code IN ({', '.join(str(int(c)) for c in _MOVES)})",
                (start, end),
            ):
                for person, signed in _moved(debit, credit, code, units):
                    row = moved[person, asset, at_ns // DAY_NS, code]
                    row[0] += signed
                    row[1] += 1
            numbers = Numbers(self.db, "people", "contributor")
            people = numbers.of({person: () for person, *_ in moved if person}) | {"": 0}
            self.db.executemany(
                "INSERT INTO moved_days VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " units = units + excluded.units, transfers = transfers + excluded.transfers",
                [(people[person], *rest, *sums) for (person, *rest), sums in moved.items()],
            )
            self.db.execute("INSERT OR REPLACE INTO progress VALUES ('transfers', ?, x'')", (end,))
            return bool(end < last)


def _moved(debit: str, credit: str, code: int, units: int) -> Iterable[tuple[str, int]]:
    """Whose statement a transfer belongs on, and its amount there; "" is the whole ledger's."""
    yield "", units
    given, got = person_of(debit), person_of(credit)
    if code == Code.CORRECTION:
        if given:
            yield given, -units
        if got:
            yield got, units
    elif code in (Code.SETTLE, Code.PAID, Code.ENROLL) and given:
        yield given, units
