"""Transactions over one RPC address: fees, nonces, signing, waiting, and reverts turned into errors.

The same code serves the embedded chain, a development node and a real network. One `Sender` may be used from
several threads; two senders with one key must not be, because they would hand out the same nonce.
Knows nothing of our contracts.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headwater.chain.signer import Signer
from headwater.core.errors import HeadwaterError, RefusedError, UpstreamError
from headwater.core.keccak import keccak256

if TYPE_CHECKING:
    from web3 import Web3
    from web3.providers.base import BaseProvider

RECEIPT_TIMEOUT_S = 180.0
POLL_S = 0.25
RPC_TIMEOUT_S = 30.0

_URL = re.compile(r"\w+://\S+")
_ERROR = keccak256(b"Error(string)")[:4]
_PANIC = keccak256(b"Panic(uint256)")[:4]


class RevertedError(UpstreamError):
    """A contract refused. `reason` is its own word, such as ``Epochs: not funded``; empty when it gave none."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(
            f"{what} was refused by the contract: {reason or 'no reason given'}",
            code="chain_reverted",
            fix="correct what the contract objects to; nothing was changed",
        )
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Sent:
    """A transaction that succeeded."""

    hash: str  # 0x hex
    block: int
    gas_used: int
    fee_wei: int
    logs: tuple[Any, ...]  # as web3 gives them
    contract: str | None  # EIP-55, when it created one


class Sender:
    """Reads a chain, and writes to it when it has a signer."""

    def __init__(
        self,
        rpc: str | BaseProvider,
        signer: Signer | None = None,
        *,
        receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
        poll_s: float = POLL_S,
    ) -> None:
        """Connect to `rpc`, the address of a node or a web3 provider.

        Raises:
            UpstreamError: nobody answers there.
        """
        from web3 import HTTPProvider, Web3

        # Without retries of its own: a send that timed out may have arrived.
        provider = (
            HTTPProvider(rpc, request_kwargs={"timeout": RPC_TIMEOUT_S}, exception_retry_configuration=None)
            if isinstance(rpc, str)
            else rpc
        )
        self.web3: Web3 = Web3(provider)
        self.signer = signer
        self.receipt_timeout_s, self.poll_s = receipt_timeout_s, poll_s
        self._next_nonce = 0
        self._lock = threading.Lock()
        with translated("connecting"):
            self.chain_id: int = self.web3.eth.chain_id

    def read(self, call: Any, what: str) -> Any:
        """The result of a bound contract function, or of any callable that asks the node.

        Raises:
            RevertedError: the contract refused.
            UpstreamError: the node failed.
        """
        with translated(what):
            return call.call() if hasattr(call, "call") else call()

    def send(self, call: Any, what: str, *, gas_margin_percent: int = 20) -> Sent:
        """Sign, send and wait for a bound contract function or constructor.

        Args:
            gas_margin_percent: added to the node's estimate.

        Raises:
            RefusedError: there is no signer.
            RevertedError: the contract refused, before or after sending.
            UpstreamError: the node failed, or the transaction was not mined in time.
        """
        if self.signer is None:
            raise RefusedError(
                f"{what} needs a key", code="signer_missing", fix="give the key of the role that may do it"
            )
        with self._lock:
            with translated(what):
                sender: Any = self.signer.address
                estimate = call.estimate_gas({"from": sender})
                # The node knows what has been mined; a transaction of ours may be on its way behind that.
                nonce = max(self.web3.eth.get_transaction_count(sender, "pending"), self._next_nonce)
                transaction = call.build_transaction(
                    {"from": sender, "nonce": nonce, "chainId": self.chain_id, "value": 0}
                    | {"gas": estimate + estimate * gas_margin_percent // 100}
                    | self._fees()
                )
                raw = self.signer.sign_transaction(transaction)
            try:
                with translated(what):
                    transaction_hash = self.web3.eth.send_raw_transaction(raw)
                self._next_nonce = nonce + 1
            except HeadwaterError:
                self._next_nonce = 0  # whether it arrived is not known; ask the node next time
                raise
        return self._wait(transaction_hash, transaction, what)

    def _fees(self) -> dict[str, int]:
        """Twice the base fee, so that six full blocks in a row do not price the transaction out."""
        base = self.web3.eth.get_block("latest").get("baseFeePerGas", 0)
        tip = self.web3.eth.max_priority_fee
        return {"maxFeePerGas": int(2 * base + tip), "maxPriorityFeePerGas": int(tip)}

    def _wait(self, transaction_hash: Any, transaction: Mapping[str, Any], what: str) -> Sent:
        from web3.exceptions import TransactionNotFound

        deadline = time.monotonic() + self.receipt_timeout_s
        while True:
            with translated(what):
                try:
                    receipt: Any = self.web3.eth.get_transaction_receipt(transaction_hash)
                    break
                except TransactionNotFound:
                    pass
            if time.monotonic() > deadline:
                with self._lock:
                    self._next_nonce = 0  # it may have been dropped: the node knows which nonce is free
                raise UpstreamError(
                    f"{what}: transaction {transaction_hash.to_0x_hex()} was not mined in {self.receipt_timeout_s:g} s",
                    code="receipt_timeout",
                    fix="look it up before you send again; repeating is safe, nothing is paid twice",
                )
            time.sleep(self.poll_s)
        if receipt["status"] != 1:
            raise RevertedError(self._reason_of(transaction, receipt["blockNumber"]), what)
        return Sent(
            hash=receipt["transactionHash"].to_0x_hex(),
            block=receipt["blockNumber"],
            gas_used=receipt["gasUsed"],
            fee_wei=receipt["gasUsed"] * receipt["effectiveGasPrice"] + int(receipt.get("l1Fee", 0) or 0),
            logs=tuple(receipt["logs"]),
            contract=receipt["contractAddress"],
        )

    def _reason_of(self, transaction: Mapping[str, Any], block: int) -> str:
        """Ask the node what the failed transaction would say; it may have run out of gas, or the state moved on."""
        asked: Any = {key: transaction[key] for key in ("from", "to", "data", "gas") if key in transaction}
        try:
            with translated("asking why"):
                self.web3.eth.call(asked, block)
        except RevertedError as error:
            return error.reason
        except HeadwaterError:
            return ""
        return "out of gas, or the state has changed since"


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn whatever web3 raises inside into our errors."""
    import requests
    from web3.exceptions import ContractLogicError, Web3Exception

    try:
        yield
    except HeadwaterError:
        raise
    except ContractLogicError as error:
        raise RevertedError(_reason(error), what) from None
    except (Web3Exception, requests.RequestException, OSError, ValueError) as error:
        text = _plain(error)
        raise UpstreamError(
            f"{what}: the chain's node failed: {text}",
            code="chain_unavailable",
            fix="check the RPC address and try again",
        ) from None


def _reason(error: Any) -> str:
    """The contract's own word out of a revert, from its ABI-encoded data or else from the node's message."""
    data = error.data
    if isinstance(data, str) and data.startswith("0x"):
        raw = bytes.fromhex(data[2:])
        if raw[:4] == _ERROR and len(raw) >= 68:
            length = int.from_bytes(raw[36:68], "big")
            return raw[68 : 68 + length].decode("utf-8", "replace")
        if raw[:4] == _PANIC:
            return f"panic {int.from_bytes(raw[4:36], 'big'):#x}"
    message = str(error.message or "")
    return message.partition("execution reverted: ")[2] or ("" if message.startswith("execution reverted") else message)


def _plain(error: Exception) -> str:
    """One line, and no address of the node: it may hold an access token."""
    response = getattr(error, "rpc_response", None)
    if isinstance(response, dict) and isinstance(response.get("error"), dict):
        text = str(response["error"].get("message", ""))
    elif isinstance(error, OSError):  # those of requests too; their text repeats the address in several forms
        text = type(error).__name__
    else:
        text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return _URL.sub("(address)", text)[:300]
