"""Vouchers at several workers, over a real node: the chain is read by each, a voucher counts once for all."""

from __future__ import annotations

import http.client
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "chain"))
from chain_nodes import anvil, ask

from headwater.chain import Chain, Credit, signer_from_file
from headwater.cli.home import Home
from headwater.core.keccak import keccak256
from headwater.gateway.vouchers import voucher_header
from headwater.receipts import KeySigner
from headwater.settlement.voucher import SignedVoucher, Voucher, sign_voucher
from toy.gang import call, models, open_gang, wait_for
from toy.upstream import upstream

SECRET = keccak256(b"a payer of this test")
PAYER = KeySigner(SECRET).address
STEP, CALLS = 2_000, 12  # token units; each covers a call's ceiling
UNIT_NANO = 1_000


@pytest.mark.slow
@pytest.mark.anvil
def test_a_voucher_shown_to_all_workers_at_once_pays_one_call(tmp_path: Path) -> None:
    """Equal vouchers race on connections of their own: one is taken, the others are replays, and the books agree."""
    made: list[Credit] = []
    with anvil(tmp_path) as node, upstream() as server:

        def prepare(home: Home) -> None:
            operator = home.signer.address
            ask(node, "anvil_setBalance", operator, hex(10**20))
            chain = Chain(node, signer_from_file(home.path / "operator.key"), poll_s=0.02)
            manifest = chain.deploy(guardian="0x" + "77" * 20, cap=10**8, delay_s=60)
            credit = Credit.deploy(chain, delay_s=3_600)
            chain.mint(operator, 10**7)
            credit.deposit(PAYER, 10**6)
            replace(manifest, credit=credit.address).save(home.path / "deployment.json")
            made.append(credit)

        with open_gang(tmp_path, models(server), prepare=prepare, HEADWATER_RPC_URL=node) as gang:
            (credit,) = made
            with Home(gang.settings, create=False) as home:
                payee = home.signer.address
            by: set[str] = set()

            def pay(signed: SignedVoucher) -> tuple[int, str]:
                line = http.client.HTTPConnection("127.0.0.1", gang.port, timeout=30)
                try:
                    line.request(
                        "POST",
                        "/v1/chat/completions",
                        json.dumps(call("fine")),
                        {"Payment-Voucher": voucher_header(signed)},
                    )
                    response = line.getresponse()
                    by.add((response.headers["x-request-id"] or "").removeprefix("req_")[:2])
                    body = json.load(response)
                    return response.status, body.get("error", {}).get("code", "")
                finally:
                    line.close()

            with ThreadPoolExecutor(4) as pool:
                for number in range(1, CALLS + 1):
                    signed = sign_voucher(Voucher(PAYER, payee, number * STEP), credit.domain, SECRET)
                    found = sorted(pool.map(pay, [signed] * 4))
                    assert found == [(200, "")] + [(409, "voucher_replayed")] * 3
            assert by == {"w1", "w2"}  # no head in between
            beyond = sign_voucher(Voucher(PAYER, payee, 10**6 + 1), credit.domain, SECRET)
            assert pay(beyond) == (402, "voucher_not_covered")

            def spent() -> bool:
                with Home(gang.settings, create=False) as home:
                    (key,) = [key for key in home.keys.list() if key.label == PAYER]
                    balance = home.ledger.balance(key.account, home.policy.currency)
                    receipts = list(home.log.entries(0))
                prices = sum(int(json.loads(logged.raw)["price"]) for logged in receipts)
                assert len(receipts) == CALLS
                return balance.balance_units == CALLS * STEP * UNIT_NANO - prices and not balance.reserved_out_units

            wait_for(spent)
