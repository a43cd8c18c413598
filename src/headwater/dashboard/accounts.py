"""Signing in and out."""

# Annotations stay live here: FastAPI resolves them.

from fastapi import APIRouter, Request
from fastapi.responses import Response

from headwater.dashboard.pages import Area, Pages
from headwater.dashboard.site import Site


def area(site: Site, pages: Pages) -> Area:
    """The routes under ``/sign-in`` and ``/sign-out``."""
    router = APIRouter()

    @router.get("/", response_class=Response)
    def start(request: Request) -> Response:
        models = list(site.gateway.model_names)
        return pages.show(request, "accounts/start.html", "headwater", {"models": models, "currency": site.currency})

    @router.post("/sign-out", response_class=Response)
    def sign_out(request: Request) -> Response:
        response = pages.redirect(request, "/", flash="signed_out")
        pages.sessions.sign_out(request, response)
        return response

    return Area("accounts", router)
