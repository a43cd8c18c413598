"""Recipients, and claims that somebody else sends on a payee's terms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwater.chain import Payees, RevertedError, derived_signer
from headwater.chain.payees import RECIPIENT_DELAY_S
from headwater.core.keccak import keccak256
from headwater.settlement import Leaf, PayoutTree
from headwater.settlement.claim_to import ClaimTo, payout_domain, sign_claim_to

SEED = b"\x11" * 32
KEY = keccak256(b"headwater.embedded.account" + (4).to_bytes(4, "big") + SEED)
PAYEE = derived_signer(SEED, 4).address
OTHER, RELAYER = "0x" + "a1" * 20, "0x" + "b2" * 20


def reason(call) -> str:
    """The contract's word when `call` is refused."""
    with pytest.raises(RevertedError) as refused:
        call()
    return refused.value.reason


def post(vault, epoch: int, amount: int) -> PayoutTree:
    """An active root in which the payee with a key stands at index 2."""
    leaves = [Leaf(i, PAYEE if i == 2 else f"0x{i + 1:040x}", amount) for i in range(4)]
    tree = PayoutTree.build(leaves, vault.chain.domain(epoch))
    vault.post(tree)
    return tree


@pytest.fixture
def payee(vault) -> Payees:
    """The payee's own view."""
    return Payees(vault.node.chain(4, vault.chain.manifest))


@pytest.mark.parametrize("paid_before", [False, True])
@pytest.mark.parametrize("how", ["claim", "push"])
def test_a_recipient_is_paid_after_two_days(vault, payee, paid_before, how):
    """Until the change counts the account itself is paid; from then on the recipient, by claim and by push."""

    def pay(epoch: int, tree: PayoutTree) -> None:
        if how == "claim":
            vault.chain.claim(epoch, tree.prove(2))
        else:
            assert vault.chain.push(epoch, tree.prove_range(0, 4)).skipped == ()

    if paid_before:
        pay(1, post(vault, 1, 1_000))
    payee.set_recipient(OTHER)
    assert payee.recipient_of(PAYEE).now == PAYEE
    pay(2, post(vault, 2, 3_000))
    assert (vault.chain.balance(PAYEE), vault.chain.balance(OTHER)) == (3_000, 0)
    vault.chain.jump(RECIPIENT_DELAY_S)
    tree = post(vault, 3, 7_000)
    pay(3, tree)

    assert (vault.chain.balance(PAYEE), vault.chain.balance(OTHER)) == (3_000, 4_000)
    assert vault.chain.paid(2) == 7_000
    assert reason(lambda: vault.chain.claim(3, tree.prove(2))) == "Payout: nothing due"
    assert vault.chain.index_of(PAYEE) == 2


def test_a_second_change_waits_while_the_first_recipient_is_paid(vault, payee):
    """Naming another recipient starts the delay anew and changes nothing until it is over."""
    post(vault, 1, 1_000)
    payee.set_recipient(OTHER)
    vault.chain.jump(RECIPIENT_DELAY_S)
    payee.set_recipient(RELAYER)
    tree = post(vault, 2, 3_000)
    vault.chain.claim(2, tree.prove(2))

    assert vault.chain.balance(OTHER) == 3_000
    told = payee.recipient_of(PAYEE)
    assert (told.now.lower(), told.named.lower()) == (OTHER, RELAYER)
    vault.chain.jump(RECIPIENT_DELAY_S)
    assert payee.recipient_of(PAYEE).now.lower() == RELAYER


def test_an_account_with_a_recipient_is_compared_whole(vault, payee):
    """Its index pays nobody else, also not an account whose last bytes agree with the lane's tag."""
    tree = post(vault, 1, 1_000)
    vault.chain.claim(1, tree.prove(2))
    payee.set_recipient(OTHER)
    flipped = f"0x77{PAYEE[4:38].lower()}{int(PAYEE[38:], 16) ^ 0xFF:02x}"
    for other in ("0x77" + PAYEE[4:].lower(), flipped):
        leaves = [replace(leaf, address=other, amount=5_000) if leaf.index == 2 else leaf for leaf in tree.leaves]
        epoch = vault.chain.status().highest_epoch + 1
        forged = PayoutTree.build(leaves, vault.chain.domain(epoch))
        vault.post(forged)
        assert reason(lambda f=forged, e=epoch: vault.chain.claim(e, f.prove(2))) == (
            "Payout: index is another account's"
        )
        assert (2, "index_taken") in vault.chain.push(epoch, forged.prove_range(0, 4)).skipped


def test_nobody_and_the_vault_are_no_recipients(vault, payee):
    """Money sent there could never leave again."""
    for nobody in ("0x" + "00" * 20, vault.chain.manifest.payout):
        assert reason(lambda nobody=nobody: payee.set_recipient(nobody)) == "Payout: nobody to pay"


def terms(vault, **change) -> ClaimTo:
    """What the payee agrees to by default."""
    now = int(vault.node.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    usual = ClaimTo(PAYEE, 5_000, OTHER, 40, RELAYER, now + 86_400)
    return replace(usual, **change)


def test_a_relayer_sends_a_claim_for_its_visible_fee(vault):
    """The payee needs no gas: what is due goes where it signed, less the fee it signed."""
    tree = post(vault, 1, 5_000)
    agreed = terms(vault)
    domain = payout_domain(vault.chain.chain_id, vault.chain.manifest.payout)
    stranger = Payees(vault.stranger)
    signature = sign_claim_to(agreed, domain, KEY)
    paid = stranger.claim_to(1, tree.prove(2), agreed, signature)

    assert paid.amount == 5_000
    assert [vault.chain.balance(who) for who in (OTHER, RELAYER, PAYEE)] == [4_960, 40, 0]
    assert reason(lambda: stranger.claim_to(1, tree.prove(2), agreed, signature)) == "Payout: nothing due"
    later = post(vault, 2, 9_000)
    assert (
        reason(lambda: stranger.claim_to(2, later.prove(2), replace(agreed, cumulative=9_000), signature))
        == "Payout: not signed by the account"
    )


@pytest.mark.parametrize(
    "change",
    [{"to": RELAYER}, {"fee": 41}, {"relayer": OTHER}, {"deadline_s": 2**40}],
    ids=["to", "fee", "relayer", "deadline"],
)
def test_changed_terms_are_not_what_was_signed(vault, change):
    """Nobody who sends a claim can change where the money goes, the fee, its receiver or the deadline."""
    tree = post(vault, 1, 5_000)
    agreed = terms(vault)
    domain = payout_domain(vault.chain.chain_id, vault.chain.manifest.payout)
    signature = sign_claim_to(agreed, domain, KEY)
    call = Payees(vault.stranger).claim_to

    assert reason(lambda: call(1, tree.prove(2), replace(agreed, **change), signature)) == (
        "Payout: not signed by the account"
    )


def test_signatures_for_elsewhere_late_or_malleable_are_refused(vault):
    """Another chain, another contract, a deadline that is over, and the other form of a signature pay nobody."""
    tree = post(vault, 1, 5_000)
    agreed, payout = terms(vault), vault.chain.manifest.payout
    domain = payout_domain(vault.chain.chain_id, payout)
    good = sign_claim_to(agreed, domain, KEY)
    call = Payees(vault.stranger).claim_to

    for elsewhere in (payout_domain(1, payout), payout_domain(vault.chain.chain_id, OTHER)):
        forged = sign_claim_to(agreed, elsewhere, KEY)
        assert reason(lambda f=forged: call(1, tree.prove(2), agreed, f)) == "Payout: not signed by the account"
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    other_s = order - int.from_bytes(good[32:64], "big")
    malleable = good[:32] + other_s.to_bytes(32, "big") + bytes([55 - good[64]])
    assert reason(lambda: call(1, tree.prove(2), agreed, malleable)) == "Payout: signature is malleable"
    assert reason(lambda: call(1, tree.prove(2), agreed, good[:64])) == "Payout: signature is cut"
    vault.chain.jump(2 * 86_400)
    assert reason(lambda: call(1, tree.prove(2), agreed, good)) == "Payout: signature has expired"


def test_a_claim_sent_first_by_somebody_else_takes_nothing(vault):
    """Front-running with a plain claim pays the payee itself in full; only the relayer goes without its fee."""
    tree = post(vault, 1, 5_000)
    agreed = terms(vault)
    signature = sign_claim_to(agreed, payout_domain(vault.chain.chain_id, vault.chain.manifest.payout), KEY)
    vault.stranger.claim(1, tree.prove(2))

    assert reason(lambda: Payees(vault.stranger).claim_to(1, tree.prove(2), agreed, signature)) == "Payout: nothing due"
    assert vault.chain.balance(PAYEE) == 5_000


def test_a_stolen_key_does_not_pass_a_recipient_by(vault, payee):
    """An account with a recipient takes no signed claims: changing it takes two days."""
    payee.set_recipient(OTHER)
    tree = post(vault, 1, 5_000)
    agreed = terms(vault, to=RELAYER)
    signature = sign_claim_to(agreed, payout_domain(vault.chain.chain_id, vault.chain.manifest.payout), KEY)

    assert reason(lambda: Payees(vault.stranger).claim_to(1, tree.prove(2), agreed, signature)) == (
        "Payout: account has a recipient"
    )


def test_a_fee_above_what_is_due_is_refused(vault):
    """When a part was claimed in between, the fee may not eat the rest."""
    vault.chain.claim(1, post(vault, 1, 4_990).prove(2))
    tree = post(vault, 2, 5_000)
    agreed = terms(vault)
    signature = sign_claim_to(agreed, payout_domain(vault.chain.chain_id, vault.chain.manifest.payout), KEY)

    assert reason(lambda: Payees(vault.stranger).claim_to(2, tree.prove(2), agreed, signature)) == (
        "Payout: the fee takes everything"
    )
