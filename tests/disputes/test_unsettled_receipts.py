"""Which unsettled receipts pay a contribution, as the log grows and windows settle."""

from __future__ import annotations

from court import Bench, bench
from test_disputes import thief_case

from headwater.core.instants import DAY_NS
from headwater.receipts import Receipt
from headwater.store.receipt_log import ReceiptLog
from headwater.store.unsettled_receipts import Paying, UnsettledReceipts


def by_hand(log: ReceiptLog, contribution: str, settled: int) -> tuple[Paying, ...]:
    """The same, from a whole reading of the log."""
    newest: dict[str, Paying] = {}
    for logged in log.entries(settled):
        receipt = Receipt.from_bytes(logged.raw)
        units = sum(
            payout.amount
            for payout in receipt.payouts
            if payout.contribution == contribution and not payout.account.startswith("disputed:")
        )
        newest[receipt.call_id] = Paying(logged.entry.index, units)
    return tuple(sorted((one for one in newest.values() if one.units), key=lambda one: one.index))


def agree(kept: UnsettledReceipts, here: Bench, settled: int) -> int:
    """Whether what is kept is what a whole reading and a fresh start find; gives how many receipts that are."""
    found = 0
    for title in ("Rivers", "Clouds", "Stones"):
        name = here.document(title)
        wanted = by_hand(here.toy.log, name, settled)
        assert kept.paying(name, settled) == UnsettledReceipts(here.toy.log).paying(name, settled) == wanted
        found += len(wanted)
    return found


def test_what_is_kept_is_what_a_whole_reading_finds(tmp_path):
    """New receipts, held and released ones, and settled ones: never another answer than the log's."""
    with bench(tmp_path) as here:
        here.judges(5)
        kept = UnsettledReceipts(here.toy.log)
        assert agree(kept, here, 0) == 0
        here.ask()
        before = agree(kept, here, 0)
        case, *_ = thief_case(here)
        assert agree(kept, here, 0) == before - 1  # what is held is paid to nobody
        here.ask()
        agree(kept, here, 1)
        here.clock[0] += DAY_NS
        here.disputes.withdraw(case.id)
        assert agree(kept, here, 1) >= 2  # released
        assert agree(kept, here, len(here.toy.log)) == 0
        here.ask()
        assert agree(kept, here, len(here.toy.log) - 1) > 0


def test_each_receipt_is_read_once(tmp_path):
    """Asking again reads one receipt, to see that the log is still the one that was read, and no other."""
    with bench(tmp_path) as here:
        for _ in range(4):
            here.ask()
        kept, read = UnsettledReceipts(here.toy.log), []
        kept.paying(here.document(), 0)
        at = here.toy.log.at
        here.toy.log.at = lambda index: read.append(index) or at(index)  # type: ignore[method-assign]
        for title in ("Rivers", "Clouds", "Stones"):
            kept.paying(here.document(title), 0)
        assert read == [3, 3, 3]
