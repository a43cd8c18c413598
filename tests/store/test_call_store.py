"""The journal of calls: each step with its money, once, whatever is repeated or dies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from headwater.core.canonical import digest
from headwater.core.errors import (
    ConflictError,
    HeadwaterError,
    InvalidError,
    InvariantError,
    MissingError,
    RefusedError,
)
from headwater.core.ids import CallId, call_id
from headwater.ledger import CLEARING, Code, deposit, payouts
from headwater.store.call_store import Begun, CallRecord, CallState, CallStore
from headwater.store.database import ConstraintError, Database
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger

pytestmark = pytest.mark.both_engines

USD = "USD"
RECEIPT = "ab" * 32
EARNER = "contributor:ctr_1"


@dataclass
class Desk:
    """One process's view of a home folder, with one funded key."""

    db: Database
    ledger: Ledger
    keys: KeyStore
    calls: CallStore
    key_id: str

    def begin(self, number: int, *, key: str | None = None, body: str = "b", ceiling: int = 100) -> Begun:
        """Begin call `number`."""
        return self.calls.begin(
            call_id=cid(number),
            key_id=self.key_id,
            idempotency_key=key,
            request_digest=digest(body.encode()),
            model="m",
            ceiling_units=ceiling,
            asset=USD,
            at_ns=number,
        )

    def answer(self, number: int, price: int = 60, text: bytes = b"answer") -> CallRecord:
        """Answer call `number`."""
        return self.calls.answered(cid(number), answer=text, evidence=b"{}", price_units=price, at_ns=50)

    def attribute(self, number: int, price: int = 60, receipt: str = RECEIPT) -> CallRecord:
        """Attribute call `number`, paying all of `price` to one earner."""
        drafts = payouts([(EARNER, price)], asset=USD, receipt_id=receipt)
        return self.calls.attributed(cid(number), receipt, drafts, at_ns=70)

    @property
    def money(self) -> tuple[int, int, int, int]:
        """(payer's credit, payer's available credit, clearing, earner), nano units."""
        payer = self.ledger.balance(f"payer:{self.key_id}", USD)
        rest = (self.ledger.balance(name, USD).balance_units for name in (CLEARING, EARNER))
        return payer.balance_units, payer.available_units, *rest  # type: ignore[return-value]


def cid(number: int) -> CallId:
    """The id of call `number`."""
    return call_id(number.to_bytes(16, "big"))


def open_desk(home: Path, run_id: str | None) -> Desk:
    """Open the home folder as one more process would; the first one funds the key."""
    db = Database(home / "headwater.db")
    ledger, keys = Ledger(db), KeyStore(db)
    calls = CallStore(db, ledger, keys, run_id=run_id)
    if not keys.list():
        _, key = keys.create("demo", bytes(32), 0, budget_units=5_000)
        ledger.post([deposit(key.account, 1_000, asset=USD, cause="deposit:1")], key="deposit:1", at_ns=0)
    return Desk(db, ledger, keys, calls, keys.list()[0].key_id)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk whose journal is sound when the test is over."""
    one = open_desk(tmp_path, "run-1")
    yield one
    assert one.calls.check() == ()


def test_a_call_reserves_then_charges_then_pays_out(desk: Desk) -> None:
    """Credit is set aside first, charged with the answer and paid out with the receipt, losing nothing."""
    assert desk.money == (1_000, 1_000, 0, 0)
    desk.begin(1)
    assert desk.money == (1_000, 900, 0, 0)
    desk.answer(1)
    assert desk.money == (940, 940, 60, 0)
    call = desk.attribute(1)
    assert desk.money == (940, 940, 0, 60)
    assert (call.state, call.price_units, call.receipt_id) == (CallState.ATTRIBUTED, 60, RECEIPT)
    assert desk.keys.get(desk.key_id).committed_units == 60
    assert desk.calls.by_receipt(RECEIPT) == call


def test_a_released_call_costs_nothing(desk: Desk) -> None:
    """All that was reserved is available again."""
    desk.begin(1)
    call = desk.calls.release(cid(1), failure="upstream_failed", at_ns=9)

    assert (call.state, call.failure, call.price_units) == (CallState.RELEASED, "upstream_failed", None)
    assert desk.money == (1_000, 1_000, 0, 0)
    assert desk.keys.get(desk.key_id).committed_units == 0


def test_every_step_may_be_repeated_unchanged(desk: Desk) -> None:
    """A retry of a step gives what the first one gave and moves nothing."""
    desk.begin(1)
    assert desk.answer(1) == desk.answer(1)
    assert desk.attribute(1) == desk.attribute(1)
    assert desk.answer(1).state is CallState.ATTRIBUTED
    desk.begin(2)
    assert desk.calls.release(cid(2), failure="x", at_ns=3) == desk.calls.release(cid(2), failure="x", at_ns=4)
    assert desk.money == (940, 940, 0, 60)


def test_a_step_repeated_with_other_values_is_a_conflict(desk: Desk) -> None:
    """Another answer, price, receipt or outcome for a settled step is refused and changes nothing."""
    desk.begin(1)
    desk.answer(1)
    for wrong in (
        lambda: desk.answer(1, text=b"another"),
        lambda: desk.answer(1, price=61),
        lambda: desk.calls.release(cid(1), failure="x", at_ns=1),
        lambda: desk.calls.progress(cid(1), answer=b"", evidence=b"", price_units=1, at_ns=1),
        lambda: desk.calls.forget(cid(1), at_ns=1),
    ):
        with pytest.raises(ConflictError) as caught:
            wrong()
        assert caught.value.code == "call_state"
    desk.attribute(1)
    with pytest.raises(ConflictError):
        desk.attribute(1, receipt="cd" * 32)
    assert desk.money == (940, 940, 0, 60)


def test_steps_out_of_order_are_refused(desk: Desk) -> None:
    """What was not answered is not attributed, what was released is not answered, what never was is missing."""
    desk.begin(1)
    with pytest.raises(ConflictError):
        desk.attribute(1)
    desk.calls.release(cid(1), failure="x", at_ns=1)
    for wrong in (lambda: desk.answer(1), lambda: desk.attribute(1)):
        with pytest.raises(ConflictError):
            wrong()
    for missing in (lambda: desk.answer(9), lambda: desk.calls.get(cid(9)), lambda: desk.calls.by_receipt(RECEIPT)):
        with pytest.raises(MissingError):
            missing()


def test_the_price_stays_within_the_ceiling(desk: Desk) -> None:
    """More than was reserved is refused, exactly the ceiling is not."""
    desk.begin(1)
    for price in (101, 10**30):
        with pytest.raises(RefusedError) as caught:
            desk.answer(1, price=price)
        assert caught.value.code == "charge_above_reserve"
    with pytest.raises(InvalidError):
        desk.answer(1, price=-1)
    assert desk.answer(1, price=100).price_units == 100


def test_a_free_call_takes_the_same_path(desk: Desk) -> None:
    """A price of zero is charged, attributed and paid out as nothing."""
    desk.begin(1, ceiling=0)
    desk.answer(1, price=0)
    assert desk.calls.attributed(cid(1), RECEIPT, (), at_ns=1).state is CallState.ATTRIBUTED
    assert desk.money == (1_000, 1_000, 0, 0)


@pytest.mark.parametrize("amounts", [[59], [61], [], [30, 29]])
def test_payouts_that_do_not_sum_to_the_price_are_refused(desk: Desk, amounts: list[int]) -> None:
    """Not a unit more or less than the price is ever paid out."""
    desk.begin(1)
    desk.answer(1)
    drafts = payouts([(f"contributor:ctr_{i}", a) for i, a in enumerate(amounts)], asset=USD, receipt_id=RECEIPT)
    with pytest.raises(InvariantError) as caught:
        desk.calls.attributed(cid(1), RECEIPT, drafts, at_ns=1)
    assert caught.value.code == "payouts_do_not_sum"
    assert desk.calls.get(cid(1)).state is CallState.ANSWERED


def test_payouts_of_another_receipt_or_asset_are_refused(desk: Desk) -> None:
    """Payouts name the receipt of their call and its asset."""
    desk.begin(1)
    desk.answer(1)
    for drafts in (
        payouts([(EARNER, 60)], asset=USD, receipt_id="cd" * 32),
        payouts([(EARNER, 60)], asset="EUR", receipt_id=RECEIPT),
        (deposit(f"payer:{desk.key_id}", 60, asset=USD, cause=RECEIPT),),
    ):
        with pytest.raises(InvariantError):
            desk.calls.attributed(cid(1), RECEIPT, drafts, at_ns=1)


def test_one_receipt_belongs_to_one_call(desk: Desk) -> None:
    """A receipt cannot pay for a second call."""
    for number in (1, 2):
        desk.begin(number)
        desk.answer(number)
    desk.attribute(1)
    with pytest.raises(ConstraintError):
        desk.attribute(2)
    assert desk.calls.get(cid(2)).state is CallState.ANSWERED
    assert desk.money == (880, 880, 60, 60)


def test_without_credit_nothing_begins(desk: Desk) -> None:
    """The last unit may be reserved, one more may not, and a refused call leaves no record."""
    desk.begin(1, ceiling=1_000)
    with pytest.raises(RefusedError) as caught:
        desk.begin(2, ceiling=1)
    assert caught.value.code == "insufficient_credit"
    with pytest.raises(MissingError):
        desk.calls.get(cid(2))


def test_beyond_the_budget_nothing_begins(desk: Desk) -> None:
    """A key's budget holds even with credit to spare."""
    payer = f"payer:{desk.key_id}"
    desk.ledger.post([deposit(payer, 9_000, asset=USD, cause="d2")], key="d2", at_ns=0)
    desk.begin(1, ceiling=5_000)
    with pytest.raises(RefusedError) as caught:
        desk.begin(2, ceiling=1)
    assert caught.value.code == "budget_exceeded"
    desk.answer(1, price=4_000)
    desk.begin(3, ceiling=1_000)


# Idempotency keys of clients


def test_a_repeated_request_gets_the_recorded_answer(desk: Desk) -> None:
    """Same key and body: the first call's answer, and no second reservation."""
    desk.begin(1, key="k")
    desk.answer(1)
    again = desk.begin(2, key="k")
    assert (again.replayed, again.call.call_id, again.call.answer) == (True, cid(1), b"answer")
    desk.attribute(1)
    assert desk.begin(3, key="k").call.receipt_id == RECEIPT
    assert desk.money == (940, 940, 0, 60)


def test_a_key_with_another_body_is_a_conflict_for_ever(desk: Desk) -> None:
    """While in progress, when answered and after a failure, another body under the key is refused."""
    for settle in (lambda: None, lambda: desk.answer(1), lambda: desk.attribute(1)):
        if settle() is None:
            desk.begin(1, key="k")
        with pytest.raises(ConflictError) as caught:
            desk.begin(2, key="k", body="other")
        assert caught.value.code == "idempotency_conflict"
    desk.begin(3, key="k3")
    desk.calls.release(cid(3), failure="x", at_ns=1)
    with pytest.raises(ConflictError) as caught:
        desk.begin(4, key="k3", body="other")
    assert caught.value.code == "idempotency_conflict"


def test_a_request_in_progress_is_not_begun_again(desk: Desk) -> None:
    """The same request while the first is being answered is told to wait."""
    desk.begin(1, key="k")
    with pytest.raises(ConflictError) as caught:
        desk.begin(2, key="k")
    assert caught.value.code == "call_in_progress"
    assert desk.money == (1_000, 900, 0, 0)


def test_a_failed_request_may_be_tried_again_under_its_key(desk: Desk) -> None:
    """A call that gave no answer does not use up its key."""
    desk.begin(1, key="k")
    desk.calls.release(cid(1), failure="x", at_ns=1)
    again = desk.begin(2, key="k")
    assert (again.replayed, again.call.call_id) == (False, cid(2))
    desk.answer(2)
    assert desk.begin(3, key="k").call.call_id == cid(2)


def test_keys_of_different_payers_do_not_meet(desk: Desk) -> None:
    """Two payers may use the same idempotency key."""
    desk.begin(1, key="k")
    _, other = desk.keys.create("other", b"\1" * 32, 0)
    desk.ledger.post([deposit(other.account, 500, asset=USD, cause="d9")], key="d9", at_ns=0)
    desk.key_id = other.key_id
    assert not desk.begin(2, key="k", body="other").replayed


def test_bad_ids_and_keys_are_refused(desk: Desk) -> None:
    """A call id of another form, an empty key or one too long begins nothing."""
    for wrong in (lambda: desk.begin(1, key=""), lambda: desk.begin(1, key="x" * 256)):
        with pytest.raises(InvalidError):
            wrong()
    with pytest.raises(InvalidError):
        desk.calls.begin(
            call_id=CallId("call_1"),
            key_id=desk.key_id,
            idempotency_key=None,
            request_digest="d",
            model="m",
            ceiling_units=1,
            asset=USD,
            at_ns=0,
        )


# Forgetting


@pytest.mark.sqlite
def test_forgotten_text_is_gone_from_the_files_and_the_digests_stay(desk: Desk) -> None:
    """Nothing of answer and evidence can be read back from the disk, and the call's money is as it was."""
    secret = b"a very private sentence " * 40
    desk.begin(1, key="k")
    desk.calls.progress(cid(1), answer=secret[:500], evidence=secret, price_units=9, at_ns=1)
    desk.calls.answered(cid(1), answer=secret, evidence=secret, price_units=60, at_ns=50)
    desk.attribute(1)
    call = desk.calls.forget(cid(1), at_ns=90)

    assert (call.answer, call.evidence, call.answer_digest, call.price_units) == (None, None, digest(secret), 60)
    written = b"".join(path.read_bytes() for path in desk.db.path.parent.glob("headwater.db*"))
    assert b"private sentence" not in written
    with pytest.raises(MissingError) as caught:
        desk.begin(2, key="k")
    assert caught.value.code == "answer_forgotten"


def test_a_call_that_is_too_large_is_refused(desk: Desk) -> None:
    """An answer beyond the limit is refused before anything is charged."""
    desk.begin(1)
    with pytest.raises(InvalidError) as caught:
        desk.answer(1, text=bytes(8 * 2**20))
    assert caught.value.code == "call_too_large"
    assert desk.money == (1_000, 900, 0, 0)


# Restarts


def test_what_a_dead_run_left_is_settled(tmp_path: Path) -> None:
    """Reserved calls are released, partly delivered ones charged for that part, answered ones queued again."""
    dead = open_desk(tmp_path, "run-1")
    for number in (1, 2, 3, 4):
        dead.begin(number)
    dead.calls.progress(cid(2), answer=b"part", evidence=b"{}", price_units=25, at_ns=8)
    dead.answer(3)
    dead.answer(4)
    dead.attribute(4)
    dead.calls.close()

    desk = open_desk(tmp_path, "run-2")
    found = desk.calls.recover(at_ns=99)
    assert (found.released, found.charged, found.to_attribute) == ((cid(1),), (cid(2),), (cid(2), cid(3)))
    assert desk.money == (1_000 - 25 - 60 - 60, 1_000 - 25 - 60 - 60, 85, 60)
    assert desk.calls.get(cid(2)).answer == b"part"
    assert desk.calls.get(cid(1)).failure == "process_died"
    again = desk.calls.recover(at_ns=100)
    assert (again.released, again.charged, again.to_attribute) == ((), (), (cid(2), cid(3)))
    assert desk.calls.check() == ()


def test_calls_of_a_living_run_are_left_alone(tmp_path: Path) -> None:
    """Recovering does not take away what another process, or this one, is answering."""
    other, mine = open_desk(tmp_path, "run-1"), open_desk(tmp_path, "run-2")
    other.begin(1)
    mine.begin(2)
    assert mine.calls.recover(at_ns=9).released == ()
    assert [call.call_id for call in mine.calls.unfinished()] == [cid(1), cid(2)]
    other.answer(1)

    other.calls.close()
    assert mine.calls.recover(at_ns=9).released == ()
    assert mine.calls.check() == ()


def test_a_run_id_is_taken_once(tmp_path: Path) -> None:
    """Two living processes cannot claim the same run; a dead one's id is free."""
    first = open_desk(tmp_path, "run-1")
    with pytest.raises(ConflictError) as caught:
        open_desk(tmp_path, "run-1")
    assert caught.value.code == "run_in_use"
    first.calls.close()
    open_desk(tmp_path, "run-1")
    for bad in ("", "../x", "a/b", "x" * 65):
        with pytest.raises(InvalidError):
            open_desk(tmp_path, bad)


def test_a_journal_opened_to_read_begins_nothing(tmp_path: Path) -> None:
    """Reading commands cannot start calls."""
    with pytest.raises(InvariantError) as caught:
        open_desk(tmp_path, None).begin(1)
    assert caught.value.code == "journal_read_only"


def test_money_and_journal_commit_together(desk: Desk) -> None:
    """When the journal cannot be written the money does not move, and the other way round."""

    def fail_after(step: str) -> None:
        with desk.db.transaction():
            getattr(desk, step)(1)
            raise HeadwaterError("power cut", code="power_cut")

    before = desk.money
    for step in ("begin", "answer", "attribute"):
        with pytest.raises(HeadwaterError, match="power cut"):
            fail_after(step)
        assert desk.money == before
        getattr(desk, step)(1)
        before = desk.money
    assert [t.code for t in desk.ledger.transfers()] == [Code.DEPOSIT, Code.RESERVE, Code.CHARGE, Code.PAYOUT]


def test_calls_are_never_deleted(desk: Desk) -> None:
    """The journal is append-only, whoever holds the file."""
    desk.begin(1)
    with pytest.raises(ConstraintError, match="never deleted"):
        desk.db.execute("DELETE FROM calls")


def test_an_answer_is_known_again_by_its_exact_text_and_by_its_payer_alone(desk: Desk):
    """Marks are keyed digests: the newest call with a text is meant, and erasing an owner's text erases them."""
    for number in (1, 2):
        desk.begin(number)
        desk.calls.answered(
            cid(number), answer=b"a", evidence=b"{}", price_units=1, at_ns=9, texts=["It rises.", f"{number}", ""]
        )
        desk.attribute(number, price=1, receipt=f"{number}" * 64)
    knows = desk.calls.answer_to

    assert knows(desk.key_id, "It rises.") == (cid(2), 2)
    assert knows(desk.key_id, "1") == (cid(1), 1)
    assert knows(desk.key_id, "It rises") is knows(desk.key_id, "") is knows("key_other", "It rises.") is None
    raw = desk.db.query("SELECT mark FROM answer_marks")
    assert sha256(b"It rises.").digest() not in {bytes(mark) for (mark,) in raw}
    desk.calls.forget(cid(2), at_ns=99)
    assert knows(desk.key_id, "It rises.") is None
    desk.calls.forget_owner(desk.key_id, at_ns=99)
    assert knows(desk.key_id, "1") is None
    assert desk.db.query("SELECT COUNT(*) FROM answer_marks") == [(0,)]
