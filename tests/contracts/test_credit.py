"""Vouchers on a chain: what a payer signed is paid once, from what it put in, and never more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwater.chain import Credit, RevertedError, derived_signer
from headwater.core.errors import InvalidError
from headwater.core.keccak import keccak256
from headwater.settlement.voucher import SignedVoucher, Voucher, credit_domain, sign_voucher

SEED = b"\x11" * 32
PAYEE = "0x" + "a1" * 20
DELAY_S = 3_600


def reason(call) -> str:
    """The contract's word when `call` is refused."""
    with pytest.raises(RevertedError) as refused:
        call()
    return refused.value.reason


def key(number: int) -> bytes:
    """The key of an account of the test node."""
    return keccak256(b"headwater.embedded.account" + number.to_bytes(4, "big") + SEED)


def payer(number: int) -> str:
    """Its address."""
    return derived_signer(SEED, number).address


@pytest.fixture
def credit(vault) -> Credit:
    """A Credit contract with 10,000 token units of accounts 4 and 5."""
    made = Credit.deploy(vault.node.chain(0, vault.chain.manifest), delay_s=DELAY_S)
    for number in (4, 5):
        made.deposit(payer(number), 10_000)
    return made


def voucher(credit: Credit, number: int, cumulative: int, payee: str = PAYEE) -> SignedVoucher:
    """A voucher signed by an account of the test node."""
    return sign_voucher(Voucher(payer(number), payee, cumulative), credit.domain, key(number))


def test_many_vouchers_are_closed_in_one_transfer(vault, credit):
    """The payee gets what all payers signed, each account is charged its own, and nothing is paid twice."""
    vouchers = [voucher(credit, 4, 3_000), voucher(credit, 5, 500)]
    closed = credit.acting_as(vault.stranger).close(PAYEE, vouchers)

    assert (closed.amount, closed.skipped) == (3_500, ())
    assert dict(closed.paid) == {payer(4): 3_000, payer(5): 500}
    assert vault.chain.balance(PAYEE) == 3_500
    again = credit.close(PAYEE, vouchers)
    assert (again.amount, again.skipped) == (0, ((payer(4), "nothing_due"), (payer(5), "nothing_due")))
    assert credit.close(PAYEE, [voucher(credit, 4, 3_100), voucher(credit, 4, 2_000)]).amount == 100
    assert (credit.closed(payer(4), PAYEE), credit.account_of(payer(4)).balance) == (3_100, 6_900)


def test_a_bad_voucher_blocks_no_other(credit):
    """Somebody else's signature and an empty account are skipped; the rest is paid."""
    good = voucher(credit, 4, 700)
    forged = replace(voucher(credit, 5, 400), voucher=Voucher(payer(5), PAYEE, 9_000))
    closed = credit.close(PAYEE, [forged, voucher(credit, 6, 50), good])

    assert closed.amount == 700
    assert closed.skipped == ((payer(5), "not_signed"), (payer(6), "no_credit"))
    assert credit.account_of(payer(5)).balance == 10_000


@pytest.mark.parametrize("other", ["chain", "contract", "payee"])
def test_a_voucher_counts_in_one_place(credit, other):
    """Signed for another chain, contract or payee it is worth nothing here."""
    chain_id, contract, payee = credit.domain.chain_id, credit.address, PAYEE
    if other == "chain":
        chain_id += 1
    elif other == "contract":
        contract = "0x" + "c3" * 20
    else:
        payee = "0x" + "d4" * 20
    signed = sign_voucher(Voucher(payer(4), payee, 700), credit_domain(chain_id, contract), key(4))
    closed = credit.close(PAYEE, [replace(signed, voucher=Voucher(payer(4), PAYEE, 700))])

    assert closed.skipped == ((payer(4), "not_signed"),)


def test_the_upper_form_of_a_signature_is_refused(credit):
    """One voucher has one signature that counts."""
    signed = voucher(credit, 4, 700)
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    s = order - int.from_bytes(signed.signature[32:64], "big")
    upper = signed.signature[:32] + s.to_bytes(32, "big") + bytes([55 - signed.signature[64]])

    assert credit.close(PAYEE, [replace(signed, signature=upper)]).skipped == ((payer(4), "not_signed"),)


def test_a_voucher_above_the_balance_is_paid_as_far_as_it_goes(credit):
    """What the account lacks stays due and is paid after a deposit."""
    big = voucher(credit, 4, 12_000)

    assert credit.close(PAYEE, [big]).amount == 10_000
    assert credit.close(PAYEE, [big]).skipped == ((payer(4), "no_credit"),)
    credit.deposit(payer(4), 5_000)
    assert credit.close(PAYEE, [big]).amount == 2_000
    assert credit.account_of(payer(4)).balance == 3_000


def test_money_comes_back_after_the_delay_and_less_what_was_closed(vault, credit):
    """Payees have the delay to close what they hold; the payer gets the rest, once."""
    mine = credit.acting_as(vault.node.chain(4, vault.chain.manifest))
    assert reason(mine.take_back) == "Credit: nothing asked back"
    assert reason(lambda: mine.ask_back(10_001)) == "Credit: more than the balance"
    mine.ask_back(9_000)

    assert credit.account_of(payer(4)).covers == 1_000
    assert reason(mine.take_back) == "Credit: too early"
    assert credit.close(PAYEE, [voucher(credit, 4, 4_000)]).amount == 4_000
    vault.chain.jump(DELAY_S)
    before = vault.chain.balance(payer(4))
    mine.take_back()
    assert vault.chain.balance(payer(4)) - before == 6_000
    assert reason(mine.take_back) == "Credit: nothing asked back"
    assert credit.close(PAYEE, [voucher(credit, 4, 5_000)]).skipped == ((payer(4), "no_credit"),)


def test_asking_again_starts_the_delay_anew(vault, credit):
    """A withdrawal that was asked for long ago does not make a later one immediate."""
    mine = credit.acting_as(vault.node.chain(4, vault.chain.manifest))
    mine.ask_back(1)
    vault.chain.jump(DELAY_S)
    mine.ask_back(9_000)

    assert reason(mine.take_back) == "Credit: too early"


def test_limits_of_a_closing(vault, credit):
    """No vouchers, another payee's, and delays out of range are refused."""
    with pytest.raises(InvalidError):
        credit.close(PAYEE, [])
    with pytest.raises(InvalidError):
        credit.close(PAYEE, [voucher(credit, 4, 1, "0x" + "d4" * 20)])
    for delay in (59, 30 * 86_400 + 1):
        assert reason(lambda d=delay: Credit.deploy(vault.node.chain(0, vault.chain.manifest), delay_s=d)) == (
            "Credit: delay out of range"
        )
