"""The pages as one application, and the front that serves them beside the gateway on one address.

Whatever the gateway knows goes to the gateway untouched; the rest are pages. Every response of a page carries the
same strict headers: only files of ours run, nothing inline, nobody frames us.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlencode

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from headwater.core.errors import HeadwaterError
from headwater.dashboard.areas import AREAS
from headwater.dashboard.assets import PREFIX, Assets
from headwater.dashboard.pages import Pages, wants_json
from headwater.dashboard.sessions import Sessions
from headwater.dashboard.site import Site
from headwater.gateway import Gateway, GatewayOptions
from headwater.gateway.errors import Failure, failure_of, place_of
from headwater.gateway.lane import Lane
from headwater.gateway.wire import Message, Receive, Scope, Send

BODY_BYTES_MAX: Final = 2**20
"""Largest form or message that a page takes."""

_GATEWAYS: Final = frozenset(
    ("/v1", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/license.xml", "/robots.txt")
)
_GATEWAYS_BELOW: Final = ("/v1/", "/.well-known/", "/log/")
"""What is not for people: clients' routes, and what other systems look for at fixed places."""

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
)
_STRICT: Final = (b"strict-transport-security", b"max-age=31536000")

_log = logging.getLogger("headwater.dashboard")

App = Callable[[Scope, Receive, Send], Awaitable[None]]


def dashboard_app(site: Site) -> App:
    """The application with every page of `site`, ready for an ASGI server or for `front`."""
    sessions, assets = Sessions.open(site), Assets()
    pages = Pages(site, sessions, assets)

    async def held(request: Request) -> None:
        await sessions.check_csrf(request)

    app = FastAPI(title="headwater pages", docs_url=None, redoc_url=None, openapi_url=None)
    for area in AREAS:
        made = area(site, pages)
        pages.add(made)
        app.include_router(made.router, dependencies=[Depends(held)])
    app.add_route(PREFIX + "{path:path}", lambda request: assets.serve(request), methods=["GET", "HEAD"])
    _failures(app, pages)
    inner: App = GZipMiddleware(_Twins(_Bounded(app)), minimum_size=500, compresslevel=5)
    return _Headers(inner, https=site.settings.public_url.startswith("https:"))


def front(gateway: Gateway, pages: App) -> Front:
    """Gateway and pages on one address."""
    return Front(gateway, pages)


class Front:
    """The ASGI application of `headwater serve`: what is the gateway's goes there, all else is a page."""

    def __init__(self, gateway: Gateway, pages: App) -> None:
        self.gateway, self._pages = gateway, pages

    @property
    def lane(self) -> Lane | None:
        """The gateway's: its calls have no page in front of them."""
        return self.gateway.lane

    @property
    def start_error(self) -> Exception | None:
        """Why the gateway's lifespan did not begin."""
        return self.gateway.start_error

    @property
    def options(self) -> GatewayOptions:
        """The gateway's."""
        return self.gateway.options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan, which is the gateway's."""
        path = scope.get("path", "")
        if scope["type"] != "http" or path in _GATEWAYS or path.startswith(_GATEWAYS_BELOW):
            await self.gateway(scope, receive, send)
        else:
            await self._pages(scope, receive, send)


def _failures(app: FastAPI, pages: Pages) -> None:
    def told(request: Request, error: Exception) -> Response:
        assert isinstance(error, HeadwaterError)
        if error.code == "sign_in_needed" and request.method == "GET" and not wants_json(request):
            path = request.scope["path"]
            return RedirectResponse("/sign-in?" + urlencode({"next": path}), 303)
        return pages.error(request, error)

    def told_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "route_unknown", 405: "method_not_allowed"}.get(error.status_code, "request_invalid")
        text = "there is nothing here" if error.status_code == 404 else str(error.detail)
        return pages.failure(request, Failure(error.status_code, code, text))

    def told_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        where = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors()[:5])
        return pages.failure(request, Failure(400, "request_invalid", f"wrong or missing: {where}"))

    def told_unplanned(request: Request, error: Exception) -> Response:
        _log.error("a page failed with %s\n%s", type(error).__name__, place_of(error))
        return pages.failure(request, failure_of(error))

    app.add_exception_handler(HeadwaterError, told)
    app.add_exception_handler(HTTPException, told_http)
    app.add_exception_handler(RequestValidationError, told_validation)
    app.add_exception_handler(Exception, told_unplanned)


class _Headers:
    """Adds the headers that every page has."""

    def __init__(self, app: App, *, https: bool) -> None:
        self._app = app
        self._headers = (*_HEADERS, _STRICT) if https else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        await self._app(scope, receive, sending)


class _Twins:
    """Reads ``/page.json`` as ``/page``, asked for as JSON."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path.endswith(".json") and not path.startswith(PREFIX):
            plain = path.removesuffix(".json")
            scope = {**scope, "path": "/" if plain == "/index" else plain, "headwater.json": True}
        await self._app(scope, receive, send)


class _Bounded:
    """Refuses bodies that are too large, before and while they are read."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = 0

        async def reading() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > BODY_BYTES_MAX:
                raise HTTPException(413, f"send at most {BODY_BYTES_MAX} bytes")
            return message

        await self._app(scope, reading, send)
