"""A chain with a payer who has tokens, a gateway that takes x402, and the official client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests
from eth_account import Account
from x402 import x402ClientSync
from x402.http.x402_http_client import x402HTTPClientSync
from x402.mechanisms.evm.exact import ExactEvmClientScheme
from x402.mechanisms.evm.upto import UptoEvmClientScheme

from headwater.chain import Chain
from headwater.flow import EmbeddingModel
from headwater.gateway import Gateway, create_app, serving
from headwater.gateway.administration import Administration
from headwater.gateway.x402 import Payments
from headwater.gateway.x402_chain import PaymentChain
from headwater.gateway.x402_routes import payment_routes
from headwater.splits import Prices
from headwater.store.audit_trail import AuditTrail
from headwater.store.payment_store import PaymentStore
from toy.home import ToyHome, open_home
from toy.upstream import Upstream, upstream

PAYER = Account.from_key(b"\x17" * 32)
PAY_TO = "0x" + "a1" * 20
UNIT_NANO = 1_000
FUNDS = 10**9  # token units of the payer

CONFIG = """
[upstream.real]
base_url = "{url}"
[model.fixed]
targets = [{{ upstream = "real", model = "fine" }}]
request_price = "0.25"
[model.metered]
targets = [{{ upstream = "real", model = "fine" }}]
output_token_price = "0.01"
answer_tokens_max = 100
[model.broken]
targets = [{{ upstream = "real", model = "status-400" }}]
request_price = "0.25"
"""


@dataclass
class World:
    """What the tests act on."""

    toy: ToyHome
    app: Gateway
    url: str
    chain: Chain
    payments: Payments
    server: Upstream
    client: x402HTTPClientSync

    def ask(self, model: str = "fixed", headers: dict[str, str] | None = None, **body: Any) -> requests.Response:
        """A call."""
        whole = {"model": model, "messages": [{"role": "user", "content": "x"}], **body}
        return requests.post(self.url + "/v1/chat/completions", data=json.dumps(whole), headers=headers, timeout=30)

    def embed(self, texts: list[str], headers: dict[str, str] | None = None) -> requests.Response:
        """Texts to vectors."""
        body = json.dumps({"model": "toy-vectors", "input": texts})
        return requests.post(self.url + "/v1/embeddings", data=body, headers=headers, timeout=30)

    def top_up(self, query: str, headers: dict[str, str] | None = None) -> requests.Response:
        """A top-up."""
        return requests.post(f"{self.url}/v1/payments/x402?{query}", headers=headers, timeout=30)

    def sign(self, response: requests.Response) -> dict[str, str]:
        """The headers with which the official client answers a 402."""
        assert response.status_code == 402, response.text
        return signed_by(self.client, response)

    def paid(self) -> int:
        """Token units that the operator has."""
        return self.chain.balance(PAY_TO)

    def clean(self) -> None:
        """Nothing is held, and the books hold; a call is over a moment after its last bytes."""
        until = time.monotonic() + 10
        while self.payments.store.open() and time.monotonic() < until:
            time.sleep(0.01)
        assert self.toy.calls.check() == ()
        assert self.payments.store.open() == ()


def vectors() -> EmbeddingModel:
    """A model that turns texts into vectors, at a price that is not a whole number of token units."""
    prices = Prices(request_units=1_000, input_token_units=10, output_token_units=0)
    digest = "sha256:" + "1" * 64
    return EmbeddingModel("toy-vectors", digest, 2, prices, str.encode, lambda texts: [(0.6, 0.8) for _ in texts])


def client_of(account: Any, network: str) -> x402HTTPClientSync:
    """The official client of a wallet."""
    client = x402ClientSync()
    client.set_spend_controls(False)
    client.register(network, ExactEvmClientScheme(account))
    client.register(network, UptoEvmClientScheme(account))
    return x402HTTPClientSync(client)


def signed_by(client: x402HTTPClientSync, response: requests.Response) -> dict[str, str]:
    """The headers with which a client pays what a 402 asks for."""
    return client.handle_402_response(dict(response.headers), response.content, response.url)[0]


@contextmanager
def world(folder: Path, chain: Chain) -> Iterator[World]:
    """A gateway over a new home, paid on `chain`."""
    with upstream() as server, open_home(folder) as toy:
        toy.flow.parts = replace(toy.flow.parts, others={"toy-vectors": vectors()})
        store = PaymentStore(toy.db, toy.ledger, toy.keys, asset=toy.currency, unit_nano=UNIT_NANO)
        payments = Payments(store, PaymentChain(chain, PAY_TO), toy.flow.parts.now_ns)
        parts = toy.flow.parts
        acts = Administration(toy.keys, toy.ledger, AuditTrail(toy.db), toy.currency, parts.now_ns, parts.random_bytes)
        app = create_app(
            toy.flow,
            toy.keys,
            relays=toy.relays(CONFIG.format(url=server.url)),
            payments=payments,
            more=[payment_routes(payments, acts)],
        )
        with serving(app) as url:
            yield World(toy, app, url, chain, payments, server, client_of(PAYER, payments.chain.network))
