"""A call whose attribution is charged: reserved before, a line on the receipt, passes cut to the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headwater.flow import CallRequest, Message
from headwater.models import Sampling
from headwater.receipts import Receipt
from headwater.splits import Measuring, earlier_answer, recompute_split
from toy.home import ToyHome, open_home

POLICY = (Path(__file__).parents[2] / "src/headwater/splits/default_policy.toml").read_text("utf-8")


def call(home: ToyHome, measuring: Measuring) -> tuple[Receipt, int, int]:
    """One grounded call under these limits: its receipt, what was spent, and what had been reserved."""
    served = replace(home.flow.parts.models["toy-grounded"], measuring=measuring)
    home.flow.parts.models["toy-grounded"] = served  # type: ignore[index]
    _, key = home.key()
    question = (Message("user", "where does a river begin and what do clouds bring"),)
    opened = home.flow.open(CallRequest("toy-grounded", question, Sampling(24), "sha256:" + "1" * 64), key)
    reserved = home.reserved(key)
    list(home.flow.answer(opened))
    receipt = home.flow.attribute(opened.record.call_id)
    assert home.flow.replay(opened.record.call_id) == receipt
    return receipt, home.spent(key), reserved


def paid(receipt: Receipt, line: str) -> int:
    return sum(payout.amount for payout in receipt.payouts if payout.line == line)


def test_measuring_is_charged_as_its_own_line_within_what_was_reserved(tmp_path) -> None:
    """The cost is on the receipt, part of the price, below the ceiling; a stranger divides the price the same way."""
    with open_home(tmp_path) as home:
        free, free_spent, _ = call(home, Measuring())
        receipt, spent, reserved = call(home, Measuring(256, 900, 10))

    cost = dict(receipt.attribution.parameters)["attribution_units"]
    assert paid(free, "attribution") == dict(free.attribution.parameters)["attribution_units"] == 0
    assert cost == paid(receipt, "attribution") > 0
    assert spent == receipt.price == free_spent + cost <= reserved
    assert recompute_split(receipt, POLICY) == receipt.payouts


def test_a_small_allowance_buys_fewer_passes_and_the_receipt_says_so(tmp_path) -> None:
    """Passes are cut to what the price allows: sampled, graded B, with both numbers on the receipt."""
    with open_home(tmp_path) as home:
        exact, _, _ = call(home, Measuring(256, 900, 10))
        fewer, _, _ = call(home, Measuring(256, 900, 400))
        none, _, _ = call(home, Measuring(256, 900, 10**6))

    said = dict(fewer.attribution.parameters)
    assert exact.attribution.grade == "A"
    assert fewer.attribution.grade == "B"
    assert said["passes"] <= said["passes_allowed"] < said["passes_wanted"] == 8
    assert (none.attribution.estimator, none.attribution.residual_ppb) == ("none", 10**9)
    assert paid(none, "attribution") == 0


@pytest.mark.parametrize("passes", [2, 4])
def test_the_operator_may_limit_passes_alone(tmp_path, passes: int) -> None:
    """Without a price for scored tokens the number of passes is all that is limited."""
    with open_home(tmp_path) as home:
        receipt, _, _ = call(home, Measuring(max_passes=passes))

    said = dict(receipt.attribution.parameters)
    assert said["passes_allowed"] == passes
    assert said["passes"] <= passes
    assert receipt.attribution.grade == "B"


def test_a_receipt_says_who_supplied_an_earlier_answer(tmp_path) -> None:
    """What a later answer passes on are the receipt's own weights and owners."""
    with open_home(tmp_path) as home:
        receipt, _, _ = call(home, Measuring())

    earlier = earlier_answer(receipt)
    assert [(part, weight) for part, _, weight in earlier.weights] == [
        (share.contribution, share.weight_ppb) for share in receipt.attribution.shares
    ]
    assert earlier.residual_ppb == receipt.attribution.residual_ppb
    assert all(owner.startswith("ctr_") for _, owner, _ in earlier.weights)
