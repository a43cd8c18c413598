"""Tokens that block, lie, call back or take more than they should."""

from __future__ import annotations

import pytest

from headwater.chain import RevertedError
from headwater.chain.client import words

AMOUNTS = {i: (i + 1) * 1_000 for i in range(8)}


def address(index: int) -> str:
    """The address of the usual payee with this index."""
    return f"0x{0xBEEF << 64 | index + 1:040x}"


def reason(call) -> str:
    """The contract's word when `call` is refused."""
    with pytest.raises(RevertedError) as refused:
        call()
    return refused.value.reason


@pytest.fixture
def paying(hostile):
    """A vault in the misbehaving token with an active first epoch, the token and the tree."""
    vault, token = hostile()
    vault.chain.fund(1_000_000)
    tree = vault.tree(1, AMOUNTS)
    vault.chain.post(1, tree.root, tree.total, b"\7" * 32)
    return vault, token, tree


@pytest.mark.parametrize("how", ["block_", "deny", "burn_gas"])
def test_a_payee_that_cannot_receive_stays_due_and_blocks_nobody(paying, how):
    """A payee whose transfer reverts, returns false or burns its gas is skipped, and paid once it works."""
    vault, token, tree = paying
    for index in (2, 7):
        vault.send(token.functions[how](_sum(address(index)), True))
    paid = vault.chain.push(1, tree.prove_range(0, 8))

    assert (paid.amount, paid.payees) == (25_000, 6)
    assert paid.skipped == ((2, "transfer_failed"), (7, "transfer_failed"))
    assert [vault.chain.paid(i) for i in range(8)] == [0 if i in (2, 7) else AMOUNTS[i] for i in range(8)]
    assert vault.chain.index_of(address(2)) is None
    assert reason(lambda: vault.chain.claim(1, tree.prove(2))) == "Payout: transfer failed"
    for index in (2, 7):
        vault.send(token.functions[how](_sum(address(index)), False))
    assert vault.chain.push(1, tree.prove_range(0, 8)).amount == 11_000
    assert vault.chain.paid(7) == 8_000


def test_a_failure_does_not_forget_what_was_paid_before(paying):
    """A payee whose second payment fails keeps its first one on the books, and its index."""
    vault, token, tree = paying
    vault.chain.push(1, tree.prove_range(0, 8))
    second = vault.tree(2, {i: a + 10 for i, a in AMOUNTS.items()})
    vault.chain.post(2, second.root, second.total, b"\7" * 32)
    vault.send(token.functions.block_(_sum(address(7)), True))
    paid = vault.chain.push(2, second.prove_range(0, 8))

    assert (paid.amount, paid.skipped) == (70, ((7, "transfer_failed"),))
    assert vault.chain.paid(7) == AMOUNTS[7]
    assert vault.chain.index_of(address(7)) == 7


def test_a_token_that_returns_nothing_is_understood(paying):
    """An empty answer counts as success, as older tokens mean it."""
    vault, token, tree = paying
    vault.send(token.functions.set_silent(True))

    assert vault.chain.claim(1, tree.prove(0)).amount == 1_000
    assert vault.chain.push(1, tree.prove_range(0, 8)).amount == 35_000


@pytest.mark.parametrize("mode", [1, 2], ids=["claim", "deposit"])
def test_a_token_that_calls_back_gets_nowhere(paying, mode):
    """A claim or deposit from inside a payment is refused, and the payment goes through once."""
    vault, token, tree = paying
    proof = tree.prove(3)
    vault.send(token.functions.attack(mode, vault.chain.manifest.payout, 3, _sum(address(3)), 4_000, words(proof.path)))

    assert vault.chain.push(1, tree.prove_range(0, 8)).amount == 36_000
    assert vault.chain._sender.read(token.functions.reentered(), "reading") is False
    assert vault.chain._sender.read(token.functions.mode(), "reading") == 0
    assert vault.chain.balance(address(3)) == 4_000


def test_books_cannot_be_read_in_the_middle_of_a_payment(paying):
    """Another contract that asks during a payment gets no answer rather than a wrong one."""
    vault, token, tree = paying
    vault.send(token.functions.attack(3, vault.chain.manifest.payout, 3, _sum(address(3)), 0, []))
    vault.chain.claim(1, tree.prove(3))

    assert vault.chain._sender.read(token.functions.reentered(), "reading") is False


def test_a_token_that_takes_more_than_it_gives_is_stopped_at_the_reserve(paying):
    """Whatever the token does, the vault keeps what no root has promised."""
    vault, token, tree = paying
    vault.send(token.functions.set_doubled(True))
    vault.chain.push(1, tree.prove_range(0, 4))

    assert reason(lambda: vault.chain.push(1, tree.prove_range(0, 8))) == "Payout: above what is promised"
    assert vault.chain.status().held >= 1_000_000 - tree.total


def test_a_token_that_takes_a_fee_is_refused_at_the_deposit(hostile):
    """What arrives must be what was sent, or the deposit does not count."""
    vault, token = hostile()
    vault.send(token.functions.set_fee(1))

    assert reason(lambda: vault.chain.fund(1_000)) == "Money: token takes a fee"
    assert vault.chain.status().funded == 0


def test_a_token_with_more_decimals_is_paid_in_millionths(hostile):
    """Amounts are millionths of a token with 18 decimals; its own units follow exactly."""
    vault, token = hostile(decimals=18)
    vault.send(token.functions.mint(vault.node.signers[0].address, 10**24))
    vault.chain.fund(1_000_000)
    tree = vault.tree(1, AMOUNTS)
    vault.chain.post(1, tree.root, tree.total, b"\7" * 32)
    vault.chain.push(1, tree.prove_range(0, 4))
    vault.chain.claim(1, tree.prove(7))

    assert vault.chain.manifest.token_unit == 10**12
    assert token.functions.balanceOf(_sum(address(7))).call() == 8_000 * 10**12
    assert token.functions.balanceOf(_sum(address(2))).call() == 3_000 * 10**12
    assert vault.chain.balance(address(7)) == 8_000
    assert (vault.chain.status().held, vault.chain.status().paid) == (1_000_000 - 18_000, 18_000)


@pytest.mark.parametrize("decimals", [0, 5, 19])
def test_a_token_with_other_decimals_is_refused(hostile, decimals):
    """Fewer decimals than amounts have, or more than any token in use, make no deployment."""
    assert reason(lambda: hostile(decimals=decimals)) == "Money: token must have 6 to 18 decimals"


def test_a_token_that_is_no_contract_is_refused(vault):
    """A mistyped token address makes no deployment."""
    chain = vault.node.chain(0)
    guardian = vault.node.signers[1].address
    word = reason(lambda: chain.deploy(guardian=guardian, cap=1, delay_s=0, token=address(1)))

    assert word == "Money: token is no contract"


def _sum(text: str) -> str:
    from headwater.settlement import format_address, parse_address

    return format_address(parse_address(text))
