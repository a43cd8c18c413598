"""Any of our contracts by the names of its functions, and what a deployment lends to contracts beside it.

The optional contracts are told apart by their artifacts alone, so nothing here changes when one is added. Arguments
are given as Python has them: addresses as text, bytes as bytes, structs as tuples.
"""

from __future__ import annotations

from typing import Any

from headwater.chain.artifacts import read_artifact
from headwater.chain.client import LOG_BLOCKS_MAX, Chain, web3_address
from headwater.chain.sender import Sent
from headwater.core.errors import UpstreamError


class Contract:
    """A deployed contract, seen by the account of a chain."""

    def __init__(self, chain: Chain, name: str, address: str) -> None:
        self._chain, self.name, self.address = chain, name, str(web3_address(address))
        self._abi = read_artifact(name).abi
        self._web3 = chain.sender.web3.eth.contract(web3_address(address), abi=self._abi)

    def read(self, function: str, *arguments: Any) -> Any:
        """What a view answers: a value, or a tuple of them.

        Raises:
            RevertedError: the contract refused.
            UpstreamError: the node failed.
        """
        return self._chain.sender.read(self._bound(function, arguments), f"reading {self.name}.{function}")

    def send(self, function: str, *arguments: Any) -> Sent:
        """Send a transaction and wait for it.

        Raises:
            RefusedError: there is no key.
            RevertedError: the contract refused.
            UpstreamError: the node failed.
        """
        return self._chain.sender.send(self._bound(function, arguments), f"{self.name}.{function}")

    def told(self, event: str, sent: Sent) -> tuple[dict[str, Any], ...]:
        """The events of that name among what a transaction logged, as name -> value."""
        from web3.logs import DISCARD

        found = self._web3.events[event]().process_receipt({"logs": sent.logs}, errors=DISCARD)
        return tuple(dict(log["args"]) for log in found if log["address"] == self.address)

    def history(self, event: str, since_block: int) -> tuple[dict[str, Any], ...]:
        """Every event of that name from a block on, oldest first, as name -> value."""
        sender, kind, rows = self._chain.sender, self._web3.events[event](), []
        last = sender.read(lambda: sender.web3.eth.block_number, "reading the height")
        for first in range(since_block, last + 1, LOG_BLOCKS_MAX):
            end = min(last, first + LOG_BLOCKS_MAX - 1)
            found: Any = sender.read(
                lambda a=first, b=end: kind.get_logs(from_block=a, to_block=b), f"looking for {event}"
            )
            rows += [dict(log["args"]) for log in found]
        return tuple(rows)

    def _bound(self, function: str, arguments: tuple[Any, ...]) -> Any:
        # Functions with defaults appear once for each number of arguments.
        inputs = next(
            entry["inputs"]
            for entry in self._abi
            if entry.get("name") == function and len(entry["inputs"]) == len(arguments)
        )
        values = [_value(part, value) for part, value in zip(inputs, arguments, strict=True)]
        return self._web3.functions[function](*values)


class Deployments:
    """What optional contracts need of a chain: its account, its token, and contracts made or found there."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    @property
    def chain_id(self) -> int:
        """EIP-155 id."""
        return self._chain.chain_id

    @property
    def me(self) -> str:
        """The address that sends; empty when there is no key."""
        signer = self._chain.sender.signer
        return "" if signer is None else str(web3_address(signer.address))

    @property
    def token(self) -> str:
        """The token of the deployment."""
        return self._chain.manifest.token

    @property
    def token_unit(self) -> int:
        """The token's own units in a millionth of it."""
        return self._chain.manifest.token_unit

    def height(self) -> int:
        """Number of the newest block."""
        sender = self._chain.sender
        return int(sender.read(lambda: sender.web3.eth.block_number, "reading the height"))

    def now_s(self) -> int:
        """Time of the newest block, in seconds since 1970."""
        sender = self._chain.sender
        return int(sender.read(lambda: sender.web3.eth.get_block("latest")["timestamp"], "reading the time"))

    def create(self, name: str, *arguments: Any) -> Contract:
        """Deploy one of our contracts.

        Raises:
            RefusedError: there is no key.
            RevertedError: the constructor refused.
        """
        artifact = read_artifact(name)
        inputs: list[Any] = next((entry["inputs"] for entry in artifact.abi if entry["type"] == "constructor"), [])
        values = [_value(part, value) for part, value in zip(inputs, arguments, strict=True)]
        factory = self._chain.sender.web3.eth.contract(abi=artifact.abi, bytecode=artifact.bytecode)
        sent = self._chain.sender.send(factory.constructor(*values), f"deploying {name}")
        if sent.contract is None:
            raise UpstreamError(f"no address for {name}", code="chain_unavailable", fix="try another node")
        return Contract(self._chain, name, sent.contract)

    def at(self, name: str, address: str) -> Contract:
        """One of our contracts that is there already."""
        return Contract(self._chain, name, address)

    def approve(self, units: int, spender: str) -> Sent:
        """Let a contract take millionths of the token; the worthless test token is minted as needed."""
        return self._chain.approve(units, "approving", spender=spender)

    def balance(self, address: str) -> int:
        """Millionths of the token that an address holds."""
        return self._chain.balance(address)


def _value(part: dict[str, Any], value: Any) -> Any:
    """An argument as web3 takes it; only addresses differ, wherever they stand."""
    if part["type"] == "address":
        return web3_address(value)
    if part["type"] == "tuple":
        return tuple(_value(inner, one) for inner, one in zip(part["components"], value, strict=True))
    return value
