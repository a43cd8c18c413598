"""Writes answers in OpenAI's shapes: one JSON object, or server-sent events.

Rules that clients rely on: every chunk has the same `id`, `created` and `model`; the first delta has
the role; `finish_reason` is set once; the usage chunk comes only when asked for, last, with
`choices: []`; `data: [DONE]` ends a whole stream and nothing else. The `headwater` object rides on
the last chunk, where clients that do not know it skip it. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from headwater.core.ids import CallId, ContributionId
from headwater.core.money import format_units
from headwater.gateway.errors import Failure
from headwater.gateway.tool_calls import Called, CallReader
from headwater.gateway.tool_requests import Tools
from headwater.models.backend import Piece, TokenLogprob

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"

FINISH: Final = {"stop": "stop", "length": "length", "cancelled": "length"}
"""How the journal's reason reads on the wire; an answer that its caller cut short is a short one."""

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class Source:
    """A registered contribution that was put before the model."""

    contribution: ContributionId
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Bill:
    """What a call cost, and where its receipt will be found."""

    call_id: CallId
    price_units: int  # nano units
    currency: str
    status: str  # pending, final
    sources: tuple[Source, ...]

    def to_json(self) -> dict[str, Any]:
        """The `headwater` object."""
        return {
            "receipt": self.call_id,
            "status": self.status,
            "price": format_units(self.price_units),
            "currency": self.currency,
            "sources": [{"contribution": s.contribution, "kind": s.kind, "title": s.title} for s in self.sources],
        }

    def to_bytes(self) -> bytes:
        """The JSON of the `headwater` object."""
        return _encode(self.to_json())


@dataclass(frozen=True, slots=True)
class Heading:
    """What every part of one answer repeats."""

    call_id: CallId
    created_s: int  # seconds since 1970
    model: str
    fingerprint: str  # of the weights

    @property
    def completion_id(self) -> str:
        """OpenAI's id of the answer; the call's, under the prefix that clients expect."""
        return "chatcmpl-" + self.call_id.removeprefix("call_")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens as the model counted them."""

    prompt: int
    completion: int

    def to_json(self) -> dict[str, int]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


class Writer(Protocol):
    """Writes one answer in the shape of its route. Pieces of several answers carry their number."""

    def begin(self) -> bytes:
        """The first events."""
        ...

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """The events of some pieces that are not the last."""
        ...

    def end(self, last: Piece, tokens: Tokens, bill: Bill) -> bytes:
        """The events of the last piece, the usage, the bill, and the end of the stream."""
        ...

    def whole(self, pieces: Sequence[Piece], tokens: Tokens, bill: Bill) -> bytes:
        """The body of a plain answer."""
        ...


@dataclass(frozen=True, slots=True)
class Said:
    """One answer, all of it."""

    text: str
    finish_reason: str  # as it reads on the wire
    logprobs: tuple[TokenLogprob, ...]
    calls: tuple[Called, ...] = ()


def gathered(pieces: Sequence[Piece], reading: Callable[[int], CallReader] | None = None) -> tuple[Said, ...]:
    """The answers that pieces make, in the order of their numbers.

    Args:
        reading: a reader for each answer, by its number, where tools may have been called.
    """
    found: dict[int, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.choice, []).append(piece)
    answers = []
    for number, of_one in sorted(found.items()):
        reason = next((FINISH[p.finish_reason] for p in of_one if p.finish_reason is not None), "stop")
        words: list[Piece] = of_one
        calls: list[Called] = []
        if reading is not None:
            reader, words = reading(number), []
            for piece in of_one:
                for one in reader.take(piece):
                    if isinstance(one, Called):
                        calls.append(one)
                    else:
                        words.append(one)
            reason = reader.finish(reason)
        logprobs = tuple(logprob for piece in words for logprob in piece.logprobs)
        answers.append(Said("".join(piece.text for piece in words), reason, logprobs, tuple(calls)))
    return tuple(answers)


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities as chat has them."""

    def one(text: str, utf8: Sequence[int], logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(utf8)}

    content = [
        {**one(token.text, token.utf8, token.logprob), "top_logprobs": [one(*other) for other in token.top]}
        for token in logprobs
    ]
    return {"content": content, "refusal": None}


class ChatWriter:
    """`chat.completion` and its chunks; the constant bytes around a text are made once.

    Args:
        tools: what the model may call; the answers are then read for calls.
    """

    __slots__ = ("_before", "_begun", "_head", "_heading", "_include_usage", "_logprobs", "_readers", "_tools")

    def __init__(
        self, heading: Heading, *, include_usage: bool, logprobs: bool = False, tools: Tools | None = None
    ) -> None:
        self._heading, self._include_usage, self._logprobs, self._tools = heading, include_usage, logprobs, tools
        head = {
            "id": heading.completion_id,
            "object": "chat.completion.chunk",
            "created": heading.created_s,
            "model": heading.model,
            "system_fingerprint": heading.fingerprint,
        }
        self._head = _encode(head)[:-1]
        self._before = b"data: " + self._head + b',"choices":[{"index":'
        self._begun: set[int] = set()
        self._readers: dict[int, CallReader] = {}

    def begin(self) -> bytes:
        """The role of the first answer."""
        return self._role(0)

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """One event for each piece that says something."""
        events = []
        for piece in pieces:
            if piece.choice not in self._begun:
                events.append(self._role(piece.choice))
            events += self._said(piece) if self._tools is None else self._read(piece)
            if piece.finish_reason is not None and not piece.last:
                events.append(self._event(piece.choice, b"{}", (), self._finish(piece)))
        return b"".join(events)

    def end(self, last: Piece, tokens: Tokens, bill: Bill) -> bytes:
        """The finish reason, the usage if it was asked for, the bill, and the end of the stream."""
        said = self.write([last])
        owed = b',"headwater":' + bill.to_bytes() + b"}\n\n"
        finish = self._event(last.choice, b"{}", (), self._finish(last))
        if not self._include_usage:
            return said + finish[:-3] + owed + DONE
        usage = b',"choices":[],"usage":' + _encode(tokens.to_json())
        return said + finish + b"data: " + self._head + usage + owed + DONE

    def whole(self, pieces: Sequence[Piece], tokens: Tokens, bill: Bill) -> bytes:
        """The object."""
        heading = self._heading
        choices = [
            {
                "index": number,
                "message": self._message(said),
                "logprobs": chat_logprobs(said.logprobs) if self._logprobs else None,
                "finish_reason": said.finish_reason,
            }
            for number, said in enumerate(gathered(pieces, None if self._tools is None else self._reader))
        ]
        return _encode(
            {
                "id": heading.completion_id,
                "object": "chat.completion",
                "created": heading.created_s,
                "model": heading.model,
                "system_fingerprint": heading.fingerprint,
                "choices": choices,
                "usage": tokens.to_json(),
                "headwater": bill.to_json(),
            }
        )

    # Calls of tools

    def _message(self, said: Said) -> dict[str, Any]:
        content = said.text if said.text or self._tools is None else None
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in said.calls
        ]
        return {"role": "assistant", "content": content, "refusal": None, **({"tool_calls": calls} if calls else {})}

    def _reader(self, choice: int) -> CallReader:
        assert self._tools is not None
        return self._readers.setdefault(choice, CallReader(self._tools, f"{self._heading.call_id}/{choice}"))

    def _read(self, piece: Piece) -> list[bytes]:
        events = []
        for one in self._reader(piece.choice).take(piece):
            events += self._call(piece.choice, one) if isinstance(one, Called) else self._said(one)
        return events

    def _call(self, choice: int, call: Called) -> list[bytes]:
        """Which tool is called, then with what."""
        named = {
            "index": call.index,
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": ""},
        }
        deltas: list[dict[str, Any]] = [named]
        deltas += [{"index": call.index, "function": {"arguments": piece}} for piece in call.pieces()]
        return [self._event(choice, b'{"tool_calls":[' + _encode(delta) + b"]}") for delta in deltas]

    def _finish(self, piece: Piece) -> str:
        reason = FINISH[piece.finish_reason or "stop"]
        return reason if self._tools is None else self._reader(piece.choice).finish(reason)

    # Events

    def _said(self, piece: Piece) -> list[bytes]:
        if not piece.text and not piece.logprobs:
            return []
        return [self._event(piece.choice, b'{"content":' + _encode(piece.text) + b"}", piece.logprobs)]

    def _role(self, choice: int) -> bytes:
        self._begun.add(choice)
        content = b'""' if self._tools is None else b"null"
        return self._event(choice, b'{"role":"assistant","content":' + content + b',"refusal":null}')

    def _event(
        self, choice: int, delta: bytes, logprobs: Sequence[TokenLogprob] = (), finish: str | None = None
    ) -> bytes:
        likely = _encode(chat_logprobs(logprobs)) if logprobs else b"null"
        reason = b"null" if finish is None else _encode(finish)
        # With include_usage every chunk but the last says `usage: null`, as OpenAI's do.
        usage = b',"usage":null' if self._include_usage else b""
        return b"".join(
            (
                *(self._before, b"%d" % choice, b',"delta":', delta, b',"logprobs":', likely),
                *(b',"finish_reason":', reason, b"}]", usage, b"}\n\n"),
            )
        )


def error_event(failure: Failure) -> bytes:
    """The event that ends a stream which failed after it had begun; no `[DONE]` follows it."""
    return b"data: " + failure.envelope() + b"\n\n"


def fingerprint(model_digest: str) -> str:
    """OpenAI's `system_fingerprint`: the first digits of the digest of the weights."""
    return "fp_" + model_digest.removeprefix("sha256:")[:12]
