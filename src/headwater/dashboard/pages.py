"""How a page is made: one function that gives plain data, shown as HTML by a template or as JSON to who asks for that.

A route gathers a mapping of plain values and calls `Pages.show`. The same mapping is the page's JSON twin, at the
same address with `.json` behind it, or for `Accept: application/json`; so a page can say nothing that its twin does
not. Amounts stay whole numbers of nano units until a template's filter writes them.

An area is a module with a function `area(site, pages) -> Area`, listed in `areas`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from headwater.core.errors import HeadwaterError
from headwater.dashboard import figures
from headwater.dashboard.assets import Assets
from headwater.dashboard.sessions import Session, Sessions
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.gateway.errors import Failure, failure_of

FLASH: Final = "headwater_flash"
"""Cookie that carries the key of one sentence over a redirect."""


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the navigation."""

    path: str
    label: str  # key of its words
    roles: tuple[str, ...] = ()  # who sees it; nobody named: everybody


@dataclass(frozen=True, slots=True)
class Area:
    """One part of the pages: its routes, and what the navigation shows of it."""

    name: str
    router: APIRouter
    links: tuple[Link, ...] = ()
    filters: Mapping[str, Any] = field(default_factory=dict)  # of its templates


class Pages:
    """Makes responses out of data; one for the whole application."""

    def __init__(self, site: Site, sessions: Sessions, assets: Assets) -> None:
        self.site, self.sessions, self.assets = site, sessions, assets
        self._links: tuple[Link, ...] = ()
        self._environment = Environment(
            loader=PackageLoader("headwater.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(figures.FILTERS)
        self._environment.globals.update(
            say=say, asset=assets.address, csrf_field=_csrf_field, currency=site.currency, icon=assets.icon
        )

    def add(self, area: Area) -> None:
        """Show an area's links, and give its templates its filters."""
        self._links += area.links
        self._environment.filters.update(area.filters)

    def session(self, request: Request) -> Session | None:
        """Who asks, if they have signed in."""
        return self.sessions.of(request)

    def show(
        self,
        request: Request,
        template: str,
        title: str,
        data: Mapping[str, Any],
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """A page, or its JSON twin.

        Args:
            template: under ``templates/``, extending ``base.html``.
            title: already in words.
            data: plain values that JSON can hold; the template sees each under its name.
        """
        if wants_json(request):
            response = Response(msgspec.json.encode(data), status, dict(headers or {}), media_type="application/json")
        else:
            html = self._environment.get_template(template).render(self._frame(request, title), **data)
            response = Response(html, status, dict(headers or {}), media_type="text/html; charset=utf-8")
            if FLASH in request.cookies:
                response.delete_cookie(FLASH, path="/", httponly=True, samesite="strict")
            self.sessions.begin(request, response)
        response.headers.setdefault("cache-control", "no-store")
        response.headers["vary"] = "Accept, Cookie"
        return response

    def fragment(self, request: Request, template: str, data: Mapping[str, Any], *, status: int = 200) -> Response:
        """A piece of a page, as htmx asks for it; or the JSON of it."""
        if wants_json(request):
            return Response(msgspec.json.encode(data), status, media_type="application/json")
        html = self._environment.get_template(template).render(self._frame(request, ""), **data)
        return Response(html, status, {"cache-control": "no-store"}, media_type="text/html; charset=utf-8")

    def failure(self, request: Request, failure: Failure) -> Response:
        """An error as a page, or as RFC 9457 to who asks for JSON."""
        if wants_json(request):
            headers = {name.decode(): value.decode() for name, value in failure.headers()}
            return Response(failure.problem(), failure.status, headers, media_type="application/problem+json")
        phrase = HTTPStatus(failure.status).phrase
        data = {"status": failure.status, "code": failure.code, "message": failure.message, "phrase": phrase}
        told = {"retry-after": str(failure.retry_after_s)} if failure.retried else {}
        return self.show(request, "error.html", phrase, data, status=failure.status, headers=told)

    def error(self, request: Request, error: HeadwaterError) -> Response:
        """What an error of ours says."""
        failure = failure_of(error)
        return self.failure(request, replace(failure, status=401) if error.code == "sign_in_needed" else failure)

    def redirect(self, request: Request, path: str, *, flash: str | None = None) -> Response:
        """To another page after something was done; `flash` is the key of a sentence that it shows once."""
        if wants_json(request):
            done = {"next": path, "message": say(f"flash.{flash}") if flash else None}
            return Response(msgspec.json.encode(done), 200, media_type="application/json")
        response = RedirectResponse(path, 303)
        if flash is not None:
            say(f"flash.{flash}")  # a key nobody knows is found here, not on the next page
            secure = self.sessions.secure(request)
            response.set_cookie(FLASH, flash, max_age=60, path="/", httponly=True, samesite="strict", secure=secure)
        return response

    def _frame(self, request: Request, title: str) -> dict[str, Any]:
        session = self.session(request)
        flash = request.cookies.get(FLASH, "")
        return {
            "request": request,
            "title": title,
            "session": session,
            "csrf": self.sessions.csrf(request),
            "links": [link for link in self._links if not link.roles or (session and session.role in link.roles)],
            "here": request.scope["path"],
            "flash": say(f"flash.{flash}", default="") if flash.isidentifier() else "",
            "twin": twin_of(request),
        }


def wants_json(request: Request) -> bool:
    """Whether a request is for the JSON twin."""
    if request.scope.get("headwater.json"):
        return True
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted


def twin_of(request: Request) -> str:
    """Address of the JSON twin of the page that is asked for."""
    path = request.scope["path"].rstrip("/") or "/index"
    query = request.url.query
    return f"{path}.json" + (f"?{query}" if query else "")


@pass_context
def _csrf_field(context: Context) -> Markup:
    return Markup('<input type="hidden" name="csrf" value="{}">').format(context["csrf"])
