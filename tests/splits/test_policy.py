from importlib.resources import files
from typing import Any

import pytest

from headwater.core.errors import InvalidError
from headwater.splits import Policy
from headwater.splits.policy import COMMONS
from headwater.splits.waterfall import Findings, divide

TEXT = files("headwater.splits").joinpath("default_policy.toml").read_text()
POLICY = Policy.from_toml(TEXT)


def test_default_policy_is_valid_and_survives_json():
    """The shipped policy reads, stays under its own cap, and is the same policy after a JSON round trip."""
    policy = Policy.from_toml(TEXT)

    assert policy.take_bps == 2_600 <= policy.take_cap_bps
    assert Policy.from_json(policy.to_json()) == policy


def test_digest_ignores_comments_and_spacing_but_not_values():
    """The digest names the rules, not the file."""
    policy = Policy.from_toml(TEXT)

    assert Policy.from_toml("# a remark\n" + TEXT).digest == policy.digest
    assert Policy.from_toml(TEXT.replace("bps = 500", "bps = 501")).digest != policy.digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("take_cap_bps = 3500", "take_cap_bps = 2000"),
        ("bps = 2_000", "bps = -1"),
        ("bps = 2_000", "bps = true"),
        ("bps = 2_000", "bps = 0.5"),
        ('residual = "base_model"', 'residual = "operator"'),
        ('name = "platform"', 'name = "compute"'),
        ('name = "platform"', 'name = "residual"'),
        ('account = "operator:platform"', 'account = "payer:key_1"'),
        ("model_weight_ppm = 100_000", "model_weight_ppm = 1_000_001"),
        ("version = 1", "version = 1\nsurprise = 2"),
        ("version = 1\n", ""),
        ("B = 1_000", "D = 1_000"),
        ("[[lines]]", "[[lines"),
        ("headwater.policy/1", "headwater.policy/9"),
    ],
)
def test_a_wrong_policy_is_refused_with_a_fix(old, new):
    """Out-of-range, hidden or unknown cuts never load."""
    assert old in TEXT
    with pytest.raises(InvalidError) as caught:
        Policy.from_toml(TEXT.replace(old, new, 1))

    assert caught.value.code == "policy_invalid"
    assert caught.value.fix


def _shared(payees: list[dict[str, object]]) -> dict[str, object]:
    table = dict(POLICY.to_json())
    line = {"name": "reviewers", "account": "operator:reviewers", "bps": 300, "rule": 'looking at "things" \\ \x7f'}
    table["lines"] = [*table["lines"], {**line, "payees": payees}]
    return table


def test_a_line_may_be_shared_and_its_text_reads_back_to_the_same_policy() -> None:
    """Payees are part of the policy's digest; a policy without them keeps the digest it had."""
    payees = [
        {"account": "contributor:ctr_a", "share_ppb": 700_000_000},
        {"account": "escrow:ctr_b", "share_ppb": 300_000_000},
    ]
    shared = Policy.from_json(_shared(payees))

    assert Policy.from_toml(shared.to_toml()) == shared
    assert "payees" not in POLICY.to_json()["lines"][0]
    emptied = shared.with_payees("reviewers", ())
    assert (emptied.version, emptied.digest == shared.digest) == (shared.version + 1, False)


@pytest.mark.parametrize(
    "payees",
    [
        [{"account": "contributor:ctr_a", "share_ppb": 10**9 - 1}],
        [{"account": "contributor:ctr_a", "share_ppb": 5 * 10**8}] * 2,
        [{"account": "payer:key_a", "share_ppb": 10**9}],
        [{"account": "contributor:ctr_a"}],
        "contributor:ctr_a",
    ],
)
def test_a_line_that_cannot_be_shared_without_loss_is_refused(payees: Any) -> None:
    """Shares that do not sum to a whole, a payee twice, an account that cannot earn, and what is no list."""
    with pytest.raises(InvalidError) as refused:
        Policy.from_json(_shared(payees))

    assert refused.value.code == "policy_invalid"


def test_a_shared_line_is_paid_to_each_of_its_payees_to_the_last_unit() -> None:
    """The parts of a line sum to the line, and every other payout is what it was."""
    thirds = [{"account": f"contributor:ctr_{i}", "share_ppb": 333_333_333 + (i == 0)} for i in range(3)]
    shared = Policy.from_json(_shared(thirds))
    plain = shared.with_payees("reviewers", ())
    findings = Findings("A", (), 10**9, COMMONS)

    for price in (1, 7, 10_001, 10**9 + 1):
        paid, before = divide(price, shared, findings), divide(price, plain, findings)
        mine = [one.amount_units for one in paid.payouts if one.line == "reviewers"]
        assert sum(mine) == sum(one.amount_units for one in before.payouts if one.line == "reviewers")
        assert max(mine, default=0) - min(mine, default=0) <= 1 or len(mine) < 3
        assert [one for one in paid.payouts if one.line != "reviewers"] == [
            one for one in before.payouts if one.line != "reviewers"
        ]
