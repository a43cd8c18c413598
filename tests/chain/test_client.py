"""The client: keys that stay secret, nonces that do not clash, errors that say what to do."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from web3.providers.base import JSONBaseProvider

from headwater.chain import (
    Chain,
    EmbeddedChain,
    Manifest,
    RevertedError,
    derived_signer,
    read_artifact,
    signer_from_environment,
    signer_from_file,
    signer_from_text,
)
from headwater.chain.build_contracts import CONTRACTS, compile_contract
from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, InvalidError, MissingError, RefusedError, UpstreamError
from headwater.settlement import Leaf, PayoutTree

SEED = b"\x22" * 32
KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
ADDRESS = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"  # of KEY, as published with the web3.js documentation
CONTRACTS_FOLDER = Path(__file__).parents[2] / "contracts"


@pytest.fixture
def embedded():
    """A chain in memory."""
    with EmbeddedChain(seed=SEED, clock_ns=lambda: 1_700_000_000 * 10**9) as chain:
        yield chain


@pytest.fixture
def chain(embedded):
    """A deployment without delay."""
    client = Chain(embedded.provider(), embedded.accounts[0])
    client.deploy(guardian=embedded.accounts[1].address, cap=10**9, delay_s=0)
    return client


def test_keys_come_from_text_file_and_environment(tmp_path):
    """Each way gives the same signer, whose address is the key's."""
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text("0x" + KEY + "\n")

    for signer in (
        signer_from_text(KEY),
        signer_from_file(file),
        signer_from_environment("HEADWATER_CHAIN_KEY", {"HEADWATER_CHAIN_KEY": KEY}),
    ):
        assert signer.address == ADDRESS


def test_keys_are_never_shown(tmp_path):
    """Neither a signer nor a refusal prints the key."""
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o644)
    shown = [repr(signer_from_text(KEY)), str(signer_from_text(KEY))]
    for call in (
        lambda: signer_from_text(KEY + "0"),
        lambda: signer_from_text("f" * 64),
        lambda: signer_from_file(file),
        lambda: signer_from_file(tmp_path / "none"),
        lambda: signer_from_environment("X", {}),
    ):
        with pytest.raises((InvalidError, RefusedError, MissingError)) as refused:
            call()
        shown.append(str(refused.value))

    assert not any(KEY[:16] in text or "f" * 64 in text for text in shown)


def test_a_key_that_others_can_read_is_refused(tmp_path):
    """A key file open to others is not used."""
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o640)
    with pytest.raises(RefusedError) as refused:
        signer_from_file(file)
    assert refused.value.code == "key_exposed"


def test_accounts_of_a_seed_differ():
    """Every number of every seed is an account of its own."""
    addresses = {derived_signer(bytes([seed]) * 32, number).address for seed in range(3) for number in range(10)}

    assert len(addresses) == 30


def test_reading_needs_no_key(embedded, chain):
    """A client without a key reads everything and sends nothing."""
    reader = Chain(embedded.provider(), manifest=chain.manifest)

    assert reader.status() == chain.status()
    assert reader.status().newest_epoch == 0
    assert reader.posted(1) is None
    assert reader.root_at(1) is None
    with pytest.raises(MissingError):
        reader.data_hash(1)
    for call in (
        lambda: reader.fund(1),
        lambda: reader.deploy(guardian=ADDRESS, cap=1, delay_s=0),
        lambda: reader.cancel(1),
    ):
        with pytest.raises(RefusedError):
            call()


def test_a_contracts_refusal_is_told_in_its_own_words(chain):
    """The reason of a revert is in the error, with the step that failed."""
    with pytest.raises(
        RevertedError, match="posting epoch 1 was refused by the contract: Epochs: not funded"
    ) as refused:
        chain.post(1, b"\1" * 32, 5, b"\7" * 32)
    assert (refused.value.reason, refused.value.code) == ("Epochs: not funded", "chain_reverted")


def test_many_threads_share_one_key(chain):
    """Transactions from several threads get nonces of their own and all arrive."""
    chain.fund(10_000)
    tree = PayoutTree.build([Leaf(i, f"0x{i + 1:040x}", 10) for i in range(12)], chain.domain(1))
    chain.post(1, tree.root, tree.total, b"\7" * 32)
    with ThreadPoolExecutor(4) as threads:
        paid = list(threads.map(lambda i: chain.claim(1, tree.prove(i)).amount, range(12)))

    assert paid == [10] * 12


def test_a_nonce_used_elsewhere_is_noticed(embedded, chain):
    """When another process sent with the same key, the next transaction follows it."""
    other = Chain(embedded.provider(), embedded.accounts[0], manifest=chain.manifest)
    for client in (chain, other, chain, other):
        client.mint(ADDRESS, 1)

    assert chain.balance(ADDRESS) == 4


class Faulty(JSONBaseProvider):
    """A node that fails at one method, or holds receipts back."""

    def __init__(self, inner: JSONBaseProvider, method: str, answer: object) -> None:
        super().__init__()
        self.inner, self.method, self.answer = inner, method, answer

    def make_request(self, method, params):
        if method == self.method:
            if isinstance(self.answer, Exception):
                raise self.answer
            return {"jsonrpc": "2.0", "id": 1} | self.answer
        return self.inner.make_request(method, params)


def test_a_receipt_that_does_not_come_is_a_timeout(embedded, chain):
    """Waiting ends, and the error names the transaction."""
    slow = Faulty(embedded.provider(), "eth_getTransactionReceipt", {"result": None})
    client = Chain(slow, embedded.accounts[0], manifest=chain.manifest, receipt_timeout_s=0.02, poll_s=0.01)
    with pytest.raises(UpstreamError, match=r"0x[0-9a-f]{64} was not mined") as refused:
        client.mint(ADDRESS, 1)
    assert refused.value.code == "receipt_timeout"


def test_a_transaction_that_was_dropped_blocks_nothing(embedded, chain):
    """After a node lost a transaction the next one takes its nonce instead of waiting behind it."""
    losing = Faulty(embedded.provider(), "eth_sendRawTransaction", {"result": "0x" + "ab" * 32})
    client = Chain(losing, embedded.accounts[0], manifest=chain.manifest, receipt_timeout_s=0.02, poll_s=0.01)
    with pytest.raises(UpstreamError):
        client.mint(ADDRESS, 1)
    losing.method = "none"

    assert client.mint(ADDRESS, 2).gas_used > 0
    assert chain.balance(ADDRESS) == 2


def test_a_post_that_timed_out_is_found_when_repeated(embedded, chain):
    """After a lost answer the same post finds its own root on the chain."""
    slow = Faulty(embedded.provider(), "eth_getTransactionReceipt", {"result": None})
    client = Chain(slow, embedded.accounts[0], manifest=chain.manifest, receipt_timeout_s=0.02, poll_s=0.01)
    with pytest.raises(UpstreamError):
        client.post(1, b"\1" * 32, 0, b"\7" * 32)
    posted = chain.post(1, b"\1" * 32, 0, b"\7" * 32)

    assert (posted.epoch, posted.root, posted.total) == (1, b"\1" * 32, 0)


@pytest.mark.parametrize(
    "answer",
    [{"error": {"code": -32005, "message": "rate limited"}}, ConnectionError("refused by http://node/secret-token")],
    ids=["error", "connection"],
)
def test_a_failing_node_is_an_upstream_error(embedded, chain, answer):
    """What the node says is passed on; its address, which may hold a token, is not."""
    client = Chain(embedded.provider(), embedded.accounts[0], manifest=chain.manifest)
    client._sender.web3.provider = Faulty(embedded.provider(), "eth_call", answer)
    with pytest.raises(UpstreamError) as refused:
        client.paid(0)
    assert refused.value.code == "chain_unavailable"
    assert "secret" not in str(refused.value)


def test_nobody_at_the_address_is_an_upstream_error():
    """A closed port is told as such."""
    with pytest.raises(UpstreamError):
        Chain("http://127.0.0.1:9")


def test_a_manifest_is_read_as_it_was_written(chain, tmp_path):
    """A deployment written down and read back is the same."""
    path = tmp_path / "deployment.json"
    chain.manifest.save(path)

    assert Manifest.load(path) == chain.manifest
    with pytest.raises(MissingError):
        Manifest.load(tmp_path / "none.json")
    for spoilt in ("[]", "{}", "x", json.dumps(json.loads(path.read_text()) | {"payout": "0x12"})):
        path.write_text(spoilt)
        with pytest.raises(InvalidError):
            Manifest.load(path)


def test_a_deployment_elsewhere_is_a_conflict(embedded, chain):
    """Another chain id, or an address without code, is not taken for the deployment."""
    manifest = chain.manifest
    for other, code in (
        (Manifest(1, manifest.payout, manifest.token, 6, 0), "chain_differs"),
        (Manifest(manifest.chain_id, ADDRESS, manifest.token, 6, 0), "contract_missing"),
    ):
        with pytest.raises(ConflictError) as refused:
            Chain(embedded.provider(), manifest=other)
        assert refused.value.code == code
    with pytest.raises(MissingError):
        Chain(embedded.provider()).status()


def test_real_money_is_not_minted(embedded, chain):
    """A deployment in a token that is not ours has no mint."""
    real = Manifest(chain.chain_id, chain.manifest.payout, chain.manifest.token, 6, 0, test_token=False)
    client = Chain(embedded.provider(), embedded.accounts[0], manifest=real)
    with pytest.raises(RefusedError):
        client.mint(ADDRESS, 1)


def test_wrong_arguments_are_refused_before_anything_is_sent(chain):
    """A hex string for a digest, an index outside the range and an unknown function are invalid."""
    tree = PayoutTree.build([Leaf(i, f"0x{i + 1:040x}", 10) for i in range(4)], chain.domain(1))
    for call in (
        lambda: chain.post(1, b"\1" * 31, 0, b"\7" * 32),
        lambda: chain.push(1, tree.prove_range(0, 2), wanted=[2]),
        lambda: chain.pause(["everything"]),
        lambda: chain.balance("0x12"),
    ):
        with pytest.raises(InvalidError):
            call()


def test_transactions_pay_eip_1559_fees(embedded, chain):
    """The price is base fee and tip, with a ceiling above both."""
    sent = chain.mint(ADDRESS, 1)
    mined = embedded.provider().make_request("eth_getTransactionByHash", [sent.hash])["result"]

    assert mined["type"] == "0x2"
    assert int(mined["maxFeePerGas"], 16) > int(mined["gasPrice"], 16) >= int(mined["maxPriorityFeePerGas"], 16) > 0
    assert sent.fee_wei == sent.gas_used * int(mined["gasPrice"], 16)


def test_shipped_bytecode_is_what_the_sources_compile_to():
    """Every artifact is byte for byte what the compiler makes of the sources in the repository."""
    for name, sources in CONTRACTS.items():
        assert compile_contract(name, CONTRACTS_FOLDER) == read_artifact(name)
        digests = {source: digest((CONTRACTS_FOLDER / source).read_bytes()) for source in sources}
        assert dict(read_artifact(name).sources) == digests
    with pytest.raises(MissingError):
        read_artifact("Nothing")


def test_contracts_fit_the_size_limit():
    """Deployed code stays under EIP-170's 24,576 bytes."""
    for name in CONTRACTS:
        assert len(read_artifact(name).bytecode_runtime) // 2 - 1 <= 24_576
