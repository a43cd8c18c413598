# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Purse
@license Apache-2.0
@notice One token in its own units: takes it, sends it, says how much there is.
@dev A module of the rails, which are optional and stand beside the settlement contracts. Unlike Money it counts
     the token's own units, as ERC-4626 asks. What arrives is measured, so a token that takes a fee is refused; a
     transfer that fails is an answer and not the end, so that one payee whom the token refuses blocks nobody.
     Every function that calls `_take` or `_send` holds the lock of its contract.
"""

# ------------------------------------------------------------------ imports

from ethereum.ercs import IERC20
from ethereum.ercs import IERC20Detailed

# ------------------------------------------------------------------ constants

DECIMALS_MIN: constant(uint8) = 6
DECIMALS_MAX: constant(uint8) = 18
TRANSFER_GAS: constant(uint256) = 300_000  # several times what any token in use needs

# ------------------------------------------------------------------ immutables

TOKEN: immutable(IERC20)

# ------------------------------------------------------------------ constructor

@deploy
def __init__(token: address):
    """
    @notice Ties the contract to one token for ever.
    @param token ERC-20 with 6 to 18 decimals that takes no fee and does not rebase.
    """
    assert token.is_contract, "Purse: token is no contract"
    decimals: uint8 = staticcall IERC20Detailed(token).decimals()
    assert decimals >= DECIMALS_MIN and decimals <= DECIMALS_MAX, "Purse: token must have 6 to 18 decimals"
    TOKEN = IERC20(token)

# ------------------------------------------------------------------ reading

@external
@view
def token() -> address:
    """
    @notice The token that everything here is counted in.
    @return ERC-20 with 6 to 18 decimals.
    @custom:security Fixed when the contract was made.
    """
    return TOKEN.address

# ------------------------------------------------------------------ internal

@internal
@view
def _held(who: address) -> uint256:
    """
    @dev The token's own units that an address holds.
    """
    return staticcall TOKEN.balanceOf(who)


@internal
def _take(sender: address, amount: uint256):
    """
    @dev Takes units that `sender` has approved, exactly, or reverts.
    """
    before: uint256 = staticcall TOKEN.balanceOf(self)
    assert extcall TOKEN.transferFrom(sender, self, amount, default_return_value=True), "Purse: transfer failed"
    assert staticcall TOKEN.balanceOf(self) == before + amount, "Purse: token takes a fee"


@internal
def _send(to: address, amount: uint256) -> bool:
    """
    @dev Whether the token moved, for tokens that revert, that return false and that return nothing. At most
         32 bytes are read back and the gas is bounded.
    """
    success: bool = False
    answer: Bytes[32] = b""
    success, answer = raw_call(
        TOKEN.address,
        abi_encode(to, amount, method_id=method_id("transfer(address,uint256)")),
        max_outsize=32,
        gas=TRANSFER_GAS,
        revert_on_failure=False,
    )
    if not success:
        return False
    if len(answer) == 0:
        return True
    return len(answer) == 32 and convert(answer, uint256) == 1
