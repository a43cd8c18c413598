"""The receipt log on disk: appended once, synced before it is acknowledged, kept for ever.

Invariants: an entry that was returned is on the disk; an id is stored once; a call has one chain of
receipts, each naming the one it supersedes; the Merkle tree covers the entries in file order. One
process writes, any number read. Threads that append at the same time share one sync: whoever comes
first writes for all who wait.

Damage is told apart: a file that ends too early is a write nobody was promised and is cut off on
opening (`torn` says so); a frame that does not fit its checksum is refused with its offset.

Knows nothing of what receipts say beyond their call and what they supersede.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn

from msgspec import Struct

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, MissingError, UpstreamError
from headwater.core.ids import check_receipt_id, is_call_id, receipt_id
from headwater.core.limits import RECEIPT_BATCH_MAX
from headwater.receipts.log import InclusionProof, LogTree, TreeHead, leaf_hash
from headwater.store.group_commit import GroupCommit, Unit
from headwater.store.receipt_admission import Batch, Entry, Fresh, Group, entries_of, read_batch, read_call, settle
from headwater.store.receipt_file import (
    TornTail,
    begin_write,
    between_writes,
    check_header,
    damaged,
    end_write,
    lock_for_writing,
    open_file,
    set_aside,
    start_file,
    try_begin_write,
    write_all,
)
from headwater.store.receipt_frames import (
    FILE_HEADER,
    FIRST_CHECK,
    FRAME_HEADER_BYTES,
    Damage,
    encode,
    scan,
    split_frame,
)
from headwater.store.receipt_index import ReceiptIndex

if TYPE_CHECKING:
    from headwater.store.receipt_sealed import SealedPointer, SealedReceipts

FINISH_S: Final = 10.0
"""How long closing waits for a write to be finished; whoever began it may be gone."""

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class LoggedReceipt:
    """What the log holds of one receipt."""

    entry: Entry
    raw: bytes  # the receipt's canonical bytes
    signature: str  # 0x and 130 hex digits


class Written(Struct, frozen=True, gc=False):
    """Receipts that are in the file and not yet durable; `ReceiptLog.finish` takes them."""

    handle: int  # of the file to sync
    fresh: Fresh
    starts: Sequence[int]  # of each frame, from the first
    end: int  # of the last frame in the file
    check: int  # of the last frame


class ReceiptLog:
    """An open receipt log; safe to share between threads. Use `ReceiptLog.open`."""

    def __init__(self, path: Path, handle: int, *, writable: bool, sync: Callable[[int], None]) -> None:
        self.path = path
        self.torn: TornTail | None = None
        self._handle = handle
        self._writable = writable
        self._sync = sync
        self._end = len(FILE_HEADER)
        self._check = FIRST_CHECK  # of the last frame
        self._offsets = array("Q")
        self._known = ReceiptIndex()
        self._sealed: SealedReceipts | None = None  # whose bytes are no longer in the file
        self._room = 0  # up to where blocks are reserved
        self._tree = LogTree()
        self._state = threading.RLock()  # guards all of the above for readers
        self._writing = threading.Lock()  # held by the thread that writes
        self._commit: GroupCommit[Batch, tuple[Entry, ...]] = GroupCommit(
            self._write, items_max=RECEIPT_BATCH_MAX, interrupted=lambda: _interrupted(path)
        )
        self._broken: str | None = None

    @classmethod
    def open(
        cls, path: Path | str, *, read_only: bool = False, sync: Callable[[int], None] = os.fdatasync
    ) -> ReceiptLog:
        """Open the log at `path`, for writing unless `read_only`, and make it when it is not there.

        Args:
            path: the file; its folder must exist.
            read_only: take no lock, change nothing; `refresh` follows the writer.
            sync: makes what was written to a file descriptor durable.

        Raises:
            MissingError: read-only and no such file, or no such folder.
            ConflictError: another process (or this one) has it open for writing.
            InvalidError: the file is something else, or of a version this one cannot read.
            UpstreamError: a frame is damaged; file and offset are named and nothing is changed.
        """
        path = Path(path)
        handle = open_file(path, read_only)
        try:
            if not read_only:
                lock_for_writing(handle, path)
                start_file(handle, path, sync)
            log = cls(path, handle, writable=not read_only, sync=sync)
            log._load()
        except OSError as error:
            os.close(handle)
            raise _not_read(path, error) from error
        except BaseException:
            os.close(handle)
            raise
        return log

    def close(self) -> None:
        """Let go of the file and its lock. Whoever still waits to append is refused."""
        held = self._writing.acquire(timeout=FINISH_S)
        try:
            with self._state:
                self._broken = self._broken or "it is closed"
                if self._handle >= 0:
                    os.close(self._handle)
                    self._handle = -1
        finally:
            if held:
                self._writing.release()

    def __enter__(self) -> ReceiptLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, identity: object) -> bool:
        return isinstance(identity, str) and len(identity) == 64 and self._find(identity) is not None

    def __iter__(self) -> Iterator[LoggedReceipt]:
        return self.entries()

    @property
    def broken(self) -> bool:
        """Whether it takes no more receipts until it is opened again; what was written last may or may not be in it."""
        return self._broken is not None

    def append(self, raw: bytes, signature: str) -> Entry:
        """Store one receipt; when this returns it is on the disk. See `append_many`."""
        return self.append_many(((raw, signature),))[0]

    def append_many(self, receipts: Sequence[tuple[bytes, str]]) -> tuple[Entry, ...]:
        """Store receipts, all or none; when this returns they are on the disk.

        A receipt that is already stored, or comes twice in the batch, gets the entry it has.

        Args:
            receipts: (canonical bytes, signature) as `receipts.issue` gave them, at most 65,536.

        Returns:
            One entry per receipt, in order.

        Raises:
            InvalidError: not a receipt, too large, or too many at once.
            ConflictError: the call has another receipt already, and this one does not supersede its latest.
            UpstreamError: the disk is full (nothing of the batch was kept, later ones may succeed) or failed.
        """
        if not self._writable:
            raise ConflictError(
                f"{self.path} is open for reading only",
                code="log_read_only",
                fix="append in the process that writes it",
            )
        if len(receipts) > RECEIPT_BATCH_MAX:
            raise InvalidError(
                f"{len(receipts)} receipts in one batch, the limit is {RECEIPT_BATCH_MAX}",
                code="batch_too_large",
                fix="append them in several batches",
            )
        if not receipts:
            return ()
        return self._commit.submit(read_batch(receipts))

    def append_each(self, receipts: Sequence[tuple[bytes, str]]) -> tuple[Entry | HeadwaterError, ...]:
        """Store receipts of different writers: each gets its entry or its own error. See `append_many`."""
        try:
            return self.append_many(receipts)
        except (InvalidError, ConflictError) as error:
            if len(receipts) == 1:
                return (error,)
            # Found by halving: the good ones still share their syncs.
            middle = len(receipts) // 2
            return (*self.append_each(receipts[:middle]), *self.append_each(receipts[middle:]))
        except HeadwaterError as error:
            return (error,) * len(receipts)

    def get(self, identity: str) -> LoggedReceipt:
        """The receipt with this id.

        Raises:
            InvalidError: not a receipt id.
            MissingError: not in the log.
            UpstreamError: it no longer fits its checksum.
        """
        return self.at(self._index(identity))

    def place(self, identity: bytes) -> int | None:
        """The index of the receipt with these 32 bytes of id, or nothing when it is not in the log."""
        try:
            return self._index(identity.hex())
        except MissingError:
            return None

    def at(self, index: int) -> LoggedReceipt:
        """The receipt at `index`."""
        with self._state:
            self._tree.leaf(index)  # refuses an index outside the log
            if self._sealed is not None and index < self._sealed.pointer.size:
                return self._at_sealed(self._sealed, index)
            start = self._offsets[index]
            end = self._offsets[index + 1] if index + 1 < len(self._offsets) else self._end
            self._refuse_broken(reading=True)
            try:
                frame = os.pread(self._handle, end - start, start)
            except OSError as error:
                raise _not_read(self.path, error) from error
        parts = split_frame(frame)
        if parts is None:
            sealed = self._newly_sealed(index)
            if sealed is not None:
                return self._at_sealed(sealed, index)
            raise damaged(self.path, Damage(start, f"frame {index} changed after it was read", torn=False))
        raw, signature = parts
        return LoggedReceipt(Entry(index, receipt_id(raw)), raw, "0x" + signature.hex())

    def end_of(self, index: int) -> tuple[int, int]:
        """Where the frame of an entry ends in the file, and its check; not for entries whose bytes were given back."""
        with self._state:
            self._tree.leaf(index)
            end = self._offsets[index + 1] if index + 1 < len(self._offsets) else self._end
            return end, self._check_on_disk(index)

    def _at_sealed(self, sealed: SealedReceipts, index: int) -> LoggedReceipt:
        raw, signature = sealed.read(index)
        if leaf_hash(raw) != self._tree.leaf(index):
            raise UpstreamError(
                f"sealed receipt {index} is not the one the log holds",
                code="segments_damaged",
                fix="restore the segments from another copy",
            )
        return LoggedReceipt(Entry(index, receipt_id(raw)), raw, "0x" + signature.hex())

    def _newly_sealed(self, index: int) -> SealedReceipts | None:
        """The segments that took over since this log was opened, if they hold the entry."""
        with self._state:
            pointer = self._pointer()
            if pointer is None or index >= pointer.size:
                return None
            self._sealed = _sealed_receipts(self.path, pointer)
            return self._sealed

    def _pointer(self) -> SealedPointer | None:
        """Asked for only where a log has the file: reading segments takes pyarrow."""
        if not self.path.with_name(self.path.name + ".sealed").exists():
            return None
        from headwater.store.receipt_sealed import read_pointer

        return read_pointer(self.path)

    def by_call(self, call_id: str) -> tuple[Entry, ...]:
        """The receipts of a call, oldest first; the last one is in force. Empty when there is none."""
        if not is_call_id(call_id):
            raise InvalidError(
                f"{call_id[:80]!r} is not a call id", code="call_id_invalid", fix="give call_ and 32 hex digits"
            )
        with self._state:
            return tuple(self.at(index).entry for index in self._known.chain(bytes.fromhex(call_id[5:])))

    def in_force(self, call_id: str) -> LoggedReceipt | None:
        """The newest receipt of a call, which is the one in force, or nothing while it has none."""
        entries = self.by_call(call_id)
        return self.at(entries[-1].index) if entries else None

    def entries(self, start: int = 0) -> Iterator[LoggedReceipt]:
        """The receipts from index `start` on, in order, up to the size the log has when asked for."""
        for index in range(max(start, 0), len(self)):
            yield self.at(index)

    def head(self, size: int | None = None) -> TreeHead:
        """Size and Merkle root of the log, or of its first `size` entries."""
        with self._state:
            return self._tree.head(size)

    def promised(self) -> TreeHead:
        """The head of what was acknowledged: never of entries that their writer may still take back.

        A log opened for reading catches up first, and waits for a write that is under way.
        """
        if self._writable:
            return self.head()
        with self._state:
            self._refuse_broken(reading=True)
            with between_writes(self._handle):
                self.refresh()
                os.fsync(self._handle)  # of a writer that was killed before it could sync
                return self.head()

    def nodes(self, height: int, first: int, count: int) -> bytes:
        """The hashes of `count` full subtrees of 2^height entries, from place `first` on; 32 bytes each."""
        with self._state:
            return self._tree.nodes(height, first, count)

    def heads(self, sizes: Sequence[int]) -> tuple[TreeHead, ...]:
        """The heads the log had at several sizes, all of one moment."""
        with self._state:
            return tuple(self._tree.head(size) for size in sizes)

    def root(self, size: int | None = None) -> bytes:
        """The Merkle root (32 bytes) of the log, or of its first `size` entries."""
        return self.head(size).root

    def prove(self, identity: str, size: int | None = None) -> InclusionProof:
        """That the receipt is among the first `size` entries; among all when not given."""
        with self._state:
            return self._tree.prove_inclusion(self._index(identity), size)

    def prove_consistency(self, old_size: int, new_size: int | None = None) -> tuple[bytes, ...]:
        """That the log of `old_size` is a beginning of the log of `new_size`."""
        with self._state:
            return self._tree.prove_consistency(old_size, new_size)

    def refresh(self) -> int:
        """Read what the writer added since; the number of new entries. Only for a log opened for reading.

        Frames that the writer took back (its disk was full) are forgotten here, too.
        """
        with self._state:
            self._refuse_broken(reading=True)
            before = len(self)
            try:
                begun = self._sealed.pointer.size if self._sealed else 0
                if before > begun and self._check_on_disk(before - 1) != self._check:
                    self._forget()
                self._load()
            except OSError as error:
                raise _not_read(self.path, error) from error
            return len(self) - before

    def _find(self, identity: str) -> int | None:
        try:
            return self._known.find(bytes.fromhex(identity))
        except ValueError:
            return None

    def _index(self, identity: str) -> int:
        index = self._find(check_receipt_id(identity))
        if index is None:
            raise MissingError(
                f"no receipt {identity} in {self.path}",
                code="receipt_missing",
                fix="check the id, or ask another operator",
            )
        return index

    def _refuse_broken(self, *, reading: bool = False) -> None:
        if self._handle < 0 or (self._broken is not None and not reading):
            raise UpstreamError(
                f"{self.path} takes no more receipts: {self._broken}", code="log_closed", fix="open the log again"
            )

    # -- appending ---------------------------------------------------------------------------------

    def _write(self, group: Group) -> None:
        """Check, write, sync and publish a group of units; the outcome is left in each of them."""
        with self._writing:
            try:
                self._refuse_broken()
                settled = settle(group, len(self), self._known)
                self._make_durable(settled.fresh)
            except HeadwaterError as error:
                for unit in group:
                    unit.error = unit.error or error
            else:
                for unit, indices in zip(group, settled.indices, strict=True):
                    if unit.error is None:
                        unit.outcome = entries_of(indices, unit.items.ids)

    def begin_each(self, receipts: Sequence[tuple[bytes, str]]) -> Written | None:
        """Write receipts of different writers without waiting for anything: whoever asks syncs the file, then `finish`.

        None, and nothing was written, when that is not possible: another thread is writing, a reader is looking, or
        one of them is refused or stored already. Then `append_each` waits, and says how each fares.
        """
        if self._sync is not os.fdatasync or not self._writing.acquire(blocking=False):
            return None
        written = None
        try:
            batch = read_batch(receipts)
            settled = settle((Unit(batch),), len(self), self._known)
            if self._broken is None and self._handle >= 0 and len(settled.fresh.ids) == len(batch):
                written = self._write_down(settled.fresh, try_begin_write)
        except HeadwaterError:
            pass
        finally:
            if written is None:
                self._writing.release()
        return written

    def finish(self, written: Written, failed: OSError | None) -> tuple[Entry | HeadwaterError, ...]:
        """The file was synced, or that failed: publish what was written, or take it back; each gets its outcome."""
        first, ids = len(self), written.fresh.ids
        try:
            try:
                if failed is not None:
                    self._sync_failed(failed)
            finally:
                end_write(written.handle)
            self._publish(written)
        except HeadwaterError as error:
            return (error,) * len(ids)
        finally:
            self._writing.release()
        return entries_of(range(first, first + len(ids)), ids)

    def _make_durable(self, fresh: Fresh) -> None:
        if not fresh.ids:
            return
        written = self._write_down(fresh, begin_write)
        assert written is not None  # `begin_write` waits until it may
        try:
            self._sync_or_roll_back()
        finally:
            end_write(self._handle)
        self._publish(written)

    def _write_down(self, fresh: Fresh, begin: Callable[[int], bool | None]) -> Written | None:
        """Write frames, readers kept out from here on; None when `begin` says that one is in."""
        frames, starts, check = encode(fresh.payloads, fresh.crcs, self._check)
        end = self._end + len(frames)
        if end > self._room:
            self._room = max(end, set_aside(self._handle, self._end))
        if begin(self._handle) is False:
            return None
        try:
            self._write_frames(frames)
        except BaseException:
            end_write(self._handle)
            raise
        return Written(self._handle, fresh, starts, end, check)

    def _publish(self, written: Written) -> None:
        self._broken = "it was interrupted"  # and stays so when the next lines are
        fresh = written.fresh
        with self._state:
            first, begin = len(self), self._end
            self._end, self._check = written.end, written.check
            self._offsets.extend([begin + start for start in written.starts])
            self._tree.extend(fresh.leaves)
            self._known.add(first, fresh.ids, fresh.calls)
        self._broken = None

    def _write_frames(self, frames: bytes) -> None:
        """Write, or take back."""
        try:
            write_all(self._handle, frames, self._end)
        except OSError as error:
            self._roll_back()
            raise self._not_written(error) from error
        except BaseException:
            self._roll_back()
            raise

    def _sync_or_roll_back(self) -> None:
        try:
            self._sync(self._handle)
        except OSError as error:
            self._sync_failed(error)
        except BaseException:
            self._roll_back()
            raise

    def _sync_failed(self, error: OSError) -> NoReturn:
        if error.errno not in _NO_ROOM:
            # After a failed sync the kernel may have dropped pages it calls clean: nothing here can be trusted.
            self._broken = f"its disk failed to sync ({error.strerror})"
        self._roll_back()
        raise self._not_written(error) from error

    def _roll_back(self) -> None:
        """Take back what was written of a group; when that fails too, write no more."""
        self._room = 0  # cutting may give reserved blocks back
        try:
            os.ftruncate(self._handle, self._end)
            self._sync(self._handle)
        except OSError as error:
            self._broken = self._broken or f"a failed write could not be taken back ({error.strerror})"

    def _not_written(self, error: OSError) -> UpstreamError:
        if error.errno in _NO_ROOM:
            return UpstreamError(
                f"no room to append to {self.path}: {error.strerror}; the batch was not stored",
                code="disk_full",
                fix="make room on the disk and append again",
            )
        return UpstreamError(
            f"{self.path} could not be written at byte {self._end}: {error.strerror}; the batch was not stored",
            code="log_write_failed",
            fix="check the disk, then open the log again",
        )

    # -- opening -----------------------------------------------------------------------------------

    def _check_on_disk(self, index: int) -> int:
        """A frame's check as the file has it now; it stands for all frames before, too."""
        at = self._offsets[index] + FRAME_HEADER_BYTES - 4
        return int.from_bytes(os.pread(self._handle, 4, at), "little")

    def _forget(self) -> None:
        self._end, self._check = len(FILE_HEADER), FIRST_CHECK
        self._offsets = array("Q")
        self._known, self._tree, self._sealed = ReceiptIndex(), LogTree(), None

    def _begin_after_sealed(self, pointer: SealedPointer) -> None:
        """Take ids, calls and hashes of what the file no longer holds from its segments."""
        sealed = _sealed_receipts(self.path, pointer)
        self._sealed, self._known = sealed, ReceiptIndex(sealed.ids, sealed.calls)
        self._offsets = array("Q", bytes(8 * pointer.size))  # not in the file; kept so that indices are places
        self._tree = LogTree(sealed.leaves)
        self._end, self._check = pointer.log_end, pointer.log_check

    def _load(self) -> None:
        """Index the frames behind `_end`; cut a torn tail when writing, leave it when reading."""
        size = os.fstat(self._handle).st_size
        if size < len(FILE_HEADER) and not self._writable:
            return  # the writer is just making the file
        check_header(self._handle, self.path)
        if len(self) == 0 and (pointer := self._pointer()) is not None:
            self._begin_after_sealed(pointer)
        damage = self._index_frames(size)
        if damage is None:
            pass
        elif not damage.torn:
            raise damaged(self.path, damage)
        elif self._writable:
            self.torn = TornTail(damage.offset, size - damage.offset, damage.reason)
            os.ftruncate(self._handle, damage.offset)
        if self._writable:
            # Frames of a killed writer may still be only in memory; they are answered for from now on.
            self._sync(self._handle)

    def _index_frames(self, size: int) -> Damage | None:
        leaves: list[bytes] = []
        try:
            for found in scan(self._handle, self._end, self._check, size):
                if isinstance(found, Damage):
                    return found
                index, identity = len(self._offsets), hashlib.sha256(found.raw).digest()
                earlier = self._known.find(identity)
                if earlier is not None:
                    return Damage(found.offset, f"frame {index} repeats frame {earlier}", torn=False)
                call = read_call(found.raw)
                if call is None:
                    return Damage(found.offset, f"frame {index} holds no receipt", torn=False)
                self._known.add(index, (identity,), (call,))
                self._offsets.append(found.offset)
                self._end, self._check = found.end, found.check
                leaves.append(leaf_hash(found.raw))
        finally:
            self._tree.extend(leaves)
        return None


def _sealed_receipts(path: Path, pointer: SealedPointer) -> SealedReceipts:
    from headwater.store.receipt_sealed import SealedReceipts  # pyarrow: only a log with dropped receipts needs it

    return SealedReceipts(path, pointer)


def _not_read(path: Path, error: OSError) -> UpstreamError:
    return UpstreamError(
        f"{path} could not be read: {error.strerror}", code="log_read_failed", fix="check the disk and the path"
    )


def _interrupted(path: Path) -> UpstreamError:
    return UpstreamError(
        f"the write to {path} was interrupted; whether the batch was stored is not known",
        code="log_write_interrupted",
        fix="append the same batch again: what is stored is not stored twice",
    )
