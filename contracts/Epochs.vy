# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Epochs
@license Apache-2.0
@notice Keeps the roots of closed epochs: who may post them, what they may promise, when they count.
@dev A module, deployed as a part of Payout and never alone: a claim then reads its root without a call
     to another contract, and what is promised cannot drift from what is held.

     Amounts are units of the token, cumulative since the first epoch. Epochs are numbered from 1 upwards;
     a number is used once, and a cancelled epoch is corrected by a later one.

     Safety does not rest on the poster. A root must be covered by deposits, may raise the total by no more
     than the cap, waits out a delay in which the guardian can cancel it, anybody can challenge it and a proof
     of fraud ends it (see Disputes), and never has a second root waiting beside it, so a poster gone bad can
     promise at most one cap per delay. Whatever a root says, Payout keeps the reserve: everything that came
     in less what the newest active root promises in all.

     Bonds are in the same token and a part of the reserve, so that no root can reach them.
"""

# ------------------------------------------------------------------ constants

POST: constant(uint256) = 1  # pause flags, one bit per function
CLAIM: constant(uint256) = 2
PUSH: constant(uint256) = 4
DEPOSIT: constant(uint256) = 8
FLAGS: constant(uint256) = 15

MASK_24: constant(uint256) = 2**24 - 1
MASK_32: constant(uint256) = 2**32 - 1
MASK_40: constant(uint256) = 2**40 - 1
MASK_64: constant(uint256) = 2**64 - 1
MASK_160: constant(uint256) = 2**160 - 1

STEP_MAX: constant(uint256) = 2**16  # a slip of the pen cannot use up the numbers
DELAY_MAX_S: constant(uint256) = 30 * 86400  # longer, and a bad root could not be replaced in a useful time

STATUS_UNKNOWN: constant(uint256) = 0
STATUS_PENDING: constant(uint256) = 1
STATUS_ACTIVE: constant(uint256) = 2
STATUS_EXPIRED: constant(uint256) = 3

# ------------------------------------------------------------------ immutables

BOND: immutable(uint256)  # token units that a poster must have staked and a challenger puts up

# ------------------------------------------------------------------ state

owner: public(address)
pending_owner: public(address)
guardian: public(address)
_poster: uint256  # address 160 | its stake 64

# The open challenge of the pending root: challenger 160 | leaf index 32 | to be answered by, seconds, 40
_challenge: uint256

owed: public(HashMap[address, uint256])  # bonds that can be withdrawn, token units

# Everything a claim has to know, in one word, lowest bits first:
#   pause flags 8 | newest epoch becomes active at 40 | newest epoch 32
#   | distance back to the epoch before it 24 | and from there to the one before that 24
#   | reserve while the newest is pending 64 | reserve once it is active 64
# Distances exceed 1 where epochs were cancelled or left out.
_state: uint256

# What a post has to know besides: deposits 64 | cap 64 | highest number ever used 32 | delay 32 | bonds held 64
_book: uint256

_roots: HashMap[uint256, bytes32]

# ------------------------------------------------------------------ events

event Posted:
    epoch: indexed(uint256)
    root: bytes32
    total: uint256  # cumulative token units
    data_hash: bytes32
    active_at: uint256  # seconds since 1970


event Cancelled:
    epoch: indexed(uint256)


event BondMoved:
    account: indexed(address)
    staked: uint256  # token units the poster has staked now
    owed: uint256  # token units the account can withdraw now


event Funded:
    amount: uint256  # token units
    funded: uint256  # cumulative token units


event Paused:
    flags: uint256


event CapSet:
    cap: uint256  # token units per epoch


event DelaySet:
    delay_s: uint256


event PosterSet:
    poster: indexed(address)


event GuardianSet:
    guardian: indexed(address)


event OwnershipOffered:
    owner: indexed(address)
    to: indexed(address)


event OwnershipTaken:
    owner: indexed(address)

# ------------------------------------------------------------------ constructor

@deploy
def __init__(owner: address, poster: address, guardian: address, cap: uint256, delay_s: uint256, bond: uint256):
    """
    @notice Sets the roles and the limits.
    @param owner Sets roles and limits, lifts a pause.
    @param poster Posts roots.
    @param guardian Cancels a pending root, pauses.
    @param cap Token units by which one epoch may raise the total, below 2^64.
    @param delay_s Seconds between a post and its claims, at most 30 days.
    @param bond Token units of a bond, below 2^48. Zero leaves challenges free: for demonstrations.
    """
    assert owner != empty(address), "Epochs: no owner"
    assert bond < 2**48, "Epochs: bond above 2^48"
    BOND = bond
    self.owner = owner
    log OwnershipTaken(owner=owner)
    self._set_roles(poster, guardian)
    log PosterSet(poster=poster)
    log GuardianSet(guardian=guardian)
    self._set_limits(cap, delay_s)
    log CapSet(cap=cap)
    log DelaySet(delay_s=delay_s)

# ------------------------------------------------------------------ posting

@external
def post(epoch: uint256, root: bytes32, total: uint256, data_hash: bytes32):
    """
    @notice Posts the root of a closed epoch; its claims open after the delay.
    @param epoch Number above every one used before, by at most 65,536.
    @param root Domain-bound root of the payout tree.
    @param total Token units that all payees may have received after this epoch, in all.
    @param data_hash Digest of the published data that the tree can be recomputed from.
    @custom:security Poster only. Refused unless deposits cover the whole total, the rise is within the cap
        and no other root is pending. A total can never fall, so nobody's money is promised away. The poster
        must have a bond staked, which a proof of fraud takes.
    """
    poster: uint256 = self._poster
    assert convert(msg.sender, uint256) == poster & MASK_160, "Epochs: not the poster"
    assert poster >> 160 >= BOND, "Epochs: no stake"
    state: uint256 = self._state
    book: uint256 = self._book
    assert state & POST == 0, "Epochs: post is paused"
    assert block.timestamp >= (state >> 8) & MASK_40, "Epochs: another root is pending"
    assert root != empty(bytes32), "Epochs: empty root"

    highest: uint256 = (book >> 128) & MASK_32
    assert epoch > highest and epoch <= unsafe_add(highest, STEP_MAX) and epoch <= MASK_32, "Epochs: not the next epoch"
    newest: uint256 = (state >> 48) & MASK_32
    assert unsafe_sub(epoch, newest) <= MASK_24, "Epochs: too far from the last root"

    funded: uint256 = book & MASK_64
    reserve: uint256 = state >> 192
    inside: uint256 = unsafe_add(funded, book >> 192)  # deposits and bonds
    promised: uint256 = unsafe_sub(inside, reserve)  # a reserve is a part of that
    assert total <= funded, "Epochs: not funded"
    assert total >= promised, "Epochs: total fell"
    assert unsafe_sub(total, promised) <= (book >> 64) & MASK_64, "Epochs: above the cap"

    active_at: uint256 = unsafe_add(block.timestamp, (book >> 160) & MASK_32)
    before: uint256 = (state >> 80) & MASK_24
    self._roots[epoch] = root
    self._state = (
        state & FLAGS
        | active_at << 8
        | epoch << 48
        | unsafe_sub(epoch, newest) << 80
        | before << 104
        | reserve << 128
        | unsafe_sub(inside, total) << 192
    )
    self._book = book & ~(MASK_32 << 128) | epoch << 128
    log Posted(epoch=epoch, root=root, total=total, data_hash=data_hash, active_at=active_at)


@external
def cancel(epoch: uint256):
    """
    @notice Cancels the pending root; its number stays used and what it promised is free again.
    @param epoch Its number, so that a late transaction cannot hit another root.
    @custom:security Guardian only, and only before the root is active: nobody can take back a root that
        payees already claim from. An open challenge ends and its bond goes back; the poster keeps its stake.
    """
    assert msg.sender == self.guardian, "Epochs: not the guardian"
    self._only_pending(epoch)
    self._drop(epoch)

# ------------------------------------------------------------------ roles and limits

@external
def set_cap(cap: uint256):
    """
    @notice Sets by how much one epoch may raise the total.
    @param cap Token units, below 2^64.
    @custom:security Owner only. The cap is what a wrong root can cost at most.
    """
    self._only_owner()
    self._set_limits(cap, (self._book >> 160) & MASK_32)
    log CapSet(cap=cap)


@external
def set_delay(delay_s: uint256):
    """
    @notice Sets the time between a post and its claims, for later posts.
    @param delay_s Seconds, at most 30 days.
    @custom:security Owner only. Zero leaves the guardian no time to cancel: for demonstrations.
    """
    self._only_owner()
    self._set_limits((self._book >> 64) & MASK_64, delay_s)
    log DelaySet(delay_s=delay_s)


@external
def set_poster(poster: address):
    """
    @notice Names who posts roots.
    @param poster Never the guardian.
    @custom:security Owner only, and not while a root is pending, whose poster answers for it with its stake.
        The former poster's stake can be withdrawn.
    """
    self._only_owner()
    before: uint256 = self._poster
    if convert(poster, uint256) != before & MASK_160:
        assert before >> 160 == 0 or not self._is_pending(), "Epochs: a root is pending"
        self._set_roles(poster, self.guardian)
        self._owe(convert(before & MASK_160, address), before >> 160)
    log PosterSet(poster=poster)


@external
def set_guardian(guardian: address):
    """
    @notice Names who may cancel a pending root and pause.
    @param guardian Never the poster.
    @custom:security Owner only.
    """
    self._only_owner()
    self._set_roles(convert(self._poster & MASK_160, address), guardian)
    log GuardianSet(guardian=guardian)


@external
def offer_ownership(to: address):
    """
    @notice Offers the ownership; nothing changes until it is taken.
    @param to Next owner, or the zero address to withdraw an offer.
    @custom:security Owner only, in two steps: a mistyped address cannot take it.
    """
    self._only_owner()
    self.pending_owner = to
    log OwnershipOffered(owner=msg.sender, to=to)


@external
def take_ownership():
    """
    @notice Takes the ownership that was offered to the caller.
    @custom:security Only whom it was offered to.
    """
    assert msg.sender == self.pending_owner, "Epochs: not the pending owner"
    self.pending_owner = empty(address)
    self.owner = msg.sender
    log OwnershipTaken(owner=msg.sender)


@external
def pause(flags: uint256):
    """
    @notice Stops functions in addition to those already stopped.
    @param flags Sum of post 1, claim 2, push 4, deposit 8.
    @custom:security Guardian or owner. Moves no money and cancels nothing.
    """
    assert msg.sender == self.guardian or msg.sender == self.owner, "Epochs: not the guardian"
    assert flags <= FLAGS, "Epochs: unknown flag"
    self._state |= flags
    log Paused(flags=self._state & FLAGS)


@external
def unpause(flags: uint256):
    """
    @notice Lets functions run again.
    @param flags Sum of post 1, claim 2, push 4, deposit 8.
    @custom:security Owner only: who raised the alarm does not lift it.
    """
    self._only_owner()
    assert flags <= FLAGS, "Epochs: unknown flag"
    self._state &= ~flags
    log Paused(flags=self._state & FLAGS)

# ------------------------------------------------------------------ reading

@external
@view
def poster() -> address:
    """
    @notice Who posts roots.
    @return Its address.
    @custom:security Never the guardian.
    """
    return convert(self._poster & MASK_160, address)


@external
@view
def staked() -> uint256:
    """
    @notice What the poster has staked.
    @return Token units.
    @custom:security Below `bond` nothing can be posted. No root can promise it.
    """
    return self._poster >> 160


@external
@view
def bond() -> uint256:
    """
    @notice What a poster must have staked, and what a challenger puts up.
    @return Token units.
    @custom:security Fixed when the contract was made.
    """
    return BOND


@external
@view
def bonds_held() -> uint256:
    """
    @notice All bonds in the contract: the stake, that of an open challenge, and those not yet withdrawn.
    @return Token units.
    @custom:security No root can promise any of it.
    """
    return self._book >> 192


@external
@view
def challenge_open() -> (address, uint256, uint256):
    """
    @notice The open challenge of the pending root.
    @return Who challenged (the zero address when nobody did), the index whose leaf has to be shown, and by
        when, in seconds since 1970.
    @custom:security The root cannot become active while it is open.
    """
    challenge: uint256 = self._challenge
    return convert(challenge & MASK_160, address), (challenge >> 160) & MASK_32, challenge >> 192


@external
@view
def root_at(epoch: uint256) -> bytes32:
    """
    @notice The root of an epoch, kept for ever.
    @param epoch Its number.
    @return Root, or zero when it was never posted or was cancelled.
    @custom:security A root read here may be pending or expired: see `status_of`.
    """
    return self._roots[epoch]


@external
@view
def status_of(epoch: uint256) -> uint256:
    """
    @notice Whether an epoch's root can be claimed from.
    @param epoch Its number.
    @return 0 not posted or cancelled, 1 pending, 2 active, 3 expired: a later root says as much and more.
    @custom:security Knows nothing of pauses.
    """
    if self._roots[epoch] == empty(bytes32):
        return STATUS_UNKNOWN
    state: uint256 = self._state
    newest: uint256 = (state >> 48) & MASK_32
    newest_active: bool = block.timestamp >= (state >> 8) & MASK_40
    if epoch == newest:
        return STATUS_ACTIVE if newest_active else STATUS_PENDING
    previous: uint256 = newest - ((state >> 80) & MASK_24)
    if epoch == previous:
        return STATUS_ACTIVE
    if not newest_active and epoch == previous - ((state >> 104) & MASK_24):
        return STATUS_ACTIVE
    return STATUS_EXPIRED


@external
@view
def newest() -> (uint256, uint256):
    """
    @notice The newest root that was not cancelled.
    @return Its epoch, 0 when there is none, and when it becomes or became active, in seconds since 1970
        (0 when a later root was cancelled).
    @custom:security It may still be cancelled while pending.
    """
    state: uint256 = self._state
    return (state >> 48) & MASK_32, (state >> 8) & MASK_40


@external
@view
def highest() -> uint256:
    """
    @notice The highest epoch number ever used, cancelled ones included.
    @return Epoch number.
    @custom:security The next post must be above it.
    """
    return (self._book >> 128) & MASK_32


@external
@view
def funded() -> uint256:
    """
    @notice Everything that was ever deposited.
    @return Token units.
    @custom:security Tokens sent without `deposit` are not in it and back no root.
    """
    return self._book & MASK_64


@external
@view
def promised() -> uint256:
    """
    @notice What the newest root, pending or active, promises in all.
    @return Cumulative token units.
    @custom:security Never above `funded`.
    """
    book: uint256 = self._book
    return (book & MASK_64) + (book >> 192) - (self._state >> 192)


@external
@view
def cap() -> uint256:
    """
    @notice By how much one epoch may raise the total.
    @return Token units.
    @custom:security What a wrong root can cost at most.
    """
    return (self._book >> 64) & MASK_64


@external
@view
def delay_s() -> uint256:
    """
    @notice Time between a post and its claims.
    @return Seconds.
    @custom:security A change counts for later posts only.
    """
    return (self._book >> 160) & MASK_32


@external
@view
def paused() -> uint256:
    """
    @notice What is stopped.
    @return Sum of post 1, claim 2, push 4, deposit 8.
    @custom:security Cancelling and reading are never stopped.
    """
    return self._state & FLAGS

# ------------------------------------------------------------------ internal

@internal
@view
def _open(epoch: uint256, flag: uint256) -> (bytes32, uint256):
    """
    @dev The root to prove against and the token units the vault must keep, or a revert when the epoch
         cannot be paid from. Two active roots count, so that a claim in flight survives a new root.
    """
    state: uint256 = self._state
    assert state & flag == 0, "Epochs: paused"
    newest: uint256 = (state >> 48) & MASK_32
    newest_active: bool = block.timestamp >= (state >> 8) & MASK_40
    if epoch == newest:
        assert newest_active, "Epochs: root is pending"
    else:
        previous: uint256 = newest - ((state >> 80) & MASK_24)
        if epoch != previous:
            assert not newest_active and epoch == previous - ((state >> 104) & MASK_24), "Epochs: no active root"
    root: bytes32 = self._roots[epoch]
    assert root != empty(bytes32), "Epochs: no active root"
    if newest_active:
        return root, state >> 192
    return root, (state >> 128) & MASK_64


@internal
@view
def _is_pending() -> bool:
    return block.timestamp < (self._state >> 8) & MASK_40


@internal
@view
def _only_pending(epoch: uint256):
    """
    @dev Reverts unless `epoch` is the pending root.
    """
    state: uint256 = self._state
    assert epoch == (state >> 48) & MASK_32 and self._roots[epoch] != empty(bytes32), "Epochs: not the newest root"
    assert block.timestamp < (state >> 8) & MASK_40, "Epochs: already active"


@internal
@view
def _previous() -> uint256:
    """
    @dev The epoch before the newest, 0 when there is none.
    """
    state: uint256 = self._state
    return ((state >> 48) & MASK_32) - ((state >> 80) & MASK_24)


@internal
def _drop(epoch: uint256):
    """
    @dev Takes the pending root back, ends its challenge and gives the challenger its bond back.
    """
    state: uint256 = self._state
    newest: uint256 = (state >> 48) & MASK_32
    reserve: uint256 = (state >> 128) & MASK_64
    self._roots[epoch] = empty(bytes32)
    # The epoch before is the newest again and active; its own predecessor keeps its place behind it.
    self._state = (
        state & FLAGS
        | (newest - ((state >> 80) & MASK_24)) << 48
        | ((state >> 104) & MASK_24) << 80
        | reserve << 128
        | reserve << 192
    )
    challenge: uint256 = self._challenge
    if challenge != 0:
        self._challenge = 0
        self._owe(convert(challenge & MASK_160, address), BOND)
    log Cancelled(epoch=epoch)


@internal
def _set_active_at(active_at: uint256):
    self._state = self._state & ~(MASK_40 << 8) | active_at << 8


@internal
def _owe(account: address, amount: uint256):
    """
    @dev Makes a part of the bonds withdrawable. Nobody is paid in the middle of a dispute: an account that
         cannot receive must not keep it from ending.
    """
    if amount > 0:
        self.owed[account] += amount
        log BondMoved(account=account, staked=self._poster >> 160, owed=self.owed[account])


@internal
def _slash() -> uint256:
    """
    @dev Takes a bond off the poster's stake; it is there, because a root needs it and it cannot leave before.
    """
    self._poster -= BOND << 160
    return BOND


@internal
def _hold(amount: uint256):
    """
    @dev Books a bond that has arrived: no root promises any of it, so both reserves grow.
    """
    book: uint256 = self._book
    assert (book & MASK_64) + (book >> 192) + amount <= MASK_64, "Epochs: deposits above 2^64"
    self._book = book + (amount << 192)
    self._state += amount << 128 | amount << 192


@internal
def _release(amount: uint256):
    """
    @dev Books a bond that leaves. Either reserve holds all bonds, so neither borrows from its neighbour.
    """
    self._book -= amount << 192
    self._state -= amount << 128 | amount << 192


@internal
@view
def _may_deposit():
    assert self._state & DEPOSIT == 0, "Epochs: paused"


@internal
def _fund(amount: uint256):
    """
    @dev Books a deposit that has arrived. Neither root promises any of it, so both reserves grow.
    """
    book: uint256 = self._book
    funded: uint256 = (book & MASK_64) + amount
    assert funded + (book >> 192) <= MASK_64, "Epochs: deposits above 2^64"
    self._book = book + amount
    # No carry between the fields: either reserve is at most deposits and bonds together.
    self._state += amount << 128 | amount << 192
    log Funded(amount=amount, funded=funded)


@internal
@view
def _only_owner():
    assert msg.sender == self.owner, "Epochs: not the owner"


@internal
def _set_roles(poster: address, guardian: address):
    """
    @dev One key that both posts and guards would guard nothing.
    """
    assert poster != empty(address) and guardian != empty(address), "Epochs: no such role"
    assert poster != guardian, "Epochs: poster is guardian"
    if convert(poster, uint256) != self._poster & MASK_160:
        self._poster = convert(poster, uint256)  # a new poster starts without a stake
    self.guardian = guardian


@internal
def _set_limits(cap: uint256, delay_s: uint256):
    assert cap <= MASK_64, "Epochs: cap above 2^64"
    assert delay_s <= DELAY_MAX_S, "Epochs: delay above 30 days"
    book: uint256 = self._book
    self._book = book & MASK_64 | cap << 64 | book & (MASK_32 << 128) | delay_s << 160 | book & (MASK_64 << 192)
