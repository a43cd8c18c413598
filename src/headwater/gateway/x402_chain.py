"""The chain's side of x402: the official package's facilitator over our own sender, in this process.

The package verifies and settles `exact` (a token's signed transfer, EIP-3009) and `upto` (Permit2 with the x402
proxy); it reads and writes the chain through `ChainSigner`. What became of a settlement whose transaction was sent and
not seen is asked of the chain by the authorization's nonce, never guessed. Needs the extra `x402`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Final

from eth_utils.address import is_address, to_checksum_address
from x402 import x402FacilitatorSync
from x402.mechanisms.evm.constants import PERMIT2_ADDRESS, X402_UPTO_PERMIT2_PROXY_ADDRESS
from x402.mechanisms.evm.exact import ExactEvmFacilitatorScheme
from x402.mechanisms.evm.types import TransactionReceipt, TypedDataDomain, TypedDataField
from x402.mechanisms.evm.upto import UptoEvmFacilitatorScheme
from x402.mechanisms.evm.verify import verify_typed_data_strict
from x402.schemas import PaymentPayload, PaymentRequirements

from headwater.chain import Chain, RevertedError
from headwater.core.errors import HeadwaterError, RefusedError, UpstreamError
from headwater.core.keccak import keccak256

TIMEOUT_S: Final = 300
"""How long a payer's signature is good for; longer than a call and its settlement take."""

_TEXT_ABI: Final = {"inputs": [], "outputs": [{"name": "", "type": "string"}], "stateMutability": "view"}
_BITMAP_ABI: Final = {
    "type": "function",
    "name": "nonceBitmap",
    "inputs": [{"name": "", "type": "address"}, {"name": "", "type": "uint256"}],
    "outputs": [{"name": "", "type": "uint256"}],
    "stateMutability": "view",
}
_USED: Final = "0x" + keccak256(b"AuthorizationUsed(address,bytes32)").hex()
_MOVED: Final = "0x" + keccak256(b"Transfer(address,address,uint256)").hex()


@dataclass(frozen=True, slots=True)
class Moved:
    """What the chain has paid for an authorization."""

    token_units: int
    transaction_hash: str  # 0x hex; empty when nothing was due


class ChainSigner:
    """What the facilitator reads and writes the chain with; the package's `FacilitatorEvmSigner`."""

    def __init__(self, chain: Chain) -> None:
        self._sender = chain.sender
        self._last = threading.local()

    def get_addresses(self) -> list[str]:
        """The one account that settles."""
        signer = self._sender.signer
        return [] if signer is None else [signer.address]

    def read_contract(self, address: str, abi: list[dict[str, Any]], function_name: str, *args: Any) -> Any:
        """Call a function as the account that settles."""
        call = self._call(address, abi, function_name, args)
        me = self.get_addresses()[0]
        return self._sender.read(lambda: call.call({"from": me}), f"reading {function_name}")

    def write_contract(
        self, address: str, abi: list[dict[str, Any]], function_name: str, *args: Any, data_suffix: str | None = None
    ) -> str:
        """Send a transaction and wait for it; whether its fate is unknown is kept for `fate_unknown`."""
        self._last.unknown = False
        if data_suffix:
            raise RefusedError("a suffix of call data", code="payment_refused", fix="pay without extensions")
        try:
            sent = self._sender.send(self._call(address, abi, function_name, args), f"settling by {function_name}")
        except RevertedError:
            raise
        except UpstreamError:
            self._last.unknown = True
            raise
        self._last.receipt = TransactionReceipt(1, sent.block, sent.hash, list(sent.logs))
        return sent.hash

    def begin(self) -> None:
        """Forget what this thread sent before."""
        self._last.unknown, self._last.receipt = False, None

    def fate_unknown(self) -> bool:
        """Whether the last transaction of this thread may have been mined and was not seen."""
        return bool(getattr(self._last, "unknown", False))

    def wait_for_transaction_receipt(self, tx_hash: str) -> TransactionReceipt:
        """The receipt of what this thread has sent; sending has waited for it."""
        receipt: TransactionReceipt | None = getattr(self._last, "receipt", None)
        if receipt is None or receipt.tx_hash != tx_hash:
            raise UpstreamError(f"no receipt of {tx_hash[:80]}", code="receipt_timeout", fix="try again")
        return receipt

    def send_transaction(self, to: str, data: bytes) -> str:  # noqa: ARG002  # the package's form
        """Never: nobody's contracts are called for them."""
        raise RefusedError(f"a transaction to {to[:42]}", code="payment_refused", fix="pay from a wallet that exists")

    def verify_typed_data(
        self,
        address: str,
        domain: TypedDataDomain,
        types: dict[str, list[TypedDataField]],
        primary_type: str,
        message: dict[str, Any],
        signature: bytes,
    ) -> bool:
        """Whether `address` signed, by the rule of the contracts: its code is asked where it has some."""
        found: dict[str, Any] = dict(types)
        return bool(verify_typed_data_strict(self, address, domain, found, primary_type, message, signature))

    def get_balance(self, address: str, token_address: str) -> int:
        """Token units of an account."""
        abi = [
            {
                "type": "function",
                "name": "balanceOf",
                "inputs": [{"name": "", "type": "address"}],
                "outputs": [{"name": "", "type": "uint256"}],
                "stateMutability": "view",
            }
        ]
        return int(self.read_contract(token_address, abi, "balanceOf", address))

    def get_chain_id(self) -> int:
        """Of the chain there is."""
        return self._sender.chain_id

    def get_code(self, address: str) -> bytes:
        """The code at an address; empty for a wallet."""
        eth = self._sender.web3.eth
        return bytes(self._sender.read(lambda: eth.get_code(to_checksum_address(address)), "reading code"))

    def _call(self, address: str, abi: list[dict[str, Any]], name: str, args: tuple[Any, ...]) -> Any:
        contract = self._sender.web3.eth.contract(to_checksum_address(address), abi=abi)
        return contract.functions[name](*(_checksummed(one) for one in args))


class PaymentChain:
    """Verifies and settles payments in the token of a deployment, to one recipient."""

    def __init__(self, chain: Chain, pay_to: str) -> None:
        self._chain, self._sender = chain, chain.sender
        self._signer = ChainSigner(chain)
        self.network = f"eip155:{chain.chain_id}"
        self.token = to_checksum_address(chain.manifest.token)
        self.pay_to = to_checksum_address(pay_to)
        self._extra = {name: self._text(name) for name in ("name", "version")}
        self.has_upto = all(self._signer.get_code(one) for one in (PERMIT2_ADDRESS, X402_UPTO_PERMIT2_PROXY_ADDRESS))
        self._facilitator = x402FacilitatorSync()
        self._facilitator.register([self.network], ExactEvmFacilitatorScheme(self._signer))
        if self.has_upto:
            self._facilitator.register([self.network], UptoEvmFacilitatorScheme(self._signer))

    def requirements(self, scheme: str, token_units: int) -> PaymentRequirements:
        """What a payer is asked to sign."""
        extra: dict[str, Any] = dict(self._extra)
        if scheme == "upto":
            extra |= {"assetTransferMethod": "permit2", "facilitatorAddress": self._signer.get_addresses()[0]}
        return PaymentRequirements(
            scheme=scheme,
            network=self.network,
            asset=self.token,
            amount=str(token_units),
            pay_to=self.pay_to,
            max_timeout_seconds=TIMEOUT_S,
            extra=extra,
        )

    def block(self) -> int:
        """The newest block's number."""
        return int(self._sender.read(lambda: self._sender.web3.eth.block_number, "reading the newest block"))

    def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> str | None:
        """Why a payment would not be paid by the chain now; None when it would."""
        try:
            answer = self._facilitator.verify(payload, requirements)
        except HeadwaterError:
            raise
        except Exception as error:  # of fields that the package parses and nobody checked: the payer's
            return f"payment_malformed: {type(error).__name__}"
        return None if answer.is_valid else answer.invalid_reason or "payment_invalid"

    def settle(
        self, payload: PaymentPayload, requirements: PaymentRequirements, token_units: int
    ) -> tuple[Moved | None, str, bool]:
        """Have the chain pay; (what it paid, the reason if nothing, whether its fate is unknown). Blocks."""
        asked = requirements.model_copy(update={"amount": str(token_units)})
        self._signer.begin()
        try:
            answer = self._facilitator.settle(payload, asked)
        except Exception as error:  # the package raises what hooks and parsers raise
            return None, type(error).__name__, self._signer.fate_unknown()
        if answer.success:
            return Moved(token_units, answer.transaction), "", False
        return None, answer.error_reason or "settlement_failed", self._signer.fate_unknown()

    def moved(self, scheme: str, payer: str, nonce: str, token_units: int, from_block: int) -> Moved | None:
        """What the chain has paid by an authorization: that is the last word, whoever sent the transaction."""
        if scheme == "exact":
            for log in self._logs([_USED, _word(payer), nonce], from_block):
                if any(units == token_units for units in self._units_in(log["transactionHash"], payer)):
                    return Moved(token_units, "0x" + bytes(log["transactionHash"]).hex())
            return None
        number = int(nonce)
        owner = to_checksum_address(payer)
        bitmap = self._signer.read_contract(PERMIT2_ADDRESS, [_BITMAP_ABI], "nonceBitmap", owner, number >> 8)
        if not int(bitmap) >> (number & 0xFF) & 1:
            return None
        for log in self._logs([_MOVED, _word(payer), _word(self.pay_to)], from_block):
            if int.from_bytes(bytes(log["data"]), "big") == token_units:
                return Moved(token_units, "0x" + bytes(log["transactionHash"]).hex())
        return None

    def _units_in(self, transaction_hash: Any, payer: str) -> list[int]:
        eth = self._sender.web3.eth
        receipt = self._sender.read(lambda: eth.get_transaction_receipt(transaction_hash), "reading a receipt")
        wanted = [_MOVED, _word(payer), _word(self.pay_to)]
        return [
            int.from_bytes(bytes(log["data"]), "big")
            for log in receipt["logs"]
            if to_checksum_address(log["address"]) == self.token
            and ["0x" + bytes(topic).hex() for topic in log["topics"]] == wanted
        ]

    def _logs(self, topics: list[str], from_block: int) -> list[Any]:
        eth = self._sender.web3.eth
        asked: Any = {"address": self.token, "topics": topics, "fromBlock": from_block, "toBlock": "latest"}
        return list(self._sender.read(lambda: eth.get_logs(asked), "looking a payment up"))

    def _text(self, name: str) -> str:
        abi: list[dict[str, Any]] = [{**_TEXT_ABI, "type": "function", "name": name}]
        return str(self._signer.read_contract(self.token, abi, name))


def _word(address: str) -> str:
    return "0x" + address.lower().removeprefix("0x").rjust(64, "0")


def _checksummed(value: Any) -> Any:
    return to_checksum_address(value) if isinstance(value, str) and is_address(value) else value
