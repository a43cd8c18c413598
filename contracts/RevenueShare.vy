# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title RevenueShare
@license Apache-2.0
@notice Shares of what a datanet or an adapter earns from now on: an ERC-20 of fixed supply whose address is the payee.
@dev Register this address as the payee, and whatever reaches it (a claim, a push, a plain transfer) is income of
     whoever holds shares at the moment the contract sees it: before every transfer of shares and every collection.
     Income that the settlement contract still owes is not here yet and follows the shares; anybody may claim it first.

     Exact: the supply never changes, so income is counted in parts of a unit, as many to a unit as there are shares;
     a share then earns as many parts as units have arrived, and nothing has to be rounded. At any time

         received * supply  =  sum of what holders have accrued  +  collected * supply

     to the last part. A collection sends whole units and leaves the holder its parts of the next one. Nobody rules
     this contract: no owner, no pause, no way to mint or to take income.
"""

# ------------------------------------------------------------------ imports

from ethereum.ercs import IERC20
from ethereum.ercs import IERC20Detailed

import Purse as purse

implements: IERC20
implements: IERC20Detailed
initializes: purse
exports: purse.__interface__

# ------------------------------------------------------------------ constants

decimals: public(constant(uint8)) = 0

SUPPLY_MAX: constant(uint256) = 2**64 - 1
RECEIVED_MAX: constant(uint256) = 2**96 - 1  # token units

# ------------------------------------------------------------------ immutables

NAME: immutable(String[64])
SYMBOL: immutable(String[12])
SUPPLY: immutable(uint256)
SUBJECT: immutable(bytes32)

# ------------------------------------------------------------------ state

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])

received: public(uint256)  # token units that were ever seen to arrive
collected: public(uint256)  # token units that were ever sent to holders

_seen: HashMap[address, uint256]  # holder -> `received` when it was last settled
_accrued: HashMap[address, uint256]  # holder -> parts of a unit, earned until then and not collected

# ------------------------------------------------------------------ events

event Received:
    amount: uint256  # token units
    received: uint256  # token units in all


event Collected:
    holder: indexed(address)
    to: indexed(address)
    amount: uint256  # token units

# ------------------------------------------------------------------ constructor

@deploy
def __init__(
    token: address, issuer: address, supply: uint256, subject: bytes32, name: String[64], symbol: String[12]
):
    """
    @notice Makes every share there will ever be and gives them to the issuer.
    @param token ERC-20 that the income comes in, with 6 to 18 decimals and no fee.
    @param issuer Holds all shares at first.
    @param supply Whole shares, 1 to 2^64 - 1.
    @param subject Digest of whose income it is: the id of a datanet or an adapter, and the terms.
    @param name Of the shares.
    @param symbol Of the shares.
    """
    purse.__init__(token)
    assert issuer != empty(address), "RevenueShare: no issuer"
    assert supply > 0 and supply <= SUPPLY_MAX, "RevenueShare: supply out of range"
    NAME = name
    SYMBOL = symbol
    SUPPLY = supply
    SUBJECT = subject
    self.balanceOf[issuer] = supply
    log IERC20.Transfer(sender=empty(address), receiver=issuer, value=supply)

# ------------------------------------------------------------------ shares

@external
@nonreentrant
def transfer(to: address, amount: uint256) -> bool:
    """
    @notice Moves shares of the caller. What they have earned until now stays the caller's.
    @param to Receives them; never this contract.
    @param amount Whole shares.
    @return True; anything else reverts.
    @custom:security The caller's own shares only. Income that is here and was not seen yet is shared out first.
    """
    self._move(msg.sender, to, amount)
    return True


@external
@nonreentrant
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    """
    @notice Moves shares of somebody who approved the caller.
    @param owner Whose shares.
    @param to Receives them; never this contract.
    @param amount Whole shares.
    @return True; anything else reverts.
    @custom:security Uses up the allowance, unless it is the largest number.
    """
    allowed: uint256 = self.allowance[owner][msg.sender]
    if allowed != max_value(uint256):
        assert allowed >= amount, "RevenueShare: not approved"
        self.allowance[owner][msg.sender] = allowed - amount
    self._move(owner, to, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Lets somebody move shares of the caller.
    @param spender Who may.
    @param amount Whole shares, replacing what was allowed before.
    @return True.
    @custom:security A spender can use the old allowance before this one counts.
    """
    self.allowance[msg.sender][spender] = amount
    log IERC20.Approval(owner=msg.sender, spender=spender, value=amount)
    return True

# ------------------------------------------------------------------ income

@external
@nonreentrant
def share_out() -> uint256:
    """
    @notice Counts what has arrived since the last time.
    @return Token units of new income.
    @custom:security Anybody. Collections and transfers do the same first, so nobody depends on this call.
    """
    return self._share_out()


@external
@nonreentrant
def collect(holder: address) -> uint256:
    """
    @notice Sends a holder the whole units it has earned; the parts of a unit stay its own.
    @param holder Who is paid, whoever calls.
    @return Token units sent.
    @custom:security Anybody may call, only the holder gains. Reverts when nothing is due or the token refuses the
        holder, which then can use `collect_to`; others are not affected.
    """
    return self._collect(holder, holder)


@external
@nonreentrant
def collect_to(to: address) -> uint256:
    """
    @notice Sends what the caller has earned to another address.
    @param to Receives the token.
    @return Token units sent.
    @custom:security The caller's own income only.
    """
    return self._collect(msg.sender, to)

# ------------------------------------------------------------------ reading

@external
@view
@nonreentrant
def collectable(holder: address) -> uint256:
    """
    @notice What a holder could collect now, income that nobody has counted yet included.
    @param holder Any address.
    @return Token units.
    @custom:security Money the settlement contract still owes this one is not in it.
    """
    ever: uint256 = self.received + self._unseen()
    return (self._accrued[holder] + self.balanceOf[holder] * (ever - self._seen[holder])) // SUPPLY


@external
@view
@nonreentrant
def accrued(holder: address) -> uint256:
    """
    @notice What a holder has earned of the income counted so far and not collected, exactly.
    @param holder Any address.
    @return Parts of a token unit, as many to one as there are shares.
    @custom:security With what was collected, these add up to what was received.
    """
    return self._accrued[holder] + self.balanceOf[holder] * (self.received - self._seen[holder])


@external
@view
def name() -> String[64]:
    """
    @notice Name of the shares.
    @return Text.
    @custom:security Chosen by the issuer: it proves nothing.
    """
    return NAME


@external
@view
def symbol() -> String[12]:
    """
    @notice Symbol of the shares.
    @return Text.
    @custom:security Chosen by the issuer: it proves nothing.
    """
    return SYMBOL


@external
@view
def totalSupply() -> uint256:
    """
    @notice Every share there is.
    @return Whole shares.
    @custom:security Fixed when the contract was made.
    """
    return SUPPLY


@external
@view
def subject() -> bytes32:
    """
    @notice Whose income it is.
    @return Digest of the id and the terms.
    @custom:security The registry says whether that subject is really paid here.
    """
    return SUBJECT

# ------------------------------------------------------------------ internal

@internal
@view
def _unseen() -> uint256:
    """
    @dev What came in since it was last counted: all that is here or was sent, less what was counted. A token that
         takes away what this contract holds makes it zero until that has come back.
    """
    ever: uint256 = purse._held(self) + self.collected
    counted: uint256 = self.received
    return ever - counted if ever > counted else 0


@internal
def _share_out() -> uint256:
    amount: uint256 = self._unseen()
    if amount > 0:
        received: uint256 = self.received + amount
        assert received <= RECEIVED_MAX, "RevenueShare: income above 2^96"
        self.received = received
        log Received(amount=amount, received=received)
    return amount


@internal
def _settle(holder: address):
    """
    @dev Books what the holder's shares have earned since it was last settled.
    """
    received: uint256 = self.received
    self._accrued[holder] += self.balanceOf[holder] * (received - self._seen[holder])
    self._seen[holder] = received


@internal
def _move(sender: address, to: address, amount: uint256):
    assert to != empty(address) and to != self, "RevenueShare: nobody to hold them"
    self._share_out()
    self._settle(sender)
    self._settle(to)
    held: uint256 = self.balanceOf[sender]
    assert held >= amount, "RevenueShare: too few shares"
    self.balanceOf[sender] = held - amount
    self.balanceOf[to] += amount
    log IERC20.Transfer(sender=sender, receiver=to, value=amount)


@internal
def _collect(holder: address, to: address) -> uint256:
    assert to != empty(address) and to != self, "RevenueShare: nobody to pay"
    self._share_out()
    self._settle(holder)
    accrued: uint256 = self._accrued[holder]
    amount: uint256 = accrued // SUPPLY
    assert amount > 0, "RevenueShare: nothing due"
    self._accrued[holder] = accrued % SUPPLY
    self.collected += amount
    assert purse._send(to, amount), "RevenueShare: transfer failed"
    log Collected(holder=holder, to=to, amount=amount)
    return amount
