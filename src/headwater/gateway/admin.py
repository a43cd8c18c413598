"""The operator's routes under `/v1/admin`, for keys that were made with the route `admin`; every act is recorded.

An ordinary key gets 403 here, and an admin key is shown no caller's words: keys, limits, credit, states and the audit
trail only.
"""

# Annotations stay live here: FastAPI resolves them, and those of a route may name what its function encloses.

from typing import Annotated, Any, Final

import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from msgspec import UNSET

from headwater.core.canonical import refuse_deep
from headwater.core.errors import InvalidError, RefusedError
from headwater.core.instants import SECOND_NS, format_instant
from headwater.core.money import format_units
from headwater.gateway.admin_fields import LimitFields, NewDeposit, NewKey, Rotation
from headwater.gateway.administration import Administration
from headwater.gateway.bodies import body_up_to
from headwater.gateway.native import Routes, Service, json_response
from headwater.gateway.readiness import readiness, upstreams_json
from headwater.gateway.reload import Reloader
from headwater.store.key_limits import NO_LIMITS
from headwater.store.key_store import KeyRecord

BODY_BYTES_MAX: Final = 64 * 1024


def admin_routes(acts: Administration, reloader: Reloader) -> Routes:
    """The routes, for `create_app(more=…)`."""

    def add(app: FastAPI, service: Service) -> None:
        if service.gateway is not None:
            reloader.attach(service.gateway)
        admin = _admin(service)
        _key_routes(app, acts, admin)
        _service_routes(app, acts, service, reloader, admin)

    return add


def _admin(service: Service) -> Any:
    def admin(request: Request) -> KeyRecord:
        """The operator's key; one without the route `admin` is refused by `payer`."""
        return service.payer(request)

    return Annotated[KeyRecord, Depends(admin)]


def _key_routes(app: FastAPI, acts: Administration, Admin: Any) -> None:
    Body = Annotated[bytes, Depends(body_up_to(BODY_BYTES_MAX))]

    @app.get("/v1/admin/keys", response_class=Response, tags=["admin"])
    def keys(_: Admin) -> Response:
        """Every key with its limits, what it has committed and what is left."""
        return json_response({"data": [acts.key_json(key) for key in acts.keys.list()]})

    @app.post("/v1/admin/keys", response_class=Response, tags=["admin"])
    def create(raw: Body, admin: Admin) -> Response:
        """Make a key; its secret is in this response and nowhere else."""
        wanted = _read(raw, NewKey)
        given = LimitFields() if wanted.limits is UNSET else wanted.limits
        secret, key = acts.create(
            admin.key_id,
            wanted.label,
            mode=wanted.mode,
            budget_units=given.whole_budget(None),
            limits=given.limits(NO_LIMITS),
        )
        return json_response({"secret": secret, **acts.key_json(key)}, 201)

    @app.get("/v1/admin/keys/{key_id}", response_class=Response, tags=["admin"])
    def key(key_id: str, _: Admin) -> Response:
        """One key."""
        return json_response(acts.key_json(acts.keys.get(key_id)))

    @app.patch("/v1/admin/keys/{key_id}", response_class=Response, tags=["admin"])
    def limit(key_id: str, raw: Body, admin: Admin) -> Response:
        """Change a key's limits; what is not named stays."""
        wanted, before = _read(raw, LimitFields), acts.keys.get(key_id)
        changed = acts.limit(
            admin.key_id, key_id, wanted.limits(before.limits), wanted.whole_budget(before.budget_units)
        )
        return json_response(acts.key_json(changed))

    @app.delete("/v1/admin/keys/{key_id}", response_class=Response, tags=["admin"])
    def revoke(key_id: str, admin: Admin) -> Response:
        """Withdraw a key for good; its record and credit stay. Not the one that asks."""
        if key_id == admin.key_id:
            raise RefusedError("a key cannot revoke itself", code="key_in_use", fix="use another admin key")
        return json_response(acts.key_json(acts.revoke(admin.key_id, key_id)))

    @app.post("/v1/admin/keys/{key_id}/rotate", response_class=Response, tags=["admin"])
    def rotate(key_id: str, raw: Body, admin: Admin) -> Response:
        """Give a key a new secret; the old one works on for `grace_s` seconds."""
        wanted = _read(raw or b"{}", Rotation)
        secret, _, ends_ns = acts.rotate(admin.key_id, key_id, grace_ns=wanted.grace_s * SECOND_NS)
        return json_response({"key_id": key_id, "secret": secret, "old_secret_ends_at": format_instant(ends_ns)})

    @app.post("/v1/admin/keys/{key_id}/deposits", response_class=Response, tags=["admin"])
    def deposit(key_id: str, raw: Body, admin: Admin) -> Response:
        """Book money a payer has sent; the same reference is never booked twice."""
        wanted = _read(raw, NewDeposit)
        posted, credit = acts.deposit(admin.key_id, key_id, wanted.amount, wanted.reference)
        body = {"key_id": key_id, "replayed": posted.replayed, "available": format_units(credit)}
        return json_response(body, 200 if posted.replayed else 201)


def _service_routes(app: FastAPI, acts: Administration, service: Service, reloader: Reloader, Admin: Any) -> None:
    @app.get("/v1/admin/status", response_class=Response, tags=["admin"])
    def status(_: Admin) -> Response:
        """Readiness, queues, and how every upstream is doing."""
        _, state = readiness(service)
        relay = service.gateway.relay if service.gateway is not None else None
        return json_response({**state, "upstreams": upstreams_json(relay)})

    @app.post("/v1/admin/reload", response_class=Response, tags=["admin"])
    async def reload(admin: Admin) -> Response:
        """Take over the upstreams file as it is now; a wrong one changes nothing."""
        return json_response({"changes": await reloader.reload(admin.key_id)})

    @app.get("/v1/admin/audit", response_class=Response, tags=["admin"])
    def audit(_: Admin, before: int | None = None, limit: int = 100, subject: str | None = None) -> Response:
        """Who did what, newest first; `next` is the `before` of the next page."""
        if before is not None and not 0 < before < 2**62:
            raise InvalidError(f"before {before}", code="page_invalid", fix="use `next` of a page")
        rows = acts.trail.entries(before=before, limit=limit, subject=subject)
        number, head = acts.trail.head()
        return json_response(
            {
                "data": [row.to_json() for row in rows],
                "next": rows[-1].number if len(rows) == limit else None,
                "head": {"entries": number, "digest": head.hex()},
            }
        )


def _read(raw: bytes, shape: Any) -> Any:
    refuse_deep(raw)
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(str(error), code="request_invalid", fix="see /docs for the fields of this route") from None
