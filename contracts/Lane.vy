# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Lane
@license Apache-2.0
@notice The payee's address of somebody who takes advances: what arrives is divided by the pool that made it.
@dev One per borrower, copied by Advance as a minimal proxy. A lane has no key, so nobody can send its income
     elsewhere; it does nothing but hand tokens on at the word of its pool.
"""

# ------------------------------------------------------------------ constants

TRANSFER_GAS: constant(uint256) = 300_000

# ------------------------------------------------------------------ state

pool: public(address)

# ------------------------------------------------------------------ external

@external
def begin():
    """
    @notice Binds a fresh lane to the caller for ever.
    @custom:security Once. A pool calls it in the transaction that makes the lane; the original that is copied holds
        nothing and may be bound by anybody.
    """
    assert self.pool == empty(address), "Lane: has a pool"
    self.pool = msg.sender


@external
def hand_on(token: address, to: address, amount: uint256) -> bool:
    """
    @notice Sends tokens on.
    @param token ERC-20.
    @param to Receives them.
    @param amount The token's own units.
    @return Whether they moved.
    @custom:security The pool only.
    """
    assert msg.sender == self.pool, "Lane: not the pool"
    success: bool = False
    answer: Bytes[32] = b""
    success, answer = raw_call(
        token,
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
