"""Receipts filled into a form, held against receipts made one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvariantError
from headwater.core.ids import AccountId, CallId, ContributionId
from headwater.core.limits import RECEIPT_TEXT_CHARS_MAX
from headwater.receipts import (
    KeySigner,
    ModelUse,
    Receipt,
    ReceiptAttribution,
    ReceiptForm,
    ReceiptPayout,
    Usage,
    issue,
    recover,
)
from headwater.receipts.fields import INTEGER_MAX
from headwater.receipts.form import INSTANT_NS_MAX

SIGNER = KeySigner(bytes(31) + b"\x05")
ZERO = "sha256:" + "0" * 64
digests = st.binary(min_size=32, max_size=32).map(lambda raw: "sha256:" + raw.hex())
calls = st.binary(min_size=16, max_size=16).map(lambda raw: CallId("call_" + raw.hex()))
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=min(RECEIPT_TEXT_CHARS_MAX, 30))
payouts = st.lists(
    st.tuples(
        st.sampled_from(["commons", "operator:compute", "contributor:ctr_" + "a" * 32]).map(AccountId),
        st.integers(0, 10**20),
        st.sampled_from(["residual", "compute", 'a "line" \\ of é']),
        st.none() | st.just(ContributionId("ctb_" + "b" * 32)),
    ),
    max_size=6,
)


def like(model: str = "m", payer: str = "pay_1", lane: str = "metered") -> Receipt:
    """A receipt that forms are made from."""
    attribution = ReceiptAttribution(
        *("none", "1", "A", (("lane", lane),), 0, ZERO, None, ZERO, 0, 0, 0, 0, (), 10**9, AccountId("commons"))
    )
    return Receipt(
        call_id=CallId("call_" + "0" * 32),
        issued_at_ns=0,
        operator=SIGNER.address,
        payer=payer,
        model=ModelUse(model, ZERO, None),
        request_digest=ZERO,
        answer_digest=ZERO,
        usage=Usage(0, 0),
        currency="USD",
        price=0,
        policy_digest=ZERO,
        registry_digest=ZERO,
        attribution=attribution,
        payouts=(),
    )


@given(
    model=texts,
    payer=texts,
    call=calls,
    instant=st.integers(0, INSTANT_NS_MAX - 1),
    request=digests,
    answer=digests,
    tokens=st.tuples(st.integers(0, INTEGER_MAX), st.integers(0, INTEGER_MAX)),
    paid=payouts,
)
def test_a_filled_form_is_the_receipt_itself(model, payer, call, instant, request, answer, tokens, paid) -> None:
    """The same bytes, id and signature as a receipt made and issued alone, whatever its words are."""
    price = sum(amount for _, amount, _, _ in paid)
    whole = replace(
        like(model, payer),
        call_id=call,
        issued_at_ns=instant,
        request_digest=request,
        answer_digest=answer,
        usage=Usage(*tokens),
        price=price,
        payouts=tuple(ReceiptPayout(account, amount, line, about) for account, amount, line, about in paid),
    )
    alone = issue(whole, SIGNER)

    filled = ReceiptForm(like(model, payer), SIGNER).issue(
        call_id=call,
        issued_at_ns=instant,
        request_digest=request,
        answer_digest=answer,
        usage=tokens,
        price=price,
        payouts=paid,
    )

    assert (filled.raw, filled.id, filled.signature) == (alone.raw, alone.id, alone.signature)
    assert Receipt.from_bytes(filled.raw) == whole
    assert recover(whole, filled.raw, filled.signature) == SIGNER.address


FINE = {
    "call_id": "call_" + "0" * 32,
    "issued_at_ns": 1,
    "request_digest": ZERO,
    "answer_digest": ZERO,
    "usage": (1, 1),
    "price": 3,
    "payouts": [("commons", 3, "residual", None)],
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"call_id": "call_" + "0" * 31},
        {"call_id": 'call_"' + "0" * 31},
        {"request_digest": "sha256:" + "G" * 64},
        {"answer_digest": ZERO + "\n"},
        {"issued_at_ns": -1},
        {"issued_at_ns": INSTANT_NS_MAX},
        {"usage": (-1, 0)},
        {"usage": (0, True)},
        {"usage": (0, INTEGER_MAX + 1)},
        {"price": 4},
        {"payouts": [("commons", 4, "residual", None), ("commons", -1, "residual", None)]},
        {"payouts": [("no body", 3, "residual", None)]},
        {"payouts": [("commons", 3, "residual", "ctb_1")]},
        {"payouts": [("commons", 3.0, "residual", None)]},
    ],
)
def test_what_no_receipt_may_hold_is_not_filled_in(wrong: dict[str, object]) -> None:
    """A form is no way around the checks."""
    form = ReceiptForm(like(), SIGNER)
    assert form.issue(**FINE).price == 3  # type: ignore[arg-type]
    with pytest.raises(InvariantError):
        form.issue(**{**FINE, **wrong})  # type: ignore[arg-type]


def test_a_form_of_another_operator_is_refused() -> None:
    """A signer makes its own receipts only."""
    with pytest.raises(InvariantError) as caught:
        ReceiptForm(like(), KeySigner(bytes(31) + b"\x06"))
    assert caught.value.code == "operator_mismatch"
