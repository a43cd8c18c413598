"""The readings say what receipts and ledger say, however they were read and whatever interrupted it."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from headwater.core.ids import ContributionId, ContributorId
from headwater.ledger import Code, TransferDraft, claimable, correction, deposit, enroll, fund, paid, payouts, settle
from headwater.receipts import KeySigner, Receipt, ReceiptOwner, ReceiptPayout, ReceiptShare, issue
from headwater.store import readings as readings_module
from headwater.store.database import Database
from headwater.store.ledger_store import Ledger
from headwater.store.readings import Readings
from headwater.store.readings_queries import Questions
from headwater.store.readings_queries import paid as added_up
from headwater.store.readings_tables import TABLES, TOP_ANSWERS, first_day, month_of
from headwater.store.receipt_log import ReceiptLog

DAY_NS = 86_400 * 10**9
VECTOR = json.loads((Path(__file__).parents[2] / "spec/vectors/receipt_signed.json").read_text("utf-8"))
FULL = Receipt.from_bytes(VECTOR["receipt"].encode())
SIGNER = KeySigner(bytes.fromhex(VECTOR["secret"]))
USD = "USD"


def receipts(count: int, seed: int) -> Iterator[Receipt]:
    """Receipts of a few months, some in another currency, some that correct an earlier one."""
    rng = random.Random(seed)
    people = [f"ctr_{n:032x}" for n in range(12)]
    owned = {f"ctb_{n:032x}": rng.sample(people, rng.choice([1, 1, 2])) for n in range(20)}
    made: list[Receipt] = []
    for number in range(count):
        price = rng.randrange(1_000, 10**7)
        shares, paid_out = [], [ReceiptPayout("operator:platform", price // 10, "platform", None)]
        left = price - price // 10
        for place, name in enumerate(rng.sample(sorted(owned), rng.randrange(0, 4))):
            owners = tuple(
                ReceiptOwner(f"{rng.choice(['escrow', 'contributor'])}:{who}", who, 10**9 // len(owned[name]))
                for who in owned[name]
            )
            bits = rng.randrange(1, 10**8)
            channel = ("grounded", "learned", "reproduced")[place]
            shares.append(
                ReceiptShare(
                    ContributionId(name),
                    "document" if int(name[4:], 16) % 3 else "prompt",
                    channel,
                    10**8,
                    bits,
                    bits,
                    bits,
                    owners,
                )
            )
            for owner in owners:
                amount = rng.randrange(1, left // 8)
                left -= amount
                paid_out.append(ReceiptPayout(owner.account, amount, "contributors", ContributionId(name)))
        paid_out.append(ReceiptPayout("commons", left, "residual", None))
        players = sum(share.microbits for share in shares if share.channel != "reproduced")
        account = replace(
            FULL.attribution,
            grade=rng.choice("AB"),
            shares=tuple(shares),
            total_microbits=FULL.attribution.base_microbits + players,
            residual_ppb=10**9 - 10**8 * len(shares),
        )
        corrects = rng.choice(made) if made and rng.random() < 0.05 else None
        superseded = {r.supersedes for r in made}
        if corrects is not None and (corrects.supersedes or corrects.id in superseded):
            corrects = None
        receipt = replace(
            FULL,
            call_id=corrects.call_id if corrects else f"call_{number:032x}",
            supersedes=corrects.id if corrects else None,
            issued_at_ns=1_760_000_000 * 10**9 + number * DAY_NS // 3,
            currency="EUR" if rng.random() < 0.05 else USD,
            price=price,
            attribution=account,
            payouts=tuple(paid_out),
        )
        if corrects is not None:
            receipt = replace(receipt, currency=corrects.currency)
        made.append(receipt)
        yield receipt


@pytest.fixture(scope="module")
def book() -> tuple[Receipt, ...]:
    """Three hundred receipts over a hundred days."""
    return tuple(receipts(300, 7))


class Store:
    """A log, a ledger and their readings in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = ReceiptLog.open(folder / "receipts.log")
        self.ledger = Ledger(Database(folder / "headwater.db"))
        self.readings = Readings(folder, self.log, self.ledger.db)
        self.questions = Questions(self.readings.db, USD)

    def append(self, batch: tuple[Receipt, ...]) -> None:
        """Log receipts."""
        signed = [issue(receipt, SIGNER) for receipt in batch]
        self.log.append_many([(one.raw, one.signature) for one in signed])

    def dump(self) -> dict[str, list[Any]]:
        """Every table with names instead of numbers, in a fixed order."""
        db = self.readings.db
        people = {0: "", **dict(db.query("SELECT person, contributor FROM people"))}
        works = {0: "", **dict(db.query("SELECT work, contribution FROM works"))}
        methods = {n: tuple(row) for n, *row in db.query("SELECT * FROM methods")}
        found: dict[str, list[Any]] = {}
        for table in TABLES:
            names = [row[1] for row in db.query(f"PRAGMA table_info({table})")]
            rows = []
            for row in db.query(f"SELECT * FROM {table}"):
                values = dict(zip(names, row, strict=True))
                for column, known in (("person", people), ("work", works), ("method", methods)):
                    if column in values:
                        values[column] = known[values[column]]
                rows.append(tuple(values.values()))
            found[table] = sorted(rows, key=repr)
        return found

    def close(self) -> None:
        """Close everything."""
        self.readings.close()
        self.log.close()
        self.ledger.db.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    made = Store(tmp_path)
    yield made
    made.close()


def counted(book: tuple[Receipt, ...]) -> list[Receipt]:
    """The receipts that the sums count: in dollars, and no corrections."""
    return [receipt for receipt in book if receipt.currency == USD and receipt.supersedes is None]


def test_sums_of_the_whole_are_those_of_the_receipts(store: Store, book: tuple[Receipt, ...]) -> None:
    """Lines, answers, prices and tokens add up to what the receipts say, and nothing is counted twice."""
    store.append(book)
    assert store.readings.catch_up() == len(book)
    assert store.readings.catch_up() == 0

    mine = counted(book)
    lines: Counter[str] = Counter()
    for receipt in mine:
        for payout in receipt.payouts:
            lines[payout.line] += payout.amount
    first, last = store.questions.days() or (0, 0)
    flows = store.questions.flows(first, last)
    calls = store.questions.calls(first, last)

    found: Counter[str] = Counter()
    for flow in flows:
        found[flow.line] += flow.units
    assert found == lines
    assert sum(found.values()) == calls.price_units == sum(receipt.price for receipt in mine)
    assert (calls.answers, calls.answer_tokens) == (len(mine), sum(r.usage.completion_tokens for r in mine))
    assert calls.unsupplied == sum(not any(p.contribution for p in r.payouts) for r in mine)
    assert calls.corrections == sum(r.supersedes is not None for r in book if r.currency == USD) > 0
    by_day = store.questions.lines_by_day(first, last)
    assert sum(units for _, _, units in by_day) == calls.price_units
    assert {day for day, *_ in by_day} == {r.issued_at_ns // DAY_NS for r in mine}


def test_statements_are_those_of_the_receipts(store: Store, book: tuple[Receipt, ...]) -> None:
    """For everybody and every month: sum, answers, prices, fees, what was used, and the best answers."""
    store.append(book)
    store.readings.catch_up()
    people = {p.account.split(":")[1] for r in book for p in r.payouts if p.account.startswith(("escrow", "contr"))}
    months = sorted({month_of(r.issued_at_ns // DAY_NS) for r in counted(book)})
    assert len(months) > 3
    for person in people:
        for month in months:
            mine = [
                (place, receipt, [p for p in receipt.payouts if p.account.endswith(person)])
                for place, receipt in enumerate(book)
                if receipt.currency == USD
                and receipt.supersedes is None
                and month_of(receipt.issued_at_ns // DAY_NS) == month
            ]
            mine = [one for one in mine if one[2]]
            days = store.questions.earned(person, first_day(month), first_day(month + 1) - 1)
            total = added_up(days)
            assert total.units == sum(p.amount for *_, own in mine for p in own)
            assert (total.answers, total.price_units) == (len(mine), sum(r.price for _, r, _ in mine))
            assert total.fees_units == sum(
                p.amount for _, r, _ in mine for p in r.payouts if p.account.startswith("operator:")
            )
            used: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
            for _, receipt, own in mine:
                for payout in own:
                    row = used[payout.contribution or "", receipt.attribution.grade]
                    row[0] += payout.amount
                    row[1] += 1
            shown = store.questions.used(person, month, month, limit=1_000)
            assert {(w.contribution, w.grade): [w.units, w.answers] for w in shown} == dict(used)
            ranked = sorted(((-sum(p.amount for p in own), place) for place, _, own in mine))[:TOP_ANSWERS]
            top = store.questions.top(person, month, month, limit=TOP_ANSWERS)
            assert [(-one.units, one.place) for one in top] == ranked
    earners = store.questions.best(months[1], limit=100)
    assert [e.units for e in earners] == sorted((e.units for e in earners), reverse=True)
    whole = [
        sum(d.units for d in store.questions.earned(p, first_day(months[1]), first_day(months[1] + 1) - 1))
        for p in people
    ]
    assert sum(e.units for e in earners) == sum(whole)


def test_read_piece_by_piece_is_the_same(
    store: Store, tmp_path_factory: pytest.TempPathFactory, book: tuple[Receipt, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small steps, interrupted anywhere, by two readers in turn, give the rows that one pass gives."""
    store.append(book)
    store.readings.catch_up()
    expected = store.dump()

    monkeypatch.setattr(readings_module, "RECEIPTS_A_STEP", 7)
    other = Store(tmp_path_factory.mktemp("pieces"))
    real = other.log.at
    rng = random.Random(3)

    def failing(index: int) -> Any:
        if rng.random() < 0.03:
            raise KeyboardInterrupt
        return real(index)

    monkeypatch.setattr(other.log, "at", failing)
    second = Readings(other.folder, other.log, other.ledger.db)
    for start in range(0, len(book), 50):
        other.append(book[start : start + 50])
        for reader in (other.readings, second) * 40:
            try:
                reader.catch_up(steps_max=3)
            except KeyboardInterrupt:
                continue
    monkeypatch.setattr(other.log, "at", real)
    other.readings.catch_up()
    assert other.readings.behind() == 0
    assert other.dump() == expected
    second.close()
    other.close()


def test_another_log_empties_the_tables(store: Store, tmp_path: Path, book: tuple[Receipt, ...]) -> None:
    """Readings of a log that is gone are not mixed with those of the one that took its place."""
    store.append(book[:100])
    store.readings.catch_up()
    log = ReceiptLog.open(tmp_path / "another.log")
    signed = [issue(receipt, SIGNER) for receipt in book[100:250] if receipt.supersedes is None]
    log.append_many([(one.raw, one.signature) for one in signed])
    fresh = Readings(tmp_path, log, store.ledger.db)
    fresh.catch_up()

    found = Questions(fresh.db, USD).calls(0, 10**6)
    assert found.answers == sum(r.currency == USD for r in book[100:250] if r.supersedes is None)
    fresh.close()
    log.close()


def test_moves_follow_the_ledger(store: Store) -> None:
    """Settled, paid, released and corrected money stands under its day and its owner, corrections with their sign."""
    one, two = ContributorId("ctr_" + "1" * 32), ContributorId("ctr_" + "2" * 32)
    ledger, due = store.ledger, f"contributor:ctr_{'1' * 32}"
    ledger.post([deposit("payer:key_1", 10**9, asset=USD, cause="d")], key="d", at_ns=0)
    reserved = ledger.reserve("payer:key_1", 1_000, key="r", asset=USD, cause="call", at_ns=0)
    ledger.charge(reserved, 1_000, key="c", at_ns=0)
    ledger.post(payouts([(f"escrow:{one}", 600), (f"escrow:{two}", 400)], asset=USD, receipt_id="x"), key="p", at_ns=0)
    drafts: list[TransferDraft] = [enroll(one, 600, asset=USD, cause="e"), settle(due, 500, asset=USD, cause="epoch:1")]
    drafts += [fund(10**6, asset=USD, cause="epoch:1"), paid(due, 450, asset=USD, cause="epoch:1")]
    ledger.post(drafts, key="s", at_ns=5 * DAY_NS)
    ledger.post([correction(f"escrow:{two}", due, 30, asset=USD, cause="y")], key="y", at_ns=9 * DAY_NS)
    store.readings.catch_up()

    ask = store.questions
    mine = {Code.ENROLL: 600, Code.SETTLE: 500, Code.PAID: 450, Code.CORRECTION: 30}
    assert ask.moved(0, 9, contributor=one) == mine
    assert ask.moved(9, 9, contributor=two) == {Code.CORRECTION: -30}
    assert ask.moved(5, 5)[Code.PAID] == 450
    assert ask.moved(0, 9)[Code.DEPOSIT] == 10**9
    held = sum(ledger.balance(a, USD).balance_units for a in (f"escrow:{one}", due, claimable(due)))
    assert held == 600 + 30 - 450


def test_months_are_those_of_the_calendar() -> None:
    """Days of every month of two centuries fall into it, the first one first."""
    for year in (1970, 1999, 2000, 2024, 2100):
        for month in range(1, 13):
            day = (date(year, month, 1) - date(1970, 1, 1)).days
            assert month_of(day) == 12 * year + month - 1
            assert first_day(12 * year + month - 1) == day
            assert month_of(day - 1) == 12 * year + month - 2
