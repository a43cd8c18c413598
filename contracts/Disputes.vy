# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Disputes
@license Apache-2.0
@notice How anybody stops a wrong root while it is pending, without a judge.
@dev A module. Three things end a pending root:

         lowered    two paths show that a leaf of the root before fell, left or changed its account
         sums       the top of the tree shows that its amounts do not add up to the total that was posted
         silence    somebody puts up a bond and names an index; nobody shows its leaf in time

     The first two are decided by the call that brings them. The third makes a poster publish: a tree that
     nobody can read cannot be proved wrong, but it cannot answer either. A root from before is enough to
     bring the first, so a watcher needs no more than what was published.

     The loser's bond goes to the other side: the poster's to whom the root failed against, a challenger's to
     the poster once the leaf is shown. While a challenge is open the poster's bond is the challenger's, whoever
     brings the proof, so nobody gains by copying it out of a queue of transactions.
"""

# ------------------------------------------------------------------ imports

import Epochs as epochs
import Money as money
import Tree as tree

uses: epochs
uses: money
uses: tree

# ------------------------------------------------------------------ constants

MASK_32: constant(uint256) = 2**32 - 1
MASK_40: constant(uint256) = 2**40 - 1
MASK_64: constant(uint256) = 2**64 - 1
MASK_160: constant(uint256) = 2**160 - 1
NEVER: constant(uint256) = 2**40 - 1  # when a challenged root becomes active

REASON_LOWERED: constant(uint256) = 1
REASON_SUMS: constant(uint256) = 2
REASON_SILENCE: constant(uint256) = 3

# ------------------------------------------------------------------ events

event Challenged:
    epoch: indexed(uint256)
    index: indexed(uint256)
    challenger: indexed(address)
    deadline: uint256  # seconds since 1970


event Answered:
    epoch: indexed(uint256)
    index: indexed(uint256)
    account: address  # zero when the tree has no leaf there
    amount: uint256  # cumulative token units


event Refuted:
    epoch: indexed(uint256)
    reason: uint256  # see the constants
    winner: indexed(address)

# ------------------------------------------------------------------ bonds

@external
@nonreentrant
def stake(amount: uint256):
    """
    @notice Adds to what the poster answers with for its roots.
    @param amount Token units, of tokens that the caller has approved.
    @custom:security Anybody, for the poster. Taken by a proof of fraud, given back by `unstake`.
    """
    assert amount > 0, "Disputes: nothing to stake"
    money._take(msg.sender, amount)
    epochs._hold(amount)
    epochs._poster += amount << 160
    assert epochs._poster >> 160 <= MASK_64, "Disputes: stake above 2^64"


@external
def unstake(amount: uint256):
    """
    @notice Makes a part of the stake withdrawable.
    @param amount Token units.
    @custom:security Poster only, and not while a root is pending, so that no root is without its bond.
    """
    poster: uint256 = epochs._poster
    assert convert(msg.sender, uint256) == poster & MASK_160, "Disputes: not the poster"
    assert not epochs._is_pending(), "Disputes: a root is pending"
    assert amount <= poster >> 160, "Disputes: more than the stake"
    epochs._poster = poster - (amount << 160)
    epochs._owe(msg.sender, amount)


@external
@nonreentrant
def withdraw() -> uint256:
    """
    @notice Sends the caller the bonds it is owed.
    @return Token units.
    @custom:security The caller's own. Never paused.
    """
    amount: uint256 = epochs.owed[msg.sender]
    assert amount > 0, "Disputes: nothing owed"
    epochs.owed[msg.sender] = 0
    epochs._release(amount)
    assert money._send(msg.sender, amount), "Disputes: transfer failed"
    return amount

# ------------------------------------------------------------------ challenges

@external
@nonreentrant
def challenge(epoch: uint256, index: uint256):
    """
    @notice Asks for the leaf of an index in the pending root, with a bond.
    @param epoch The pending epoch.
    @param index Any index, also one that may not be in the tree.
    @custom:security Anybody. The root waits until it is answered, and a whole delay after that; the answer
        costs the challenger its bond. Not paused by anything.
    """
    epochs._only_pending(epoch)
    assert epochs._challenge == 0, "Disputes: a challenge is open"
    assert index <= MASK_32, "Disputes: index out of range"
    if epochs.BOND > 0:
        money._take(msg.sender, epochs.BOND)
        epochs._hold(epochs.BOND)
    deadline: uint256 = block.timestamp + ((epochs._book >> 160) & MASK_32)
    epochs._challenge = convert(msg.sender, uint256) | index << 160 | deadline << 192
    epochs._set_active_at(NEVER)
    log Challenged(epoch=epoch, index=index, challenger=msg.sender, deadline=deadline)


@external
def answer(epoch: uint256, account: address, amount: uint256, path: DynArray[uint256, tree.DEPTH_MAX]):
    """
    @notice Shows the leaf that was asked for; the challenger's bond joins the poster's stake.
    @param epoch The pending epoch.
    @param account The leaf's account, or zero to show that there is none.
    @param amount The leaf's cumulative token units, 0 when there is none.
    @param path Siblings from the leaf upwards. For an index beyond the tree, those of the place that the
        index has modulo the width of the tree.
    @custom:security Anybody. A leaf shown here can be refuted like any other: a whole delay is left for that.
    """
    epochs._only_pending(epoch)
    challenge: uint256 = epochs._challenge
    assert challenge != 0, "Disputes: no challenge"
    index: uint256 = (challenge >> 160) & MASK_32
    record: uint256 = self._shown(epoch, index, account, amount, path)
    epochs._challenge = 0
    epochs._poster += epochs.BOND << 160
    epochs._set_active_at(block.timestamp + ((epochs._book >> 160) & MASK_32))
    log Answered(epoch=epoch, index=index, account=convert(record >> 64, address), amount=record & MASK_64)


@external
def expire(epoch: uint256):
    """
    @notice Ends a root whose challenge was not answered in time; the poster's bond is the challenger's.
    @param epoch The pending epoch.
    @custom:security Anybody, after the deadline.
    """
    epochs._only_pending(epoch)
    challenge: uint256 = epochs._challenge
    assert challenge != 0, "Disputes: no challenge"
    assert block.timestamp > challenge >> 192, "Disputes: there is time to answer"
    self._refute(epoch, REASON_SILENCE)


@external
def refute(
    epoch: uint256,
    index: uint256,
    old_account: address,
    old_amount: uint256,
    old_path: DynArray[uint256, tree.DEPTH_MAX],
    new_account: address,
    new_amount: uint256,
    new_path: DynArray[uint256, tree.DEPTH_MAX],
):
    """
    @notice Ends a pending root by two paths: what an index had in the root before, and what it has now.
    @param epoch The pending epoch.
    @param index The payee's index.
    @param old_account Its account in the root before.
    @param old_amount Its cumulative token units there.
    @param old_path Siblings from that leaf upwards.
    @param new_account Its account in the pending root, or zero when there is no leaf.
    @param new_amount Its cumulative token units there.
    @param new_path Siblings, as `answer` takes them.
    @custom:security Anybody. Only a lower amount, another account or a missing leaf ends the root, whatever
        else it holds; a right root cannot be ended, because no such paths exist.
    """
    epochs._only_pending(epoch)
    before: uint256 = epochs._previous()
    root: bytes32 = epochs._roots[before]
    assert root != empty(bytes32) and old_account != empty(address), "Disputes: nothing before"
    old: uint256 = convert(old_account, uint256) << 64 | old_amount
    assert old_amount <= MASK_64 and index <= MASK_32, "Disputes: leaf out of range"
    tree._prove(before, root, index, 0, tree._leaf(index, old), old_path)
    new: uint256 = self._shown(epoch, index, new_account, new_amount, new_path)
    assert new >> 64 != old >> 64 or new & MASK_64 < old_amount, "Disputes: nothing is wrong with it"
    self._refute(epoch, REASON_LOWERED)


@external
def refute_sums(epoch: uint256, depth: uint256, top: uint256):
    """
    @notice Ends a pending root whose leaves do not add up to the total that was posted with it.
    @param epoch The pending epoch.
    @param depth Rows of the tree above its leaves.
    @param top The uppermost node; its low 64 bits are the sum of all leaves.
    @custom:security Anybody. The sum is hashed into the root at every level, so there is one for each root.
    """
    epochs._only_pending(epoch)
    assert tree._bind(epoch, depth, top) == epochs._roots[epoch], "Disputes: not the top of that root"
    book: uint256 = epochs._book
    total: uint256 = (book & MASK_64) + (book >> 192) - (epochs._state >> 192)
    assert top & MASK_64 != total, "Disputes: nothing is wrong with it"
    self._refute(epoch, REASON_SUMS)

# ------------------------------------------------------------------ internal

@internal
@view
def _shown(
    epoch: uint256, index: uint256, account: address, amount: uint256, path: DynArray[uint256, tree.DEPTH_MAX]
) -> uint256:
    """
    @dev What the pending tree has at `index`, as account 160 | amount 64, or zero; reverts when the path does
         not show it. The depth is a part of the root, so the length of a path that reaches it is the depth.
    """
    record: uint256 = convert(account, uint256) << 64 | amount
    assert index <= MASK_32 and amount <= MASK_64, "Disputes: leaf out of range"
    assert account != empty(address) or amount == 0, "Disputes: nobody has an amount"
    place: uint256 = index & ((1 << len(path)) - 1)
    node: uint256 = 0
    if account != empty(address):
        node = tree._leaf(place, record)
    tree._prove(epoch, epochs._roots[epoch], place, 0, node, path)
    return record if place == index else 0


@internal
def _refute(epoch: uint256, reason: uint256):
    winner: address = msg.sender
    if epochs._challenge != 0:
        winner = convert(epochs._challenge & MASK_160, address)
    epochs._drop(epoch)
    epochs._owe(winner, epochs._slash())
    log Refuted(epoch=epoch, reason=reason, winner=winner)
