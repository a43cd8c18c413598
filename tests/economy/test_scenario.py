"""A scenario is checked before anything runs: misspelt, impossible or overflowing assumptions are refused."""

from __future__ import annotations

import pytest

from headwater.core.errors import InvalidError
from headwater.economy.scenario import default_scenario, describe, load_scenario, policy_of, scenario_from


@pytest.mark.parametrize(
    ("table", "code", "said"),
    [
        ({"settel": {}}, "scenario_unknown_key", "did you mean 'settle'"),
        ({"run": {"dayz": 3}}, "scenario_unknown_key", "did you mean 'days'"),
        ({"sweep": {"params": {"elasticty": [0.1, 1]}}}, "scenario_unknown_key", "did you mean 'elasticity'"),
        ({"run": {"days": 0}}, "scenario_invalid", "run.days is 0"),
        ({"run": {"days": 1.5}}, "scenario_invalid", "whole number"),
        ({"run": {"days": True}}, "scenario_invalid", "write a number"),
        ({"run": {"mode": "fast"}}, "scenario_invalid", "use one of calls, pool"),
        ({"run": 3}, "scenario_invalid", "write a table"),
        ({"evidence": {"tail": float("nan")}}, "scenario_invalid", "evidence.tail"),
        ({"split": {"rule": "best"}}, "scenario_invalid", "split.rule is 'best'"),
        ({"split": {"takes": {"app": 0.5}, "take_cap_bps": 100}}, "policy_invalid", "above take_cap_bps"),
        ({"split": {"takes": {"app": 1.5}}}, "scenario_invalid", "part of the price"),
        ({"split": {"policy": "missing.toml"}}, "scenario_invalid", "there is no policy"),
        ({"settle": {"maturity_days": 3}}, "scenario_invalid", "length of an epoch"),
        ({"price": {"per_call_nano": 9_000_000_000}, "agents": {"users": 10**8}}, "overflow_risk", "2^61"),
        ({"price": {"per_call_nano": 9_223_372_037}}, "scenario_invalid", "price.per_call_nano"),
        (
            {"price": {"per_call_nano": 9 * 10**9, "markup_layers": 1}, "demand": {"value_nano": 10**12}},
            "overflow_risk",
            "2^63",
        ),
        ({"price": {"attribution_nano": 450_001}}, "scenario_invalid", "cap leaves 450000"),
        ({"price": {"attribution_nano": 450_000}}, None, ""),
        ({"evidence": {"base_bits": 5000, "sources": 16}}, None, ""),
        ({"agents": {"contributors": 5 * 10**7, "assets_each": 50}}, "scenario_invalid", "32 bits"),
        ({"run": {"mode": "pool"}, "rails": {"stake": True}}, "scenario_invalid", "no rails"),
        ({"run": {"mode": "pool"}, "attack": {"kind": "spam", "accounts": 5}}, "scenario_invalid", "no attackers"),
        ({"attack": {"kind": "spam"}}, "scenario_invalid", "give the attacker accounts"),
        ({"attack": {"kind": "spam", "accounts": 10**6}}, "scenario_invalid", "honest people"),
        ({"attack": {"kind": "wash", "accounts": 5}}, "scenario_invalid", "give it payers"),
        ({"price": {"rule": "subscription"}}, "scenario_invalid", "divided by use"),
        ({"sweep": {"params": {"fee_nano": [9, 1]}}}, "scenario_invalid", "sweep range"),
        ({"sweep": {"params": {"evidence.law": [0, 1]}}}, "scenario_invalid", "not a number"),
        ({"coordinators": {"compete": True}, "split": {"takes": {"app": 0.1}}}, "scenario_invalid", "no line for them"),
    ],
)
def test_bad_scenarios_are_refused_with_a_way_out(table, code, said):
    """Each refusal has a stable code and names the value or the nearest known name."""
    if code is None:
        scenario_from(table)
        return
    with pytest.raises(InvalidError) as refused:
        scenario_from(table)

    assert refused.value.code == code
    assert said.casefold() in str(refused.value).casefold()


def test_a_file_is_read_with_its_own_policy(tmp_path):
    """A scenario names the operator's policy by a path beside it, and runs under exactly that policy."""
    (tmp_path / "policy.toml").write_text(POLICY, "utf-8")
    text = '[split]\npolicy = "policy.toml"\n[settle]\nfee_nano = 5_000_000\n'
    (tmp_path / "scenario.toml").write_text(text, "utf-8")

    scenario = load_scenario(tmp_path / "scenario.toml")

    assert scenario.policy.name == "mine"
    assert [line.bps for line in scenario.policy.lines] == [900]
    assert scenario.settle.fee_nano == 5_000_000


def test_files_that_are_missing_or_broken_say_so(tmp_path):
    """No file and no TOML are refused, not ignored."""
    (tmp_path / "broken.toml").write_text("[run\n", "utf-8")
    with pytest.raises(InvalidError, match="there is no scenario"):
        load_scenario(tmp_path / "none.toml")
    with pytest.raises(InvalidError, match="not TOML"):
        load_scenario(tmp_path / "broken.toml")


def test_the_digest_names_the_assumptions_and_not_the_luck():
    """Seeds and threads leave the digest; an assumption or the policy changes it."""
    base = default_scenario()

    assert base.with_values({"run.seed": 9, "threads": 2, "run.seeds": 7}).digest == base.digest
    assert base.with_values({"fee_nano": 1}).digest != base.digest
    assert base.with_values({"policy": policy_of({"app": 0.1})}).digest != base.digest


def test_every_assumption_is_explained():
    """Each one has a default and a sentence."""
    rows = list(describe())

    assert len(rows) > 90
    assert all(about and name.count(".") == 1 for name, _, about in rows)


POLICY = """
schema = "headwater.policy/1"
name = "mine"
version = 3
currency = "USD"
take_cap_bps = 1000
model_weight_ppm = 200000
evidence_floor_millibits = 1000
residual = "commons"
[grade_discount_bps]
A = 0
B = 500
C = 9000
[[lines]]
name = "platform"
account = "operator:platform"
bps = 900
rule = "all of it"
"""
