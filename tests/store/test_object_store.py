import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.core.errors import HeadwaterError, InvalidError, MissingError
from headwater.receipts import Receipt, leaf_hash
from headwater.receipts.checkpoint import NoteSigner
from headwater.store.log_tiles import publish, tile_tree
from headwater.store.object_store import LocalStore, open_store
from headwater.store.receipt_log import ReceiptLog
from headwater.store.receipt_sealing import Sealer

EXAMPLE = json.loads((Path(__file__).parents[2] / "spec" / "vectors" / "receipt_signed.json").read_text("utf-8"))
RECEIPT = Receipt.from_bytes(EXAMPLE["receipt"].encode())
SIGNATURE = EXAMPLE["signature"]
RAWS = [replace(RECEIPT, call_id=f"call_{number:032x}").to_bytes() for number in range(300)]
LEAVES = [leaf_hash(raw) for raw in RAWS]
SIGNER = NoteSigner("example.org/log", bytes(range(32)))


def behaves(store):
    """What every store does."""
    assert not store.exists("a/b.bin")
    with pytest.raises(MissingError):
        store.read("a/b.bin")
    for data in (b"", b"one", os.urandom(300_000)):
        store.write("a/b.bin", data)
        assert store.read("a/b.bin") == data
    assert store.exists("a/b.bin")
    store.remove("a/b.bin")
    store.remove("a/b.bin")
    assert not store.exists("a/b.bin")
    with pytest.raises(InvalidError):
        store.write("../x", b"")


def test_a_local_folder_is_a_store(tmp_path):
    """Names are written whole, read back, replaced and removed; no draft stays behind."""
    behaves(open_store(tmp_path / "store"))
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_a_pyarrow_filesystem_is_a_store():
    """The same over pyarrow, here its filesystem in memory."""
    behaves(open_store("mock://bucket/folder"))


@pytest.mark.parametrize("location", ["nonsense://x", "s3://key:secret@bucket/x", "s3://bucket?unknown=1"])
def test_addresses_that_lead_nowhere_are_refused(location):
    """A kind nobody knows, an access key in an address, an unknown option: each is said."""
    with pytest.raises(HeadwaterError) as refusal:
        open_store(location)
    assert refusal.value.code == "store_address_invalid"


@pytest.fixture
def s3(monkeypatch):
    """An S3 server in a process of its own on loopback; its program comes from the package moto[server]."""
    program = os.environ.get("HEADWATER_TEST_S3_SERVER") or shutil.which("moto_server")
    if program is None:
        pytest.skip("no moto_server here: pip install 'moto[s3,server]' into an environment of its own")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    process = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        options = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port}"
        from pyarrow import fs

        fs.S3FileSystem(
            region="us-east-1", scheme="http", endpoint_override=f"127.0.0.1:{port}", allow_bucket_creation=True
        ).create_dir("records")
        yield lambda folder: f"s3://records/{folder}?{options}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_tiles_and_segments_live_on_s3(s3, tmp_path):
    """Against a real S3 server: store, tiles with proofs, segments; dropped receipts are read back from there."""
    behaves(open_store(s3("plain")))
    path = tmp_path / "receipts.log"
    with ReceiptLog.open(path) as log:
        log.append_many([(raw, SIGNATURE) for raw in RAWS[:300]])
        done = publish(log, open_store(s3("tiles")), SIGNER)
        assert tile_tree(open_store(s3("tiles")), done.checkpoint).leaf(299) == LEAVES[299]
        sealer = Sealer(path, s3("segments"), segment_receipts=100)
        assert sealer.seal().size == 300
        assert sealer.drop() > 0
        assert log.at(7).raw == RAWS[7]
    with ReceiptLog.open(path) as log:
        assert [item.raw for item in log] == RAWS[:300]
        assert log.append(RAWS[250], SIGNATURE).index == 250


def test_a_full_disk_leaves_the_old_content(tmp_path, monkeypatch):
    """Under a file size limit a write fails as a full disk; what was there stays and no draft is left."""
    import resource

    store = LocalStore(tmp_path)
    store.write("x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(HeadwaterError) as refusal:
            store.write("x", bytes(5_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refusal.value.code == "disk_full"
    assert store.read("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
