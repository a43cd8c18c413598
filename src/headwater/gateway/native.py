"""Our own routes, on FastAPI: receipts, account, health, metrics and the API's description. Errors are RFC 9457.

A key reads only the receipts it paid for; anybody else's look the same as ones that do not exist.
"""

# Annotations stay live here: FastAPI resolves them, and those of a route may name what its function encloses.

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from pydantic import WithJsonSchema
from starlette.exceptions import HTTPException

from headwater import __version__
from headwater.core.errors import HeadwaterError, MissingError
from headwater.core.ids import ReceiptId
from headwater.core.limits import CALLS_PAGE_MAX
from headwater.core.money import format_units
from headwater.flow import Flow
from headwater.gateway import metrics
from headwater.gateway.answering import Answering
from headwater.gateway.described import described_routes
from headwater.gateway.errors import Failure, MethodError, failure_of
from headwater.gateway.feedback import feedback_routes
from headwater.gateway.inside import key_inside
from headwater.gateway.limits import check_route
from headwater.gateway.openapi import describe
from headwater.gateway.own_calls import PAGE, call_json, own_call, own_page
from headwater.gateway.readiness import readiness
from headwater.gateway.vouchers import HEADER as VOUCHER
from headwater.gateway.wire import PROBLEM, bearer, header
from headwater.gateway.worker import AttributionWorker
from headwater.receipts import InclusionProof
from headwater.store.call_store import CallRecord
from headwater.store.key_store import KeyRecord, KeyStore

if TYPE_CHECKING:
    from headwater.gateway.app import Gateway

_READS: Final = re.compile(r"/v1/(receipts/[^/]+(/bundle)?|account)")
"""What may be read with a voucher, or a payment, that was taken: it pays for nothing there. Not the list of calls: both
become public when they are settled on the chain, and whoever has only that must also know the id of a call."""

_Limit = Annotated[str, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": CALLS_PAGE_MAX, "default": PAGE})]
_Before = Annotated[str, WithJsonSchema({"type": "string", "description": "`next` of the page before"})]


@dataclass(frozen=True, slots=True)
class Service:
    """What the native routes look at."""

    flow: Flow
    keys: KeyStore
    answering: Answering
    worker: AttributionWorker
    metrics: metrics.Metrics
    bundle: Callable[[ReceiptId], bytes] | None = None  # what a stranger checks a receipt with
    gateway: "Gateway | None" = None  # the whole, for routes that change how it runs

    def payer(self, request: Request) -> KeyRecord:
        """The key of a request, when it is for that route.

        Raises:
            RefusedError: no such key, or not for this route.
        """
        key = key_inside(request.scope, self.keys) or self._shown(request)
        check_route(key, request.url.path)
        return key

    def _shown(self, request: Request) -> KeyRecord:
        scope, gateway = request.scope, self.gateway
        with nullcontext() if gateway is None else gateway.guesses.counted(scope):
            if gateway is not None and header(scope, b"authorization") is None and _READS.match(request.url.path):
                if gateway.vouchers is not None and (voucher := header(scope, VOUCHER)) is not None:
                    return gateway.vouchers.identify(voucher)
                if gateway.payments is not None and (payment := header(scope, b"payment-signature")) is not None:
                    return gateway.payments.identify(payment)
            return self.keys.authenticate(bearer(scope))


Routes = Callable[[FastAPI, Service], None]
"""Adds routes to the native application."""


def native_app(service: Service, more: Sequence[Routes] = ()) -> FastAPI:
    """The FastAPI application with every route that is not OpenAI's, and those that `more` adds."""
    from headwater.gateway.datanets import datanet_routes  # it needs this module

    # FastAPI's own pages load their scripts from somebody else's server.
    summary = "Receipts and accounts of paid answers."
    app = FastAPI(title="headwater", version=__version__, summary=summary, docs_url=None, redoc_url=None)
    app.add_exception_handler(HeadwaterError, _told)
    app.add_exception_handler(HTTPException, _told_http)
    app.add_exception_handler(RequestValidationError, _told_validation)
    _health_routes(app, service)
    _record_routes(app, service)

    feedback_routes(app, service.flow, service.payer, reviewed=True)
    datanet_routes(app, service)
    for add in more:
        add(app, service)
    describe(app)
    described_routes(app)
    return app


def _record_routes(app: FastAPI, service: Service) -> None:
    flow = service.flow
    Payer = Annotated[KeyRecord, Depends(service.payer)]

    @app.get("/v1/receipts", response_class=Response, tags=["receipts"])
    def receipts(key: Payer, limit: _Limit | None = None, before: _Before | None = None) -> Response:
        """The key's own calls in short, newest first; `next` is the `before` of the next page, null on the last."""
        return json_response(own_page(flow.parts.calls, flow.parts.log, key, limit=limit, before=before))

    @app.get("/v1/receipts/{id}", response_class=Response, tags=["receipts"])
    def receipt(id: str, key: Payer) -> Response:
        """The state of a paid call and, once it is final, its signed receipt with the proof that it is logged."""
        return json_response(receipt_json(flow, own_call(flow.parts.calls, id, key, flow.parts.log)))

    if service.bundle is not None:
        make = service.bundle

        @app.get("/v1/receipts/{id}/bundle", response_class=Response, tags=["receipts"])
        def bundle(id: str, key: Payer) -> Response:
            """One file with which a stranger checks the receipt; 404 until its epoch is closed."""
            call = own_call(flow.parts.calls, id, key, flow.parts.log)
            if call.receipt_id is None:
                raise MissingError(
                    f"{call.call_id} has no receipt yet", code="receipt_pending", fix="ask again when it is final"
                )
            headers = {"content-disposition": f'attachment; filename="{call.receipt_id}.bundle.json"'}
            return Response(make(call.receipt_id), 200, headers, media_type="application/json")

    @app.get("/v1/account", response_class=Response, tags=["account"])
    def account(key: Payer) -> Response:
        """What is left of the key's credit."""
        currency = flow.parts.policy.currency
        balance = flow.parts.ledger.balance(key.account, currency)
        budget = None if key.budget_units is None else format_units(key.budget_units)
        return json_response(
            {
                "account": key.account,
                "key": key.key_id,
                "label": key.label,
                "mode": key.mode,
                "currency": currency,
                "balance": format_units(balance.balance_units),
                "reserved": format_units(balance.reserved_out_units),
                "available": format_units(balance.available_units),
                "budget": budget,
                "committed": format_units(key.committed_units),
            }
        )


def _health_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_class=Response, tags=["health"])
    async def healthz() -> Response:
        """Whether the process answers; says nothing of what it can do."""
        return json_response({"status": "ok", "version": __version__})

    @app.get("/readyz", response_class=Response, tags=["health"])
    def readyz() -> Response:
        """Whether a paid call would be answered now, and what is wrong if not."""
        ready, state = readiness(service)
        return json_response(state, 200 if ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse, tags=["health"])
    async def prometheus() -> Response:
        """Counters and gauges as Prometheus reads them."""
        relay = service.gateway.relay if service.gateway is not None else None
        text = service.metrics.render(service.answering.state(), service.worker.state(), relay)
        return Response(text, media_type=metrics.CONTENT_TYPE)


def receipt_json(flow: Flow, call: CallRecord) -> dict[str, Any]:
    """What is known of a paid call, with its receipt when it is final."""
    body = call_json(call)
    if call.receipt_id is not None:
        logged = flow.parts.log.get(call.receipt_id)
        body["id"] = call.receipt_id
        body["receipt"] = msgspec.Raw(logged.raw)  # its canonical bytes, so that their SHA-256 is the id
        body["signature"] = logged.signature
        body["log"] = proof_json(flow.parts.log.prove(call.receipt_id))
    return body


def proof_json(proof: InclusionProof) -> dict[str, Any]:
    """An inclusion proof on the wire; hashes in hex, siblings from the leaf upwards."""
    return {
        "index": proof.index,
        "size": proof.size,
        "root": proof.root.hex(),
        "path": [node.hex() for node in proof.path],
    }


def json_response(value: object, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _problem(failure: Failure) -> Response:
    headers = {name.decode(): value.decode() for name, value in failure.headers()}
    return Response(failure.problem(), failure.status, headers, media_type=PROBLEM.decode())


def _told(_: Request, error: Exception) -> Response:
    return _problem(failure_of(error))


def _told_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allow = (error.headers or {}).get("Allow") if error.status_code == 405 else None
    if error.status_code == 405:
        return _problem(failure_of(MethodError(request.method, allow or "GET")))
    code = "route_unknown" if error.status_code == 404 else "request_invalid"
    return _problem(
        Failure(error.status_code, code, "there is nothing here" if code == "route_unknown" else error.detail)
    )


def _told_validation(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    where = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors()[:5])
    return _problem(Failure(400, "request_invalid", f"wrong or missing: {where}"))
