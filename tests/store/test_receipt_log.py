import contextlib
import errno
import fcntl
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, MissingError, UpstreamError
from headwater.core.limits import RECEIPT_BATCH_MAX, RECEIPT_SIZE_BYTES_MAX
from headwater.receipts import LogTree, Receipt, leaf_hash, verify_consistency, verify_inclusion
from headwater.store.receipt_file import cut_damaged_tail
from headwater.store.receipt_frames import FILE_HEADER, FRAME_HEADER_BYTES
from headwater.store.receipt_log import Entry, ReceiptLog

EXAMPLE = json.loads((Path(__file__).parents[2] / "spec" / "vectors" / "receipt_signed.json").read_text("utf-8"))
RECEIPT = Receipt.from_bytes(EXAMPLE["receipt"].encode())
SIGNATURE = EXAMPLE["signature"]


def raw_receipt(number: int, *, supersedes: str | None = None, payer: str = "payer:demo") -> bytes:
    return replace(RECEIPT, call_id=f"call_{number:032x}", supersedes=supersedes, payer=payer).to_bytes()


RAWS = [raw_receipt(number) for number in range(300)]


def identity(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "receipts.log"


def filled(path, count):
    with ReceiptLog.open(path) as log:
        log.append_many([(raw, SIGNATURE) for raw in RAWS[:count]])
    return path.read_bytes()


def held(path):
    with ReceiptLog.open(path, read_only=True) as log:
        return [item.raw for item in log]


def test_what_is_appended_is_found_again(path):
    """Entries, bytes, signatures, order, root and proofs survive closing and opening."""
    with ReceiptLog.open(path) as log:
        assert log.append(RAWS[0], SIGNATURE) == Entry(0, identity(RAWS[0]))
        entries = log.append_many([(raw, SIGNATURE) for raw in RAWS[1:20]])
        assert [entry.index for entry in entries] == list(range(1, 20))
        root = log.root()
    expected = LogTree(map(leaf_hash, RAWS[:20]))
    for read_only in (False, True):
        with ReceiptLog.open(path, read_only=read_only) as log:
            assert len(log) == 20
            assert log.torn is None
            assert log.root() == root == expected.root()
            assert log.root(7) == expected.root(7)
            assert log.heads([0, 7, 20]) == tuple(expected.head(size) for size in (0, 7, 20))
            assert [item.raw for item in log.entries(5)] == RAWS[5:20]
            for index, raw in enumerate(RAWS[:20]):
                found = log.get(identity(raw))
                assert (found.raw, found.signature, found.entry) == (raw, SIGNATURE, Entry(index, identity(raw)))
                assert identity(raw) in log
                assert verify_inclusion(leaf_hash(raw), log.prove(identity(raw)))
                assert log.by_call(f"call_{index:032x}") == (found.entry,)
            assert verify_consistency(log.head(7), log.head(), log.prove_consistency(7))


def test_the_sync_comes_before_the_answer(path):
    """When an append returns, its bytes were in the file when the file was last synced."""
    synced = []
    with ReceiptLog.open(path, sync=lambda handle: synced.append(os.fstat(handle).st_size)) as log:
        for raw in RAWS[:5]:
            log.append(raw, SIGNATURE)
            assert synced[-1] == path.stat().st_size
        count = len(synced)
        log.append_many([(raw, SIGNATURE) for raw in RAWS[5:100]])
        assert len(synced) == count + 1
        log.append(RAWS[0], SIGNATURE)
        assert len(synced) == count + 1


def test_a_receipt_is_stored_once_for_ever(path):
    """The same receipt gets the entry it has: in one batch, in the next one and after opening again."""
    with ReceiptLog.open(path) as log:
        first, again, other = log.append_many([(RAWS[0], SIGNATURE), (RAWS[0], SIGNATURE), (RAWS[1], SIGNATURE)])
        assert first == again == log.append(RAWS[0], SIGNATURE)
        assert (other.index, len(log)) == (1, 2)
    with ReceiptLog.open(path) as log:
        assert log.append(RAWS[1], SIGNATURE) == other
        assert len(log) == 2


def test_a_call_has_one_receipt_unless_it_is_superseded(path):
    """Other bytes for a call are a conflict; a correction must name the call's latest receipt, and then leads."""
    other = raw_receipt(0, payer="payer:other")
    second = raw_receipt(0, supersedes=identity(RAWS[0]))
    fork = raw_receipt(0, supersedes=identity(RAWS[0]), payer="payer:fork")
    third = raw_receipt(0, supersedes=identity(second))
    foreign = raw_receipt(0, supersedes=identity(RAWS[1]))
    unknown = raw_receipt(2, supersedes="00" * 32)
    for reopened in (False, True):
        with ReceiptLog.open(path) as log:
            if not reopened:
                log.append_many([(RAWS[0], SIGNATURE), (RAWS[1], SIGNATURE), (second, SIGNATURE)])
            for raw, code in [
                (other, "call_receipted"),
                (fork, "superseded_twice"),
                (foreign, "superseded_missing"),
                (unknown, "superseded_missing"),
            ]:
                with pytest.raises(ConflictError) as refusal:
                    log.append(raw, SIGNATURE)
                assert refusal.value.code == code
            assert [entry.index for entry in log.by_call("call_" + "0" * 32)] == [0, 2]
    with ReceiptLog.open(path) as log:
        log.append(third, SIGNATURE)
        assert [entry.index for entry in log.by_call("call_" + "0" * 32)] == [0, 2, 3]
        assert log.by_call("call_" + "f" * 32) == ()


def test_a_batch_in_conflict_leaves_nothing(path):
    """All or none: a conflict at the end of a batch, even with itself, keeps its beginning out."""
    with ReceiptLog.open(path) as log:
        log.append(RAWS[0], SIGNATURE)
        size = path.stat().st_size
        correction = raw_receipt(1, supersedes=identity(RAWS[1]))
        for bad in (raw_receipt(0, payer="x"), raw_receipt(2, payer="x"), raw_receipt(1, supersedes="00" * 32)):
            with pytest.raises(ConflictError):
                log.append_many([(raw, SIGNATURE) for raw in (RAWS[1], RAWS[2], correction, bad)])
        assert (len(log), path.stat().st_size) == (1, size)
        assert log.by_call("call_" + f"{1:032x}") == ()
        assert len(log.append_many([(raw, SIGNATURE) for raw in (RAWS[1], RAWS[2], correction)])) == 3


@pytest.mark.parametrize(
    ("raw", "signature", "code"),
    [
        (b"", SIGNATURE, "not_a_receipt"),
        (b"{}", SIGNATURE, "not_a_receipt"),
        (b"\xff", SIGNATURE, "not_a_receipt"),
        (b'{"call_id":"call_1","supersedes":null}', SIGNATURE, "not_a_receipt"),
        (b'{"call_id":"call_' + b"0" * 32 + b'","supersedes":"no"}', SIGNATURE, "receipt_id_invalid"),
        (b"x" * (RECEIPT_SIZE_BYTES_MAX + 1), SIGNATURE, "receipt_too_large"),
        (RAWS[0], "", "signature_invalid"),
        (RAWS[0], SIGNATURE.upper(), "signature_invalid"),
    ],
)
def test_what_is_no_receipt_is_not_stored(path, raw, signature, code):
    """Bytes without a call and signatures of another form are refused before anything is written."""
    with ReceiptLog.open(path) as log:
        with pytest.raises(InvalidError) as refusal:
            log.append_many([(RAWS[1], SIGNATURE), (raw, signature)])
        assert refusal.value.code == code
        assert path.stat().st_size == len(FILE_HEADER)


def test_what_is_not_there_is_said_to_be_missing(path):
    """Unknown ids, malformed ids and places outside the log each have their own refusal."""
    with ReceiptLog.open(path) as log:
        log.append(RAWS[0], SIGNATURE)
        for ask, kind, code in [
            (lambda: log.get("00" * 32), MissingError, "receipt_missing"),
            (lambda: log.prove("00" * 32), MissingError, "receipt_missing"),
            (lambda: log.get("zz"), InvalidError, "receipt_id_invalid"),
            (lambda: log.by_call("call_1"), InvalidError, "call_id_invalid"),
            (lambda: log.at(1), InvalidError, "log_index_invalid"),
            (lambda: log.at(-1), InvalidError, "log_index_invalid"),
            (lambda: log.root(2), InvalidError, "log_size_invalid"),
            (
                lambda: log.append_many([(RAWS[0], SIGNATURE)] * (RECEIPT_BATCH_MAX + 1)),
                InvalidError,
                "batch_too_large",
            ),
        ]:
            with pytest.raises(kind) as refusal:
                ask()
            assert refusal.value.code == code
        assert "00" * 32 not in log
        assert "zz" * 32 not in log
        assert log.append_many([]) == ()


# -- damage ----------------------------------------------------------------------------------------


def test_a_last_frame_cut_at_any_byte_is_cut_off_and_reported(path):
    """However much of the last write is missing, the frames before it stand and the log goes on."""
    whole = filled(path, 3)
    start = len(whole) - FRAME_HEADER_BYTES - 65 - len(RAWS[2])
    for size in range(start + 1, len(whole)):
        path.write_bytes(whole[:size])
        with ReceiptLog.open(path, read_only=True) as log:
            assert len(log) == 2
        assert path.stat().st_size == size
        with ReceiptLog.open(path, sync=lambda _: None) as log:
            assert log.torn is not None
            assert (log.torn.offset, log.torn.size_bytes) == (start, size - start)
            assert (len(log), path.stat().st_size) == (2, start)
            assert log.append(RAWS[2], SIGNATURE).index == 2
        assert path.read_bytes() == whole


@pytest.mark.parametrize("zeros", [1, 11, 12, 500, 9 * 2**20])
def test_a_tail_of_zeros_is_cut_off(path, zeros):
    """A file that was lengthened but never written ends in zeros: that is a cut write, too."""
    whole = filled(path, 3)
    path.write_bytes(whole + bytes(zeros))
    with ReceiptLog.open(path) as log:
        assert (log.torn.offset, log.torn.size_bytes, len(log)) == (len(whole), zeros, 3)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("zeros", [12, 9 * 2**20])
def test_zeros_with_something_behind_them_are_damage(path, zeros):
    """Zeros are a cut write only when nothing follows."""
    whole = filled(path, 3)
    path.write_bytes(whole + bytes(zeros) + b"x")
    with pytest.raises(UpstreamError) as refusal:
        ReceiptLog.open(path)
    assert refusal.value.code == "log_damaged"


def test_a_flipped_bit_at_any_byte_is_refused(path):
    """No promised record is dropped silently: file and offset are named, the file is left as it is."""
    whole = filled(path, 2)
    frame = FRAME_HEADER_BYTES + 65 + len(RAWS[0])
    for at in range(len(whole)):
        damaged = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
        path.write_bytes(damaged)
        for read_only in (False, True)[: 1 + (at % 16 == 0)]:
            with pytest.raises(HeadwaterError) as refusal:
                ReceiptLog.open(path, read_only=read_only)
            if at < len(FILE_HEADER):
                assert refusal.value.code == "log_header_invalid"
            else:
                offset = len(FILE_HEADER) + (at - len(FILE_HEADER)) // frame * frame
                assert refusal.value.code == "log_damaged"
                assert f"byte {offset}:" in str(refusal.value)
            assert str(path) in str(refusal.value)
            assert refusal.value.fix
        assert path.read_bytes() == damaged


def test_frames_moved_repeated_or_taken_out_are_refused(path):
    """A frame fits its own place only, even when each frame by itself is whole."""
    whole = filled(path, 4)
    frame = FRAME_HEADER_BYTES + 65 + len(RAWS[0])
    head, frames = whole[: len(FILE_HEADER)], whole[len(FILE_HEADER) :]
    parts = [frames[at : at + frame] for at in range(0, len(frames), frame)]
    for order in ([1, 0, 2, 3], [0, 2, 3], [0, 1, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3, 3]):
        path.write_bytes(head + b"".join(parts[i] for i in order))
        with pytest.raises(UpstreamError) as refusal:
            ReceiptLog.open(path)
        assert refusal.value.code == "log_damaged"


def test_a_damaged_tail_can_be_cut_on_purpose_and_is_kept_aside(path):
    """What opening refuses a person may cut; the bytes go to a file beside the log and nothing good is lost."""
    whole = filled(path, 3)
    frame = FRAME_HEADER_BYTES + 65 + len(RAWS[0])
    offset = len(FILE_HEADER) + 2 * frame
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    cut = cut_damaged_tail(path)

    assert (cut.offset, cut.size_bytes) == (offset, frame)
    assert path.read_bytes() == whole[:offset]
    assert len(path.with_name(f"receipts.log.cut-{offset}").read_bytes()) == frame
    assert held(path) == RAWS[:2]
    assert cut_damaged_tail(path) is None


def test_a_frame_that_changes_under_an_open_log_is_noticed(path):
    """Reading checks the frame again, so rot that comes later is not served."""
    filled(path, 2)
    with ReceiptLog.open(path) as log:
        with open(path, "r+b") as file:
            file.seek(len(FILE_HEADER) + 200)
            file.write(b"#")
        with pytest.raises(UpstreamError) as refusal:
            log.get(identity(RAWS[0]))
        assert refusal.value.code == "log_damaged"
        assert log.get(identity(RAWS[1])).raw == RAWS[1]


@pytest.mark.parametrize("size", range(len(FILE_HEADER)))
def test_a_log_whose_making_was_cut_short_is_made(path, size):
    """Any beginning of the header is a file somebody just started."""
    path.write_bytes(FILE_HEADER[:size])
    with ReceiptLog.open(path, read_only=True) as log:
        assert len(log) == 0
    with ReceiptLog.open(path) as log:
        log.append(RAWS[0], SIGNATURE)
    assert held(path) == RAWS[:1]


@pytest.mark.parametrize("content", [b"x", b"SQLite format 3\x00" * 10, FILE_HEADER[:-1] + b"\x00"])
def test_another_file_is_not_taken_for_a_log(path, content):
    """A file of something else is refused and left alone."""
    path.write_bytes(content)
    with pytest.raises(InvalidError) as refusal:
        ReceiptLog.open(path)
    assert refusal.value.code == "log_header_invalid"
    assert path.read_bytes() == content


def test_a_folder_is_not_taken_for_a_log(tmp_path):
    """A path that cannot be a log ends in a clean error, for writing and for reading."""
    for read_only in (False, True):
        with pytest.raises(UpstreamError):
            ReceiptLog.open(tmp_path, read_only=read_only)


def test_windows_of_reading_do_not_show(path, monkeypatch):
    """A log many times the size of a reading window opens the same, torn tail included."""
    whole = filled(path, 60)
    monkeypatch.setattr("headwater.store.receipt_frames.WINDOW_BYTES", 2 * len(RAWS[0]))
    assert held(path) == RAWS[:60]
    path.write_bytes(whole[:-1])
    assert held(path) == RAWS[:59]
    path.write_bytes(whole + bytes(20 * len(RAWS[0])))
    assert held(path) == RAWS[:60]
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(UpstreamError, match="damaged"):
        held(path)


# -- one writer, many readers ----------------------------------------------------------------------

WRITER = """
import json, sys
from headwater.store.receipt_log import ReceiptLog
path, signature = sys.argv[1:]
log = ReceiptLog.open(path)
print("open", flush=True)
for line in sys.stdin:
    entry = log.append(bytes.fromhex(line), signature)
    print(json.dumps([entry.index, entry.id]), flush=True)
"""


def writer(path):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), SIGNATURE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_second_writer_is_refused_and_readers_follow(path):
    """While one process writes, another may only read, and sees what was added when it refreshes."""
    process = writer(path)
    try:
        assert process.stdout.readline() == "open\n"
        for open_log in (ReceiptLog.open, cut_damaged_tail):
            with pytest.raises(ConflictError) as refusal:
                open_log(path)
            assert refusal.value.code == "log_locked"
            assert str(path) in str(refusal.value)
        with ReceiptLog.open(path, read_only=True) as log:
            for count, raw in enumerate(RAWS[:5], 1):
                process.stdin.write(raw.hex() + "\n")
                process.stdin.flush()
                assert json.loads(process.stdout.readline()) == [count - 1, identity(raw)]
                assert identity(raw) not in log
                assert (log.refresh(), len(log)) == (1, count)
                assert log.get(identity(raw)).raw == raw
            with pytest.raises(ConflictError) as refusal:
                log.append(RAWS[9], SIGNATURE)
            assert refusal.value.code == "log_read_only"
    finally:
        process.kill()
        process.communicate()
    with ReceiptLog.open(path) as log:
        assert len(log) == 5


def test_a_reader_forgets_what_the_writer_took_back(path):
    """A batch that was seen in the file but then rolled back is gone from the reader, too."""
    before = filled(path, 2)
    filled(path, 3)
    with ReceiptLog.open(path, read_only=True) as log:
        assert len(log) == 3
        path.write_bytes(before)
        assert log.refresh() == -1
        assert identity(RAWS[2]) not in log
        with ReceiptLog.open(path) as other:
            other.append_many([(RAWS[7], SIGNATURE), (RAWS[8], SIGNATURE)])
        assert log.refresh() == 2
        assert [item.raw for item in log] == [*RAWS[:2], *RAWS[7:9]]


def test_a_reader_notices_a_replaced_middle_under_an_unchanged_end(path):
    """Frames that were taken back and written again with one other among them are read anew: the last one tells."""
    filled(path, 2)
    before = path.read_bytes()
    with ReceiptLog.open(path) as log:
        log.append_many([(raw, SIGNATURE) for raw in (RAWS[5], RAWS[9])])
    with ReceiptLog.open(path, read_only=True) as reader:
        path.write_bytes(before)
        with ReceiptLog.open(path) as log:
            log.append_many([(raw, SIGNATURE) for raw in (RAWS[6], RAWS[9])])
            assert reader.refresh() == 0
            assert reader.root() == log.root()
            assert identity(RAWS[5]) not in reader


@pytest.mark.parametrize("size", [len(FILE_HEADER) + 5, len(FILE_HEADER) + 4_000, 30_000])
def test_a_file_that_shrinks_while_it_is_read_just_ends_earlier(path, size, monkeypatch):
    """A reader that meets a writer taking a batch back neither hangs nor crashes."""
    filled(path, 20)
    monkeypatch.setattr("headwater.store.receipt_frames.WINDOW_BYTES", 10_000)
    true_size = os.fstat

    def shrinking(handle):
        status = true_size(handle)
        os.truncate(path, size)
        return status

    with monkeypatch.context() as patch:
        patch.setattr("headwater.store.receipt_log.os.fstat", shrinking)
        with ReceiptLog.open(path, read_only=True) as log:
            assert [item.raw for item in log] == RAWS[
                : (size - len(FILE_HEADER)) // (FRAME_HEADER_BYTES + 65 + len(RAWS[0]))
            ]


def test_a_missing_log_is_not_made_for_reading(path):
    """Reading makes no file; writing makes no folder."""
    with pytest.raises(MissingError):
        ReceiptLog.open(path, read_only=True)
    assert not path.exists()
    with pytest.raises(MissingError):
        ReceiptLog.open(path / "deeper" / "receipts.log")


def test_a_closed_log_takes_and_gives_nothing(path):
    """After closing, appends and reads are refused, and another may write."""
    log = ReceiptLog.open(path)
    log.append(RAWS[0], SIGNATURE)
    log.close()
    log.close()
    for ask in (lambda: log.append(RAWS[1], SIGNATURE), lambda: log.get(identity(RAWS[0])), lambda: log.at(0)):
        with pytest.raises(UpstreamError) as refusal:
            ask()
        assert refusal.value.code == "log_closed"
    ReceiptLog.open(path).close()


def test_threads_share_syncs_and_each_gets_its_own_entry(path):
    """Many threads append at once: all is stored once, in one order, with far fewer syncs than receipts."""
    syncs = []
    gate = threading.Barrier(16)
    results = {}

    def sync(handle):
        os.fdatasync(handle)
        syncs.append(1)

    with ReceiptLog.open(path, sync=sync) as log:

        def work(start):
            gate.wait()
            for raw in [*RAWS[start:256:16], RAWS[0]]:
                results[threading.get_ident(), raw] = log.append(raw, SIGNATURE)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(log) == 256
        assert sorted({entry.index for entry in results.values()}) == list(range(256))
        assert all(log.at(entry.index).raw == raw for (_, raw), entry in results.items())
        assert len(syncs) < 256
    assert sorted(held(path)) == sorted(RAWS[:256])


def test_one_threads_conflict_is_not_anothers(path):
    """Within one group, only the caller in conflict is refused."""
    entered, release = threading.Event(), threading.Event()
    outcomes = {}

    def sync(handle):
        entered.set()
        release.wait(10)
        os.fdatasync(handle)

    release.set()
    with ReceiptLog.open(path, sync=sync) as log:
        release.clear()
        entered.clear()

        def work(name, batch):
            try:
                outcomes[name] = [entry.index for entry in log.append_many([(raw, SIGNATURE) for raw in batch])]
            except ConflictError as error:
                outcomes[name] = error.code

        def start(name, batch):
            thread = threading.Thread(target=work, args=(name, batch))
            thread.start()
            return thread

        threads = [start("first", RAWS[:1])]
        assert entered.wait(10)
        for name, batch in {"bad": [RAWS[1], raw_receipt(0, payer="x")], "good": RAWS[1:3], "same": RAWS[:2]}.items():
            threads.append(start(name, batch))
            for _ in range(10_000):
                if len(log._commit._queue) == len(threads) - 1:
                    break
                threading.Event().wait(0.001)
        release.set()
        for thread in threads:
            thread.join()
        assert outcomes == {"first": [0], "bad": "call_receipted", "good": [1, 2], "same": [0, 1]}


# -- a failing disk --------------------------------------------------------------------------------


def test_a_full_disk_takes_back_the_batch_and_the_log_goes_on(path):
    """Beyond the room that is left nothing of a batch is kept; with room again the same batch is stored."""
    with ReceiptLog.open(path) as log:
        log.append_many([(raw, SIGNATURE) for raw in RAWS[:5]])
        before = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3 * len(RAWS[0]), hard))
        try:
            for _ in range(2):
                with pytest.raises(UpstreamError) as refusal:
                    log.append_many([(raw, SIGNATURE) for raw in RAWS[5:20]])
                assert refusal.value.code == "disk_full"
                assert path.read_bytes() == before
            assert log.append(RAWS[5], SIGNATURE).index == 5
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.append_many([(raw, SIGNATURE) for raw in RAWS[5:20]])
    assert held(path) == RAWS[:20]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_really_full_file_system_loses_nothing(tmp_path):
    """On a file system of 64 KiB, every acknowledged receipt is there after it has filled up, and no other."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this sandbox does not let us mount")
    try:
        path = disk / "receipts.log"
        stored = []

        def fill(log):
            for raw in RAWS:
                log.append(raw, SIGNATURE)
                stored.append(raw)

        with ReceiptLog.open(path) as log, pytest.raises(UpstreamError) as refusal:
            fill(log)
        assert refusal.value.code == "disk_full"
        assert 10 < len(stored) < 30
        with ReceiptLog.open(path) as log:
            assert log.torn is None
            assert [item.raw for item in log] == stored
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_failed_sync_ends_the_log_until_it_is_opened_again(path):
    """After a sync that failed nothing is trusted: the batch is taken back and no further one accepted."""
    broken = []

    def sync(handle):
        if broken:
            raise OSError(broken.pop(), "the disk is unwell")
        os.fdatasync(handle)

    with ReceiptLog.open(path, sync=sync) as log:
        log.append(RAWS[0], SIGNATURE)
        broken.append(errno.ENOSPC)
        with pytest.raises(UpstreamError) as refusal:
            log.append(RAWS[1], SIGNATURE)
        assert refusal.value.code == "disk_full"
        log.append(RAWS[2], SIGNATURE)
        broken.append(errno.EIO)
        with pytest.raises(UpstreamError) as refusal:
            log.append(RAWS[3], SIGNATURE)
        assert refusal.value.code == "log_write_failed"
        with pytest.raises(UpstreamError) as refusal:
            log.append(RAWS[4], SIGNATURE)
        assert refusal.value.code == "log_closed"
        assert log.get(identity(RAWS[2])).raw == RAWS[2]
    with ReceiptLog.open(path) as log:
        assert [item.raw for item in log] == [RAWS[0], RAWS[2]]
        log.append(RAWS[3], SIGNATURE)


def test_a_write_that_cannot_be_taken_back_ends_the_log(path, monkeypatch):
    """When even cutting the file fails, no further append is accepted; opening again finds the good frames."""

    def fails(*_):
        raise OSError(errno.EIO, "the disk is unwell")

    with ReceiptLog.open(path) as log:
        log.append(RAWS[0], SIGNATURE)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", fails)
            patch.setattr(os, "ftruncate", fails)
            with pytest.raises(UpstreamError):
                log.append(RAWS[1], SIGNATURE)
        with pytest.raises(UpstreamError) as refusal:
            log.append(RAWS[1], SIGNATURE)
        assert refusal.value.code == "log_closed"
    assert held(path) == RAWS[:1]


def test_an_interrupted_write_is_taken_back_and_others_are_told(path):
    """An interrupt in the middle of a write reaches its own thread; the log and the next caller go on."""
    interrupts = []

    def sync(handle):
        if interrupts:
            raise interrupts.pop()
        os.fdatasync(handle)

    with ReceiptLog.open(path, sync=sync) as log:
        log.append(RAWS[0], SIGNATURE)
        interrupts.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            log.append(RAWS[1], SIGNATURE)
        assert log.append(RAWS[2], SIGNATURE).index == 1
    assert held(path) == [RAWS[0], RAWS[2]]


# -- kill -9 ---------------------------------------------------------------------------------------

KILLED = """
import os, sys, threading
from headwater.store.receipt_log import ReceiptLog
path, raws, signature = sys.argv[1:]
raws = [bytes.fromhex(line) for line in open(raws)]
def append():
    log = ReceiptLog.open(path)
    def work(start):
        for at in range(start, len(raws), 4):
            # Some come alone, some in batches of four; each acknowledgement is one write to the pipe.
            batch = raws[at:at + 1] if at % 3 else raws[at:at + 4]
            entries = log.append_many([(raw, signature) for raw in batch])
            os.write(1, b"".join(b"%d %s\\n" % (entry.index, entry.id.encode()) for entry in entries))
    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
for _ in sys.stdin:  # everything is imported once; each line is answered by a process of its own
    child = os.fork()
    if child == 0:
        append()
        os._exit(0)
    os.write(1, b"child %d\\n" % child)
    os.write(1, b"\\nended %d\\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def kill(child):
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path, kills):
    """Kills of a real process at random moments: every acknowledged receipt is there, in its place, and once."""
    rng = random.Random(20261122)
    path, source = tmp_path / "receipts.log", tmp_path / "raws"
    raws = [raw_receipt(number) for number in range(8_000)]
    source.write_text("\n".join(raw.hex() for raw in raws))
    acknowledged = {}
    begun = 0
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(source), SIGNATURE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        for _ in range(kills):
            process.stdin.write(b"go\n")
            process.stdin.flush()
            timer = None
            while not (line := process.stdout.readline()).startswith(b"ended"):
                if line.startswith(b"child"):
                    child = int(line.split()[1])
                elif line.endswith(b"\n") and len(line.split()) == 2 and len(line.split()[1]) == 64:
                    index, name = line.split()
                    assert acknowledged.setdefault(name.decode(), int(index)) == int(index)
                    if timer is None:  # at a random moment of the appending, not of the start
                        timer = threading.Timer(rng.uniform(0.0, 0.06), kill, [child])
                        timer.start()
            begun += int(line.split()[1]) == -signal.SIGKILL
            timer.cancel()
            timer.join()
            with ReceiptLog.open(path, read_only=True) as log:
                assert all(log._known.find(bytes.fromhex(name)) == index for name, index in acknowledged.items())
        process.stdin.close()
    assert begun >= kills // 2
    assert len(acknowledged) > kills
    with ReceiptLog.open(path) as log:
        found = [item.entry.id for item in log]
        assert len(set(found)) == len(found) == len(log)
        assert all(found[index] == name for name, index in acknowledged.items())
        assert log.root() == LogTree(leaf_hash(item.raw) for item in log).root()
        assert set(found) <= set(map(identity, raws))


def test_the_lock_is_the_files_own(path):
    """The lock goes with the process that held it: a killed writer leaves nothing to clean up."""
    process = writer(path)
    assert process.stdout.readline() == "open\n"
    process.kill()
    process.communicate()
    with ReceiptLog.open(path), open(path, "rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
