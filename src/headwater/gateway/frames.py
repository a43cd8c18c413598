"""Writes answers in OpenAI's shapes: one JSON object, or server-sent events.

Rules that clients rely on: every chunk has the same `id`, `created` and `model`; the first delta has
the role; `finish_reason` is set once; the usage chunk comes only when asked for, last, with
`choices: []`; `data: [DONE]` ends a whole stream and nothing else. The `headwater` object rides on
the last chunk, where clients that do not know it skip it. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headwater.core.ids import CallId, ContributionId
from headwater.core.money import format_units
from headwater.gateway.errors import Failure

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"

_FINISH: Final = {"stop": "stop", "length": "length", "cancelled": "length"}
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


def completion(heading: Heading, text: str, finish_reason: str, tokens: Tokens, bill: Bill) -> bytes:
    """The body of a plain answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return _encode(
        {
            "id": heading.completion_id,
            "object": "chat.completion",
            "created": heading.created_s,
            "model": heading.model,
            "system_fingerprint": heading.fingerprint,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[finish_reason]}],
            "usage": tokens.to_json(),
            "headwater": bill.to_json(),
        }
    )


class ChunkWriter:
    """Writes the events of one stream; the constant bytes around a text are made once."""

    __slots__ = ("_after", "_before", "_head", "_include_usage")

    def __init__(self, heading: Heading, *, include_usage: bool) -> None:
        head = {
            "id": heading.completion_id,
            "object": "chat.completion.chunk",
            "created": heading.created_s,
            "model": heading.model,
            "system_fingerprint": heading.fingerprint,
        }
        self._head = _encode(head)[:-1]
        self._include_usage = include_usage
        self._before = b"data: " + self._head + b',"choices":[{"index":0,"delta":{"content":'
        self._after = b'},"logprobs":null,"finish_reason":null}]' + self._usage_null() + b"}\n\n"

    def role(self) -> bytes:
        """The first event."""
        delta = b',"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},'
        return (
            b"data: " + self._head + delta + b'"logprobs":null,"finish_reason":null}]' + self._usage_null() + b"}\n\n"
        )

    def texts(self, texts: Sequence[str]) -> bytes:
        """One event per text that is not empty."""
        return b"".join([self._before + _encode(text) + self._after for text in texts if text])

    def end(self, finish_reason: str, tokens: Tokens, bill: Bill) -> bytes:
        """The finish reason, the usage if it was asked for, the bill, and the end of the stream."""
        owed = b',"headwater":' + _encode(bill.to_json()) + b"}\n\n"
        finish = b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":'
        finish = b"data: " + self._head + finish + _encode(_FINISH[finish_reason]) + b"}]"
        if not self._include_usage:
            return finish + owed + DONE
        usage = b',"choices":[],"usage":' + _encode(tokens.to_json())
        return finish + b',"usage":null}\n\n' + b"data: " + self._head + usage + owed + DONE

    def _usage_null(self) -> bytes:
        # With include_usage every earlier chunk says `usage: null`, as OpenAI's do.
        return b',"usage":null' if self._include_usage else b""


def error_event(failure: Failure) -> bytes:
    """The event that ends a stream which failed after it had begun; no `[DONE]` follows it."""
    return b"data: " + failure.envelope() + b"\n\n"


def fingerprint(model_digest: str) -> str:
    """OpenAI's `system_fingerprint`: the first digits of the digest of the weights."""
    return "fp_" + model_digest.removeprefix("sha256:")[:12]
