"""Rates over several processes: a table in a memory-mapped file, one count for each key however many serve it.

    head   8 bytes of magic, 16 of which boot of the machine it is, padded to 64
    slot   16 bytes of the key's digest, 3 × 8 bytes of instants (requests, tokens, money), padded to 64

Instants are those of CLOCK_MONOTONIC, one clock for all processes of a machine; a table of an earlier boot is begun
anew. Every change is made under a lock of the file, for some microseconds, and is one short copy: a process killed in
the middle frees the lock, and loses at most its own call's share. A key has its slot within a window that its digest
chooses; a slot in which nothing is used up is free for the next key. When a whole window is used up the call is refused
for a moment, because to forget a count would be to give a key more than it may have.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from headwater.core.errors import UpstreamError
from headwater.gateway.limits import Taken, moved
from headwater.store.key_store import KeyRecord

SLOTS: Final = 2**16
WINDOW: Final = 64
"""Slots that a key may have: the lookup reads 4 KiB at most."""

_SLOT: Final = 64
_HEAD: Final = 64
_MAGIC: Final = b"hwrates1"
_INSTANTS: Final = struct.Struct("=3q")
_DIGEST: Final = 16
_SOON_MAX: Final = 2**62
"""What an instant is kept below, so that no use overflows its place."""


class SharedRates:
    """The rates in the file at `path`, which the first process makes; as `limits.Rates`. Used by one event loop.

    Raises:
        UpstreamError: ``rates_unopenable``.
    """

    def __init__(self, path: Path, now_ns: Callable[[], int] = time.monotonic_ns, *, slots: int = SLOTS) -> None:
        self._now_ns, self._slots = now_ns, slots
        size = _HEAD + slots * _SLOT
        try:
            self._file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
            with self._locked():
                if os.fstat(self._file).st_size != size:
                    os.ftruncate(self._file, 0)
                    os.ftruncate(self._file, size)
                self._table = mmap.mmap(self._file, size)
                head = _MAGIC + _boot()
                if self._table[: len(head)] != head:
                    self._table[_HEAD:] = bytes(size - _HEAD)
                    self._table[: len(head)] = head
        except OSError as error:
            raise UpstreamError(
                f"no table of rates at {path}: {error.strerror}", code="rates_unopenable", fix="check its folder"
            ) from error
        self._places: dict[str, tuple[bytes, int]] = {}  # digest, and where its slot was last, by key id

    def take(self, key: KeyRecord, tokens: int, units: int) -> Taken | None:
        """As `Rates.take`.

        Raises:
            RateError: too much for now; nothing was taken.
            UpstreamError: ``rates_full``, too many keys have used some of their minute.
        """
        given = key.limits
        if not given.rated:
            return None
        limits = (given.requests_per_minute, given.tokens_per_minute, given.units_per_minute)
        now_ns = self._now_ns()
        with self._locked():
            place, until = self._find(key.key_id, now_ns)
            self._write(place, moved(until, limits, (1, tokens, units), now_ns, key.key_id))
        return Taken(_SharedAccount(self, key.key_id), limits, tokens, units)

    def until(self, key_id: str) -> Sequence[int]:
        """Until when a key has used up its limits."""
        now_ns = self._now_ns()
        with self._locked():
            return self._find(key_id, now_ns)[1]

    def give_back(self, key_id: str, tokens_ns: int, money_ns: int) -> None:
        """Move the instants of a key back."""
        now_ns = self._now_ns()
        with self._locked():
            place, (requests, tokens, money) = self._find(key_id, now_ns)
            self._write(place, (requests, tokens - tokens_ns, money - money_ns))

    def close(self) -> None:
        """Let go of the file; the counts stay."""
        with suppress(ValueError):
            self._table.close()
            os.close(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _find(self, key_id: str, now_ns: int) -> tuple[int, tuple[int, int, int]]:
        """Where a key's slot is, and its instants; a free one is taken when it has none."""
        table = self._table
        known = self._places.get(key_id)
        if known is not None and table[known[1] : known[1] + _DIGEST] == known[0]:
            requests, tokens, money = _INSTANTS.unpack_from(table, known[1] + _DIGEST)
            return known[1], (requests, tokens, money)
        digest = hashlib.sha256(key_id.encode()).digest()[:_DIGEST] if known is None else known[0]
        window = min(WINDOW, self._slots)
        begin = _HEAD + int.from_bytes(digest[:4], "little") % (self._slots - window + 1) * _SLOT
        end = begin + window * _SLOT
        found = table.find(digest, begin, end)
        while found >= 0 and (found - _HEAD) % _SLOT:
            found = table.find(digest, found + 1, end)  # those bytes, in the middle of a slot
        if found < 0:
            found = self._free(begin, end, now_ns)
            table[found : found + _DIGEST + _INSTANTS.size] = digest + _INSTANTS.pack(now_ns, now_ns, now_ns)
        if len(self._places) >= self._slots:
            self._places.clear()
        self._places[key_id] = digest, found
        requests, tokens, money = _INSTANTS.unpack_from(table, found + _DIGEST)
        return found, (requests, tokens, money)

    def _free(self, begin: int, end: int, now_ns: int) -> int:
        for place in range(begin, end, _SLOT):
            if max(_INSTANTS.unpack_from(self._table, place + _DIGEST)) <= now_ns:
                return place
        raise UpstreamError(
            "too many keys with limits are at work in this minute", code="rates_full", fix="try again in a moment"
        )

    def _write(self, place: int, until: Sequence[int]) -> None:
        kept = [max(-_SOON_MAX, min(one, _SOON_MAX)) for one in until]
        self._table[place + _DIGEST : place + _DIGEST + _INSTANTS.size] = _INSTANTS.pack(*kept)


class _SharedAccount:
    """An account in the table; found anew for each use, because its slot may have gone to another key meanwhile."""

    __slots__ = ("_key_id", "_rates")

    def __init__(self, rates: SharedRates, key_id: str) -> None:
        self._rates, self._key_id = rates, key_id

    def until(self) -> Sequence[int]:
        return self._rates.until(self._key_id)

    def give_back(self, tokens_ns: int, money_ns: int) -> None:
        # When even the slot is gone and no other is free, what was used has long been counted.
        with suppress(UpstreamError):
            self._rates.give_back(self._key_id, tokens_ns, money_ns)


def _boot() -> bytes:
    """Which boot of the machine this is, 16 bytes; zeros where nobody says."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        return bytes(16)
    return bytes.fromhex(text.strip().replace("-", ""))
