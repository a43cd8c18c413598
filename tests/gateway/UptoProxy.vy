# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title UptoProxy
@license Apache-2.0
@notice A double of the contract that takes up to a signed amount through Permit2, for tests: only the facilitator that
        the payer named may settle, to the recipient the payer named, at most what the payer allowed.
@dev Permit2 checks the signature, the nonce and the deadline.
"""

struct TokenPermissions:
    token: address
    amount: uint256

struct Permit:
    permitted: TokenPermissions
    nonce: uint256
    deadline: uint256

struct Details:
    to: address
    requestedAmount: uint256

struct Witness:
    to: address
    facilitator: address
    validAfter: uint256

interface Permit2:
    def permitWitnessTransferFrom(
        permit: Permit,
        details: Details,
        owner: address,
        witness: bytes32,
        witness_type: String[200],
        signature: Bytes[65],
    ): nonpayable

PERMIT2: constant(address) = 0x000000000022D473030F116dDEE9F6B43aC78BA3
WITNESS_TYPE: constant(bytes32) = keccak256("Witness(address to,address facilitator,uint256 validAfter)")


@external
def settle(permit: Permit, amount: uint256, owner: address, witness: Witness, signature: Bytes[65]):
    """
    @notice Move `amount` of what was allowed.
    """
    assert msg.sender == witness.facilitator, "UnauthorizedFacilitator"
    assert amount <= permit.permitted.amount, "AmountExceedsPermitted"
    assert block.timestamp >= witness.validAfter, "PaymentTooEarly"
    extcall Permit2(PERMIT2).permitWitnessTransferFrom(
        permit,
        Details(to=witness.to, requestedAmount=amount),
        owner,
        keccak256(abi_encode(WITNESS_TYPE, witness.to, witness.facilitator, witness.validAfter)),
        "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,address facilitator,uint256 validAfter)",
        signature,
    )
