# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Bond
@license Apache-2.0
@notice Money that reviewers, challengers and posters answer with: staked, slashed after a delay and an appeal, taken
        back after a delay.
@dev A stake belongs to an account and a role (a number the operator gives a meaning to), so what somebody answers with
     as a reviewer is out of reach of what it does as a challenger.

     A slash is asked for by the *slasher* and freezes its amount at once: asking for the stake back, before or after,
     does not outrun it. It is carried out when the delay is over, unless the account appeals; then the *arbiter*, who
     is never the slasher, upholds or drops it, and when the arbiter says nothing in time it is dropped. So every slash
     ends without anybody's good will, and what is frozen is never frozen for longer than both delays.

     Slasher and arbiter change only after a notice that is longer than unbonding takes: whoever does not trust the
     next ones can be gone by then.
"""

# ------------------------------------------------------------------ imports

import Purse as purse
import Stewards as stewards

initializes: purse
initializes: stewards
exports: (purse.__interface__, stewards.__interface__)

# ------------------------------------------------------------------ constants

STAKE: constant(uint256) = 1  # pause flags
SLASH: constant(uint256) = 2

DELAY_MIN_S: constant(uint256) = 60
DELAY_MAX_S: constant(uint256) = 60 * 86400
NOTICE_MARGIN_S: constant(uint256) = 86400

OPEN: constant(uint256) = 1  # status of a slash
APPEALED: constant(uint256) = 2
DONE: constant(uint256) = 3
DROPPED: constant(uint256) = 4

# ------------------------------------------------------------------ immutables

UNBOND_S: immutable(uint256)
SLASH_S: immutable(uint256)
APPEAL_S: immutable(uint256)

# ------------------------------------------------------------------ structs

struct Stake:
    amount: uint256  # token units, frozen and asked-back ones included
    frozen: uint256  # token units under slashes that have not ended
    asked: uint256  # token units asked back
    due_from: uint256  # seconds since 1970


struct Slash:
    account: address
    role: uint256
    amount: uint256  # token units
    to: address
    reason: bytes32  # digest of the decision
    until: uint256  # seconds since 1970: of the delay when open, of the arbiter's time when appealed
    status: uint256

# ------------------------------------------------------------------ state

slasher: public(address)
arbiter: public(address)
next_slasher: public(address)
next_arbiter: public(address)
change_from: public(uint256)  # seconds since 1970; 0 when no change is announced

stakes: public(HashMap[address, HashMap[uint256, Stake]])
slashes: public(HashMap[uint256, Slash])
slash_count: public(uint256)  # ids are 1 to this
owed: public(HashMap[address, uint256])  # token units from slashes, to be withdrawn
total: public(uint256)  # token units staked and owed in all: never above what is held

# ------------------------------------------------------------------ events

event Staked:
    account: indexed(address)
    role: indexed(uint256)
    amount: uint256
    staked: uint256


event AskedBack:
    account: indexed(address)
    role: indexed(uint256)
    amount: uint256
    due_from: uint256


event TakenBack:
    account: indexed(address)
    role: indexed(uint256)
    amount: uint256


event SlashAsked:
    id: indexed(uint256)
    account: indexed(address)
    role: indexed(uint256)
    amount: uint256
    to: address
    reason: bytes32
    until: uint256


event Appealed:
    id: indexed(uint256)
    until: uint256


event Slashed:
    id: indexed(uint256)
    account: indexed(address)
    to: indexed(address)
    amount: uint256


event Dropped:
    id: indexed(uint256)


event RolesAnnounced:
    slasher: indexed(address)
    arbiter: indexed(address)
    change_from: uint256


event RolesChanged:
    slasher: indexed(address)
    arbiter: indexed(address)

# ------------------------------------------------------------------ constructor

@deploy
def __init__(
    token: address,
    owner: address,
    guardian: address,
    slasher: address,
    arbiter: address,
    unbond_s: uint256,
    slash_s: uint256,
    appeal_s: uint256,
):
    """
    @notice Ties the contract to one token and sets the roles and delays for ever.
    @param token ERC-20 with 6 to 18 decimals that takes no fee and does not rebase.
    @param owner Announces changes of slasher and arbiter, lifts a pause.
    @param guardian Pauses staking and new slashes.
    @param slasher Asks for slashes.
    @param arbiter Decides appeals; never the slasher.
    @param unbond_s Seconds between asking a stake back and taking it, 60 to 60 days.
    @param slash_s Seconds an account has to appeal, 60 to 60 days.
    @param appeal_s Seconds the arbiter has to decide, 60 to 60 days.
    """
    purse.__init__(token)
    stewards.__init__(owner, guardian)
    for delay: uint256 in [unbond_s, slash_s, appeal_s]:
        assert delay >= DELAY_MIN_S and delay <= DELAY_MAX_S, "Bond: delay out of range"
    self._only_apart(slasher, arbiter)
    UNBOND_S = unbond_s
    SLASH_S = slash_s
    APPEAL_S = appeal_s
    self.slasher = slasher
    self.arbiter = arbiter
    log RolesChanged(slasher=slasher, arbiter=arbiter)

# ------------------------------------------------------------------ stakes

@external
@nonreentrant
def stake(account: address, role: uint256, amount: uint256):
    """
    @notice Takes tokens that the caller has approved, as the stake of an account in a role.
    @param account Who answers with them and can take them back.
    @param role Number of the role.
    @param amount Token units.
    @custom:security Anybody, for anybody. A token that takes a fee is refused. Stops while paused.
    """
    stewards._runs(STAKE)
    assert account != empty(address) and amount > 0, "Bond: nothing to stake"
    purse._take(msg.sender, amount)
    self.stakes[account][role].amount += amount
    self.total += amount
    log Staked(account=account, role=role, amount=amount, staked=self.stakes[account][role].amount)


@external
def ask_back(role: uint256, amount: uint256):
    """
    @notice Announces that the caller takes a stake back; it answers for it until it has.
    @param role Number of the role.
    @param amount Token units; 0 withdraws the announcement. A new one replaces the one before and waits anew.
    @custom:security The caller's own stake. Never paused.
    """
    one: Stake = self.stakes[msg.sender][role]
    assert amount <= one.amount, "Bond: more than the stake"
    due_from: uint256 = block.timestamp + UNBOND_S
    self.stakes[msg.sender][role].asked = amount
    self.stakes[msg.sender][role].due_from = due_from
    log AskedBack(account=msg.sender, role=role, amount=amount, due_from=due_from)


@external
@nonreentrant
def take_back(role: uint256, to: address) -> uint256:
    """
    @notice Sends what the caller asked back, as far as no slash has frozen it; the rest stays asked.
    @param role Number of the role.
    @param to Receives the tokens.
    @return Token units.
    @custom:security The caller's own stake, after the delay. Never paused.
    """
    one: Stake = self.stakes[msg.sender][role]
    assert to != empty(address) and to != self, "Bond: nobody to pay"
    assert one.asked > 0, "Bond: nothing asked back"
    assert block.timestamp >= one.due_from, "Bond: too early"
    amount: uint256 = min(one.asked, one.amount - one.frozen)
    assert amount > 0, "Bond: frozen by a slash"
    self.stakes[msg.sender][role].amount = one.amount - amount
    self.stakes[msg.sender][role].asked = one.asked - amount
    self.total -= amount
    assert purse._send(to, amount), "Bond: transfer failed"
    log TakenBack(account=msg.sender, role=role, amount=amount)
    return amount

# ------------------------------------------------------------------ slashes

@external
@nonreentrant
def slash(account: address, role: uint256, amount: uint256, to: address, reason: bytes32) -> uint256:
    """
    @notice Asks for a part of a stake and freezes it.
    @param account Whose stake.
    @param role In which role.
    @param amount Token units; at most what no other slash has frozen.
    @param to Who is owed them when the slash is carried out.
    @param reason Digest of the published decision.
    @return Id of the slash.
    @custom:security Slasher only. The account has the delay to appeal. Stops while paused.
    """
    stewards._runs(SLASH)
    assert msg.sender == self.slasher, "Bond: not the slasher"
    one: Stake = self.stakes[account][role]
    assert amount > 0 and amount <= one.amount - one.frozen, "Bond: more than the stake"
    assert to != empty(address) and to != account and to != self, "Bond: nobody to gain"
    assert reason != empty(bytes32), "Bond: no reason"
    self.stakes[account][role].frozen = one.frozen + amount
    id: uint256 = self.slash_count + 1
    until: uint256 = block.timestamp + SLASH_S
    self.slash_count = id
    self.slashes[id] = Slash(
        account=account, role=role, amount=amount, to=to, reason=reason, until=until, status=OPEN
    )
    log SlashAsked(id=id, account=account, role=role, amount=amount, to=to, reason=reason, until=until)
    return id


@external
def appeal(id: uint256):
    """
    @notice Takes a slash to the arbiter.
    @param id Of the slash.
    @custom:security The account only, before the delay is over, once. Never paused.
    """
    one: Slash = self.slashes[id]
    assert msg.sender == one.account, "Bond: not the account"
    assert one.status == OPEN, "Bond: not open"
    assert block.timestamp < one.until, "Bond: too late"
    until: uint256 = block.timestamp + APPEAL_S
    self.slashes[id].status = APPEALED
    self.slashes[id].until = until
    log Appealed(id=id, until=until)


@external
@nonreentrant
def decide(id: uint256, upheld: bool):
    """
    @notice Ends an appeal.
    @param id Of the slash.
    @param upheld Whether it is carried out.
    @custom:security Arbiter only, in its time; afterwards the slash can only be dropped. Never paused.
    """
    assert msg.sender == self.arbiter, "Bond: not the arbiter"
    one: Slash = self.slashes[id]
    assert one.status == APPEALED, "Bond: no appeal"
    assert block.timestamp < one.until, "Bond: too late"
    if upheld:
        self._carry_out(id, one)
    else:
        self._drop(id, one)


@external
@nonreentrant
def finish(id: uint256):
    """
    @notice Ends a slash whose time is over: one that nobody appealed is carried out, an appeal that nobody decided
        drops it.
    @param id Of the slash.
    @custom:security Anybody. Never paused, so nothing stays frozen.
    """
    one: Slash = self.slashes[id]
    assert one.status == OPEN or one.status == APPEALED, "Bond: not open"
    assert block.timestamp >= one.until, "Bond: too early"
    if one.status == OPEN:
        self._carry_out(id, one)
    else:
        self._drop(id, one)


@external
@nonreentrant
def release(id: uint256):
    """
    @notice Takes a slash back before it has ended.
    @param id Of the slash.
    @custom:security Slasher only: it can only do the account good.
    """
    assert msg.sender == self.slasher, "Bond: not the slasher"
    one: Slash = self.slashes[id]
    assert one.status == OPEN or one.status == APPEALED, "Bond: not open"
    self._drop(id, one)


@external
@nonreentrant
def withdraw(to: address) -> uint256:
    """
    @notice Sends what slashes have brought the caller.
    @param to Receives the tokens.
    @return Token units.
    @custom:security The caller's own. A payee whom the token refuses blocks nothing but itself. Never paused.
    """
    amount: uint256 = self.owed[msg.sender]
    assert amount > 0, "Bond: nothing owed"
    assert to != empty(address) and to != self, "Bond: nobody to pay"
    self.owed[msg.sender] = 0
    self.total -= amount
    assert purse._send(to, amount), "Bond: transfer failed"
    return amount

# ------------------------------------------------------------------ roles

@external
def announce_roles(slasher: address, arbiter: address):
    """
    @notice Announces who asks for slashes and who decides appeals after the notice.
    @param slasher Never the arbiter.
    @param arbiter Never the slasher.
    @custom:security Owner only. A new announcement waits anew; naming those in office withdraws one.
    """
    stewards._only_owner()
    self._only_apart(slasher, arbiter)
    self.next_slasher = slasher
    self.next_arbiter = arbiter
    self.change_from = block.timestamp + UNBOND_S + NOTICE_MARGIN_S
    log RolesAnnounced(slasher=slasher, arbiter=arbiter, change_from=self.change_from)


@external
def change_roles():
    """
    @notice Makes an announced change when its notice is over.
    @custom:security Anybody. A slash that is open stays open, with the new arbiter.
    """
    assert self.change_from != 0, "Bond: no change announced"
    assert block.timestamp >= self.change_from, "Bond: too early"
    self.change_from = 0
    self.slasher = self.next_slasher
    self.arbiter = self.next_arbiter
    log RolesChanged(slasher=self.slasher, arbiter=self.arbiter)

# ------------------------------------------------------------------ reading

@external
@view
@nonreentrant
def staked(account: address, role: uint256) -> uint256:
    """
    @notice What an account answers with: its stake, less what was asked back or is frozen.
    @param account Any address.
    @param role Number of the role.
    @return Token units that a slash will find for at least as long as unbonding takes.
    @custom:security Count on this, not on the whole stake.
    """
    one: Stake = self.stakes[account][role]
    return one.amount - min(one.amount, one.asked + one.frozen)


@external
@view
def delays() -> (uint256, uint256, uint256):
    """
    @notice The three delays.
    @return Seconds to unbond, to appeal and to decide an appeal.
    @custom:security Fixed when the contract was made.
    """
    return UNBOND_S, SLASH_S, APPEAL_S

# ------------------------------------------------------------------ internal

@internal
@pure
def _only_apart(slasher: address, arbiter: address):
    assert slasher != empty(address) and arbiter != empty(address), "Bond: nobody to decide"
    assert slasher != arbiter, "Bond: slasher is the arbiter"


@internal
def _carry_out(id: uint256, one: Slash):
    """
    @dev From stake to what is owed: the total does not change. What was asked back shrinks with the stake.
    """
    left: uint256 = self.stakes[one.account][one.role].amount - one.amount
    self.stakes[one.account][one.role].amount = left
    self.stakes[one.account][one.role].frozen -= one.amount
    self.stakes[one.account][one.role].asked = min(self.stakes[one.account][one.role].asked, left)
    self.owed[one.to] += one.amount
    self.slashes[id].status = DONE
    log Slashed(id=id, account=one.account, to=one.to, amount=one.amount)


@internal
def _drop(id: uint256, one: Slash):
    self.stakes[one.account][one.role].frozen -= one.amount
    self.slashes[id].status = DROPPED
    log Dropped(id=id)
