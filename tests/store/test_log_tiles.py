import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.core.errors import ConflictError, InvalidError
from headwater.receipts import LogTree, Receipt, leaf_hash, verify_inclusion
from headwater.receipts.checkpoint import Checkpoint, ForkError, NoteSigner
from headwater.receipts.tiles import TILE_WIDTH, Tile, read_bundle, tiles_of
from headwater.store.log_tiles import (
    TileServer,
    add_cosignature,
    consistency_from_tiles,
    last_checkpoint,
    publish,
    tile_tree,
)
from headwater.store.object_store import LocalStore
from headwater.store.receipt_log import ReceiptLog
from headwater.store.witness_store import Witness

EXAMPLE = json.loads((Path(__file__).parents[2] / "spec" / "vectors" / "receipt_signed.json").read_text("utf-8"))
RECEIPT = Receipt.from_bytes(EXAMPLE["receipt"].encode())
SIGNATURE = EXAMPLE["signature"]
RAWS = [replace(RECEIPT, call_id=f"call_{number:032x}").to_bytes() for number in range(620)]
LEAVES = [leaf_hash(raw) for raw in RAWS]
SIGNER = NoteSigner("example.org/log", bytes(range(32)))
COSIGNER = NoteSigner("witness.example", bytes(range(1, 33)))


def append(path, raws):
    with ReceiptLog.open(path) as log:
        log.append_many([(raw, SIGNATURE) for raw in raws])


def published(path, store):
    with ReceiptLog.open(path, read_only=True) as log:
        return publish(log, store, SIGNER)


@pytest.fixture
def path(tmp_path):
    append(tmp_path / "receipts.log", RAWS[:300])
    return tmp_path / "receipts.log"


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "tiles")


def test_what_is_published_is_the_log(path, store):
    """Checkpoint, hashes, entries and proofs are those of the receipts; growth adds only what is new."""
    assert published(path, store).tiles_written == 2 + 1 + 2
    assert published(path, store).tiles_written == 0
    append(path, RAWS[300:620])
    done = published(path, store)
    assert done.tiles_written == 2 + 1 + 2
    done.checkpoint.verify(SIGNER.key)
    assert done.checkpoint.head == LogTree(LEAVES).head()
    tree = tile_tree(store, done.checkpoint)
    for index in (0, 255, 256, 619):
        assert verify_inclusion(LEAVES[index], tree.prove_inclusion(index))
        tile = Tile(None, index // TILE_WIDTH, min(TILE_WIDTH, 620 - index // TILE_WIDTH * TILE_WIDTH))
        assert read_bundle(store.read(tile.path), tile.width)[index % TILE_WIDTH] == RAWS[index]


def test_the_server_gives_what_is_published(path, store):
    """A gateway's function answers every path that publishing writes with the same bytes, and no other path."""
    published(path, store)
    with ReceiptLog.open(path, read_only=True) as log:
        server = TileServer(log, SIGNER)
        for tile in tiles_of(300):
            assert server.serve_tile(tile.path) == store.read(tile.path)
        assert Checkpoint.from_bytes(server.serve_tile("checkpoint")).head == LogTree(LEAVES[:300]).head()
        for wrong in (
            "tile/0/002",
            "tile/0/001.p/45",
            "tile/3/000",
            "../receipts.log",
            "tile/0/1",
            "",
            "tile/entries/002",
        ):
            assert server.serve_tile(wrong) is None


def test_a_log_that_lost_what_it_published_is_not_published(path, store, tmp_path):
    """Tiles are a promise: a shorter or another log is refused and nothing is overwritten."""
    published(path, store)
    before = store.read("checkpoint")
    for name, raws in (("short.log", RAWS[:200]), ("other.log", RAWS[1:400])):
        append(tmp_path / name, raws)
        with pytest.raises(ConflictError) as refusal:
            published(tmp_path / name, store)
        assert refusal.value.code == "log_forked"
    assert store.read("checkpoint") == before


def test_a_kill_before_the_checkpoint_leaves_the_old_log_whole(path, store):
    """The checkpoint is written last, and publishing again finishes what was begun."""
    published(path, store)
    append(path, RAWS[300:620])

    class Dying(LocalStore):
        left = 3

        def write(self, name, data):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            super().write(name, data)

    with pytest.raises(KeyboardInterrupt):
        published(path, Dying(store.folder))
    assert tile_tree(store, last_checkpoint(store)).head() == LogTree(LEAVES[:300]).head()
    published(path, store)
    assert tile_tree(store, last_checkpoint(store)).head() == LogTree(LEAVES).head()


def cosign(witness, store, at_s=1_000):
    note = last_checkpoint(store)
    line = witness.cosign(note, SIGNER.key, lambda old: consistency_from_tiles(store, old, note), at_s=at_s)
    return add_cosignature(store, note, line)


def test_a_witness_cosigns_a_log_that_grows(path, store, tmp_path):
    """Its signature lands on the published checkpoint beside the log's own, and again after growth."""
    witness = Witness(tmp_path / "witness", COSIGNER)
    published(path, store)
    cosign(witness, store).verify(SIGNER.key, [COSIGNER.witness_key])
    append(path, RAWS[300:400])
    published(path, store)
    assert not last_checkpoint(store).signed_by(COSIGNER.witness_key)
    note = cosign(witness, store, at_s=900)
    note.verify(SIGNER.key, [COSIGNER.witness_key])
    assert note.signed_at(COSIGNER.witness_key) == 1_000  # a clock that went back does not take the signature back
    assert len(cosign(witness, store).signatures) == 2


def test_a_fork_shown_to_a_witness_is_caught_and_kept(path, store, tmp_path):
    """A second history, whole, signed and longer, gets no signature; both checkpoints stay as evidence."""
    witness = Witness(tmp_path / "witness", COSIGNER)
    published(path, store)
    cosign(witness, store)
    honest = witness.last(SIGNER.name)
    for count in (300, 500):
        forked = tmp_path / f"fork-{count}"
        forked.mkdir()
        append(forked / "receipts.log", [*RAWS[:299], *RAWS[300 : count + 1]])
        fork = LocalStore(forked / "tiles")
        published(forked / "receipts.log", fork)
        with pytest.raises(ForkError) as refusal:
            cosign(witness, fork)
        assert refusal.value.code == "log_forked"
        assert not last_checkpoint(fork).signed_by(COSIGNER.witness_key)
        assert witness.last(SIGNER.name) == honest
        evidence = next((tmp_path / "witness").glob(f"*.fork-{count}"))
        assert Checkpoint.from_bytes(evidence.read_bytes()) == last_checkpoint(fork)


def test_a_witness_refuses_what_the_log_did_not_sign_and_what_is_old(path, store, tmp_path):
    """Neither a stranger's checkpoint nor an earlier one of the same log is cosigned."""
    witness = Witness(tmp_path / "witness", COSIGNER)
    published(path, store)
    shutil.copytree(store.folder, tmp_path / "earlier")
    append(path, RAWS[300:400])
    published(path, store)
    cosign(witness, store)
    with pytest.raises(ConflictError) as refusal:
        cosign(witness, LocalStore(tmp_path / "earlier"))
    assert refusal.value.code == "checkpoint_old"
    stranger = NoteSigner(SIGNER.name, bytes(range(2, 34))).checkpoint(LogTree(LEAVES[:500]).head())
    with pytest.raises(InvalidError):
        witness.cosign(stranger, SIGNER.key, lambda _: (), at_s=1)
