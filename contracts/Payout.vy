# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Payout
@license Apache-2.0
@notice Holds the money and pays it out: to a payee who shows a proof, or to 256 payees at once when anybody
        shows the part of the tree they stand in.
@dev Amounts are units of one token with 6 decimals, cumulative since the first epoch. A payee's leaf says
     what it may have received in all; it is paid what is missing. So a claim can be repeated, reordered or
     left out without harm, and one claim settles all epochs before it.

     What was paid is kept per index, four in a word: 48 bits of token units and the low 16 bits of the
     account. An account is bound to its index by its first payment, for ever. Both are there against a
     poster's mistake: an account that turns up at a second index is not paid again, and an index that
     turns up with another account is not paid (unless 16 bits happen to agree, and then too little). An
     adversarial poster is bounded by cap, delay and reserve, not by these.

     There is no way out for money except to payees, and no way to change this code.
"""

# ------------------------------------------------------------------ imports

from ethereum.ercs import IERC20
from ethereum.ercs import IERC20Detailed

import Epochs as epochs

initializes: epochs
exports: epochs.__interface__

# ------------------------------------------------------------------ constants

DECIMALS: constant(uint8) = 6
PAYEES_MAX: constant(uint256) = 256  # of one push
RECORD_SIZE: constant(uint256) = 28  # address 20 | amount u64
RECORDS_SIZE_MAX: constant(uint256) = 4 + 256 * 28
DEPTH_MAX: constant(uint256) = 32

TAG: constant(bytes32) = keccak256("headwater.payout.v1")

INDEX_TAKEN: constant(uint256) = 1  # the index has paid another account
ACCOUNT_BOUND: constant(uint256) = 2  # the account was paid at another index
TRANSFER_FAILED: constant(uint256) = 3  # the token refused: the payee stays due
TOO_LARGE: constant(uint256) = 4  # the amount does not fit a lane

MASK_16: constant(uint256) = 2**16 - 1
MASK_64: constant(uint256) = 2**64 - 1
MASK_160: constant(uint256) = 2**160 - 1
MASK_224: constant(uint256) = 2**224 - 1
INDEX_MAX: constant(uint256) = 2**32 - 1
TRANSFER_GAS: constant(uint256) = 300_000  # several times what any token in use needs
AMOUNT_MAX: constant(uint256) = 2**48 - 1

# ------------------------------------------------------------------ immutables

TOKEN: immutable(IERC20)

# ------------------------------------------------------------------ state

_paid: uint256[2**30]  # at index // 4, four lanes of account tag 16 | token units 48, lowest lane first
_bound: HashMap[address, uint256]  # account -> its index + 1

# ------------------------------------------------------------------ events

event Claimed:
    index: indexed(uint256)
    amount: uint256  # token units, of this payment


event Pushed:
    epoch: indexed(uint256)
    start: indexed(uint256)
    amount: uint256  # token units, of this push
    payees: uint256  # who received any of it


event Skipped:
    epoch: indexed(uint256)
    index: indexed(uint256)
    reason: uint256  # see the constants

# ------------------------------------------------------------------ constructor

@deploy
def __init__(
    token: address, owner: address, poster: address, guardian: address, cap: uint256, delay_s: uint256
):
    """
    @notice Ties the contract to one token for ever and sets the roles.
    @param token ERC-20 with 6 decimals that takes no fee and does not rebase.
    @param owner Sets roles and limits, lifts a pause.
    @param poster Posts roots.
    @param guardian Cancels a pending root, pauses.
    @param cap Token units by which one epoch may raise the total.
    @param delay_s Seconds between a post and its claims.
    """
    assert token.is_contract, "Payout: token is no contract"
    assert staticcall IERC20Detailed(token).decimals() == DECIMALS, "Payout: token must have 6 decimals"
    TOKEN = IERC20(token)
    epochs.__init__(owner, poster, guardian, cap, delay_s)

# ------------------------------------------------------------------ money in

@external
@nonreentrant
def deposit(amount: uint256):
    """
    @notice Takes tokens that the caller has approved; they back the roots of all later epochs.
    @param amount Token units.
    @custom:security Anybody. The balance is measured before and after: a token that takes a fee is refused.
        Nobody can take a deposit back.
    """
    epochs._may_deposit()
    assert amount > 0, "Payout: nothing to deposit"
    before: uint256 = staticcall TOKEN.balanceOf(self)
    # What arrived has to be seen before it is booked; the lock keeps everything else out meanwhile.
    assert extcall TOKEN.transferFrom(msg.sender, self, amount, default_return_value=True), "Payout: transfer failed"
    assert staticcall TOKEN.balanceOf(self) == before + amount, "Payout: token takes a fee"
    epochs._fund(amount)

# ------------------------------------------------------------------ money out

@external
@nonreentrant
def claim(
    epoch: uint256, index: uint256, account: address, cumulative: uint256, proof: DynArray[bytes32, DEPTH_MAX]
) -> uint256:
    """
    @notice Pays one payee what is missing to its cumulative amount.
    @param epoch One of the two newest active epochs.
    @param index The payee's index.
    @param account The payee's account, which is paid whoever calls.
    @param cumulative Token units the leaf allows in all.
    @param proof Siblings from the leaf upwards.
    @return Token units paid now.
    @custom:security Anybody may call, only `account` gains. Reverts when nothing is due. Afterwards the
        vault still holds the reserve, whatever the root said.
    """
    root: bytes32 = empty(bytes32)
    reserve: uint256 = 0
    root, reserve = epochs._open(epoch, epochs.CLAIM)
    assert index <= INDEX_MAX and cumulative <= AMOUNT_MAX, "Payout: leaf out of range"
    record: uint256 = convert(account, uint256) << 64 | cumulative
    self._prove(epoch, root, index, self._leaf(index, record), proof)

    offset: uint256 = (index & 3) << 6
    word: uint256 = self._paid[index >> 2]
    lane: uint256 = (word >> offset) & MASK_64
    assert cumulative > lane >> 16, "Payout: nothing due"
    tag: uint256 = record >> 64 & MASK_16
    if lane == 0:
        assert self._bound[account] == 0, "Payout: account has another index"
        self._bound[account] = index + 1
    else:
        assert lane & MASK_16 == tag, "Payout: index is another account's"
    due: uint256 = unsafe_sub(cumulative, lane >> 16)
    self._paid[index >> 2] = word & ~(MASK_64 << offset) | (cumulative << 16 | tag) << offset

    assert self._send(record >> 64, due), "Payout: transfer failed"
    assert staticcall TOKEN.balanceOf(self) >= reserve, "Payout: above what is promised"
    log Claimed(index=index, amount=due)
    return due


@external
@nonreentrant
def push(
    epoch: uint256, payees: Bytes[RECORDS_SIZE_MAX], wanted: uint256, path: DynArray[bytes32, DEPTH_MAX]
) -> uint256:
    """
    @notice Pays the payees under one node of the tree what is missing to their cumulative amounts.
    @param epoch One of the two newest active epochs.
    @param payees First index u32, then for each position from there on address 20 | amount u64, or 28 zero
        bytes where the tree has no leaf. The node is the smallest that covers the records; the rest of its
        positions have no leaf.
    @param wanted Bit i is set when position i is to be paid; the others stay due.
    @param path Siblings from the node upwards.
    @return Token units paid now.
    @custom:security Anybody may call, only payees gain. A payee whose transfer fails, or whose index or
        account is not its own, is skipped and stays due; a lowered amount pays nothing. Afterwards the vault
        still holds the reserve.
    """
    root: bytes32 = empty(bytes32)
    reserve: uint256 = 0
    root, reserve = epochs._open(epoch, epochs.PUSH)

    assert len(payees) >= 4 + RECORD_SIZE and (len(payees) - 4) % RECORD_SIZE == 0, "Payout: records are cut"
    count: uint256 = (len(payees) - 4) // RECORD_SIZE
    start: uint256 = extract32(payees, 0, output_type=uint256) >> 224
    height: uint256 = 0
    for i: uint256 in range(8):
        if 1 << height < count:
            height += 1
    assert start & ((1 << height) - 1) == 0, "Payout: start is not aligned"

    # A record ends where the word that starts 28 bytes per record further on ends: the first 4 bytes of the
    # word belong to what comes before and are masked off. The start is below 2^32 and aligned, so no index below passes 2^32.
    records: uint256[PAYEES_MAX] = empty(uint256[PAYEES_MAX])
    row: bytes32[PAYEES_MAX] = empty(bytes32[PAYEES_MAX])
    for i: uint256 in range(count, bound=PAYEES_MAX):
        record: uint256 = extract32(payees, unsafe_mul(i, RECORD_SIZE), output_type=uint256) & MASK_224
        if record != 0:
            records[i] = record
            row[i] = keccak256(concat(b"\x00", convert(unsafe_add(start, i) << 224 | record, bytes32)))
    width: uint256 = 1 << height
    for level: uint256 in range(height, bound=8):
        width >>= 1
        for i: uint256 in range(width, bound=128):
            child: uint256 = i << 1
            row[i] = keccak256(concat(b"\x01", row[child], row[child | 1]))
    self._prove(epoch, root, start >> height, row[0], path)

    paid: uint256 = 0
    payees_paid: uint256 = 0
    word: uint256 = 0
    for i: uint256 in range(count, bound=PAYEES_MAX):
        index: uint256 = unsafe_add(start, i)
        offset: uint256 = (index & 3) << 6
        if offset == 0 or i == 0:
            word = self._paid[index >> 2]
        record: uint256 = records[i]
        cumulative: uint256 = record & MASK_64
        lane: uint256 = (word >> offset) & MASK_64
        if cumulative <= lane >> 16 or (wanted >> i) & 1 == 0:
            continue
        due: uint256 = unsafe_sub(cumulative, lane >> 16)
        rise: uint256 = due << 16
        reason: uint256 = 0
        if cumulative > AMOUNT_MAX:
            reason = TOO_LARGE
        elif lane == 0:
            account: address = convert(record >> 64, address)
            rise |= (record >> 64) & MASK_16
            if self._bound[account] == 0:
                self._bound[account] = index + 1
            else:
                reason = ACCOUNT_BOUND
        elif (lane ^ (record >> 64)) & MASK_16 != 0:
            reason = INDEX_TAKEN
        if reason == 0:
            # The lane holds less than the cumulative amount, which fits it: no carry into the next lane.
            self._paid[index >> 2] = unsafe_add(word, rise << offset)
            if self._send(record >> 64, due):
                word = unsafe_add(word, rise << offset)
                paid = unsafe_add(paid, due)
                payees_paid = unsafe_add(payees_paid, 1)
                continue
            self._paid[index >> 2] = word
            if lane == 0:
                self._bound[convert(record >> 64, address)] = 0
            reason = TRANSFER_FAILED
        log Skipped(epoch=epoch, index=index, reason=reason)
    assert staticcall TOKEN.balanceOf(self) >= reserve, "Payout: above what is promised"
    log Pushed(epoch=epoch, start=start, amount=paid, payees=payees_paid)
    return paid

# ------------------------------------------------------------------ reading

@external
@view
@nonreentrant
def paid(index: uint256) -> uint256:
    """
    @notice What the payee with this index has received in all.
    @param index The payee's index.
    @return Cumulative token units.
    @custom:security Cannot be read while a payment is under way.
    """
    return ((self._paid[index >> 2] >> ((index & 3) << 6)) & MASK_64) >> 16


@external
@view
@nonreentrant
def index_of(account: address) -> (bool, uint256):
    """
    @notice The index that an account is bound to.
    @param account Any account.
    @return Whether it was ever paid, and its index if so.
    @custom:security Bound by the first payment, for ever.
    """
    bound: uint256 = self._bound[account]
    if bound == 0:
        return False, 0
    return True, bound - 1


@external
@view
def token() -> address:
    """
    @notice The token that everybody is paid in.
    @return ERC-20 with 6 decimals.
    @custom:security Fixed when the contract was made.
    """
    return TOKEN.address


@external
@view
def domain_of(epoch: uint256) -> bytes32:
    """
    @notice What a root is bound to: this chain, this contract, this token and one epoch.
    @param epoch Its number.
    @return Digest that is hashed together with the top of the tree.
    @custom:security Follows the chain id, so a fork of the chain cannot reuse proofs.
    """
    return self._domain(epoch)

# ------------------------------------------------------------------ internal

@internal
@view
def _domain(epoch: uint256) -> bytes32:
    return keccak256(abi_encode(TAG, chain.id, self, TOKEN.address, epoch))


@internal
@pure
def _leaf(index: uint256, record: uint256) -> bytes32:
    """
    @dev The hash of 0x00 | index u32 | address 20 | amount u64; `record` holds the last two.
    """
    return keccak256(concat(b"\x00", convert(index << 224 | record, bytes32)))


@internal
@view
def _prove(epoch: uint256, root: bytes32, position: uint256, node: bytes32, path: DynArray[bytes32, DEPTH_MAX]):
    """
    @dev Climbs from `node` at `position` of its row to the root, or reverts. A position that the path
         does not use up is refused, so every node has one position.
    """
    top: bytes32 = node
    place: uint256 = position
    for sibling: bytes32 in path:
        if place & 1 == 0:
            top = keccak256(concat(b"\x01", top, sibling))
        else:
            top = keccak256(concat(b"\x01", sibling, top))
        place >>= 1
    assert place == 0, "Payout: beyond the tree"
    assert keccak256(concat(self._domain(epoch), top)) == root, "Payout: proof does not reach the root"


@internal
def _send(to: uint256, amount: uint256) -> bool:
    """
    @dev `to` is an account's 160 bits. Whether the token moved, for tokens that revert, that return false and that return nothing. At most
         32 bytes are read back and the gas is bounded, so one payee cannot use up what the others need.
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
