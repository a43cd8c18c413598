"""What was looked up a moment ago, so that a busy process asks the database once a second and not once a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

RECENT_S: Final = 1.0


def recent(look: Callable[[], str]) -> Callable[[], str]:
    """What `look` saw at most `RECENT_S` ago; an empty answer is looked up again."""
    seen, at_s = "", -1.0

    def cached() -> str:
        nonlocal seen, at_s
        now_s = time.monotonic()
        if now_s - at_s > RECENT_S or not seen:
            seen, at_s = look(), now_s
        return seen

    return cached
