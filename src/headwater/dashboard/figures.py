"""Numbers as people read them: each with its unit, and in plain words where the digits alone say little.

Amounts come in as whole nano units and are written exactly; only words are rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from headwater.core.instants import format_instant
from headwater.core.money import NANO, PPB, format_units

MICRO: Final = 1_000_000


def money(units: int | str, currency: str = "") -> str:
    """An exact amount without zeros that say nothing.

    >>> money(4_213_000, "USD")
    '0.004213 USD'
    """
    text = format_units(int(units))
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0").ljust(2, "0")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    return f"{sign}{int(digits):,}.{fraction}{f' {currency}' if currency else ''}"


def money_words(units: int | str, currency: str) -> str:
    """What an amount comes to, in words, for amounts too small to picture.

    >>> money_words(4_213_000, "USD")
    'about 1 USD in 237 times this'
    """
    amount = int(units)
    if amount == 0:
        return "nothing"
    if abs(amount) >= NANO:
        return f"about {round(abs(amount) / NANO):,} {currency}"
    times = round(NANO / abs(amount))
    return f"about 1 {currency} in {times:,} times this"


def share(ppb: int, places: int = 1) -> str:
    """Parts per billion as a percentage; what is there but rounds to nothing is said to be less than the last place.

    >>> share(123_456_789), share(1), share(0)
    ('12.3 %', '< 0.1 %', '0 %')
    """
    if ppb == 0:
        return "0 %"
    percent = 100 * ppb / PPB
    least = 10.0**-places
    return f"< {least:g} %" if 0 < percent < least else f"{percent:.{places}f} %"


def one_in(ppb: int) -> str:
    """A share in words.

    >>> one_in(250_000_000), one_in(999_000_000), one_in(0)
    ('about a quarter', 'nearly all', 'nothing')
    """
    part = ppb / PPB
    for least, words in _PARTS:
        if part >= least:
            return words
    return "nothing" if ppb <= 0 else f"about 1 part in {round(1 / part):,}"


_PARTS: Final = (
    (0.995, "nearly all"),
    (0.85, "about nine tenths"),
    (0.7, "about three quarters"),
    (0.6, "about two thirds"),
    (0.45, "about half"),
    (0.29, "about a third"),
    (0.225, "about a quarter"),
    (0.175, "about a fifth"),
    (0.08, "about a tenth"),
)


def bits(micro: int) -> str:
    """Millionths of a bit as bits.

    >>> bits(12_340_000), bits(-40_000)
    ('12.3 bits', '−0.04 bits')
    """
    value = abs(micro) / MICRO
    digits = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
    return f"{'−' if micro < 0 else ''}{digits} bits"


def when(at_ns: int) -> str:
    """An instant, to the second, in UTC.

    >>> when(0)
    '1970-01-01 00:00:00 UTC'
    """
    return f"{format_instant(at_ns)[:19].replace('T', ' ')} UTC"


def count(number: int) -> str:
    """A whole number with its thousands apart."""
    return f"{number:,}"


def short(text: str, keep: int = 10) -> str:
    """The beginning of an id, for a link whose title holds the whole of it.

    >>> short("ctb_0123456789abcdef")
    'ctb_012345…'
    """
    return text if len(text) <= keep + 1 else f"{text[:keep]}…"


def duration(seconds: float) -> str:
    """A length of time in the largest unit that leaves at least one.

    >>> duration(90), duration(7200), duration(0.25)
    ('1.5 minutes', '2 hours', '0.25 seconds')
    """
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "money": money,
    "money_words": money_words,
    "share": share,
    "one_in": one_in,
    "bits": bits,
    "when": when,
    "count": count,
    "short": short,
    "duration": duration,
}
