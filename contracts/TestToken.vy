# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title TestToken
@license Apache-2.0
@notice A dollar-like ERC-20 with 6 decimals for demonstrations and tests. Worth nothing.
@dev The owner can mint without limit: never use it where value is meant.
"""

# ------------------------------------------------------------------ imports

from ethereum.ercs import IERC20
from ethereum.ercs import IERC20Detailed

implements: IERC20
implements: IERC20Detailed

# ------------------------------------------------------------------ constants

name: public(constant(String[32])) = "Headwater test dollar"
symbol: public(constant(String[8])) = "HWTD"
decimals: public(constant(uint8)) = 6

# ------------------------------------------------------------------ immutables

OWNER: immutable(address)

# ------------------------------------------------------------------ state

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
totalSupply: public(uint256)

# ------------------------------------------------------------------ constructor

@deploy
def __init__(owner: address):
    """
    @notice Sets who may mint.
    @param owner Mints, without limit.
    """
    OWNER = owner

# ------------------------------------------------------------------ external

@external
def mint(to: address, amount: uint256):
    """
    @notice Makes new tokens.
    @param to Receives them.
    @param amount Token units.
    @custom:security Owner only.
    """
    assert msg.sender == OWNER, "TestToken: not the owner"
    assert to != empty(address), "TestToken: zero address"
    self.totalSupply += amount
    self.balanceOf[to] += amount
    log IERC20.Transfer(sender=empty(address), receiver=to, value=amount)


@external
def transfer(to: address, amount: uint256) -> bool:
    """
    @notice Moves tokens of the caller.
    @param to Receives them.
    @param amount Token units.
    @return True; anything else reverts.
    @custom:security The caller's own tokens only.
    """
    self._move(msg.sender, to, amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    """
    @notice Moves tokens of somebody who approved the caller.
    @param owner Whose tokens.
    @param to Receives them.
    @param amount Token units.
    @return True; anything else reverts.
    @custom:security Uses up the allowance, unless it is the largest number.
    """
    allowed: uint256 = self.allowance[owner][msg.sender]
    if allowed != max_value(uint256):
        assert allowed >= amount, "TestToken: not approved"
        self.allowance[owner][msg.sender] = allowed - amount
    self._move(owner, to, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Lets somebody move tokens of the caller.
    @param spender Who may.
    @param amount Token units, replacing what was allowed before.
    @return True.
    @custom:security A spender can use the old allowance before this one counts.
    """
    self.allowance[msg.sender][spender] = amount
    log IERC20.Approval(owner=msg.sender, spender=spender, value=amount)
    return True

# ------------------------------------------------------------------ internal

@internal
def _move(sender: address, to: address, amount: uint256):
    assert to != empty(address), "TestToken: zero address"
    held: uint256 = self.balanceOf[sender]
    assert held >= amount, "TestToken: balance too low"
    self.balanceOf[sender] = unsafe_sub(held, amount)
    self.balanceOf[to] = unsafe_add(self.balanceOf[to], amount)  # below the total supply, which is checked
    log IERC20.Transfer(sender=sender, receiver=to, value=amount)
