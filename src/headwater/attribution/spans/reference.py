"""What words are worth: surprisal and commonness from a frozen corpus that nobody can write to.

A reference says how rare a word is (micro-bits, whole numbers, so every machine agrees) and which
k-grams are common property and belong to nobody. It is a file with a digest; an index is made with
one and keeps it. Later registrations never change it.

Layout: one line of canonical JSON, then the arrays it announces, little-endian.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.draft import Draft
from headwater.attribution.spans.grams import WEIGHTS, gram_hash, groups_of
from headwater.attribution.spans.memory import compiled
from headwater.attribution.spans.tokens import tokeniser_digest
from headwater.attribution.spans.values import Document
from headwater.attribution.spans.vocabulary import hashes_by_id
from headwater.core.canonical import canonical, digest
from headwater.core.errors import InvalidError

MICROBITS = 1_000_000
GRAM_TOKENS = 8
WORDS_MAX = 32_768
COMMON_MAX = 16_384
COMMON_DOCUMENTS_MIN = 16
"""A k-gram in at least this many reference documents is common property."""

_SMOOTHING = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A frozen table of words and common k-grams, laid out for look-up."""

    digest: str
    raw: bytes = field(repr=False)
    gram_tokens: int
    words: NDArray[np.uint64] = field(
        repr=False
    )  # (2 * rows,) hash, micro-bits; rows is a power of two, hash 0 is empty
    unseen_microbits: int
    common: NDArray[np.uint64] = field(
        repr=False
    )  # (rows,) hashes of common k-grams, 0 is empty; no rows if there are none
    sieve: NDArray[np.uint8] = field(repr=False)  # (rows,) a bit for what may be common: small enough to stay near

    def microbits(self, hashed: int) -> int:
        """Surprisal of the word with that hash."""
        mask = self.words.size // 2 - 1
        slot = hashed & mask
        while (held := int(self.words[2 * slot])) != 0:
            if held == hashed:
                return int(self.words[2 * slot + 1])
            slot = (slot + 1) & mask
        return self.unseen_microbits


@cache
def default_reference() -> Reference:
    """The reference that ships: words of public documentation (see docs/spans.md for how it is built)."""
    return read_reference(resources.files(__package__).joinpath("reference.bin").read_bytes())


def read_reference(raw: bytes) -> Reference:
    """A reference from its bytes.

    Raises:
        InvalidError: not a reference, cut short, or made for another tokeniser.
    """
    line, _, body = raw.partition(b"\n")
    try:
        head = json.loads(line)
        words, commons = int(head["words"]), int(head["commons"])
        known = head["format"] == "headwater-reference-1" and len(body) == 12 * words + 8 * commons
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InvalidError(
            f"{len(raw)} bytes are no span reference",
            code="reference_invalid",
            fix="build one with `headwater index reference`",
        )
    if head["tokeniser"] != tokeniser_digest():
        raise InvalidError(
            f"the reference was made for tokeniser {head['tokeniser']}, this is {tokeniser_digest()}",
            code="reference_tokeniser",
            fix="build the reference again with this version",
        )
    hashes = np.frombuffer(body, dtype="<u8", count=words)
    microbits = np.frombuffer(body, dtype="<u4", count=words, offset=8 * words)
    common = np.frombuffer(body, dtype="<u8", count=commons, offset=12 * words)
    word_rows = np.zeros(2 * _rows_for(words), dtype=np.uint64)
    _lay(hashes, microbits, word_rows)
    common_rows = np.zeros(_rows_for(commons) if commons else 0, dtype=np.uint64)
    sieve = np.zeros(common_rows.size, dtype=np.uint8)
    _lay_set(common, common_rows, sieve)
    unseen = int(head["unseen_microbits"])
    return Reference(digest(raw), raw, int(head["gram_tokens"]), word_rows, unseen, common_rows, sieve)


def build_reference(
    texts: Iterable[bytes],
    *,
    gram_tokens: int = GRAM_TOKENS,
    words_max: int = WORDS_MAX,
    common_max: int = COMMON_MAX,
    common_documents_min: int = COMMON_DOCUMENTS_MIN,
) -> bytes:
    """The bytes of a reference made from `texts`, which must be documents of their own.

    Surprisal is that of a unigram model with additive smoothing of one half; a word that is not among
    the `words_max` most frequent ones counts as unseen.
    """
    draft = Draft(gram_tokens=gram_tokens)
    for number, text in enumerate(texts):
        draft.add(Document(f"{number:012d}", None, 0, text))
    segment = draft.build()
    symbol_starts = np.asarray(segment["symbol_starts"], dtype=np.int64)
    counts = np.diff(symbol_starts)
    hashes = hashes_by_id(np.asarray(segment["vocabulary"]), counts.size - 1)
    counts[0] = 0  # end marks
    total, distinct = int(counts.sum()), counts.size - 1
    mass = total + _SMOOTHING * (distinct + 1)
    kept = np.lexsort((hashes, -counts))[: min(words_max, distinct)]
    words = hashes[kept]
    by_hash = np.argsort(words)
    microbits = [round(MICROBITS * math.log2(mass / (int(counts[i]) + _SMOOTHING))) for i in kept[by_hash]]
    tokens, order = np.asarray(segment["tokens"]), np.asarray(segment["order"])
    groups = groups_of(tokens, order, gram_tokens, max(2, common_documents_min))
    spread = _spread(groups, order, np.asarray(segment["document_starts"]))
    groups, spread = groups[spread >= common_documents_min], spread[spread >= common_documents_min]
    common = _gram_hashes(groups[:, 2], tokens, hashes, gram_tokens, WEIGHTS)
    common = np.sort(common[np.lexsort((common, -spread))[:common_max]])
    head = {
        "common_documents_min": common_documents_min,
        "commons": int(common.size),
        "documents": segment.documents,
        "format": "headwater-reference-1",
        "gram_tokens": gram_tokens,
        "tokeniser": tokeniser_digest(),
        "tokens": total,
        "unseen_microbits": round(MICROBITS * math.log2(mass / _SMOOTHING)),
        "words": int(words.size),
    }
    return (
        canonical(head)
        + b"\n"
        + words[by_hash].astype("<u8").tobytes()
        + np.array(microbits, dtype="<u4").tobytes()
        + common.astype("<u8").tobytes()
    )


def _rows_for(count: int) -> int:
    return 1 << max(4, (2 * count - 1).bit_length())


@compiled
def _lay(hashes, microbits, rows):
    mask = (rows.size >> 1) - 1
    for i in range(hashes.size):
        slot = np.intp(hashes[i] & np.uint64(mask))
        while rows[2 * slot] != np.uint64(0):
            slot = (slot + 1) & mask
        rows[2 * slot], rows[2 * slot + 1] = hashes[i], microbits[i]


@compiled
def _lay_set(hashes, rows, sieve):
    mask = rows.size - 1
    for i in range(hashes.size):
        slot = np.intp(hashes[i] & np.uint64(mask))
        while rows[slot] != np.uint64(0):
            slot = (slot + 1) & mask
        rows[slot] = hashes[i]
        sieve[(hashes[i] >> np.uint64(3)) & np.uint64(mask)] |= np.uint8(1 << (hashes[i] & np.uint64(7)))


@compiled
def _spread(groups, order, document_starts):
    """Documents that hold each k-gram."""
    out = np.empty(groups.shape[0], dtype=np.int64)
    for g in range(groups.shape[0]):
        positions = np.sort(order[groups[g, 0] : groups[g, 0] + groups[g, 1]])
        documents = np.searchsorted(document_starts, positions, side="right")
        out[g] = 1 + np.count_nonzero(documents[1:] != documents[:-1])
    return out


@compiled
def _gram_hashes(firsts, tokens, hashes, gram_tokens, weights):
    """Hashes of k-grams over token hashes, which are the same in every segment."""
    out = np.empty(firsts.size, dtype=np.uint64)
    window = np.empty(gram_tokens, dtype=np.uint64)
    for i in range(firsts.size):
        for j in range(gram_tokens):
            window[j] = hashes[tokens[firsts[i] + j]]
        out[i] = gram_hash(window, 0, gram_tokens, weights)
    return out
