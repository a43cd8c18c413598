"""Requests made up from the API's own description, right and wrong: never a server error, and the books hold."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from headwater.gateway.admin import admin_routes
from headwater.gateway.administration import Administration
from headwater.gateway.reload import Reloader
from headwater.gateway.standards import Standards, standard_routes
from headwater.store.audit_trail import AuditTrail
from headwater.store.key_limits import KeyLimits
from toy.desk import Desk, open_desk

pytestmark = pytest.mark.slow

EXAMPLES = 12


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway with every native route; its ledger is checked when it ends."""

    def late(app: Any, service: Any) -> None:
        flow = service.flow.parts
        trail = AuditTrail(flow.calls.db)
        acts = Administration(service.keys, flow.ledger, trail, flow.policy.currency, time.time_ns, flow.random_bytes)
        admin_routes(acts, Reloader(None, trail, time.time_ns))(app, service)

    more = [late, standard_routes(Standards("https://ai.example", "x"))]
    with open_desk(tmp_path_factory.mktemp("home"), more=more, parallel=4) as running:
        yield running


@pytest.fixture(scope="module")
def secrets(desk: Desk) -> tuple[str, str]:
    """A caller's key and an operator's."""
    admin, _ = desk.toy.keys.create("operator", bytes(range(32)), 1, limits=KeyLimits(routes=("admin",)))
    return desk.secret, admin


def test_no_request_breaks_the_gateway(desk: Desk, secrets: tuple[str, str]) -> None:
    """Whatever is sent to any described route is answered or refused in that route's form of error, with a code."""
    with urllib.request.urlopen(desk.url + "/openapi.json", timeout=20) as response:
        described = json.load(response)
    operations = [found.ok() for found in schemathesis.openapi.from_dict(described).get_all_operations()]
    assert len(operations) > 25

    for operation in operations:

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(operation.as_strategy())
        def send(case: Any) -> None:
            _send(case, desk, secrets)

        send()


def _send(case: Any, desk: Desk, secrets: tuple[str, str]) -> None:
    caller, admin = secrets
    body = case.body
    if isinstance(body, dict) and case.path in ("/v1/chat/completions", "/v1/completions") and "model" in body:
        body["model"] = next(iter(desk.app.model_names))  # so that some of them are answered
        body["max_tokens"] = 4
    secret = admin if case.path.startswith("/v1/admin") else caller
    response = case.call(base_url=desk.url, headers={"Authorization": f"Bearer {secret}"}, timeout=20)

    assert response.status_code < 500, (case.method, case.formatted_path, response.text)
    if response.status_code >= 400:
        told = response.json()
        assert told["error"]["code"] if "error" in told else told["code"]


def test_the_books_hold_afterwards(desk: Desk) -> None:
    """Nothing is reserved and the ledger checks, whatever was sent before."""
    desk.settled()

    assert desk.toy.calls.check() == ()
    balance = desk.toy.flow.parts.ledger.balance(desk.key.account, desk.toy.flow.parts.policy.currency)
    assert balance.reserved_out_units == 0
    assert AuditTrail(desk.toy.calls.db).check() == ()
