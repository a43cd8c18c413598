"""Days as figures over time are drawn: each day of a stretch, or its weeks, with nothing left out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

_EPOCH = date(1970, 1, 1)


def day_text(day: int) -> str:
    """A day counted from 1970 as a date.

    >>> day_text(20_000)
    '2024-10-04'
    """
    return (_EPOCH + timedelta(days=day)).isoformat()


def filled(days: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """Every day from the first to the last with its amount, 0 where there was none.

    >>> filled([(0, 5), (2, 7)])
    [('01-01', 5), ('01-02', 0), ('01-03', 7)]
    """
    known = dict(days)
    return [(day_text(day)[5:], known.get(day, 0)) for day in range(min(known), max(known) + 1)] if known else []


def weekly(days: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """Sums of weeks from Monday on, from the first to the last, each named by its Monday.

    >>> weekly([(4, 1), (10, 2), (11, 4)])
    [('70-01-05', 3), ('70-01-12', 4)]
    """
    sums: dict[int, int] = {}
    for day, units in days:
        week = (day + 3) // 7  # 1970-01-01 was a Thursday
        sums[week] = sums.get(week, 0) + units
    if not sums:
        return []
    return [(day_text(7 * week - 3)[2:], sums.get(week, 0)) for week in range(min(sums), max(sums) + 1)]
