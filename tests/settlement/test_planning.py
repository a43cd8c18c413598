"""Who is pushed, who claims, who waits: the rule, its limits, and its constants against real transactions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.core.keccak import keccak256
from headwater.settlement import Domain, Leaf, PayoutTree, planning
from headwater.settlement.fees import FeeParameters, Fork, fastlz_size, fee_of_size
from headwater.settlement.planning import Due, best_payment, plan, push_fee, sweep

ETHER = 3_000 * 10**6  # token units
GWEI = 10**9
SNAPSHOT = json.loads((Path(__file__).parents[1] / "contracts/gas_snapshot.json").read_text("ascii"))


def prices(gwei: float, **rest) -> FeeParameters:
    """A chain without data fee at this gas price, or another one."""
    return FeeParameters(round(gwei * GWEI), **rest)


def whole(indices):
    """Pushes of 256 places wherever somebody is wanted."""
    return [(start, 256) for start in sorted({index - index % 256 for index in indices})]


def decided(units, gwei, *, posted=True, **fields):
    """The plan for payees who are due `units`, one after the other."""
    dues = [Due(i, f"contributor:{i}", due, True, **fields) for i, due in enumerate(units)]
    return plan(dues, prices(gwei), ether_units=ETHER, ranges=whole, posted=posted)


def test_the_three_fates_of_money_by_its_size():
    """At 1 gwei a push costs about 3.5 cents: dollars are pushed, half a dollar is claimed, a cent waits."""
    found = decided([20_000_000] * 200 + [500_000] * 20 + [10_000] * 36, 1.0)

    assert [found.count(action) for action in ("push", "claim", "wait")] == [200, 20, 36]
    assert found.moved_units == found.units("push") == 200 * 20_000_000


def test_the_rule_is_twenty_fees_when_the_share_allows_it():
    """Beside much large money, a payee just above twenty times its part is pushed and one just below is not."""
    large = [10**9] * 254
    fee = push_fee(256, 0, 0, prices(0.01))
    part = -(-fee // 256) * ETHER / 10**18

    assert decided([*large, round(part * 20.5), 1], 0.01).decisions[254].action == "push"
    assert decided([*large, round(part * 19.5), 1], 0.01).decisions[254].action != "push"


@settings(max_examples=60, deadline=None)
@given(
    units=st.lists(st.integers(0, 10**8), min_size=1, max_size=120),
    milli=st.integers(1, 20_000),
    posted=st.booleans(),
    fork=st.sampled_from([Fork.NONE, Fork.JOVIAN]),
)
def test_fees_never_exceed_one_percent_of_what_moves(units, milli, posted, fork):
    """Whatever is due at whatever price: pushes and post together stay within a percent, and nobody below the rule."""
    dues = [Due(i, f"contributor:{i}", due, bool(i % 3)) for i, due in enumerate(units)]
    given_ = FeeParameters(milli * 10**6, 0, fork, 2 * GWEI, 10**7, 2_269, 1_055_762, 0, 5)
    found = plan(dues, given_, ether_units=ETHER, ranges=whole, posted=posted)
    pushed = [one for one in found.decisions if one.action == "push"]

    # Recomputed from the ranges, not from the plan's own sums.
    spent = 0 if posted or not found.post else fee_of_size(planning.POST_SIZE, planning.POST_GAS, given_).total_wei
    for start, count in whole([one.due.index for one in pushed]):
        inside = [one.due for one in pushed if start <= one.due.index < start + count]
        spent += push_fee(len(inside), sum(not due.paid_before for due in inside), count - len(inside), given_)
    if pushed:
        assert spent * ETHER * 100 <= sum(one.due.units for one in pushed) * 10**18
    for one in pushed:
        assert one.due.units * 10**18 >= 20 * one.fee_wei * ETHER
    assert {one.due.index for one in found.decisions} == set(range(len(units)))


def test_dearer_gas_never_pushes_more():
    """Along a sweep from 0.001 to 10 gwei the number of pushed payees only falls, and all money is accounted for."""
    units = [int(3_000 * 1.05**i) for i in range(250)]
    dues = [Due(i, f"contributor:{i}", due, True) for i, due in enumerate(units)]
    plans = sweep(dues, prices(1), [10**6, 10**7, 10**8, 10**9, 10**10], ether_units=ETHER, ranges=whole, posted=True)
    pushed = [one.count("push") for one in plans]

    assert pushed == sorted(pushed, reverse=True)
    assert pushed[0] == 250
    assert pushed[-1] < 100
    for one in plans:
        assert sum(one.units(action) for action in ("push", "claim", "wait")) == sum(units)


def test_a_root_that_is_dear_is_posted_later():
    """A cent promised for a root of twenty cents: nothing is posted, and nobody can claim meanwhile."""
    later = decided([10_000], 1.0, posted=False)
    now = decided([10**9], 1.0, posted=False)

    assert (later.post, later.count("wait")) == (False, 1)
    assert (now.post, now.count("push")) == (True, 1)
    assert now.post_fee_wei == planning.POST_GAS * GWEI


def test_a_first_payment_has_to_carry_what_it_costs():
    """Somebody who was never paid here needs more before it is pushed."""
    dues = [Due(i, "x", 10**9, True) for i in range(254)]
    amount = round(-(-push_fee(256, 0, 0, prices(0.01)) // 256) * 30 * ETHER / 10**18)
    old, new = Due(254, "old", amount, True), Due(255, "new", amount, False)
    found = plan([*dues, old, new], prices(0.01), ether_units=ETHER, ranges=whole, posted=True)

    assert [one.action for one in found.decisions[254:]] == ["push", "claim"] or [
        one.action for one in found.decisions[254:]
    ] == ["push", "wait"]
    assert found.decisions[255].threshold_units > found.decisions[254].threshold_units


def test_who_earns_fast_is_paid_in_larger_sums():
    """T* grows with the root of what somebody earns, and days until a push are told."""
    fee = 10**15
    assert best_payment(fee, 0) == fee
    for day in (10**15, 10**18):
        best = best_payment(fee, day)
        # It is the largest root of T^2 - f T - f r / h, to the wei above.
        assert (
            best * best - fee * best >= fee * day * planning.LIFE_DAYS > (best - 1) ** 2 - fee * (best - 1) - 2 * best
        )
    slow, fast = decided([100], 0.1, day_units=10).decisions[0], decided([100], 0.1, day_units=10**7).decisions[0]

    assert fast.threshold_units > slow.threshold_units
    assert slow.days == -(-(slow.threshold_units - 100) // 10)
    assert decided([100], 0.1).decisions[0].days is None


def test_wrong_prices_are_refused():
    """An ether that is worth nothing, a share of nothing, a negative debt."""
    for wrong in ({"ether_units": 0}, {"ether_units": 1, "share_max_ppb": 0}):
        with pytest.raises(InvalidError):
            plan([], prices(1), ranges=whole, posted=True, **wrong)
    with pytest.raises(InvalidError):
        Due(0, "x", -1, True)


def test_gas_is_what_the_bench_measures():
    """The plan's gas is within three percent of the snapshot that the contracts' tests keep."""
    largest = SNAPSHOT["10000"]
    paid_256 = planning.PUSH_GAS / 256 + planning.PAYEE_GAS
    for measured, planned in (
        (largest["post_repeat"], planning.POST_GAS),
        (largest["push_position_unpaid"], planning.ABSENT_GAS),
        (largest["push_fixed"], planning.PUSH_GAS),
        (largest["push_repeat_per_payee"], paid_256),
        (largest["push_first_per_payee"], paid_256 + planning.FIRST_GAS),
        (largest["claim_repeat"], planning.CLAIM_GAS),
        (largest["claim_first"], planning.CLAIM_GAS + planning.FIRST_GAS),
    ):
        assert abs(measured - planned) <= 0.03 * measured


def test_sizes_are_those_of_signed_transactions():
    """FastLZ bytes of a post, a claim and a push at 10,000 payees, within five percent of what the plan takes."""
    eth_account = pytest.importorskip("eth_account")
    web3 = pytest.importorskip("web3")
    from headwater.chain import read_artifact

    address = "0x" + "5A" * 20
    payees = [keccak256(b"payee" + bytes([i // 256, i % 256]))[:20].hex() for i in range(10_000)]
    amounts = [3_000 + 7_919 * i % 2_000_000 for i in range(10_000)]
    tree = PayoutTree.build(
        [Leaf(i, "0x" + payees[i], amounts[i]) for i in range(10_000)], Domain(8_453, address, address, 7)
    )
    contract = web3.Web3().eth.contract(web3.Web3.to_checksum_address(address), abi=read_artifact("Payout").abi)

    def size(call) -> int:
        fields = {"chainId": 8_453, "nonce": 1_234, "gas": 3_000_000, "value": 0, "type": 2}
        fields |= {"maxFeePerGas": 11_000_000, "maxPriorityFeePerGas": 1_000_000}
        signed = eth_account.Account.from_key(b"\x01" * 32).sign_transaction(call.build_transaction(fields))
        return fastlz_size(bytes(signed.raw_transaction))

    def words(path):
        return [int.from_bytes(one, "big") for one in path]

    part, one = tree.prove_range(512, 256), tree.prove(1_234)
    post = size(contract.functions.post(7, tree.root, tree.total, keccak256(b"data")))
    owner = web3.Web3.to_checksum_address(one.leaf.address)
    claim = size(contract.functions.claim(7, 1_234, owner, one.leaf.amount, words(one.path)))
    push = size(contract.functions.push(7, part.payload(), 2**256 - 1, words(part.path)))

    assert abs(post - planning.POST_SIZE) <= 0.05 * post
    assert abs(claim - planning.CLAIM_SIZE) <= 0.05 * claim
    assert abs(push - (planning.PUSH_SIZE + 256 * planning.PAYEE_SIZE)) <= 0.05 * push
