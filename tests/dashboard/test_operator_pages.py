"""The operator's desk: figures that add up, a policy published once and written into the trail, keys within limits."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from measured import Measured, measured_site

from headwater.core.errors import ConflictError
from headwater.dashboard import operator_policy
from headwater.receipts import Receipt
from headwater.splits import Policy
from headwater.store.audit_trail import AuditTrail


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[Measured]:
    """A site with two measured answers."""
    with measured_site(tmp_path) as made:
        made.ask("what does a river do in the sea?", "say hello")
        yield made


def form_of(policy: Policy, **changes: str) -> dict[str, str]:
    """The form that the page shows for a policy."""
    form = {
        "take_cap_bps": str(policy.take_cap_bps),
        "model_weight_ppm": str(policy.model_weight_ppm),
        "evidence_floor_millibits": str(policy.evidence_floor_millibits),
        "residual": policy.residual,
        **{f"discount_{grade}": str(bps) for grade, bps in policy.grade_discount_bps},
    }
    for number, line in enumerate(policy.lines):
        form |= {
            f"line_{number}_name": line.name,
            f"line_{number}_account": line.account,
            f"line_{number}_bps": str(line.bps),
            f"line_{number}_rule": line.rule,
        }
    return form | changes


def test_the_flow_adds_up_to_what_callers_paid(measured: Measured) -> None:
    """Every unit of every price leaves callers once and ends in one account."""
    found = measured.client("operator", "root").get("/operator.json?days=all").json()
    receipts = [Receipt.from_bytes(entry.raw) for entry in measured.home.log]
    paid = sum(receipt.price for receipt in receipts)

    assert found["paid_units"] == paid == sum(row["units"] for row in found["lines"])
    assert paid == sum(row["units"] for row in found["flows"])
    operators = sum(p.amount for r in receipts for p in r.payouts if p.account.startswith("operator:"))
    assert found["take_units"] == operators
    assert found["people_units"] + found["leaked_units"] + operators == paid
    page = measured.client("operator", "root").get("/operator?days=all").text
    assert 'class="chart sankey"' in page
    assert page.count("<title>") > 5


def test_an_empty_desk_says_what_will_be_there(tmp_path: Path) -> None:
    """Without an answer there are words, not an empty drawing; a wrong stretch is refused."""
    with measured_site(tmp_path) as measured:
        client = measured.client("operator", "root")
        assert "No answer has been paid for yet" in client.get("/operator").text
        assert client.get("/operator?days=8").status_code == 400
        assert "There is no key yet" in client.get("/operator/keys").text
        assert "Nothing has been done yet" in client.get("/operator/audit").text


def test_a_policy_is_compared_and_published_once(measured: Measured) -> None:
    """The difference names what was changed; publishing writes the file and the trail; an older draft is refused."""
    client, site = measured.client("operator", "root"), measured.site
    before = operator_policy.in_file(site)
    answer = measured.post(client, "/operator/policy/preview", form_of(before, line_1_bps="700"))
    assert answer.status_code == 200
    assert "500 bps to operator:platform" in answer.text
    assert "700 bps to operator:platform" in answer.text

    draft = operator_policy.to_toml(operator_policy.from_form(form_of(before, line_1_bps="700"), before))
    sent = {"toml": draft, "replaces": before.digest}
    assert measured.post(client, "/operator/policy/publish", sent).status_code == 303
    assert measured.post(client, "/operator/policy/publish", sent).status_code == 303  # again changes nothing

    after = operator_policy.in_file(site)
    assert (after.version, after.take_bps) == (before.version + 1, before.take_bps + 200)
    assert Policy.from_toml((site.folder / "policy.toml").read_text("utf-8")).digest == after.digest
    assert (site.folder / "policies" / f"{after.digest.removeprefix('sha256:')}.toml").exists()
    entries = [one for one in AuditTrail(site.db).entries() if one.action == "policy.publish"]
    assert len(entries) == 1
    assert entries[0].actor == "operator:root"
    assert entries[0].detail["line platform"]["to"].startswith("700 bps")

    other = operator_policy.to_toml(operator_policy.from_form(form_of(before, take_cap_bps="4000"), before))
    with pytest.raises(ConflictError, match="version 2"):
        operator_policy.publish(site, other, replaces=before.digest, actor="operator:root")
    assert "will be in force when the server is started again" in client.get("/operator/policy").text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"line_0_bps": "9000"}, "above take_cap_bps"),
        ({"line_0_bps": "-1"}, "-1"),
        ({"line_0_account": "payer:key_1"}, "pays"),
        ({"line_0_name": "commons"}, "line name"),
        ({"take_cap_bps": "ten"}, "ten"),
    ],
)
def test_an_impossible_policy_is_refused_with_its_value(
    measured: Measured, changes: dict[str, str], words: str
) -> None:
    """Nothing is written, and the page names what is wrong."""
    client = measured.client("operator", "root")
    form = form_of(operator_policy.in_file(measured.site), **changes)
    answer = measured.post(client, "/operator/policy/preview", form)
    assert answer.status_code == 400
    assert words in answer.text
    assert not (measured.site.folder / "policy.toml").exists()


def test_a_policy_reads_back_as_it_was_written(measured: Measured) -> None:
    """Quotes, backslashes and other scripts in a rule survive the file."""
    before = operator_policy.in_file(measured.site)
    rule = 'for "rivers" \\ and Flüsse, 川'
    policy = operator_policy.from_form(form_of(before, line_0_rule=rule), before)
    assert Policy.from_toml(operator_policy.to_toml(policy)).lines[0].rule == rule


def test_keys_are_made_limited_credited_and_revoked(measured: Measured) -> None:
    """Each act is in the trail, the secret is on one page only, and a form from elsewhere does nothing."""
    client = measured.client("operator", "root")
    answer = measured.post(client, "/operator/keys", {"label": "new <b>one</b>", "mode": "test", "budget": "3.5"})
    secret = answer.text.partition('data-copy="')[2].partition('"')[0]
    key = measured.home.keys.authenticate(secret)
    assert key.budget_units == 3_500_000_000
    assert secret not in client.get("/operator/keys").text
    assert "new &lt;b&gt;one" in client.get("/operator/keys").text
    path = f"/operator/keys/{key.key_id}"

    limits = {"budget_day": "1", "requests_per_minute": "7", "routes": ["chat"], "expires_at": "2031-01-01T00:00:00Z"}
    assert measured.post(client, f"{path}/limits", limits).status_code == 303
    kept = measured.home.keys.get(key.key_id).limits
    assert (kept.budget_day_units, kept.requests_per_minute, kept.routes) == (10**9, 7, ("chat",))
    deposit = {"amount": "2.5", "reference": "bill 1"}
    assert measured.post(client, f"{path}/deposit", deposit).status_code == 303
    assert measured.post(client, f"{path}/deposit", deposit).status_code == 303
    assert measured.home.ledger.available(key.account, measured.home.currency) == 2_500_000_000
    assert measured.post(client, f"{path}/deposit", {"amount": "-1", "reference": "x"}).status_code == 400
    assert client.post(f"{path}/revoke", data={}).status_code == 403  # no token of ours
    assert not measured.home.keys.get(key.key_id).revoked
    assert measured.post(client, f"{path}/revoke").status_code == 303
    assert measured.home.keys.get(key.key_id).revoked
    actions = [one.action for one in AuditTrail(measured.site.db).entries()]
    assert actions == ["key.revoke", "key.deposit", "key.limit", "key.create"]
    assert "are as they were written" in client.get("/operator/audit").text


@pytest.mark.slow
def test_a_change_is_simulated_with_the_same_people_and_seeds(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both policies are run in a process of its own; a larger take leaves contributors less, by more than luck."""
    from headwater.dashboard import economy

    small = {"run.days": 20, "run.seeds": 3, "agents.contributors": 300, "agents.users": 300, "agents.apps": 10}
    monkeypatch.setattr(economy, "SIMULATED", small)
    client, before = measured.client("operator", "root"), operator_policy.in_file(measured.site)
    draft = operator_policy.to_toml(operator_policy.from_form(form_of(before, line_1_bps="1300"), before))
    answer = measured.post(client, "/operator/policy/simulate", {"toml": draft, "replaces": before.digest})
    assert answer.status_code == 303
    path, until = answer.headers["location"], time.monotonic() + 120
    while (found := client.get(f"{path}.json").json())["job"]["state"] == "running":
        assert time.monotonic() < until
        time.sleep(0.3)

    assert found["job"]["state"] == "done", found["output"]
    row = next(row for row in found["rows"] if row["name"] == "take_share")
    assert row["sure"]
    assert row["difference"] == pytest.approx(0.08, abs=1e-3)
    earned = next(row for row in found["rows"] if row["name"] == "contributors_earned_share")
    assert earned["difference"] < 0
    assert found["changes"] == [
        {"field": "line platform", "before": found["changes"][0]["before"], "after": found["changes"][0]["after"]}
    ]
    assert "Publish this policy" in client.get(path).text
