"""What pages ask of the readings: each question is answered from a few rows, however many receipts there are.

Days are inclusive and counted from 1970, amounts nano units. Knows nothing of who may see an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.ledger import Code
from headwater.store.database import Sql
from headwater.store.readings_sums import CALL_COLUMNS, CHANNELS
from headwater.store.readings_tables import TOP_ANSWERS, month_of


@dataclass(frozen=True, slots=True)
class Flow:
    """What went by one line to one kind of contribution and of account."""

    line: str
    kind: str  # of contribution: document, prompt, …; empty where none is named
    holder: str  # kind of account: contributor, escrow, operator or commons
    units: int
    payouts: int


@dataclass(frozen=True, slots=True)
class Calls:
    """Answers and what was paid for them."""

    answers: int
    price_units: int
    prompt_tokens: int
    answer_tokens: int
    unsupplied: int  # answers that paid no contribution
    unmeasured: int  # answers whose bits were not measured
    corrections: int  # receipts that superseded another


@dataclass(frozen=True, slots=True)
class DayEarned:
    """What a contributor earned on a day."""

    day: int
    units: int
    answers: int
    price_units: int  # what callers paid for those answers
    fees_units: int  # what the operator's lines took of that


@dataclass(frozen=True, slots=True)
class Work:
    """One contribution in the answers of a period, as one method measured it."""

    contribution: str  # empty for what is paid without naming one
    kind: str
    channels: tuple[str, ...]
    estimator: str
    version: str
    grade: str
    units: int
    answers: int
    microbits: int  # what it explained in those answers, all owners together


@dataclass(frozen=True, slots=True)
class TopAnswer:
    """One of the answers that paid a contributor most."""

    place: int  # in the receipt log
    units: int
    contribution: str  # the one that was paid most in it
    microbits: int  # of that one
    price_units: int


@dataclass(frozen=True, slots=True)
class Earner:
    """A contributor by what it earned."""

    contributor: str
    units: int
    answers: int


@dataclass(frozen=True, slots=True)
class Inequality:
    """How unevenly what contributors earned in a period was spread."""

    period: int  # a day or a month
    earners: int
    units: int
    gini: float
    theil: float
    hhi: float  # Herfindahl index: 1 / hhi is how many equal earners there would be
    top1: float  # part of the best paid hundredth


class Questions:
    """Answers from the readings in `db`, in one currency."""

    def __init__(self, db: Sql, asset: str) -> None:
        self._db, self._asset = db, asset

    # The whole

    def days(self) -> tuple[int, int] | None:
        """The first and the last day with an answer."""
        rows = self._db.query("SELECT min(day), max(day) FROM call_days WHERE asset = ?", (self._asset,))
        return None if rows[0][0] is None else (rows[0][0], rows[0][1])

    def flows(self, first: int, last: int) -> tuple[Flow, ...]:
        """Where the money of a period went, largest first."""
        rows = self._db.query(
            "SELECT line, kind, holder, sum(units), sum(payouts) FROM flow_days"
            " WHERE asset = ? AND day BETWEEN ? AND ? GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3",
            (self._asset, first, last),
        )
        return tuple(Flow(*row) for row in rows)

    def lines_by_day(self, first: int, last: int) -> tuple[tuple[int, str, int], ...]:
        """(day, line, nano units), by day."""
        rows = self._db.query(
            "SELECT day, line, sum(units) FROM flow_days WHERE asset = ? AND day BETWEEN ? AND ? GROUP BY 1, 2"
            " ORDER BY 1, 2",
            (self._asset, first, last),
        )
        return tuple((day, line, units) for day, line, units in rows)

    def calls(self, first: int, last: int) -> Calls:
        """The answers of a period."""
        rows = self._db.query(f"SELECT {_CALL_SUMS} FROM call_days WHERE asset = ? AND day BETWEEN ? AND ?",
                              (self._asset, first, last))  # fmt: skip
        return Calls(*rows[0])

    def calls_by_day(self, first: int, last: int) -> tuple[tuple[int, Calls], ...]:
        """The answers of each day that had any."""
        rows = self._db.query(
            f"SELECT day, {_CALL_SUMS} FROM call_days WHERE asset = ? AND day BETWEEN ? AND ? GROUP BY 1 ORDER BY 1",
            (self._asset, first, last),
        )
        return tuple((row[0], Calls(*row[1:])) for row in rows)

    def moved(self, first: int, last: int, *, contributor: str = "") -> dict[Code, int]:
        """Nano units moved by each code other than calls' own; of one contributor, corrections are signed."""
        person = 0 if not contributor else self._person(contributor)
        rows = self._db.query(
            "SELECT code, sum(units) FROM moved_days WHERE person = ? AND asset = ? AND day BETWEEN ? AND ? GROUP BY 1",
            (person, self._asset, first, last),
        )
        return {Code(code): units for code, units in rows}

    def inequality(self, span: str, first: int, last: int) -> tuple[Inequality, ...]:
        """Measures of each period from `first` to `last`; `span` is day or month."""
        rows = self._db.query(
            "SELECT period, earners, units, gini, theil, hhi, top1 FROM inequality"
            " WHERE asset = ? AND span = ? AND period BETWEEN ? AND ? ORDER BY period",
            (self._asset, span, first, last),
        )
        return tuple(Inequality(*row) for row in rows)

    def best(self, month: int, *, limit: int, skip: int = 0) -> tuple[Earner, ...]:
        """Who earned most in a month."""
        rows = self._db.query(
            "SELECT contributor, units, answers FROM earned_months JOIN people USING (person)"
            " WHERE asset = ? AND month = ? ORDER BY units DESC, person LIMIT ? OFFSET ?",
            (self._asset, month, limit, skip),
        )
        return tuple(Earner(*row) for row in rows)

    def months(self) -> tuple[int, ...]:
        """Months with an answer, newest first."""
        rows = self._db.query("SELECT DISTINCT day FROM call_days WHERE asset = ? ORDER BY 1 DESC", (self._asset,))
        return tuple(dict.fromkeys(month_of(day) for (day,) in rows))

    # One contributor

    def earned(self, contributor: str, first: int, last: int) -> tuple[DayEarned, ...]:
        """What a contributor earned, day by day; days without are left out."""
        rows = self._db.query(
            "SELECT day, units, answers, price_units, fees_units FROM earned_days INDEXED BY earned_days_of_person"
            " WHERE person = ? AND asset = ? AND day BETWEEN ? AND ? ORDER BY day",
            (self._person(contributor), self._asset, first, last),
        )
        return tuple(DayEarned(*row) for row in rows)

    def used(self, contributor: str, first_month: int, last_month: int, *, limit: int) -> tuple[Work, ...]:
        """The contributions that earned a contributor most, by method."""
        rows = self._db.query(
            "SELECT coalesce(contribution, ''), coalesce(kind, ''), channels, estimator, version, grade,"
            " units, answers, microbits FROM ("
            "  SELECT work, method, max(channels & 1) + max(channels & 2) + max(channels & 4) AS channels,"
            "  sum(units) AS units, sum(answers) AS answers, sum(microbits) AS microbits FROM used_months"
            "  WHERE person = ? AND asset = ? AND month BETWEEN ? AND ? GROUP BY work, method"
            "  ORDER BY units DESC, work LIMIT ?"
            " ) LEFT JOIN works USING (work) JOIN methods USING (method) ORDER BY units DESC, work",
            (self._person(contributor), self._asset, first_month, last_month, limit),
        )
        return tuple(Work(row[0], row[1], channels_of(row[2]), *row[3:]) for row in rows)

    def used_count(self, contributor: str, first_month: int, last_month: int) -> int:
        """How many contributions of a contributor were paid."""
        rows = self._db.query(
            "SELECT count(DISTINCT work) FROM used_months WHERE person = ? AND asset = ? AND month BETWEEN ? AND ?"
            " AND work > 0",
            (self._person(contributor), self._asset, first_month, last_month),
        )
        return int(rows[0][0])

    def top(self, contributor: str, first_month: int, last_month: int, *, limit: int) -> tuple[TopAnswer, ...]:
        """The answers that paid a contributor most, at most `TOP_ANSWERS` of them."""
        rows = self._db.query(
            "SELECT place, units, coalesce(contribution, ''), microbits, price_units FROM top_answers"
            " LEFT JOIN works USING (work) WHERE person = ? AND asset = ? AND month BETWEEN ? AND ?"
            " ORDER BY units DESC, place LIMIT ?",
            (self._person(contributor), self._asset, first_month, last_month, min(limit, TOP_ANSWERS)),
        )
        return tuple(TopAnswer(*row) for row in rows)

    def _person(self, contributor: str) -> int:
        rows = self._db.query("SELECT person FROM people WHERE contributor = ?", (contributor,))
        return int(rows[0][0]) if rows else -1


def channels_of(mask: int) -> tuple[str, ...]:
    """The channels that a number stands for.

    >>> channels_of(5)
    ('grounded', 'reproduced')
    """
    return tuple(name for place, name in enumerate(CHANNELS) if mask >> place & 1)


def paid(sums: Sequence[DayEarned]) -> DayEarned:
    """Days added up; its day is the last one's."""
    columns = ("units", "answers", "price_units", "fees_units")
    return DayEarned(sums[-1].day if sums else 0, *(sum(getattr(one, name) for one in sums) for name in columns))


_CALL_SUMS = ", ".join(f"coalesce(sum({name}), 0)" for name in CALL_COLUMNS)
