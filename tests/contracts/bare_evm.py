"""Compiled contracts in the bare machine: thousands of calls a minute, for machines that compare them with a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from eth.vm.spoof import SpoofTransaction
from eth_abi import decode, encode
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from headwater.chain import Chain, EmbeddedChain, read_artifact
from headwater.chain.evm import CHAIN_ID, GAS_LIMIT
from headwater.core.keccak import keccak256

GAS = GAS_LIMIT // 2
READER = "0x" + "00" * 19 + "01"


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
            raise Refused(reason_of(bytes(computation.output)))
        return bytes(computation.output)

    def call(self, sender: str, to: str, data: bytes) -> bytes:
        """The answer to a call; nothing stays."""
        before = self.state.snapshot()
        try:
            return self.send(sender, to, data)
        finally:
            self.state.revert(before)


class Machine(Protocol):
    """Where contracts run: the bare machine, or a node that looks like it."""

    now_s: int

    def jump(self, seconds: int) -> None:
        """Move the clock."""
        ...

    def send(self, sender: str, to: str, data: bytes) -> bytes:
        """The answer to a transaction, whose effects stay."""
        ...

    def call(self, sender: str, to: str, data: bytes) -> bytes:
        """The answer to a call; nothing stays."""
        ...


class Contract:
    """A deployed contract by the names of its functions: ``contract.send(account, "post", 1, …)``."""

    def __init__(self, bare: Machine, name: str, address: str, abi: Any = None) -> None:
        self.bare, self.address = bare, address
        self._functions = {
            entry["name"]: Function(
                keccak256(f"{entry['name']}({','.join(map(_type, entry['inputs']))})".encode())[:4],
                [_type(part) for part in entry["inputs"]],
                [_type(part) for part in entry["outputs"]],
            )
            for entry in (abi or read_artifact(name).abi)
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
        function = self._functions[name]
        output = self.bare.call(READER, self.address, function.selector + encode(function.inputs, arguments))
        answer = decode(function.outputs, output)
        return answer[0] if len(answer) == 1 else answer


def _type(part: dict[str, Any]) -> str:
    """The type of a parameter; a struct's with its fields."""
    return f"({','.join(map(_type, part['components']))})" if part["type"] == "tuple" else part["type"]


def reason_of(output: bytes) -> str:
    """A contract's own word; empty when it gave none."""
    if output[:4] != keccak256(b"Error(string)")[:4]:
        return ""
    return str(decode(["string"], output[4:])[0])


class RailMachine(RuleBasedStateMachine):
    """A history of one rail: what a call must do is known before it is made."""

    fresh: Callable[[], Bare]
    people: tuple[str, ...]
    token_address: str
    rail_address: str
    rail_name: str
    token_abi: Any
    steps = 0

    def start(self) -> None:
        """A fresh copy of the deployment."""
        self.bare = self.fresh()
        self.rail = Contract(self.bare, self.rail_name, self.rail_address)
        self.token = Contract(self.bare, "HostileToken", self.token_address, self.token_abi)
        self.blocked: set[str] = set()

    @property
    def now_s(self) -> int:
        """Seconds since 1970."""
        return self.bare.now_s

    def expect(self, allowed: bool, sender: str, name: str, *arguments: Any) -> Any:
        """Send; the contract must do it exactly when the model allows it. True, or the answer; None when refused."""
        try:
            answer = self.rail.send(sender, name, *arguments)
        except Refused as error:
            answer, refused = None, str(error)
        else:
            answer, refused = (True if answer == () else answer), None
        assert allowed == (refused is None), f"{name}: {refused or 'went through'}"
        return answer

    def block(self, person: str, on: bool) -> None:
        """The token stops or resumes paying somebody."""
        self.token.send(self.people[0], "block_", person, on)
        (self.blocked.add if on else self.blocked.discard)(person)

    def held(self, who: str | None = None) -> int:
        """Token units of the rail, or of anybody."""
        return int(self.token.read("balanceOf", who or self.rail_address))


def run_rail(
    machine: type[RailMachine], hostile: Any, make: Callable[[Chain, str], tuple[str, str]], examples: int, steps: int
) -> int:
    """Run a rail's machine; gives the steps taken.

    Args:
        hostile: the misbehaving token, compiled.
        make: deploys the rail in a token; gives the name of its artifact and its address.
    """
    with EmbeddedChain(seed=b"\x55" * 32, clock_ns=lambda: 1_700_000_000 * 10**9) as embedded:
        chain = Chain(embedded.provider(), embedded.accounts[0])
        factory = chain.sender.web3.eth.contract(abi=hostile.abi, bytecode=hostile.bytecode)
        token_address = chain.sender.send(factory.constructor(6), "deploying").contract
        assert token_address is not None
        chain.deploy(guardian=embedded.accounts[1].address, cap=1, delay_s=0, token=token_address)
        token = chain.sender.web3.eth.contract(token_address, abi=hostile.abi)
        name, address = make(chain, token_address)
        for account in embedded.accounts[:6]:
            chain.sender.send(token.functions.mint(account.address, 2**100), "minting")
            mine = chain.acting_as(account).sender
            mine.send(token.functions.approve(address, 2**255), "approving")
        fields = {
            "fresh": lambda _: Bare(embedded),
            "people": tuple(account.address for account in embedded.accounts[:6]),
            "token_address": token_address,
            "token_abi": hostile.abi,
            "rail_name": name,
            "rail_address": address,
            "steps": 0,
        }
        one = type("Machine", (machine,), fields)
        run_state_machine_as_test(
            one,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        return one.steps
