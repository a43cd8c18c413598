"""Rails through their client, on the embedded chain always and on an anvil node where there is one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from headwater.chain import Deployments, RevertedError
from headwater.core.canonical import digest
from headwater.core.errors import MissingError
from headwater.core.keccak import keccak256
from headwater.rails import (
    AdvancePool,
    BondBook,
    ChainBonds,
    Governance,
    PoolLimits,
    RevenueShares,
    Role,
    SlashRequest,
    SlashState,
    Streams,
    VoterRoll,
    sign_roll,
    sign_vote,
)

SEED = b"\x11" * 32
REASON = digest(b"decision 1")
HOUR_S = 3_600


@dataclass
class Rails:
    """The test deployment as each account sees it."""

    vault: object

    def seen_by(self, number: int) -> Deployments:
        """The chain with the key of one of the node's accounts."""
        return Deployments(self.vault.node.chain(number, self.vault.chain.manifest))

    def who(self, number: int) -> str:
        """Its address."""
        return self.seen_by(number).me

    def give(self, number: int, units: int) -> None:
        """Test tokens, from their owner."""
        self.vault.chain.mint(self.who(number), units)

    def now_s(self) -> int:
        """Of the newest block."""
        return self.seen_by(0).now_s()

    def jump(self, seconds: int) -> None:
        """Move the clock."""
        self.vault.chain.jump(seconds)

    def balance(self, address: str) -> int:
        """Token units."""
        return self.vault.chain.balance(address)


@pytest.fixture
def rails(vault) -> Rails:
    """Accounts 2 to 7 have a million token units each."""
    one = Rails(vault)
    for number in range(2, 8):
        one.give(number, 1_000_000)
    return one


def reason(call) -> str:
    """The contract's word when `call` is refused."""
    with pytest.raises(RevertedError) as refused:
        call()
    return refused.value.reason


def key(number: int) -> bytes:
    """The key of an account of the test node."""
    return keccak256(b"headwater.embedded.account" + number.to_bytes(4, "big") + SEED)


# ------------------------------------------------------------------ bonds


@pytest.fixture
def bond(rails) -> str:
    """A Bond contract: account 0 owns, 1 guards, 2 slashes, 3 judges; account 4 has 1,000 staked as a reviewer."""
    made = ChainBonds.deploy(
        rails.seen_by(0),
        guardian=rails.who(1),
        slasher=rails.who(2),
        arbiter=rails.who(3),
        unbond_s=10 * HOUR_S,
        slash_s=2 * HOUR_S,
        appeal_s=2 * HOUR_S,
    )
    bonds(rails, 4, made.address).stake(rails.who(4), Role.REVIEWER, 1_000)
    return made.address


def bonds(rails: Rails, number: int, address: str) -> ChainBonds:
    """The contract as an account sees it."""
    return ChainBonds(rails.seen_by(number), address)


def request(rails: Rails, units: int) -> SlashRequest:
    """A slash of account 4 in favour of account 5."""
    return SlashRequest(rails.who(4), Role.REVIEWER, units, rails.who(5), REASON)


def test_a_slash_that_nobody_appeals_reaches_the_winner(rails, bond):
    """After the delay anybody ends it; the winner withdraws it and the account keeps the rest."""
    book: BondBook = bonds(rails, 2, bond)
    slash = book.slash(request(rails, 300))

    assert (slash.state, book.staked(rails.who(4), Role.REVIEWER)) == (SlashState.OPEN, 700)
    assert reason(lambda: bonds(rails, 6, bond).finish(slash.id)) == "Bond: too early"
    rails.jump(2 * HOUR_S)
    assert bonds(rails, 6, bond).finish(slash.id).state is SlashState.DONE
    before = rails.balance(rails.who(5))
    bonds(rails, 5, bond).withdraw()
    assert rails.balance(rails.who(5)) - before == 300
    assert bonds(rails, 4, bond).stake_of(rails.who(4), Role.REVIEWER).units == 700


def test_unbonding_does_not_outrun_a_slash(rails, bond):
    """Whoever asks its stake back before or after a slash gets what is not frozen, and the slash finds its money."""
    mine = bonds(rails, 4, bond)
    mine.ask_back(Role.REVIEWER, 1_000)
    assert mine.staked(rails.who(4), Role.REVIEWER) == 0
    rails.jump(9 * HOUR_S)
    slash = bonds(rails, 2, bond).slash(request(rails, 400))
    mine.appeal(slash.id)
    rails.jump(HOUR_S)

    assert mine.take_back(Role.REVIEWER) == 600
    assert reason(lambda: mine.take_back(Role.REVIEWER)) == "Bond: frozen by a slash"
    bonds(rails, 3, bond).decide(slash.id, upheld=True)
    assert (mine.owed(rails.who(5)), mine.stake_of(rails.who(4), Role.REVIEWER).units) == (400, 0)


def test_an_appeal_that_nobody_decides_is_won(rails, bond):
    """An arbiter who is silent keeps nothing frozen."""
    slash = bonds(rails, 2, bond).slash(request(rails, 1_000))
    bonds(rails, 4, bond).appeal(slash.id)
    rails.jump(2 * HOUR_S)

    assert reason(lambda: bonds(rails, 3, bond).decide(slash.id, upheld=True)) == "Bond: too late"
    assert bonds(rails, 6, bond).finish(slash.id).state is SlashState.DROPPED
    assert bonds(rails, 2, bond).staked(rails.who(4), Role.REVIEWER) == 1_000


def test_a_role_answers_for_itself_alone(rails, bond):
    """What is staked as a reviewer cannot be slashed as a challenger, nor more than is staked."""
    slasher = bonds(rails, 2, bond)
    other = SlashRequest(rails.who(4), Role.CHALLENGER, 1, rails.who(5), REASON)

    assert reason(lambda: slasher.slash(other)) == "Bond: more than the stake"
    assert reason(lambda: slasher.slash(request(rails, 1_001))) == "Bond: more than the stake"
    assert reason(lambda: bonds(rails, 3, bond).slash(request(rails, 1))) == "Bond: not the slasher"
    slash = slasher.slash(request(rails, 600))
    assert reason(lambda: slasher.slash(request(rails, 401))) == "Bond: more than the stake"
    assert reason(lambda: bonds(rails, 5, bond).appeal(slash.id)) == "Bond: not the account"
    with pytest.raises(MissingError):
        slasher.slash_of(9)


def test_new_deciders_come_later_than_a_stake_can_leave(rails, bond):
    """A change of slasher waits longer than unbonding, so nobody is judged by whom it does not trust."""
    contract = rails.seen_by(0).at("Bond", bond)
    contract.send("announce_roles", rails.who(6), rails.who(7))
    mine = bonds(rails, 4, bond)
    mine.ask_back(Role.REVIEWER, 1_000)
    rails.jump(10 * HOUR_S)

    assert reason(lambda: contract.send("change_roles")) == "Bond: too early"
    assert mine.take_back(Role.REVIEWER) == 1_000
    rails.jump(24 * HOUR_S)
    contract.send("change_roles")
    assert (contract.read("slasher"), contract.read("arbiter")) == (rails.who(6), rails.who(7))
    assert reason(lambda: contract.send("announce_roles", rails.who(6), rails.who(6))) == (
        "Bond: slasher is the arbiter"
    )


def test_a_pause_keeps_nobody_in(rails, bond):
    """The guardian stops stakes and new slashes; what was begun ends and stakes leave. Only the owner lifts it."""
    slash = bonds(rails, 2, bond).slash(request(rails, 100))
    guardian, owner = rails.seen_by(1).at("Bond", bond), rails.seen_by(0).at("Bond", bond)
    guardian.send("pause", 3)

    assert reason(lambda: bonds(rails, 4, bond).stake(rails.who(4), Role.REVIEWER, 1)) == "Stewards: paused"
    assert reason(lambda: bonds(rails, 2, bond).slash(request(rails, 1))) == "Stewards: paused"
    mine = bonds(rails, 4, bond)
    mine.ask_back(Role.REVIEWER, 900)
    rails.jump(10 * HOUR_S)
    assert mine.take_back(Role.REVIEWER) == 900
    assert mine.finish(slash.id).state is SlashState.DONE
    assert reason(lambda: guardian.send("unpause", 3)) == "Stewards: not the owner"
    owner.send("unpause", 3)
    owner.send("offer_ownership", rails.who(7))
    assert owner.read("owner") == rails.who(0)
    assert reason(lambda: guardian.send("take_ownership")) == "Stewards: not the pending owner"
    rails.seen_by(7).at("Bond", bond).send("take_ownership")
    assert owner.read("owner") == rails.who(7)


# ------------------------------------------------------------------ revenue shares


@pytest.fixture
def shares(rails) -> RevenueShares:
    """A thousand shares of a datanet, all with account 2."""
    return RevenueShares.issue(
        rails.seen_by(2), subject="dn_demo", name="Demo datanet", symbol="DEMO", supply=1_000, terms=REASON
    )


def as_holder(rails: Rails, number: int, shares: RevenueShares) -> RevenueShares:
    """The same shares as an account sees them."""
    return RevenueShares(rails.seen_by(number), shares.issued)


def test_shares_are_a_payee_of_the_settlement_contract(rails, vault, shares):
    """A claim for the contract's address is income of its holders, in proportion and to the last unit."""
    from headwater.settlement import Leaf, PayoutTree

    shares.transfer(rails.who(3), 333)
    tree = PayoutTree.build([Leaf(0, shares.issued.address.lower(), 10_001)], vault.chain.domain(1))
    vault.post(tree)
    vault.chain.claim(1, tree.prove(0))

    assert (shares.collectable(rails.who(2)), shares.collectable(rails.who(3))) == (6_670, 3_330)
    assert as_holder(rails, 6, shares).collect(rails.who(3)) == 3_330
    assert shares.collect() == 6_670
    assert rails.balance(shares.issued.address) == 1  # what did not divide waits for the next income
    rails.give(4, 999)
    vault.send(
        vault.contract(vault.chain.manifest.token, _token_abi()).functions.transfer(shares.issued.address, 999), 4
    )
    assert shares.share_out() == 999
    assert (shares.collectable(rails.who(2)), shares.collectable(rails.who(3))) == (667, 333)


def test_a_transfer_carries_no_earlier_income_away(rails, shares):
    """What came before shares changed hands stays with who held them, whoever counts it."""
    pay(rails, shares, 5_000)
    shares.transfer(rails.who(3), 1_000)
    pay(rails, shares, 700)

    assert (shares.collectable(rails.who(2)), shares.collectable(rails.who(3))) == (5_000, 700)
    backing = shares.backing()
    assert [(one.holder, one.shares, one.collectable_units) for one in backing.holders] == [
        (rails.who(3), 1_000, 700),
        (rails.who(2), 0, 5_000),
    ]
    assert backing.as_json()["holders"][0]["part_ppb"] == 10**9
    assert as_holder(rails, 3, shares).collect(to=rails.who(7)) == 700
    assert reason(lambda: shares.collect(rails.who(3))) == "RevenueShare: nothing due"
    assert reason(lambda: shares.transfer(rails.who(4), 1)) == "RevenueShare: too few shares"
    assert reason(lambda: as_holder(rails, 3, shares).transfer(shares.issued.address, 1)) == (
        "RevenueShare: nobody to hold them"
    )


def pay(rails: Rails, shares: RevenueShares, units: int) -> None:
    """Income, minted straight to the payee."""
    rails.vault.chain.mint(shares.issued.address, units)


def _token_abi():
    from headwater.chain import read_artifact

    return read_artifact("TestToken").abi


# ------------------------------------------------------------------ advances


@pytest.fixture
def pool(rails) -> str:
    """A pool of 100,000 that account 2 has lent; account 0 attests."""
    made = AdvancePool.deploy(
        rails.seen_by(0), guardian=rails.who(1), assessor=rails.who(0), term_s=24 * HOUR_S, release_s=HOUR_S
    )
    advances(rails, 2, made.address).deposit(100_000)
    return made.address


def advances(rails: Rails, number: int, address: str) -> AdvancePool:
    """The pool as an account sees it."""
    return AdvancePool(rails.seen_by(number), address)


def test_an_advance_is_repaid_first_from_claims(rails, pool):
    """The borrower has its money now; income repays principal and fee before anything goes on to the borrower."""
    operator, lender, borrower = (advances(rails, number, pool) for number in (0, 2, 4))
    lane = operator.open_lane(rails.who(4))
    operator.attest(lane, income_units=10_000, risk_bps=100, until_s=rails.now_s() + HOUR_S)
    shares, before = lender.shares(rails.who(2)), rails.balance(rails.who(4))

    assert borrower.lane(lane).drawable_units == 7_000
    assert borrower.price(lane, 5_000) == 80  # 50 basis points, 200 at 5 % lent, 100 of risk: 1.6 %
    assert reason(lambda: borrower.draw(lane, 7_001, fee_max_units=200)) == "Advance: above the line"
    assert reason(lambda: borrower.draw(lane, 5_000, fee_max_units=79)) == "Advance: dearer than agreed"
    assert borrower.draw(lane, 5_000, fee_max_units=80) == 80
    assert rails.balance(rails.who(4)) - before == 5_000
    assert lender.worth(shares) == 100_000
    rails.vault.chain.mint(lane, 3_000)
    assert operator.collect(lane) == (3_000, 0)
    rails.vault.chain.mint(lane, 4_000)
    assert operator.collect(lane) == (2_080, 1_920)
    assert rails.balance(rails.who(4)) - before == 6_920
    assert lender.worth(shares) == 100_000  # the fee is released bit by bit
    rails.jump(HOUR_S)
    assert lender.worth(shares) == 100_080 - 1  # a unit less: what rounds is the pool's
    assert lender.redeem(shares) == 100_079


def test_a_loss_is_stated_and_what_is_repaid_after_all_is_a_gain(rails, pool):
    """An overdue advance leaves the assets by an event that anybody causes; the borrower draws nothing meanwhile."""
    operator, lender, borrower = (advances(rails, number, pool) for number in (0, 2, 4))
    lane, shares = operator.open_lane(rails.who(4)), lender.shares(rails.who(2))
    operator.attest(lane, income_units=10_000, risk_bps=0, until_s=rails.now_s() + 1_000 * HOUR_S)
    borrower.draw(lane, 4_000, fee_max_units=1_000)
    assert reason(lambda: lender.state_loss(lane)) == "Advance: not overdue"
    rails.jump(24 * HOUR_S)

    rails.vault.chain.mint(lane, 1_000)
    assert advances(rails, 6, pool).state_loss(lane) == 3_000
    assert lender.worth(shares) == 97_000
    assert reason(lambda: borrower.draw(lane, 1, fee_max_units=1)) == "Advance: above the line"
    owed = borrower.lane(lane)
    rails.vault.chain.mint(lane, owed.lost_units + owed.fee_units + 5)
    assert operator.collect(lane) == (owed.lost_units + owed.fee_units, 5)
    rails.jump(HOUR_S)
    assert lender.worth(shares) == 100_000 + owed.fee_units - 1
    assert borrower.lane(lane).due_s == 0


def test_limits_of_a_pool(rails, pool):
    """One borrower has at most its part, all of them theirs, and nothing on a word that has run out."""
    operator, borrower = advances(rails, 0, pool), advances(rails, 4, pool)
    lane = operator.open_lane(rails.who(4))
    assert borrower.lane(lane).drawable_units == 0
    operator.attest(lane, income_units=10**9, risk_bps=0, until_s=rails.now_s() + HOUR_S)
    assert borrower.lane(lane).drawable_units == 10_000
    rails.jump(2 * HOUR_S)

    assert borrower.lane(lane).drawable_units == 0
    assert reason(lambda: borrower.attest(lane, income_units=1, risk_bps=0, until_s=0)) == "Advance: not the assessor"
    assert reason(lambda: advances(rails, 6, pool).draw(lane, 1, fee_max_units=1)) == "Advance: not the borrower"
    with pytest.raises(MissingError):
        operator.lane(rails.who(5))
    bad = PoolLimits(part_bps=9_001)
    assert (
        reason(lambda: AdvancePool.deploy(rails.seen_by(0), guardian=rails.who(1), assessor=rails.who(0), limits=bad))
        == "Advance: part out of range"
    )


def test_the_first_depositor_cannot_be_robbed(rails):
    """Money sent to an empty pool is nobody's and makes no share dearer; a later depositor gets back what it gave."""
    made = AdvancePool.deploy(rails.seen_by(0), guardian=rails.who(1), assessor=rails.who(0))
    thief, victim = advances(rails, 3, made.address), advances(rails, 2, made.address)
    thief.deposit(1)
    rails.vault.chain.mint(made.address, 500_000)
    shares = victim.deposit(100_000)

    assert victim.worth(shares) == 100_000
    assert thief.worth(thief.shares(rails.who(3))) == 1
    assert victim.redeem(shares) == 100_000


def test_a_lane_obeys_its_pool_alone(rails, pool):
    """Nobody can take a lane's tokens or bind it anew."""
    lane = advances(rails, 0, pool).open_lane(rails.who(4))
    contract = rails.seen_by(4).at("Lane", lane)
    token = rails.vault.chain.manifest.token

    assert contract.read("pool") == pool
    assert reason(lambda: contract.send("begin")) == "Lane: has a pool"
    assert reason(lambda: contract.send("hand_on", token, rails.who(4), 1)) == "Lane: not the pool"


# ------------------------------------------------------------------ streams


def test_a_stream_vests_in_a_line_and_what_is_added_joins_it(rails):
    """What has vested never falls; an addition keeps it and vests until the end with the rest."""
    made = Streams.deploy(rails.seen_by(2))
    payee = Streams(rails.seen_by(4), made.address)
    start = rails.now_s() + HOUR_S
    id = made.open(rails.who(4), 10_000, start_s=start, end_s=start + 10 * HOUR_S, revocable=False)
    assert reason(lambda: payee.take(id)) == "Stream: nothing due"
    rails.jump(start + 5 * HOUR_S - rails.now_s())
    taken = payee.take(id)
    assert 5_000 <= taken <= 5_010
    made.add(id, 5_000, end_s=start + 10 * HOUR_S)
    flow = made.flow(id)
    assert (flow.units, flow.taken_units) == (15_000, taken)
    assert taken <= flow.vested_units <= 5_020
    assert reason(lambda: made.revoke(id)) == "Stream: not revocable"
    assert reason(lambda: made.add(id, 1, end_s=start + 20 * HOUR_S)) == "Stream: not revocable"
    rails.jump(5 * HOUR_S)
    assert payee.take(id, to=rails.who(7)) == 15_000 - taken
    assert rails.balance(made.address) == 0


def test_revoking_gives_back_only_what_has_not_vested(rails):
    """Where it was agreed, the payer takes the rest and the payee keeps what has vested."""
    made = Streams.deploy(rails.seen_by(2))
    start = rails.now_s() + HOUR_S
    id = made.open(rails.who(4), 8_000, start_s=start, end_s=start + 8 * HOUR_S, revocable=True)
    rails.jump(start + 2 * HOUR_S - rails.now_s())
    assert reason(lambda: Streams(rails.seen_by(4), made.address).revoke(id)) == "Stream: not the payer"
    returned = made.revoke(id)

    assert 5_990 <= returned <= 6_000
    assert Streams(rails.seen_by(6), made.address).take(id) == 8_000 - returned
    assert rails.balance(made.address) == 0
    with pytest.raises(MissingError):
        made.flow(2)


# ------------------------------------------------------------------ governance

OLD, NEW, IMPACT = digest(b"policy 1"), digest(b"policy 2"), digest(b"report")


@pytest.fixture
def roll(rails) -> VoterRoll:
    """Four people; the first has two accounts."""
    return VoterRoll.build(
        {
            "ctr_a": [rails.who(2), rails.who(3)],
            "ctr_b": [rails.who(4)],
            "ctr_c": [rails.who(5)],
            "ctr_d": [rails.who(6)],
        }
    )


@pytest.fixture
def rules(rails, roll) -> str:
    """A Governance contract whose registrar, account 7, has signed the roll."""
    made = Governance.deploy(
        rails.seen_by(0),
        guardian=rails.who(1),
        registrar=rails.who(7),
        policy=OLD,
        vote_s=HOUR_S,
        delay_s=HOUR_S,
        quorum_bps=5_000,
    )
    assert made.post_roll(roll, sign_roll(roll, 1, made.domain, key(7))) == 1
    rails.jump(HOUR_S)
    return made.address


def as_voter(rails: Rails, number: int, address: str) -> Governance:
    """The contract as an account sees it."""
    return Governance(rails.seen_by(number), address)


def test_a_policy_is_voted_for_waits_and_is_in_force(rails, roll, rules):
    """A proposal names its simulation; a person has one vote whatever its accounts; the timelock is kept."""
    id = as_voter(rails, 2, rules).propose(NEW, IMPACT, roll, link="policies/2")
    as_voter(rails, 2, rules).vote(id, roll, support=True)

    assert reason(lambda: as_voter(rails, 3, rules).vote(id, roll, support=True)) == "Governance: cluster has voted"
    assert reason(lambda: as_voter(rails, 2, rules).propose(NEW, IMPACT, roll)) == "Governance: another one is open"
    signed = sign_vote(id, "ctr_b", rails.who(4), True, as_voter(rails, 0, rules).domain, key(4))
    as_voter(rails, 0, rules).vote_signed(id, roll, rails.who(4), signed, support=True)
    assert reason(lambda: as_voter(rails, 0, rules).vote_signed(id, roll, rails.who(5), signed, support=True)) == (
        "Governance: not signed"
    )
    rails.jump(HOUR_S)
    assert as_voter(rails, 0, rules).proposal(id).state == "waiting"
    assert reason(lambda: as_voter(rails, 0, rules).execute(id)) == "Governance: not ready"
    rails.jump(HOUR_S)
    as_voter(rails, 0, rules).execute(id)
    made = as_voter(rails, 0, rules)
    assert made.policy()[0] == NEW
    assert made.policy()[1] <= rails.now_s()
    assert (made.proposal(id).impact, made.proposal(id).replaces, made.proposal(id).state) == (IMPACT, OLD, "executed")


def test_a_vote_without_quorum_or_majority_changes_nothing(rails, roll, rules):
    """One of four is no quorum, and a tie keeps what is in force."""
    lonely = as_voter(rails, 2, rules).propose(NEW, IMPACT, roll)
    as_voter(rails, 2, rules).vote(lonely, roll, support=True)
    tied = as_voter(rails, 4, rules).propose(NEW, IMPACT, roll)
    for number, support in ((4, True), (5, False)):
        as_voter(rails, number, rules).vote(tied, roll, support=support)
    rails.jump(3 * HOUR_S)

    assert [as_voter(rails, 0, rules).proposal(id).state for id in (lonely, tied)] == ["rejected", "rejected"]
    assert as_voter(rails, 0, rules).policy()[0] == OLD


def test_who_is_not_on_the_roll_has_no_vote(rails, roll, rules):
    """An outsider, a false proof and a roll that nobody signed are refused."""
    outside = VoterRoll.build({"ctr_x": [rails.who(7)]})
    assert reason(lambda: as_voter(rails, 7, rules).propose(NEW, IMPACT, outside)) == "Governance: not on the roll"
    made = as_voter(rails, 0, rules)
    assert reason(lambda: made.post_roll(outside, sign_roll(outside, 2, made.domain, key(6)))) == (
        "Governance: not signed"
    )
    assert reason(lambda: made.post_roll(outside, sign_roll(outside, 1, made.domain, key(7)))) == (
        "Governance: not signed"
    )
    assert made.post_roll(outside, sign_roll(outside, 2, made.domain, key(7))) == 2
    assert made.roll_in_force() == 1
    rails.seen_by(1).at("Governance", rules).send("strike_roll", 2)
    rails.jump(2 * HOUR_S)
    assert made.roll_in_force() == 1


def test_a_proposal_lapses_when_another_policy_comes_first(rails, roll, rules):
    """What was simulated against one policy does not replace another; the guardian can strike what is open."""
    first = as_voter(rails, 2, rules).propose(NEW, IMPACT, roll)
    other = as_voter(rails, 4, rules).propose(digest(b"policy 3"), IMPACT, roll)
    third = as_voter(rails, 5, rules).propose(digest(b"policy 4"), IMPACT, roll)
    for id in (first, other):
        for number in (2, 4, 5):
            as_voter(rails, number, rules).vote(id, roll, support=True)
    as_voter(rails, 1, rules).strike(third, REASON)
    rails.jump(2 * HOUR_S)
    as_voter(rails, 0, rules).execute(first)

    assert [one.state for one in as_voter(rails, 0, rules).proposals()] == ["executed", "lapsed", "struck"]
    assert reason(lambda: as_voter(rails, 0, rules).execute(other)) == "Governance: not ready"
