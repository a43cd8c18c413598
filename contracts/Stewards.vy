# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Stewards
@license Apache-2.0
@notice An owner who sets limits and lifts a pause, and a guardian who can only stop things.
@dev A module of the rails. Each contract gives its own meaning to the flags; none of them stops money from going
     back to whom it belongs.
"""

# ------------------------------------------------------------------ constants

FLAGS_MAX: constant(uint256) = 255

# ------------------------------------------------------------------ state

owner: public(address)
pending_owner: public(address)
guardian: public(address)
paused: public(uint256)  # sum of the contract's flags

# ------------------------------------------------------------------ events

event Paused:
    flags: uint256


event GuardianSet:
    guardian: indexed(address)


event OwnershipOffered:
    owner: indexed(address)
    to: indexed(address)


event OwnershipTaken:
    owner: indexed(address)

# ------------------------------------------------------------------ constructor

@deploy
def __init__(owner: address, guardian: address):
    """
    @notice Sets who looks after the contract.
    @param owner Sets limits and roles, lifts a pause.
    @param guardian Pauses; never the owner.
    """
    assert owner != empty(address), "Stewards: no owner"
    assert guardian != owner, "Stewards: guardian is the owner"
    self.owner = owner
    self.guardian = guardian
    log OwnershipTaken(owner=owner)
    log GuardianSet(guardian=guardian)

# ------------------------------------------------------------------ external

@external
def set_guardian(guardian: address):
    """
    @notice Names who may pause.
    @param guardian Never the owner.
    @custom:security Owner only.
    """
    self._only_owner()
    assert guardian != msg.sender, "Stewards: guardian is the owner"
    self.guardian = guardian
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
    @custom:security Only whom it was offered to, and never the guardian.
    """
    assert msg.sender == self.pending_owner, "Stewards: not the pending owner"
    assert msg.sender != self.guardian, "Stewards: guardian is the owner"
    self.pending_owner = empty(address)
    self.owner = msg.sender
    log OwnershipTaken(owner=msg.sender)


@external
def pause(flags: uint256):
    """
    @notice Stops functions in addition to those already stopped.
    @param flags Sum of the contract's flags.
    @custom:security Guardian or owner. Moves no money.
    """
    assert msg.sender == self.guardian or msg.sender == self.owner, "Stewards: not the guardian"
    assert flags <= FLAGS_MAX, "Stewards: unknown flag"
    self.paused |= flags
    log Paused(flags=self.paused)


@external
def unpause(flags: uint256):
    """
    @notice Lets functions run again.
    @param flags Sum of the contract's flags.
    @custom:security Owner only: who raised the alarm does not lift it.
    """
    self._only_owner()
    assert flags <= FLAGS_MAX, "Stewards: unknown flag"
    self.paused &= ~flags
    log Paused(flags=self.paused)

# ------------------------------------------------------------------ internal

@internal
@view
def _only_owner():
    assert msg.sender == self.owner, "Stewards: not the owner"


@internal
@view
def _runs(flag: uint256):
    assert self.paused & flag == 0, "Stewards: paused"
