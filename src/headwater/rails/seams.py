"""What rails ask of the outside: contracts by the names of their functions, and the chain they are on.

`headwater.chain.Deployments` fits; so does anything else with these methods. Amounts handed to a contract are the
token's own units; everything rails take and give is millionths of the token, as everywhere else in headwater.
"""

from __future__ import annotations

from typing import Any, Protocol


class Transaction(Protocol):
    """A transaction that succeeded."""

    @property
    def hash(self) -> str:
        """0x hex."""
        ...

    @property
    def block(self) -> int:
        """Number of its block."""
        ...

    @property
    def gas_used(self) -> int:
        """Gas."""
        ...


class ContractHandle(Protocol):
    """One deployed contract."""

    @property
    def address(self) -> str:
        """EIP-55."""
        ...

    def read(self, function: str, /, *arguments: Any) -> Any:
        """What a view answers."""
        ...

    def send(self, function: str, /, *arguments: Any) -> Any:
        """Send a transaction and wait for it."""
        ...

    def told(self, event: str, sent: Any, /) -> tuple[dict[str, Any], ...]:
        """Events of a transaction, as name -> value."""
        ...

    def history(self, event: str, since_block: int, /) -> tuple[dict[str, Any], ...]:
        """Events since a block, oldest first."""
        ...


class Contracts(Protocol):
    """A chain, a token and an account."""

    @property
    def chain_id(self) -> int:
        """EIP-155 id."""
        ...

    @property
    def me(self) -> str:
        """The address that sends."""
        ...

    @property
    def token(self) -> str:
        """The token that everything is counted in."""
        ...

    @property
    def token_unit(self) -> int:
        """The token's own units in a millionth of it."""
        ...

    def height(self) -> int:
        """Number of the newest block."""
        ...

    def now_s(self) -> int:
        """Time of the newest block, in seconds since 1970."""
        ...

    def create(self, name: str, /, *arguments: Any) -> ContractHandle:
        """Deploy a contract."""
        ...

    def at(self, name: str, address: str, /) -> ContractHandle:
        """A contract that is there."""
        ...

    def approve(self, units: int, spender: str, /) -> Any:
        """Let a contract take millionths of the token."""
        ...
