"""What other systems look for at fixed places: manifest, licence terms, robots, telemetry both ways, the log's tiles.

    /.well-known/content-telemetry.json   who runs this and where telemetry goes
    /license.xml  /robots.txt             RSL terms of what may be used here, and the line that points there
    /v1/receipts/{id}/telemetry           one paid answer as a Content Telemetry session
    /v1/receipts/{id}/attribution         the same as a fractional-attribution report
    /v1/telemetry                         events and reports that others send, and those a key has sent
    /log/checkpoint  /log/tile/…          the receipt log for transparency-log tools

Public routes say nothing of callers. The log's entries are receipts, whose payers are pseudonyms; a gateway that does
not want its receipts read gives no tile server.
"""

# Annotations stay live here: FastAPI resolves them, and those of a route may name what its function encloses.

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse, Response

from headwater.core.errors import InvalidError, MissingError
from headwater.core.ids import ContributionId
from headwater.gateway.bodies import body_up_to
from headwater.gateway.native import Routes, Service, json_response
from headwater.gateway.own_calls import own_call
from headwater.receipts import Receipt
from headwater.receipts.content_telemetry import (
    Content,
    fractional_report,
    manifest_json,
    read_document,
    read_fractional,
    session_json,
)
from headwater.receipts.content_telemetry.documents import DOCUMENT_BYTES_MAX
from headwater.registry.rsl import Terms, write_rsl
from headwater.store import exploring
from headwater.store.consent_store import ConsentStore
from headwater.store.key_store import KeyRecord
from headwater.store.registry_store import RegistryStore
from headwater.store.telemetry_store import PAGE_MAX, TelemetryStore

RSL_TYPE: Final = "application/rsl+xml"
LICENSED_MAX: Final = 1_000
"""Contributions listed one by one in the licence file, the newest; older ones say their terms at their own pages."""

_DAY: Final = {"cache-control": "public, max-age=3600"}


@dataclass(frozen=True, slots=True)
class Standards:
    """What this gateway says of itself.

    Raises:
        InvalidError: ``public_url_invalid``.
    """

    public_url: str  # where others reach it, such as https://ai.example
    operator: str  # name for people
    log_key: str | None = None  # Ed25519 of the log, multibase
    tile: Callable[[str], bytes | None] | None = None  # the log's file at a path

    def __post_init__(self) -> None:
        parts = urlsplit(self.public_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise InvalidError(
                f"public URL {self.public_url[:80]!r}",
                code="public_url_invalid",
                fix="give scheme and host only, such as https://ai.example",
            )


def standard_routes(said: Standards) -> Routes:
    """The routes above, for `create_app(more=…)`."""

    def add(app: FastAPI, service: Service) -> None:
        _public(app, service, said)
        _telemetry(app, service)
        if said.tile is not None:
            _tiles(app, said.tile)

    return add


def _public(app: FastAPI, service: Service, said: Standards) -> None:
    base = said.public_url.rstrip("/")

    @app.get("/.well-known/content-telemetry.json", response_class=Response, tags=["standards"])
    def manifest() -> Response:
        """Who runs this gateway, and where telemetry about its answers goes."""
        body = manifest_json(base, said.operator, roles=("agent", "platform"), public_key=said.log_key)
        response = json_response(body)
        response.headers.update(_DAY)
        return response

    @app.get("/license.xml", response_class=Response, tags=["standards"])
    def license_file() -> Response:
        """The terms of registered contributions, as RSL 1.0."""
        policy = service.flow.parts.policy
        parts = service.flow.parts
        newest = [ContributionId(one.id) for one in exploring.contributions(parts.calls.db, limit=LICENSED_MAX)]
        ended = ConsentStore(parts.calls.db).stopped(newest, parts.now_ns())
        listed = parts.registry.get_many([id for id in newest if id not in ended])
        terms = (Terms(f"/contributions/{one.id}", one.license, policy.currency) for one in listed)
        return Response(write_rsl(terms, server=base), headers=_DAY, media_type=RSL_TYPE)

    @app.get("/robots.txt", response_class=PlainTextResponse, tags=["standards"])
    def robots() -> Response:
        """Where the terms are; nothing here is for crawlers to follow."""
        return PlainTextResponse(f"License: {base}/license.xml\n\nUser-agent: *\nDisallow: /v1/\n", headers=_DAY)


def _telemetry(app: FastAPI, service: Service) -> None:
    flow = service.flow
    store = TelemetryStore(flow.parts.calls.db)
    Payer = Annotated[KeyRecord, Depends(service.payer)]
    Body = Annotated[bytes, Depends(body_up_to(DOCUMENT_BYTES_MAX))]

    def receipt_of(id: str, key: KeyRecord) -> tuple[Receipt, str]:
        call = own_call(flow.parts.calls, id, key, flow.parts.log)
        if call.receipt_id is None:
            raise MissingError(
                f"{call.call_id} has no receipt yet", code="receipt_pending", fix="ask again when it is final"
            )
        return Receipt.from_bytes(flow.parts.log.get(call.receipt_id).raw), call.receipt_id

    @app.get("/v1/receipts/{id}/telemetry", response_class=Response, tags=["standards"])
    def telemetry(id: str, key: Payer) -> Response:
        """A paid answer as a Content Telemetry session, without anybody's words."""
        receipt, receipt_id = receipt_of(id, key)
        return json_response(session_json(receipt, receipt_id, contents_of(flow.parts.registry, receipt)))

    @app.get("/v1/receipts/{id}/attribution", response_class=Response, tags=["standards"])
    def attribution(id: str, key: Payer) -> Response:
        """A paid answer as a fractional-attribution report; fractions and residual sum to one."""
        receipt, receipt_id = receipt_of(id, key)
        return json_response(fractional_report(receipt, receipt_id, contents_of(flow.parts.registry, receipt)))

    @app.post("/v1/telemetry", response_class=Response, tags=["standards"])
    def take(raw: Body, key: Payer, form: Literal["events", "fractional"] = "events") -> Response:
        """Take a session, event, batch or, with `form=fractional`, a report; each event is kept once."""
        if form == "fractional":
            report = read_fractional(raw)
            return json_response({"receipt": report.receipt, "contributions": len(report.contributions)}, 202)
        new, known = store.take(read_document(raw), key.key_id, flow.parts.now_ns())
        return json_response({"accepted": new, "known": known}, 202)

    @app.get("/v1/telemetry", response_class=Response, tags=["standards"])
    def reported(key: Payer, after: int = 0, limit: int = 100, content: str | None = None) -> Response:
        """Events that this key has reported, in the order they came."""
        if not 1 <= limit <= PAGE_MAX or not 0 <= after < 2**62:
            raise InvalidError(f"limit {limit} after {after}", code="page_invalid", fix=f"use 1 to {PAGE_MAX}")
        rows = store.events(after=after, limit=limit, reporter=key.key_id, content=content)
        shown = [{"number": one.number, "session_id": one.session_id, "event": one.event} for one in rows]
        return json_response({"data": shown, "next": rows[-1].number if len(rows) == limit else None})


def _tiles(app: FastAPI, tile: Callable[[str], bytes | None]) -> None:
    @app.get("/log/{path:path}", response_class=Response, tags=["standards"])
    def log_file(path: str) -> Response:
        """The receipt log's checkpoint and tiles, as transparency-log tools read them."""
        raw = tile(path)
        if raw is None:
            raise MissingError(
                f"the log has no {html.escape(path[:80])!r}", code="tile_unknown", fix="start from /log/checkpoint"
            )
        fixed = path != "checkpoint"
        headers = {"cache-control": "public, max-age=31536000, immutable" if fixed else "no-cache"}
        return Response(raw, headers=headers, media_type="application/octet-stream" if fixed else "text/plain")


def contents_of(registry: RegistryStore, receipt: Receipt) -> dict[str, Content]:
    """What a registry knows of the contributions a receipt names; those it no longer has are left out."""
    ids: list[ContributionId] = sorted({share.contribution for share in receipt.attribution.shares})
    return {
        one.id: Content(one.content_digest, one.license.expression, one.meta("url")) for one in registry.get_many(ids)
    }
