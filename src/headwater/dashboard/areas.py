"""The areas of the pages, in the order of the navigation: add a module's `area` here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from headwater.dashboard import accounts, ask, explorer, readings_area, receipts
from headwater.dashboard.pages import Area, Pages
from headwater.dashboard.site import Site

AREAS: Final[tuple[Callable[[Site, Pages], Area], ...]] = (
    explorer.area,
    ask.area,
    receipts.area,
    readings_area.area,
    accounts.area,
)
