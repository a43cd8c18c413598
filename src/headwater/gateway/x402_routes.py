"""Top-ups by x402: `POST /v1/payments/x402?amount=5.00` asks for a signed transfer and gives credit for it.

With an API key the credit is that key's. Without one it is the payer's own record, and `secret=new` gives that record
an API key: whoever signed the transfer holds the wallet, so the payment is the proof.
"""

# Annotations stay live here: FastAPI resolves them, and those of a route may name what its function encloses.

from fastapi import FastAPI, Request
from fastapi.responses import Response

from headwater.core.errors import InvalidError
from headwater.core.instants import SECOND_NS
from headwater.core.money import format_units, parse_units
from headwater.gateway.administration import Administration
from headwater.gateway.native import Routes, Service, json_response
from headwater.gateway.wire import header
from headwater.gateway.x402 import HEADER, TOP_UPS, Payments
from headwater.gateway.x402_chain import TIMEOUT_S
from headwater.store.payment_store import used


def payment_routes(payments: Payments, acts: Administration) -> Routes:
    """The routes, for `create_app(more=…)`."""
    store, chain = payments.store, payments.chain

    def add(app: FastAPI, service: Service) -> None:
        @app.post(TOP_UPS, response_class=Response, tags=["payments"])
        def top_up(request: Request, amount: str, secret: str = "") -> Response:
            """Buy credit with a signed transfer; 402 with PAYMENT-REQUIRED says what to sign."""
            units = parse_units(amount, where="amount")
            if units <= 0 or units % store.unit_nano:
                raise InvalidError(
                    f"an amount of {amount[:40]}",
                    code="amount_out_of_range",
                    fix=f"a multiple of {format_units(store.unit_nano)} above 0",
                )
            if secret not in ("", "new"):
                raise InvalidError(f"secret is {secret[:20]!r}", code="secret_invalid", fix="use secret=new")
            scope = request.scope
            asked = chain.requirements("exact", units // store.unit_nano)
            key = None if header(scope, b"authorization") is None else service.payer(request)
            if key is not None and secret:
                raise InvalidError(
                    "a new secret for a key that has one", code="secret_invalid", fix="rotate the key instead"
                )
            raw = header(scope, HEADER)
            if raw is None:
                raise payments.required(payments.url_of(scope), [asked])
            paid, headers = payments.top_up(raw, asked, payments.url_of(scope), key)
            whose = store.keys.get(paid.key_id)
            told = {
                "key_id": whose.key_id,
                "account": whose.account,
                "amount": format_units(paid.settled_token_units * store.unit_nano),
                "currency": store.asset,
                "available": format_units(store.ledger.available(whose.account, store.asset)),
                "network": paid.network,
                "transaction": paid.transaction_hash,
            }
            if secret:
                if service.flow.parts.now_ns() - paid.at_ns > TIMEOUT_S * SECOND_NS:
                    raise used(paid)  # what was signed long ago does not open an account for ever
                told["secret"] = acts.rotate(f"x402:{paid.payer}", whose.key_id, grace_ns=0)[0]
            response = json_response(told)
            for name, value in headers:
                response.headers[name.decode()] = value.decode()
            return response

        @app.get(TOP_UPS, response_class=Response, tags=["payments"])
        def ways() -> Response:
            """How this gateway is paid by x402."""
            schemes = ["exact", *(["upto"] if chain.has_upto else [])]
            told = {"schemes": schemes, "network": chain.network, "asset": chain.token, "pay_to": chain.pay_to}
            return json_response(told)

    return add
