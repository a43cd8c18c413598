"""Vouchers instead of an API key: on the embedded chain, from the deposit to the closing."""

from __future__ import annotations

import json
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headwater.chain import Chain, Credit, EmbeddedChain, derived_signer
from headwater.cli.credit import close_vouchers
from headwater.cli.credit_closing import Closing
from headwater.core.errors import HeadwaterError
from headwater.core.keccak import keccak256
from headwater.gateway import Gateway, create_app, serving
from headwater.gateway.credit_chain import reader
from headwater.gateway.vouchers import FRESH_S, Deposited, Vouchers, voucher_header
from headwater.settlement.voucher import SignedVoucher, Voucher, credit_domain, sign_voucher
from headwater.store.database import Database
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.voucher_store import VoucherStore
from toy.home import ToyHome, open_home
from toy.upstream import Upstream, upstream

SEED = b"\x11" * 32
PAYEE = "0x" + "a1" * 20
PAYER = derived_signer(SEED, 4).address.lower()
KEY = keccak256(b"headwater.embedded.account" + (4).to_bytes(4, "big") + SEED)
DOMAIN = credit_domain(8453, "0x" + "c0" * 20)
DELAY_S = 3_600
CALL = 1_000  # token units of a call to `fine`


def signed(cumulative: int, domain: Any = DOMAIN, payee: str = PAYEE) -> SignedVoucher:
    """A voucher of the payer."""
    return sign_voucher(Voucher(PAYER, payee, cumulative), domain, KEY)


def store(toy: ToyHome, domain: Any = DOMAIN) -> VoucherStore:
    """The vouchers of a home."""
    return VoucherStore(toy.db, toy.ledger, toy.keys, domain=domain, asset=toy.currency, unit_nano=1_000)


def code(call: Any) -> str:
    """Why a call is refused."""
    with pytest.raises(HeadwaterError) as caught:
        call()
    return caught.value.code


# Without a server


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[ToyHome]:
    """A home."""
    with open_home(tmp_path / "home") as home:
        yield home


def test_a_voucher_counts_once_and_only_its_rise_is_credit(toy: ToyHome):
    """Replayed and older ones are refused, and the payer's account holds exactly the newest."""
    vouchers = Vouchers(store(toy), PAYEE, lambda _: Deposited(0, 10_000))
    key = vouchers.take(voucher_header(signed(300)).encode())
    assert code(lambda: vouchers.take(voucher_header(signed(300)).encode())) == "voucher_replayed"
    assert code(lambda: vouchers.take(voucher_header(signed(299)).encode())) == "voucher_replayed"
    assert vouchers.take(voucher_header(signed(450)).encode()) == key

    assert toy.ledger.available(key.account, toy.currency) == 450_000
    assert [one.voucher.cumulative for one in store(toy).waiting()] == [450]
    assert toy.calls.check() == ()


def test_what_was_paid_on_the_chain_before_is_not_credit_again(toy: ToyHome):
    """A gateway with empty books does not take an old voucher for new money."""
    vouchers = Vouchers(store(toy), PAYEE, lambda _: Deposited(closed=300, covers=700))
    assert code(lambda: vouchers.take(voucher_header(signed(300)).encode())) == "voucher_replayed"
    key = vouchers.take(voucher_header(signed(400)).encode())
    assert toy.ledger.available(key.account, toy.currency) == 100_000
    assert code(lambda: vouchers.take(voucher_header(signed(1_001)).encode())) == "voucher_not_covered"


def test_forged_vouchers_are_refused_before_the_chain_is_read(toy: ToyHome):
    """Another amount, payer, chain or contract than was signed, another payee, and anything that is no voucher."""

    def no_chain(_: str) -> Deposited:
        raise AssertionError("the chain was read")

    vouchers = Vouchers(store(toy), PAYEE, no_chain)
    good = signed(100)
    for forged, why in (
        (replace(good, voucher=Voucher(PAYER, PAYEE, 101)), "voucher_not_signed"),
        (replace(good, voucher=Voucher("0x" + "b2" * 20, PAYEE, 100)), "voucher_not_signed"),
        (signed(100, credit_domain(1, DOMAIN.contract)), "voucher_not_signed"),
        (signed(100, credit_domain(8453, "0x" + "c1" * 20)), "voucher_not_signed"),
        (signed(100, payee="0x" + "b2" * 20), "voucher_other_payee"),
        (replace(good, signature=bytes(64) + b"\x1b"), "signature_invalid"),
    ):
        assert code(lambda one=forged: vouchers.take(voucher_header(one).encode())) == why
    for raw in (b"", b"%%%", b"e30=", b"W10=", b"x" * 5_000, b"bnVsbA=="):
        assert code(lambda one=raw: vouchers.take(one)) == "voucher_invalid"
    assert toy.keys.list() == ()


def test_the_chain_is_read_again_only_after_a_while(toy: ToyHome):
    """A payer that asks its money back is believed until then, and not after."""
    now_s, reads = [0.0], []

    def read(payer: str) -> Deposited:
        reads.append(payer)
        return Deposited(0, 1_000 if len(reads) == 1 else 0)

    vouchers = Vouchers(store(toy), PAYEE, read, now_s=lambda: now_s[0])
    for cumulative in (10, 20):
        vouchers.take(voucher_header(signed(cumulative)).encode())
    assert len(reads) == 1
    now_s[0] = FRESH_S
    assert code(lambda: vouchers.take(voucher_header(signed(30)).encode())) == "voucher_not_covered"
    assert len(reads) == 2


@pytest.mark.both_engines
def test_one_voucher_shown_to_several_processes_is_taken_by_one(tmp_path: Path):
    """The mark is in the books: connections of their own to one file, all at once."""
    with open_home(tmp_path / "home") as toy:
        begin = threading.Barrier(4)

        def worker(_: int) -> int:
            with Database(toy.db.path) as db:
                keys, ledger = KeyStore(db), Ledger(db)
                own = VoucherStore(db, ledger, keys, domain=DOMAIN, asset=toy.currency, unit_nano=1_000)
                vouchers = Vouchers(own, PAYEE, lambda _: Deposited(0, 10**6))
                begin.wait()
                taken = 0
                for cumulative in range(10, 210, 10):
                    try:
                        vouchers.take(voucher_header(signed(cumulative)).encode())
                    except HeadwaterError as error:
                        assert error.code == "voucher_replayed"  # noqa: PT017  # either is right, nothing else is
                    else:
                        taken += 1
                return taken

        with ThreadPoolExecutor(4) as pool:
            assert 1 <= sum(pool.map(worker, range(4))) <= 20
        (key,) = toy.keys.list()
        assert toy.ledger.available(key.account, toy.currency) == 200_000
        assert toy.calls.check() == ()


def test_a_voucher_is_checked_and_taken_in_three_milliseconds_of_the_processor(toy: ToyHome):
    """Signature, mark and deposit with its commit; CPU of the process, median of fifty."""
    vouchers = Vouchers(store(toy), PAYEE, lambda _: Deposited(0, 10**6))
    headers = [voucher_header(signed(n)).encode() for n in range(1, 52)]
    costs = []
    for header in headers:
        began = time.process_time()
        vouchers.take(header)
        costs.append(time.process_time() - began)
    assert statistics.median(costs) < 0.003


# Over HTTP, with a chain


@pytest.fixture(scope="module")
def credit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Credit]:
    """A Credit contract on the embedded chain, with a million token units of the payer."""
    with EmbeddedChain(seed=SEED, clock_ns=lambda: 1_700_000_000 * 10**9) as embedded:
        chain = Chain(embedded.provider(), derived_signer(SEED, 0), poll_s=0.01)
        chain.deploy(guardian=derived_signer(SEED, 1).address, cap=10**8, delay_s=60)
        chain.mint(derived_signer(SEED, 0).address, 10**7)
        made = Credit.deploy(chain, delay_s=DELAY_S)
        made.deposit(PAYER, 1_000_000)
        made.payer_chain = chain.acting_as(derived_signer(SEED, 4))  # type: ignore[attr-defined]
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    """An upstream."""
    with upstream() as running:
        yield running


def post(url: str, header: str, model: str = "fine") -> tuple[int, Any]:
    """A call paid by a voucher: status, and the answer or the code of the refusal."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}]}).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"Payment-Voucher": header})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["code"]


def test_a_payer_deposits_pays_by_vouchers_and_the_gateway_closes_them(
    credit: Credit, server: Upstream, tmp_path: Path
):
    """No key, no transaction per call: three calls, one closing, and what was asked back pays no voucher."""
    config = f"""
        [upstream.real]
        base_url = "{server.url}"
        [model.fine]
        targets = [{{ upstream = "real", model = "fine" }}]
        request_price = "0.001"
    """
    with open_home(tmp_path / "home") as toy:
        vouchers = store(toy, credit.domain)
        now_s = [0.0]
        taking = Vouchers(vouchers, PAYEE, reader(credit, PAYEE), now_s=lambda: now_s[0])
        app: Gateway = create_app(toy.flow, toy.keys, relays=toy.relays(config), vouchers=taking)
        with serving(app) as url:

            def call(cumulative: int, model: str = "fine") -> tuple[int, Any]:
                return post(url, voucher_header(signed(cumulative, credit.domain)), model)

            assert call(CALL - 1) == (402, "insufficient_credit")  # what it rose by stays for the next
            assert call(CALL)[0] == 200
            assert call(CALL) == (409, "voucher_replayed")
            assert call(3 * CALL)[0] == 200  # twice what it costs: the next needs to rise by the least
            status, answer = call(3 * CALL + 1)
            assert (status, answer["headwater"]["price"]) == (200, "0.001000000")
            assert call(3 * CALL + 2) == (402, "insufficient_credit")
            assert call(1_000_001) == (402, "voucher_not_covered")
            assert call(600 * CALL, "toy")[0] == 200  # a model of our own takes them too

            rows = close_vouchers(vouchers, credit, PAYEE)
            assert [(row["token_units"], row["payers"], row["skipped"]) for row in rows] == [(str(600 * CALL), 1, [])]
            assert credit.closed(PAYER, PAYEE) == 600 * CALL
            assert close_vouchers(vouchers, credit, PAYEE) == []

            credit.acting_as(credit.payer_chain).ask_back(350_000)  # type: ignore[attr-defined]
            now_s[0] += FRESH_S
            assert call(600 * CALL + 50_001) == (402, "voucher_not_covered")
            assert call(600 * CALL + 50_000)[0] == 200
            assert [row["token_units"] for row in close_vouchers(vouchers, credit, PAYEE)] == ["50000"]
        (key,) = toy.keys.list()
        assert toy.keys.get(key.key_id).label == PAYER
        assert toy.calls.check() == ()


def test_without_a_credit_contract_the_header_is_no_payment(server: Upstream, tmp_path: Path):
    """A gateway that takes no vouchers asks for a key."""
    with open_home(tmp_path / "home") as toy, serving(create_app(toy.flow, toy.keys)) as url:
        assert post(url, voucher_header(signed(1)), "toy") == (401, "invalid_api_key")


def test_vouchers_close_by_themselves_before_a_withdrawal_falls_due(credit: Credit, toy: ToyHome):
    """Nobody asks: nothing is closed. A payer asks: every voucher that waits is closed in one transaction, once."""
    payee = "0x" + "a9" * 20
    signers = (derived_signer(SEED, 4), derived_signer(SEED, 5))
    keys = [keccak256(b"headwater.embedded.account" + n.to_bytes(4, "big") + SEED) for n in (4, 5)]
    vouchers = store(toy, credit.domain)
    taking, closing = Vouchers(vouchers, payee, reader(credit, payee)), Closing(vouchers, credit, payee)
    assert closing.step() == []
    for signer, key in zip(signers, keys, strict=True):
        credit.deposit(signer.address, 5_000)
        one = sign_voucher(Voucher(signer.address.lower(), payee, 700), credit.domain, key)
        taking.take(voucher_header(one).encode())
    assert closing.step() == []

    second = credit.acting_as(credit.payer_chain.acting_as(signers[1]))  # type: ignore[attr-defined]
    second.ask_back(5_000)
    (row,) = closing.step()
    assert (row["token_units"], row["payers"]) == ("1400", 2)
    assert [credit.closed(signer.address, payee) for signer in signers] == [700, 700]
    assert closing.step() == []
    second.ask_back(0)


def test_a_withdrawal_asked_for_while_nobody_served_is_seen_at_the_start(credit: Credit, toy: ToyHome):
    """The first look reads the accounts of whoever has vouchers waiting."""
    payee = "0x" + "aa" * 20
    credit.deposit(PAYER, 5_000)
    vouchers = store(toy, credit.domain)
    taking = Vouchers(vouchers, payee, reader(credit, payee))
    taking.take(voucher_header(signed(300, credit.domain, payee)).encode())
    mine = credit.acting_as(credit.payer_chain)  # type: ignore[attr-defined]
    mine.ask_back(1_000)
    assert [row["token_units"] for row in Closing(vouchers, credit, payee).step()] == ["300"]
    mine.ask_back(0)


def test_a_voucher_payer_reads_its_own_receipts_and_no_others(credit: Credit, server: Upstream, tmp_path: Path):
    """The newest voucher that was taken opens them and is not spent; older, forged and unspent ones open nothing."""
    config = f"""
        [upstream.real]
        base_url = "{server.url}"
        [model.fine]
        targets = [{{ upstream = "real", model = "fine" }}]
        request_price = "0.001"
    """
    payee = "0x" + "ab" * 20
    credit.deposit(PAYER, 100 * CALL)
    with open_home(tmp_path / "home") as toy:
        taking = Vouchers(store(toy, credit.domain), payee, reader(credit, payee))
        relays = toy.relays(config)
        with serving(create_app(toy.flow, toy.keys, relays=relays, vouchers=taking)) as url:

            def read(call: str, cumulative: int, **change: Any) -> int:
                shown = voucher_header(replace(signed(cumulative, credit.domain, payee), **change))
                path = f"/v1/receipts/{call}" if call.startswith("call_") else f"/v1/receipts{call}"
                request = urllib.request.Request(url + path, headers={"Payment-Voucher": shown})
                try:
                    with urllib.request.urlopen(request, timeout=20) as response:
                        assert json.load(response)["call"] == call
                        return int(response.status)
                except urllib.error.HTTPError as error:
                    return error.code

            calls = []
            for number in (1, 2):
                status, answer = post(url, voucher_header(signed(number * CALL, credit.domain, payee)))
                assert status == 200
                calls.append(answer["headwater"]["receipt"])
            secret, _ = toy.key()
            body = json.dumps({"model": "fine", "messages": [{"role": "user", "content": "x"}]}).encode()
            asked = urllib.request.Request(url + "/v1/chat/completions", body, {"Authorization": f"Bearer {secret}"})
            with urllib.request.urlopen(asked, timeout=20) as response:
                other = json.load(response)["headwater"]["receipt"]
            relays.meter.settle_books()
            assert [read(call, 2 * CALL) for call in (*calls, *calls)] == [200] * 4  # showing it does not spend it
            assert [read(calls[0], cumulative) for cumulative in (CALL, 3 * CALL)] == [401, 401]
            assert read(calls[0], 2 * CALL, signature=signed(CALL, credit.domain, payee).signature) == 401
            assert read(other, 2 * CALL) == 404
            assert read("", 2 * CALL) == read("?limit=1", 2 * CALL) == 401  # a voucher is published, a list is not
        assert toy.calls.check() == ()


def test_vouchers_that_race_for_the_last_of_a_deposit_are_not_all_taken(toy: ToyHome):
    """Shown at once: credit never exceeds what covers it, and the same voucher counts once."""
    vouchers = Vouchers(store(toy), PAYEE, lambda _: Deposited(0, 1_000))
    begin = threading.Barrier(4)

    def show(cumulative: int) -> str:
        begin.wait()
        try:
            vouchers.take(voucher_header(signed(cumulative)).encode())
        except HeadwaterError as error:
            return error.code
        return "taken"

    with ThreadPoolExecutor(4) as pool:
        said = sorted(pool.map(show, (1_000, 1_000, 1_001, 2_000)))
    assert said == ["taken", "voucher_not_covered", "voucher_not_covered", "voucher_replayed"]
    (key,) = toy.keys.list()
    assert toy.ledger.available(key.account, toy.currency) == 1_000_000
