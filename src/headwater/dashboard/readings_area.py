"""The areas that show readings, under one keeper: contributors, the operator's desk, the economy and the factory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastapi import APIRouter
from markupsafe import Markup, escape

from headwater.dashboard import contributor, economy, factory, operator, operator_keys
from headwater.dashboard.pages import Area, Pages
from headwater.dashboard.periods import brief, day_text
from headwater.dashboard.readings_keeper import Keeper
from headwater.dashboard.site import Site

_AREAS: Final[tuple[Callable[[Site, Pages, Keeper], Area], ...]] = (
    operator.area,
    operator_keys.area,
    contributor.area,
    economy.area,
    factory.area,
)


def area(site: Site, pages: Pages) -> Area:
    """All of them as one, with the filters that their templates share."""
    keeper, router = Keeper(site), APIRouter()
    made = [each(site, pages, keeper) for each in _AREAS]
    for one in made:
        router.include_router(one.router)
    filters = {name: filter for one in made for name, filter in one.filters.items()}
    links = tuple(link for one in made for link in one.links)
    return Area("readings", router, links, filters | {"day": day_text, "put": put, "brief": brief})


def put(text: str, **values: object) -> Markup:
    """Words with values put in, of which only what is markup already stays markup.

    >>> put("{who} earned {sum}", who="<b>", sum=Markup("<strong>1</strong>"))
    Markup('&lt;b&gt; earned <strong>1</strong>')
    """
    return Markup(escape(text)).format(**values)  # the words are ours, values are escaped by format
