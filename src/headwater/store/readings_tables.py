"""Tables of what pages show: sums kept up to date beside the records, so that no page ever adds up a million receipts.

Everything here is derived. The file may be deleted at any time; it is filled again from the receipt log and the
ledger, and holds the same rows. Amounts are nano units, days are counted from 1970, months from year 0.

    progress       how far each source has been read, and the digest of what was read
    people, works  contributors and contributions that a receipt has named, under small numbers
    methods        estimator, version and grade
    flow_days      where money went: line x kind of contribution x kind of account
    call_days      answers: price, tokens, how many paid nobody in particular
    earned_days    contributor x day, with what callers paid and the operator's lines took of it
    earned_months  contributor x month
    used_months    contributor x month x contribution x method
    top_answers    the best paid answers of each contributor and month, `TOP_ANSWERS` of them
    moved_days     settled, paid, released or corrected since, of the whole ledger and (person > 0) of one contributor
    stale          periods whose measures of inequality are to be computed again
    inequality     what was computed
"""

from __future__ import annotations

from datetime import date
from typing import Final

TOP_ANSWERS: Final = 8

_STRICT: Final = "STRICT, WITHOUT ROWID"
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()

STEPS: Final = (
    f"""
    CREATE TABLE progress (source TEXT PRIMARY KEY, place INTEGER NOT NULL, mark BLOB NOT NULL) {_STRICT};
    CREATE TABLE people (person INTEGER PRIMARY KEY, contributor TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE works (work INTEGER PRIMARY KEY, contribution TEXT NOT NULL UNIQUE, kind TEXT NOT NULL) STRICT;
    CREATE TABLE methods (
      method INTEGER PRIMARY KEY,
      estimator TEXT NOT NULL, version TEXT NOT NULL, grade TEXT NOT NULL,
      UNIQUE (estimator, version, grade)
    ) STRICT;
    CREATE TABLE flow_days (
      asset TEXT NOT NULL, day INTEGER NOT NULL, line TEXT NOT NULL, kind TEXT NOT NULL, holder TEXT NOT NULL,
      units INTEGER NOT NULL, payouts INTEGER NOT NULL,
      PRIMARY KEY (asset, day, line, kind, holder)
    ) {_STRICT};
    CREATE TABLE call_days (
      asset TEXT NOT NULL, day INTEGER NOT NULL,
      answers INTEGER NOT NULL, price_units INTEGER NOT NULL,
      prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL,
      unsupplied INTEGER NOT NULL, unmeasured INTEGER NOT NULL, corrections INTEGER NOT NULL,
      PRIMARY KEY (asset, day)
    ) {_STRICT};
    CREATE TABLE earned_days (
      asset TEXT NOT NULL, day INTEGER NOT NULL, person INTEGER NOT NULL,
      units INTEGER NOT NULL, answers INTEGER NOT NULL, price_units INTEGER NOT NULL, fees_units INTEGER NOT NULL,
      PRIMARY KEY (asset, day, person)
    ) {_STRICT};
    CREATE INDEX earned_days_of_person ON earned_days (person, asset, day);
    CREATE TABLE earned_months (
      asset TEXT NOT NULL, month INTEGER NOT NULL, person INTEGER NOT NULL,
      units INTEGER NOT NULL, answers INTEGER NOT NULL,
      PRIMARY KEY (asset, month, person)
    ) {_STRICT};
    CREATE INDEX earned_months_best ON earned_months (asset, month, units DESC, person);
    CREATE TABLE used_months (
      person INTEGER NOT NULL, asset TEXT NOT NULL, month INTEGER NOT NULL, work INTEGER NOT NULL,
      method INTEGER NOT NULL,
      channels INTEGER NOT NULL, units INTEGER NOT NULL, answers INTEGER NOT NULL, microbits INTEGER NOT NULL,
      PRIMARY KEY (person, asset, month, work, method)
    ) {_STRICT};
    CREATE TABLE top_answers (
      person INTEGER NOT NULL, asset TEXT NOT NULL, month INTEGER NOT NULL, units INTEGER NOT NULL,
      place INTEGER NOT NULL, work INTEGER NOT NULL, microbits INTEGER NOT NULL, price_units INTEGER NOT NULL,
      PRIMARY KEY (person, asset, month, units, place)
    ) {_STRICT};
    CREATE TABLE moved_days (
      person INTEGER NOT NULL, asset TEXT NOT NULL, day INTEGER NOT NULL, code INTEGER NOT NULL,
      units INTEGER NOT NULL, transfers INTEGER NOT NULL,
      PRIMARY KEY (person, asset, day, code)
    ) {_STRICT};
    CREATE TABLE stale (asset TEXT NOT NULL, span TEXT NOT NULL, period INTEGER NOT NULL,
      PRIMARY KEY (asset, span, period)) {_STRICT};
    CREATE TABLE inequality (
      asset TEXT NOT NULL, span TEXT NOT NULL, period INTEGER NOT NULL,
      earners INTEGER NOT NULL, units INTEGER NOT NULL,
      gini REAL NOT NULL, theil REAL NOT NULL, hhi REAL NOT NULL, top1 REAL NOT NULL,
      PRIMARY KEY (asset, span, period)
    ) {_STRICT};
    """,
)

TABLES: Final = (
    "progress", "people", "works", "methods", "flow_days", "call_days", "earned_days", "earned_months", "used_months",
    "top_answers", "moved_days", "stale", "inequality",
)  # fmt: skip
"""Every table, to be emptied when the records turn out to be others than those that were read."""


def month_of(day: int) -> int:
    """The month that holds a day: months since year 0.

    >>> divmod(month_of(20_000), 12)
    (2024, 9)
    """
    found = date.fromordinal(_EPOCH_ORDINAL + day)
    return 12 * found.year + found.month - 1


def first_day(month: int) -> int:
    """The first day of a month.

    >>> month_of(first_day(24_300)), month_of(first_day(24_300) - 1)
    (24300, 24299)
    """
    return date(month // 12, month % 12 + 1, 1).toordinal() - _EPOCH_ORDINAL
