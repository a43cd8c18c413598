"""Each check sees what it is for, and nothing in a ledger that is sound."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwater.ledger import CASH, CLEARING, Balance, Book, CallFact, Code, State, Transfer, check, statement

USD = "USD"
PAYER, EARNER = "payer:key_1", "contributor:ctr_1"


def transfer(
    number: int, debit: str, credit: str, amount: int, code: Code, cause: str, pending_id: str | None = None
) -> Transfer:
    """A booked transfer; its state is written out here, not taken from the code's own table."""
    state = {2: State.PENDING, 4: State.VOIDED}.get(int(code), State.POSTED)
    return Transfer(f"t{number}#0", debit, credit, amount, USD, code, cause, number, pending_id, state)


SOUND = (
    transfer(1, CASH, PAYER, 100, Code.DEPOSIT, "deposit:1"),
    transfer(2, PAYER, CLEARING, 40, Code.RESERVE, "call_1"),
    transfer(3, PAYER, CLEARING, 60, Code.RESERVE, "call_2"),
    transfer(4, PAYER, CLEARING, 30, Code.CHARGE, "call_1", "t2#0"),
    transfer(5, PAYER, CLEARING, 60, Code.RELEASE, "call_2", "t3#0"),
    transfer(6, CLEARING, EARNER, 30, Code.PAYOUT, "r1"),
    transfer(7, PAYER, CLEARING, 20, Code.RESERVE, "call_3"),
    transfer(8, PAYER, CLEARING, 50, Code.RESERVE, "call_4"),
    transfer(9, PAYER, CLEARING, 15, Code.CHARGE, "call_4", "t8#0"),
)
BALANCES = {
    (CASH, USD): Balance(CASH, USD, 100),
    (PAYER, USD): Balance(PAYER, USD, 55, 20, 0),
    (CLEARING, USD): Balance(CLEARING, USD, 15, 0, 20),
    (EARNER, USD): Balance(EARNER, USD, 30),
}
CALLS = {
    "call_1": CallFact(False, 30, "r1"),
    "call_2": CallFact(False, None, None),
    "call_3": CallFact(True, None, None),
    "call_4": CallFact(False, 15, None),
}
BOOK = Book(SOUND, BALANCES, CALLS)


def codes(book: Book) -> set[str]:
    """The codes of the problems found."""
    return {problem.code for problem in check(book)}


def changed(number: int, **fields: object) -> tuple[Transfer, ...]:
    """The sound transfers with one of them changed."""
    return tuple(replace(t, **fields) if t.id == f"t{number}#0" else t for t in SOUND)


def test_a_sound_ledger_has_no_problems() -> None:
    """Calls that are finished, failed, begun and half-way raise nothing."""
    assert check(BOOK) == ()
    assert check(Book((), {}, {})) == ()


@pytest.mark.parametrize(
    ("book", "code"),
    [
        (replace(BOOK, balances={**BALANCES, (CASH, USD): Balance(CASH, USD, 99)}), "asset_unbalanced"),
        (replace(BOOK, balances={**BALANCES, (PAYER, USD): Balance(PAYER, USD, 55, 19)}), "balance_differs"),
        (replace(BOOK, balances={**BALANCES, (CLEARING, USD): Balance(CLEARING, USD, 15, 0, 0)}), "balance_differs"),
        (replace(BOOK, balances={k: v for k, v in BALANCES.items() if k[0] != EARNER}), "balance_differs"),
        (replace(BOOK, transfers=SOUND[1:]), "account_overdrawn"),
        (replace(BOOK, transfers=changed(3, amount_units=61)), "account_overdrawn"),
        (replace(BOOK, transfers=changed(6, amount_units=31)), "account_overdrawn"),
        (replace(BOOK, transfers=changed(4, amount_units=41)), "pending_misresolved"),
        (replace(BOOK, transfers=changed(5, amount_units=59)), "pending_misresolved"),
        (replace(BOOK, transfers=changed(5, pending_id="t2#0")), "pending_misresolved"),
        (replace(BOOK, transfers=changed(5, pending_id="t9#0")), "pending_misresolved"),
        (replace(BOOK, transfers=changed(5, pending_id="none#0")), "pending_misresolved"),
        (replace(BOOK, transfers=changed(4, debit_account="payer:key_2")), "pending_misresolved"),
        (replace(BOOK, transfers=changed(6, cause="")), "cause_invalid"),
        (replace(BOOK, transfers=changed(6, debit_account=PAYER)), "accounts_invalid"),
        (replace(BOOK, transfers=changed(6, state=State.PENDING)), "state_invalid"),
        (replace(BOOK, transfers=changed(6, amount_units=29)), "payouts_differ"),
        (replace(BOOK, transfers=changed(6, cause="r2")), "payout_unexplained"),
        (replace(BOOK, transfers=changed(6, cause="r2")), "payouts_differ"),
        (replace(BOOK, transfers=(*SOUND, replace(SOUND[5], id="t10#0"))), "payouts_differ"),
        (replace(BOOK, calls={**CALLS, "call_1": CallFact(False, 29, "r1")}), "charge_differs"),
        (replace(BOOK, calls={**CALLS, "call_2": CallFact(False, 0, None)}), "charge_differs"),
        (replace(BOOK, calls={**CALLS, "call_2": CallFact(True, None, None)}), "reservation_differs"),
        (replace(BOOK, calls={**CALLS, "call_3": CallFact(False, None, None)}), "reservation_differs"),
        (replace(BOOK, calls={k: v for k, v in CALLS.items() if k != "call_1"}), "call_unknown"),
        (replace(BOOK, calls={k: v for k, v in CALLS.items() if k != "call_3"}), "call_unknown"),
        (replace(BOOK, calls={**CALLS, "call_4": CallFact(False, 15, "r4")}), "clearing_not_zero"),
    ],
)
def test_each_fault_is_seen(book: Book, code: str) -> None:
    """One thing wrong with a sound ledger is found, under the code that names it."""
    assert code in codes(book)


def test_without_a_journal_of_calls_only_their_checks_are_left_out() -> None:
    """A ledger by itself is still held to sums, balances and reservations."""
    assert check(Book(SOUND, BALANCES)) == ()
    assert codes(Book(SOUND[1:], BALANCES)) >= {"account_overdrawn", "balance_differs"}


def test_a_statement_runs_from_opening_to_closing() -> None:
    """Only posted transfers move the balance, on the account's own side, and every line shows what is left."""
    page = statement(PAYER, USD, 7, [t for t in SOUND if PAYER in (t.debit_account, t.credit_account)], more=False)
    assert [line.balance_units for line in page.lines] == [107, 107, 107, 77, 77, 77, 77, 62]
    assert page.opening_units + sum(line.change_units for line in page.lines) == page.closing_units == 62
    cash = statement(CASH, USD, 0, SOUND[:1], more=True)
    assert (cash.closing_units, cash.lines[0].other_account, cash.more) == (100, PAYER, True)
