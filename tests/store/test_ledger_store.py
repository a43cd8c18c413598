"""The ledger on disk: booked once, together or not at all, and never more than there is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from headwater.core.errors import (
    ConflictError,
    HeadwaterError,
    InvalidError,
    MissingError,
    RefusedError,
    UpstreamError,
)
from headwater.ledger import (
    CASH,
    CLEARING,
    VAULT,
    Code,
    State,
    Statement,
    TransferDraft,
    claimable,
    deposit,
    enroll,
    fund,
    paid,
    payouts,
    settle,
)
from headwater.store.database import ConstraintError, Database, Sql
from headwater.store.ledger_store import Batch, Ledger

Opener = Callable[[], Sql]

USD = "USD"
PAYER, EARNER = "payer:key_1", "contributor:ctr_1"


@pytest.fixture
def ledger(opener: Opener) -> Ledger:
    """A ledger in which one payer has a credit of 100, on SQLite and on PostgreSQL."""
    one = Ledger(opener())
    one.post([deposit(PAYER, 100, asset=USD, cause="deposit:1")], key="deposit:1", at_ns=1)
    return one


def units(ledger: Ledger, account: str) -> tuple[int, int, int]:
    """(posted, reserved out, reserved in) of an account."""
    b = ledger.balance(account, USD)
    return b.balance_units, b.reserved_out_units, b.reserved_in_units


def reserve(ledger: Ledger, amount: int, key: str = "call_1:reserve") -> str:
    """Reserve `amount` for a call."""
    return ledger.reserve(PAYER, amount, key=key, asset=USD, cause="call_1", at_ns=2)


def pay(amount: int, to: str = EARNER, receipt: str = "r1") -> tuple[TransferDraft, ...]:
    """One payout."""
    return payouts([(to, amount)], asset=USD, receipt_id=receipt)


def code_of(caught: pytest.ExceptionInfo[HeadwaterError]) -> str:
    """The stable code of an error."""
    return caught.value.code


def test_the_whole_path_of_a_payment(ledger: Ledger) -> None:
    """From deposit to a claim paid on chain, every account holds what it should and everything adds up."""
    held = reserve(ledger, 80)
    assert (units(ledger, PAYER), units(ledger, CLEARING)) == ((100, 80, 0), (0, 0, 80))
    ledger.charge(held, 60, key="call_1:charge", at_ns=3)
    assert (units(ledger, PAYER), units(ledger, CLEARING)) == ((40, 0, 0), (60, 0, 0))
    drafts = payouts([(EARNER, 35), ("escrow:ctr_2", 15), ("commons", 10)], asset=USD, receipt_id="r1")
    ledger.post(drafts, key="r1", at_ns=4)
    ledger.post([enroll("ctr_2", 15, asset=USD, cause="proof:2")], key="enroll:2", at_ns=5)
    ledger.post(
        [
            fund(50, asset=USD, cause="epoch:1"),
            settle(EARNER, 35, asset=USD, cause="epoch:1"),
            settle("contributor:ctr_2", 15, asset=USD, cause="epoch:1"),
        ],
        key="epoch:1",
        at_ns=6,
    )
    ledger.post([paid(EARNER, 35, asset=USD, cause="tx:1")], key="tx:1", at_ns=7)

    held_now = {b.account: b.balance_units for b in ledger.balances() if b.balance_units}
    assert held_now == {
        CASH: 50,
        VAULT: 15,
        PAYER: 40,
        "commons": 10,
        "claimable:contributor:ctr_2": 15,
    }
    (total,) = ledger.totals()
    assert (total.have_units, total.owe_units, total.reserved_units) == (65, 65, 0)
    assert ledger.check() == ()
    booked = [t.code.name for t in ledger.transfers()]
    assert booked == ["DEPOSIT", "RESERVE", "CHARGE", *["PAYOUT"] * 3, "ENROLL", "FUND", "SETTLE", "SETTLE", "PAID"]


# Once


def test_the_same_key_and_body_is_booked_once(ledger: Ledger) -> None:
    """A retry at another time gives the first outcome, marked as a replay, and moves nothing."""
    drafts = [deposit(PAYER, 5, asset=USD, cause="d")]
    first = ledger.post(drafts, key="d", at_ns=10)
    again = ledger.post(drafts, key="d", at_ns=99)

    assert (first.replayed, again.replayed) == (False, True)
    assert again == replace(first, replayed=True)
    assert units(ledger, PAYER)[0] == 105


def test_the_same_key_with_another_body_is_a_conflict(ledger: Ledger) -> None:
    """Any other body under a used key is refused, a longer or an empty one too."""
    good = deposit(PAYER, 5, asset=USD, cause="d")
    ledger.post([good], key="d", at_ns=1)
    for body in ([replace(good, amount_units=6)], [good, good], [replace(good, cause="e")]):
        with pytest.raises(ConflictError) as caught:
            ledger.post(body, key="d", at_ns=1)
        assert code_of(caught) == "idempotency_conflict"
    assert units(ledger, PAYER)[0] == 105


def test_a_given_body_digest_decides_what_the_same_body_is(ledger: Ledger) -> None:
    """A caller may bind the batch to the request that caused it."""
    drafts = [deposit(PAYER, 5, asset=USD, cause="d")]
    ledger.post(drafts, key="d", body_digest="sha256:a", at_ns=1)
    assert ledger.post(drafts, key="d", body_digest="sha256:a", at_ns=1).replayed
    for other in ("sha256:b", None):
        with pytest.raises(ConflictError):
            ledger.post(drafts, key="d", body_digest=other, at_ns=1)


def test_a_key_that_comes_twice_in_one_commit_is_booked_once(ledger: Ledger) -> None:
    """Inside one commit too, a repeated key is a replay if its body is the same and a conflict if not."""
    drafts = (deposit(PAYER, 5, asset=USD, cause="d"),)
    results = ledger.post_each([Batch("a", drafts), Batch("b", drafts), Batch("a", drafts)], at_ns=1)
    assert [(r.key, r.replayed) for r in results] == [("a", False), ("b", False), ("a", True)]
    assert units(ledger, PAYER)[0] == 110

    other = (deposit(PAYER, 6, asset=USD, cause="d"),)
    with pytest.raises(ConflictError):
        ledger.post_each([Batch("c", drafts), Batch("c", other)], at_ns=1)
    assert units(ledger, PAYER)[0] == 110
    assert not ledger.post(drafts, key="c", at_ns=1).replayed


def test_keys_are_remembered_when_the_ledger_is_opened_again(ledger: Ledger, opener: Opener) -> None:
    """For ever means across connections."""
    again = Ledger(opener())
    assert again.post([deposit(PAYER, 100, asset=USD, cause="deposit:1")], key="deposit:1", at_ns=9).replayed


def test_a_refused_batch_does_not_use_up_its_key(ledger: Ledger) -> None:
    """After a deposit the same reservation under the same key succeeds."""
    with pytest.raises(RefusedError):
        reserve(ledger, 101)
    ledger.post([deposit(PAYER, 1, asset=USD, cause="d")], key="d", at_ns=1)
    assert reserve(ledger, 101) == "call_1:reserve#0"


def test_the_same_reservation_twice_is_one_reservation(ledger: Ledger) -> None:
    """Retrying reserve, charge and release moves money once."""
    assert reserve(ledger, 60) == reserve(ledger, 60)
    held = reserve(ledger, 10, key="call_2:reserve")
    for _ in range(2):
        ledger.charge("call_1:reserve#0", 50, key="call_1:charge", at_ns=3)
        ledger.release(held, key="call_2:release", at_ns=4)
    assert units(ledger, PAYER) == (50, 0, 0)


# Together or not at all


def test_one_bad_transfer_refuses_the_whole_batch(ledger: Ledger) -> None:
    """Nothing of a batch stays when its last transfer cannot be booked, new accounts included."""
    reserve(ledger, 50)
    ledger.charge("call_1:reserve#0", 50, key="c", at_ns=2)
    before = ledger.balances(), list(ledger.transfers())
    with pytest.raises(RefusedError) as caught:
        ledger.post([*pay(30, "contributor:ctr_8"), *pay(21, "contributor:ctr_9")], key="r", at_ns=3)
    assert code_of(caught) == "insufficient_funds"
    assert (ledger.balances(), list(ledger.transfers())) == before
    assert ledger.balance("contributor:ctr_8", USD).balance_units == 0


def test_several_batches_of_one_commit_stand_or_fall_together(ledger: Ledger) -> None:
    """A refused batch takes the ones before it with it."""
    good = Batch("a", [deposit(PAYER, 5, asset=USD, cause="d")])
    with pytest.raises(RefusedError):
        ledger.post_each([good, Batch("b", pay(1))], at_ns=1)
    assert units(ledger, PAYER)[0] == 100


def test_callers_join_their_own_writes(ledger: Ledger) -> None:
    """What is posted inside a caller's transaction is undone with it."""

    def die() -> None:
        with ledger.db.transaction():
            ledger.post([deposit(PAYER, 5, asset=USD, cause="d")], key="d", at_ns=1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        die()
    assert units(ledger, PAYER)[0] == 100
    assert not ledger.post([deposit(PAYER, 5, asset=USD, cause="d")], key="d", at_ns=1).replayed


def test_an_empty_or_oversized_batch_is_refused(ledger: Ledger) -> None:
    """A commit holds from one transfer to the limit."""
    with pytest.raises(InvalidError) as caught:
        ledger.post([], key="e", at_ns=1)
    assert code_of(caught) == "batch_empty"
    one = deposit(PAYER, 1, asset=USD, cause="d")
    with pytest.raises(InvalidError) as caught:
        ledger.post([one] * 100_001, key="e", at_ns=1)
    assert code_of(caught) == "batch_too_large"


@pytest.mark.parametrize("key", ["", " ", "a b", "ä", "x" * 256, "a\n"])
def test_bad_keys_are_refused(ledger: Ledger, key: str) -> None:
    """A key is 1 to 255 visible ASCII characters."""
    with pytest.raises(InvalidError) as caught:
        ledger.post([deposit(PAYER, 1, asset=USD, cause="d")], key=key, at_ns=1)
    assert code_of(caught) == "idempotency_key_invalid"


# Never more than there is


def test_a_payer_spends_the_last_unit_and_not_one_more(ledger: Ledger) -> None:
    """What is reserved counts as spent until it is released."""
    held = reserve(ledger, 100)
    assert ledger.available(PAYER, USD) == 0
    with pytest.raises(RefusedError) as caught:
        reserve(ledger, 1, key="call_2:reserve")
    assert code_of(caught) == "insufficient_credit"
    ledger.charge(held, 99, key="c", at_ns=3)
    reserve(ledger, 1, key="call_2:reserve")
    assert ledger.available(PAYER, USD) == 0


def test_a_limit_holds_after_every_transfer_in_order(ledger: Ledger) -> None:
    """Money may be used later in the batch that brings it, not earlier."""
    bring, use = (
        deposit("payer:key_2", 5, asset=USD, cause="d"),
        TransferDraft("payer:key_2", CLEARING, 5, USD, Code.RESERVE, "call_9"),
    )
    with pytest.raises(RefusedError):
        ledger.post([use, bring], key="early", at_ns=1)
    ledger.post([bring, use], key="late", at_ns=1)
    assert units(ledger, "payer:key_2") == (5, 5, 0)


def test_assets_do_not_mix(ledger: Ledger) -> None:
    """Credit in one currency does not pay in another."""
    with pytest.raises(RefusedError):
        ledger.reserve(PAYER, 1, key="e", asset="EUR", cause="call_1", at_ns=1)


def test_no_more_is_paid_on_chain_than_was_funded(ledger: Ledger) -> None:
    """The vault may not go below zero, nor may cash."""
    reserve(ledger, 50)
    ledger.charge("call_1:reserve#0", 50, key="c", at_ns=2)
    ledger.post([*pay(50), settle(EARNER, 50, asset=USD, cause="epoch:1")], key="e", at_ns=3)
    ledger.post([fund(40, asset=USD, cause="tx:0")], key="f", at_ns=3)
    with pytest.raises(RefusedError, match="chain:vault"):
        ledger.post([paid(EARNER, 41, asset=USD, cause="tx:1")], key="p", at_ns=4)
    with pytest.raises(RefusedError, match="cash"):
        ledger.post([fund(61, asset=USD, cause="tx:2")], key="f2", at_ns=4)
    ledger.post([paid(EARNER, 40, asset=USD, cause="tx:1")], key="p", at_ns=4)
    assert ledger.balance(claimable(EARNER), USD).balance_units == 10


def test_sums_past_64_bits_are_refused_not_wrapped(ledger: Ledger) -> None:
    """A balance stops at 2^62, whether in one step or in many, and statements of huge sums stay exact."""
    most = 2**62
    ledger.post([deposit("payer:key_2", most - 100, asset=USD, cause="d")], key="big", at_ns=1)
    for amount in (1, most, 10**38):
        with pytest.raises(InvalidError) as caught:
            ledger.post([deposit("payer:key_2", amount, asset=USD, cause="d")], key=f"more{amount}", at_ns=1)
        assert code_of(caught) == "amount_out_of_range"
    assert ledger.check() == ()
    # Turnover beyond 2^64 through one account, while its balance stays in range.
    for n in range(6):
        ledger.reserve("payer:key_2", most - 100, key=f"v{n}", asset=USD, cause="call_1", at_ns=5)
        ledger.charge(f"v{n}#0", most - 100, key=f"w{n}", at_ns=5)
        ledger.post(
            [
                TransferDraft(CLEARING, "payer:key_2", most - 100, USD, Code.CORRECTION, "call_1"),
            ],
            key=f"x{n}",
            at_ns=5,
        )
    page = ledger.statement("payer:key_2", USD, skip=18)
    assert (page.opening_units, len(page.lines), page.closing_units) == (0, 1, most - 100)
    assert ledger.check() == ()


# Reservations


def test_a_reservation_is_resolved_once(ledger: Ledger) -> None:
    """Charging and releasing again under other keys is a conflict, also within one batch."""
    held = reserve(ledger, 60)
    ledger.charge(held, 50, key="c", at_ns=3)
    for again in (
        lambda: ledger.charge(held, 1, key="c2", at_ns=4),
        lambda: ledger.release(held, key="v", at_ns=4),
    ):
        with pytest.raises(ConflictError) as caught:
            again()
        assert code_of(caught) == "already_resolved"
    other = reserve(ledger, 10, key="call_2:reserve")
    twice = TransferDraft(PAYER, CLEARING, 5, USD, Code.CHARGE, "call_1", other)
    with pytest.raises(ConflictError):
        ledger.post([twice, twice], key="t", at_ns=5)
    with pytest.raises(ConflictError):
        ledger.post_each([Batch("t1", [twice]), Batch("t2", [twice])], at_ns=5)
    assert units(ledger, PAYER) == (50, 10, 0)


def test_no_more_is_charged_than_was_reserved(ledger: Ledger) -> None:
    """One unit above the reservation is refused even with credit to spare; all of it is not."""
    held = reserve(ledger, 60)
    with pytest.raises(RefusedError) as caught:
        ledger.charge(held, 61, key="c", at_ns=3)
    assert code_of(caught) == "charge_above_reserve"
    ledger.charge(held, 60, key="c", at_ns=3)


def test_a_charge_of_nothing_releases_everything(ledger: Ledger) -> None:
    """A free answer leaves the credit whole."""
    ledger.charge(reserve(ledger, 60), 0, key="c", at_ns=3)
    assert units(ledger, PAYER) == (100, 0, 0)


def test_a_release_gives_all_of_it_back(ledger: Ledger) -> None:
    """A release of another amount than was reserved is refused."""
    held = reserve(ledger, 60)
    with pytest.raises(RefusedError):
        ledger.post([TransferDraft(PAYER, CLEARING, 59, USD, Code.RELEASE, "c", held)], key="v", at_ns=3)
    ledger.release(held, key="v", at_ns=3)
    assert units(ledger, PAYER) == (100, 0, 0)


def test_a_reservation_and_its_charge_may_share_a_commit(ledger: Ledger) -> None:
    """A later batch, or a later transfer of the same batch, may resolve what an earlier one reserved."""
    hold = TransferDraft(PAYER, CLEARING, 10, USD, Code.RESERVE, "call_5")
    take = TransferDraft(PAYER, CLEARING, 4, USD, Code.CHARGE, "call_5", "both#0")
    ledger.post([hold, take], key="both", at_ns=1)
    ledger.post_each([Batch("h", [hold]), Batch("t", [replace(take, pending_id="h#0")])], at_ns=1)
    assert units(ledger, PAYER) == (92, 0, 0)
    with pytest.raises(MissingError):
        ledger.post([replace(take, pending_id="wrong#1"), hold], key="wrong", at_ns=1)
    assert ledger.check() == ()


def test_only_a_fitting_reservation_can_be_resolved(ledger: Ledger) -> None:
    """What is unknown, not pending, of another payer or in another asset is refused."""
    held = reserve(ledger, 10)
    ledger.post([deposit("payer:key_2", 50, asset=USD, cause="d")], key="d2", at_ns=1)
    take = TransferDraft(PAYER, CLEARING, 4, USD, Code.CHARGE, "call_1", held)
    for draft, code in [
        (replace(take, pending_id="none#0"), "pending_unknown"),
        (replace(take, pending_id="call_1:reserve#1"), "pending_unknown"),
        (replace(take, pending_id="deposit:1#0"), "pending_invalid"),
        (replace(take, debit_account="payer:key_2"), "pending_invalid"),
        (replace(take, asset="EUR"), "pending_invalid"),
    ]:
        with pytest.raises(HeadwaterError) as caught:
            ledger.post([draft], key="t", at_ns=1)
        assert code_of(caught) == code
    with pytest.raises(MissingError):
        ledger.charge("none#0", 1, key="t", at_ns=1)


# Deadlines


def reserve_until(ledger: Ledger, amount: int, expires_at_ns: int, key: str = "call_9:reserve") -> str:
    """Reserve `amount` with a deadline."""
    return ledger.reserve(PAYER, amount, key=key, asset=USD, cause="call_9", at_ns=2, expires_at_ns=expires_at_ns)


def test_a_reservation_expires_once_and_its_money_goes_back(ledger: Ledger) -> None:
    """At its deadline, not before, what is set aside is released; doing it again does nothing."""
    held = reserve_until(ledger, 60, 10)
    reserve(ledger, 30)
    assert ledger.expire(at_ns=9) == ()
    assert ledger.expire(at_ns=10) == (held,)
    assert ledger.expire(at_ns=99) == ()
    assert units(ledger, PAYER) == (100, 30, 0)
    states = [(line.code, line.state, line.change_units) for line in ledger.statement(PAYER, USD).lines[1:]]
    assert states[0] == (Code.RESERVE, State.PENDING, 0)
    assert states[-1] == (Code.RELEASE, State.EXPIRED, 0)
    assert ledger.check() == ()


def test_an_expired_reservation_cannot_be_charged_and_one_before_its_deadline_can(ledger: Ledger) -> None:
    """The deadline itself is too late; a release before it is voided, not expired."""
    held, other = reserve_until(ledger, 40, 10), reserve_until(ledger, 10, 10, "call_8:reserve")
    with pytest.raises(ConflictError) as caught:
        ledger.charge(held, 40, key="late", at_ns=10)
    assert code_of(caught) == "reservation_expired"
    ledger.charge(held, 40, key="in-time", at_ns=9)
    released = ledger.release(other, key="early", at_ns=9)
    assert ledger.transfer(released.transfer_ids[0]).state is State.VOIDED
    assert ledger.expire(at_ns=10) == ()
    assert ledger.check() == ()


def test_a_deadline_is_part_of_the_body(ledger: Ledger) -> None:
    """The same key with another deadline is another body; a deadline on anything but a reservation is refused."""
    reserve_until(ledger, 5, 10)
    assert reserve_until(ledger, 5, 10) == "call_9:reserve#0"
    with pytest.raises(ConflictError):
        reserve_until(ledger, 5, 11)
    with pytest.raises(InvalidError) as caught:
        ledger.post([replace(deposit(PAYER, 5, asset=USD, cause="d"), expires_at_ns=5)], key="d", at_ns=1)
    assert code_of(caught) == "deadline_invalid"


# Nothing is edited


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE transfers SET amount_units = 1",
        "UPDATE deadlines SET expires_at_ns = 1",
        "DELETE FROM deadlines",
        "DELETE FROM transfers",
        "REPLACE INTO transfers SELECT transfer, batch, debit, credit, 1, code, cause, pending FROM transfers",
        "UPDATE batches SET body_digest = 'x'",
        "DELETE FROM batches",
        "REPLACE INTO batches SELECT batch, key, 'x', first, size, at_ns FROM batches",
        "DELETE FROM accounts",
        "UPDATE accounts SET name = 'payer:key_9'",
        "DELETE FROM balances",
        "UPDATE balances SET balance_units = -1",
        "UPDATE balances SET reserved_out_units = balance_units + 1",
    ],
)
def test_the_tables_themselves_refuse_edits(ledger: Ledger, sql: str) -> None:
    """Whoever opens them with our rules can neither edit nor delete what was booked, nor overdraw an account."""
    if sql.startswith("REPLACE") and not isinstance(ledger.db, Database):
        pytest.skip("only SQLite has REPLACE")
    reserve_until(ledger, 5, 10)
    with pytest.raises(ConstraintError):
        ledger.db.execute(sql)
    assert ledger.check() == ()


def test_a_balance_that_was_tampered_with_is_found(ledger: Ledger) -> None:
    """Balances are added up again from the transfers."""
    ledger.db.execute("UPDATE balances SET balance_units = balance_units + 1 WHERE account = 2")
    assert {problem.code for problem in ledger.check()} == {"asset_unbalanced", "balance_differs"}


# Reading


def test_a_transfer_is_found_by_its_id(ledger: Ledger) -> None:
    """Its fields are those that were asked for, and what it resolves is named."""
    held = reserve(ledger, 10)
    done = ledger.charge(held, 4, key="c", at_ns=3).transfer_ids[0]
    t = ledger.transfer(done)
    assert (t.id, t.code, t.amount_units, t.cause, t.pending_id, t.at_ns) == (done, Code.CHARGE, 4, "call_1", held, 3)
    for missing in ("none#0", "c#1"):
        with pytest.raises(MissingError):
            ledger.transfer(missing)
    with pytest.raises(InvalidError):
        ledger.transfer("c")


def test_a_balance_at_a_time_is_what_the_lines_before_it_add_up_to(ledger: Ledger) -> None:
    """Every instant between the lines, the first and one past the last; what is only reserved does not count."""
    reserve_until(ledger, 30, 50)
    ledger.charge("call_9:reserve#0", 25, key="c", at_ns=20)
    ledger.post([deposit(PAYER, 7, asset=USD, cause="d")], key="d", at_ns=30)
    at = {0: 0, 1: 0, 2: 100, 20: 100, 21: 75, 30: 75, 31: 82, 10**18: 82}
    assert {ns: ledger.balance_at(PAYER, USD, ns) for ns in at} == at
    assert ledger.balance_at(PAYER, USD, 31) == ledger.statement(PAYER, USD, until_ns=31).closing_units
    assert ledger.balance_at("payer:key_7", USD, 31) == 0
    assert [ledger.balance_at(CASH, USD, ns) for ns in (1, 2, 31)] == [0, 100, 107]


def test_statements_page_without_losing_or_repeating_a_line(ledger: Ledger) -> None:
    """Pages of any size, cut inside a batch, join up to the whole, balances included; time may go backwards."""
    rng = random.Random(7)
    for n in range(30):
        drafts = [deposit(PAYER, rng.randrange(1, 50), asset=USD, cause="d") for _ in range(rng.randrange(1, 4))]
        ledger.post(drafts, key=f"d{n}", at_ns=rng.randrange(10))
    whole = ledger.statement(PAYER, USD)
    assert [line.at_ns for line in whole.lines] == sorted(line.at_ns for line in whole.lines)
    assert whole.closing_units == ledger.balance(PAYER, USD).balance_units

    pages: list[Statement] = []
    while not pages or pages[-1].more:
        pages.append(ledger.statement(PAYER, USD, limit=7, skip=7 * len(pages)))
    assert sum((page.lines for page in pages), ()) == whole.lines
    assert all(a.closing_units == b.opening_units for a, b in pairwise(pages))
    parts = [ledger.statement(PAYER, USD, since_ns=a, until_ns=b) for a, b in [(0, 3), (3, 4), (4, 10)]]
    assert sum((part.lines for part in parts), ()) == whole.lines


def test_asking_wrongly_is_refused(ledger: Ledger) -> None:
    """Bad pages and unknown names are errors; an account never used holds nothing."""
    for limit, skip in [(0, 0), (10_001, 0), (1, -1)]:
        with pytest.raises(InvalidError):
            ledger.statement(PAYER, USD, limit=limit, skip=skip)
    for ask in (lambda: ledger.balance("nobody", USD), lambda: ledger.statement("nobody", USD)):
        with pytest.raises(InvalidError):
            ask()
    assert units(ledger, "payer:key_7") == (0, 0, 0)
    assert ledger.statement("payer:key_7", USD).lines == ()


def test_large_batches_are_booked_exactly(ledger: Ledger) -> None:
    """Thousands of payouts to repeated and new accounts add up to what a plain dictionary says."""
    rng = random.Random(3)
    ledger.post([deposit(PAYER, 10**12, asset=USD, cause="d")], key="d", at_ns=1)
    reserve(ledger, 10**12)
    ledger.charge("call_1:reserve#0", 10**12, key="c", at_ns=1)
    expected: dict[str, int] = {}
    for n in range(3):
        amounts = [(f"contributor:ctr_{rng.randrange(900)}", rng.randrange(1, 10**6)) for _ in range(2_000)]
        for name, amount in amounts:
            expected[name] = expected.get(name, 0) + amount
        ledger.post(payouts(amounts, asset=USD, receipt_id=f"r{n}"), key=f"r{n}", at_ns=n)
    assert {b.account: b.balance_units for b in ledger.balances() if b.account in expected} == expected
    assert ledger.check() == ()


# Disks


@pytest.mark.sqlite
def test_a_full_disk_leaves_the_last_commit(tmp_path: Path) -> None:
    """A batch that meets a full disk leaves no trace; after space is freed the same batch is booked."""
    ledger = Ledger(Database(tmp_path / "headwater.db"))
    ledger.post([deposit(PAYER, 100, asset=USD, cause="deposit:1")], key="deposit:1", at_ns=1)
    ((pages,),) = ledger.db.query("PRAGMA page_count")
    ledger.db.query(f"PRAGMA max_page_count = {pages + 8}")
    drafts = [deposit(f"payer:key_{n}", 5, asset=USD, cause="d") for n in range(5_000)]
    with pytest.raises(UpstreamError) as caught:
        ledger.post(drafts, key="big", at_ns=1)
    assert code_of(caught) == "disk_full"
    assert [b.account for b in ledger.balances()] == [CASH, PAYER]
    assert (ledger.check(), ledger.db.integrity()) == ((), ())

    ledger.db.query("PRAGMA max_page_count = 1000000")
    assert not ledger.post(drafts, key="big", at_ns=1).replayed
    assert ledger.check() == ()
