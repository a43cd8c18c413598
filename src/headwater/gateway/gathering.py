"""What another server said, read from its answer as it passes by: the texts, for whoever accounts for them.

A text is what was said to the caller, and the arguments of tools that were called. Nothing is changed here, and what
cannot be read says nothing. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from headwater.attribution.evidence import Choice
from headwater.core.errors import UpstreamError
from headwater.core.limits import CALL_RECORD_SIZE_BYTES_MAX

TEXT_CHARS_MAX: Final = CALL_RECORD_SIZE_BYTES_MAX // 8
_END: Final = re.compile(rb"\r?\n\r?\n")


class Gathering:
    """The texts of one answer, choice by choice. Give it the whole body or a stream's bytes, in any pieces."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._reasons: dict[int, str] = {}
        self._size = 0
        self._carry = b""

    def whole(self, body: bytes) -> None:
        """Read a plain answer."""
        answer = _table(body)
        for choice in _tables(answer.get("choices")):
            number = _number(choice)
            self._say(number, choice.get("text"))
            said = choice.get("message")
            self._message(number, said if isinstance(said, dict) else {})
            self._reason(number, choice)
        for item in _tables(answer.get("output")):
            self._say(0, item.get("arguments"))
            for part in _tables(item.get("content")):
                self._say(0, part.get("text"))

    def feed(self, data: bytes) -> None:
        """Read some more of a stream."""
        data = self._carry + data
        start = 0
        for match in _END.finditer(data):
            self._event(data[start : match.end()])
            start = match.end()
        self._carry = data[start:]

    def choices(self, *, cut: bool = False) -> tuple[Choice, ...]:
        """What was said, at least one, in the order of their numbers."""
        numbers = sorted(self._texts) or [0]
        reason = "cancelled" if cut else "stop"
        return tuple(
            Choice("".join(self._texts.get(n, [])), (), (), reason if cut else self._reasons.get(n, reason))
            for n in numbers
        )

    def _event(self, event: bytes) -> None:
        data = b"".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        if not data.startswith(b"{"):
            return
        table = _table(data)
        kind = table.get("type")
        if kind in ("response.output_text.delta", "response.function_call_arguments.delta"):
            self._say(0, table.get("delta"))
        for choice in _tables(table.get("choices")):
            number = _number(choice)
            self._say(number, choice.get("text"))
            delta = choice.get("delta")
            self._message(number, delta if isinstance(delta, dict) else {})
            self._reason(number, choice)

    def _message(self, number: int, message: dict[str, Any]) -> None:
        content = message.get("content")
        if isinstance(content, list):
            for part in _tables(content):
                self._say(number, part.get("text"))
        else:
            self._say(number, content)
        for call in _tables(message.get("tool_calls")):
            function = call.get("function")
            self._say(number, function.get("arguments") if isinstance(function, dict) else None)

    def _reason(self, number: int, choice: dict[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self._reasons[number] = "length" if reason == "length" else "stop"

    def _say(self, number: int, text: object) -> None:
        if isinstance(text, str) and text:
            self._size += len(text)
            if self._size > TEXT_CHARS_MAX:
                raise UpstreamError(
                    f"an answer of more than {TEXT_CHARS_MAX} characters cannot be attributed",
                    code="upstream_too_large",
                    fix="ask for fewer tokens, or without sources",
                )
            self._texts.setdefault(number, []).append(text)


def _table(raw: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _tables(value: object) -> Iterator[dict[str, Any]]:
    return (item for item in value if isinstance(item, dict)) if isinstance(value, list) else iter(())


def _number(choice: dict[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) and 0 <= index < 128 else 0
