"""What a witness has signed, one file per log: the memory that makes a fork impossible to show it twice.

The new checkpoint is on the disk before the signature leaves: a witness that dies in between has signed
less than it remembers, never more. Two processes over one state file are kept apart by a lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headwater.core.errors import MissingError
from headwater.receipts.checkpoint import Checkpoint, ForkError, NoteKey, NoteSignature, NoteSigner, judge
from headwater.store.object_store import LocalStore

Prove = Callable[[int], Sequence[bytes]]
"""The consistency proof from an older size to the checkpoint that is presented."""


class Witness:
    """Cosigns checkpoints of logs it follows; state in `folder`."""

    def __init__(self, folder: Path, signer: NoteSigner) -> None:
        self._store, self._signer = LocalStore(folder), signer

    def last(self, origin: str) -> Checkpoint | None:
        """The newest checkpoint of a log that this witness has signed."""
        try:
            return Checkpoint.from_bytes(self._store.read(_file(origin)))
        except MissingError:
            return None

    def cosign(self, presented: Checkpoint, log_key: NoteKey, prove: Prove, *, at_s: int) -> NoteSignature:
        """Sign a checkpoint that grew from the last one.

        Args:
            presented: with the log's own signature.
            log_key: the key this witness expects of the log.
            at_s: now, seconds since 1970. A clock behind the last signature is brought up to it.

        Raises:
            InvalidError: not signed by the log.
            ForkError: it contradicts what was signed before; both checkpoints are kept as evidence.
            ConflictError: older than what was signed before.
        """
        presented.verify(log_key)
        with self._alone(presented.origin):
            last = self.last(presented.origin)
            old_size = last.head.size if last else 0
            proof = prove(old_size) if 0 < old_size < presented.head.size else ()
            try:
                judge(last, presented, proof)
            except ForkError:
                self._store.write(f"{_name(presented.origin)}.fork-{presented.head.size}", presented.to_bytes())
                raise
            if last is not None:
                at_s = max(at_s, last.signed_at(self._signer.witness_key) or 0)
            line = self._signer.cosign(presented, at_s=at_s)
            own = tuple(one for one in presented.signatures if one.key_id == log_key.id)
            kept = Checkpoint(presented.origin, presented.head, (*own, line))
            self._store.write(_file(presented.origin), kept.to_bytes())
            return line

    @contextmanager
    def _alone(self, origin: str) -> Iterator[None]:
        self._store.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._store.folder / f"{_name(origin)}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _name(origin: str) -> str:
    return hashlib.sha256(origin.encode()).hexdigest()[:32]


def _file(origin: str) -> str:
    return f"{_name(origin)}.checkpoint"
