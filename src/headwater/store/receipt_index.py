"""Which ids and calls the receipt log holds, and where: sealed ones in sorted arrays, the others in dictionaries.

Both kinds answer for ever; a sealed receipt costs 80 bytes of memory instead of about 400. Ids are
SHA-256, so their first eight bytes sort evenly; a match is always confirmed on all bytes. Knows
nothing of files or of what receipts say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

ID_BYTES: Final = 32
CALL_BYTES: Final = 16

Indices = int | tuple[int, ...]  # most calls have one receipt, so one index is kept bare


class SortedKeys:
    """Keys of `width` bytes, one per sealed receipt; the same key may come several times."""

    __slots__ = ("_keys", "_order", "_prefixes")

    def __init__(self, keys: bytes, width: int) -> None:
        self._keys = np.frombuffer(keys, np.uint8).reshape(-1, width)
        prefixes = _prefixes(self._keys)
        self._order: npt.NDArray[np.int64] = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[self._order]

    def find(self, key: bytes) -> tuple[int, ...]:
        """The places of `key`, ascending; empty when it is not among them."""
        prefix = np.frombuffer(key[:8], ">u8").astype(np.uint64)[0]
        start, end = np.searchsorted(self._prefixes, prefix, "left"), np.searchsorted(self._prefixes, prefix, "right")
        return tuple(int(place) for place in self._order[start:end] if self._keys[place].tobytes() == key)

    def any_of(self, keys: Sequence[bytes]) -> bool:
        """Whether one of `keys` may be among them; true by chance once in 10^19, which then only costs time."""
        wanted = _prefixes(np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1))
        at = np.minimum(np.searchsorted(self._prefixes, wanted), max(len(self._prefixes) - 1, 0))
        return len(self._prefixes) > 0 and bool(np.any(self._prefixes[at] == wanted))


class ReceiptIndex:
    """Ids and calls of a log: the first `sealed` entries in arrays, later ones as they are added."""

    __slots__ = ("_calls", "_ids", "_sealed_calls", "_sealed_ids")

    def __init__(self, sealed_ids: bytes = b"", sealed_calls: bytes = b"") -> None:
        self._sealed_ids = SortedKeys(sealed_ids, ID_BYTES) if sealed_ids else None
        self._sealed_calls = SortedKeys(sealed_calls, CALL_BYTES) if sealed_calls else None
        self._ids: dict[bytes, int] = {}
        self._calls: dict[bytes, Indices] = {}

    def find(self, identity: bytes) -> int | None:
        """The index of the receipt with this id, or None."""
        index = self._ids.get(identity)
        if index is None and self._sealed_ids is not None:
            return next(iter(self._sealed_ids.find(identity)), None)
        return index

    def chain(self, call: bytes) -> tuple[int, ...]:
        """The indices of a call's receipts, oldest first."""
        found = self._calls.get(call)
        later = () if found is None else (found,) if isinstance(found, int) else found
        return later if self._sealed_calls is None else (*self._sealed_calls.find(call), *later)

    def holds_any(self, ids: Sequence[bytes], calls: Sequence[bytes]) -> bool:
        """Whether one of these ids or calls may be known."""
        if not (self._ids.keys().isdisjoint(ids) and self._calls.keys().isdisjoint(calls)):
            return True
        return (self._sealed_ids is not None and self._sealed_ids.any_of(ids)) or (
            self._sealed_calls is not None and self._sealed_calls.any_of(calls)
        )

    def add(self, first: int, ids: Sequence[bytes], calls: Sequence[bytes]) -> None:
        """Keep the receipts at `first`, `first` + 1 …; their ids must be new."""
        indices = range(first, first + len(ids))
        self._ids.update(zip(ids, indices, strict=True))
        if len(set(calls)) == len(calls) and self._calls.keys().isdisjoint(calls):
            self._calls.update(zip(calls, indices, strict=True))
            return
        for call, index in zip(calls, indices, strict=True):
            earlier = self._calls.get(call)
            if earlier is None:
                self._calls[call] = index
            else:
                self._calls[call] = (*((earlier,) if isinstance(earlier, int) else earlier), index)


def _prefixes(keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)
