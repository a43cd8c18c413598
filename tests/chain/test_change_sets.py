"""Change sets on the chain itself: a watcher that has a node and nothing else recomputes roots and ends wrong ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from chain_nodes import anvil, ask

from headwater.chain import Chain, EmbeddedChain, Manifest, RevertedError, bulk, derived_signer
from headwater.chain.blobs import blob_base_fee
from headwater.chain.bulk import ask_many
from headwater.chain.change_sets import ChangeReader, ChangeSender
from headwater.chain.outbox import Outbox
from headwater.chain.watching import Watcher
from headwater.core.errors import MissingError, RefusedError
from headwater.settlement import Leaf, PayoutTree
from headwater.settlement.changes import ChangeSet, replay, unpack
from headwater.settlement.publication import HEADER_BYTES

SEED = b"\x34" * 32
DELAY_S = 3_600
STRANGER = derived_signer(SEED, 2)


@dataclass
class World:
    """A deployment without a root, and a node that anybody may ask."""

    poster: Chain
    guardian: Chain
    provider: object
    manifest: Manifest
    amounts: list[int]

    def close(self, epoch: int, rises: dict[int, int]) -> tuple[PayoutTree, bytes]:
        """The tree after an epoch in which these payees earned more, and its packed change set."""
        width = len(self.amounts)
        self.amounts += [0] * (max([width - 1, *rises]) + 1 - width)
        changed = sorted({*rises, *range(width, len(self.amounts))})
        for index, rise in rises.items():
            self.amounts[index] += rise
        changes = ChangeSet(
            epoch,
            width,
            np.array(changed, dtype=np.int64),
            np.array([rises.get(index, 0) for index in changed], dtype=np.uint64),
            np.array([list(bytes.fromhex(account(i)[2:])) for i in changed if i >= width], dtype=np.uint8).reshape(
                -1, 20
            ),
        )
        return self.tree(epoch, self.amounts), changes.pack()

    def tree(self, epoch: int, amounts: list[int]) -> PayoutTree:
        """The tree of these cumulative amounts."""
        leaves = [Leaf(index, account(index), amount) for index, amount in enumerate(amounts)]
        return PayoutTree.build(leaves, self.poster.domain(epoch))

    def post(self, epoch: int, tree: PayoutTree) -> None:
        """Post a root; the digest of a manifest that nobody publishes here is beside it."""
        self.poster.post(epoch, tree.root, tree.total, b"\x07" * 32)

    def stranger(self, key: object = None) -> Chain:
        """A chain that knows the deployment's file and the node, no more."""
        return Chain(self.provider, key, manifest=self.manifest, poll_s=0.01)


def account(index: int) -> str:
    """A payee's address."""
    return f"0x{0xB0000000 + index * 7919:040x}"


def deployed(provider: object) -> World:
    """A funded deployment, without bonds."""
    poster = Chain(provider, derived_signer(SEED, 0), poll_s=0.01)
    guardian = derived_signer(SEED, 1)
    manifest = poster.deploy(guardian=guardian.address, cap=10**12, delay_s=DELAY_S)
    poster.fund(10**11)
    return World(poster, poster.acting_as(guardian), provider, manifest, [])


@pytest.fixture(params=["embedded", pytest.param("anvil", marks=pytest.mark.anvil)])
def world(request, tmp_path) -> Iterator[World]:
    """A fresh chain and deployment."""
    if request.param == "embedded":
        with EmbeddedChain(seed=SEED, clock_ns=lambda: 1_700_000_000 * 10**9) as chain:
            yield deployed(chain.provider())
        return
    with node(tmp_path) as provider:
        yield deployed(provider)


@pytest.fixture
def anvil_world(tmp_path) -> Iterator[World]:
    """The same on a node that takes blobs."""
    with node(tmp_path) as provider:
        yield deployed(provider)


class node:
    """A development node with money for our keys, as a web3 provider."""

    def __init__(self, folder) -> None:
        self._running = anvil(folder, more=("--hardfork", "prague"))

    def __enter__(self) -> object:
        from web3 import HTTPProvider

        self.url = self._running.__enter__()
        for number in range(3):
            ask(self.url, "anvil_setBalance", derived_signer(SEED, number).address, hex(10**22))
        return HTTPProvider(self.url)

    def __exit__(self, *error) -> None:
        self._running.__exit__(*error)


def test_a_watcher_with_a_node_alone_accepts_right_roots_and_cancels_a_wrong_one(world):
    """Two right epochs, the third raises somebody; parts are small, so that each epoch takes several transactions."""
    sender, previous = ChangeSender(world.poster, part_bytes=150), bytes(32)
    sent = {}
    for epoch, rises in ((1, {i: 1_000 + i for i in range(30)}), (2, {3: 50, 29: 7, 31: 9}), (3, {0: 5})):
        tree, packed = world.close(epoch, rises)
        sent[epoch] = sender.send(epoch, packed, "calldata", previous)
        previous = bytes.fromhex(sent[epoch][-1][2:])
        if epoch < 3:
            world.post(epoch, tree)
            report = Watcher(world.stranger(), ChangeReader(world.stranger())).turn()
            assert (report.done, report.verdict.problems) == ("accepted", ())
            world.poster.jump(DELAY_S + 1)
            world.poster.jump(1)
    assert len(sent[1]) > 3
    wrong = list(world.amounts)
    wrong[2] += 400
    world.post(3, world.tree(3, wrong))

    reader = world.stranger()
    report = Watcher(reader, ChangeReader(reader)).turn()
    assert (report.done, report.verdict.remedy) == ("reported", "challenge")
    assert {one.code for one in report.verdict.problems} == {"root_differs"}
    watching = world.stranger(world.guardian.sender.signer)
    assert Watcher(watching, ChangeReader(watching)).turn().done == "cancelled"
    assert world.poster.root_at(3) is None
    assert world.poster.status_of(2) == "active"


def test_a_sum_that_was_inflated_and_an_amount_that_was_lowered_are_refuted_from_the_chain(world):
    """The contract is shown the two paths, or the top, that the watcher made from change sets alone."""
    tree, packed = world.close(1, dict.fromkeys(range(8), 1000))
    first = ChangeSender(world.poster).send(1, packed, "calldata")
    world.poster.post(1, tree.root, tree.total + 5, b"\x07" * 32)
    watching = world.stranger(world.guardian.sender.signer)
    report = Watcher(watching, ChangeReader(watching)).turn()

    assert report.done == "refuted"
    assert {one.code for one in report.verdict.problems} == {"total_differs"}
    with pytest.raises(RevertedError):
        Watcher(watching, ChangeReader(watching))._disputes.refute(1, report.verdict.fraud)
    assert len(first) == 1


def test_what_a_stranger_sends_to_the_data_address_is_not_believed(world):
    """It is a part of the right form for the same epoch, later than the poster's, and is passed over."""
    tree, packed = world.close(1, {i: 10 + i for i in range(5)})
    ChangeSender(world.poster).send(1, packed, "calldata")
    world.amounts = []
    _, other = world.close(1, dict.fromkeys(range(5), 99))
    ChangeSender(world.guardian).send(1, other, "calldata")
    world.post(1, tree)
    reader = world.stranger()

    assert ChangeReader(reader)(1).changes == packed
    assert Watcher(reader, ChangeReader(reader)).turn().done == "accepted"
    assert ChangeReader(reader, publishers=[world.guardian.sender.signer.address])(1).changes == other


def test_what_is_not_published_or_not_whole_is_withheld(world):
    """Nothing there is `data_withheld`; so is an epoch of which the middle part never came."""
    tree, packed = world.close(1, {i: 1_000 + i for i in range(20)})
    world.post(1, tree)
    reader = world.stranger()
    watcher = Watcher(reader, ChangeReader(reader))
    assert {one.code for one in watcher.turn().verdict.problems} == {"data_withheld"}

    class Stops(ChangeSender):
        """Ends after two parts, as a process that is killed."""

    sender = Stops(world.poster, part_bytes=200)
    real, left = world.poster.sender.send, [2]

    def dying(call, what, **more):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(call, what, **more)

    world.poster.sender.send = dying
    with pytest.raises(KeyboardInterrupt):
        sender.send(1, packed, "calldata")
    world.poster.sender.send = real
    assert {one.code for one in watcher.turn().verdict.problems} == {"data_withheld"}

    sender.send(1, packed, "calldata")
    assert watcher.turn().done == "accepted"


def test_an_earlier_epoch_is_found_by_the_links_without_a_search(world):
    """Blocks before the newest post are not asked for: the headers lead back to the first epoch."""
    previous = bytes(32)
    for epoch in (1, 2):
        tree, packed = world.close(epoch, {i: 100 * epoch + i for i in range(12)})
        previous = bytes.fromhex(ChangeSender(world.poster).send(epoch, packed, "calldata", previous)[-1][2:])
        world.post(epoch, tree)
        world.poster.jump(DELAY_S + 1)
        for _ in range(130 if epoch == 1 else 0):
            ask_many(world.poster.sender, [("evm_mine", [])], "mining")
    looked: list[int] = []
    reader = ChangeReader(world.stranger(), progress=looked.append)
    second, first = reader(2), reader(1)

    assert replay([unpack(first.changes), unpack(second.changes)])[3][2] == 100 + 200 + 6
    assert looked[-1] <= 60 < 130
    with pytest.raises(MissingError):
        reader(3)


def test_a_realistic_epoch_takes_less_than_two_and_a_half_bytes_of_calldata_per_active_payee(world):
    """Four thousand of eight thousand payees earn something lognormal; headers count; the bytes are the chain's own."""
    rng = np.random.default_rng(11)
    width = 8_000
    sender = ChangeSender(world.poster)
    _, packed = world.close(1, dict(enumerate(np.exp(rng.normal(np.log(3_000), 1.0, width)).astype(int).tolist())))
    previous = sender.send(1, packed, "calldata")[-1]
    active = np.flatnonzero(rng.random(width) < 0.5).tolist()
    rises = np.maximum(1, np.exp(rng.normal(np.log(3_000), 1.0, len(active)))).astype(int).tolist()
    tree, packed = world.close(2, dict(zip(active, rises, strict=True)))
    sent = sender.send(2, packed, "calldata", bytes.fromhex(previous[2:]))
    world.post(2, tree)

    questions = [("eth_getTransactionByHash", [one]) for one in sent]
    carried = [bytes.fromhex(one["input"][2:]) for one in ask_many(world.poster.sender, questions, "reading")]
    assert sum(map(len, carried)) / len(active) < 2.5
    assert len(packed) + HEADER_BYTES * len(sent) == sum(map(len, carried))
    reader = world.stranger()
    assert Watcher(reader, ChangeReader(reader)).turn().done == "accepted"


def test_the_fee_that_is_shown_covers_what_is_paid(world):
    """Gas by the formula is what the chain takes, but for the zero bytes of hashes that are not known beforehand."""
    _, packed = world.close(1, {i: 1_000 + i for i in range(300)})
    sender = ChangeSender(world.poster, part_bytes=4_000)
    shown = sender.costs(packed)["calldata"]
    questions = [("eth_getTransactionReceipt", [one]) for one in sender.send(1, packed, "calldata")]
    receipts = ask_many(world.poster.sender, questions, "reading receipts")
    used = sum(int(one["gasUsed"], 16) for one in receipts)

    assert len(receipts) == shown.transactions > 1
    # The very first part links to nothing, 32 zero bytes; hashes and addresses have a zero byte here and there.
    assert -100 * shown.transactions <= shown.gas - used <= 32 * 30 + 100 * shown.transactions
    assert shown.fee.l2_wei > 0


def test_a_chain_without_blobs_says_so(world):
    """The embedded chain takes none; on a node that does, the fee of a blob is its own."""
    _, packed = world.close(1, {0: 5})
    sender = ChangeSender(world.poster)
    if blob_base_fee(world.poster.sender) is not None:
        assert sender.costs(packed)["blob"].blobs == 1
        assert sender.costs(packed)["blob"].blob_wei == 131_072 * blob_base_fee(world.poster.sender)
        return
    assert set(sender.costs(packed)) == {"calldata"}
    with pytest.raises(RefusedError) as refused:
        sender.send(1, packed, "blob")
    assert refused.value.code == "blobs_unsupported"


@pytest.mark.anvil
def test_change_sets_in_blobs_are_read_back_and_held_against_their_commitments(anvil_world):
    """Two blobs in one transaction, and a second epoch as calldata behind it; a beacon node's answer is checked."""
    world = anvil_world
    pytest.importorskip("ckzg")
    tree, packed = world.close(1, {i: 1_000 + i for i in range(6_500)})
    assert len(packed) > 126_976
    sender = ChangeSender(world.poster)
    (hash_,) = sender.send(1, packed, "blob")
    world.post(1, tree)
    reader = world.stranger()
    assert Watcher(reader, ChangeReader(reader)).turn().done == "accepted"
    world.poster.jump(DELAY_S + 1)
    tree, changes = world.close(2, {4: 5})
    sender.send(2, changes, "calldata", bytes.fromhex(hash_[2:]))
    world.post(2, tree)
    assert Watcher(reader, ChangeReader(reader)).turn().done == "accepted"

    blobs = ask(world.provider.endpoint_uri, "anvil_getBlobsByTransactionHash", hash_)
    real = world.provider.make_request

    def plain(method, params):
        if method.startswith("anvil_"):
            return {"error": {"message": "unknown method"}}
        return real(method, params)

    reader.sender.web3.provider.make_request = plain
    try:
        with pytest.raises(MissingError) as gone:
            ChangeReader(reader)(1)
        assert gone.value.code == "blobs_missing"
        with beacon(blobs) as address:
            assert ChangeReader(reader, beacon=address)(1).changes == packed
        with beacon([blobs[0], blobs[0]]) as address, pytest.raises(MissingError):
            ChangeReader(reader, beacon=address)(1)
    finally:
        del reader.sender.web3.provider.make_request


class beacon:
    """The two answers of a beacon node that a reader asks for."""

    def __init__(self, blobs: list[str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                value = {"genesis_time": "0"} if self.path.endswith("genesis") else blobs
                body = json.dumps({"data": value}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_sending_again_after_a_crash_goes_on_with_what_was_signed(world, tmp_path):
    """With an outbox on disk the part that was under way is not sent a second time."""
    _, packed = world.close(1, dict.fromkeys(range(4), 3))
    first = Chain(
        world.provider, derived_signer(SEED, 0), manifest=world.manifest, outbox=Outbox(tmp_path / "out"), poll_s=0.01
    )

    def dying(*_):
        raise KeyboardInterrupt

    first.sender._wait = dying
    with pytest.raises(KeyboardInterrupt):
        ChangeSender(first).send(1, packed, "calldata")
    first.sender.outbox.close()
    count = ask_many(first.sender, [("eth_getTransactionCount", [derived_signer(SEED, 0).address, "latest"])], "")[0]
    again = Chain(
        world.provider, derived_signer(SEED, 0), manifest=world.manifest, outbox=Outbox(tmp_path / "out"), poll_s=0.01
    )
    (hash_,) = ChangeSender(again).send(1, packed, "calldata")

    assert ask_many(again.sender, [("eth_getTransactionReceipt", [hash_])], "")[0]["status"] == "0x1"
    after = ask_many(again.sender, [("eth_getTransactionCount", [derived_signer(SEED, 0).address, "latest"])], "")[0]
    assert int(after, 16) - int(count, 16) in (0, 1)  # a node may mine it only after the count was read


def test_what_many_payees_were_paid_is_read_four_at_a_time(world, monkeypatch):
    """The same as one by one, unpaid places too, also where storage lies elsewhere or batches are refused."""
    tree, _ = world.close(1, {i: 100 + i for i in range(10)})
    world.post(1, tree)
    world.poster.jump(DELAY_S + 1)
    world.poster.push(1, tree.prove_range(0, 8), wanted=[0, 3, 5])
    wanted = [0, 1, 3, 5, 7, 9, 4_000]

    looked: list[list[int]] = []
    real = bulk._asked
    monkeypatch.setattr(bulk, "_asked", lambda *given: looked.append(list(given[2])) or real(*given))

    assert world.poster.paid_many(wanted) == {index: world.poster.paid(index) for index in wanted}
    assert looked == [[0]]  # the view was asked once, to compare: storage is where it is thought to be
    assert world.poster.paid_many([]) == {}
    monkeypatch.setattr(bulk, "PAID_SLOT", 10)
    assert world.poster.paid_many(wanted) == {index: world.poster.paid(index) for index in wanted}
    reader = world.stranger()
    reader.sender.web3.provider.make_batch_request = lambda _: {"error": {"message": "no batches here"}}
    try:
        assert reader.paid_many(wanted) == world.poster.paid_many(wanted)
    finally:
        del reader.sender.web3.provider.make_batch_request
