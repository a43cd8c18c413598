"""Receipts handed to the process that owns the log: acknowledged, refused, cut off and fenced."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from headwater.core import errors
from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, UpstreamError
from headwater.receipts import Receipt
from headwater.store import log_wire
from headwater.store.database import ConstraintError
from headwater.store.log_service import LogService
from headwater.store.receipt_admission import Entry
from headwater.store.receipt_log import ReceiptLog
from headwater.store.remote_log import RemoteLog

EXAMPLE = json.loads((Path(__file__).parents[2] / "spec" / "vectors" / "receipt_signed.json").read_text("utf-8"))
RECEIPT = Receipt.from_bytes(EXAMPLE["receipt"].encode())
SIGNATURE = EXAMPLE["signature"]
RAWS = [replace(RECEIPT, call_id=f"call_{number:032x}").to_bytes() for number in range(300)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder with a short path: a socket's may have 107 bytes."""
    with TemporaryDirectory(prefix="hw-") as path:
        yield Path(path)


@pytest.fixture
def syncs() -> list[int]:
    """One item for each sync of the log."""
    return []


@pytest.fixture
def log(tmp_path: Path, syncs: list[int]) -> Iterator[ReceiptLog]:
    """The log."""

    def sync(handle: int) -> None:
        syncs.append(handle)
        time.sleep(0.002)  # a disk

    with ReceiptLog.open(tmp_path / "receipts.log", sync=sync) as opened:
        yield opened


@pytest.fixture
def service(log: ReceiptLog, folder: Path) -> Iterator[LogService]:
    """Its service."""
    running = LogService(log, folder / "log", frame_s=0.3)
    running.start()
    yield running
    running.close()


def items(raws: list[bytes]) -> list[tuple[bytes, str]]:
    """Receipts with a signature."""
    return [(raw, SIGNATURE) for raw in raws]


def refused(work) -> HeadwaterError:
    """What it raises."""
    with pytest.raises(HeadwaterError) as caught:
        work()
    return caught.value


def test_what_is_acknowledged_stands_in_the_log_as_it_was_sent(service: LogService, log: ReceiptLog) -> None:
    """Entries name the owner's places and the receipts' own ids; a receipt that is sent again keeps its place."""
    remote = RemoteLog(service.path, "run-1")
    entries = remote.append_each(items(RAWS[:20]))
    assert [log.at(entry.index).raw for entry in entries] == RAWS[:20]
    assert [entry.id for entry in entries] == [log.at(index).entry.id for index in range(20)]
    assert remote.append_each(items(RAWS[10:12])) == entries[10:12]
    assert len(remote) == len(log) == 20
    assert remote.append(RAWS[20], SIGNATURE) == Entry(20, log.at(20).entry.id)
    assert remote.append_each([]) == ()
    remote.close()


def test_each_receipt_gets_its_own_error_as_it_was_raised(service: LogService, log: ReceiptLog) -> None:
    """Class, code, message and fix come through; the others of the batch are stored."""
    remote = RemoteLog(service.path, "run-1")
    log.append(RAWS[0], SIGNATURE)
    other = replace(RECEIPT, call_id=f"call_{0:032x}", payer="payer:other").to_bytes()
    sent = [(RAWS[1], SIGNATURE), (other, SIGNATURE), (RAWS[2], "0x12"), (b" " * (2**20 + 1), SIGNATURE)]
    stored, conflict, form, large = remote.append_each(sent)
    assert isinstance(stored, Entry)
    direct = log.append_each(sent)
    for remotely, here in ((conflict, direct[1]), (form, direct[2]), (large, direct[3])):
        assert isinstance(here, HeadwaterError)
        assert type(remotely) is type(here)
        assert (remotely.code, remotely.message, remotely.fix) == (here.code, here.message, here.fix)
    assert isinstance(refused(lambda: remote.append(other, SIGNATURE)), ConflictError)
    remote.close()


def test_every_kind_of_error_travels() -> None:
    """A class of ours arrives as itself; one that only a store knows as the nearest; an unknown one as a failure."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HeadwaterError)]
    assert len(kinds) == 7
    for kind in kinds:
        found = log_wire.error_of(log_wire.fault_of(kind("said", code="some_code", fix="do")))
        assert (type(found), found.code, found.message, found.fix) == (kind, "some_code", "said", "do")
    assert type(log_wire.error_of(log_wire.fault_of(ConstraintError("x", kind="unique")))) is ConflictError
    assert type(log_wire.error_of(log_wire.Fault("SomethingNew", "c", "m", None))) is UpstreamError


def test_many_processes_share_syncs(service: LogService, log: ReceiptLog, syncs: list[int]) -> None:
    """Eight peers that append at once have far fewer syncs than batches, and every receipt is there."""
    before, gate = len(syncs), threading.Barrier(8)

    def append(number: int) -> None:
        remote = RemoteLog(service.path, f"run-{number}")
        gate.wait()
        for raw in RAWS[number::8]:
            remote.append(raw, SIGNATURE)
        remote.close()

    threads = [threading.Thread(target=append, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log) == 300
    assert len(syncs) - before < 150


def test_a_batch_larger_than_a_frame_goes_in_several(
    service: LogService, log: ReceiptLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is as for one."""
    monkeypatch.setattr("headwater.store.remote_log.FRAME_BYTES_MAX", 8 * len(RAWS[0]))
    remote = RemoteLog(service.path, "run-1")
    assert [entry.index for entry in remote.append_each(items(RAWS[:50]))] == list(range(50))
    remote.close()


def test_a_lost_log_stays_lost(service: LogService, log: ReceiptLog) -> None:
    """Each receipt of a batch is told so, also when another service is there by then; the watch is told once."""
    remote, gone = RemoteLog(service.path, "run-1"), threading.Event()
    remote.watch(gone.set)
    remote.append(RAWS[0], SIGNATURE)
    assert not remote.broken
    assert not gone.is_set()
    service.close()
    assert gone.wait(5)
    outcomes = remote.append_each(items(RAWS[1:3]))
    assert [outcome.code for outcome in outcomes] == ["log_unreachable"] * 2
    assert remote.broken
    again = LogService(log, service.path)
    again.start()
    assert refused(lambda: len(remote)).code == "log_unreachable"
    other = RemoteLog(service.path, "run-2")
    other.append(RAWS[3], SIGNATURE)
    other.close()
    remote.close()
    again.close()
    assert len(log) == 2


def test_no_service_is_waited_for_so_long_and_no_longer(folder: Path) -> None:
    """An error with its code, not a hang."""
    assert refused(lambda: RemoteLog(folder / "log", "run-1", patience_s=0.05)).code == "log_unreachable"


def test_a_fenced_run_appends_nothing_more_on_any_connection(service: LogService, log: ReceiptLog) -> None:
    """Neither on the connection it had nor on a new one; others go on."""
    dead, live = RemoteLog(service.path, "dead"), RemoteLog(service.path, "live")
    dead.append(RAWS[0], SIGNATURE)
    assert service.connections() == 2
    service.fence("dead")
    assert refused(lambda: dead.append(RAWS[1], SIGNATURE)).code in ("log_unreachable", "run_fenced")
    late = RemoteLog(service.path, "dead")
    assert refused(lambda: late.append(RAWS[1], SIGNATURE)).code == "run_fenced"
    live.append(RAWS[2], SIGNATURE)
    assert len(log) == 2
    for remote in (dead, late, live):
        remote.close()


def test_a_fence_waits_for_what_is_under_way(tmp_path: Path, folder: Path) -> None:
    """When it returns the log has all it will ever have of that run."""
    writing, go_on = threading.Event(), threading.Event()

    def slow(_: int) -> None:
        writing.set()
        go_on.wait(5)

    go_on.set()
    with ReceiptLog.open(tmp_path / "slow.log", sync=slow) as log:
        service = LogService(log, folder / "log")
        service.start()
        remote = RemoteLog(service.path, "dead")
        go_on.clear()
        writing.clear()
        sender = threading.Thread(target=remote.append_each, args=(items(RAWS[:1]),))
        sender.start()
        assert writing.wait(5)
        fence = threading.Thread(target=service.fence, args=("dead",))
        fence.start()
        fence.join(0.1)
        assert fence.is_alive()
        go_on.set()
        fence.join(5)
        assert not fence.is_alive()
        assert len(log) == 1
        sender.join()
        remote.close()
        service.close()


NONSENSE = {
    "garbage": b"\x00\x00\x00\x05hello",
    "a frame without end": b"\xff\xff\xff\xff",
    "nothing in it": b"\x00\x00\x00\x00",
    "half a frame": b"\x00\x00\x01\x00half",
    "half a length": b"\x00\x00",
    "deeper than anything": (1000).to_bytes(4, "big") + b"\x91" * 1000,
    "another greeting": (lambda body: len(body).to_bytes(4, "big") + body)(b"\x93\xa5hello\xa1x\xa1y"),
    "no greeting": (lambda body: len(body).to_bytes(4, "big") + body)(b"\x91\xa5count"),
}


@pytest.mark.parametrize("words", NONSENSE.values(), ids=NONSENSE.keys())
def test_what_is_no_request_ends_its_own_connection_only(service: LogService, log: ReceiptLog, words: bytes) -> None:
    """The peer is let go, in bounded time; the log and other peers are as before."""
    good = RemoteLog(service.path, "good")
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(str(service.path))
        bad.settimeout(5)
        bad.sendall(words)
        while bad.recv(4096):
            pass
    good.append(RAWS[0], SIGNATURE)
    assert len(log) == 1
    good.close()


def test_another_version_is_refused_by_name(service: LogService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of another version says so at its start and appends nothing."""
    monkeypatch.setattr("headwater.store.remote_log.VERSION", 2)
    assert refused(lambda: RemoteLog(service.path, "run-1")).code == "log_version_other"


def test_the_socket_is_its_owners(service: LogService, log: ReceiptLog, folder: Path) -> None:
    """0600 in a folder that nobody else may enter; another folder, a taken path and a long one are refused."""
    assert service.path.stat().st_mode & 0o777 == 0o600
    assert refused(LogService(log, service.path).start).code == "socket_in_use"
    shared = folder / "open"
    shared.mkdir()
    shared.chmod(0o755)
    assert refused(LogService(log, shared / "log").start).code == "socket_folder_open"
    assert refused(LogService(log, folder / ("x" * 120)).start).code == "socket_path_too_long"


def test_closing_leaves_nothing_behind(log: ReceiptLog, folder: Path) -> None:
    """No thread, no file; closing twice is fine, and the path can be used again."""
    before = threading.active_count()
    for _ in range(3):
        service = LogService(log, folder / "log")
        service.start()
        remotes = [RemoteLog(service.path, f"run-{number}") for number in range(3)]
        service.close()
        service.close()
        for remote in remotes:
            remote.close()
    assert threading.active_count() == before
    assert list(folder.iterdir()) == []


PEER = """
import json, sys
from pathlib import Path
from headwater.store.remote_log import RemoteLog
sent = json.loads(sys.stdin.readline())
log = RemoteLog(Path(sys.argv[1]), sys.argv[2])
for raw, signature in sent:
    print(log.append(raw.encode(), signature).index, flush=True)
"""


def test_a_killed_process_keeps_what_was_acknowledged(service: LogService, log: ReceiptLog) -> None:
    """kill -9 in the middle: every receipt that it was told of is in the log, and the service goes on."""
    peer = subprocess.Popen(
        [sys.executable, "-c", PEER, str(service.path), "run-1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        peer.stdin.write(json.dumps([(raw.decode(), SIGNATURE) for raw in RAWS]) + "\n")
        peer.stdin.flush()
        told = [int(peer.stdout.readline()) for _ in range(40)]
        peer.kill()
        told += [int(line) for line in peer.stdout if line.strip()]
    service.fence("run-1")
    size = len(log)
    assert told == list(range(len(told)))
    assert size >= len(told)
    assert [log.at(index).raw for index in told] == RAWS[: len(told)]
    with pytest.raises(InvalidError):
        log.append(b"{}", SIGNATURE)
    assert len(log) == size
