"""Days as figures over time are drawn: each of a stretch, or its weeks, with nothing left out; and short amounts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

from headwater.core.money import NANO

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


def brief(units: int, currency: str = "") -> str:
    """An amount in four figures or to the hundredth, for a headline; a table beside it has the exact one.

    >>> brief(78_973_655_544, "USD"), brief(4_213_777), brief(0), brief(-1_500_000_000)
    ('78.97 USD', '0.004214', '0.00', '-1.50')
    """
    whole = abs(units)
    if whole >= NANO // 10 or whole == 0:
        text = f"{whole / NANO:,.2f}"
    else:
        places = 13 - len(str(whole))  # four figures that count
        text = f"{whole / NANO:.{max(2, places)}f}".rstrip("0")
    return f"{'-' if units < 0 else ''}{text}{f' {currency}' if currency else ''}"
