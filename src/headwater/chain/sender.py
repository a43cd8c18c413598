"""Transactions over one RPC address: fees, nonces, signing, waiting, and reverts turned into errors.

A transaction is in the outbox before it leaves. Then it is waited for: sent again when the node forgot it, replaced
at the same nonce with a higher fee when it takes too long, and looked for anew when a re-organisation took it back.
It counts when its block has as many blocks above it as asked for. What was signed for one intent shares a nonce, so
at most one of it is ever mined. The node is not believed about nonces: what it says is compared with what it does.

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

from headwater.chain.outbox import Outbox, Signed, intent_of
from headwater.chain.signer import Signer
from headwater.core.errors import HeadwaterError, RefusedError, UpstreamError
from headwater.core.keccak import keccak256

if TYPE_CHECKING:
    from web3 import Web3
    from web3.providers.base import BaseProvider

RECEIPT_TIMEOUT_S = 180.0
POLL_S = 0.25
RPC_TIMEOUT_S = 30.0
_NONCES_TRIED = 16
_GAP_MAX = 8
_KNOWN = ("already known", "known transaction", "already imported", "already in")
_TAKEN = ("nonce too low", "nonce is too low", "replacement transaction underpriced")
_REFUSED = ("insufficient funds", "intrinsic gas", "gas limit", "fee cap", "less than block base fee", "invalid s")

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


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a sender waits, for what, and what it does meanwhile."""

    receipt_timeout_s: float = RECEIPT_TIMEOUT_S
    poll_s: float = POLL_S
    replace_after_s: float = 30.0  # not mined by then: sent again, dearer
    max_fee_wei: int = 10**12  # per gas, whatever a replacement would need
    confirmations: int = 0  # blocks above the one that holds it


class Sender:
    """Reads a chain, and writes to it when it has a signer."""

    def __init__(
        self,
        rpc: str | BaseProvider,
        signer: Signer | None = None,
        *,
        receipt_timeout_s: float = RECEIPT_TIMEOUT_S,
        poll_s: float = POLL_S,
        patience: Patience | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        """Connect to `rpc`, the address of a node or a web3 provider.

        Args:
            patience: in place of the two times.
            outbox: of this signer; in memory by default, and then nothing survives a crash or a timeout.

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
        self.patience = patience or Patience(receipt_timeout_s, poll_s)
        self.outbox = outbox or Outbox()
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

        With an outbox on disk an earlier attempt at the same, whose fate is not known, is gone on with.

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
        me: Any = self.signer.address
        with self._lock:
            self.outbox.hold()
            with translated(what):
                # Built with a gas of its own, so that nothing is asked of the node for it.
                fields: Any = {"from": me, "chainId": self.chain_id, "value": 0, "nonce": 0, "gas": 1}
                meant = dict(call.build_transaction(fields | {"maxFeePerGas": 1, "maxPriorityFeePerGas": 1}))
            intent = intent_of(self.chain_id, me, meant)
            if self.outbox.kept:
                self._settle_earlier(intent, what)
            signed = self.outbox.find(intent) if self.outbox.kept else None
            if signed is not None:
                transaction = decoded(signed.raws[-1]) | {"from": me}
            else:
                with translated(what):
                    estimate = call.estimate_gas({"from": me})
                transaction = meant | {"gas": estimate + estimate * gas_margin_percent // 100}
                signed, transaction = self._send_new(intent, transaction, what)
        return self._wait(signed, transaction, what)

    def _send_new(self, intent: str, transaction: dict[str, Any], what: str) -> tuple[Signed, dict[str, Any]]:
        """Sign at the next free nonce, keep, send; a nonce that turns out to be taken is passed over."""
        assert self.signer is not None
        with translated(what):
            fees = self._fees()
            # The node knows what has been mined; a transaction of ours may be on its way behind that.
            nonce = max(self._count("pending"), self._next_nonce, *(one.nonce + 1 for one in self.outbox), 0)
        for _ in range(_NONCES_TRIED):
            complete = transaction | fees | {"nonce": nonce}
            raw = self.signer.sign_transaction(complete)
            signed = self.outbox.keep(intent, nonce, raw)
            fate = self._broadcast(raw, what)
            if fate == "taken":  # so the node refused it, and what it had said of the nonce was not true
                self.outbox.settle(intent)
                nonce += 1
                continue
            if fate == "refused" or (fate == "unknown" and not self.outbox.kept):
                self.outbox.settle(intent)
                self._next_nonce = 0  # whether it arrived is not known; ask the node next time
                raise self._unsent(what)
            self._next_nonce = nonce + 1
            return signed, complete
        self._next_nonce = 0
        raise UpstreamError(
            f"{what}: nonces up to {nonce - 1} are taken, the node says otherwise",
            code="nonce_lied",
            fix="ask another node",
        )

    def _settle_earlier(self, asked: str, what: str) -> None:
        """Send open transactions again that the node may have lost; let go of those that are mined or never can be."""
        for entry in self.outbox:
            receipt = self._receipt(entry, what)
            if receipt is not None:
                # Who asks for another intent has seen what this one did, or has moved on.
                if entry.intent != asked and self._deep(receipt, what):
                    self.outbox.settle(entry.intent)
                continue
            with translated(what):
                used = self._count("latest") > entry.nonce
            if not used:
                self._broadcast(entry.raws[-1], what)
            elif not any(self._known(raw) for raw in entry.raws):
                self.outbox.settle(entry.intent)  # another transaction has its nonce: asked again, it is new

    def _broadcast(self, raw: bytes, what: str) -> str:
        """Send signed bytes: ``sent``, ``taken`` (the nonce is), ``refused``, or ``unknown`` (it may have arrived)."""
        self._failure = ""
        try:
            with translated(what):
                self.web3.eth.send_raw_transaction(raw)
        except UpstreamError as error:
            text = error.message.lower()
            if any(word in text for word in _KNOWN):
                return "sent"
            if any(word in text for word in _TAKEN):
                return "sent" if self._known(raw) else "taken"
            self._failure = error.message
            return "refused" if any(word in text for word in _REFUSED) else "unknown"
        return "sent"

    def _known(self, raw: bytes) -> bool:
        """Whether the node has this very transaction."""
        from web3.exceptions import TransactionNotFound

        try:
            with translated("looking a transaction up"):
                try:
                    self.web3.eth.get_transaction(_hex_hash(raw))
                except TransactionNotFound:
                    return False
        except HeadwaterError:
            return False
        return True

    def _count(self, block: Any) -> int:
        assert self.signer is not None
        me: Any = self.signer.address
        return int(self.web3.eth.get_transaction_count(me, block))

    def _unsent(self, what: str) -> UpstreamError:
        return UpstreamError(
            self._failure or f"{what}: the chain's node failed",
            code="chain_unavailable",
            fix="check the RPC address and try again",
        )

    def _forget(self, intent: str) -> None:
        """Without an outbox on disk what failed is over for us; the node knows which nonce is free."""
        if not self.outbox.kept:
            self.outbox.settle(intent)
            self._next_nonce = 0

    def _fees(self) -> dict[str, int]:
        """Twice the base fee, so that six full blocks in a row do not price the transaction out."""
        base = self.web3.eth.get_block("latest").get("baseFeePerGas", 0)
        tip = self.web3.eth.max_priority_fee
        return {"maxFeePerGas": int(2 * base + tip), "maxPriorityFeePerGas": int(tip)}

    def _receipt(self, signed: Signed, what: str) -> Any | None:
        """The receipt of whichever of an intent's transactions was mined."""
        from hexbytes import HexBytes
        from web3.exceptions import TransactionNotFound

        for transaction_hash in reversed(signed.hashes):
            with translated(what):
                try:
                    receipt = self.web3.eth.get_transaction_receipt(HexBytes(transaction_hash))
                    if receipt is not None:
                        return receipt
                except TransactionNotFound:
                    pass
        return None

    def _wait(self, signed: Signed, transaction: dict[str, Any], what: str) -> Sent:
        started = time.monotonic()
        moved = started  # when it was last sent
        while True:
            failed: UpstreamError | None = None
            try:
                receipt = self._receipt(signed, what)
                if receipt is not None and self._deep(receipt, what):
                    break
            except RevertedError:
                raise
            except UpstreamError as error:
                if not self.outbox.kept:
                    self._forget(signed.intent)
                    raise
                receipt, failed = None, error  # it is kept: a node that stumbles is asked again
            now = time.monotonic()
            if now - started > self.patience.receipt_timeout_s:
                with self._lock:
                    self._forget(signed.intent)
                raise failed or UpstreamError(
                    f"{what}: transaction 0x{signed.hashes[-1].hex()} was not mined and confirmed in "
                    f"{self.patience.receipt_timeout_s:g} s",
                    code="receipt_timeout",
                    fix="look it up before you send again; repeating is safe, nothing is paid twice",
                )
            if receipt is None and failed is None and now - moved > self.patience.replace_after_s:
                moved = now
                with self._lock:
                    signed, transaction = self._push_on(signed, transaction, what)
            time.sleep(self.patience.poll_s)
        with self._lock:
            self.outbox.settle(signed.intent)
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

    def _deep(self, receipt: Any, what: str) -> bool:
        """Whether a receipt has enough blocks above it, on the chain that the node has now."""
        if not self.patience.confirmations:
            return True
        from web3.exceptions import BlockNotFound

        with translated(what):
            if self.web3.eth.block_number < receipt["blockNumber"] + self.patience.confirmations:
                return False
            try:
                block = self.web3.eth.get_block(receipt["blockNumber"])
            except BlockNotFound:
                return False
        return bytes(block["hash"]) == bytes(receipt["blockHash"])

    def _push_on(self, signed: Signed, transaction: dict[str, Any], what: str) -> tuple[Signed, dict[str, Any]]:
        """A transaction that takes too long: fill a gap below its nonce, and sign it again with a higher fee."""
        assert self.signer is not None
        try:
            self._fill_gap(signed.nonce, what)
            dearer = self._dearer(transaction, what)
            if dearer is not None:
                raw = self.signer.sign_transaction(dearer)
                signed, transaction = self.outbox.keep(signed.intent, signed.nonce, raw), dearer
            self._broadcast(signed.raws[-1], what)
        except UpstreamError:
            pass  # the next turn tries again; the time is limited by the caller
        return signed, transaction

    def _dearer(self, transaction: dict[str, Any], what: str) -> dict[str, Any] | None:
        """The same with a quarter more fee, or with what the chain asks for now; None above the limit."""
        with translated(what):
            now = self._fees()
        fees = {name: max(int(transaction[name]) * 5 // 4 + 1, now[name]) for name in now}
        if fees["maxFeePerGas"] > self.patience.max_fee_wei:
            return None
        return {key: value for key, value in transaction.items() if key not in ("hash", "r", "s", "v")} | fees

    def _fill_gap(self, nonce: int, what: str) -> None:
        """Use up nonces that the node has never seen, below ours: it had said that they were taken.

        Signing the same once more at a lower nonce would let both be mined; an empty transfer to ourselves cannot hurt.
        """
        assert self.signer is not None
        with translated(what):
            free = self._count("latest")
            fees = self._fees()
        ours = {one.nonce for one in self.outbox}
        for missing in [place for place in range(free, nonce) if place not in ours][:_GAP_MAX]:
            empty = {"chainId": self.chain_id, "nonce": missing, "to": self.signer.address, "value": 0, "gas": 21_000}
            self._broadcast(self.signer.sign_transaction(empty | {"data": "0x"} | fees), what)

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


def decoded(raw: bytes) -> dict[str, Any]:
    """The fields of a signed EIP-1559 transaction, as it was given to be signed."""
    from eth_account.typed_transactions.typed_transaction import TypedTransaction
    from hexbytes import HexBytes

    fields: dict[str, Any] = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    kept = ("chainId", "nonce", "maxPriorityFeePerGas", "maxFeePerGas", "gas", "value")
    found = {name: int(fields[name]) for name in kept}
    target = bytes(fields.get("to") or b"")
    return found | {"data": "0x" + bytes(fields["data"]).hex()} | ({"to": "0x" + target.hex()} if target else {})


def _hex_hash(raw: bytes) -> Any:
    return "0x" + keccak256(raw).hex()


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
