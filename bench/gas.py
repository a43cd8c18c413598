"""Gas of settlement, measured on the embedded chain: ``python bench/gas.py [--payees N] [--json] [--write]``.

Payees hold some of the token already, which is the usual case for a dollar token. *First* is a payee's first
payment from this contract, which binds its account; *repeat* is any later one. `--write` keeps the figures as the
snapshot that the tests compare with.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from headwater.chain import Chain, EmbeddedChain
from headwater.core.keccak import keccak256
from headwater.settlement import Leaf, PayoutTree

SNAPSHOT = Path(__file__).parents[1] / "tests/contracts/gas_snapshot.json"
SEED = b"\x44" * 32
PAYEES = 10_000
CLAIMS = 4


def measure(payees: int, claims: int = CLAIMS) -> dict[str, int]:
    """Gas of each step with `payees` leaves in the tree, in gas per transaction or per payee as named."""
    rng = random.Random(payees)
    amounts = [max(1, int(rng.lognormvariate(8.0, 1.5))) for _ in range(payees)]  # median about 0.003 dollars
    addresses = ["0x" + keccak256(b"payee" + i.to_bytes(4, "big"))[:20].hex() for i in range(payees)]
    with EmbeddedChain(seed=SEED, clock_ns=lambda: 1_700_000_000 * 10**9) as embedded:
        chain = Chain(embedded.provider(), embedded.accounts[0])
        chain.deploy(guardian=embedded.accounts[1].address, cap=2**60, delay_s=0)
        fund = chain.fund(sum(amounts) * 10)
        width = min(256, 1 << (payees - 1).bit_length() - 1)  # half of a small tree is left to claim
        claimed = list(range(width, payees))[-claims:]
        for address in {addresses[i] for i in (*range(width), *claimed)}:
            chain.mint(address, 1)
        figures: dict[str, Any] = {"payees": payees, "deposit": fund.gas_used}
        for epoch, name in ((1, "first"), (2, "repeat"), (3, "repeat")):
            leaves = [Leaf(i, addresses[i], amounts[i] * epoch) for i in range(payees)]
            tree = PayoutTree.build(leaves, chain.domain(epoch))
            posted = chain.post(epoch, tree.root, tree.total, keccak256(b"data"))
            receipt = embedded.provider().make_request("eth_getTransactionReceipt", [posted.transaction])["result"]
            figures[f"post_{name}"] = int(receipt["gasUsed"], 16)
            pushed = chain.push(epoch, tree.prove_range(0, width))
            assert pushed.payees == width, pushed
            figures[f"push_{name}_per_payee"] = pushed.gas_used // pushed.payees
            paid = [chain.claim(epoch, tree.prove(index)).gas_used for index in claimed]
            figures[f"claim_{name}"] = sum(paid) // len(paid)
        idle = chain.push(3, tree.prove_range(0, width), wanted=[])
        figures["push_position_unpaid"] = idle.gas_used // width
        single = chain.push(3, tree.prove_range(0, 1), wanted=[])
        figures["push_fixed"] = single.gas_used
    return figures


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Gas of settlement")
    parser.add_argument("--payees", type=int, nargs="*", default=[64, 1_000, PAYEES])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="keep the figures as the tests' snapshot")
    arguments = parser.parse_args()
    every = [measure(payees) for payees in arguments.payees]
    if arguments.write:
        kept = json.loads(SNAPSHOT.read_text()) | {str(one["payees"]): one for one in every}
        SNAPSHOT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    if arguments.json:
        sys.stdout.write(json.dumps(every, indent=1) + "\n")
        return 0
    for name in every[0]:
        sys.stdout.write(f"{name:24}" + "".join(f"{one.get(name, 0):>12,}" for one in every) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
