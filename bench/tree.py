"""Payout trees: build, update of one leaf in a hundred, proofs on demand, beside single hashing, in one run.

    python bench/tree.py [--leaves 1000000] [--peer-leaves 20000] [--rounds 3] [--folder DIR]

CPU-seconds of this process, compiled code loaded before the clock starts; medians of the rounds. The peer hashes
the same tree with one call of the C keccak a message, on fewer leaves, since the cost per leaf does not depend on them.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from headwater.settlement import Domain, MappedTree
from headwater.settlement.bulk_keccak import PlainHasher

HERE, NEXT = (Domain(10, "0x" + "c0" * 20, "0x" + "70" * 20, epoch) for epoch in (1, 2))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=1_000_000)
    parser.add_argument("--peer-leaves", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the tree in files under this folder")
    options = parser.parse_args()
    rng = np.random.default_rng(7)
    addresses = rng.integers(0, 256, (options.leaves, 20), dtype=np.uint8)
    amounts = rng.integers(1, 2**40, options.leaves, dtype=np.uint64)
    MappedTree.build(addresses[:64], amounts[:64], HERE)
    built, updated, proved, peer = [], [], [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for _ in range(options.rounds):
            start = time.process_time()
            tree = MappedTree.build(addresses, amounts, HERE, folder=Path(folder) / "tree" if options.folder else None)
            built.append(time.process_time() - start)
            chosen = rng.choice(options.leaves, options.leaves // 100, replace=False)
            start = time.process_time()
            tree.update(chosen, addresses[chosen], amounts[chosen] + np.uint64(5), NEXT)
            updated.append(time.process_time() - start)
            start = time.process_time()
            for index in chosen[:500].tolist():
                tree.prove(index)
            proved.append((time.process_time() - start) / len(chosen[:500]))
            few = slice(0, options.peer_leaves)
            start = time.process_time()
            MappedTree.build(addresses[few], amounts[few], HERE, hash_with=PlainHasher())
            peer.append((time.process_time() - start) * options.leaves / options.peer_leaves)
    print(f"{options.leaves:,} leaves, medians of {options.rounds} rounds, CPU-seconds")
    print(f"build            {median(built):8.3f} s")
    print(f"update of 1 %    {median(updated):8.3f} s")
    print(f"one proof        {median(proved) * 1e3:8.3f} ms, climbed to the root before it is given")
    print(f"single hashing   {median(peer):8.1f} s, extrapolated from {options.peer_leaves:,} leaves")
    print(f"peak memory      {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MiB")


if __name__ == "__main__":
    main()
