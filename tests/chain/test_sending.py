"""Sending over nodes that fail: crashes, silence, lies about nonces, lost transactions, dear gas, re-organisations."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chain_nodes import Proxy, Refusal, Silence, anvil, ask

from headwater.chain import Chain, EmbeddedChain, KeySigner, Manifest, derived_signer
from headwater.chain.outbox import Outbox
from headwater.chain.sender import Patience
from headwater.core.errors import ConflictError, UpstreamError

SEED = b"\x31" * 32
SOMEBODY = "0x" + "0b" * 20


@pytest.fixture
def embedded() -> Iterator[EmbeddedChain]:
    """A chain in memory, reached through a socket."""
    with EmbeddedChain(seed=SEED, clock_ns=lambda: 1_700_000_000 * 10**9) as chain:
        yield chain


@pytest.fixture
def proxy(embedded) -> Iterator[Proxy]:
    """A proxy in front of it."""
    server = Proxy(embedded.serve())
    yield server
    server.close()


@pytest.fixture
def manifest(embedded) -> Manifest:
    """A deployment on it."""
    chain = Chain(embedded.provider(), embedded.accounts[0])
    return chain.deploy(guardian=embedded.accounts[1].address, cap=10**9, delay_s=0)


def client(url: str, signer: KeySigner, manifest: Manifest | None, path: Path | None = None, **patience) -> Chain:
    """A client with an outbox on disk and little patience."""
    times = {"receipt_timeout_s": 5.0, "poll_s": 0.01, "replace_after_s": 0.2} | patience
    return Chain(url, signer, manifest=manifest, patience=Patience(**times), outbox=Outbox(path))


def test_a_crash_after_sending_never_posts_twice(embedded, proxy, manifest, tmp_path):
    """The process ends between the send and the receipt: the next one finds what was sent and sends nothing."""
    sent = []

    def crash(method, params, real):
        if method == "eth_getTransactionReceipt":
            raise KeyboardInterrupt
        if method == "eth_sendRawTransaction":
            sent.append(params[0])
            real()
            raise Silence  # not even its hash came back
        return real()

    path = tmp_path / "outbox"
    first = client(proxy.url, embedded.accounts[0], manifest, path, receipt_timeout_s=0.3, replace_after_s=60)
    proxy.rule = lambda method, params, real: (
        (_ for _ in ()).throw(Silence) if method == "eth_getTransactionReceipt" else crash(method, params, real)
    )
    with pytest.raises(UpstreamError):
        first.mint(SOMEBODY, 5)
    first.sender.outbox.close()
    proxy.rule = None
    second = client(proxy.url, embedded.accounts[0], manifest, path)
    again = second.mint(SOMEBODY, 5)

    assert len(sent) == 1
    assert second.balance(SOMEBODY) == 5
    assert again.gas_used > 0
    assert proxy.seen.count("eth_sendRawTransaction") == 1
    assert second.mint(SOMEBODY, 5).hash != again.hash  # asked once more it is meant once more
    assert second.balance(SOMEBODY) == 10


def test_a_crash_before_sending_is_made_good(embedded, proxy, manifest, tmp_path):
    """The transaction was kept but never left: the next process sends that very one."""
    lost = []

    def lose(method, params, real):
        if method == "eth_sendRawTransaction":
            lost.append(params[0])
            raise Silence
        return real()

    path = tmp_path / "outbox"
    proxy.rule = lose
    first = client(proxy.url, embedded.accounts[0], manifest, path, receipt_timeout_s=0.2, replace_after_s=60)
    with pytest.raises(UpstreamError):
        first.mint(SOMEBODY, 7)
    first.sender.outbox.close()
    resent = []
    proxy.rule = lambda method, params, real: (
        resent.append(params[0]) if method == "eth_sendRawTransaction" else None,
        real(),
    )[1]
    second = client(proxy.url, embedded.accounts[0], manifest, path)
    second.mint(SOMEBODY, 7)

    assert lost
    assert resent == lost[:1]
    assert second.balance(SOMEBODY) == 7


def test_a_node_that_stumbles_is_asked_again(embedded, proxy, manifest, tmp_path):
    """Every third request hangs up after the transaction was kept; it arrives once all the same."""
    calls = []

    def stumble(method, params, real):
        calls.append(method)
        if method in ("eth_getTransactionReceipt", "eth_sendRawTransaction") and len(calls) % 3:
            raise Silence
        return real()

    chain = client(proxy.url, embedded.accounts[0], manifest, tmp_path / "outbox")
    proxy.rule = stumble
    chain.mint(SOMEBODY, 1)
    proxy.rule = None

    assert chain.balance(SOMEBODY) == 1


@pytest.mark.parametrize("off", [-3, -1])
def test_a_nonce_that_the_node_says_too_low_is_passed_over(embedded, proxy, manifest, tmp_path, off):
    """A node behind its own chain hands out used nonces; the transaction takes the first that is free."""
    other = Chain(embedded.provider(), embedded.accounts[0], manifest=manifest)
    other.mint(SOMEBODY, 1)
    stale = {"eth_getTransactionCount": lambda real: hex(max(0, int(real, 16) + off))}

    def lie(method, params, real):
        found = real_or_too_low(real)
        return stale[method](found) if method in stale else found

    def real_or_too_low(real):
        try:
            return real()
        except Refusal as refusal:
            text = str(refusal.args[0].get("message"))
            raise Refusal("nonce too low" if "nonce" in text else text) from None

    chain = client(proxy.url, embedded.accounts[0], manifest, tmp_path / "outbox")
    proxy.rule = lie
    chain.mint(SOMEBODY, 2)
    proxy.rule = None

    assert chain.balance(SOMEBODY) == 3


def test_an_outbox_belongs_to_one_process(tmp_path, embedded, manifest):
    """A second sender with the same outbox is refused instead of handing out the same nonces."""
    first = client(embedded.serve(), embedded.accounts[0], manifest, tmp_path / "outbox")
    first.mint(SOMEBODY, 1)
    second = client(embedded.serve(), embedded.accounts[0], manifest, tmp_path / "outbox")
    with pytest.raises(ConflictError) as refused:
        second.mint(SOMEBODY, 1)
    assert refused.value.code == "outbox_busy"
    first.sender.outbox.close()
    second.mint(SOMEBODY, 1)


def test_a_torn_line_was_never_sent_and_damage_is_told(tmp_path):
    """Half a last line is cut off; a line that cannot be read stops the sender."""
    path = tmp_path / "outbox"
    box = Outbox(path)
    box.hold()
    box.keep("a" * 64, 3, b"\x02raw")
    box.close()
    with path.open("ab") as file:
        file.write(b'{"intent":"bb')
    again = Outbox(path)
    again.hold()

    assert [(entry.intent, entry.nonce, entry.raws) for entry in again] == [("a" * 64, 3, (b"\x02raw",))]
    again.settle("a" * 64)
    again.close()
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(UpstreamError) as refused:
        Outbox(path).hold()
    assert refused.value.code == "outbox_damaged"


# ------------------------------------------------------------------ on anvil


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Iterator[str]:
    """An anvil node, with money for our keys."""
    with anvil(tmp_path_factory.mktemp("anvil")) as url:
        for number in range(3):
            ask(url, "anvil_setBalance", derived_signer(SEED, number).address, hex(10**22))
        yield url


@pytest.fixture
def on_anvil(node) -> Iterator[tuple[str, Manifest]]:
    """A deployment there, put back after the test."""
    ask(node, "evm_setAutomine", True)
    snapshot = ask(node, "evm_snapshot")
    chain = Chain(node, derived_signer(SEED, 0), poll_s=0.01)
    yield node, chain.deploy(guardian=derived_signer(SEED, 1).address, cap=10**9, delay_s=0)
    ask(node, "evm_setAutomine", True)
    ask(node, "evm_revert", snapshot)


def later(seconds: float, *steps) -> threading.Thread:
    """Run steps in the background after a while."""

    def run() -> None:
        time.sleep(seconds)
        for step in steps:
            step()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.anvil
def test_a_stuck_transaction_is_replaced_with_a_higher_fee(on_anvil, tmp_path):
    """While nothing is mined the fee rises at the same nonce; one of them is mined, once."""
    url, manifest = on_anvil
    chain = client(url, derived_signer(SEED, 0), manifest, tmp_path / "outbox", receipt_timeout_s=20)
    ask(url, "evm_setAutomine", False)
    usual = int(ask(url, "eth_maxPriorityFeePerGas"), 16)
    thread = later(1.0, lambda: ask(url, "evm_mine"))
    sent = chain.mint(SOMEBODY, 4)
    thread.join()
    mined = ask(url, "eth_getTransactionByHash", sent.hash)
    block = ask(url, "eth_getBlockByNumber", mined["blockNumber"], False)

    assert len(block["transactions"]) == 1
    assert int(mined["maxPriorityFeePerGas"], 16) > usual
    assert chain.balance(SOMEBODY) == 4


@pytest.mark.anvil
def test_a_dropped_transaction_is_sent_again(on_anvil, tmp_path):
    """The node forgets everything it had not mined: the transaction comes back by itself."""
    url, manifest = on_anvil
    chain = client(url, derived_signer(SEED, 0), manifest, tmp_path / "outbox", receipt_timeout_s=20)
    ask(url, "evm_setAutomine", False)
    thread = later(
        0.1, lambda: ask(url, "anvil_dropAllTransactions"), lambda: time.sleep(0.6), lambda: ask(url, "evm_mine")
    )
    chain.mint(SOMEBODY, 9)
    thread.join()

    assert chain.balance(SOMEBODY) == 9


@pytest.mark.anvil
def test_a_nonce_that_is_too_high_does_not_wait_for_ever(on_anvil, tmp_path):
    """A node says two nonces are taken that are not: empty transfers fill the gap, and ours is mined once."""
    url, manifest = on_anvil
    server = Proxy(url)
    lies = [2]

    def lie(method, params, real):
        found = real()
        return hex(int(found, 16) + lies.pop()) if method == "eth_getTransactionCount" and lies else found

    server.rule = lie
    chain = client(server.url, derived_signer(SEED, 0), manifest, tmp_path / "outbox", receipt_timeout_s=20)
    chain.mint(SOMEBODY, 6)
    server.close()

    assert not lies
    assert chain.sender.web3 is not None
    assert Chain(url, manifest=manifest).balance(SOMEBODY) == 6


@pytest.mark.anvil
def test_a_reorganisation_that_takes_a_transaction_back_is_outlived(on_anvil, tmp_path):
    """Two blocks are asked for above it; the first chain that held it is thrown away, and it counts on the second."""
    url, manifest = on_anvil
    chain = client(url, derived_signer(SEED, 0), manifest, tmp_path / "outbox", receipt_timeout_s=30, confirmations=2)
    height = int(ask(url, "eth_blockNumber"), 16)
    before = []

    def reorganise() -> None:
        before.append(ask(url, "eth_getBlockByNumber", hex(height + 1), False))
        # The block is replaced by an empty one, and the transaction is gone.
        ask(url, "anvil_reorg", 1, [])
        ask(url, "anvil_dropAllTransactions")

    thread = later(0.3, reorganise, *[lambda: (time.sleep(0.5), ask(url, "evm_mine"))] * 8)
    sent = chain.mint(SOMEBODY, 8)
    thread.join()
    now = ask(url, "eth_getBlockByNumber", hex(height + 1), False)

    assert len(before[0]["transactions"]) == 1
    assert now["hash"] != before[0]["hash"]
    assert sent.block > height
    assert ask(url, "eth_getTransactionReceipt", sent.hash)["blockNumber"] == hex(sent.block)
    assert chain.balance(SOMEBODY) == 8


@pytest.mark.anvil
def test_a_posted_root_that_a_reorganisation_removed_is_posted_again(on_anvil, tmp_path):
    """`post` finds its root while it is there, and posts it anew when the chain lost it."""
    url, manifest = on_anvil
    chain = client(url, derived_signer(SEED, 0), manifest, tmp_path / "outbox")
    snapshot = ask(url, "evm_snapshot")
    first = chain.post(1, b"\1" * 32, 0, b"\7" * 32)
    assert chain.post(1, b"\1" * 32, 0, b"\7" * 32) == first
    ask(url, "evm_revert", snapshot)
    assert chain.root_at(1) is None
    again = chain.post(1, b"\1" * 32, 0, b"\7" * 32)

    assert (again.root, chain.root_at(1)) == (first.root, b"\1" * 32)
