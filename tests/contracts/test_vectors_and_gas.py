"""The published vectors on a chain, and what settlement costs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from headwater.chain import Chain, EmbeddedChain
from headwater.settlement import Domain, Leaf, Proof

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "spec/vectors/payout_tree.json").read_text())
TOLERANCE_PERCENT = 2


def test_published_vectors_are_paid_on_chain():
    """The contract accepts the vectors' own bytes: root, path and payload, made by neither library nor contract."""
    case = next(case for case in VECTORS["cases"] if case["name"] == "on the test chain")
    leaves = {leaf["index"]: Leaf(leaf["index"], leaf["address"], int(leaf["amount"])) for leaf in case["leaves"]}
    total = sum(leaf.amount for leaf in leaves.values())
    with EmbeddedChain(seed=b"\x11" * 32, clock_ns=lambda: 1_700_000_000 * 10**9) as embedded:
        chain = Chain(embedded.provider(), embedded.accounts[0])
        manifest = chain.deploy(guardian=embedded.accounts[1].address, cap=10**9, delay_s=0)
        chain.fund(total)
        chain.post(1, bytes.fromhex(case["root"]), total, bytes(32))
        for proof in case["proofs"]:
            leaf = leaves[proof["index"]]
            path = tuple(bytes.fromhex(sibling) for sibling in proof["path"])
            assert chain.claim(1, Proof(leaf, path)).amount == leaf.amount
        for part in case["ranges"]:
            siblings = [int(sibling, 16) for sibling in part["path"]]
            call = chain.payout().functions.push(1, bytes.fromhex(part["payload"]), 2**256 - 1, siblings)
            chain._sender.send(call, "pushing")

        assert Domain(**case["domain"]) == manifest.domain(case["domain"]["epoch"])
        assert [chain.paid(i) for i in leaves] == [leaf.amount for leaf in leaves.values()]
        assert chain.status().held == 0


def _bench(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / f"bench/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("payees", [64, pytest.param(10_000, marks=pytest.mark.slow)])
def test_gas_stays_where_it_was(payees):
    """No step costs more, or much less, than the snapshot says; `bench/gas.py --write` makes a new one."""
    _compare(_bench("gas").measure(payees), str(payees))


def test_gas_of_rails_stays_where_it_was():
    """The same for the rails; `bench/gas_rails.py --write` makes a new snapshot."""
    _compare(_bench("gas_rails").measure(), "rails")


def _compare(measured: dict[str, int], kept: str) -> None:
    snapshot = json.loads((Path(__file__).parent / "gas_snapshot.json").read_text())[kept]
    assert set(measured) == set(snapshot)
    for name, gas in snapshot.items():
        assert abs(measured[name] - gas) * 100 <= gas * TOLERANCE_PERCENT, f"{name}: {measured[name]}, snapshot {gas}"
