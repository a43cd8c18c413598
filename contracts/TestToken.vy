# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title TestToken
@license Apache-2.0
@notice A dollar-like ERC-20 with 6 decimals for demonstrations and tests, with signed approvals (EIP-2612) and signed
        transfers (EIP-3009) as the real ones have. Worth nothing.
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
version: public(constant(String[1])) = "1"

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
PERMIT_TYPE: constant(bytes32) = keccak256(
    "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)
TRANSFER_TYPE: constant(bytes32) = keccak256(
    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
RECEIVE_TYPE: constant(bytes32) = keccak256(
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
CANCEL_TYPE: constant(bytes32) = keccak256("CancelAuthorization(address authorizer,bytes32 nonce)")
HALF_ORDER: constant(bytes32) = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0

# ------------------------------------------------------------------ events

event AuthorizationUsed:
    authorizer: indexed(address)
    nonce: indexed(bytes32)

event AuthorizationCanceled:
    authorizer: indexed(address)
    nonce: indexed(bytes32)

# ------------------------------------------------------------------ immutables

OWNER: immutable(address)

# ------------------------------------------------------------------ state

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
totalSupply: public(uint256)
nonces: public(HashMap[address, uint256])  # of signed approvals
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])  # used or cancelled

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


@external
def permit(owner: address, spender: address, amount: uint256, deadline: uint256, v: uint8, r: bytes32, s: bytes32):
    """
    @notice Lets somebody move tokens of an owner who signed for it (EIP-2612).
    @param owner Who signed.
    @param spender Who may move tokens.
    @param amount Token units, replacing what was allowed before.
    @param deadline Last second at which the signature counts.
    @param v Of the signature.
    @param r Of the signature.
    @param s Of the signature; the lower of its two forms.
    @custom:security Each signature counts once, in the order of the owner's nonces.
    """
    assert block.timestamp <= deadline, "TestToken: expired"
    nonce: uint256 = self.nonces[owner]
    terms: bytes32 = keccak256(abi_encode(PERMIT_TYPE, owner, spender, amount, nonce, deadline))
    self._check_signed(owner, terms, v, r, s)
    self.nonces[owner] = nonce + 1
    self.allowance[owner][spender] = amount
    log IERC20.Approval(owner=owner, spender=spender, value=amount)


@external
def transferWithAuthorization(
    sender: address,
    to: address,
    amount: uint256,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    """
    @notice Moves tokens of somebody who signed for this transfer (EIP-3009); anyone may bring the signature.
    @param sender Who signed.
    @param to Receives them.
    @param amount Token units.
    @param validAfter Second after which it counts.
    @param validBefore Second before which it counts.
    @param nonce Any number that the sender has not used.
    @param v Of the signature.
    @param r Of the signature.
    @param s Of the signature; the lower of its two forms.
    @custom:security Counts once. A contract that is paid should take receiveWithAuthorization, which nobody can front-run.
    """
    terms: bytes32 = keccak256(abi_encode(TRANSFER_TYPE, sender, to, amount, validAfter, validBefore, nonce))
    self._use(sender, validAfter, validBefore, nonce, terms, v, r, s)
    self._move(sender, to, amount)


@external
def receiveWithAuthorization(
    sender: address,
    to: address,
    amount: uint256,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    """
    @notice As transferWithAuthorization, brought by the receiver.
    @param sender Who signed.
    @param to Receives them; the caller.
    @param amount Token units.
    @param validAfter Second after which it counts.
    @param validBefore Second before which it counts.
    @param nonce Any number that the sender has not used.
    @param v Of the signature.
    @param r Of the signature.
    @param s Of the signature; the lower of its two forms.
    @custom:security Only the receiver can bring it.
    """
    assert to == msg.sender, "TestToken: not the receiver"
    terms: bytes32 = keccak256(abi_encode(RECEIVE_TYPE, sender, to, amount, validAfter, validBefore, nonce))
    self._use(sender, validAfter, validBefore, nonce, terms, v, r, s)
    self._move(sender, to, amount)


@external
def cancelAuthorization(authorizer: address, nonce: bytes32, v: uint8, r: bytes32, s: bytes32):
    """
    @notice Ends a signed transfer that was not brought yet.
    @param authorizer Who signed it, and this.
    @param nonce Of the transfer.
    @param v Of the signature.
    @param r Of the signature.
    @param s Of the signature; the lower of its two forms.
    @custom:security Needs the authorizer's own signature.
    """
    assert not self.authorizationState[authorizer][nonce], "TestToken: authorization used"
    self._check_signed(authorizer, keccak256(abi_encode(CANCEL_TYPE, authorizer, nonce)), v, r, s)
    self.authorizationState[authorizer][nonce] = True
    log AuthorizationCanceled(authorizer=authorizer, nonce=nonce)


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    """
    @notice What signatures for this token are bound to: its name and version, this chain, this contract.
    @return The EIP-712 domain.
    """
    return self._domain()

# ------------------------------------------------------------------ internal

@internal
def _use(
    sender: address,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    terms: bytes32,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    assert block.timestamp > validAfter, "TestToken: not yet valid"
    assert block.timestamp < validBefore, "TestToken: expired"
    assert not self.authorizationState[sender][nonce], "TestToken: authorization used"
    self._check_signed(sender, terms, v, r, s)
    self.authorizationState[sender][nonce] = True
    log AuthorizationUsed(authorizer=sender, nonce=nonce)


@internal
@view
def _domain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE, keccak256(name), keccak256(version), chain.id, self))


@internal
@view
def _check_signed(signer: address, terms: bytes32, v: uint8, r: bytes32, s: bytes32):
    assert convert(s, uint256) <= convert(HALF_ORDER, uint256), "TestToken: bad signature"
    found: address = ecrecover(keccak256(concat(b"\x19\x01", self._domain(), terms)), v, r, s)
    assert found != empty(address), "TestToken: bad signature"
    assert found == signer, "TestToken: bad signature"


@internal
def _move(sender: address, to: address, amount: uint256):
    assert to != empty(address), "TestToken: zero address"
    held: uint256 = self.balanceOf[sender]
    assert held >= amount, "TestToken: balance too low"
    self.balanceOf[sender] = unsafe_sub(held, amount)
    self.balanceOf[to] = unsafe_add(self.balanceOf[to], amount)  # below the total supply, which is checked
    log IERC20.Transfer(sender=sender, receiver=to, value=amount)
