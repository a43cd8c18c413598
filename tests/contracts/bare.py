"""Contracts without blocks, signatures or a node: calls straight into the machine, hundreds a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eth.vm.spoof import SpoofTransaction
from eth_abi import decode, encode

from headwater.chain import EmbeddedChain, read_artifact
from headwater.chain.evm import CHAIN_ID, GAS_LIMIT
from headwater.core.keccak import keccak256

GAS = GAS_LIMIT // 2


class Refused(Exception):
    """A contract reverted; the text is its reason."""


@dataclass(frozen=True)
class Function:
    """One function of an interface."""

    selector: bytes
    inputs: list[str]
    outputs: list[str]


class Bare:
    """A copy of an embedded chain's state, which it never writes back."""

    def __init__(self, embedded: EmbeddedChain) -> None:
        evm = embedded._rpc._evm
        header = evm._chain.header.copy(base_fee_per_gas=0)
        self._vm = evm._chain.get_vm(header)
        self.state = self._vm.state
        self.now_s = evm.head_timestamp_s + 1
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Move the clock."""
        self.now_s += seconds
        self.state.execution_context._timestamp = self.now_s

    def send(self, sender: str, to: str, data: bytes) -> bytes:
        """The answer to a transaction, whose effects stay."""
        caller = bytes.fromhex(sender[2:])
        unsigned = self._vm.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=CHAIN_ID,
            nonce=self.state.get_nonce(caller),
            max_priority_fee_per_gas=0,
            max_fee_per_gas=0,
            gas=GAS,
            to=bytes.fromhex(to[2:]),
            value=0,
            data=data,
            access_list=(),
        )
        computation = self.state.apply_transaction(SpoofTransaction(unsigned, from_=caller))
        if computation.is_error:
            raise Refused(_reason(bytes(computation.output)))
        return bytes(computation.output)


class Contract:
    """A deployed contract by the names of its functions: ``contract.send(account, "post", 1, …)``."""

    def __init__(self, bare: Bare, name: str, address: str) -> None:
        self.bare, self.address = bare, address
        self._functions = {
            entry["name"]: Function(
                keccak256(f"{entry['name']}({','.join(part['type'] for part in entry['inputs'])})".encode())[:4],
                [part["type"] for part in entry["inputs"]],
                [part["type"] for part in entry["outputs"]],
            )
            for entry in read_artifact(name).abi
            if entry["type"] == "function"
        }

    def send(self, sender: str, name: str, *arguments: Any) -> Any:
        """What a function answers to a transaction; its effects stay."""
        function = self._functions[name]
        output = self.bare.send(sender, self.address, function.selector + encode(function.inputs, arguments))
        answer = decode(function.outputs, output)
        return answer[0] if len(answer) == 1 else answer

    def read(self, name: str, *arguments: Any) -> Any:
        """What a function answers; nothing stays."""
        before = self.bare.state.snapshot()
        try:
            return self.send("0x" + "00" * 19 + "01", name, *arguments)
        finally:
            self.bare.state.revert(before)


def _reason(output: bytes) -> str:
    if output[:4] != keccak256(b"Error(string)")[:4]:
        return ""
    return str(decode(["string"], output[4:])[0])
