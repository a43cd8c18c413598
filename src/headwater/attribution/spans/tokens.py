"""Words as 64-bit hashes with their byte offsets, whatever model wrote the text.

A token is a run of letters, marks and digits, folded by the frozen table, or one code point of a
script that is written without spaces. Punctuation, white space, invisible characters and bytes that
are not UTF-8 separate words and are no tokens, so re-flowing or re-punctuating a text leaves its
tokens as they were.

Hash: xor-multiply over folded code points (as in Fowler-Noll-Vo), then mixed; never 0.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.fold_table import fold_table
from headwater.attribution.spans.memory import compiled
from headwater.core.canonical import digest_of

TOKENISER_VERSION = 1

_CHUNK_TOKENS = 1 << 18
_ROOM = 32  # tokens one code point may become, with slack


class Tokens(NamedTuple):
    """The tokens of one text."""

    hashes: NDArray[np.uint64]  # (n,), never 0
    starts: NDArray[np.uint32]  # (n,) byte offsets in the text
    ends: NDArray[np.uint32]  # (n,)


def tokeniser_digest() -> str:
    """What must be equal for two indexes to read text alike."""
    return digest_of({"fold": fold_table().digest, "version": TOKENISER_VERSION})


def tokenise(raw: bytes) -> Tokens:
    """The tokens of a UTF-8 text."""
    text = np.frombuffer(raw, dtype=np.uint8)
    chunks: list[Tokens] = []
    at = 0
    while at < text.size:
        room = min(_CHUNK_TOKENS, text.size - at) + _ROOM
        hashes, starts, ends = np.empty(room, np.uint64), np.empty(room, np.uint32), np.empty(room, np.uint32)
        count, at = scan(text, at, hashes, starts, ends, *fold_arrays())
        chunks.append(Tokens(hashes[:count], starts[:count], ends[:count]))
    if len(chunks) == 1:
        return chunks[0]
    return Tokens(
        np.concatenate([c.hashes for c in chunks] or [np.empty(0, np.uint64)]),
        np.concatenate([c.starts for c in chunks] or [np.empty(0, np.uint32)]),
        np.concatenate([c.ends for c in chunks] or [np.empty(0, np.uint32)]),
    )


def fold_arrays() -> tuple[NDArray[np.uint16], NDArray[np.uint32], NDArray[np.uint32]]:
    """The fold table as `scan` takes it."""
    table = fold_table()
    return table.pages, table.entries, table.sequences


@compiled
def finish(word):
    """Mix a word's state so that every bit depends on every character; 0 is kept for "no word"."""
    word ^= word >> np.uint64(32)
    word *= np.uint64(0xD6E8FEB86659FD93)
    word ^= word >> np.uint64(29)
    return word if word != np.uint64(0) else np.uint64(1)


@compiled
def _decode(text, at, size):
    """The code point at `at` and its bytes; a byte that is not UTF-8 reads as a one-byte separator."""
    lead = np.int64(text[at])
    need = 0
    code: Any = np.int64(0)
    if lead >= 0xC2 and lead < 0xE0:
        need, code = 1, lead & 0x1F
    elif lead >= 0xE0 and lead < 0xF0:
        need, code = 2, lead & 0x0F
    elif lead >= 0xF0 and lead < 0xF5:
        need, code = 3, lead & 0x07
    if need == 0 or at + need >= size:
        return np.int64(0), 1
    for j in range(1, need + 1):
        follow = np.int64(text[at + j])
        if follow & 0xC0 != 0x80:
            return np.int64(0), 1
        code = code << 6 | follow & 0x3F
    if code > 0x10FFFF or (need == 2 and code < 0x800) or (need == 3 and code < 0x10000):
        return np.int64(0), 1
    return code, need + 1


@compiled
def scan(text, begin, hashes, starts, ends, pages, entries, sequences):
    """Tokenise from byte `begin` until the outputs are full; returns (tokens, next byte).

    Stops only between tokens, so calling again from the next byte gives what one call would give.
    """
    seed, prime = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x00000100000001B3) * np.uint64(0x9E3779B1)
    size, room = text.size, hashes.size - 24
    count, at = 0, begin
    word, start = np.uint64(0), -1  # start < 0: no word is open
    ascii_page = pages[0]
    end = np.int64(begin)
    while at < size:
        if start < 0 and count >= room:
            return count, at
        code, length = np.int64(text[at]), 1
        if code < 0x80:  # the common case, kept tight: to the end of the word, or past one separator
            entry = np.int64(entries[ascii_page, code])
            if entry == 0:
                if start >= 0:
                    hashes[count], starts[count], ends[count] = finish(word), start, end
                    count += 1
                    start = -1
                at += 1
                continue
            if start < 0:
                word, start = seed, at
            while True:
                word = (word ^ np.uint64(entry >> 4 if entry & 7 == 2 else code)) * prime
                at += 1
                if at == size:
                    break
                code = np.int64(text[at])
                if code >= 0x80:
                    break
                entry = np.int64(entries[ascii_page, code])
                if entry == 0:
                    break
            end = at
            continue
        code, length = _decode(text, at, size)
        entry = np.int64(entries[pages[code >> 8], code & 255])
        kind = entry & 7
        if kind == 1 and not entry & 8:  # itself: the common case
            if start < 0:
                word, start = seed, at
            word = (word ^ np.uint64(code)) * prime
            end = at + length
        elif kind == 2 and not entry & 8:
            if start < 0:
                word, start = seed, at
            word = (word ^ np.uint64(entry >> 4)) * prime
            end = at + length
        elif kind == 4:
            pass
        elif kind == 3 and not entry & 8:
            if start < 0:
                word, start = seed, at
            place = entry >> 4
            for j in range(sequences[place]):
                word = (word ^ np.uint64(sequences[place + 1 + j])) * prime
            end = at + length
        else:
            if start >= 0:
                hashes[count], starts[count], ends[count] = finish(word), start, end
                count += 1
                start = -1
            if kind != 0:  # a script without spaces: each code point of the reading is a token
                repeat = 1
                if kind == 3:
                    repeat = int(sequences[entry >> 4])
                for j in range(repeat):
                    reading = code
                    if kind == 3:
                        reading = np.int64(sequences[(entry >> 4) + 1 + j])
                    elif kind == 2:
                        reading = entry >> 4
                    hashes[count] = finish((seed ^ np.uint64(reading)) * prime)
                    starts[count], ends[count] = at, at + length
                    count += 1
        at += length
    if start >= 0:
        hashes[count], starts[count], ends[count] = finish(word), start, end
        count += 1
    return count, size
