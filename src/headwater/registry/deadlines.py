"""Time that deadlines are counted in: it never goes back and never leaps, whatever the machine's clock does.

A window to appeal or to answer is a promise of *time in which one could act*. So deadlines are instants of a clock
that is moved on only by as much time as was seen to pass: a machine clock set back adds nothing, and one set far
ahead, or a home that was closed for long, adds at most `STEP_NS_MAX` at a time. Pure: the reading is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from headwater.core.instants import DAY_NS

STEP_NS_MAX: Final = DAY_NS
"""Most that one reading may move the clock on."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The time that counts, and the machine's clock when it was last read."""

    counted_ns: int
    read_ns: int


def start(now_ns: int) -> Clock:
    """A clock that begins with the machine's."""
    return Clock(now_ns, now_ns)


def moved_on(clock: Clock, now_ns: int) -> Clock:
    """`clock` after the machine's clock was read again.

    >>> moved_on(Clock(100, 50), 60), moved_on(Clock(100, 50), 20)
    (Clock(counted_ns=110, read_ns=60), Clock(counted_ns=100, read_ns=20))
    """
    return Clock(clock.counted_ns + min(max(0, now_ns - clock.read_ns), STEP_NS_MAX), now_ns)
