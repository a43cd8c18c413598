"""Corrections: a receipt that supersedes another is logged, and the money that it moves is booked.

    intend   what is about to be logged, and who pays for it, is kept in the database
    log      the receipt is appended, synced
    book     what it moves, and that it is booked, in one transaction

A process that dies between two steps leaves an intention. One whose receipt is in the log is booked by whoever corrects
or closes next (`Corrections.book_logged`); one whose receipt never got there moves nothing. Knows nothing of chains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from headwater.core.errors import InvalidError, RefusedError
from headwater.core.ids import AccountId, CallId
from headwater.ledger import correction
from headwater.receipts import Receipt
from headwater.settlement.disputes import Move, Version, moves, stands
from headwater.settlement.epoch import escrow_of, holder
from headwater.store.close_sealed import SealedClose
from headwater.store.epoch_store import EpochStore
from headwater.store.ledger_store import Ledger
from headwater.store.receipt_log import ReceiptLog
from headwater.store.registry_store import RegistryStore


@dataclass(frozen=True, slots=True)
class Books:
    """What settlement reads and writes; built by the layer above."""

    registry: RegistryStore
    ledger: Ledger
    log: ReceiptLog
    epochs: EpochStore
    currency: str
    maturity_s: int  # a receipt may be disputed for so long before it settles
    operator_addresses: Mapping[AccountId, str]  # commons and operator accounts that are paid on chain
    policy_text: Callable[[str], str]  # the TOML of a policy by digest
    now_ns: Callable[[], int]
    sealed: SealedClose | None = None  # adds up what is sealed, when a window is large


class Corrections:
    """What superseding receipts move in `books`."""

    def __init__(self, books: Books) -> None:
        self.books = books

    def correct(self, raw: bytes, signature: str, *, payer: AccountId) -> tuple[Move, ...]:
        """Append a receipt that supersedes another, and book what it moves. Safe to repeat; needs the log's writer.

        Before the superseded receipt's window was opened its money moves from those it named to those the new one
        names, and a change of price is taken from or given back to `payer`. Afterwards nobody's settled money is taken:
        only what the price adds is paid.

        Raises:
            InvalidError: it supersedes nothing, or is in another currency.
            ConflictError: what it supersedes is not the newest receipt of its call.
            RefusedError: `payer` has not enough credit for a higher price.
        """
        books = self.books
        receipt = Receipt.from_bytes(raw)
        if receipt.supersedes is None or receipt.currency != books.currency:
            raise InvalidError(
                f"receipt {receipt.id} in {receipt.currency} supersedes {receipt.supersedes}",
                code="correction_invalid",
                fix=f"name the receipt that it corrects, in {books.currency}",
            )
        self.book_logged()  # what stood before this one is what the books say
        with books.epochs.transaction():
            self._check_credit(receipt, payer)
            books.epochs.intend(receipt.id, payer)
        with books.epochs.transaction():
            self._check_credit(receipt, payer)
            index = books.log.append(raw, signature).index
            return self._book(receipt, index, payer)

    def planned(self, receipt: Receipt, payer: AccountId) -> tuple[Move, ...]:
        """What a correction that is not in the log yet would move."""
        size = len(self.books.log)
        return self._moves([*chain_of(self.books.log, receipt.call_id, size), version_of(receipt, size)], payer)

    def book_logged(self) -> tuple[str, ...]:
        """Book every correction that was logged by a process that died before it booked it; gives their ids.

        Raises:
            RefusedError: a payer's credit no longer covers a dearer one.
        """
        books, found = self.books, []
        if not books.epochs.intentions():
            return ()
        with books.epochs.transaction():  # a correction under way elsewhere is over, or not begun
            known = [
                (index, identity, payer)
                for identity, payer in books.epochs.intentions()
                if (index := books.log.place(bytes.fromhex(identity))) is not None
            ]
            for index, identity, payer in sorted(known):
                self._book(Receipt.from_bytes(books.log.at(index).raw), index, payer)
                found.append(identity)
        return tuple(found)

    def _book(self, receipt: Receipt, index: int, payer: AccountId) -> tuple[Move, ...]:
        books = self.books
        planned = self._moves(chain_of(books.log, receipt.call_id, index + 1), payer)
        drafts = [
            correction(debit, credit, units, asset=books.currency, cause=receipt.id)
            for move in planned
            for debit, credit, units in self._routes(move, receipt)
        ]
        if drafts:
            key = f"{receipt.id}:correction"
            books.ledger.post(drafts, key=key, body_digest=f"receipt:{receipt.id}", at_ns=books.now_ns())
        books.epochs.corrected(receipt.id)
        return planned

    def _moves(self, chain: Sequence[Version], payer: AccountId) -> tuple[Move, ...]:
        """What the newest receipt of a chain moves."""
        spans = self.books.epochs.spans()
        # What stood before is judged by the windows that had not seen it.
        before = stands(chain[:-1], [span for span in spans if span.log_seen <= chain[-1].seq])
        return moves(before, stands(chain, spans), payer=payer)

    def _check_credit(self, receipt: Receipt, payer: AccountId) -> None:
        """Refuse a dearer correction that its payer cannot pay, before it is in the log for ever."""
        log = self.books.log
        if receipt.id in log or not log.by_call(receipt.call_id):
            return  # the second time, the log says what is wrong with it
        planned = self.planned(receipt, payer)
        needed = sum(move.amount for move in planned if move.debit == payer)
        available = self.books.ledger.available(payer, self.books.currency)
        if needed > available:
            raise RefusedError(
                f"the correction adds {needed} nano {receipt.currency}, {payer} has {available}",
                code="insufficient_credit",
                fix="deposit credit for this key first",
            )

    def _routes(self, move: Move, receipt: Receipt) -> Iterator[tuple[AccountId, AccountId, int]]:
        """A move between the accounts that really hold the money: a contributor's may still be in escrow."""
        named = {holder(payout.account): payout.account for payout in receipt.payouts}
        target, left = named.get(move.credit, move.credit), move.amount
        if move.debit.startswith("contributor:"):
            waiting = min(left, self._in_escrow(move.debit))
            if waiting:
                yield escrow_of(move.debit), target, waiting
                left -= waiting
        if left:
            yield move.debit, target, left

    def _in_escrow(self, account: AccountId) -> int:
        if not account.startswith("contributor:"):
            return 0
        return self.books.ledger.balance(escrow_of(account), self.books.currency).balance_units


def chain_of(log: ReceiptLog, call: CallId, seen: int) -> list[Version]:
    """The receipts of a call below place `seen` of a log, oldest first."""
    entries = [entry for entry in log.by_call(call) if entry.index < seen]
    return [Version(entry.index, _payouts(log.at(entry.index).raw)) for entry in entries]


@lru_cache(maxsize=2048)
def _payouts(raw: bytes) -> tuple[tuple[AccountId, int], ...]:
    """What a receipt pays; kept, as chains of disputed calls are read over and over while they grow."""
    return version_of(Receipt.from_bytes(raw), 0).payouts


def version_of(receipt: Receipt, index: int) -> Version:
    """A receipt as disputes see it."""
    return Version(index, tuple((payout.account, payout.amount) for payout in receipt.payouts))
