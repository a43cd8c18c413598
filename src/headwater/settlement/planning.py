"""When to post, whom to push, who waits and who had better claim: a plan for the prices of a moment.

A payee is pushed when what it is due is at least `max(20 x fee, T*)`, where the fee is its part of the push that
reaches it and T* is the payment size that brings most of a stream to its owner (`best_payment`). On top of that the
fees of an epoch, its post included, stay within one percent of the money it moves: the multiple of the fee is raised
from 20 until they do. Who is not pushed *claims* where the claim's own fee is less than what is due, and *waits*
otherwise; waiting money stays its owner's.

Amounts are token units, prices wei; an ether is worth `ether_units` token units. All integers. Pure: knows nothing of
chains, databases or where the prices come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Final, Literal

from headwater.core.errors import InvalidError
from headwater.core.limits import PUSH_PAYEES_MAX
from headwater.settlement.fees import FeeParameters, fee_of_size

WEI: Final = 10**18
POST_GAS, POST_SIZE = 59_900, 190
PUSH_GAS, PUSH_SIZE = 54_100, 400
PAYEE_GAS, PAYEE_SIZE = 10_790, 26
FIRST_GAS: Final = 26_900  # more for a payee that this contract pays for the first time
ABSENT_GAS, ABSENT_SIZE = 2_000, 26  # a place in a push that is sent and not paid
CLAIM_GAS, CLAIM_SIZE = 60_800, 600
"""Gas as `bench/gas.py` measures it at 10,000 payees, and FastLZ bytes of such transactions; tests compare them."""

FEES_MIN: Final = 20
FEES_STEPS: Final = (20, 22, 25, 28, 32, 36, 40, 45, 50, 60, 70, 80, 90, 100)
SHARE_MAX_PPB: Final = 10**7
"""One percent: fees per money moved."""

LIFE_DAYS: Final = 527
"""r / h in days of earnings, for owners of whom half are lost in a year: 365 / ln 2."""

Action = Literal["push", "claim", "wait"]
Ranges = Callable[[Sequence[int]], Sequence[tuple[int, int]]]
"""From indices to pay to the (start, count) of the pushes that reach them, such as `plan_pushes` of a tree."""


@dataclass(frozen=True, slots=True)
class Due:
    """What a payee is owed and has not been paid."""

    index: int
    account: str
    units: int  # token units, >= 0
    paid_before: bool  # whether this contract has paid it already: a first payment costs more
    day_units: int = 0  # what it earns in a day

    def __post_init__(self) -> None:
        if min(self.index, self.units, self.day_units) < 0:
            raise InvalidError(
                f"{self.account} at {self.index} is due {self.units}",
                code="due_invalid",
                fix="amounts are not negative",
            )


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one payee, and why."""

    due: Due
    action: Action
    fee_wei: int  # its part of the push that it is or would be in
    threshold_units: int  # from here on it is pushed
    days: int | None  # until it earns that much; 0 for a push, None when it earns nothing


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, at one gas price."""

    gas_price_wei: int
    decisions: tuple[Decision, ...]  # in the order of the payees
    post: bool  # whether the root is worth posting now; True when it is on the chain already
    fees_multiple: int  # the multiple of the fee below which nobody is pushed, 20..100
    moved_units: int  # pushed in all
    push_fee_wei: int
    post_fee_wei: int  # 0 when the root is on the chain already
    share_ppb: int  # fees per money moved, at `ether_units`; 0 when nothing moves

    def count(self, action: Action) -> int:
        """How many payees get this."""
        return sum(one.action == action for one in self.decisions)

    def units(self, action: Action) -> int:
        """Token units that get this."""
        return sum(one.due.units for one in self.decisions if one.action == action)


def best_payment(fee_wei: int, day_wei: int) -> int:
    """T*: the payment that brings most of a stream to its owner, wei.

    `(f + sqrt(f^2 + 4 f r / h)) / 2`: larger payments lose less to fees, smaller ones less to owners who have gone.
    """
    return -(-(fee_wei + isqrt(fee_wei * fee_wei + 4 * fee_wei * day_wei * LIFE_DAYS)) // 2)


def push_fee(paid: int, first: int, absent: int, prices: FeeParameters) -> int:
    """Wei for a push to `paid` payees, `first` of them for the first time, over `absent` other places."""
    gas = PUSH_GAS + PAYEE_GAS * paid + FIRST_GAS * first + ABSENT_GAS * absent
    return fee_of_size(PUSH_SIZE + PAYEE_SIZE * paid + ABSENT_SIZE * absent, gas, prices).total_wei


def plan(
    dues: Sequence[Due],
    prices: FeeParameters,
    *,
    ether_units: int,
    ranges: Ranges,
    posted: bool,
    share_max_ppb: int = SHARE_MAX_PPB,
) -> Plan:
    """Decide for every payee.

    Args:
        dues: payees that are owed something.
        ether_units: token units that an ether is worth.
        posted: whether the root that promises all this is on the chain; its fee is then spent already.
        share_max_ppb: fees of the epoch per money moved, at most.

    Raises:
        InvalidError: a price of an ether that is not positive, or a share outside 0..10^9.
    """
    if ether_units <= 0 or not 0 < share_max_ppb <= 10**9:
        raise InvalidError(
            f"an ether at {ether_units} token units, a share of {share_max_ppb} ppb",
            code="plan_invalid",
            fix="give the price of an ether, and a share above 0 and up to 10^9",
        )
    post_fee = 0 if posted else fee_of_size(POST_SIZE, POST_GAS, prices).total_wei
    book = _Book(dues, prices, ether_units, ranges)
    chosen: dict[int, int] = {}
    multiple, fees, moved = FEES_STEPS[-1], 0, 0
    for step in FEES_STEPS:
        found, total = book.choose(step)
        units = sum(book.by_index[index].units for index in found)
        if found and (total + post_fee) * ether_units * 10**9 <= units * WEI * share_max_ppb:
            chosen, multiple, fees, moved = found, step, total, units
            break
    # Without a push a post only makes claims possible: it is worth its fee when the money it promises is.
    promised = sum(due.units for due in dues)
    post = posted or bool(chosen) or post_fee * ether_units * 10**9 <= promised * WEI * share_max_ppb
    spent = fees + (post_fee if post else 0)
    return Plan(
        gas_price_wei=prices.gas_price_wei,
        decisions=tuple(book.decide(due, chosen, multiple, claimable=post) for due in dues),
        post=post,
        fees_multiple=multiple,
        moved_units=moved,
        push_fee_wei=fees,
        post_fee_wei=post_fee,
        share_ppb=-(-spent * ether_units * 10**9 // (moved * WEI)) if moved else 0,
    )


def sweep(
    dues: Sequence[Due],
    prices: FeeParameters,
    gas_prices_wei: Sequence[int],
    *,
    ether_units: int,
    ranges: Ranges,
    posted: bool,
) -> tuple[Plan, ...]:
    """The plan at each L2 gas price, everything else as it is."""
    return tuple(
        plan(
            dues, replace(prices, base_fee_wei=price, tip_wei=0), ether_units=ether_units, ranges=ranges, posted=posted
        )
        for price in gas_prices_wei
    )


class _Book:
    """The payees of one plan, with what does not depend on who is chosen."""

    def __init__(self, dues: Sequence[Due], prices: FeeParameters, ether_units: int, ranges: Ranges) -> None:
        self._prices, self._ether_units, self._ranges = prices, ether_units, ranges
        self.by_index = {due.index: due for due in dues}
        full = push_fee(PUSH_PAYEES_MAX, 0, 0, prices)
        first = push_fee(PUSH_PAYEES_MAX, PUSH_PAYEES_MAX, 0, prices)
        self._least = {False: -(-first // PUSH_PAYEES_MAX), True: -(-full // PUSH_PAYEES_MAX)}
        self._extra = self._least[False] - self._least[True]
        self._claim = {
            before: fee_of_size(CLAIM_SIZE, CLAIM_GAS + (0 if before else FIRST_GAS), prices).total_wei
            for before in (True, False)
        }

    def choose(self, multiple: int) -> tuple[dict[int, int], int]:
        """Indices to push with each one's part of the fee in wei, and the fee of all.

        A payee that does not carry its part is left out, which makes the others' parts larger: until all do.
        """
        wanted = [i for i, due in self.by_index.items() if self._carries(due, self._least[due.paid_before], multiple)]
        while wanted:
            parts, total = self._parts(wanted)
            kept = [index for index in wanted if self._carries(self.by_index[index], parts[index], multiple)]
            if len(kept) == len(wanted):
                return parts, total
            wanted = kept
        return {}, 0

    def decide(self, due: Due, chosen: dict[int, int], multiple: int, *, claimable: bool) -> Decision:
        """What happens to one payee."""
        fee = chosen.get(due.index, self._least[due.paid_before])
        threshold = -(-self._threshold(due, fee, multiple) * self._ether_units // WEI)
        if due.index in chosen:
            return Decision(due, "push", fee, threshold, 0)
        missing = max(0, threshold - due.units)
        days = -(-missing // due.day_units) if due.day_units else None
        pays = claimable and due.units * WEI > self._claim[due.paid_before] * self._ether_units
        return Decision(due, "claim" if pays else "wait", fee, threshold, days)

    def _carries(self, due: Due, fee_wei: int, multiple: int) -> bool:
        return due.units > 0 and due.units * WEI >= self._threshold(due, fee_wei, multiple) * self._ether_units

    def _threshold(self, due: Due, fee_wei: int, multiple: int) -> int:
        return max(multiple * fee_wei, best_payment(fee_wei, due.day_units * WEI // self._ether_units))

    def _parts(self, wanted: list[int]) -> tuple[dict[int, int], int]:
        """Each index's part of the pushes that reach all of `wanted`, rounded up, and what they cost in all."""
        parts: dict[int, int] = {}
        total, order, at = 0, sorted(wanted), 0
        for start, count in self._ranges(order):
            inside = []
            while at < len(order) and order[at] < start + count:
                inside.append(order[at])
                at += 1
            if not inside:
                continue
            first = sum(not self.by_index[index].paid_before for index in inside)
            cost = push_fee(len(inside), first, count - len(inside), self._prices)
            shared = max(0, cost - first * self._extra)
            for index in inside:
                extra = 0 if self.by_index[index].paid_before else self._extra
                parts[index] = -(-shared // len(inside)) + extra
            total += cost
        return parts, total
