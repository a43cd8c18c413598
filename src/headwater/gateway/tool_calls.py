"""Takes an answer apart into words and calls of tools, as its pieces come.

A call leaves when all of it is there, and never before: what a length limit cut off inside one is left out of what the
caller gets. What comes after an opening and is no call of a tool that was offered is words like any others. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from typing import Final

import msgspec

from headwater.gateway.tool_requests import OPENING, Comes, Tools
from headwater.models.backend import Piece
from headwater.models.structured import begun_pattern, opening_pattern

ARGUMENTS_CHARS: Final = 32  # of one event of a stream
_OPENED: Final = re.compile(opening_pattern(OPENING))
_BEGUN: Final = re.compile(begun_pattern(OPENING))


@dataclass(frozen=True, slots=True)
class Called:
    """A call of a tool, all of it."""

    index: int  # among the calls of its answer
    id: str
    name: str
    arguments: str  # JSON, as the model wrote it

    def pieces(self) -> Iterator[str]:
        """The arguments in the stretches in which a stream tells them."""
        for start in range(0, len(self.arguments), ARGUMENTS_CHARS):
            yield self.arguments[start : start + ARGUMENTS_CHARS]


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw


class _Phase(Enum):
    FREE = "words until an opening"
    UNDECIDED = "words or calls, as the first bracket says"
    CALLS = "a JSON array of calls"
    WORDS = "words to the end"


_FIRST: Final = {Comes.AFTER: _Phase.FREE, Comes.AT_ONCE: _Phase.CALLS, Comes.EITHER: _Phase.UNDECIDED}


class CallReader:
    """Reads one answer.

    Args:
        tools: what the model may call.
        answer: names the answer; ids of its calls are made from it, the same whenever it is read again.
    """

    def __init__(self, tools: Tools, answer: str) -> None:
        self._names, self._answer = tools.names, answer
        self._phase = _FIRST[tools.comes]
        self._held: list[Piece] = []  # words that may yet become an opening, or the array of calls so far
        self._begun = False  # whether words have left
        self._scan = _Objects()
        self._count = 0  # calls so far

    def take(self, piece: Piece) -> Iterator[Piece | Called]:
        """What may leave now that `piece` has come: words as pieces without a finish reason, calls as calls."""
        self._held.append(replace(piece, finish_reason=None, last=False))
        if self._phase is _Phase.UNDECIDED and (text := self._text().lstrip()):
            self._phase = _Phase.CALLS if text.startswith("[") else _Phase.WORDS
        if self._phase is _Phase.FREE:
            yield from self._free()
        if self._phase is _Phase.CALLS:
            yield from self._calls()
        if self._phase is _Phase.WORDS:
            yield from self._leave(len(self._held))
        if piece.finish_reason is not None:
            if self._phase is not _Phase.CALLS or (piece.finish_reason == "stop" and not self._count):
                yield from self._leave(len(self._held))  # it became neither an opening nor a call
            self._held.clear()

    def finish(self, reason: str) -> str:
        """The reason an answer ended, on the wire, where it would be `reason` without calls."""
        return "tool_calls" if self._count and reason == "stop" else reason

    def _text(self) -> str:
        return "".join(piece.text for piece in self._held)

    def _free(self) -> Iterator[Piece]:
        before = "." if self._begun else ""  # a text that goes on does not begin a line
        text = before + self._text()
        if found := _OPENED.search(text):
            yield from self._cut(found.start() - len(before), found.end() - len(before))
            self._phase = _Phase.CALLS
            return
        begun = _BEGUN.search(text)
        safe, at = 0, len(before)
        while safe < len(self._held) and (begun is None or at + len(self._held[safe].text) <= begun.start()):
            at += len(self._held[safe].text)
            safe += 1
        yield from self._leave(safe)

    def _cut(self, start: int, end: int) -> Iterator[Piece]:
        """The words before an opening; what comes after it stays."""
        held, self._held = self._held, []
        at = 0
        for piece in held:
            words, rest = piece.text[: max(0, start - at)], piece.text[max(0, end - at) :]
            at += len(piece.text)
            if words:
                yield replace(piece, text=words)
            if rest:
                self._held.append(replace(piece, text=rest))

    def _leave(self, count: int) -> Iterator[Piece]:
        leaving, self._held = self._held[:count], self._held[count:]
        for piece in leaving:
            self._begun = self._begun or bool(piece.text)
            yield piece

    def _calls(self) -> Iterator[Called]:
        text = self._text()
        if text.strip() and not text.lstrip().startswith("["):
            self._phase = _Phase.WORDS
            return
        for found in self._scan.take(text):
            called = self._call(found)
            if called is None:
                self._phase = _Phase.WORDS
                return
            self._count += 1
            yield called

    def _call(self, text: str) -> Called | None:
        try:
            call = msgspec.json.decode(text, type=_Call)
        except (msgspec.DecodeError, UnicodeError):
            return None
        arguments = bytes(call.arguments)
        if call.name not in self._names or not arguments.startswith(b"{"):
            return None
        identity = sha256(f"{self._answer}\x00{self._count}".encode()).hexdigest()[:24]
        return Called(self._count, f"tool_{identity}", call.name, arguments.decode())


class _Objects:
    """Finds the objects of a JSON array, each as soon as its last brace has come."""

    def __init__(self) -> None:
        self._at = self._start = self._depth = 0
        self._quoted = self._escaped = False

    def take(self, text: str) -> Iterator[str]:
        """Objects that are whole now.

        Args:
            text: the array from its beginning; what was taken before and more.
        """
        for at in range(self._at, len(text)):
            char = text[at]
            self._at = at + 1
            if self._quoted:
                self._quoted = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._quoted = True
            elif char in "[{":
                self._depth += 1
                if self._depth == 2:
                    self._start = at
            elif char in "]}":
                self._depth -= 1
                if self._depth == 1:
                    yield text[self._start : at + 1]
