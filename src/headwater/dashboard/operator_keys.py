"""API keys at the operator's desk: who may call, for what, up to how much. Secrets are shown once."""

# Annotations stay live here: FastAPI resolves them.

from typing import Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from headwater.core.errors import InvalidError
from headwater.core.instants import DAY_NS, parse_instant
from headwater.core.money import parse_units
from headwater.dashboard.jobs import whole
from headwater.dashboard.pages import Area, Pages
from headwater.dashboard.readings_keeper import Keeper
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.gateway.administration import Administration
from headwater.store.audit_trail import AuditTrail
from headwater.store.key_limits import NO_LIMITS, ROUTES, KeyLimits

GRACE_NS: Final = DAY_NS
_AMOUNTS: Final = (
    ("budget_day", "budget_day_units"),
    ("budget_month", "budget_month_units"),
    ("money_per_minute", "units_per_minute"),
)
_COUNTS: Final = ("requests_per_minute", "tokens_per_minute")


def area(site: Site, pages: Pages, _: Keeper) -> Area:
    """The routes under ``/operator/keys``."""
    router = APIRouter()
    acts = Administration(site.keys, site.ledger, AuditTrail(site.db), site.currency, site.now_ns, site.random_bytes)

    def actor(request: Request) -> str:
        return f"operator:{pages.sessions.require(request, 'operator').subject}"

    def listed(request: Request, secret: str = "", key_id: str = "") -> Response:
        data = {
            "keys": [acts.key_json(key) for key in site.keys.list()],
            "routes": list(ROUTES),
            "secret": secret,
            "secret_of": key_id,
        }
        return pages.show(request, "operator/keys.html", say("operator.keys"), data)

    @router.get("/operator/keys", response_class=Response)
    def keys(request: Request) -> Response:
        actor(request)
        return listed(request)

    @router.post("/operator/keys", response_class=Response)
    def create(request: Request, label: str = Form(), mode: str = Form("test"), budget: str = Form("")) -> Response:
        who = actor(request)
        if mode not in ("test", "live"):
            raise InvalidError(f"mode {mode[:20]!r}", code="field_invalid", fix="choose test or live")
        secret, key = acts.create(
            *(who, label.strip()),
            mode="live" if mode == "live" else "test",
            budget_units=_amount(budget, "budget"),
            limits=NO_LIMITS,
        )
        return listed(request, secret, key.key_id)

    @router.get("/operator/keys/{key_id}", response_class=Response)
    def key(request: Request, key_id: str) -> Response:
        actor(request)
        found = site.keys.get(key_id)
        models = sorted(site.gateway.model_names)
        data: dict[str, Any] = {"key": acts.key_json(found), "routes": list(ROUTES), "models": models}
        return pages.show(request, "operator/key.html", found.label, data)

    @router.post("/operator/keys/{key_id}/limits", response_class=Response)
    async def limit(request: Request, key_id: str) -> Response:
        who, form = actor(request), await request.form()
        plain = {name: str(value).strip() for name, value in form.items()}
        chosen = KeyLimits(
            models=tuple(str(one) for one in form.getlist("models")),
            routes=tuple(str(one) for one in form.getlist("routes")),
            expires_at_ns=parse_instant(plain["expires_at"]) if plain.get("expires_at") else None,
            **{field: _amount(plain.get(name, ""), name) for name, field in _AMOUNTS},
            **{name: whole(plain[name], name, 1, 10**12) if plain.get(name) else None for name in _COUNTS},
        )
        acts.limit(who, key_id, chosen, _amount(plain.get("budget", ""), "budget"))
        return pages.redirect(request, f"/operator/keys/{key_id}", flash="key_limited")

    @router.post("/operator/keys/{key_id}/deposit", response_class=Response)
    def deposit(request: Request, key_id: str, amount: str = Form(), reference: str = Form()) -> Response:
        acts.deposit(actor(request), key_id, amount.strip(), reference.strip())
        return pages.redirect(request, f"/operator/keys/{key_id}", flash="key_credited")

    @router.post("/operator/keys/{key_id}/rotate", response_class=Response)
    def rotate(request: Request, key_id: str) -> Response:
        secret, key, _ends = acts.rotate(actor(request), key_id, grace_ns=GRACE_NS)
        return listed(request, secret, key.key_id)

    @router.post("/operator/keys/{key_id}/revoke", response_class=Response)
    def revoke(request: Request, key_id: str) -> Response:
        acts.revoke(actor(request), key_id)
        return pages.redirect(request, f"/operator/keys/{key_id}", flash="key_revoked")

    return Area("operator_keys", router)


def _amount(text: str, name: str) -> int | None:
    """Nano units of an amount in the currency; nothing for an empty field."""
    return parse_units(text.strip(), where=name) if text.strip() else None
