"""How long it takes to read what 10,000 payees were paid: one by one, and in bulk. `python -m bench.paid_reads`.

Against the embedded chain behind its loopback server. A distant node adds its round trip to each request, which is
what the number of requests is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from headwater.chain import Chain, EmbeddedChain, derived_signer
from headwater.chain.bulk import paid_by_index

PAYEES = 10_000
ONE_BY_ONE = 100  # of them; the rest would take as long each
ROUND_TRIP_S = 0.05


def main() -> None:
    with EmbeddedChain(seed=b"\x11" * 32) as embedded:
        local = Chain(embedded.provider(), embedded.accounts[0])
        manifest = local.deploy(guardian=embedded.accounts[1].address, cap=10**9, delay_s=0)
        chain = Chain(embedded.serve(), derived_signer(b"\x11" * 32, 0), manifest=manifest)
        requests = count(chain)
        single = timed(lambda: [chain.paid(index) for index in range(ONE_BY_ONE)])
        asked = requests[0]
        show("one by one", single * PAYEES / ONE_BY_ONE, asked * PAYEES // ONE_BY_ONE)
        requests[0] = 0
        bulk = timed(lambda: paid_by_index(chain.sender, manifest.payout, range(PAYEES)))
        show("in bulk", bulk, requests[0])


def count(chain: Chain) -> list[int]:
    """A counter of requests that leave."""
    provider: Any = chain.sender.web3.provider
    seen = [0]
    for name in ("make_request", "make_batch_request"):
        real = getattr(provider, name)

        def counted(*arguments: Any, real: Any = real) -> Any:
            seen[0] += 1
            return real(*arguments)

        setattr(provider, name, counted)
    provider._request_func_cache = (None, None)  # or web3 goes on with the functions it has wrapped already
    return seen


def timed(work: Callable[[], object]) -> float:
    """Seconds of wall-clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def show(name: str, seconds: float, requests: int) -> None:
    """A line; the last figure is with a distant node."""
    print(f"{name:12} {requests:6} requests {seconds:8.2f} s, {seconds + requests * ROUND_TRIP_S:8.1f} s at 50 ms each")


if __name__ == "__main__":
    main()
