"""Gas of settlement beside other ways to pay, in one run: ``python bench/peers.py [--payees N …] [--json]``.

On anvil under Prague rules, all in one dollar-like OpenZeppelin token, for payees that hold some of it already.
Peers are short contracts of our own in `bench/peers/`, over OpenZeppelin's libraries, installed and compiled from
npm into a temporary folder: a cumulative drop (the shape of 1inch's), a multiproof push, and a trusted disperse.
They check neither funds nor a delay nor a cap, and one failing payee stops their whole batch; ours does.

Needs node and npm, and anvil named in HEADWATER_ANVIL or on the path.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headwater.chain import Chain, derived_signer
from headwater.core.keccak import keccak256
from headwater.settlement import Leaf, PayoutTree, format_address

PEERS = Path(__file__).parent / "peers"
PACKAGES = ("solc@0.8.37", "@openzeppelin/contracts@5.7.0")
SEED = b"\x44" * 32
BATCH = 200
CLAIMS = 5
GENESIS_S = 1_700_000_000


def build_peers() -> dict[str, Any]:
    """ABI and bytecode of every peer, by name."""
    with tempfile.TemporaryDirectory() as folder:
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, *PACKAGES]
        subprocess.run(npm, check=True, capture_output=True)
        node = ["node", str(PEERS / "compile.js"), folder, str(PEERS / "Peers.sol")]
        return dict(json.loads(subprocess.run(node, check=True, capture_output=True, text=True).stdout))


@contextmanager
def anvil() -> Iterator[str]:
    """A fresh node; gives its address."""
    binary = os.environ.get("HEADWATER_ANVIL") or shutil.which("anvil")
    if binary is None:
        sys.exit("no anvil: npm install @foundry-rs/anvil and name its binary in HEADWATER_ANVIL")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--silent", "--hardfork", "prague", "--accounts", "1", "--gas-limit", "60000000"]
    process = subprocess.Popen([binary, *options, "--timestamp", str(GENESIS_S)])
    try:
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


def sorted_tree(leaves: Sequence[bytes]) -> list[bytes]:
    """A tree of sorted pairs as one array, top first, leaves last in reverse."""
    tree = [b""] * (len(leaves) - 1) + list(leaves[::-1])
    for i in range(len(leaves) - 2, -1, -1):
        tree[i] = keccak256(b"".join(sorted((tree[2 * i + 1], tree[2 * i + 2]))))
    return tree


def path_of(tree: Sequence[bytes], at: int) -> list[bytes]:
    """Siblings of a node, lowest first."""
    path = []
    while at > 0:
        path.append(tree[at + 1 if at % 2 else at - 1])
        at = (at - 1) // 2
    return path


def multiproof_of(tree: Sequence[bytes], places: Sequence[int]) -> tuple[list[bytes], list[bool]]:
    """Proof and flags for nodes at `places`, descending."""
    queue, proof, flags = list(places), [], []
    while queue[0] > 0:
        at = queue.pop(0)
        sibling = at + 1 if at % 2 else at - 1
        together = bool(queue) and queue[0] == sibling
        flags.append(together)
        if together:
            queue.pop(0)
        else:
            proof.append(tree[sibling])
        queue.append((at - 1) // 2)
    return proof, flags


class Run:
    """One number of payees on one fresh node."""

    def __init__(self, url: str, built: dict[str, Any], payees: int) -> None:
        rng = random.Random(payees)
        self.chain = Chain(url, derived_signer(SEED, 0), poll_s=0.002)
        self.me = derived_signer(SEED, 0).address
        for i in range(2):
            address = derived_signer(SEED, i).address
            self.chain.sender.web3.provider.make_request("anvil_setBalance", [address, hex(10**24)])
        self.count, self.built = payees, built
        self.amounts = [max(1, int(rng.lognormvariate(8.0, 1.5))) for _ in range(payees)]
        self.payees = [format_address(keccak256(b"payee" + i.to_bytes(4, "big"))[:20]) for i in range(payees)]
        self.dollar = self.deploy("Dollar")
        self.send(self.dollar.functions.mint(self.me, 10**15))
        for first in range(0, payees, 500):
            self.send(self.dollar.functions.mintMany(self.payees[first : first + 500]))

    def deploy(self, name: str, *arguments: Any) -> Any:
        """A peer at its address."""
        web3, one = self.chain.sender.web3, self.built[name]
        made = self.chain.sender.send(
            web3.eth.contract(abi=one["abi"], bytecode=one["bytecode"]).constructor(*arguments), name
        )
        peer = web3.eth.contract(made.contract, abi=one["abi"])
        if name != "Dollar":
            self.send(self.dollar.functions.mint(peer.address, 10**15))
            self.send(self.dollar.functions.approve(peer.address, 10**15))
        return peer

    def send(self, call: Any) -> int:
        """Gas that a transaction used."""
        return self.chain.sender.send(call, "measuring").gas_used

    def cumulative(self, epoch: int) -> list[int]:
        """What each payee may have received after an epoch."""
        return [amount * epoch for amount in self.amounts]

    def batches(self, size: int) -> Iterator[range]:
        """Payees in batches."""
        return (range(first, min(first + size, self.count)) for first in range(0, self.count, size))

    def sample(self) -> range:
        """Payees that claim by themselves."""
        return range(0, self.count, max(1, self.count // CLAIMS))

    def ours(self) -> dict[str, float]:
        """Headwater: post, push by subtrees of 256, claim; second epoch of each."""
        chain, figures = self.chain, {}
        chain.deploy(guardian=derived_signer(SEED, 1).address, cap=2**60, delay_s=60, token=self.dollar.address)
        chain.fund(sum(self.amounts) * 10)
        for epoch in (1, 2, 3):
            leaves = [Leaf(i, self.payees[i], amount) for i, amount in enumerate(self.cumulative(epoch))]
            tree = PayoutTree.build(leaves, chain.domain(epoch))
            posted = chain.post(epoch, tree.root, tree.total, keccak256(b"data"))
            receipt = chain.sender.web3.eth.get_transaction_receipt(posted.transaction)  # type: ignore[arg-type]
            figures["root post"] = float(receipt["gasUsed"])
            chain.jump(61)
            if epoch < 3:
                size = min(256, 1 << tree.depth)
                used = sum(
                    chain.push(epoch, tree.prove_range(start, size)).gas_used for start in range(0, self.count, size)
                )
                figures["headwater push, proven"] = used / self.count
            else:
                paid = [chain.claim(epoch, tree.prove(index)).gas_used for index in self.sample()]
                figures["headwater self claim"] = sum(paid) / len(paid)
        return figures

    def disperse(self) -> float:
        """Trusted batches."""
        peer = self.deploy("Disperse")
        used = 0
        for batch in self.batches(BATCH):
            amounts = [self.amounts[i] for i in batch]
            used += self.send(peer.functions.disperse(self.dollar.address, [self.payees[i] for i in batch], amounts))
        return used / self.count

    def drop(self) -> float:
        """One proof each; second claim."""
        peer, used = self.deploy("CumulativeDrop", self.dollar.address), []
        for epoch in (1, 2):
            amounts = self.cumulative(epoch)
            leaves = [keccak256(bytes.fromhex(who[2:]) + amount.to_bytes(32, "big")) for who, amount in
                      zip(self.payees, amounts, strict=True)]  # fmt: skip
            tree = sorted_tree(leaves)
            self.send(peer.functions.setRoot(tree[0]))
            used = [
                self.send(
                    peer.functions.claim(self.payees[i], amounts[i], tree[0], path_of(tree, 2 * self.count - 2 - i))
                )
                for i in self.sample()
            ]
        return sum(used) / len(used)

    def multiproof(self) -> float:
        """Proven batches; second push."""
        peer, used = self.deploy("MultiproofPush", self.dollar.address), 0
        for epoch in (1, 2):
            amounts = self.cumulative(epoch)
            words = [bytes(12) + bytes.fromhex(who[2:]) + amount.to_bytes(32, "big") for who, amount in
                     zip(self.payees, amounts, strict=True)]  # fmt: skip
            tree = sorted_tree([keccak256(keccak256(word)) for word in words])
            used = self.send(peer.functions.setRoot(tree[0]))
            for batch in self.batches(BATCH):
                # Leaves lie in reverse at the end of the tree: ascending payees are descending places.
                proof, flags = multiproof_of(tree, [2 * self.count - 2 - i for i in batch])
                who, what = [self.payees[i] for i in batch], [amounts[i] for i in batch]
                used += self.send(peer.functions.push(who, what, proof, flags))
        return used / self.count


def measure(payees: int, built: dict[str, Any]) -> dict[str, int]:
    """Gas by step, per payee or per transaction as named."""
    with anvil() as url:
        run = Run(url, built, payees)
        figures = run.ours()
        figures["multiproof push, proven"] = run.multiproof()
        figures["disperse, trusted"] = run.disperse()
        figures["cumulative drop, self claim"] = run.drop()
        return {name: round(gas) for name, gas in figures.items()}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Gas of settlement beside other ways to pay")
    parser.add_argument("--payees", type=int, nargs="*", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    built = build_peers()
    every = {payees: measure(payees, built) for payees in arguments.payees}
    if arguments.json:
        sys.stdout.write(json.dumps(every, indent=1) + "\n")
        return 0
    sys.stdout.write(f"{'gas':30}" + "".join(f"{payees:>10,}" for payees in every) + "\n")
    for name in next(iter(every.values())):
        sys.stdout.write(f"{name:30}" + "".join(f"{one[name]:>10,}" for one in every.values()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
