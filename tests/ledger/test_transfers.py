"""Accounts and transfers as values: what may be asked for, and what "the same body" means."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.canonical import digest
from headwater.core.errors import InvalidError
from headwater.ledger import (
    CASH,
    CLEARING,
    COMMONS,
    VAULT,
    Code,
    Side,
    State,
    TransferDraft,
    body_digest,
    check_draft,
    claimable,
    correction,
    deposit,
    enroll,
    fund,
    paid,
    parse_account,
    payouts,
    settle,
    split_transfer_id,
    transfer_id,
)

PAYER, EARNER = "payer:key_1", "contributor:ctr_1"


def call_draft(code: Code, amount: int = 5, pending_id: str | None = None) -> TransferDraft:
    """A transfer of the kinds a call makes."""
    return TransferDraft(PAYER, CLEARING, amount, "USD", code, "call_1", pending_id)


GOOD = [
    deposit(PAYER, 5, asset="USD", cause="deposit:1"),
    call_draft(Code.RESERVE),
    call_draft(Code.CHARGE, pending_id="k#0"),
    call_draft(Code.RELEASE, pending_id="k#0"),
    *payouts([(EARNER, 1), ("escrow:ctr_2", 2), (COMMONS, 3), ("operator:platform", 4)], asset="USD", receipt_id="ab"),
    settle(EARNER, 5, asset="USD", cause="epoch:1"),
    settle(COMMONS, 5, asset="USD", cause="epoch:1"),
    fund(5, asset="USD", cause="tx:0xab"),
    paid(EARNER, 5, asset="USD", cause="tx:0xab"),
    enroll("ctr_2", 5, asset="USD", cause="proof:1"),
    correction(EARNER, COMMONS, 5, asset="USD", cause="ab"),
]


@pytest.mark.parametrize("draft", GOOD, ids=lambda d: d.code.name)
def test_what_each_posting_makes_is_allowed(draft: TransferDraft) -> None:
    """Every kind of posting fits its own rule, and its state follows from its code."""
    check_draft(draft)
    expected = {Code.RESERVE: State.PENDING, Code.RELEASE: State.VOIDED}.get(draft.code, State.POSTED)
    assert draft.state is expected


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.CORRECTION])
def test_no_code_but_a_correction_joins_accounts_of_another(code: Code) -> None:
    """A transfer under one code between the accounts of another is refused."""
    own = {(d.debit_account, d.credit_account) for d in GOOD if d.code is code}
    for other in GOOD:
        pair = (other.debit_account, other.credit_account)
        if pair in own or other.code is Code.CORRECTION:
            continue
        pending_id = "k#0" if code in (Code.CHARGE, Code.RELEASE) else None
        with pytest.raises(InvalidError) as caught:
            check_draft(TransferDraft(*pair, 5, "USD", code, "c", pending_id))
        assert caught.value.code == "accounts_invalid"


@pytest.mark.parametrize(
    ("draft", "code"),
    [
        (deposit(PAYER, 0, asset="USD", cause="c"), "amount_out_of_range"),
        (deposit(PAYER, -1, asset="USD", cause="c"), "amount_out_of_range"),
        (deposit(PAYER, 2**62 + 1, asset="USD", cause="c"), "amount_out_of_range"),
        (deposit(PAYER, 10**38, asset="USD", cause="c"), "amount_out_of_range"),
        (deposit(PAYER, True, asset="USD", cause="c"), "amount_out_of_range"),
        (deposit(PAYER, 1.5, asset="USD", cause="c"), "amount_out_of_range"),  # type: ignore[arg-type]
        (call_draft(Code.RESERVE, -1), "amount_out_of_range"),
        (deposit(PAYER, 1, asset="", cause="c"), "asset_invalid"),
        (deposit(PAYER, 1, asset="US D", cause="c"), "asset_invalid"),
        (deposit(PAYER, 1, asset="USD", cause=""), "cause_invalid"),
        (deposit(PAYER, 1, asset="USD", cause="two words"), "cause_invalid"),
        (deposit(PAYER, 1, asset="USD", cause="x" * 201), "cause_invalid"),
        (deposit("payer:", 1, asset="USD", cause="c"), "account_invalid"),
        (call_draft(Code.CHARGE), "pending_invalid"),
        (call_draft(Code.RESERVE, pending_id="k#0"), "pending_invalid"),
        (call_draft(Code.CHARGE, pending_id="k"), "transfer_id_invalid"),
        (call_draft(Code.CHARGE, pending_id="ä#0"), "idempotency_key_invalid"),
        (TransferDraft(EARNER, claimable(COMMONS), 1, "USD", Code.SETTLE, "c"), "accounts_invalid"),
        (TransferDraft("escrow:ctr_1", "contributor:ctr_2", 1, "USD", Code.ENROLL, "c"), "accounts_invalid"),
        (correction(EARNER, EARNER, 1, asset="USD", cause="c"), "accounts_invalid"),
    ],
)
def test_what_could_never_be_booked_is_refused(draft: TransferDraft, code: str) -> None:
    """Amounts out of range, bad names, missing causes and misplaced references each have their code."""
    with pytest.raises(InvalidError) as caught:
        check_draft(draft)
    assert caught.value.code == code
    assert caught.value.fix


def test_a_free_call_may_be_reserved_charged_and_released() -> None:
    """Zero is an amount for the three transfers of a call and for nothing else."""
    for code, pending_id in ((Code.RESERVE, None), (Code.CHARGE, "k#0"), (Code.RELEASE, "k#0")):
        check_draft(call_draft(code, 0, pending_id))


@pytest.mark.parametrize(
    "name",
    [
        *("", "cash:", "cash:x", "payer", "payer:", "payer:a b", "Payer:a", "bank:a", "commons:x", "clearing:other"),
        *("claimable:cash", "claimable:escrow:ctr_1", "claimable:claimable:commons", "claimable:", "payer:a\n"),
        *("claimable:" * 30_000 + "commons", "contributor:ä", "payer:" + "x" * 200),
    ],
)
def test_other_names_are_no_accounts(name: str) -> None:
    """A name is one of the known kinds with an owner where it has one; long or nested ones are refused."""
    with pytest.raises(InvalidError) as caught:
        parse_account(name)
    assert caught.value.code == "account_invalid"


def test_what_we_have_is_debit_normal_and_what_we_owe_credit_normal() -> None:
    """Cash and the vault count debits as positive, everything else credits."""
    assert {parse_account(name).side for name in (CASH, VAULT)} == {Side.DEBIT}
    owed = (PAYER, EARNER, "escrow:ctr_1", COMMONS, "operator:platform", CLEARING, claimable(EARNER))
    assert {parse_account(name).side for name in owed} == {Side.CREDIT}


def test_escrow_is_not_settled_before_its_owner_is_known() -> None:
    """Money in escrow has no claimable account to go to."""
    with pytest.raises(InvalidError):
        settle("escrow:ctr_1", 1, asset="USD", cause="epoch:1")


def test_empty_payouts_are_left_out() -> None:
    """A line that gets nothing makes no transfer."""
    assert len(payouts([(EARNER, 0), (COMMONS, 1)], asset="USD", receipt_id="ab")) == 1


@given(key=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1), place=st.integers(0, 99_999))
def test_a_transfer_id_gives_back_its_key_and_place(key: str, place: int) -> None:
    """Whatever the key holds, the id names exactly one transfer of its batch."""
    assert split_transfer_id(transfer_id(key, place)) == (key, place)


@pytest.mark.parametrize("text", ["", "#0", "k", "k#", "k#-1", "k#01", "k#1 ", "k#x", "k#9999999999"])
def test_other_texts_are_no_transfer_ids(text: str) -> None:
    """An id has one form only."""
    with pytest.raises(InvalidError):
        split_transfer_id(text)


visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)


@given(
    st.lists(st.builds(replace, st.sampled_from(GOOD), amount_units=st.integers(1, 2**62), cause=visible), max_size=4)
)
def test_the_body_digest_is_that_of_the_canonical_bytes(drafts: list[TransferDraft]) -> None:
    """The quick encoder writes what RFC 8785 asks for, quotes and backslashes included."""
    rows = [
        [d.debit_account, d.credit_account, str(d.amount_units), d.asset, int(d.code), d.cause, d.pending_id]
        for d in drafts
    ]
    assert body_digest(drafts) == digest(rfc8785.dumps(json.loads(json.dumps(rows))))


def test_any_change_changes_the_body_digest() -> None:
    """Every field and the order of a batch are part of its body."""
    first, second = GOOD[2], GOOD[0]
    bodies = [
        [first],
        [replace(first, amount_units=6)],
        [replace(first, cause="call_2")],
        [replace(first, asset="EUR")],
        [replace(first, debit_account="payer:key_2")],
        [replace(first, pending_id="k#1")],
        [replace(first, code=Code.RELEASE)],
        [first, second],
        [second, first],
        [],
    ]
    assert len({body_digest(body) for body in bodies}) == len(bodies)
