"""What receipts that have not settled pay to contributions, kept up to date by reading each receipt once.

Disputes ask this at every tick, for every open case. Reading the log anew each time costs cases × receipts; here each
receipt is read when it is first seen, and settled ones are forgotten. Nothing is written: a process that is killed
reads what has not settled once more when it starts, so there is no state that could disagree with the log.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from threading import Lock

from headwater.core.ids import CallId, ContributionId
from headwater.receipts import Receipt
from headwater.settlement.disputes import HELD
from headwater.store.receipt_log import ReceiptLog


@dataclass(frozen=True, slots=True)
class Paying:
    """A receipt in force that pays a contribution."""

    index: int  # its place in the log
    units: int  # nano units to the contribution's owners; what is held for a dispute is not counted


class UnsettledReceipts:
    """Who is paid by the receipts of `log` that have not settled. May be asked from several threads."""

    def __init__(self, log: ReceiptLog) -> None:
        self._log = log
        self._lock = Lock()
        self._forget(0)

    def paying(self, contribution: ContributionId, settled: int) -> tuple[Paying, ...]:
        """The receipts in force from place `settled` on that pay `contribution` something, oldest first.

        Args:
            settled: places below it have settled; it never falls.
        """
        with self._lock:
            self._drop(settled)
            self._read()
            found = self._paying.get(contribution, {})
            return tuple(sorted(found.values(), key=lambda one: one.index))

    def _forget(self, start: int) -> None:
        self._start = self._next = start
        self._last: str | None = None  # the id of the receipt before `_next`, once one was read
        self._newest: dict[CallId, tuple[int, tuple[ContributionId, ...]]] = {}
        self._paying: dict[ContributionId, dict[CallId, Paying]] = defaultdict(dict)

    def _drop(self, settled: int) -> None:
        """Forget what has settled, or everything when the log's writer took back what had been read."""
        kept = self._next <= len(self._log) and (
            self._last is None or self._log.at(self._next - 1).entry.id == self._last
        )
        if not kept or settled > self._next or settled < self._start:
            self._forget(settled)
        elif settled > self._start:
            for call in [call for call, (index, _) in self._newest.items() if index < settled]:
                self._remove(call)
            self._start = settled

    def _read(self) -> None:
        for logged in self._log.entries(self._next):
            receipt = Receipt.from_bytes(logged.raw)
            self._remove(receipt.call_id)
            units = _paid(receipt)
            for contribution, amount in units.items():
                self._paying[contribution][receipt.call_id] = Paying(logged.entry.index, amount)
            self._newest[receipt.call_id] = logged.entry.index, tuple(units)
            self._next, self._last = logged.entry.index + 1, logged.entry.id

    def _remove(self, call: CallId) -> None:
        _, contributions = self._newest.pop(call, (0, ()))
        for contribution in contributions:
            calls = self._paying[contribution]
            del calls[call]
            if not calls:
                del self._paying[contribution]


def free_units(receipt: Receipt, contribution: ContributionId) -> int:
    """What a receipt pays to a contribution's owners, in nano units, without what is held for a dispute."""
    return _paid(receipt).get(contribution, 0)


def _paid(receipt: Receipt) -> dict[ContributionId, int]:
    units: dict[ContributionId, int] = {}
    for payout in receipt.payouts:
        if payout.contribution is not None and payout.amount and not payout.account.startswith(HELD):
            units[payout.contribution] = units.get(payout.contribution, 0) + payout.amount
    return units
