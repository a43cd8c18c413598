"""The ledger against a sixty-line reference, under any sequence of batches, retries, conflicts and reopenings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from headwater.core.errors import HeadwaterError
from headwater.ledger import CASH, CLEARING, Code, TransferDraft
from headwater.store.database import Database, Sql
from headwater.store.ledger_store import Batch, Ledger

PAYERS = ["payer:a", "payer:b"]
EARNERS = ["contributor:x", "commons"]
ASSETS = ["USD", "EUR"]


class Reference:
    """Double entry with plain dictionaries: no database, no code shared with the ledger."""

    def __init__(self) -> None:
        self.bodies: dict[str, tuple[TransferDraft, ...]] = {}
        self.posted: dict[tuple[str, str], int] = {}
        self.holds: dict[str, tuple[TransferDraft, bool]] = {}  # transfer id -> (reservation, still open)
        self.transfers: list[str] = []

    def post(self, batches: list[Batch]) -> str:
        """Book all or nothing; gives "ok" or the code of the refusal."""
        kept = dict(self.bodies), dict(self.posted), dict(self.holds), list(self.transfers)
        # Keys are settled before money is: a conflict is found even if an earlier batch lacks funds.
        seen = dict(self.bodies)
        for batch in batches:
            if seen.setdefault(batch.key, tuple(batch.drafts)) != tuple(batch.drafts):
                return "idempotency_conflict"
        self.before = set(self.transfers)
        for batch in batches:
            if batch.key in self.bodies:
                continue
            self.bodies[batch.key] = tuple(batch.drafts)
            for place, draft in enumerate(batch.drafts):
                refusal = self.book(f"{batch.key}#{place}", draft)
                self.transfers.append(f"{batch.key}#{place}")
                if refusal:
                    self.bodies, self.posted, self.holds, self.transfers = kept
                    return refusal
        return "ok"

    def book(self, name: str, draft: TransferDraft) -> str:
        """Book one transfer; gives the code of the refusal or nothing."""
        if draft.code is Code.RESERVE:
            self.holds[name] = (draft, True)
        elif draft.pending_id is not None:
            if draft.pending_id not in self.before and draft.pending_id not in self.holds:
                return "pending_unknown"  # within one commit, only reservations can be named
            hold, is_open = self.holds.get(draft.pending_id, (None, False))
            if hold is None or (hold.debit_account, hold.asset) != (draft.debit_account, draft.asset):
                return "pending_invalid"
            if not is_open:
                return "already_resolved"
            if draft.code is Code.CHARGE and draft.amount_units > hold.amount_units:
                return "charge_above_reserve"
            if draft.code is Code.RELEASE and draft.amount_units != hold.amount_units:
                return "release_differs"
            self.holds[draft.pending_id] = (hold, False)
        if draft.code not in (Code.RESERVE, Code.RELEASE):
            self.move(draft.debit_account, draft.asset, -draft.amount_units)
            self.move(draft.credit_account, draft.asset, draft.amount_units)
        for account in (draft.debit_account, draft.credit_account):
            if self.balance(account, draft.asset) < self.held(account, draft.asset):
                return "insufficient_credit" if account.startswith("payer") else "insufficient_funds"
        return ""

    def move(self, account: str, asset: str, credited: int) -> None:
        """Cash counts debits, all else credits."""
        self.posted[account, asset] = self.balance(account, asset) + (-credited if account == CASH else credited)

    def balance(self, account: str, asset: str) -> int:
        """What is posted."""
        return self.posted.get((account, asset), 0)

    def held(self, account: str, asset: str) -> int:
        """What open reservations take from an account."""
        return sum(
            d.amount_units
            for d, is_open in self.holds.values()
            if is_open and (d.debit_account, d.asset) == (account, asset)
        )


amounts = st.integers(1, 6)
assets = st.sampled_from(ASSETS)
keys = st.sampled_from([f"k{n}" for n in range(30)])
pending_ids = st.builds("{}#{}".format, keys, st.integers(0, 2))
drafts = st.one_of(
    st.builds(
        TransferDraft, st.just(CASH), st.sampled_from(PAYERS), amounts, assets, st.just(Code.DEPOSIT), st.just("d")
    ),
    st.builds(
        TransferDraft, st.sampled_from(PAYERS), st.just(CLEARING), amounts, assets, st.just(Code.RESERVE), st.just("c")
    ),
    st.builds(
        TransferDraft,
        st.sampled_from(PAYERS),
        st.just(CLEARING),
        amounts,
        assets,
        st.sampled_from([Code.CHARGE, Code.RELEASE]),
        st.just("c"),
        pending_ids,
    ),
    st.builds(
        TransferDraft, st.just(CLEARING), st.sampled_from(EARNERS), amounts, assets, st.just(Code.PAYOUT), st.just("r")
    ),
    st.builds(
        TransferDraft, st.just(EARNERS[0]), st.just(EARNERS[1]), amounts, assets, st.just(Code.CORRECTION), st.just("r")
    ),
)
batches = st.builds(Batch, keys, st.lists(drafts, min_size=1, max_size=3))


class LedgerMachine(RuleBasedStateMachine):
    """Does everything twice, here and in the reference, and compares."""

    @initialize()
    def open(self) -> None:
        """Start with a little credit."""
        self.folder = tempfile.TemporaryDirectory()
        self.schema = f"model_{uuid4().hex[:12]}"
        self.reference = Reference()
        self.reopen()
        for payer in PAYERS:
            self.compare([Batch(payer, [TransferDraft(CASH, payer, 20, "USD", Code.DEPOSIT, "d")])])

    @rule()
    def reopen(self) -> None:
        """Another process opens the file."""
        if hasattr(self, "db"):
            self.db.close()
        self.db = self.connect()
        self.ledger = Ledger(self.db)

    def connect(self) -> Sql:
        """The database of this run."""
        db = Database(Path(self.folder.name) / "headwater.db")
        db.query("PRAGMA synchronous = OFF")  # durability has its own tests
        return db

    @rule(some=st.lists(batches, min_size=1, max_size=3))
    def post(self, some: list[Batch]) -> None:
        """Any batches: fresh, repeated, conflicting, overdrawn or resolving what they should not."""
        self.compare(some)

    @rule(payer=st.sampled_from(PAYERS), key=keys, asset=assets)
    def deposit(self, payer: str, key: str, asset: str) -> None:
        """Enough credit for later batches to succeed now and then."""
        self.compare([Batch(key, [TransferDraft(CASH, payer, 20, asset, Code.DEPOSIT, "d")])])

    @rule(payer=st.sampled_from(PAYERS), amount=amounts, asset=assets)
    def reserve(self, payer: str, amount: int, asset: str) -> None:
        """A reservation under a key of its own."""
        draft = TransferDraft(payer, CLEARING, amount, asset, Code.RESERVE, "c")
        self.compare([Batch(f"hold{len(self.reference.transfers)}", [draft])])

    @rule(data=st.data(), amount=amounts, excess=st.sampled_from([0, 0, 1]))
    def resolve(self, data: st.DataObject, amount: int, excess: int) -> None:
        """Charge or release a reservation that exists, open or not."""
        if not self.reference.holds:
            return
        name = data.draw(st.sampled_from(sorted(self.reference.holds)))
        hold = self.reference.holds[name][0]
        choices = [(Code.CHARGE, amount), (Code.RELEASE, hold.amount_units + excess)]
        code, units = data.draw(st.sampled_from(choices))
        key = f"take{len(self.reference.transfers)}"
        self.compare([Batch(key, [TransferDraft(hold.debit_account, CLEARING, units, hold.asset, code, "c", name)])])

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Send an old batch again, unchanged."""
        if not self.reference.bodies:
            return
        key = data.draw(st.sampled_from(sorted(self.reference.bodies)))
        assert self.ledger.post(self.reference.bodies[key], key=key, at_ns=99).replayed

    def compare(self, some: list[Batch]) -> None:
        """Same outcome here and there."""
        try:
            self.ledger.post_each(some, at_ns=1)
            outcome = "ok"
        except HeadwaterError as error:
            outcome = error.code
        event(outcome)
        assert outcome == self.reference.post(some)

    @invariant()
    def same_books(self) -> None:
        """Balances, reservations and the order of transfers agree, and every check passes."""
        if not hasattr(self, "ledger"):
            return
        for account in (*PAYERS, *EARNERS, CASH, CLEARING):
            for asset in ASSETS:
                b = self.ledger.balance(account, asset)
                assert b.balance_units == self.reference.balance(account, asset)
                assert b.reserved_out_units == self.reference.held(account, asset)
        assert [t.id for t in self.ledger.transfers()] == self.reference.transfers
        assert self.ledger.check() == ()

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.db.close()
        self.folder.cleanup()


class PostgresLedgerMachine(LedgerMachine):
    """The same on PostgreSQL, every run in a schema of its own."""

    url = ""

    def connect(self) -> Sql:
        """The database of this run."""
        from headwater.store.postgres import PostgresDatabase

        return PostgresDatabase(self.url, schema=self.schema)


@pytest.mark.parametrize("examples", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_the_ledger_on_postgresql_against_the_reference(postgres, examples: int) -> None:
    """Any sequence of batches, retries, conflicts and reconnections ends as on SQLite and in the reference."""
    PostgresLedgerMachine.url = postgres.url()
    run_state_machine_as_test(
        PostgresLedgerMachine, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None)
    )


TestLedgerAgainstTheReference = pytest.mark.sqlite(LedgerMachine.TestCase)
TestLedgerAgainstTheReference.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
