"""Writes answers in the shape of the Responses API: one `response` object, or the events of its life.

    created, in_progress, output_item.added, content_part.added, output_text.delta …,
    output_text.done, content_part.done, output_item.done, completed (or incomplete)

Every event has a `sequence_number` one above the last. The `headwater` object is in the response of the last event.
Nothing is stored under the response's id but the call it names: `previous_response_id` is not known here. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from headwater.gateway.frames import Bill, Heading, Tokens, gathered
from headwater.models.backend import Piece

_encode = msgspec.json.encode
_ECHOED: Final[dict[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "temperature": 0,
    "top_p": 1,
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
}


class ResponseWriter:
    """`response`, and its events."""

    def __init__(self, heading: Heading, asked: Mapping[str, Any]) -> None:
        number = heading.call_id.removeprefix("call_")
        self._item = f"msg_{number}"
        self._text: list[str] = []
        self._sequence = 0
        echoed = {name: default if asked.get(name) is None else asked[name] for name, default in _ECHOED.items()}
        self._head: dict[str, Any] = {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": heading.created_s,
            "model": heading.model,
            "error": None,
            "incomplete_details": None,
            **echoed,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "tool_choice": "auto",
            "tools": [],
        }

    def begin(self) -> bytes:
        """The response is there, and its one item with its one part."""
        self._text = []
        response = {**self._head, "status": "in_progress", "output": [], "usage": None}
        item = {"id": self._item, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        return b"".join(
            (
                self._event("response.created", response=response),
                self._event("response.in_progress", response=response),
                self._event("response.output_item.added", output_index=0, item=item),
                self._event("response.content_part.added", **place, part=self._part("")),
            )
        )

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """One event for each text."""
        return b"".join([self._delta(piece.text) for piece in pieces if piece.text])

    def end(self, last: Piece, tokens: Tokens, bill: Bill) -> bytes:
        """Everything is done."""
        said = self._delta(last.text) if last.text else b""
        text = "".join(self._text)
        response = self._done(text, last.finish_reason == "stop", tokens, bill)
        item = response["output"][0]
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        return said + b"".join(
            (
                self._event("response.output_text.done", **place, text=text, logprobs=[]),
                self._event("response.content_part.done", **place, part=self._part(text)),
                self._event("response.output_item.done", output_index=0, item=item),
                self._event(f"response.{response['status']}", response=response),
            )
        )

    def whole(self, pieces: Sequence[Piece], tokens: Tokens, bill: Bill) -> bytes:
        """The object."""
        said = gathered(pieces)[0]
        return _encode(self._done(said.text, said.finish_reason == "stop", tokens, bill))

    def _done(self, text: str, whole: bool, tokens: Tokens, bill: Bill) -> dict[str, Any]:
        status = "completed" if whole else "incomplete"
        item = {
            "id": self._item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [self._part(text)],
        }
        return {
            **self._head,
            "status": status,
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "output": [item],
            "usage": {
                "input_tokens": tokens.prompt,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": tokens.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens.prompt + tokens.completion,
            },
            "headwater": bill.to_json(),
        }

    def _delta(self, text: str) -> bytes:
        self._text.append(text)
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        return self._event("response.output_text.delta", **place, delta=text, logprobs=[])

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _event(self, kind: str, **fields: object) -> bytes:
        number = self._sequence
        self._sequence += 1
        data = _encode({"type": kind, "sequence_number": number, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
