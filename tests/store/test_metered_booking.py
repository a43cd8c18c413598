"""Groups of metered calls are booked as the general ledger would book them, or left to it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from headwater.core.limits import TRANSFER_UNITS_MAX
from headwater.ledger import deposit
from headwater.store.call_store import FinishedCall
from headwater.store.database import Database, Sql
from headwater.store.ledger_store import Ledger
from headwater.store.metered_booking import book_group
from headwater.store.metered_store import Metered, _batch, metered_key

CREDIT = 10**9
PAYEES = ("operator:compute", "operator:platform", "commons", "contributor:ctr_" + "1" * 32)
TABLES = ("batches", "transfers", "accounts", "balances", "deadlines")


def metered(number: int, payer: str, amounts: tuple[int, ...]) -> Metered:
    """A call of a payer that pays each payee an amount, zero included."""
    call = f"call_{number:032x}"
    return Metered(
        FinishedCall(
            call_id=call,
            key_id=payer,
            model="m",
            asset="USD",
            price_units=sum(amounts),
            reserve_id=metered_key(call) + "#0",
            receipt_id=f"{number:064x}",
            request_digest="sha256:" + "2" * 64,
            answer_digest="sha256:" + "3" * 64,
            began_ns=1,
            at_ns=number,
        ),
        tuple(zip(PAYEES, amounts, strict=True)),
    )


def opened(db: Sql) -> Ledger:
    """A ledger in which two payers have credit, some of it reserved, and one payee has an account."""
    ledger = Ledger(db)
    for payer in ("key_a", "key_b"):
        ledger.post([deposit(f"payer:{payer}", CREDIT, asset="USD", cause="d")], key=f"d:{payer}", at_ns=1)
        ledger.reserve(f"payer:{payer}", CREDIT // 4, key=f"r:{payer}", asset="USD", cause="lease", at_ns=1)
    general(ledger, [metered(1, "key_a", (5, 0, 0, 0))])
    return ledger


def keys(calls: list[Metered]) -> list[str]:
    return [metered_key(one.call.call_id) for one in calls]


def general(ledger: Ledger, calls: list[Metered]) -> None:
    ledger.post_each([_batch(one, key) for one, key in zip(calls, keys(calls), strict=True)], at_ns=9)


def at_once(ledger: Ledger, calls: list[Metered]) -> bool:
    with ledger.db.transaction():
        return book_group(ledger.db, calls, keys(calls), 9)


def rows(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    return {table: ledger.db.query(f"SELECT * FROM {table} ORDER BY 1") for table in TABLES}


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from(["key_a", "key_b"]), st.tuples(*[st.integers(0, 2_000)] * len(PAYEES))),
        min_size=1,
        max_size=150,
    )
)
def test_a_group_has_the_rows_that_the_general_ledger_would_give_it(group):
    """The same batches, transfers, accounts and balances, number by number, whoever pays and whatever is zero."""
    calls = [metered(number, *one) for number, one in enumerate(group, 100)]
    with tempfile.TemporaryDirectory() as folder:
        one, other = (opened(Database(Path(folder) / name)) for name in ("one", "other"))
        general(one, calls)
        assert at_once(other, calls)
        assert rows(one) == rows(other)
        for ledger in (one, other):
            ledger.db.close()


FINE = [metered(number, "key_a", (3, 2, 1, 0)) for number in range(100, 103)]


def changed(**fields: object) -> Metered:
    return replace(FINE[0], call=replace(FINE[0].call, **fields))


@pytest.mark.parametrize(
    "odd",
    [
        changed(asset="EUR"),
        changed(price_units=7),
        changed(price_units=-1),
        changed(price_units=6.0),
        changed(reserve_id="call_x:metered#0"),
        changed(receipt_id="0x12"),
        changed(call_id="call_1"),
        replace(FINE[0], payouts=(("commons", 7), ("operator:compute", -1))),
        metered(1, "key_a", (5, 0, 0, 0)),
        FINE[1],
        metered(99, "key_a", (3 * CREDIT // 4, 0, 0, 0)),
        metered(99, "key_c", (1, 0, 0, 0)),
    ],
    ids=lambda one: f"{one.call.call_id[-4:]}-{one.call.price_units}-{one.call.asset}",
)
def test_what_is_not_plainly_bookable_is_left_to_the_general_ledger(opener, odd):
    """Another asset, sums that differ, odd names, keys that came before, too little credit: nothing is written."""
    ledger = opened(opener())
    before = rows(ledger)
    assert not at_once(ledger, [*FINE[1:], odd])
    assert rows(ledger) == before


def test_the_books_are_clean_after_groups(opener):
    """The ledger's own check finds nothing after a small group, a large one and one with a new account."""
    ledger = opened(opener())
    assert at_once(ledger, FINE)
    assert at_once(ledger, [metered(number, "key_b", (7, 0, 2, number % 2)) for number in range(200, 500)])
    assert ledger.check() == ()
    assert ledger.balance("payer:key_b", "USD").balance_units == CREDIT - 300 * 9 - 150


def test_an_account_that_would_pass_its_limit_is_left_to_the_general_ledger(tmp_path):
    """Room is asked for the whole group at once: one unit too much, and nothing of it is written here."""
    ledger = opened(Database(tmp_path / "db"))
    assert at_once(ledger, [metered(100, "key_a", (0, 0, 6, 0))])
    with ledger.db.transaction():
        ledger.db.execute(
            "UPDATE balances SET balance_units = ? WHERE account ="
            " (SELECT account FROM accounts WHERE name = 'commons')",
            (TRANSFER_UNITS_MAX - 5,),
        )
    before = rows(ledger)
    assert not at_once(ledger, [metered(101, "key_a", (0, 0, 3, 0)), metered(102, "key_a", (0, 0, 3, 0))])
    assert rows(ledger) == before
    assert at_once(ledger, [metered(101, "key_a", (0, 0, 3, 0)), metered(102, "key_a", (0, 0, 2, 0))])
