"""What a call paid by a voucher takes: each over more than the last, its signature checked, no write to a chain.

    python -m bench.gateway.voucher HOME UPSTREAMS

Serves a home that takes vouchers, in a process of its own. What the chain says of the payer is given, because a
gateway reads it once in 15 s and not in a call; everything else is as it is served.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from bench.gateway.load import PROMPT
from headwater.cli.home import Home
from headwater.core.keccak import keccak256
from headwater.gateway import create_app
from headwater.gateway.serve import serve
from headwater.gateway.vouchers import Deposited, Vouchers, voucher_header
from headwater.receipts import KeySigner
from headwater.settings import Settings
from headwater.settlement.voucher import Voucher, credit_domain, sign_voucher
from headwater.store.voucher_store import VoucherStore

CALLS = 200
RISE = 5_000
"""Token units a call's voucher rises by: more than a call costs."""

_DOMAIN = credit_domain(31_337, "0x" + "c0" * 20)
_PAYEE = "0x" + "a1" * 20
_SECRET = keccak256(b"bench.gateway.voucher")


def voucher_latencies_s(folder: Path, upstream_port: int) -> list[float]:
    """Seconds that each of some calls took, one after the other."""
    upstreams = folder / "voucher_upstreams.toml"
    upstreams.write_text(
        f'[upstream.mock]\nbase_url = "http://127.0.0.1:{upstream_port}/v1"\n'
        '[model."gpt-4o-mini"]\ntargets = [{ upstream = "mock", model = "gpt-4o-mini" }]\nrequest_price = "0.001"\n'
    )
    command = [sys.executable, "-m", "bench.gateway.voucher", str(folder / "voucher_home"), str(upstreams)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        payer = KeySigner(_SECRET).address
        body = b'{"model":"gpt-4o-mini","max_tokens":200,"messages":[{"role":"user","content":"%b"}]}' % PROMPT.encode()
        found = []
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for number in range(CALLS):
            signed = sign_voucher(Voucher(payer, _PAYEE, RISE * (number + 1)), _DOMAIN, _SECRET)
            headers = {"Payment-Voucher": voucher_header(signed), "Content-Type": "application/json"}
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            answer = response.read()
            found.append(time.perf_counter() - began)
            if response.status != 200:
                raise SystemExit(f"a call by voucher was refused: {answer[:300]!r}")
        return found
    finally:
        process.terminate()
        process.wait(60)


def main(folder: str, upstreams: str) -> None:
    """Serve until told to stop."""
    with ExitStack() as stack:
        home = stack.enter_context(Home(Settings(home=Path(folder), upstreams=upstreams), writer=True))
        store = VoucherStore(
            home.db, home.ledger, home.keys, domain=_DOMAIN, asset=home.policy.currency, unit_nano=1_000
        )
        vouchers = Vouchers(store, _PAYEE, lambda _: Deposited(0, 10**15))
        app = create_app(home.flow({}, None, None), home.keys, relays=home.relays(), vouchers=vouchers)
        serve(app, ready=lambda port: print(port, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
