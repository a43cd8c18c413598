"""Deployments to test against: on the embedded chain always, on an anvil node where there is one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headwater.chain import Chain, EmbeddedChain, KeySigner, Manifest, derived_signer
from headwater.chain.build_contracts import compile_source
from headwater.chain.evm import CHAIN_ID
from headwater.settlement import Leaf, PayoutTree

SEED = b"\x11" * 32
NOW_NS = 1_700_000_000 * 10**9
DELAY_S = 60
CAP = 100_000_000
FUNDS = 250_000_000


class Node:
    """A chain that can be put back to where it was."""

    def __init__(self, provider: Any) -> None:
        self.provider = provider
        self.signers: tuple[KeySigner, ...] = tuple(derived_signer(SEED, i) for i in range(10))

    def ask(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call."""
        answer = self.provider.make_request(method, list(params))
        assert "error" not in answer, answer
        return answer["result"]

    def chain(self, account: int, manifest: Manifest | None = None) -> Chain:
        """The node seen by one of its accounts."""
        return Chain(self.provider, self.signers[account], manifest=manifest, poll_s=0.01)


@dataclass
class Vault:
    """A funded deployment and its roles."""

    node: Node
    chain: Chain  # owner and poster
    guardian: Chain
    stranger: Chain

    def tree(self, epoch: int, amounts: dict[int, int]) -> PayoutTree:
        """A tree of the usual payees: index -> cumulative units."""
        return PayoutTree.build([Leaf(i, payee(i), a) for i, a in amounts.items()], self.chain.domain(epoch))

    def post(self, tree: PayoutTree, total: int | None = None) -> None:
        """Post a tree and wait until it is active."""
        self.chain.post(tree.domain.epoch, tree.root, tree.total if total is None else total, b"\x07" * 32)
        self.chain.jump(DELAY_S)

    def contract(self, address: str | None = None, abi: Any = None) -> Any:
        """The contract, for calls that the client does not make."""
        from headwater.chain import read_artifact

        web3 = self.chain._sender.web3
        return web3.eth.contract(address or self.chain.manifest.payout, abi=abi or read_artifact("Payout").abi)

    def send(self, call: Any, account: int = 0) -> Any:
        """Send a bound function as one of the accounts."""
        return self.node.chain(account, self.chain.manifest)._sender.send(call, "testing")


def payee(index: int) -> str:
    """The address of the payee with this index."""
    return f"0x{0xBEEF << 64 | index + 1:040x}"


@pytest.fixture(scope="session", params=["embedded", pytest.param("anvil", marks=pytest.mark.anvil)])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A running chain without contracts."""
    if request.param == "embedded":
        with EmbeddedChain(seed=SEED, clock_ns=lambda: NOW_NS) as chain:
            yield Node(chain.provider())
        return
    with _anvil(tmp_path_factory.mktemp("anvil")) as url:
        from web3 import HTTPProvider

        node = Node(HTTPProvider(url))
        for signer in node.signers:
            node.ask("anvil_setBalance", signer.address, hex(10**24))
        yield node


@pytest.fixture(scope="session")
def deployed(node: Node) -> Vault:
    """A deployment with money in it."""
    chain = node.chain(0)
    manifest = chain.deploy(guardian=node.signers[1].address, cap=CAP, delay_s=DELAY_S)
    chain.fund(FUNDS)
    return Vault(node, chain, node.chain(1, manifest), node.chain(2, manifest))


@pytest.fixture
def vault(deployed: Vault) -> Iterator[Vault]:
    """The deployment, put back after the test."""
    number = deployed.node.ask("evm_snapshot")
    yield deployed
    deployed.node.ask("evm_revert", number)
    for chain in (deployed.chain, deployed.guardian, deployed.stranger):
        chain._sender._next_nonce = 0


@pytest.fixture(scope="session")
def hostile_artifact() -> Any:
    """The misbehaving token, compiled."""
    source = Path(__file__).parent / "HostileToken.vy"
    return compile_source("HostileToken", source, [source])


@pytest.fixture
def hostile(vault: Vault, hostile_artifact: Any) -> Callable[..., tuple[Vault, Any]]:
    """Makes a vault that pays in the misbehaving token, and the token."""

    def make(decimals: int = 6) -> tuple[Vault, Any]:
        chain = vault.node.chain(0)
        web3 = chain._sender.web3
        factory = web3.eth.contract(abi=hostile_artifact.abi, bytecode=hostile_artifact.bytecode)
        address = chain._sender.send(factory.constructor(decimals), "deploying").contract
        token = web3.eth.contract(address, abi=hostile_artifact.abi)
        manifest = chain.deploy(guardian=vault.node.signers[1].address, cap=CAP, delay_s=0, token=address)
        other = Vault(vault.node, chain, vault.node.chain(1, manifest), vault.node.chain(2, manifest))
        other.send(token.functions.mint(vault.node.signers[0].address, FUNDS))
        return other, token

    return make


class _anvil:
    """An anvil process on a free port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> str:
        binary = find_anvil()
        if binary is None:
            pytest.skip("no anvil: npm install @foundry-rs/anvil into a folder and name it in HEADWATER_ANVIL")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = ["--port", str(port), "--chain-id", str(CHAIN_ID), "--silent", "--accounts", "1"]
        arguments += ["--timestamp", str(NOW_NS // 10**9), "--hardfork", "prague"]
        self._process = subprocess.Popen([str(binary), *arguments], cwd=self._folder)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.05)
        self._process.kill()
        raise RuntimeError("anvil did not start")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)


def find_anvil() -> Path | None:
    """The binary under the folder in HEADWATER_ANVIL, or on the path."""
    folder = os.environ.get("HEADWATER_ANVIL")
    if folder:
        root = Path(folder)
        if root.is_file():
            return root
        return next((path for path in sorted(root.glob("**/bin/anvil*")) if os.access(path, os.X_OK)), None)
    found = shutil.which("anvil")
    return Path(found) if found else None
