# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Stream
@license Apache-2.0
@notice Money that becomes a payee's second by second: paid for in full beforehand, vesting in a straight line.
@dev Everything is cumulative. A stream says how much it holds in all and how much of that the payee has taken; what
     has vested never falls, also when more is added. Adding keeps what has vested until then and lets the rest and
     the addition vest together until the end.

     A stream is for ever unless payer and payee agreed otherwise when it was made: then the payer can revoke it, and
     gets back what has not vested, never a unit of what has. Nobody rules this contract: no owner and no pause.
"""

# ------------------------------------------------------------------ imports

import Purse as purse

initializes: purse
exports: purse.__interface__

# ------------------------------------------------------------------ constants

AMOUNT_MAX: constant(uint256) = 2**128 - 1
TIME_MAX: constant(uint256) = 2**40 - 1

# ------------------------------------------------------------------ structs

struct Flow:
    payer: address
    payee: address
    revocable: bool
    amount: uint256  # token units in all, cumulative
    base: uint256  # of which had vested at `since`
    since: uint256  # seconds since 1970: the straight line begins here
    end: uint256  # seconds since 1970: everything has vested
    taken: uint256  # token units the payee has had, cumulative

# ------------------------------------------------------------------ state

flows: public(HashMap[uint256, Flow])
flow_count: public(uint256)  # ids are 1 to this
owed: public(HashMap[address, uint256])  # token units that revoking gave back
total: public(uint256)  # token units that are a payee's or owed: never above what is held

# ------------------------------------------------------------------ events

event Opened:
    id: indexed(uint256)
    payer: indexed(address)
    payee: indexed(address)
    amount: uint256
    start: uint256
    end: uint256
    revocable: bool


event Added:
    id: indexed(uint256)
    amount: uint256
    cumulative: uint256
    end: uint256


event Taken:
    id: indexed(uint256)
    to: indexed(address)
    amount: uint256
    cumulative: uint256


event Revoked:
    id: indexed(uint256)
    vested: uint256
    returned: uint256

# ------------------------------------------------------------------ constructor

@deploy
def __init__(token: address):
    """
    @notice Ties the contract to one token for ever.
    @param token ERC-20 with 6 to 18 decimals that takes no fee and does not rebase.
    """
    purse.__init__(token)

# ------------------------------------------------------------------ payers

@external
@nonreentrant
def open(payee: address, amount: uint256, start: uint256, end: uint256, revocable: bool) -> uint256:
    """
    @notice Takes tokens that the caller has approved and lets them vest from `start` to `end`.
    @param payee Whose they become.
    @param amount Token units.
    @param start Seconds since 1970; not before now.
    @param end Seconds since 1970; after the start.
    @param revocable Whether the caller may take back what has not vested.
    @return Id of the stream.
    @custom:security Anybody. A payee reads `revocable` before counting on it: it cannot be changed to true.
    """
    assert payee != empty(address) and payee != self, "Stream: nobody to pay"
    assert amount > 0 and amount <= AMOUNT_MAX, "Stream: amount out of range"
    assert start >= block.timestamp and end > start and end <= TIME_MAX, "Stream: times out of range"
    purse._take(msg.sender, amount)
    id: uint256 = self.flow_count + 1
    self.flow_count = id
    self.flows[id] = Flow(
        payer=msg.sender, payee=payee, revocable=revocable, amount=amount, base=0, since=start, end=end, taken=0
    )
    self.total += amount
    log Opened(id=id, payer=msg.sender, payee=payee, amount=amount, start=start, end=end, revocable=revocable)
    return id


@external
@nonreentrant
def add(id: uint256, amount: uint256, end: uint256):
    """
    @notice Adds tokens that the caller has approved; what has vested stays so, the rest vests until `end`.
    @param id Of the stream.
    @param amount Token units.
    @param end Seconds since 1970; after now. Only the payee's line may become flatter, and only if the payer moves it.
    @custom:security Anybody may add up to the old end; only the payer may move the end, and not beyond it while the
        stream cannot be revoked: what was promised by a time is there by that time.
    """
    one: Flow = self.flows[id]
    assert one.payer != empty(address), "Stream: unknown"
    assert amount > 0 and one.amount + amount <= AMOUNT_MAX, "Stream: amount out of range"
    assert end > block.timestamp and end >= one.since and end <= TIME_MAX, "Stream: times out of range"
    if end != one.end:
        assert msg.sender == one.payer, "Stream: not the payer"
        assert one.revocable or end < one.end or block.timestamp >= one.end, "Stream: not revocable"
    purse._take(msg.sender, amount)
    if block.timestamp > one.since:
        one.base = self._vested(one)
        one.since = block.timestamp
    one.amount += amount
    one.end = end
    assert one.end > one.since, "Stream: times out of range"
    self.flows[id] = one
    self.total += amount
    log Added(id=id, amount=amount, cumulative=one.amount, end=end)


@external
@nonreentrant
def revoke(id: uint256) -> uint256:
    """
    @notice Ends a revocable stream: what has vested is the payee's, the rest is owed to the payer.
    @param id Of the stream.
    @return Token units owed to the payer now.
    @custom:security The payer only, where it was agreed. What has vested is not touched.
    """
    one: Flow = self.flows[id]
    assert msg.sender == one.payer, "Stream: not the payer"
    assert one.revocable, "Stream: not revocable"
    vested: uint256 = self._vested(one)
    returned: uint256 = one.amount - vested
    assert returned > 0, "Stream: everything has vested"
    one.amount = vested
    one.base = vested
    one.end = min(one.end, max(block.timestamp, one.since))
    one.since = one.end
    one.revocable = False
    self.flows[id] = one
    self.owed[one.payer] += returned
    log Revoked(id=id, vested=vested, returned=returned)
    return returned


@external
def settle_for_ever(id: uint256):
    """
    @notice Gives up the right to revoke.
    @param id Of the stream.
    @custom:security The payer only; there is no way back.
    """
    assert msg.sender == self.flows[id].payer, "Stream: not the payer"
    self.flows[id].revocable = False


@external
@nonreentrant
def withdraw(to: address) -> uint256:
    """
    @notice Sends what revoking gave back to the caller.
    @param to Receives the tokens.
    @return Token units.
    @custom:security The caller's own.
    """
    amount: uint256 = self.owed[msg.sender]
    assert amount > 0, "Stream: nothing owed"
    assert to != empty(address) and to != self, "Stream: nobody to pay"
    self.owed[msg.sender] = 0
    self.total -= amount
    assert purse._send(to, amount), "Stream: transfer failed"
    return amount

# ------------------------------------------------------------------ payees

@external
@nonreentrant
def take(id: uint256) -> uint256:
    """
    @notice Sends the payee what has vested and was not taken.
    @param id Of the stream.
    @return Token units.
    @custom:security Anybody may call, only the payee gains.
    """
    return self._take_vested(id, self.flows[id].payee)


@external
@nonreentrant
def take_to(id: uint256, to: address) -> uint256:
    """
    @notice Sends what has vested and was not taken to an address of the payee's choice.
    @param id Of the stream.
    @param to Receives the tokens.
    @return Token units.
    @custom:security The payee only.
    """
    assert msg.sender == self.flows[id].payee, "Stream: not the payee"
    return self._take_vested(id, to)

# ------------------------------------------------------------------ reading

@external
@view
@nonreentrant
def vested(id: uint256) -> uint256:
    """
    @notice What has become the payee's since the beginning.
    @param id Of the stream.
    @return Token units, cumulative; it never falls.
    @custom:security Rounded down to whole units; at the end it is everything.
    """
    return self._vested(self.flows[id])

# ------------------------------------------------------------------ internal

@internal
@view
def _vested(one: Flow) -> uint256:
    if block.timestamp >= one.end:
        return one.amount
    if block.timestamp <= one.since:
        return one.base
    return one.base + (one.amount - one.base) * (block.timestamp - one.since) // (one.end - one.since)


@internal
def _take_vested(id: uint256, to: address) -> uint256:
    one: Flow = self.flows[id]
    assert to != empty(address) and to != self, "Stream: nobody to pay"
    vested: uint256 = self._vested(one)
    amount: uint256 = vested - one.taken
    assert amount > 0, "Stream: nothing due"
    self.flows[id].taken = vested
    self.total -= amount
    assert purse._send(to, amount), "Stream: transfer failed"
    log Taken(id=id, to=to, amount=amount, cumulative=vested)
    return amount
