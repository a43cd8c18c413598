# pragma version 0.4.3
# pragma evm-version cancun
# SPDX-License-Identifier: Apache-2.0
"""
@title Payout
@license Apache-2.0
@notice Holds the money and pays it out: to a payee who shows a proof, or to 256 payees at once when anybody
        shows the part of the tree they stand in.
@dev Amounts are millionths of one token, cumulative since the first epoch. A payee's leaf says what it may
     have received in all; it is paid what is missing. So a claim can be repeated, reordered or left out
     without harm, and one claim settles all epochs before it.

     What was paid is kept per index, four in a word: 48 bits of token units and 16 bits of the account. An
     account is bound to its index by its first payment, for ever. A root that gives an index to another
     account is wrong and can be ended by two paths (Disputes); should nobody do so, the 16 bits stop it but
     for 1 in 65,536, and cap, delay and reserve bound it.

     There is no way out for money except to payees and for bonds, and no way to change this code.
"""

# ------------------------------------------------------------------ imports

import Disputes as disputes
import Epochs as epochs
import Money as money
import Tree as tree

initializes: epochs
initializes: money
initializes: tree[money := money]
initializes: disputes[epochs := epochs, money := money, tree := tree]
exports: (epochs.__interface__, money.__interface__, tree.__interface__, disputes.__interface__)

# ------------------------------------------------------------------ constants

PAYEES_MAX: constant(uint256) = 256  # of one push
RECORD_SIZE: constant(uint256) = 28  # address 20 | amount u64
RECORDS_SIZE_MAX: constant(uint256) = 4 + 256 * 28
DEPTH_MAX: constant(uint256) = 32

INDEX_TAKEN: constant(uint256) = 1  # the index has paid another account
ACCOUNT_BOUND: constant(uint256) = 2  # the account was paid at another index
TRANSFER_FAILED: constant(uint256) = 3  # the token refused: the payee stays due

MASK_16: constant(uint256) = 2**16 - 1
MASK_40: constant(uint256) = 2**40 - 1
MASK_48: constant(uint256) = 2**48 - 1
MASK_64: constant(uint256) = 2**64 - 1
MASK_160: constant(uint256) = 2**160 - 1
MASK_224: constant(uint256) = 2**224 - 1
HASH: constant(uint256) = max_value(uint256) - (2**64 - 1)
INDEX_MAX: constant(uint256) = 2**32 - 1
AMOUNT_MAX: constant(uint256) = 2**48 - 1

RECIPIENT_DELAY_S: constant(uint256) = 2 * 86400  # time to notice that somebody else changed it

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
DOMAIN_NAME: constant(bytes32) = keccak256("headwater payout")
DOMAIN_VERSION: constant(bytes32) = keccak256("1")
CLAIM_TO_TYPE: constant(bytes32) = keccak256(
    "ClaimTo(address account,uint256 cumulative,address to,uint256 fee,address relayer,uint256 deadline)"
)
HALF_ORDER: constant(uint256) = (max_value(uint256) - 432420386565659656852420866394968145598) // 2  # of secp256k1

# ------------------------------------------------------------------ state

_paid: uint256[2**30]  # at index // 4, four lanes of account tag 16 | token units 48, lowest lane first
_bound: HashMap[address, uint256]  # account -> index + 1 40 | recipient counts from, seconds, 40 | recipient 160
_former: HashMap[address, address]  # account -> its recipient until then, zero for itself

# ------------------------------------------------------------------ events

event Claimed:
    index: indexed(uint256)
    amount: uint256  # token units, of this payment


event ClaimedTo:
    index: indexed(uint256)
    to: indexed(address)
    relayer: indexed(address)
    amount: uint256  # token units that `to` received
    fee: uint256  # token units that the relayer received


event Pushed:
    epoch: indexed(uint256)
    start: indexed(uint256)
    amount: uint256  # token units, of this push
    payees: uint256  # who received any of it


event Skipped:
    epoch: indexed(uint256)
    index: indexed(uint256)
    reason: uint256  # see the constants


event RecipientSet:
    account: indexed(address)
    recipient: indexed(address)
    counts_from: uint256  # seconds since 1970

# ------------------------------------------------------------------ constructor

@deploy
def __init__(
    token: address, owner: address, poster: address, guardian: address, cap: uint256, delay_s: uint256, bond: uint256
):
    """
    @notice Ties the contract to one token for ever and sets the roles.
    @param token ERC-20 with 6 to 18 decimals that takes no fee and does not rebase.
    @param owner Sets roles and limits, lifts a pause.
    @param poster Posts roots.
    @param guardian Cancels a pending root, pauses.
    @param cap Token units by which one epoch may raise the total.
    @param delay_s Seconds between a post and its claims.
    @param bond Token units that a poster stakes and a challenger puts up.
    """
    money.__init__(token)
    epochs.__init__(owner, poster, guardian, cap, delay_s, bond)

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
    # What arrived has to be seen before it is booked; the lock keeps everything else out meanwhile.
    money._take(msg.sender, amount)
    epochs._fund(amount)

# ------------------------------------------------------------------ money out

@external
@nonreentrant
def claim(
    epoch: uint256, index: uint256, account: address, cumulative: uint256, proof: DynArray[uint256, DEPTH_MAX]
) -> uint256:
    """
    @notice Pays one payee what is missing to its cumulative amount.
    @param epoch One of the two newest active epochs.
    @param index The payee's index.
    @param account The payee's account, which is paid whoever calls, or its recipient.
    @param cumulative Token units the leaf allows in all.
    @param proof Siblings from the leaf upwards.
    @return Token units paid now.
    @custom:security Anybody may call, only the payee gains. Reverts when nothing is due. Afterwards the
        vault still holds the reserve, whatever the root said.
    """
    root: bytes32 = empty(bytes32)
    reserve: uint256 = 0
    root, reserve = epochs._open(epoch, epochs.CLAIM)
    assert index <= INDEX_MAX and cumulative <= AMOUNT_MAX, "Payout: leaf out of range"
    record: uint256 = convert(account, uint256) << 64 | cumulative

    # As tree._prove does, without copying the path.
    top: uint256 = convert(keccak256(convert(index << 224 | record, bytes32)), uint256) & HASH | cumulative
    total: uint256 = cumulative
    place: uint256 = index
    for sibling: uint256 in proof:
        total = unsafe_add(total, sibling & MASK_64)
        if place & 1 == 0:
            top = convert(keccak256(abi_encode(top, sibling)), uint256) & HASH | total
        else:
            top = convert(keccak256(abi_encode(sibling, top)), uint256) & HASH | total
        place >>= 1
    assert place == 0, "Tree: beyond the tree"
    assert total <= MASK_64 and tree._bind(epoch, len(proof), top) == root, "Tree: proof does not reach the root"

    offset: uint256 = (index & 3) << 6
    word: uint256 = self._paid[index >> 2]
    lane: uint256 = (word >> offset) & MASK_64
    assert cumulative > lane >> 16, "Payout: nothing due"
    due: uint256 = unsafe_sub(cumulative, lane >> 16)
    to: address = account
    tag: uint256 = lane & MASK_16
    if lane == 0 or tag != (record >> 64) & MASK_16:
        reason: uint256 = 0
        reason, tag, to = self._bind(account, index, lane)
        assert reason != ACCOUNT_BOUND, "Payout: account has another index"
        assert reason == 0, "Payout: index is another account's"
    self._paid[index >> 2] = word & ~(MASK_64 << offset) | (cumulative << 16 | tag) << offset

    assert money._send(to, due), "Payout: transfer failed"
    assert money._held() >= reserve, "Payout: above what is promised"
    log Claimed(index=index, amount=due)
    return due


@external
@nonreentrant
def claim_to(
    epoch: uint256,
    index: uint256,
    account: address,
    cumulative: uint256,
    proof: DynArray[uint256, DEPTH_MAX],
    to: address,
    fee: uint256,
    relayer: address,
    deadline: uint256,
    signature: Bytes[65],
) -> uint256:
    """
    @notice Pays one payee to an address it has signed for, and the relayer's fee out of that.
    @param epoch One of the two newest active epochs.
    @param index The payee's index.
    @param account The payee's account, who signed.
    @param cumulative Token units the leaf allows in all.
    @param proof Siblings from the leaf upwards.
    @param to Who receives what is due, less the fee.
    @param fee Token units for the relayer, less than what is due.
    @param relayer Who receives the fee, whoever calls.
    @param deadline Last second at which the signature counts.
    @param signature EIP-712 signature of ClaimTo by the account, r 32 | s 32 | v 1.
    @return Token units paid now, the fee included.
    @custom:security The signature counts for one cumulative amount, so it pays once; copying it out of a queue
        pays the same relayer. Whoever claims first in the plain way pays the account itself and leaves this
        call nothing to do. An account with a recipient is refused: its key alone cannot redirect at once.
    """
    assert block.timestamp <= deadline, "Payout: signature has expired"
    assert to != empty(address) and (fee == 0 or relayer != empty(address)), "Payout: nobody to pay"
    self._only_signed(account, cumulative, to, fee, relayer, deadline, signature)
    root: bytes32 = empty(bytes32)
    reserve: uint256 = 0
    root, reserve = epochs._open(epoch, epochs.CLAIM)
    assert index <= INDEX_MAX and cumulative <= AMOUNT_MAX, "Payout: leaf out of range"
    record: uint256 = convert(account, uint256) << 64 | cumulative
    tree._prove(epoch, root, index, 0, tree._leaf(index, record), proof)

    offset: uint256 = (index & 3) << 6
    word: uint256 = self._paid[index >> 2]
    lane: uint256 = (word >> offset) & MASK_64
    assert cumulative > lane >> 16, "Payout: nothing due"
    due: uint256 = unsafe_sub(cumulative, lane >> 16)
    assert fee < due, "Payout: the fee takes everything"
    tag: uint256 = lane & MASK_16
    if lane == 0 or tag != (record >> 64) & MASK_16:
        reason: uint256 = 0
        registered: address = empty(address)
        reason, tag, registered = self._bind(account, index, lane)
        assert reason != ACCOUNT_BOUND, "Payout: account has another index"
        assert reason == 0, "Payout: index is another account's"
        assert tag == (record >> 64) & MASK_16, "Payout: account has a recipient"
    self._paid[index >> 2] = word & ~(MASK_64 << offset) | (cumulative << 16 | tag) << offset

    assert money._send(to, unsafe_sub(due, fee)), "Payout: transfer failed"
    if fee > 0:
        assert money._send(relayer, fee), "Payout: fee transfer failed"
    assert money._held() >= reserve, "Payout: above what is promised"
    log ClaimedTo(index=index, to=to, relayer=relayer, amount=unsafe_sub(due, fee), fee=fee)
    return due


@external
@nonreentrant
def push(
    epoch: uint256, payees: Bytes[RECORDS_SIZE_MAX], wanted: uint256, path: DynArray[uint256, DEPTH_MAX]
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
        still holds the reserve. Four payees share a word of the books, which is written after their
        transfers: the lock keeps every function that reads or changes it out meanwhile.
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
    # word belong to what comes before and are masked off. The start is below 2^32 and aligned, so no index
    # below passes 2^32. Each two leaves become their node at once.
    records: uint256[PAYEES_MAX] = empty(uint256[PAYEES_MAX])
    row: uint256[128] = empty(uint256[128])
    seen: uint256 = 0
    at: uint256 = 0
    tagged: uint256 = start << 224
    width: uint256 = (1 << height) >> 1
    for i: uint256 in range(max(width, 1), bound=128):
        left: uint256 = 0
        right: uint256 = 0
        if at < count:
            record: uint256 = extract32(payees, unsafe_mul(at, RECORD_SIZE), output_type=uint256) & MASK_224
            if record != 0:
                records[at] = record
                seen |= record
                left = convert(keccak256(convert(tagged | record, bytes32)), uint256) & HASH | record & MASK_64
            at = unsafe_add(at, 1)
            tagged = unsafe_add(tagged, 1 << 224)
            if at < count:
                record = extract32(payees, unsafe_mul(at, RECORD_SIZE), output_type=uint256) & MASK_224
                if record != 0:
                    records[at] = record
                    seen |= record
                    right = convert(keccak256(convert(tagged | record, bytes32)), uint256) & HASH | record & MASK_64
                at = unsafe_add(at, 1)
                tagged = unsafe_add(tagged, 1 << 224)
        if height == 0:
            row[0] = left
        else:
            row[i] = (
                convert(keccak256(abi_encode(left, right)), uint256) & HASH | unsafe_add(left, right) & MASK_64
            )
    assert seen & MASK_64 <= AMOUNT_MAX, "Payout: leaf out of range"  # so 256 of them do not wrap a sum
    for level: uint256 in range(7):
        width >>= 1
        if width == 0:
            break
        for i: uint256 in range(width, bound=64):
            left: uint256 = row[i << 1]
            right: uint256 = row[i << 1 | 1]
            row[i] = convert(keccak256(abi_encode(left, right)), uint256) & HASH | unsafe_add(left, right) & MASK_64
    tree._prove(epoch, root, start >> height, height, row[0], path)

    token: address = money.TOKEN.address
    unit: uint256 = money.UNIT
    tally: uint256 = 0  # payees paid 128 | token units paid 64
    answer: Bytes[32] = b""
    success: bool = False
    slot: uint256 = start >> 2
    before: uint256 = self._paid[slot]
    word: uint256 = before
    offset: uint256 = (start & 3) << 6
    for i: uint256 in range(count, bound=PAYEES_MAX):
        if offset == 256:
            if word != before:
                self._paid[slot] = word
            slot = unsafe_add(slot, 1)
            before = self._paid[slot]
            word = before
            offset = 0
        record: uint256 = records[i]
        lane: uint256 = (word >> offset) & MASK_64
        due: uint256 = record & MASK_64
        if due > lane >> 16 and (wanted >> i) & 1 != 0:
            due = unsafe_sub(due, lane >> 16)
            rise: uint256 = due << 16
            record >>= 64
            to: address = convert(record, address)
            reason: uint256 = 0
            # The usual payee was paid before and has no recipient: its lane says all there is to know.
            if lane == 0 or (lane ^ record) & MASK_16 != 0:
                tag: uint256 = 0
                reason, tag, to = self._bind(to, unsafe_add(start, i), lane)
                rise |= tag ^ lane & MASK_16
            if reason == 0:
                success, answer = raw_call(
                    token,
                    abi_encode(to, unsafe_mul(due, unit), method_id=method_id("transfer(address,uint256)")),
                    max_outsize=32,
                    gas=money.TRANSFER_GAS,
                    revert_on_failure=False,
                )
                if success and (convert(answer, uint256) == 1 or len(answer) == 0):
                    # The lane holds less than the cumulative amount, which fits it: no carry.
                    word = unsafe_add(word, rise << offset)
                    tally = unsafe_add(tally, due | 1 << 128)
                else:
                    reason = TRANSFER_FAILED
            if reason != 0:
                if lane == 0 and reason != ACCOUNT_BOUND:
                    self._unbind(convert(record, address))
                log Skipped(epoch=epoch, index=unsafe_add(start, i), reason=reason)
        offset = unsafe_add(offset, 64)
    if word != before:
        self._paid[slot] = word
    assert money._held() >= reserve, "Payout: above what is promised"
    log Pushed(epoch=epoch, start=start, amount=tally & MASK_64, payees=tally >> 128)
    return tally & MASK_64

# ------------------------------------------------------------------ recipients

@external
@nonreentrant
def set_recipient(recipient: address):
    """
    @notice Names who receives what the caller is due, after two days.
    @param recipient Any address, or the caller's own to undo it.
    @custom:security The caller for itself. Until it counts the former recipient is paid, and naming another
        one starts anew, so that a stolen key can be noticed.
    """
    assert recipient != empty(address) and recipient != self, "Payout: nobody to pay"
    word: uint256 = self._bound[msg.sender]
    counts_from: uint256 = block.timestamp + RECIPIENT_DELAY_S
    self._former[msg.sender] = self._recipient(msg.sender, word)
    self._bound[msg.sender] = word & MASK_40 | counts_from << 40 | convert(recipient, uint256) << 96
    if word & MASK_40 != 0:
        # From now on the tag is not the account's: every payment goes by the whole account and its recipient.
        index: uint256 = (word & MASK_40) - 1
        offset: uint256 = (index & 3) << 6
        tag: uint256 = (convert(msg.sender, uint256) & MASK_16) ^ MASK_16
        self._paid[index >> 2] = self._paid[index >> 2] & ~(MASK_16 << offset) | tag << offset
    log RecipientSet(account=msg.sender, recipient=recipient, counts_from=counts_from)

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
    bound: uint256 = self._bound[account] & MASK_40
    if bound == 0:
        return False, 0
    return True, bound - 1


@external
@view
def recipient_of(account: address) -> (address, address, uint256):
    """
    @notice Who receives what an account is due.
    @param account Any account.
    @return Who is paid now, who is named, and from when that counts, in seconds since 1970 (0 when never named).
    @custom:security The account itself unless it named another.
    """
    word: uint256 = self._bound[account]
    now: address = self._recipient(account, word)
    if word >> 96 == 0:
        return now, account, 0
    return now, convert(word >> 96, address), (word >> 40) & MASK_40

# ------------------------------------------------------------------ internal

@internal
@view
def _recipient(account: address, word: uint256) -> address:
    if word >> 96 == 0:
        return account
    if block.timestamp >= (word >> 40) & MASK_40:
        return convert(word >> 96, address)
    return self._former[account]


@internal
def _bind(account: address, index: uint256, lane: uint256) -> (uint256, uint256, address):
    """
    @dev For a first payment, and where the lane does not have the account's tag: why it cannot be paid or 0,
         the lane's tag, and who is paid. Here the account is compared whole.
    """
    word: uint256 = self._bound[account]
    bound: uint256 = word & MASK_40
    if lane == 0:
        if bound != 0:
            return ACCOUNT_BOUND, 0, account
        self._bound[account] = word | unsafe_add(index, 1)
    elif bound != unsafe_add(index, 1):
        return INDEX_TAKEN, 0, account
    tag: uint256 = convert(account, uint256) & MASK_16
    if word >> 96 == 0:
        return 0, tag, account
    return 0, tag ^ MASK_16, self._recipient(account, word)


@internal
def _unbind(account: address):
    """
    @dev After a first payment that failed.
    """
    self._bound[account] &= ~MASK_40


@internal
@view
def _only_signed(
    account: address,
    cumulative: uint256,
    to: address,
    fee: uint256,
    relayer: address,
    deadline: uint256,
    signature: Bytes[65],
):
    """
    @dev Reverts unless `account` signed these terms for this contract on this chain.
    """
    domain: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, DOMAIN_NAME, DOMAIN_VERSION, chain.id, self))
    terms: bytes32 = keccak256(abi_encode(CLAIM_TO_TYPE, account, cumulative, to, fee, relayer, deadline))
    assert len(signature) == 65, "Payout: signature is cut"
    r: uint256 = extract32(signature, 0, output_type=uint256)
    s: uint256 = extract32(signature, 32, output_type=uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    assert s <= HALF_ORDER and (v == 27 or v == 28), "Payout: signature is malleable"
    signer: address = ecrecover(keccak256(concat(b"\x19\x01", domain, terms)), v, r, s)
    assert signer != empty(address) and signer == account, "Payout: not signed by the account"
