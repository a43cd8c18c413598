"""`headwater serve` as an operator starts it, paid on anvil by the official x402 client in a process of its own."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from headwater.chain import Chain, KeySigner, Manifest, derived_signer
from toy.paid import CONFIG, FUNDS
from toy.permit2 import PERMIT2, install_permit2, permit2_code
from toy.upstream import Upstream, upstream

sys.path.insert(0, str(Path(__file__).parents[1] / "chain"))

from chain_nodes import Proxy, anvil, ask

pytest.importorskip("x402")
pytestmark = [pytest.mark.slow, pytest.mark.anvil]

PAYER, SENDER = b"\x27" * 32, b"\x29" * 32
PAY_TO = "0x" + "a3" * 20

FIXED = 250_000  # token units
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 50}


@dataclass
class Shop:
    """A home, the chain it is paid on, and the server over it while one runs."""

    home: Path
    node: str  # anvil itself
    proxy: Proxy  # between the server and anvil
    server: Upstream
    chain: Chain
    url: str = ""
    process: subprocess.Popen[str] | None = None
    lines: list[str] = field(default_factory=list)

    @property
    def network(self) -> str:
        """As x402 names the chain."""
        return "eip155:31337"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of headwater."""
        command = [sys.executable, "-m", "headwater", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment(), check=False)

    def json(self, *arguments: str) -> Any:
        """What a command prints."""
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def environment(self) -> dict[str, str]:
        """The settings, as an operator gives them."""
        return {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
            "HEADWATER_HOME": str(self.home),
            "HEADWATER_RPC_URL": self.proxy.url,
            "HEADWATER_CHAIN_KEY": "0x" + SENDER.hex(),
            "HEADWATER_X402": "1",
            "HEADWATER_X402_PAY_TO": PAY_TO,
            "HEADWATER_LOCAL_MODEL": "0",
            "HEADWATER_PAGES": "0",
            "HEADWATER_UPSTREAMS": str(self.home.parent / "upstreams.toml"),
        }

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A server, ended as an operator ends it if nobody has killed it."""
        command = [sys.executable, "-m", "headwater", "serve", "--port", "0"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment()
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                self.lines.append(line)
                if found := re.search(r"listening on (http://127\.0\.0\.1:\d+)/v1", line):
                    self.url = found[1]
                    break
            else:
                raise AssertionError("".join(self.lines[-20:]))
            threading.Thread(target=self.lines.extend, args=(process.stdout,), daemon=True).start()
            self.process = process
            yield
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)

    def pay(self, *steps: dict[str, Any]) -> list[dict[str, Any]]:
        """Steps of the official client."""
        command = [sys.executable, str(Path(__file__).with_name("x402_payer.py")), self.url, self.network]
        environment = {"PATH": os.environ["PATH"], "HEADWATER_PAYER": "0x" + PAYER.hex()}
        done = subprocess.run(
            command, input=json.dumps(steps), capture_output=True, text=True, env=environment, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2_000:]
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def call(self, model: str, **more: Any) -> dict[str, Any]:
        """A chat, paid by the official client."""
        return self.pay({"path": "/v1/chat/completions", "body": {"model": model, **CHAT, **more}})[0]

    def post(self, model: str, signed: str, **more: Any) -> requests.Response:
        """A chat with a payment that was signed before."""
        body = {"model": model, **CHAT, **more}
        headers = {"PAYMENT-SIGNATURE": signed}
        return requests.post(self.url + "/v1/chat/completions", json=body, headers=headers, timeout=60)

    def paid(self) -> int:
        """Token units that came."""
        return self.chain.balance(PAY_TO)

    def check(self) -> None:
        """The books hold, to be asked while no server runs."""
        for arguments in (("ledger", "check"), ("doctor",)):
            done = self.command(*arguments)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A home with deployed contracts and a payer who has tokens; Permit2 where its bytecode is at hand."""
    folder = tmp_path_factory.mktemp("shop")
    home = folder / "home"
    with anvil(tmp_path_factory.mktemp("anvil")) as node, upstream() as server:
        (folder / "upstreams.toml").write_text(CONFIG.format(url=server.url), "utf-8")
        proxy = Proxy(node)
        try:
            made = Shop(home, node, proxy, server, chain=None)  # type: ignore[arg-type]
            operator, payer = KeySigner(SENDER), KeySigner(PAYER)
            for address in (operator.address, payer.address):
                ask(node, "anvil_setBalance", address, hex(10**20))
            guardian = derived_signer(PAYER, 1).address
            made.json("chain", "deploy", "--guardian", guardian, "--delay-s", "60", "--confirmations", "0")
            made.chain = Chain(node, operator, poll_s=0.01)
            manifest = Manifest.load(home / "deployment.json")
            made.chain.attach(manifest)
            made.chain.mint(payer.address, FUNDS)
            if os.environ.get("HEADWATER_PERMIT2"):
                install_permit2(node, permit2_code())
                mine = made.chain.acting_as(payer)
                mine.sender.send(mine._token().functions.approve(PERMIT2, 2**250), "approving Permit2")
            yield made
        finally:
            proxy.close()


def test_a_fixed_price_a_top_up_and_what_fails(shop: Shop) -> None:
    """The official client pays a call, buys credit and a key, and loses nothing on a call that fails."""
    with shop.serving():
        before = shop.paid()
        fixed, failed, topped = shop.pay(
            {"path": "/v1/chat/completions", "body": {"model": "fixed", **CHAT}},
            {"path": "/v1/chat/completions", "body": {"model": "broken", **CHAT}},
            {"path": "/v1/payments/x402?amount=5.00&secret=new", "body": {}},
        )
        settled = json.loads(base64.b64decode(fixed["headers"]["payment-response"]))
        bought = json.loads(topped["text"])
        bearer = {"Authorization": f"Bearer {bought['secret']}"}
        answer = requests.post(
            shop.url + "/v1/chat/completions", json={"model": "fixed", **CHAT}, headers=bearer, timeout=60
        )
        call = fixed["headers"]["headwater-receipt"]
        receipt = requests.get(
            f"{shop.url}/v1/receipts/{call}", headers={"PAYMENT-SIGNATURE": fixed["signed"]}, timeout=60
        )

        assert (fixed["status"], failed["status"], topped["status"]) == (200, 400, 200), (fixed, failed, topped)
        assert (settled["success"], json.loads(fixed["text"])["headwater"]["price"]) == (True, "0.250000000")
        assert (bought["amount"], answer.status_code) == ("5.000000000", 200)
        assert shop.paid() - before == FIXED + 5_000_000
        assert receipt.status_code == 200
    left = shop.json("ledger", "balance", bought["account"])
    assert "4750000000" in json.dumps(left), left
    shop.check()


def test_replayed_and_forged_payments_pay_for_nothing(shop: Shop) -> None:
    """The same payment gives the same bytes; whatever else is signed or sent is refused, and no token moves."""
    with shop.serving():
        first = shop.call("fixed")
        after = shop.paid()
        again = shop.post("fixed", first["signed"])
        other = shop.post("fixed", first["signed"], max_tokens=7)
        payment = json.loads(base64.b64decode(first["signed"]))
        codes = []
        for change in _FORGERIES.values():
            forged = json.loads(json.dumps(payment))
            change(forged)
            sent = base64.b64encode(json.dumps(forged).encode()).decode()
            refused = shop.post("fixed", sent)
            codes.append((refused.status_code, refused.text))
        for junk in ("", "%%%", base64.b64encode(b"{}").decode(), "A" * 40_000):
            refused = shop.post("fixed", junk)
            codes.append((refused.status_code, ""))

        assert (again.text, again.headers["Idempotent-Replayed"]) == (first["text"], "true")
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
        # What was signed says who pays whom and on which chain; what is written beside it changes nothing.
        assert codes.pop(list(_FORGERIES).index("_network")) == (200, first["text"])
        assert all(status in (400, 402, 409, 431) for status, _ in codes), codes
        assert shop.paid() == after
    shop.check()


def _nonce(payment: dict[str, Any]) -> None:
    payment["payload"]["authorization"]["nonce"] = "0x" + "77" * 32


def _payer(payment: dict[str, Any]) -> None:
    payment["payload"]["authorization"]["from"] = "0x" + "66" * 20


def _amount(payment: dict[str, Any]) -> None:
    payment["accepted"]["amount"] = payment["payload"]["authorization"]["value"] = "1"


def _recipient(payment: dict[str, Any]) -> None:
    payment["accepted"]["payTo"] = payment["payload"]["authorization"]["to"] = "0x" + "55" * 20


def _network(payment: dict[str, Any]) -> None:
    payment["accepted"]["network"] = "eip155:1"


def _signature(payment: dict[str, Any]) -> None:
    payment["payload"]["signature"] = "0x" + "11" * 65


_FORGERIES = {one.__name__: one for one in (_nonce, _payer, _amount, _recipient, _network, _signature)}


def test_a_metered_call_is_paid_by_what_it_used(shop: Shop) -> None:
    """`upto` through Permit2: the ceiling is signed, the price is taken."""
    if not os.environ.get("HEADWATER_PERMIT2"):
        pytest.skip("HEADWATER_PERMIT2 names no folder with Permit2's bytecode")
    with shop.serving():
        before = shop.paid()
        answer = shop.call("metered")
        used = json.loads(answer["text"])["usage"]["completion_tokens"]

        assert answer["status"] == 200, answer
        assert 0 < used < CHAT["max_tokens"]
        assert shop.paid() - before == used * 10_000
    shop.check()


def test_a_server_that_dies_after_the_chain_has_paid_answers_for_that_payment(shop: Shop) -> None:
    """kill -9 while it waits for the transaction: the next server answers the same payment, and the chain pays once."""
    before = shop.paid()
    mined = threading.Event()

    def silent(method: str, params: list[Any], real: Any) -> Any:
        if method == "eth_sendRawTransaction":
            sent = real()
            mined.set()
            return sent
        if method == "eth_getTransactionReceipt" and mined.is_set():
            return None  # it never hears what became of it
        return real()

    with shop.serving():
        signed = shop.call("fixed")["signed"]  # a payment that works, to take the form of the next from
        assert signed is not None
        shop.proxy.rule = silent
        asked: list[Any] = []
        caller = threading.Thread(target=lambda: asked.append(_attempt(shop)), daemon=True)
        caller.start()
        assert mined.wait(60)
        until = time.monotonic() + 20
        while shop.paid() < before + 2 * FIXED and time.monotonic() < until:
            time.sleep(0.05)
        assert shop.process is not None
        shop.process.kill()
        shop.process.wait(timeout=30)
        caller.join(timeout=60)
    shop.proxy.rule = None
    (lost,) = asked
    assert shop.paid() - before == 2 * FIXED
    with shop.serving():
        answer = shop.post("fixed", lost)
        again = shop.post("fixed", lost)
        assert answer.status_code == 200, answer.text
        assert again.text == answer.text
    assert shop.paid() - before == 2 * FIXED
    shop.check()


def _attempt(shop: Shop) -> str:
    """Sign a payment as the official client does and send it; gives the payment, whatever became of the call."""
    from eth_account import Account

    from toy.paid import client_of, signed_by

    body = {"model": "fixed", **CHAT}
    refused = requests.post(shop.url + "/v1/chat/completions", json=body, timeout=60)
    headers = signed_by(client_of(Account.from_key(PAYER), shop.network), refused)
    with suppress(requests.RequestException):
        requests.post(shop.url + "/v1/chat/completions", json=body, headers=headers, timeout=60)
    return headers["PAYMENT-SIGNATURE"]
