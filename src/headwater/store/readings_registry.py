"""What pages ask of registry and epochs that would otherwise read whole lists: people by name, what one of them owns.

Knows nothing of money or of who may see an answer.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from headwater.store.database import Sql
from headwater.store.exploring import HOLDS, pattern

_STEPS = ("CREATE INDEX contributors_by_name ON contributors (name, id);",)
_KEPT_MAX = 1_024

COUNTED_MAX = 1_000
"""In a list, contributions are counted up to here."""


def prepare(db: Sql) -> None:
    """Make what these questions need besides the registry's own tables; to be called once the registry is open."""
    db.migrate("readings_registry", _STEPS)


@dataclass(frozen=True, slots=True)
class Person:
    """A contributor in a list."""

    id: str
    name: str
    namespace: str
    enrolled: bool
    contributions: int  # at most COUNTED_MAX


@dataclass(frozen=True, slots=True)
class Holding:
    """What one contributor owns, in whole or in part."""

    contributions: int
    kinds: tuple[tuple[str, int], ...]  # most first
    closed: int  # whose licence does not permit grounding an answer
    priced: int  # with a price floor, so that cheaper calls leave them out


@dataclass(frozen=True, slots=True)
class EpochLine:
    """A closed epoch in a list: its manifest is not read."""

    epoch: int
    log_size: int
    closed_at_ns: int
    posted: bool


def epoch_lines(db: Sql, *, limit: int) -> tuple[EpochLine, ...]:
    """The newest epochs first."""
    rows = db.query(
        "SELECT epoch, log_size, closed_at_ns, transaction_hash IS NOT NULL FROM epochs ORDER BY epoch DESC LIMIT ?",
        (limit,),
    )
    return tuple(EpochLine(row[0], row[1], row[2], bool(row[3])) for row in rows)


def people(db: Sql, *, words: str = "", after: tuple[str, str] = ("", ""), limit: int) -> tuple[Person, ...]:
    """Contributors by name, from behind (name, id) `after`; those whose name holds `words` when given."""
    named, wanted = (f" AND {HOLDS.format('name')}", (pattern(words),)) if words else ("", ())
    rows = db.query(
        "SELECT id, name, namespace, payout_address IS NOT NULL,"
        f" (SELECT count(*) FROM (SELECT 1 FROM present_owners WHERE contributor_id = id LIMIT {COUNTED_MAX}) AS owned)"
        f" FROM contributors WHERE (name, id) > (?, ?){named} ORDER BY name, id LIMIT ?",
        (*after, *wanted, limit),
    )
    return tuple(Person(row[0], row[1], row[2], bool(row[3]), row[4]) for row in rows)


def names(db: Sql, ids: tuple[str, ...]) -> dict[str, str]:
    """The names of contributors; those nobody knows are left out."""
    return dict(db.query_in("SELECT id, name FROM contributors WHERE id IN ({})", ids))


def titles(db: Sql, ids: tuple[str, ...]) -> dict[str, str]:
    """The titles of contributions; those nobody knows are left out."""
    return dict(db.query_in("SELECT id, title FROM contributions WHERE id IN ({})", ids))


class Holdings:
    """What contributors own, kept until anything is registered or changes hands. Safe for several threads."""

    def __init__(self, db: Sql) -> None:
        self._db = db
        self._kept: dict[str, Holding] = {}
        self._mark: tuple[int, int] = (-1, -1)
        self._lock = threading.Lock()

    def of(self, contributor: str) -> Holding:
        """What a contributor owns now."""
        rows = self._db.query(
            "SELECT (SELECT coalesce(max(number), 0) FROM contributions),"
            " (SELECT coalesce(max(number), 0) FROM owner_changes)"
        )
        mark = (int(rows[0][0]), int(rows[0][1]))
        with self._lock:
            if mark != self._mark or len(self._kept) >= _KEPT_MAX:
                self._kept, self._mark = {}, mark
            found = self._kept.get(contributor)
        if found is None:
            found = holding(self._db, contributor)
            with self._lock:
                if mark == self._mark:
                    self._kept[contributor] = found
        return found


def holding(db: Sql, contributor: str) -> Holding:
    """What a contributor owns."""
    rows = db.query(
        "SELECT kind, count(*), count(*) FILTER (WHERE ' ' || uses || ' ' NOT LIKE '% ground %'),"
        " count(*) FILTER (WHERE price_floor_units <> '0')"
        " FROM present_owners JOIN contributions ON id = contribution_id WHERE contributor_id = ?"
        " GROUP BY kind ORDER BY 2 DESC, 1",
        (contributor,),
    )
    return Holding(
        sum(row[1] for row in rows),
        tuple((row[0], row[1]) for row in rows),
        sum(row[2] for row in rows),
        sum(row[3] for row in rows),
    )
