"""Payment by x402 with the official client on the embedded chain: what is paid, once, and what is refused."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from eth_account import Account
from eth_utils.address import to_checksum_address

from headwater.chain import Chain, EmbeddedChain, derived_signer
from toy.paid import FUNDS, PAYER, World, client_of, signed_by, world

pytest.importorskip("x402")

SEED = b"\x19" * 32
CALL = 250_000  # token units of a call to `fixed`


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    """The embedded chain, with tokens of the payer."""
    with EmbeddedChain(seed=SEED) as embedded:
        made = Chain(embedded.provider(), derived_signer(SEED, 0), poll_s=0.01)
        made.deploy(guardian=derived_signer(SEED, 1).address, cap=10**8, delay_s=60)
        made.mint(PAYER.address, FUNDS)
        yield made


@pytest.fixture(scope="module")
def here(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One gateway for all tests of this file."""
    with world(tmp_path_factory.mktemp("home"), chain) as running:
        yield running


def opened(headers: dict[str, str]) -> dict[str, Any]:
    """The payment in the client's headers."""
    found: dict[str, Any] = json.loads(base64.b64decode(headers["PAYMENT-SIGNATURE"]))
    return found


def closed(payment: dict[str, Any]) -> dict[str, str]:
    """A payment as a header."""
    return {"PAYMENT-SIGNATURE": base64.b64encode(json.dumps(payment).encode()).decode()}


def code(response: Any) -> tuple[int, str]:
    """Status and code of a refusal."""
    found = response.json()
    return response.status_code, found["error"]["code"] if "error" in found else found["code"]


def test_a_call_without_a_key_is_paid_by_a_signed_transfer(here: World):
    """402, the official client signs, the answer comes with the settlement, and the operator has the price, no more."""
    before = here.paid()
    refused = here.ask()
    assert code(refused) == (402, "payment_required")
    answer = here.ask(headers=here.sign(refused))
    assert answer.status_code == 200, answer.text
    assert answer.json()["headwater"]["price"] == "0.250000000"
    settled = json.loads(base64.b64decode(answer.headers["PAYMENT-RESPONSE"]))
    assert settled["success"]
    assert settled["payer"].lower() == PAYER.address.lower()
    assert here.paid() - before == CALL
    here.clean()


def test_what_is_asked_for_names_the_address_that_others_reach(here: World):
    """Behind a proxy that ends TLS, which is not the one this process was asked by."""
    scope = {"type": "http", "scheme": "http", "path": "/v1/embeddings", "headers": [(b"host", b"10.0.0.7:8484")]}
    before = here.payments
    behind = type(before)(before.store, before.chain, time.time_ns, "https://ai.example/")

    assert before.url_of(scope) == "http://10.0.0.7:8484/v1/embeddings"
    assert behind.url_of(scope) == "https://ai.example/v1/embeddings"
    told = dict(behind.required(behind.url_of(scope), []).headers)[b"payment-required"]
    assert json.loads(base64.b64decode(told))["resource"]["url"] == "https://ai.example/v1/embeddings"


def test_the_same_payment_gives_the_same_answer_and_pays_once(here: World):
    """A retry with the payment and the body is a replay; with another body it is refused."""
    signed = here.sign(here.ask())
    before = here.paid()
    first, again = here.ask(headers=signed), here.ask(headers=signed)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.content == first.content
    assert code(here.ask(headers=signed, max_tokens=7)) == (409, "idempotency_conflict")
    assert here.paid() - before == CALL
    here.clean()


@pytest.mark.parametrize("bodies", [1, 3], ids=["one request", "several requests"])
def test_the_same_payment_at_the_same_instant_pays_once_for_one_answer(here: World, bodies: int):
    """Shown on many connections at once, for one request or for several: one of them is answered and paid for."""
    signed = here.sign(here.ask())
    before = here.paid()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda number: here.ask(headers=signed, max_tokens=5 + number % bodies), range(6)))
    answers = [one for one in found if one.status_code == 200]
    assert len({one.content for one in answers}) == 1
    assert sum("Idempotent-Replayed" not in one.headers for one in answers) == 1
    refused = {code(one) for one in found if one.status_code != 200}
    assert refused <= {(429, "rate_limit_exceeded"), (409, "call_in_progress"), (409, "idempotency_conflict")}
    assert here.paid() - before == CALL
    here.clean()


def test_a_payment_identifier_makes_a_new_signature_free(here: World):
    """The payer's own name for what it pays: another transfer under it is not taken."""
    before = here.paid()
    answers = []
    for _ in range(2):
        payment = opened(here.sign(here.ask()))
        payment["extensions"] = {"payment-identifier": {"info": {"required": False, "id": "order-4711-of-the-payer"}}}
        answers.append(here.ask(headers=closed(payment)))
    assert [one.status_code for one in answers] == [200, 200], answers[1].text
    assert answers[0].content == answers[1].content
    assert here.paid() - before == CALL
    here.clean()


def test_a_call_that_does_not_answer_costs_nothing(here: World):
    """The upstream refuses: nothing moved on the chain, no credit is left, and the payment can be used again."""
    signed = here.sign(here.ask("broken"))
    before = here.paid()
    assert here.ask("broken", headers=signed).status_code >= 400
    assert here.paid() == before
    here.clean()


def test_a_stream_is_paid_before_its_last_bytes(here: World):
    """All of it arrives, and when it has the chain has been paid."""
    refused = here.ask(stream=True)
    before = here.paid()
    answer = here.ask(headers=here.sign(refused), stream=True)
    assert answer.status_code == 200
    assert answer.text.rstrip().endswith("[DONE]")
    assert here.paid() - before == CALL
    here.clean()


def test_a_stream_whose_payment_fails_has_no_end(here: World, chain: Chain):
    """The payer spends its tokens while it is answered: the stream breaks off, and nothing is charged."""
    poor = Account.from_key(b"\x21" * 32)
    chain.mint(poor.address, CALL)
    client = client_of(poor, here.payments.chain.network)
    refused = here.ask(stream=True)
    signed = signed_by(client, refused)
    real = here.payments.chain.settle

    def late(*arguments: Any) -> Any:
        _spend(chain, poor)
        return real(*arguments)

    here.payments.chain.settle = late  # type: ignore[method-assign]
    try:
        answer = here.ask(headers=signed, stream=True)
    finally:
        here.payments.chain.settle = real  # type: ignore[method-assign]
    assert "payment_not_settled" in answer.text
    assert "[DONE]" not in answer.text
    here.clean()


def _spend(chain: Chain, owner: Any) -> None:
    """Have the wallet give its tokens away by a signed transfer."""
    now = int(time.time())
    message = {
        "from": owner.address,
        "to": to_checksum_address("0x" + "b2" * 20),
        "value": chain.balance(owner.address),
        "validAfter": 0,
        "validBefore": now + 600,
        "nonce": b"\x05" * 32,
    }
    domain = {
        "name": "Headwater test dollar",
        "version": "1",
        "chainId": chain.chain_id,
        "verifyingContract": chain.manifest.token,
    }
    kinds = [("from", "address"), ("to", "address"), ("value", "uint256"), ("validAfter", "uint256")]
    kinds += [("validBefore", "uint256"), ("nonce", "bytes32")]
    types = {"TransferWithAuthorization": [{"name": name, "type": kind} for name, kind in kinds]}
    signed = owner.sign_typed_data(domain, types, message)
    token = chain._token()
    parts = (signed.v, signed.r.to_bytes(32, "big"), signed.s.to_bytes(32, "big"))
    chain.sender.send(token.functions.transferWithAuthorization(*message.values(), *parts), "spending")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda p: p["payload"].update(signature="0x" + "11" * 64 + "1b"), "payment_refused"),
        (lambda p: p["payload"]["authorization"].update(value="1"), "payment_refused"),
        (lambda p: p["payload"]["authorization"].update(to="0x" + "b2" * 20), "payment_refused"),
        (lambda p: p["payload"]["authorization"].update({"from": "0x" + "b2" * 20}), "payment_refused"),
        (lambda p: p["payload"]["authorization"].update(validBefore=str(int(time.time()) - 1)), "payment_refused"),
        (lambda p: p["payload"]["authorization"].update(validAfter=str(int(time.time()) + 600)), "payment_refused"),
        (lambda p: p["accepted"].update(network="eip155:1"), "payment_refused"),
        (lambda p: p["accepted"].update(asset="0x" + "b2" * 20), "payment_refused"),
        (lambda p: p["accepted"].update(payTo="0x" + "b2" * 20), "payment_refused"),
        (lambda p: p["accepted"].update(amount="1"), "payment_refused"),
        (lambda p: p["accepted"].update(scheme="batch-settlement"), "payment_invalid"),
        (lambda p: p["payload"]["authorization"].update(nonce="0x12"), "payment_invalid"),
        (lambda p: p.update(x402Version=1), "payment_invalid"),
        (lambda p: p.pop("accepted"), "payment_invalid"),
    ],
)
def test_forged_expired_and_misdirected_payments_are_refused(here: World, change: Any, why: str):
    """Another signature, amount, recipient, payer, time, network or token than was asked for: nothing is answered."""
    asked, before = len(here.server.asked), here.paid()
    payment = opened(here.sign(here.ask()))
    change(payment)
    assert code(here.ask(headers=closed(payment)))[1] == why
    assert len(here.server.asked) == asked
    assert here.paid() == before
    here.clean()


def test_what_is_no_payment_is_refused(here: World):
    """Garbage, deep JSON and too much of it."""
    for raw in ("", "%%%", "e30=", "bnVsbA==", base64.b64encode(b"[" * 9_000).decode(), "x" * 20_000):
        response = here.ask(headers={"PAYMENT-SIGNATURE": raw})
        assert response.status_code in (400, 431), response.text


def test_too_little_money_on_the_chain_is_refused(here: World):
    """A good signature of an empty wallet."""
    poor = client_of(Account.from_key(b"\x22" * 32), here.payments.chain.network)
    refused = here.ask()
    signed = signed_by(poor, refused)
    assert code(here.ask(headers=signed)) == (402, "payment_refused")
    here.clean()


def test_metered_calls_need_the_contracts_for_it(here: World):
    """This chain has no Permit2: a metered model is told to be paid with a key, and says where to get one."""
    refused = here.ask("metered")
    assert code(refused) == (402, "payment_refused")
    assert "/v1/payments/x402" in refused.text
    assert here.top_up("amount=1").headers["PAYMENT-REQUIRED"]


def test_vectors_are_paid_exactly_rounded_up_to_the_tokens_unit(here: World):
    """Their price is known once the texts are; what rounding adds is the payer's credit; a retry pays nothing."""
    before, nano = here.paid(), 1_000 + 10 * len("one") + 10 * len("three")
    signed = here.sign(here.embed(["one", "three"]))
    first, again = here.embed(["one", "three"], signed), here.embed(["one", "three"], signed)

    assert [row["embedding"] for row in first.json()["data"]] == [[0.6, 0.8]] * 2
    assert again.json()["data"] == first.json()["data"]
    assert here.paid() - before == -(-nano // 1_000)
    assert json.loads(base64.b64decode(first.headers["PAYMENT-RESPONSE"]))["amount"] == str(-(-nano // 1_000))
    assert code(here.embed(["one", "another"], signed))[0] in (402, 409)
    assert here.paid() - before == -(-nano // 1_000)
    here.clean()


def test_vectors_that_are_not_given_are_not_paid(here: World):
    """An unknown model has no price; a bad request is refused before anything is asked of the chain."""
    before = here.paid()
    unknown = requests.post(here.url + "/v1/embeddings", json={"model": "nothing", "input": "x"}, timeout=30)
    bad = requests.post(here.url + "/v1/embeddings", json={"model": "toy-vectors", "input": []}, timeout=30)

    assert (code(unknown), code(bad)[0]) == ((404, "model_not_found"), 400)
    assert here.paid() == before
    here.clean()


def test_a_top_up_is_credit_once_and_gives_a_key(here: World):
    """Signed transfer in, key out; the same payment again books nothing, and the key answers metered calls."""
    before = here.paid()
    signed = here.sign(here.top_up("amount=5&secret=new"))
    first = here.top_up("amount=5&secret=new", signed)
    assert first.status_code == 200, first.text
    again = here.top_up("amount=5", signed)
    assert (again.status_code, again.json()["available"]) == (200, "5.000000000")
    assert here.paid() - before == 5_000_000
    answer = here.ask("metered", {"Authorization": "Bearer " + first.json()["secret"]}, max_tokens=5)
    assert answer.status_code == 200, answer.text
    here.clean()


def test_a_top_up_of_a_key_is_that_keys(here: World):
    """And the payment of one key is not another's, nor a call's."""
    secret, key = here.toy.key(units=0)
    other, _ = here.toy.key(units=0)
    mine = {"Authorization": f"Bearer {secret}"}
    signed = here.sign(here.top_up("amount=0.25", mine))
    assert here.top_up("amount=0.25", {**signed, **mine}).json()["available"] == "0.250000000"
    assert here.toy.ledger.available(key.account, here.toy.currency) == 250_000_000
    assert code(here.top_up("amount=0.25", {**signed, "Authorization": f"Bearer {other}"})) == (409, "payment_used")
    assert code(here.top_up("amount=0.25", signed)) == (409, "payment_used")
    assert code(here.ask(headers=signed)) == (409, "payment_used")
    here.clean()


def test_a_top_up_needs_an_amount_the_token_can_hold(here: World):
    """Nothing, less than nothing, and a fraction of the token's smallest unit."""
    for amount in ("0", "-1", "0.0000001", "x", "1e30"):
        assert here.top_up(f"amount={amount}").status_code == 400


def test_somebody_elses_transaction_with_our_authorization_counts(here: World):
    """The payer's signature is sent to the token by a stranger first: the money came, so the credit is given once."""
    signed = here.sign(here.top_up("amount=0.5&secret="))
    authorization, signature = opened(signed)["payload"]["authorization"], opened(signed)["payload"]["signature"]
    raw = bytes.fromhex(signature[2:])
    settle = here.payments.chain.settle

    def overtaken(*arguments: Any) -> Any:
        token = here.chain._token()
        fields = (authorization["from"], here.payments.chain.pay_to, int(authorization["value"]))
        times = (int(authorization["validAfter"]), int(authorization["validBefore"]))
        nonce = bytes.fromhex(authorization["nonce"][2:])
        call = token.functions.transferWithAuthorization(*fields, *times, nonce, raw[64], raw[:32], raw[32:64])
        here.chain.sender.send(call, "overtaking")
        return settle(*arguments)

    before = here.paid()
    here.payments.chain.settle = overtaken  # type: ignore[method-assign]
    try:
        response = here.top_up("amount=0.5", signed)
    finally:
        here.payments.chain.settle = settle  # type: ignore[method-assign]
    assert response.status_code == 200, response.text
    assert here.paid() - before == 500_000
    here.clean()


def test_a_settlement_whose_fate_is_not_known_is_gone_on_with(here: World):
    """The node is silent after the transaction: 503, and the same payment again finds that the chain has paid."""
    signed = here.sign(here.ask())
    settle, moved = here.payments.chain.settle, here.payments.chain.moved
    before = here.paid()

    def silent(*arguments: Any) -> Any:
        settle(*arguments)
        return None, "receipt_timeout", True

    here.payments.chain.settle, here.payments.chain.moved = silent, lambda *_: None  # type: ignore[method-assign]
    try:
        first = here.ask(headers=signed)
    finally:
        here.payments.chain.settle, here.payments.chain.moved = settle, moved  # type: ignore[method-assign]
    assert code(first) == (503, "payment_pending")
    assert here.ask(headers=signed).status_code == 200
    assert here.paid() - before == CALL
    here.clean()
