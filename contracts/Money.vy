# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Money
@license Apache-2.0
@notice One token, counted in millionths: takes it, sends it, says how much there is.
@dev A module. All amounts elsewhere are millionths of a token, which for a token with 6 decimals are its own
     units, and for one with more a multiple of them; so one packed ledger serves both. A token with fewer
     decimals, one that takes a fee and one that rebases are not for this contract: the first is refused when
     the contract is made, the second when a deposit arrives.
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
UNIT: immutable(uint256)  # the token's own units in a millionth

# ------------------------------------------------------------------ constructor

@deploy
def __init__(token: address):
    """
    @notice Ties the contract to one token for ever.
    @param token ERC-20 with 6 to 18 decimals that takes no fee and does not rebase.
    """
    assert token.is_contract, "Money: token is no contract"
    decimals: uint8 = staticcall IERC20Detailed(token).decimals()
    assert decimals >= DECIMALS_MIN and decimals <= DECIMALS_MAX, "Money: token must have 6 to 18 decimals"
    TOKEN = IERC20(token)
    UNIT = 10 ** convert(decimals - DECIMALS_MIN, uint256)

# ------------------------------------------------------------------ reading

@external
@view
def token() -> address:
    """
    @notice The token that everybody is paid in.
    @return ERC-20 with 6 to 18 decimals.
    @custom:security Fixed when the contract was made.
    """
    return TOKEN.address


@external
@view
def unit() -> uint256:
    """
    @notice The token's own units in one unit of this contract's amounts.
    @return 1 for a token with 6 decimals.
    @custom:security Fixed when the contract was made.
    """
    return UNIT

# ------------------------------------------------------------------ internal

@internal
@view
def _held() -> uint256:
    """
    @dev Whole millionths this contract holds.
    """
    return staticcall TOKEN.balanceOf(self) // UNIT


@internal
def _take(sender: address, amount: uint256):
    """
    @dev Takes millionths that `sender` has approved, or reverts. What arrived is measured: a token that takes
         a fee is refused. Only from functions that hold the lock.
    """
    before: uint256 = staticcall TOKEN.balanceOf(self)
    assert extcall TOKEN.transferFrom(sender, self, amount * UNIT, default_return_value=True), "Money: transfer failed"
    assert staticcall TOKEN.balanceOf(self) == before + amount * UNIT, "Money: token takes a fee"


@internal
def _send(to: address, amount: uint256) -> bool:
    """
    @dev Whether the token moved, for tokens that revert, that return false and that return nothing. At most
         32 bytes are read back and the gas is bounded, so one payee cannot use up what the others need.
    """
    success: bool = False
    answer: Bytes[32] = b""
    success, answer = raw_call(
        TOKEN.address,
        abi_encode(to, unsafe_mul(amount, UNIT), method_id=method_id("transfer(address,uint256)")),
        max_outsize=32,
        gas=TRANSFER_GAS,
        revert_on_failure=False,
    )
    if not success:
        return False
    if len(answer) == 0:
        return True
    return len(answer) == 32 and convert(answer, uint256) == 1
