"""Vouchers and signed claims against a wallet's own implementation of typed data."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError, RefusedError
from headwater.settlement.claim_to import CLAIM_TO_TYPE, ClaimTo, check_claim_to, payout_domain, sign_claim_to
from headwater.settlement.typed_data import signer_of
from headwater.settlement.voucher import SignedVoucher, Voucher, check, credit_domain, sign_voucher

KEY = bytes(range(1, 33))
PAYER = Account.from_key(KEY).address
PAYEE = "0x" + "ab" * 20
DOMAIN = credit_domain(8453, "0x" + "c0" * 20)


@settings(deadline=None, max_examples=40)
@given(cumulative=st.integers(1, 2**64 - 1), chain_id=st.integers(1, 2**63), number=st.integers(1, 2**160 - 1))
def test_a_wallet_signs_the_same_bytes(cumulative, chain_id, number):
    """A voucher as a wallet is shown it has our digest, and the wallet's signature checks here."""
    domain = credit_domain(chain_id, f"0x{number:040x}")
    voucher = Voucher(PAYER, PAYEE, cumulative)
    typed = voucher.typed(domain)
    message = typed | {"message": typed["message"] | {"cumulative": cumulative}}
    signed = Account.sign_message(encode_typed_data(full_message=message), KEY)

    assert bytes(signed.message_hash) == voucher.digest(domain)
    check(SignedVoucher(voucher, bytes(signed.signature)), domain)
    assert sign_voucher(voucher, domain, KEY).signature == bytes(signed.signature)


def test_a_wallet_signs_a_claim_with_a_fee_alike():
    """The terms of a claim that somebody else sends have a wallet's digest too."""
    terms = ClaimTo(PAYER, 5_000, "0x" + "d1" * 20, 40, "0x" + "e2" * 20, 1_800_000_000)
    domain = payout_domain(10, "0x" + "c0" * 20)
    fields = [part.split(" ") for part in CLAIM_TO_TYPE.partition("(")[2][:-1].split(",")]
    names = ("account", "cumulative", "to", "fee", "relayer", "deadline")
    values = (PAYER, terms.cumulative, terms.to, terms.fee, terms.relayer, terms.deadline_s)
    full = {
        "types": {
            "EIP712Domain": Voucher(PAYER, PAYEE, 1).typed(domain)["types"]["EIP712Domain"],
            "ClaimTo": [{"type": kind, "name": name} for kind, name in fields],
        },
        "primaryType": "ClaimTo",
        "domain": {"name": "headwater payout", "version": "1", "chainId": 10, "verifyingContract": domain.contract},
        "message": dict(zip(names, values, strict=True)),
    }
    signed = Account.sign_message(encode_typed_data(full_message=full), KEY)

    assert sign_claim_to(terms, domain, KEY) == bytes(signed.signature)
    with pytest.raises(RefusedError) as refused:
        check_claim_to(replace(terms, fee=41), bytes(signed.signature), domain)
    assert refused.value.code == "claim_to_not_signed"


@pytest.mark.parametrize(
    "change",
    [{"cumulative": 701}, {"payee": "0x" + "cd" * 20}, {"payer": "0x" + "cd" * 20}],
    ids=lambda c: next(iter(c)),
)
def test_a_changed_voucher_is_refused(change):
    """Amount, payee and payer are what was signed."""
    signed = sign_voucher(Voucher(PAYER, PAYEE, 700), DOMAIN, KEY)

    with pytest.raises(RefusedError) as refused:
        check(replace(signed, voucher=replace(signed.voucher, **change)), DOMAIN)
    assert refused.value.code == "voucher_not_signed"


@pytest.mark.parametrize("elsewhere", [credit_domain(10, DOMAIN.contract), credit_domain(8453, PAYEE)])
def test_a_voucher_counts_in_one_place(elsewhere):
    """Signed for one contract on one chain it is refused for any other."""
    with pytest.raises(RefusedError):
        check(sign_voucher(Voucher(PAYER, PAYEE, 700), DOMAIN, KEY), elsewhere)


def test_malformed_signatures_are_refused():
    """Cut, of another form, in the upper half, or of no key at all."""
    good = sign_voucher(Voucher(PAYER, PAYEE, 700), DOMAIN, KEY).signature
    digest = Voucher(PAYER, PAYEE, 700).digest(DOMAIN)
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    upper = good[:32] + (order - int.from_bytes(good[32:64], "big")).to_bytes(32, "big") + bytes([55 - good[64]])

    for bad in (good[:64], good[:64] + b"\x00", upper, bytes(64) + b"\x1b", b"\xff" * 32 + good[32:]):
        with pytest.raises(InvalidError) as refused:
            signer_of(digest, bad)
        assert refused.value.code == "signature_invalid"


def test_a_voucher_survives_json_and_nothing_else_is_one():
    """What is written is read back; another schema, a missing field or a number out of range is refused."""
    signed = sign_voucher(Voucher(PAYER, PAYEE, 2**63), DOMAIN, KEY)
    written = signed.as_json()

    assert SignedVoucher.from_json(written) == signed
    for bad in (
        {**written, "schema": "x"},
        {name: value for name, value in written.items() if name != "payee"},
        {**written, "cumulative_token_units": "0"},
        {**written, "signature": "0x00"},
    ):
        with pytest.raises(InvalidError):
            SignedVoucher.from_json(bad)
    with pytest.raises(RefusedError):
        sign_voucher(Voucher(PAYEE, PAYER, 1), DOMAIN, KEY)
