"""Cuts a document into passages: whole sentences of one section, few enough tokens, exact offsets.

Left out: the header, sections that only list or license (references, copyright), and fragments that are
only code, links or mark-up. Every passage is `text[start:end]` of its document, to the character. Knows
nothing of models: how many tokens a text has is a callable's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

CountTokens = Callable[[str], int]

PASSAGE_WORDS_MIN = 8
"""A shorter fragment says too little to be a source."""

PASSAGE_CHARS_PER_TOKEN_MAX = 16
"""Bounds what is looked at for one passage, so that odd input is cut in time that grows with its length."""

HEADING_CHARS_MAX = 200

_UNLISTED_SECTIONS = re.compile(
    r"(?:\d+[.)]?\s*)*(?:references?(?: and footnotes)?|foot-?notes?|copyright|bibliography|see also|"
    r"acknowledge?ments?|credits|thanks|change ?log|(?:document |change )?history|version history|"
    r"resources|links|table of contents|contents|source)\W*",
    re.IGNORECASE,
)
_MARK = "=\\-~'\"^`#*+."
_UNDERLINE = re.compile(rf"([{_MARK}])\1{{2,}}\s*(?:\{{#.*\}})?")
_ONE_LINE_HEADING = re.compile(rf"(?:([{_MARK}])\1{{3,}}\s+)?(\S.{{0,90}}?)\s+([{_MARK}])\3{{3,}}")
_HASH_HEADING = re.compile(r"#{1,6}\s+(\S.*?)\s*#*")
_FIELD = re.compile(r"(?:^|(?<=\s))[A-Z][A-Za-z-]{2,24}:(?=\s)")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]*`]*(?:\s+(?=[\"'(\[*`]*[A-Z0-9])|\n)|\n(?=\s{0,3}(?:[-*+]|\d+\.)\s)")
_CITATION = re.compile(r"\s*(?:\.\.\s|\[\^?[\w-]+\]:?\s|https?://|<https?://)")
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")
_PIECE = re.compile(r"[A-Za-z]+|\d|[^\sA-Za-z\d]+")


@dataclass(frozen=True, slots=True)
class Span:
    """Where a passage is in its document, in characters, and under which heading."""

    start: int
    end: int
    heading: str  # empty before the first heading


def estimate_tokens(text: str) -> int:
    """About how many tokens a byte-pair tokenizer makes of `text`: meant to err on the high side, and fast.

    One for every started seven letters of a word, one for every digit and for every two marks.
    """
    total = 0
    for piece in _PIECE.findall(text):
        total += 1 + (len(piece) - 1) // (7 if piece[0].isalpha() else 2)
    return total


def cut(text: str, tokens_max: int, count_tokens: CountTokens = estimate_tokens) -> tuple[Span, ...]:
    """The passages of `text` in order; they do not overlap, and each has at most `tokens_max` tokens.

    Sentences are gathered greedily within a section; a sentence that is too long alone is cut between words.
    """
    spans: list[Span] = []
    for section in _sections(text):
        gathered: Span | None = None
        used = 0
        for start, end in section.sentences:
            for piece_start, piece_end in _fit(text, start, end, tokens_max, count_tokens):
                tokens = count_tokens(text[piece_start:piece_end])
                if gathered is not None and used + tokens + 1 <= tokens_max:
                    gathered, used = Span(gathered.start, piece_end, section.heading), used + tokens + 1
                    continue
                if gathered is not None:
                    spans.append(gathered)
                gathered, used = Span(piece_start, piece_end, section.heading), tokens
        if gathered is not None:
            spans.append(gathered)
    return tuple(span for span in spans if _says_something(text[span.start : span.end]))


def trim(text: str, start: int, end: int, tokens_max: int, count_tokens: CountTokens) -> int:
    """The largest end at which `text[start:…]` has at most `tokens_max` tokens, between sentences or else words.

    Gives `end` when all of it fits, `start` when not even one word does.
    """
    if count_tokens(text[start:end]) <= tokens_max:
        return end
    for boundaries in (_SENTENCE_END, re.compile(r"(?<=\S)\s+")):
        ends = [start + match.start() for match in boundaries.finditer(text[start:end])]
        low, high = 0, len(ends)  # ends[:low] fit
        while low < high:
            middle = (low + high) // 2
            if count_tokens(text[start : ends[middle]].rstrip()) <= tokens_max:
                low = middle + 1
            else:
                high = middle
        if low:
            return start + len(text[start : ends[low - 1]].rstrip())
    return start


@dataclass(frozen=True, slots=True)
class _Section:
    heading: str
    sentences: tuple[tuple[int, int], ...]


def _sections(text: str) -> Iterator[_Section]:
    """Runs of prose that may share a passage: one heading, not broken by code."""
    heading, listed, fenced = "", True, False
    run: list[tuple[int, int]] = []
    for number, (start, end) in enumerate(_blocks(text)):
        body = text[start:end]
        fences = len(re.findall(r"^\s*(?:```|~~~)", body, re.MULTILINE))
        title, after = (None, start) if fenced or fences else _heading(body, start)
        if title is not None:
            yield _Section(heading, tuple(run))
            run, heading, listed = [], title, _UNLISTED_SECTIONS.fullmatch(title) is None
        code = fenced or fences > 0 or _is_code(body)
        fenced ^= fences % 2 == 1
        if code or not listed or (number == 0 and _is_header(body)):
            yield _Section(heading, tuple(run))
            run = []
        elif after < end:
            run.extend(_sentences(text, after, end))
    yield _Section(heading, tuple(run))


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Runs of lines that are not blank."""
    start: int | None = None
    at = 0
    for line in text.split("\n"):
        if line and not line.isspace():
            start = at if start is None else start
        elif start is not None:
            yield start, at - 1
            start = None
        at += len(line) + 1
    if start is not None:
        yield start, len(text)


def _heading(body: str, start: int) -> tuple[str | None, int]:
    """The heading a block begins with, if it does, and where the rest of the block begins."""
    lines = body.split("\n", 3)
    if len(lines[0]) > HEADING_CHARS_MAX:
        return None, start
    if (
        len(lines) > 2
        and len(lines[1]) <= HEADING_CHARS_MAX
        and _UNDERLINE.fullmatch(lines[0].strip())
        and _UNDERLINE.fullmatch(lines[2].strip())
    ):
        return lines[1].strip(), start + sum(len(line) + 1 for line in lines[:3])
    if len(lines) > 1 and _UNDERLINE.fullmatch(lines[1].strip()) and not lines[0].startswith("    "):
        return lines[0].strip(), start + len(lines[0]) + 1 + len(lines[1]) + 1
    for form, group in ((_HASH_HEADING, 1), (_ONE_LINE_HEADING, 2)):
        match = form.fullmatch(lines[0].strip())
        if match is not None:
            return match[group].strip(), start + len(lines[0]) + 1
    return None, start


def _is_header(body: str) -> bool:
    return len(_FIELD.findall(body)) >= 3


def _is_code(body: str) -> bool:
    lines = body.split("\n")
    return all(line.startswith(("    ", "\t", ">>>", "> > >")) for line in lines)


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    at = start
    for match in _SENTENCE_END.finditer(text, start, end):
        # The closing quotes belong to the sentence; the space after them to nobody.
        close = match.start() + len(match[0]) - len(match[0].lstrip("\"')]*`"))
        yield from _whole(text, at, close)
        at = match.end()
    yield from _whole(text, at, end)


def _whole(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The span without the space around it, unless it is empty or a reference."""
    body = text[start:end]
    start, end = start + len(body) - len(body.lstrip()), end - (len(body) - len(body.rstrip()))
    if start < end and _CITATION.match(text[start:end]) is None:
        yield start, end


def _fit(text: str, start: int, end: int, tokens_max: int, count_tokens: CountTokens) -> Iterator[tuple[int, int]]:
    """A span in pieces that fit, cut between words; a single word that does not fit is left out."""
    while start < end:
        stop = trim(text, start, _window(text, start, end, tokens_max), tokens_max, count_tokens)
        if stop == start:
            space = re.compile(r"\s+").search(text, start, end)
            if space is None:
                return
            start = space.end()
            continue
        yield start, stop
        start = stop + len(text[stop:end]) - len(text[stop:end].lstrip())


def _window(text: str, start: int, end: int, tokens_max: int) -> int:
    """Where to stop looking for the end of a passage: between words if there is a space to stop at."""
    limit = start + tokens_max * PASSAGE_CHARS_PER_TOKEN_MAX
    if end <= limit:
        return end
    space = max(text.rfind(" ", start, limit), text.rfind("\n", start, limit))
    return space if space > start else limit


def _says_something(passage: str) -> bool:
    """Whether a passage reads as prose: enough words, and mostly words."""
    words = _WORD.findall(passage)
    letters = sum(map(len, words))
    return len(words) >= PASSAGE_WORDS_MIN and letters >= 0.6 * len("".join(passage.split()))
