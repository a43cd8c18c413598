# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Credit
@license Apache-2.0
@notice Payers put money in once and then pay by signatures: each says how much a payee may have had in all.
@dev A payee keeps the newest voucher of each payer and closes many of them in one transaction, whenever that is
     worth its fee. Amounts are millionths of one token, cumulative for a payer and a payee, so a voucher can be
     closed twice, late or out of order without harm, and only the newest one matters.

     A payer that wants money back asks for it and waits; meanwhile payees can close what they hold. A voucher is
     therefore worth what is in the payer's account until a withdrawal that was asked for is due. Nobody rules
     this contract: no owner, no pause, no way to change it.
"""

# ------------------------------------------------------------------ imports

import Money as money

initializes: money
exports: money.__interface__

# ------------------------------------------------------------------ constants

VOUCHERS_MAX: constant(uint256) = 128  # of one closing
DELAY_MIN_S: constant(uint256) = 60
DELAY_MAX_S: constant(uint256) = 30 * 86400
MASK_40: constant(uint256) = 2**40 - 1
MASK_64: constant(uint256) = 2**64 - 1

NOT_SIGNED: constant(uint256) = 1  # the signature is not the payer's
NOTHING_DUE: constant(uint256) = 2  # as much was closed before
NO_CREDIT: constant(uint256) = 3  # the payer's account is empty

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
DOMAIN_NAME: constant(bytes32) = keccak256("headwater credit")
DOMAIN_VERSION: constant(bytes32) = keccak256("1")
VOUCHER_TYPE: constant(bytes32) = keccak256("Voucher(address payer,address payee,uint256 cumulative)")
HALF_ORDER: constant(uint256) = (max_value(uint256) - 432420386565659656852420866394968145598) // 2  # of secp256k1

# ------------------------------------------------------------------ immutables

DELAY_S: immutable(uint256)

# ------------------------------------------------------------------ structs

struct Voucher:
    payer: address
    cumulative: uint256  # token units the payee may have had from this payer in all
    r: uint256
    s: uint256  # of the signature; its highest bit is v - 27 (EIP-2098)

# ------------------------------------------------------------------ state

_accounts: HashMap[address, uint256]  # payer -> balance 64 | asked back 64 | due from, seconds, 40
closed: public(HashMap[address, HashMap[address, uint256]])  # payer -> payee -> cumulative token units paid

# ------------------------------------------------------------------ events

event Deposited:
    payer: indexed(address)
    amount: uint256  # token units


event Closed:
    payer: indexed(address)
    payee: indexed(address)
    amount: uint256  # token units, of this closing
    cumulative: uint256  # token units, in all


event Skipped:
    payer: indexed(address)
    payee: indexed(address)
    reason: uint256  # see the constants


event AskedBack:
    payer: indexed(address)
    amount: uint256  # token units
    due_from: uint256  # seconds since 1970


event TakenBack:
    payer: indexed(address)
    amount: uint256  # token units

# ------------------------------------------------------------------ constructor

@deploy
def __init__(token: address, delay_s: uint256):
    """
    @notice Ties the contract to one token for ever.
    @param token ERC-20 with 6 to 18 decimals that takes no fee and does not rebase.
    @param delay_s Seconds between asking money back and taking it, 60 to 30 days.
    """
    assert delay_s >= DELAY_MIN_S and delay_s <= DELAY_MAX_S, "Credit: delay out of range"
    money.__init__(token)
    DELAY_S = delay_s

# ------------------------------------------------------------------ payers

@external
@nonreentrant
def deposit(payer: address, amount: uint256):
    """
    @notice Takes tokens that the caller has approved, for a payer's account.
    @param payer Whose account.
    @param amount Token units.
    @custom:security Anybody, for anybody. A token that takes a fee is refused.
    """
    assert payer != empty(address) and amount > 0, "Credit: nothing to deposit"
    money._take(msg.sender, amount)
    account: uint256 = self._accounts[payer]
    assert (account & MASK_64) + amount <= MASK_64, "Credit: balance above 2^64"
    self._accounts[payer] = account + amount
    log Deposited(payer=payer, amount=amount)


@external
def ask_back(amount: uint256):
    """
    @notice Announces that the caller takes money back.
    @param amount Token units; 0 withdraws the announcement. A new one replaces the one before.
    @custom:security The caller's own account. Until it is taken the money still pays vouchers.
    """
    account: uint256 = self._accounts[msg.sender]
    assert amount <= account & MASK_64, "Credit: more than the balance"
    due_from: uint256 = block.timestamp + DELAY_S
    self._accounts[msg.sender] = account & MASK_64 | amount << 64 | due_from << 128
    log AskedBack(payer=msg.sender, amount=amount, due_from=due_from)


@external
@nonreentrant
def take_back() -> uint256:
    """
    @notice Sends the caller what it asked back, or what vouchers have left of it.
    @return Token units.
    @custom:security The caller's own account, after the delay.
    """
    account: uint256 = self._accounts[msg.sender]
    assert (account >> 64) & MASK_64 > 0, "Credit: nothing asked back"
    assert block.timestamp >= account >> 128, "Credit: too early"
    amount: uint256 = min((account >> 64) & MASK_64, account & MASK_64)
    self._accounts[msg.sender] = (account & MASK_64) - amount
    assert money._send(msg.sender, amount), "Credit: transfer failed"
    log TakenBack(payer=msg.sender, amount=amount)
    return amount

# ------------------------------------------------------------------ payees

@external
@nonreentrant
def close(payee: address, vouchers: DynArray[Voucher, VOUCHERS_MAX]) -> uint256:
    """
    @notice Pays a payee what its vouchers are still worth, in one transfer.
    @param payee Who is named in all of them.
    @param vouchers The newest of each payer.
    @return Token units paid now.
    @custom:security Anybody may call, only `payee` gains. A voucher that is worth nothing is skipped and blocks
        no other; one above the payer's balance is paid as far as that goes, and the rest stays due.
    """
    assert payee != empty(address) and payee != self, "Credit: nobody to pay"
    domain: bytes32 = self._domain()
    total: uint256 = 0
    for voucher: Voucher in vouchers:
        before: uint256 = self.closed[voucher.payer][payee]
        account: uint256 = self._accounts[voucher.payer]
        reason: uint256 = 0
        if voucher.cumulative <= before:
            reason = NOTHING_DUE
        elif account & MASK_64 == 0:
            reason = NO_CREDIT
        elif not self._is_signed(domain, payee, voucher):
            reason = NOT_SIGNED
        if reason != 0:
            log Skipped(payer=voucher.payer, payee=payee, reason=reason)
            continue
        amount: uint256 = min(unsafe_sub(voucher.cumulative, before), account & MASK_64)
        self.closed[voucher.payer][payee] = unsafe_add(before, amount)
        self._accounts[voucher.payer] = unsafe_sub(account, amount)
        total += amount
        log Closed(payer=voucher.payer, payee=payee, amount=amount, cumulative=unsafe_add(before, amount))
    if total > 0:
        assert money._send(payee, total), "Credit: transfer failed"
    return total

# ------------------------------------------------------------------ reading

@external
@view
@nonreentrant
def account_of(payer: address) -> (uint256, uint256, uint256):
    """
    @notice What a payer has.
    @param payer Any address.
    @return Its balance, how much of it was asked back, both in token units, and from when that can be taken,
        in seconds since 1970. What was asked back may be more than what vouchers have left.
    @custom:security Count on balance less what was asked back.
    """
    account: uint256 = self._accounts[payer]
    return account & MASK_64, (account >> 64) & MASK_64, account >> 128


@external
@view
def delay_s() -> uint256:
    """
    @notice Time between asking money back and taking it.
    @return Seconds.
    @custom:security Fixed when the contract was made.
    """
    return DELAY_S


@external
@view
def domain_separator() -> bytes32:
    """
    @notice What vouchers are bound to: this chain and this contract.
    @return EIP-712 domain separator.
    @custom:security Follows the chain id, so a fork of the chain cannot close twice.
    """
    return self._domain()

# ------------------------------------------------------------------ internal

@internal
@view
def _domain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE, DOMAIN_NAME, DOMAIN_VERSION, chain.id, self))


@internal
@view
def _is_signed(domain: bytes32, payee: address, voucher: Voucher) -> bool:
    terms: bytes32 = keccak256(abi_encode(VOUCHER_TYPE, voucher.payer, payee, voucher.cumulative))
    s: uint256 = voucher.s & (2**255 - 1)
    if s > HALF_ORDER:
        return False
    signer: address = ecrecover(
        keccak256(concat(b"\x19\x01", domain, terms)), unsafe_add(voucher.s >> 255, 27), voucher.r, s
    )
    return signer != empty(address) and signer == voucher.payer
