"""The operator's routes: keys, credit, reload and the trail of what was done."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import openai
import pytest

from headwater.gateway.admin import admin_routes
from headwater.gateway.administration import Administration
from headwater.gateway.reload import Reloader
from headwater.gateway.upstreams_file import read_upstreams
from headwater.store.audit_trail import AuditTrail
from headwater.store.key_limits import KeyLimits
from toy import upstream as scripted
from toy.desk import Desk, open_desk

UPSTREAMS = """
[upstream.a]
base_url = "{url}"
[model."one"]
targets = [{{ upstream = "a", model = "one" }}]
request_price = "{price}"
"""


@dataclass
class Office:
    """A gateway with the operator's routes, an admin key, and the file it reloads."""

    desk: Desk
    secret: str
    key_id: str
    file: Path
    upstream_url: str
    trail: AuditTrail

    def ask(self, method: str, path: str, body: object = None, secret: str | None = None) -> Any:
        """A request with the admin key unless told otherwise."""
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {secret or self.secret}", "Content-Type": "application/json"}
        wanted = Request(self.desk.url + path, raw, headers, method=method)
        with urlopen(wanted, timeout=20) as response:
            return json.load(response)

    def refused(self, method: str, path: str, body: object = None, secret: str | None = None) -> tuple[int, str]:
        """(status, code) of a request that fails."""
        with pytest.raises(urllib.error.HTTPError) as error:
            self.ask(method, path, body, secret)
        return error.value.code, json.load(error.value)["code"]

    def price(self, value: str) -> None:
        """Write another request price into the file."""
        self.file.write_text(UPSTREAMS.format(url=self.upstream_url, price=value))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """An office over a toy home and one scripted upstream."""
    with scripted.upstream() as upstream:
        file = tmp_path / "upstreams.toml"
        file.write_text(UPSTREAMS.format(url=upstream.url, price="0.001"))
        parts: list[Any] = []

        def late(app: Any, service: Any) -> None:
            flow = service.flow.parts
            trail = AuditTrail(flow.calls.db)
            acts = Administration(
                service.keys, flow.ledger, trail, flow.policy.currency, time.time_ns, flow.random_bytes
            )
            read = lambda: read_upstreams(file.read_text(), environment={}, folder=tmp_path)  # noqa: E731
            parts.append(trail)
            admin_routes(acts, Reloader(read, trail, time.time_ns))(app, service)

        with open_desk(tmp_path / "home", upstreams=file.read_text(), more=[late]) as desk:
            secret, key = desk.toy.keys.create("operator", bytes(range(32)), 1, limits=KeyLimits(routes=("admin",)))
            yield Office(desk, secret, key.key_id, file, upstream.url, parts[0])


def test_a_key_is_made_funded_used_limited_and_revoked(office: Office) -> None:
    """The whole life of a key through HTTP, each step in the trail."""
    made = office.ask("POST", "/v1/admin/keys", {"label": "caller", "limits": {"requests_per_minute": 60}})
    path = f"/v1/admin/keys/{made['key_id']}"
    first = office.ask("POST", path + "/deposits", {"amount": "1.00", "reference": "wire 1"})
    again = office.ask("POST", path + "/deposits", {"amount": "1.00", "reference": "wire 1"})
    answer = office.desk.client(made["secret"]).chat.completions.create(
        model="one", messages=[{"role": "user", "content": "hello"}]
    )
    changed = office.ask("PATCH", path, {"budget_day": "0.50", "requests_per_minute": None})
    rotated = office.ask("POST", path + "/rotate", {"grace_s": 0})
    office.ask("DELETE", path)

    assert (first["replayed"], again["replayed"], first["available"]) == (False, True, "1.000000000")
    assert answer.choices
    assert (changed["budget_day"], changed["requests_per_minute"]) == ("0.500000000", None)
    for secret in (made["secret"], rotated["secret"]):
        assert _ends(office.desk.client(secret))
    acts = [(e.actor, e.action) for e in reversed(office.trail.entries(subject=made["key_id"]))]
    assert acts == [(office.key_id, f"key.{act}") for act in ("create", "deposit", "limit", "rotate", "revoke")]
    assert office.trail.check() == ()


def _ends(client: openai.OpenAI) -> bool:
    """Whether a key stops working within the seconds for which one is remembered."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            client.models.list()
        except openai.AuthenticationError:
            return True
        time.sleep(0.1)
    return False


def test_no_secret_reaches_the_trail(office: Office) -> None:
    """What was given back once stands nowhere."""
    made = office.ask("POST", "/v1/admin/keys", {"label": "caller"})
    rotated = office.ask("POST", f"/v1/admin/keys/{made['key_id']}/rotate", {})

    shown = json.dumps(office.ask("GET", "/v1/admin/audit"))
    listed = json.dumps(office.ask("GET", "/v1/admin/keys"))
    for secret in (made["secret"], rotated["secret"]):
        assert secret not in shown + listed


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/admin/keys"),
        ("POST", "/v1/admin/keys"),
        ("GET", "/v1/admin/audit"),
        ("GET", "/v1/admin/status"),
        ("POST", "/v1/admin/reload"),
    ],
)
def test_ordinary_keys_are_kept_out(office: Office, method: str, path: str) -> None:
    """A caller's key is 403, nobody's is 401, and nothing is recorded."""
    assert office.refused(method, path, b"{}", office.desk.secret) == (403, "route_not_permitted")
    assert office.refused(method, path, b"{}", "hw_test_" + "A" * 43) == (401, "invalid_api_key")
    assert office.trail.entries() == ()


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/admin/keys", b"{", "request_invalid"),
        ("/v1/admin/keys", b"[" * 10_000, "json_too_deep"),
        ("/v1/admin/keys", {"label": "x", "colour": "red"}, "request_invalid"),
        ("/v1/admin/keys", {"label": ""}, "label_invalid"),
        ("/v1/admin/keys", {"label": "x", "limits": {"routes": ["root"]}}, "limits_invalid"),
        ("/v1/admin/keys", {"label": "x", "limits": {"budget": "lots"}}, "amount_invalid"),
        ("/v1/admin/keys/key_nobody/deposits", {"amount": "1", "reference": "r"}, "key_unknown"),
        ("/v1/admin/keys/key_nobody/deposits", {"amount": "-1", "reference": "r"}, "amount_out_of_range"),
        ("/v1/admin/keys/key_nobody/deposits", {"amount": "1", "reference": ""}, "reference_invalid"),
        ("/v1/admin/keys/key_nobody/rotate", {"grace_s": -1}, "grace_invalid"),
    ],
)
def test_wrong_requests_change_nothing(office: Office, path: str, body: object, code: str) -> None:
    """Each is refused by its code, and neither keys nor trail change."""
    before = office.ask("GET", "/v1/admin/keys")

    assert office.refused("POST", path, body)[1] == code
    assert office.ask("GET", "/v1/admin/keys") == before
    assert office.trail.entries() == ()


@pytest.mark.parametrize(
    ("grace_s", "told"),
    [(-60, "-60 seconds"), (7_776_001, "7776001 seconds"), (900 * 86_400, "900 days"), (10**15, f"{10**15} seconds")],
)
def test_a_grace_out_of_range_is_told_in_units_of_people(office: Office, grace_s: int, told: str) -> None:
    """In seconds, as it came, or in days when it is whole days, beside what is allowed; never in nanoseconds."""
    with pytest.raises(urllib.error.HTTPError) as error:
        office.ask("POST", "/v1/admin/keys/key_nobody/rotate", {"grace_s": grace_s})
    detail = json.load(error.value)["detail"]

    assert f"a grace of {told}" in detail
    assert "use 0 to 90 days (7776000 seconds)" in detail
    assert " ns" not in detail


def test_a_reference_with_another_amount_is_a_conflict(office: Office) -> None:
    """One payment is one sum."""
    made = office.ask("POST", "/v1/admin/keys", {"label": "caller"})
    path = f"/v1/admin/keys/{made['key_id']}/deposits"
    office.ask("POST", path, {"amount": "1.00", "reference": "wire 1"})

    assert office.refused("POST", path, {"amount": "2.00", "reference": "wire 1"})[0] == 409


def test_an_admin_key_cannot_lock_itself_out(office: Office) -> None:
    """Revoking the key that asks is refused."""
    assert office.refused("DELETE", f"/v1/admin/keys/{office.key_id}") == (403, "key_in_use")


def test_prices_are_taken_over_while_serving(office: Office) -> None:
    """After a reload the next call has the new price, and the trail says what changed."""
    client = office.desk.client()
    ask = {"model": "one", "messages": [{"role": "user", "content": "hello"}]}
    before = client.chat.completions.with_raw_response.create(**ask)  # type: ignore[arg-type]
    office.price("0.002")
    changes = office.ask("POST", "/v1/admin/reload")["changes"]
    after = client.chat.completions.with_raw_response.create(**ask)  # type: ignore[arg-type]

    office.desk.booked()
    prices = [office.desk.get("/v1/receipts/" + r.headers["headwater-receipt"])["price"] for r in (before, after)]
    assert prices == ["0.001000000", "0.002000000"]
    (changed,) = changes["changed"]
    assert (changed["model"], changed["to"]["request_price"]) == ("one", "0.002000000")
    assert office.ask("POST", "/v1/admin/reload")["changes"] == {}
    assert office.ask("GET", "/v1/admin/audit?limit=1")["data"][0]["action"] == "gateway.reload"


def test_models_of_any_name_are_taken_over(office: Office) -> None:
    """Slashes, spaces and letters beyond ASCII in a name do not keep a new price from being in force, or recorded."""
    name = "org/Modell für 日本/v1"
    for price in ("0.001", "0.002"):
        office.file.write_text(
            UPSTREAMS.format(url=office.upstream_url, price=price).replace('model."one"', f'model."{name}"')
        )
        changes = office.ask("POST", "/v1/admin/reload")["changes"]

    assert [(one["model"], one["to"]["request_price"]) for one in changes["changed"]] == [(name, "0.002000000")]
    assert office.ask("GET", "/v1/admin/audit?limit=1")["data"][0]["detail"] == changes
    assert office.desk.client().models.retrieve(name).id == name


def test_a_wrong_file_changes_nothing(office: Office) -> None:
    """The old models go on being served."""
    office.file.write_text("[model.x]\ntargets = 7\n")

    assert office.refused("POST", "/v1/admin/reload") == (400, "upstreams_invalid")
    assert "one" in {model.id for model in office.desk.client().models.list()}


def test_the_trail_is_read_in_pages(office: Office) -> None:
    """`next` leads through every entry, newest first."""
    for n in range(5):
        office.ask("POST", "/v1/admin/keys", {"label": f"caller {n}"})

    seen, before = [], ""
    while True:
        page = office.ask("GET", f"/v1/admin/audit?limit=2{before}")
        seen += [row["number"] for row in page["data"]]
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    assert seen == [5, 4, 3, 2, 1]
    assert page["head"]["entries"] == 5
    assert office.refused("GET", "/v1/admin/audit?limit=0") == (400, "page_invalid")
