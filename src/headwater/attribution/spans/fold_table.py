"""The frozen table that says how each code point is read: separator, word character, or a token of its own.

Case, compatibility forms and accents are folded away (NFKD, case folding, marks of non-zero
combining class dropped), so a text and its NFC, NFD, upper-case or full-width copy read the same.
The table is shipped as `fold.bin` and never computed at run time: a newer Unicode must not re-read
what is already registered. `python -m headwater.attribution.spans.fold_table OUT` builds it again.

Knows nothing of documents or hashes.
"""

from __future__ import annotations

import hashlib
import sys
import unicodedata
import zlib
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SEPARATOR, IDENTITY, SINGLE, SEQUENCE, IGNORED = 0, 1, 2, 3, 4
"""What a code point does: ends a word; is itself; reads as one other; reads as several; is skipped."""

UNSPACED = 8
"""Flag beside the kind: every code point of this script is a token of its own."""

_PAGE = 256
_PAGES = 0x110000 // _PAGE
# Scripts written without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han and its extensions.
_UNSPACED_RANGES = (
    (0x0E01, 0x0EFF),
    (0x0F00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3041, 0x312F),
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)

# Fillers and variation selectors that show nothing but are not of category Cf.
_INVISIBLE_RANGES = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xE0000, 0xE0FFF),
)


class FoldTable(NamedTuple):
    """How every code point is read.

    `pages[code >> 8]` is a row of `entries`; an entry holds kind and flag in its low four bits and a
    code point, or a place in `sequences` (length first), in the rest.
    """

    pages: NDArray[np.uint16]  # (4352,)
    entries: NDArray[np.uint32]  # (rows, 256)
    sequences: NDArray[np.uint32]  # (n,)
    digest: str


@cache
def fold_table() -> FoldTable:
    """The shipped table."""
    packed = resources.files(__package__).joinpath("fold.bin").read_bytes()
    raw = zlib.decompress(packed)
    rows, sequence_count = (int(n) for n in np.frombuffer(raw, dtype="<u4", count=2))
    pages = np.frombuffer(raw, dtype="<u2", count=_PAGES, offset=8)
    at = 8 + 2 * _PAGES
    entries = np.frombuffer(raw, dtype="<u4", count=rows * _PAGE, offset=at).reshape(rows, _PAGE)
    sequences = np.frombuffer(raw, dtype="<u4", count=sequence_count, offset=at + 4 * rows * _PAGE)
    return FoldTable(pages.copy(), entries.copy(), sequences.copy(), "sha256:" + hashlib.sha256(raw).hexdigest())


def build_fold_table() -> bytes:
    """The bytes of the table, from this interpreter's Unicode data (uncompressed)."""
    sequences: list[int] = []
    known: dict[tuple[int, ...], int] = {}
    rows: dict[bytes, int] = {}
    pages = np.zeros(_PAGES, dtype="<u2")
    for page in range(_PAGES):
        row = np.zeros(_PAGE, dtype="<u4")
        for low in range(_PAGE):
            row[low] = _entry(page * _PAGE + low, sequences, known)
        pages[page] = rows.setdefault(row.tobytes(), len(rows))
    head = np.array([len(rows), len(sequences)], dtype="<u4")
    return head.tobytes() + pages.tobytes() + b"".join(rows) + np.array(sequences, dtype="<u4").tobytes()


def folded(code: int) -> tuple[int, ...]:
    """The code points that `code` reads as; empty when it is skipped."""
    text = unicodedata.normalize("NFKD", chr(code)).casefold()
    text = unicodedata.normalize("NFKD", text).casefold()
    return tuple(ord(char) for char in text if not unicodedata.combining(char) and _is_word(char))


def _is_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


def _entry(code: int, sequences: list[int], known: dict[tuple[int, ...], int]) -> int:
    category = unicodedata.category(chr(code))
    invisible = any(low <= code <= high for low, high in _INVISIBLE_RANGES)
    if invisible or category == "Cf" or unicodedata.combining(chr(code)):
        return IGNORED  # soft hyphens, joiners and accents may be strewn into a word without changing it
    reading = folded(code)
    if not reading or category in {"Cs", "Cn", "Co"}:
        return SEPARATOR
    flag = UNSPACED if any(low <= reading[0] <= high for low, high in _UNSPACED_RANGES) else 0
    if reading == (code,):
        return IDENTITY | flag
    if len(reading) == 1:
        return SINGLE | flag | reading[0] << 4
    if reading not in known:
        known[reading] = len(sequences)
        sequences.extend((len(reading), *reading))
    return SEQUENCE | flag | known[reading] << 4


if __name__ == "__main__":  # pragma: no cover - run by hand when the table is revised
    with open(sys.argv[1], "wb") as out:
        out.write(zlib.compress(build_fold_table(), 9))
