"""Advances: a pool that pays contributors now what they have earned and cannot claim yet.

The assessor is the operator, who knows the ledger: it attests what is accruing to a lane and how risky that is.
Money is millionths of the token; shares of the pool are in their smallest unit.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

from headwater.core.errors import MissingError
from headwater.rails.seams import Contracts


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """In basis points; the first three are parts, the last two prices."""

    line_bps: int = 1_000  # of the pool, for one borrower
    lent_bps: int = 8_000  # of the pool, for all of them
    part_bps: int = 7_000  # of attested income
    base_bps: int = 50  # price of an advance
    slope_bps: int = 200  # added to it when the whole pool is lent


@dataclass(frozen=True, slots=True)
class LaneState:
    """One borrower."""

    lane: str
    borrower: str
    income_units: int  # accruing, as attested
    risk_bps: int
    until_s: int
    principal_units: int
    fee_units: int
    lost_units: int
    due_s: int  # 0 when nothing is due
    drawable_units: int


class AdvancePool:
    """One Advance contract, seen by one account."""

    def __init__(self, contracts: Contracts, address: str) -> None:
        self._contracts, self._unit = contracts, contracts.token_unit
        self._pool = contracts.at("Advance", address)

    @classmethod
    def deploy(
        cls,
        contracts: Contracts,
        *,
        guardian: str,
        assessor: str,
        limits: PoolLimits | None = None,
        term_s: int = 30 * 86_400,
        release_s: int = 7 * 86_400,
        owner: str | None = None,
    ) -> AdvancePool:
        """Deploy a pool, and the lane that its lanes are copies of.

        Args:
            assessor: attests accruing income; the operator, or whoever recomputes its books.
            term_s: seconds until an advance is overdue.
            release_s: seconds over which a fee becomes assets.

        Raises:
            RevertedError: a role, limit or time that the contract refuses.
        """
        lane = contracts.create("Lane")
        bounds = astuple(limits or PoolLimits())
        made = contracts.create(
            "Advance",
            contracts.token,
            owner or contracts.me,
            guardian,
            assessor,
            lane.address,
            bounds,
            term_s,
            release_s,
        )
        return cls(contracts, made.address)

    @property
    def address(self) -> str:
        """Of the contract."""
        return self._pool.address

    # ------------------------------------------------------------------ lenders

    def deposit(self, units: int) -> int:
        """Lend millionths of the signer's to the pool, approving them first; gives shares."""
        self._contracts.approve(units, self.address)
        sent = self._pool.send("deposit", units * self._unit)
        return int(self._pool.told("Deposit", sent)[0]["shares"])

    def redeem(self, shares: int) -> int:
        """Take money out for shares; gives millionths."""
        me = self._contracts.me
        sent = self._pool.send("redeem", shares, me, me)
        return int(self._pool.told("Withdraw", sent)[0]["assets"]) // self._unit

    def shares(self, owner: str) -> int:
        """Shares of an owner, in their smallest unit."""
        return int(self._pool.read("balanceOf", owner))

    def worth(self, shares: int) -> int:
        """Millionths that shares are worth now."""
        return int(self._pool.read("convertToAssets", shares)) // self._unit

    # ------------------------------------------------------------------ borrowers

    def open_lane(self, borrower: str) -> str:
        """Make the address that a borrower is registered with as payee; gives it."""
        sent = self._pool.send("open_lane", borrower)
        return str(self._pool.told("LaneOpened", sent)[0]["lane"])

    def attest(self, lane: str, *, income_units: int, risk_bps: int, until_s: int) -> Any:
        """State what is accruing to a lane; the signer is the assessor."""
        return self._pool.send("attest", lane, income_units * self._unit, risk_bps, until_s)

    def price(self, lane: str, units: int) -> int:
        """Millionths of fee that an advance costs now, rounded up."""
        return -(-int(self._pool.read("price", lane, units * self._unit)) // self._unit)

    def draw(self, lane: str, units: int, *, fee_max_units: int) -> int:
        """Take an advance; the signer is the borrower. Gives millionths of fee.

        Raises:
            RevertedError: above the line, or dearer than agreed.
        """
        sent = self._pool.send("draw", lane, units * self._unit, fee_max_units * self._unit)
        return -(-int(self._pool.told("Drawn", sent)[0]["fee"]) // self._unit)

    def collect(self, lane: str) -> tuple[int, int]:
        """Divide what has reached a lane: millionths to the pool, and to the borrower."""
        told = self._pool.told("Repaid", self._pool.send("collect", lane))[0]
        repaid = told["principal"] + told["fee"] + told["recovered"]
        return repaid // self._unit, told["passed_on"] // self._unit

    def state_loss(self, lane: str) -> int:
        """State the loss of an overdue advance; gives millionths."""
        told = self._pool.told("LossStated", self._pool.send("state_loss", lane))
        return int(told[0]["amount"]) // self._unit if told else 0

    def lane(self, lane: str) -> LaneState:
        """What a borrower has and owes.

        Raises:
            MissingError: not a lane of this pool.
        """
        borrower, income, risk, until, principal, fee, lost, due = self._pool.read("lines", lane)
        if int(borrower, 16) == 0:
            raise MissingError(f"{lane} is no lane", code="lane_missing", fix="open one: headwater rails advance open")
        drawable = int(self._pool.read("drawable", lane)) // self._unit
        principal, fee, lost = (value // self._unit for value in (principal, fee, lost))
        return LaneState(lane, borrower, income // self._unit, risk, until, principal, fee, lost, due, drawable)

    def status(self) -> dict[str, Any]:
        """Money, in millionths, roles and limits."""
        amounts = {
            f"{name}_token_units": str(int(self._pool.read(function)) // self._unit)
            for name, function in (
                ("assets", "totalAssets"),
                ("cash", "cash"),
                ("lent", "lent"),
                ("lost", "losses"),
                ("gained", "gained"),
            )
        }
        names = ("line_bps", "lent_bps", "part_bps", "base_bps", "slope_bps")
        roles = {name: self._pool.read(name) for name in ("assessor", "owner", "guardian")}
        return {"address": self.address} | amounts | dict(zip(names, self._pool.read("limits"), strict=True)) | roles
