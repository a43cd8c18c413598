"""Words are the same words however they are written down."""

from __future__ import annotations

import unicodedata

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution.spans import tokens as module
from headwater.attribution.spans.fold_table import folded
from headwater.attribution.spans.tokens import tokenise


def hashes(text: str | bytes) -> list[int]:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return tokenise(raw).hashes.tolist()


def words_by_hand(text: str) -> list[tuple[str, int, int]]:
    """A slow second reading: fold code point by code point, split where nothing is left."""
    out: list[tuple[str, int, int]] = []
    word, begin, end, at = "", 0, 0, 0
    for char in text:
        size = len(char.encode())
        invisible = unicodedata.category(char) == "Cf" or unicodedata.combining(char) or ord(char) in {0x34F, 0xFE0F}
        reading = "".join(map(chr, folded(ord(char))))
        if reading and reading[0] in "中文字の":
            if word:
                out.append((word, begin, end))
                word = ""
            out.extend((one, at, at + size) for one in reading)
        elif reading and not invisible:
            if not word:
                begin = at
            word += reading
            end = at + size
        elif not invisible and word:
            out.append((word, begin, end))
            word = ""
        at += size
    return [*out, (word, begin, end)] if word else out


@settings(deadline=None)  # the first example compiles
@given(st.text(alphabet="aZ9é\u0301ßΩ中文の,. \n\u00ad\u200bİfiﬁ_-", max_size=60))
def test_offsets_and_words_agree_with_a_reading_by_hand(text):
    """Every token begins and ends where a slow reader says, and equal words have equal hashes."""
    found, expected = tokenise(text.encode()), words_by_hand(text)

    assert [(int(a), int(b)) for a, b in zip(found.starts, found.ends, strict=True)] == [(a, b) for _, a, b in expected]
    names: dict[int, str] = {}
    for hashed, (word, _, _) in zip(found.hashes.tolist(), expected, strict=True):
        assert names.setdefault(hashed, word) == word
    assert len(set(names.values())) == len(names)


def test_case_accents_width_and_punctuation_do_not_matter():
    """What a copier can change without changing the words changes nothing."""
    plain = hashes("The cafe isn't FINE: see chapter 12")

    assert hashes("the CAFÉ isn’t ﬁne — see “chapter” 12!") == plain
    assert hashes(unicodedata.normalize("NFD", "The café isn't fine; see chapter 12")) == plain
    assert hashes("Ｔｈｅ ｃａｆｅ ｉｓｎ＇ｔ ｆｉｎｅ see chapter １２") == plain
    assert hashes("The\tca\u00adfe isn't\n\nfi\u200bne.see*chapter*_12_") == plain


def test_unspaced_scripts_have_one_token_for_each_code_point():
    """Chinese, Japanese and Thai text is cut at every character, spaces or not."""
    assert len(hashes("日本語テキスト")) == 7
    assert hashes("日本 語") == hashes("日本語")
    assert hashes("が") == hashes("か\u3099")
    assert len(hashes("ภาษาไทย")) == len("ภาษาไทย")


def test_bytes_that_are_not_utf8_separate_words():
    """Broken input is read, not refused: the words around it are still words."""
    assert hashes(b"one\xfftwo\xc3") == hashes("one two")
    assert hashes(b"\xe4\xb8") == []
    assert hashes("one\ud800two") == hashes("one two")
    assert hashes(b"\xf4\x90\x80\x80 \xc0\xaf \xe0\x80\x80 a") == hashes("a")


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.text(alphabet="ab 中", min_size=1, max_size=400))
def test_reading_in_pieces_gives_what_reading_at_once_gives(room, text):
    """Outputs that fill up only pause the reading."""
    raw = text.encode()
    whole = tokenise(raw)
    pieces, at = [], 0
    array = np.frombuffer(raw, dtype=np.uint8)
    while at < len(raw):
        out = np.empty(room + 24, np.uint64), np.empty(room + 24, np.uint32), np.empty(room + 24, np.uint32)
        count, at = module.scan(array, at, *out, *module.fold_arrays())
        pieces.append([part[:count] for part in out])

    for i, part in enumerate(whole):
        assert np.concatenate([p[i] for p in pieces]).tolist() == part.tolist()
