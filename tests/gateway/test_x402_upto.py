"""Metered calls paid by x402 `upto` on anvil: Permit2's own bytecode, and a double of the proxy in front of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.chain import Chain, KeySigner, derived_signer
from toy.paid import FUNDS, PAYER, World, client_of, signed_by, world
from toy.permit2 import PERMIT2, install_permit2, permit2_code

sys.path.insert(0, str(Path(__file__).parents[1] / "chain"))

from chain_nodes import anvil, ask

pytestmark = pytest.mark.anvil

SEED = b"\x1a" * 32
PRICE = 10_000  # token units of an answer token of `metered`


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway paid on anvil, and a payer who has approved Permit2 once."""
    code = permit2_code()
    with anvil(tmp_path_factory.mktemp("anvil")) as url:
        operator, payer = derived_signer(SEED, 0), KeySigner(bytes(PAYER.key))
        for address in (operator.address, payer.address):
            ask(url, "anvil_setBalance", address, hex(10**20))
        install_permit2(url, code)
        chain = Chain(url, operator, poll_s=0.01)
        chain.deploy(guardian=derived_signer(SEED, 1).address, cap=10**8, delay_s=60)
        chain.mint(payer.address, FUNDS)
        mine = chain.acting_as(payer)
        mine.sender.send(mine._token().functions.approve(PERMIT2, 2**250), "approving Permit2")
        with world(tmp_path_factory.mktemp("home"), chain) as running:
            yield running


def test_a_metered_call_pays_what_it_used_and_no_more(here: World):
    """The payer signs the ceiling, the chain takes the price, and the rest was never taken."""
    refused = here.ask("metered", max_tokens=50)
    signed = here.sign(refused)
    before = here.paid()
    answer = here.ask("metered", signed, max_tokens=50)
    assert answer.status_code == 200, answer.text
    used = answer.json()["usage"]["completion_tokens"]
    assert 0 < used < 50
    assert here.paid() - before == used * PRICE
    assert answer.headers["PAYMENT-RESPONSE"]
    again = here.ask("metered", signed, max_tokens=50)
    assert (again.status_code, again.content) == (200, answer.content)
    assert here.paid() - before == used * PRICE
    here.clean()


def test_a_metered_stream_is_settled_before_its_end(here: World):
    """As a whole answer is."""
    signed = here.sign(here.ask("metered", max_tokens=50, stream=True))
    before = here.paid()
    answer = here.ask("metered", signed, max_tokens=50, stream=True)
    assert answer.text.rstrip().endswith("[DONE]")
    assert here.paid() > before
    here.clean()


def test_the_model_in_process_is_paid_so_too(here: World):
    """Its price is known only afterwards as well."""
    signed = here.sign(here.ask("toy"))
    before = here.paid()
    answer = here.ask("toy", signed)
    assert answer.status_code == 200, answer.text
    assert here.paid() > before
    here.clean()


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_with_sources_is_paid_so_too(here: World, stream: bool):
    """The ceiling covers whatever is found; the chain takes what the answer cost, measuring it included."""
    more: dict[str, Any] = {"max_tokens": 50, "stream": stream, "headwater": {"retrieve": 2}}
    signed = here.sign(here.ask("metered", **more))
    before = here.paid()
    answer = here.ask("metered", signed, **more)
    assert answer.status_code == 200, answer.text
    assert "[DONE]" in answer.text or answer.json()["headwater"]["receipt"]
    assert 7 * PRICE <= here.paid() - before < 50 * PRICE
    again = here.ask("metered", signed, **more)
    assert again.status_code == 200
    assert here.paid() - before < 50 * PRICE
    here.clean()


def test_who_has_not_approved_permit2_or_has_no_money_is_refused(here: World):
    """Before anything is answered."""
    from eth_account import Account

    poor = client_of(Account.from_key(b"\x23" * 32), here.payments.chain.network)
    asked = len(here.server.asked)
    signed = signed_by(poor, here.ask("metered", max_tokens=50))
    refused = here.ask("metered", signed, max_tokens=50)
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "payment_refused")
    assert len(here.server.asked) == asked
    here.clean()


def test_a_ceiling_below_what_is_asked_is_refused(here: World):
    """Signed for a short answer, sent with a request for a long one."""
    signed = here.sign(here.ask("metered", max_tokens=5))
    refused = here.ask("metered", signed, max_tokens=50)
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "payment_refused")
    here.clean()


def test_a_fixed_price_is_paid_exactly_on_a_real_node_too(here: World):
    """`exact` on anvil: verified, settled, once."""
    signed = here.sign(here.ask("fixed"))
    before = here.paid()
    assert [here.ask("fixed", signed).status_code for _ in range(2)] == [200, 200]
    assert here.paid() - before == 250_000
    top = here.sign(here.top_up("amount=1"))
    assert [here.top_up("amount=1", top).status_code for _ in range(2)] == [200, 200]
    assert here.paid() - before == 1_250_000
    here.clean()
