"""Byte-pair encoding: against a naive merge loop, and against the serving engine's own tokenizer."""

from __future__ import annotations

import http.client
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.models.gguf_file import open_gguf
from headwater.models.smollm import smollm_path
from headwater.models.tokenizer import Tokenizer, byte_alphabet, load_tokenizer

MERGES = ("a a", "aa a", "a b", "b b", "Ġ a", "ab b", "aa ab", "Ã ©", "Ġa b")
PIECES = (*byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES), "<|im_start|>", "<|im_end|>")
SPECIALS = (len(PIECES) - 2, len(PIECES) - 1)
SMALL = Tokenizer(PIECES, MERGES, SPECIALS)

VARIED = (
    "",
    "hello  world\n\n\t x 123 12.5 ²½ Ⅷ",
    "🦊🚀👩‍👩‍👧‍👦🇩🇪 e\u0301 ﬁ",
    "العربية مع 123 عِبְרִית שלום \u202bcheck\u202c",
    "中文字符，日本語テキスト、한국어",
    "don't I'll WE'RE it's 'tis ''s",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|im_end",
    "a <file_sep>b<jupyter_code>c<repo_name>",
    "\r\n\u00a0\u2003\u200b\u1680x\x00\x1c\x1d\x85 y\ufeff \x7f",
    "a" * 700 + " " * 50 + "!" * 99 + "\n" * 33 + "é" * 40,
    "def f(x):\n    return {'a': [1, 2.5e-3], \"b\": None}  # comment\n\n\n",
)


def naive(word: str) -> list[str]:
    """Merge the best pair, leftmost first, until none is left."""
    parts = [byte_alphabet()[value] for value in word.encode()]
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(MERGES)}
    while True:
        found = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return parts
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@given(st.text(alphabet="abé", max_size=30))
def test_merges_follow_the_list(word: str) -> None:
    """A word's tokens are those of merging one best pair at a time, whatever the word."""
    assert [PIECES[token] for token in SMALL.tokenize(word, control=False)] == naive(word)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    """Tokens joined give the text, emoji and right-to-left included."""
    assert SMALL.text(SMALL.tokenize(text, control=False)) == text
    assert SMALL.text(SMALL.tokenize(text, control=True)) == text


@given(st.text(alphabet="<|im_startend>\n ab", max_size=60))
def test_text_that_is_not_control_never_makes_special_tokens(text: str) -> None:
    """Writing the name of a template marker does not make one."""
    assert not set(SPECIALS) & set(SMALL.tokenize(text + "<|im_start|>", control=False))


def test_control_text_honours_special_tokens() -> None:
    """Template text has its markers as single tokens, and the text between as usual."""
    assert SMALL.tokenize("<|im_start|>aab<|im_end|>", control=True) == (
        SPECIALS[0],
        *SMALL.tokenize("aab", control=False),
        SPECIALS[1],
    )


def test_lone_surrogates_are_refused() -> None:
    """Text without a UTF-8 form has no tokens."""
    with pytest.raises(InvalidError) as caught:
        SMALL.tokenize("ab\ud800", control=False)

    assert caught.value.code == "text_not_utf8"


@pytest.mark.parametrize("token", [-1, len(PIECES)])
def test_unknown_token_ids_are_refused(token: int) -> None:
    """An id outside the vocabulary has no bytes."""
    with pytest.raises(InvalidError) as caught:
        SMALL.bytes_of(token)

    assert caught.value.code == "token_unknown"


def server_tokens(backend, text: str, control: bool) -> tuple[int, ...]:
    """What the serving engine itself makes of a text."""
    engine = backend._engine
    connection = http.client.HTTPConnection(engine._host, engine._port)
    body = json.dumps({"content": text, "add_special": False, "parse_special": control})
    connection.request("POST", "/tokenize", body, {"authorization": f"Bearer {engine._key}"})
    tokens = json.loads(connection.getresponse().read())["tokens"]
    connection.close()
    return tuple(tokens)


@pytest.mark.model
@pytest.mark.parametrize("control", [False, True])
def test_tokens_are_those_of_the_serving_engine(backend, control: bool) -> None:
    """Varied text, with and without special tokens, is read as the engine reads it."""
    for text in VARIED:
        assert backend.tokenize(text, control=control) == server_tokens(backend, text, control)


@pytest.mark.model
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=200), control=st.booleans())
def test_random_text_is_read_as_the_engine_reads_it(backend, text: str, control: bool) -> None:
    """Whatever the characters, both tokenizers agree; the text comes back, but for bytes the model has no token for."""
    tokens = backend.tokenize(text, control=control)
    readable = bytes(value for value in text.encode() if value not in backend.tokenizer.bytes_unreadable)

    assert tokens == server_tokens(backend, text, control)
    assert b"".join(map(backend.tokenizer.bytes_of, tokens)) == readable


@pytest.mark.model
def test_all_that_people_write_comes_back(backend) -> None:
    """Emoji, right-to-left and unspaced scripts survive; only control characters and bytes of no text do not."""
    for text in VARIED:
        kept = "".join(character for character in text if character >= " " or character in "\r\n\t")
        assert backend.tokenizer.text(backend.tokenize(kept, control=False)) == kept
    assert all(value < 0x20 or value >= 0xC0 for value in backend.tokenizer.bytes_unreadable)


@pytest.mark.model
@pytest.mark.slow
def test_every_character_is_classed_as_the_engine_classes_it(backend) -> None:
    """Each code point, inside a word, after a space and before a letter, splits words in the same places."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(characters), 4000):
        text = "".join(f"a{character} {character}b " for character in characters[start : start + 4000])
        assert backend.tokenize(text, control=False) == server_tokens(backend, text, False), hex(ord(characters[start]))


@pytest.mark.model
def test_a_tokenizer_of_another_kind_is_refused() -> None:
    """A word pattern that is not implemented is named instead of guessed."""
    file = open_gguf(smollm_path())
    file.metadata["tokenizer.ggml.pre"] = "llama-bpe"

    with pytest.raises(InvalidError, match="llama-bpe"):
        load_tokenizer(file)
