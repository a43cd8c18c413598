"""An EVM chain in memory, one block per transaction, that computes the same blocks from the same inputs.

A block depends on its parent, its transaction and its timestamp alone: no randomness, no clock, a fixed gas
limit. Receipts and logs are kept beside the chain so that they are found without walking it.

Invariants: a transaction that is refused changes nothing. Knows nothing of files, sockets or JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eth.chains.base import MiningChain
from eth.db.atomic import AtomicDB
from eth.db.backends.memory import MemoryDB
from eth.exceptions import Revert, VMError
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_typing import BlockNumber
from eth_utils.exceptions import ValidationError

from headwater.core.errors import InvalidError

CHAIN_ID = 480_001
GENESIS_AT_S = 1_577_836_800  # 2020-01-01T00:00:00Z
GAS_LIMIT = 30_000_000
ACCOUNT_WEI = 10**24

_NO_ADDRESS = bytes(20)


@dataclass(frozen=True, slots=True)
class Log:
    """One event of a transaction."""

    address: bytes  # 20
    topics: tuple[bytes, ...]  # (<=4,) 32 bytes each
    data: bytes
    index: int  # within the block


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction in its block, with what it did."""

    hash: bytes
    raw: bytes
    transaction: Any  # py-evm's decoded transaction
    sender: bytes
    block_number: int
    block_hash: bytes
    succeeded: bool
    gas_used: int
    price_wei: int  # effective, per gas
    contract: bytes | None  # 20, when it created one
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call would do."""

    output: bytes
    gas_used: int  # refunds not taken off
    reverted: bool
    error: str | None  # the machine's word for a failure that is not a revert


@dataclass(frozen=True, slots=True)
class Message:
    """A call or a transaction that nobody has signed."""

    sender: bytes = _NO_ADDRESS
    to: bytes = b""  # empty creates a contract
    data: bytes = b""
    value_wei: int = 0
    gas: int = GAS_LIMIT


class Evm:
    """A chain with its receipts."""

    def __init__(self, accounts: tuple[bytes, ...]) -> None:
        """A chain at its genesis, on which each of `accounts` (20-byte addresses) holds a million ether."""
        self._db = MemoryDB()
        account: Any = {"balance": ACCOUNT_WEI, "nonce": 0, "code": b"", "storage": {}}
        genesis: Any = {
            "coinbase": _NO_ADDRESS,
            "difficulty": 0,
            "extra_data": b"headwater",
            "gas_limit": GAS_LIMIT,
            "mix_hash": bytes(32),
            "nonce": bytes(8),
            "timestamp": GENESIS_AT_S,
        }
        state: Any = dict.fromkeys(accounts, account)
        self._chain: Any = _Chain.from_genesis(AtomicDB(self._db), genesis, state)
        self._mined: dict[bytes, Mined] = {}
        self._order: list[Mined] = []

    @property
    def height(self) -> int:
        """The number of the newest block."""
        return int(self._chain.header.block_number) - 1

    @property
    def head_timestamp_s(self) -> int:
        """The timestamp of the newest block."""
        return int(self.header(self.height).timestamp)

    @property
    def base_fee_wei(self) -> int:
        """The base fee of the next block, per gas."""
        return int(self._chain.header.base_fee_per_gas)

    def execute(self, raw: bytes, timestamp_s: int) -> Mined:
        """Run a signed transaction and put it in a block of its own.

        Raises:
            InvalidError: it cannot be decoded, is for another chain, has the wrong nonce or cannot be paid for.
        """
        try:
            transaction = self._vm(timestamp_s).get_transaction_builder().decode(raw)
            if transaction.chain_id != CHAIN_ID:
                raise ValidationError(f"chain id {transaction.chain_id}, this chain is {CHAIN_ID}")
            self._chain.set_header_timestamp(timestamp_s)
            _, receipt, computation = self._chain.apply_transaction(transaction)
        except Exception as error:  # py-evm has no common base for what is wrong with bytes
            raise InvalidError(
                f"transaction refused: {error}",
                code="transaction_refused",
                fix="sign it again for this chain and nonce",
            ) from None
        header = self._seal(timestamp_s)
        base_fee = int(header.base_fee_per_gas)
        created = computation.msg.storage_address if transaction.to == b"" else None
        mined = Mined(
            hash=transaction.hash,
            raw=raw,
            transaction=transaction,
            sender=transaction.sender,
            block_number=header.block_number,
            block_hash=header.hash,
            succeeded=not computation.is_error,
            gas_used=header.gas_used,
            price_wei=min(transaction.max_fee_per_gas, transaction.max_priority_fee_per_gas + base_fee),
            contract=created if computation.is_success else None,
            logs=tuple(
                Log(log.address, tuple(topic.to_bytes(32, "big") for topic in log.topics), log.data, i)
                for i, log in enumerate(receipt.logs)
            ),
        )
        self._mined[mined.hash] = mined
        self._order.append(mined)
        return mined

    def mine(self, timestamp_s: int) -> bytes:
        """Add an empty block; returns its hash."""
        self._chain.set_header_timestamp(timestamp_s)
        return bytes(self._seal(timestamp_s).hash)

    def call(self, message: Message, timestamp_s: int) -> Outcome:
        """What `message` would do in the next block, without doing it."""
        # Free of charge, and thrown away with the machine. The machine's own way to call without cost makes
        # a block of its own, timed by the wall clock.
        vm = self._chain.get_vm(self._chain.header.copy(timestamp=timestamp_s, base_fee_per_gas=0))
        unsigned = vm.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=CHAIN_ID,
            nonce=vm.state.get_nonce(message.sender),
            max_priority_fee_per_gas=0,
            max_fee_per_gas=0,
            gas=message.gas,
            to=message.to,
            value=message.value_wei,
            data=message.data,
            access_list=(),
        )
        try:
            computation = vm.state.apply_transaction(SpoofTransaction(unsigned, from_=message.sender))
        except ValidationError as error:
            raise InvalidError(
                f"call refused: {error}", code="transaction_refused", fix="check sender, value and gas"
            ) from None
        if computation.is_error:
            error_raised: VMError = computation.error
            if isinstance(error_raised, Revert):
                return Outcome(computation.output, computation.get_gas_used(), True, None)
            return Outcome(b"", computation.get_gas_used(), False, str(error_raised) or type(error_raised).__name__)
        return Outcome(computation.output, unsigned.gas - computation.get_gas_remaining(), False, None)

    def header(self, number: int) -> Any:
        """The header of block `number`, or None."""
        if not 0 <= number <= self.height:
            return None
        return self._chain.get_canonical_block_header_by_number(number)

    def number_of(self, block_hash: bytes) -> int | None:
        """The number of the block with this hash, or None."""
        try:
            return int(self._chain.get_block_header_by_hash(block_hash).block_number)
        except Exception:  # py-evm's HeaderNotFound, or a malformed hash
            return None

    def mined(self, transaction_hash: bytes) -> Mined | None:
        """The transaction with this hash, or None."""
        return self._mined.get(transaction_hash)

    def mined_between(self, first: int, last: int) -> tuple[Mined, ...]:
        """The transactions of blocks `first`..`last`, in order."""
        return tuple(mined for mined in self._order if first <= mined.block_number <= last)

    def nonce(self, address: bytes) -> int:
        """How many transactions `address` has sent."""
        return int(self._chain.get_vm(self._chain.header).state.get_nonce(address))

    def balance_wei(self, address: bytes) -> int:
        """What `address` holds."""
        return int(self._chain.get_vm(self._chain.header).state.get_balance(address))

    def code(self, address: bytes) -> bytes:
        """The code at `address`."""
        return bytes(self._chain.get_vm(self._chain.header).state.get_code(address))

    def storage(self, address: bytes, slot: int) -> int:
        """One word of an account's storage."""
        return int(self._chain.get_vm(self._chain.header).state.get_storage(address, slot))

    def snapshot(self) -> object:
        """What `restore` needs to come back to here."""
        return dict(self._db.kv_store), self._chain.header, len(self._order)

    def restore(self, snapshot: Any) -> None:
        """Forget every block since `snapshot`."""
        store, header, count = snapshot
        self._db = MemoryDB(dict(store))
        self._chain = _Chain(AtomicDB(self._db), header)
        for mined in self._order[count:]:
            self._mined.pop(mined.hash, None)
        del self._order[count:]

    def _seal(self, timestamp_s: int) -> Any:
        block = self._chain.mine_block(coinbase=_NO_ADDRESS, mix_hash=bytes(32), blob_gas_used=0)
        assert block.header.timestamp == timestamp_s
        return block.header

    def _vm(self, timestamp_s: int) -> Any:
        return self._chain.get_vm(self._chain.header.copy(timestamp=timestamp_s))


class _Chain(MiningChain):
    chain_id = CHAIN_ID
    vm_configuration = ((BlockNumber(0), PragueVM),)

    def create_header_from_parent(self, parent_header: Any, **header_params: Any) -> Any:
        """The next header; the gas limit never moves."""
        return super().create_header_from_parent(
            parent_header, **(header_params | {"gas_limit": parent_header.gas_limit})
        )
