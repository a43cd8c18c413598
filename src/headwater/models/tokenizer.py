"""The model's own tokenizer: byte-level BPE as stored in a GGUF file.

Text is cut into words (each digit alone, then the GPT-2 pattern), and each word's UTF-8 bytes are
merged pair by pair in the order of the model's merge list. Joining the bytes of the tokens gives the
text back, but for `bytes_unreadable`: a vocabulary may lack a few control characters and bytes that
no text has, and like the serving engine this drops them. Special tokens are recognised only where
`control` is set, so a caller's text can never become template. The tests prove it equal to the
serving engine's own tokenizer.

Source: Sennrich, Haddow, Birch, 2016, byte pair encoding; the byte alphabet of GPT-2.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence

import regex  # type: ignore[import-untyped]

from headwater.core.errors import InvalidError
from headwater.models.gguf_file import GgufFile

CONTROL_KIND = 3  # GGUF token type of template markers
WORD_CACHE_MAX = 65_536
PRE_TOKENIZERS = ("smollm",)
DIGIT = regex.compile(r"(\p{N})")
WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}]+|\s+(?!\S)|\s+")


def byte_alphabet() -> tuple[str, ...]:
    """The printable character that stands for each of the 256 byte values in a byte-level vocabulary."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, spare = [], 0
    for value in range(256):
        letters.append(chr(value) if value in printable else chr(256 + spare))
        spare += value not in printable
    return tuple(letters)


class Tokenizer:
    """Turns text into token ids and token ids into bytes. Immutable but for a cache of words."""

    def __init__(self, pieces: Sequence[str], merges: Sequence[str], control_ids: Sequence[int]) -> None:
        """`pieces`: vocabulary in the byte alphabet; `merges`: "left right", best first; `control_ids`: special."""
        self._letters = byte_alphabet()
        byte_of = {letter: value for value, letter in enumerate(self._letters)}
        self.control_ids = frozenset(control_ids)
        self.vocabulary_size = len(pieces)
        self._bytes = tuple(
            piece.encode("utf-8") if token in self.control_ids else bytes(byte_of[letter] for letter in piece)
            for token, piece in enumerate(pieces)
        )
        self._id = {piece: token for token, piece in enumerate(pieces) if token not in self.control_ids}
        self.bytes_unreadable = frozenset(value for value, letter in enumerate(self._letters) if letter not in self._id)
        self._rank = {(left, right): rank for rank, (left, right) in enumerate(merge.split(" ") for merge in merges)}
        specials = sorted((pieces[token] for token in self.control_ids), key=len, reverse=True)
        self._special_id = {pieces[token]: token for token in self.control_ids}
        self._special = re.compile("(" + "|".join(map(re.escape, specials)) + ")") if specials else None
        self._words: dict[str, tuple[int, ...]] = {}

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:
        """Token ids of `text`; the names of special tokens are honoured only when `control`.

        Raises:
            InvalidError: the text holds lone surrogates, so it has no UTF-8 form.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidError(
                f"text has no UTF-8 form at character {error.start}",
                code="text_not_utf8",
                fix="remove the lone surrogate",
            ) from None
        ids: list[int] = []
        if not control or self._special is None:
            self._plain(text, ids)
            return tuple(ids)
        for position, stretch in enumerate(self._special.split(text)):
            if position % 2:
                ids.append(self._special_id[stretch])
            else:
                self._plain(stretch, ids)
        return tuple(ids)

    def bytes_of(self, token: int) -> bytes:
        """The bytes one token stands for."""
        if not 0 <= token < self.vocabulary_size:
            raise InvalidError(
                f"token id {token} is outside 0..{self.vocabulary_size - 1}",
                code="token_unknown",
                fix="use ids of this model's tokenizer",
            )
        return self._bytes[token]

    def text(self, ids: Sequence[int]) -> str:
        """The text of a run of tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.bytes_of(token) for token in ids).decode("utf-8", errors="replace")

    def _plain(self, text: str, ids: list[int]) -> None:
        for position, stretch in enumerate(DIGIT.split(text)):
            for word in (stretch,) if position % 2 else WORD.findall(stretch):
                known = self._words.get(word)
                if known is None:
                    known = self._merge(word)
                    if len(self._words) < WORD_CACHE_MAX:
                        self._words[word] = known
                ids.extend(known)

    def _merge(self, word: str) -> tuple[int, ...]:
        """Merges of one word: lowest rank first, leftmost on ties, with a heap so that long words stay cheap."""
        parts: list[str | None] = [self._letters[value] for value in word.encode("utf-8")]
        count = len(parts)
        after, before = list(range(1, count + 1)), list(range(-1, count - 1))
        heap: list[tuple[int, int, str, str]] = []

        def offer(at: int) -> None:
            following = after[at] if at >= 0 else count
            if at < 0 or following >= count:
                return
            left, right = parts[at], parts[following]
            assert left is not None
            assert right is not None
            rank = self._rank.get((left, right))
            if rank is not None:
                heapq.heappush(heap, (rank, at, left, right))

        for at in range(count):
            offer(at)
        while heap:
            _, at, left, right = heapq.heappop(heap)
            following = after[at]
            if parts[at] != left or following >= count or parts[following] != right:
                continue  # an earlier merge took one of the two
            parts[at], parts[following] = left + right, None
            after[at] = after[following]
            if after[at] < count:
                before[after[at]] = at
            offer(before[at])
            offer(at)
        ids: list[int] = []
        for part in parts:
            if part is None:
                continue
            token = self._id.get(part)
            if token is not None:
                ids.append(token)
            else:  # not in the vocabulary whole: its single bytes, without the unreadable ones
                ids.extend(self._id[letter] for letter in part if letter in self._id)
        return tuple(ids)


def load_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of an open GGUF file.

    Raises:
        InvalidError: it is not byte-level BPE with a word pattern known here.
    """
    model, pre = file.value("tokenizer.ggml.model"), file.value("tokenizer.ggml.pre")
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        raise InvalidError(
            f"tokenizer {model!r} with word pattern {pre!r} is not known",
            code="tokenizer_unknown",
            fix=f"use a model whose pattern is one of {PRE_TOKENIZERS}",
        )
    kinds = file.value("tokenizer.ggml.token_type")
    return Tokenizer(
        file.value("tokenizer.ggml.tokens"),
        file.value("tokenizer.ggml.merges"),
        [token for token, kind in enumerate(kinds) if kind == CONTROL_KIND],
    )
