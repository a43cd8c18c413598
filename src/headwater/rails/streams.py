"""Streams: money paid in beforehand that becomes a payee's second by second. Amounts are millionths of the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwater.core.errors import MissingError
from headwater.rails.seams import Contracts


@dataclass(frozen=True, slots=True)
class Flow:
    """One stream, in millionths and seconds since 1970."""

    id: int
    payer: str
    payee: str
    revocable: bool
    units: int  # in all, cumulative
    vested_units: int
    taken_units: int
    end_s: int


class Streams:
    """One Stream contract, seen by one account."""

    def __init__(self, contracts: Contracts, address: str) -> None:
        self._contracts, self._unit = contracts, contracts.token_unit
        self._stream = contracts.at("Stream", address)

    @classmethod
    def deploy(cls, contracts: Contracts) -> Streams:
        """Deploy one in the token of the deployment."""
        return cls(contracts, contracts.create("Stream", contracts.token).address)

    @property
    def address(self) -> str:
        """Of the contract."""
        return self._stream.address

    def open(self, payee: str, units: int, *, start_s: int, end_s: int, revocable: bool) -> int:
        """Pay millionths in and let them vest; gives the stream's id.

        Raises:
            RevertedError: no money, or times out of order.
        """
        self._contracts.approve(units, self.address)
        sent = self._stream.send("open", payee, units * self._unit, start_s, end_s, revocable)
        return int(self._stream.told("Opened", sent)[0]["id"])

    def add(self, id: int, units: int, *, end_s: int) -> Any:
        """Add millionths; what has vested stays so, the rest vests until the end."""
        self._contracts.approve(units, self.address)
        return self._stream.send("add", id, units * self._unit, end_s)

    def take(self, id: int, *, to: str | None = None) -> int:
        """Send the payee what has vested, or the signer's own to another address; gives millionths."""
        sent = self._stream.send("take", id) if to is None else self._stream.send("take_to", id, to)
        return int(self._stream.told("Taken", sent)[0]["amount"]) // self._unit

    def revoke(self, id: int) -> int:
        """End a revocable stream and withdraw what has not vested; gives millionths.

        Raises:
            RevertedError: not the payer, or not revocable.
        """
        sent = self._stream.send("revoke", id)
        returned = int(self._stream.told("Revoked", sent)[0]["returned"]) // self._unit
        self._stream.send("withdraw", self._contracts.me)
        return returned

    def flow(self, id: int) -> Flow:
        """A stream as of now.

        Raises:
            MissingError: there is none of that number.
        """
        payer, payee, revocable, amount, _, _, end, taken = self._stream.read("flows", id)
        if int(payer, 16) == 0:
            raise MissingError(f"no stream {id}", code="stream_missing", fix="see `headwater rails stream show`")
        vested = int(self._stream.read("vested", id))
        return Flow(id, payer, payee, revocable, amount // self._unit, vested // self._unit, taken // self._unit, end)

    def flows(self) -> tuple[Flow, ...]:
        """Every stream there was."""
        return tuple(self.flow(id) for id in range(1, int(self._stream.read("flow_count")) + 1))

    def status(self) -> dict[str, Any]:
        """Streams and millionths held."""
        held = str(int(self._stream.read("total")) // self._unit)
        return {"address": self.address, "streams": int(self._stream.read("flow_count")), "held_token_units": held}
