"""Rails and tokens that block, lie, call back or take a fee: nobody else is harmed and nothing is paid twice."""

from __future__ import annotations

import pytest
from eth_abi import encode

from headwater.chain import Deployments, RevertedError
from headwater.core.canonical import digest
from headwater.core.keccak import keccak256
from headwater.rails import AdvancePool, ChainBonds, RevenueShares, Role, SlashRequest, Streams

HOUR_S = 3_600


class World:
    """A deployment in the misbehaving token; accounts 0 to 6 have a million units each."""

    def __init__(self, vault, token) -> None:
        self.vault, self.token = vault, token
        for number in range(7):
            self.send("mint", self.who(number), 1_000_000)

    def seen_by(self, number: int) -> Deployments:
        """The chain with the key of one of the node's accounts."""
        return Deployments(self.vault.node.chain(number, self.vault.chain.manifest))

    def who(self, number: int) -> str:
        """Its address."""
        return self.seen_by(number).me

    def send(self, name: str, *arguments: object) -> None:
        """Tell the token."""
        self.vault.send(self.token.functions[name](*arguments))

    def held(self, address: str) -> int:
        """Token units."""
        return self.vault.chain.balance(address)

    def jump(self, seconds: int) -> None:
        """Move the clock."""
        self.vault.chain.jump(seconds)


@pytest.fixture
def world(hostile) -> World:
    """A fresh one."""
    return World(*hostile())


def reason(call) -> str:
    """The contract's word when `call` is refused."""
    with pytest.raises(RevertedError) as refused:
        call()
    return refused.value.reason


@pytest.fixture
def rails(world) -> dict[str, object]:
    """One of each."""
    first, one = world.seen_by(0), world.who(1)
    delays = {"unbond_s": HOUR_S, "slash_s": HOUR_S, "appeal_s": HOUR_S}
    return {
        "bond": ChainBonds.deploy(first, guardian=one, slasher=world.who(2), arbiter=world.who(3), **delays),
        "pool": AdvancePool.deploy(first, guardian=one, assessor=world.who(0)),
        "stream": Streams.deploy(first),
        "shares": RevenueShares.issue(first, subject="dn_x", name="X", symbol="X", supply=100),
    }


def test_a_token_that_takes_a_fee_is_refused_by_every_rail_that_takes(world, rails):
    """What arrives must be what was said; otherwise nothing is booked."""
    world.send("set_fee", 1)
    now_s = world.seen_by(0).now_s()

    assert reason(lambda: rails["bond"].stake(world.who(0), Role.POSTER, 100)) == "Purse: token takes a fee"
    assert reason(lambda: rails["pool"].deposit(100)) == "Purse: token takes a fee"
    opened = {"start_s": now_s + HOUR_S, "end_s": now_s + 2 * HOUR_S, "revocable": False}
    assert reason(lambda: rails["stream"].open(world.who(4), 100, **opened)) == "Purse: token takes a fee"


@pytest.mark.parametrize("how", ["block_", "deny", "burn_gas"])
def test_a_holder_whom_the_token_refuses_blocks_nobody(world, rails, how):
    """The others collect, and the refused one has its income sent elsewhere."""
    shares = rails["shares"]
    shares.transfer(world.who(4), 40)
    world.send("mint", shares.issued.address, 1_000)
    world.send(how, world.who(4), True)

    assert reason(lambda: shares.collect(world.who(4))) == "RevenueShare: transfer failed"
    assert shares.collect(world.who(0)) == 600
    assert RevenueShares(world.seen_by(4), shares.issued).collect(to=world.who(5)) == 400


def test_a_winner_whom_the_token_refuses_keeps_no_slash_open(world, rails):
    """The slash ends; what it brought waits and can be sent elsewhere."""
    bond = rails["bond"]
    bond.stake(world.who(4), Role.REVIEWER, 500)
    world.send("block_", world.who(5), True)
    slash = ChainBonds(world.seen_by(2), bond.address).slash(
        SlashRequest(world.who(4), Role.REVIEWER, 200, world.who(5), digest(b"why"))
    )
    world.jump(HOUR_S)
    bond.finish(slash.id)
    winner = ChainBonds(world.seen_by(5), bond.address)

    assert reason(winner.withdraw) == "Bond: transfer failed"
    winner.withdraw(world.who(6))
    assert (bond.owed(world.who(5)), world.held(bond.address)) == (0, 300)


def test_a_borrower_whom_the_token_refuses_still_repays(world, rails):
    """The pool has its part; the borrower's waits in the lane until the token pays it."""
    pool = rails["pool"]
    pool.deposit(100_000)
    lane = pool.open_lane(world.who(4))
    pool.attest(lane, income_units=5_000, risk_bps=0, until_s=world.seen_by(0).now_s() + HOUR_S)
    borrower = AdvancePool(world.seen_by(4), pool.address)
    fee = borrower.draw(lane, 1_000, fee_max_units=100)
    world.send("mint", lane, 4_000)
    world.send("block_", world.who(4), True)

    assert pool.collect(lane) == (1_000 + fee, 0)
    assert world.held(lane) == 3_000 - fee
    world.send("block_", world.who(4), False)
    assert pool.collect(lane) == (0, 3_000 - fee)


@pytest.mark.parametrize("rail", ["shares", "stream", "pool"])
def test_a_token_that_calls_back_gets_nowhere(world, rails, rail):
    """From inside a payment the contract can be neither paid from again nor read."""
    now_s, number = world.seen_by(0).now_s(), world.who(0)
    if rail == "shares":
        target = rails["shares"].issued.address
        world.send("mint", target, 1_000)
        again, pay = _call("collect(address)", ["address"], [number]), lambda: rails["shares"].collect()
    elif rail == "stream":
        target = rails["stream"].address
        rails["stream"].open(number, 1_000, start_s=now_s + 60, end_s=now_s + 120, revocable=False)
        world.jump(200)
        again, pay = _call("take(uint256)", ["uint256"], [1]), lambda: rails["stream"].take(1)
    else:
        target = rails["pool"].address
        rails["pool"].deposit(2_000)
        again = _call("deposit(uint256)", ["uint256"], [1])
        pay = lambda: rails["pool"].redeem(rails["pool"].shares(number) // 2)  # noqa: E731
    world.send("call_back", target, again)
    before = world.held(number)

    assert pay() == 1_000
    assert world.held(number) - before == 1_000
    assert world.vault.chain.sender.read(world.token.functions.reentered(), "reading") is False
    assert world.vault.chain.sender.read(world.token.functions.mode(), "reading") == 0


def _call(signature: str, types: list[str], values: list[object]) -> bytes:
    return keccak256(signature.encode())[:4] + encode(types, values)


def test_a_token_that_returns_nothing_is_understood(world, rails):
    """An empty answer counts as success, as older tokens mean it."""
    world.send("set_silent", True)
    world.send("mint", rails["shares"].issued.address, 500)

    assert rails["shares"].collect() == 500
    rails["pool"].deposit(700)
    assert rails["pool"].redeem(rails["pool"].shares(world.who(0))) == 700
