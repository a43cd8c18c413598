"""JSON-RPC of the embedded chain: the part of Ethereum's interface that a web3 client uses, over one `Evm`.

`Rpc.respond` takes the bytes of a request and gives the bytes of the answer; it does not know whether they
came through a socket. Blocks are made one per transaction, in journal order. A call sees the time that the
next block would have, so that a delay ends when the clock says so and not when somebody transacts.

Besides the standard methods there are `evm_increaseTime`, `evm_mine`, and, without a journal,
`evm_snapshot` and `evm_revert`. Accounts are unlocked nowhere: only signed transactions are taken.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

from headwater.chain.evm import CHAIN_ID, GAS_LIMIT, Evm, Log, Message, Mined, Outcome
from headwater.chain.journal import Journal, Jumped
from headwater.chain.journal import Mined as MinedEntry
from headwater.core.errors import HeadwaterError, InvalidError, UpstreamError
from headwater.core.instants import SECOND_NS
from headwater.core.limits import REQUEST_DEPTH_MAX

BATCH_MAX = 100
JUMP_MAX_S = 10 * 366 * 86_400
LOGS_MAX = 10_000

# A string that never ends is taken to the end of the body, or the search would start over inside it.
_BRACKET_OR_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_PRIORITY_FEE_WEI = 1_000_000  # 0.001 gwei, the order of magnitude of a rollup
_MESSAGE_KEYS = ("from", "to", "data", "input", "value", "gas")


class RpcError(Exception):
    """An error for the client, as JSON-RPC has it."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code, self.data = code, data


class Rpc:
    """The methods, over one chain. Safe to call from several threads."""

    def __init__(self, evm: Evm, clock_ns: Callable[[], int], journal: Journal | None) -> None:
        """Serve `evm`; with a journal, first replay it.

        Args:
            clock_ns: nanoseconds since 1970; blocks take whole seconds of it.

        Raises:
            UpstreamError: the journal does not lead to the blocks it says.
        """
        self._evm, self._clock_ns, self._journal = evm, clock_ns, journal
        self._ahead_s = 0  # by how far jumps put this chain's clock ahead
        self._snapshots: list[tuple[object, int]] = []
        self._lock = threading.RLock()
        self._failed: str | None = None
        if journal is not None:
            self._replay(journal)

    def respond(self, body: bytes) -> bytes:
        """The answer to one request or a batch of them."""
        try:
            if _depth(body) > REQUEST_DEPTH_MAX:
                return _dump(_failure(None, RpcError(-32600, f"nested deeper than {REQUEST_DEPTH_MAX}")))
            request = json.loads(body)
        except ValueError:
            return _dump(_failure(None, RpcError(-32700, "not JSON")))
        if isinstance(request, list):
            if not 1 <= len(request) <= BATCH_MAX:
                return _dump(
                    _failure(None, RpcError(-32600, f"a batch has 1..{BATCH_MAX} requests, got {len(request)}"))
                )
            return _dump([self._respond(one) for one in request])
        return _dump(self._respond(request))

    def execute(self, method: str, params: list[Any]) -> Any:
        """The result of one method.

        Raises:
            RpcError: what the client is to be told.
        """
        handler = _METHODS.get(method)
        if handler is None:
            raise RpcError(-32601, f"the embedded chain has no method {method}")
        with self._lock:
            if self._failed is not None:
                raise RpcError(-32000, self._failed)
            try:
                return handler(self, *params)
            except RpcError:
                raise
            except HeadwaterError as error:
                raise RpcError(-32000, error.message) from None
            except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
                raise RpcError(-32602, f"{method}: {error}") from None

    def _respond(self, request: Any) -> dict[str, Any]:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _failure(None, RpcError(-32600, "not a request"))
        params = request.get("params", [])
        try:
            if not isinstance(params, list):
                raise RpcError(-32602, "params must be a list")
            return {"jsonrpc": "2.0", "id": request.get("id"), "result": self.execute(request["method"], params)}
        except RpcError as error:
            return _failure(request.get("id"), error)

    def _replay(self, journal: Journal) -> None:
        for entry in journal.entries():
            if isinstance(entry, Jumped):
                self._ahead_s += entry.seconds
                continue
            try:
                got = (
                    self._evm.mine(entry.timestamp_s)
                    if entry.raw is None
                    else self._evm.execute(entry.raw, entry.timestamp_s).block_hash
                )
            except InvalidError as error:
                raise _differs(self._evm.height + 1, error.message) from None
            if got != entry.block_hash:
                raise _differs(self._evm.height, f"hash {got.hex()}, journal has {entry.block_hash.hex()}")

    def _keep(self, entry: MinedEntry | Jumped) -> None:
        """Journal what has just happened; when that fails, memory is ahead of the disk and must not go on."""
        if self._journal is None:
            return
        try:
            self._journal.append(entry)
        except UpstreamError as error:
            self._failed = error.message
            raise

    def _next_s(self) -> int:
        """The timestamp of the next block: later than its parent's."""
        return max(self._evm.head_timestamp_s + 1, self._clock_ns() // SECOND_NS + self._ahead_s)

    # -------------------------------------------------------------- transactions and calls

    def _send_raw_transaction(self, raw: str) -> str:
        mined = self._evm.execute(_bytes(raw), self._next_s())
        self._keep(MinedEntry(self._evm.head_timestamp_s, mined.raw, mined.block_hash))
        return _hex(mined.hash)

    def _call(self, message: dict[str, Any], block: Any = "latest", *_: Any) -> str:
        self._only_latest(block)
        return _hex(_settled(self._evm.call(_message(message), self._next_s())).output)

    def _estimate_gas(self, message: dict[str, Any], block: Any = "latest", *_: Any) -> str:
        """Enough gas, verified: what the call used, raised until it succeeds with that limit."""
        self._only_latest(block)
        asked, at = _message({**message, "gas": hex(GAS_LIMIT)}), self._next_s()
        limit = _settled(self._evm.call(asked, at)).gas_used
        while limit < GAS_LIMIT:
            tried = Message(asked.sender, asked.to, asked.data, asked.value_wei, limit)
            try:
                outcome = self._evm.call(tried, at)
            except InvalidError:  # below the intrinsic gas
                outcome = None
            if outcome is not None and not outcome.reverted and outcome.error is None:
                return hex(limit)
            limit += limit // 16 + 1_000
        return hex(GAS_LIMIT)

    def _increase_time(self, seconds: int | str) -> str:
        jump = _int(seconds)
        if not 0 <= jump <= JUMP_MAX_S:
            raise RpcError(-32602, f"a jump of {jump} s is not in 0..{JUMP_MAX_S}")
        # Blocks that came faster than one a second have already run ahead of the clock: jump from there.
        drift = max(0, self._evm.head_timestamp_s - self._clock_ns() // SECOND_NS - self._ahead_s)
        self._ahead_s += drift + jump
        self._keep(Jumped(drift + jump))
        return hex(self._ahead_s)

    def _mine(self, *_: Any) -> str:
        at = self._next_s()
        self._keep(MinedEntry(at, None, self._evm.mine(at)))
        return "0x0"

    def _snapshot(self) -> str:
        if self._journal is not None:
            raise RpcError(-32000, "a chain with a journal cannot go back")
        self._snapshots.append((self._evm.snapshot(), self._ahead_s))
        return hex(len(self._snapshots))

    def _revert(self, number: str) -> bool:
        place = _int(number) - 1
        if self._journal is not None or not 0 <= place < len(self._snapshots):
            raise RpcError(-32000, f"no snapshot {number}")
        state, self._ahead_s = self._snapshots[place]
        del self._snapshots[place:]
        self._evm.restore(state)
        return True

    # -------------------------------------------------------------- state

    def _balance(self, address: str, block: Any = "latest") -> str:
        self._only_latest(block)
        return hex(self._evm.balance_wei(_address(address)))

    def _transaction_count(self, address: str, block: Any = "latest") -> str:
        self._only_latest(block)
        return hex(self._evm.nonce(_address(address)))

    def _code(self, address: str, block: Any = "latest") -> str:
        self._only_latest(block)
        return _hex(self._evm.code(_address(address)))

    def _storage_at(self, address: str, slot: str, block: Any = "latest") -> str:
        self._only_latest(block)
        return _hex(self._evm.storage(_address(address), _int(slot)).to_bytes(32, "big"))

    def _fee_history(self, count: str | int, newest: Any = "latest", percentiles: Any = ()) -> dict[str, Any]:
        last = self._number(newest)
        first = max(0, last - min(_int(count), 1_024) + 1)
        headers = [self._evm.header(number) for number in range(first, last + 1)]
        following = self._evm.header(last + 1)
        next_fee = self._evm.base_fee_wei if following is None else following.base_fee_per_gas
        return {
            "oldestBlock": hex(first),
            "baseFeePerGas": [hex(header.base_fee_per_gas) for header in headers] + [hex(next_fee)],
            "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers],
            "reward": [[hex(_PRIORITY_FEE_WEI) for _ in percentiles or ()] for _ in headers],
        }

    # -------------------------------------------------------------- blocks, receipts, logs

    def _block_by_number(self, number: Any, full: bool = False) -> dict[str, Any] | None:
        return self._block(self._number(number), full)

    def _block_by_hash(self, block_hash: str, full: bool = False) -> dict[str, Any] | None:
        number = self._evm.number_of(_bytes(block_hash))
        return None if number is None else self._block(number, full)

    def _transaction(self, transaction_hash: str) -> dict[str, Any] | None:
        mined = self._evm.mined(_bytes(transaction_hash))
        return None if mined is None else _transaction(mined)

    def _receipt(self, transaction_hash: str) -> dict[str, Any] | None:
        mined = self._evm.mined(_bytes(transaction_hash))
        if mined is None:
            return None
        header = self._evm.header(mined.block_number)
        return {
            "transactionHash": _hex(mined.hash),
            "transactionIndex": "0x0",
            "blockHash": _hex(mined.block_hash),
            "blockNumber": hex(mined.block_number),
            "from": _hex(mined.sender),
            "to": _hex(mined.transaction.to) if mined.transaction.to else None,
            "cumulativeGasUsed": hex(mined.gas_used),
            "gasUsed": hex(mined.gas_used),
            "effectiveGasPrice": hex(mined.price_wei),
            "contractAddress": None if mined.contract is None else _hex(mined.contract),
            "logs": [_log(mined, log) for log in mined.logs],
            "logsBloom": _hex(header.bloom.to_bytes(256, "big")),
            "status": "0x1" if mined.succeeded else "0x0",
            "type": "0x2",
        }

    def _logs(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        if "blockHash" in wanted:
            first = last = self._evm.number_of(_bytes(wanted["blockHash"])) or 0
        else:
            first, last = self._number(wanted.get("fromBlock", "latest")), self._number(wanted.get("toBlock", "latest"))
        addresses = wanted.get("address") or []
        addresses = {_address(one) for one in ([addresses] if isinstance(addresses, str) else addresses)}
        topics = [
            None if one is None else {_bytes(t) for t in ([one] if isinstance(one, str) else one)}
            for one in wanted.get("topics") or []
        ]
        found = [
            _log(mined, log)
            for mined in self._evm.mined_between(first, last)
            for log in mined.logs
            if (not addresses or log.address in addresses) and _matches(log, topics)
        ]
        if len(found) > LOGS_MAX:
            raise RpcError(-32005, f"{len(found)} logs, more than {LOGS_MAX}: ask for fewer blocks")
        return found

    def _block(self, number: int, full: bool) -> dict[str, Any] | None:
        header = self._evm.header(number)
        if header is None:
            return None
        mined = self._evm.mined_between(number, number)
        return {
            "number": hex(number),
            "hash": _hex(header.hash),
            "parentHash": _hex(header.parent_hash),
            "nonce": _hex(header.nonce),
            "mixHash": _hex(header.mix_hash),
            "sha3Uncles": _hex(header.uncles_hash),
            "logsBloom": _hex(header.bloom.to_bytes(256, "big")),
            "transactionsRoot": _hex(header.transaction_root),
            "stateRoot": _hex(header.state_root),
            "receiptsRoot": _hex(header.receipt_root),
            "miner": _hex(header.coinbase),
            "difficulty": "0x0",
            "extraData": _hex(header.extra_data),
            "size": hex(len(header.extra_data) + 508),
            "gasLimit": hex(header.gas_limit),
            "gasUsed": hex(header.gas_used),
            "timestamp": hex(header.timestamp),
            "baseFeePerGas": hex(header.base_fee_per_gas),
            "transactions": [_transaction(one) if full else _hex(one.hash) for one in mined],
            "uncles": [],
        }

    def _number(self, block: Any) -> int:
        match block:
            case "latest" | "pending" | "safe" | "finalized":
                return self._evm.height
            case "earliest":
                return 0
        return _int(block)

    def _only_latest(self, block: Any) -> None:
        """State is kept of the newest block only; an older one is refused rather than answered wrongly."""
        if isinstance(block, dict) or self._number(block) != self._evm.height:
            raise RpcError(-32000, f"the embedded chain knows the state of its newest block only, not of {block}")


def _depth(body: bytes) -> int:
    """How deep brackets nest. The EVM raises the interpreter's recursion limit, so the parser has to be spared."""
    depth = deepest = 0
    for token in _BRACKET_OR_STRING.finditer(body):
        match token[0]:
            case b"[" | b"{":
                depth += 1
                deepest = max(deepest, depth)
            case b"]" | b"}":
                depth -= 1
    return deepest


def _differs(height: int, what: str) -> UpstreamError:
    return UpstreamError(
        f"replay of the chain's journal differs at block {height}: {what}",
        code="journal_mismatch",
        fix="use the seed and the package versions that the chain was made with, or restore the folder from a copy",
    )


def _settled(outcome: Outcome) -> Outcome:
    if outcome.reverted:
        raise RpcError(3, "execution reverted" + _reason(outcome.output), _hex(outcome.output))
    if outcome.error is not None:
        raise RpcError(-32000, outcome.error)
    return outcome


def _reason(output: bytes) -> str:
    """The text of a revert, as nodes append it: the ABI's Error(string)."""
    if output[:4] != b"\x08\xc3\x79\xa0" or len(output) < 68:
        return ""
    length = int.from_bytes(output[36:68], "big")
    return ": " + output[68 : 68 + length].decode("utf-8", "replace")


def _message(fields: dict[str, Any]) -> Message:
    fields = {key: fields[key] for key in _MESSAGE_KEYS if fields.get(key) is not None}
    return Message(
        sender=_address(fields["from"]) if "from" in fields else bytes(20),
        to=_address(fields["to"]) if fields.get("to") else b"",
        data=_bytes(fields.get("data", fields.get("input", "0x"))),
        value_wei=_int(fields.get("value", 0)),
        gas=min(_int(fields.get("gas", GAS_LIMIT)), GAS_LIMIT),
    )


def _matches(log: Log, topics: list[set[bytes] | None]) -> bool:
    return len(topics) <= len(log.topics) and all(
        allowed is None or topic in allowed for topic, allowed in zip(log.topics, topics, strict=False)
    )


def _log(mined: Mined, log: Log) -> dict[str, Any]:
    return {
        "address": _hex(log.address),
        "topics": [_hex(topic) for topic in log.topics],
        "data": _hex(log.data),
        "blockNumber": hex(mined.block_number),
        "blockHash": _hex(mined.block_hash),
        "transactionHash": _hex(mined.hash),
        "transactionIndex": "0x0",
        "logIndex": hex(log.index),
        "removed": False,
    }


def _transaction(mined: Mined) -> dict[str, Any]:
    sent = mined.transaction
    return {
        "hash": _hex(mined.hash),
        "blockHash": _hex(mined.block_hash),
        "blockNumber": hex(mined.block_number),
        "transactionIndex": "0x0",
        "from": _hex(mined.sender),
        "to": _hex(sent.to) if sent.to else None,
        "nonce": hex(sent.nonce),
        "value": hex(sent.value),
        "input": _hex(sent.data),
        "gas": hex(sent.gas),
        "gasPrice": hex(mined.price_wei),
        "maxFeePerGas": hex(sent.max_fee_per_gas),
        "maxPriorityFeePerGas": hex(sent.max_priority_fee_per_gas),
        "chainId": hex(CHAIN_ID),
        "type": "0x2",
        "v": hex(sent.y_parity),
        "r": hex(sent.r),
        "s": hex(sent.s),
    }


def _failure(request_id: Any, error: RpcError) -> dict[str, Any]:
    told: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.data is not None:
        told["data"] = error.data
    return {"jsonrpc": "2.0", "id": request_id, "error": told}


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _hex(raw: bytes) -> str:
    return "0x" + raw.hex()


def _bytes(text: str) -> bytes:
    if not text.startswith("0x"):
        raise ValueError(f"{text[:20]!r} is not 0x hex")
    return bytes.fromhex(text[2:])


def _address(text: str) -> bytes:
    raw = _bytes(text)
    if len(raw) != 20:
        raise ValueError(f"{text[:50]!r} is not an address")
    return raw


def _int(value: int | str) -> int:
    return value if isinstance(value, int) else int(value, 16)


_METHODS: dict[str, Callable[..., Any]] = {
    "eth_blockNumber": lambda rpc: hex(rpc._evm.height),
    "eth_call": Rpc._call,
    "eth_chainId": lambda _: hex(CHAIN_ID),
    "eth_estimateGas": Rpc._estimate_gas,
    "eth_feeHistory": Rpc._fee_history,
    "eth_gasPrice": lambda rpc: hex(rpc._evm.base_fee_wei + _PRIORITY_FEE_WEI),
    "eth_getBalance": Rpc._balance,
    "eth_getBlockByHash": Rpc._block_by_hash,
    "eth_getBlockByNumber": Rpc._block_by_number,
    "eth_getCode": Rpc._code,
    "eth_getLogs": Rpc._logs,
    "eth_getStorageAt": Rpc._storage_at,
    "eth_getTransactionByHash": Rpc._transaction,
    "eth_getTransactionCount": Rpc._transaction_count,
    "eth_getTransactionReceipt": Rpc._receipt,
    "eth_maxPriorityFeePerGas": lambda _: hex(_PRIORITY_FEE_WEI),
    "eth_sendRawTransaction": Rpc._send_raw_transaction,
    "eth_syncing": lambda _: False,
    "evm_increaseTime": Rpc._increase_time,
    "evm_mine": Rpc._mine,
    "evm_revert": Rpc._revert,
    "evm_snapshot": Rpc._snapshot,
    "net_version": lambda _: str(CHAIN_ID),
    "web3_clientVersion": lambda _: "headwater-embedded/1",
}
