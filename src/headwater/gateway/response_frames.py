"""Writes answers in the shape of the Responses API: one `response` object, or the events of its life.

    created, in_progress
    output_item.added, content_part.added, output_text.delta …, output_text.done, content_part.done, output_item.done
    output_item.added, function_call_arguments.delta …, function_call_arguments.done, output_item.done
    completed (or incomplete)

The second line is of words, the third of each tool that is called; without tools there is always one item of words.
Every event has a `sequence_number` one above the last. The `headwater` object is in the response of the last event.
Nothing is stored under the response's id but the call it names: `previous_response_id` is not known here. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from headwater.gateway.frames import Bill, Heading, Tokens, gathered
from headwater.gateway.tool_calls import Called, CallReader
from headwater.gateway.tool_requests import Tools
from headwater.models.backend import Piece

_encode = msgspec.json.encode
_ECHOED: Final[dict[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1,
    "truncation": "disabled",
}


class ResponseWriter:
    """`response`, and its events.

    Args:
        asked: the request.
        tools: what the model may call; the answer is then read for calls.
    """

    def __init__(self, heading: Heading, asked: Mapping[str, Any], tools: Tools | None = None) -> None:
        self._number = heading.call_id.removeprefix("call_")
        self._tools, self._reader = tools, CallReader(tools, f"{heading.call_id}/0") if tools else None
        self._words: list[str] | None = None  # of the item of words that is open
        self._output: list[dict[str, Any]] = []  # items that are done
        self._sequence = 0
        echoed = {name: default if asked.get(name) is None else asked[name] for name, default in _ECHOED.items()}
        self._head: dict[str, Any] = {
            "id": f"resp_{self._number}",
            "object": "response",
            "created_at": heading.created_s,
            "model": heading.model,
            "error": None,
            "incomplete_details": None,
            **echoed,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
        }

    def begin(self) -> bytes:
        """The response is there; without tools, the item of its words too."""
        response = {**self._head, "status": "in_progress", "output": [], "usage": None}
        begun = self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )
        return begun if self._tools else begun + self._open()

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """One event for each text, and the events of each call."""
        return b"".join([self._piece(piece) for piece in pieces])

    def end(self, last: Piece, tokens: Tokens, bill: Bill) -> bytes:
        """Everything is done."""
        whole = last.finish_reason == "stop"
        said = self._piece(last)
        if self._words is not None:
            said += self._close("completed" if whole else "incomplete")
        response = self._done(self._output, whole, tokens, bill)
        return said + self._event(f"response.{response['status']}", response=response)

    def whole(self, pieces: Sequence[Piece], tokens: Tokens, bill: Bill) -> bytes:
        """The object."""
        reader = self._reader
        said = gathered(pieces, None if reader is None else lambda _: reader)[0]
        whole = said.finish_reason in ("stop", "tool_calls")
        output = [self._call(call) for call in said.calls]
        if said.text or not self._tools:
            output.insert(0, self._message(0, said.text, "completed" if whole else "incomplete"))
        return _encode(self._done(output, whole, tokens, bill))

    # Items

    def _piece(self, piece: Piece) -> bytes:
        if self._reader is None:
            return self._delta(piece.text)
        events = [
            self._called(one) if isinstance(one, Called) else self._delta(one.text) for one in self._reader.take(piece)
        ]
        return b"".join(events)

    def _open(self) -> bytes:
        self._words = []
        place = len(self._output)
        item = {**self._message(place, "", "in_progress"), "content": []}
        return self._event("response.output_item.added", output_index=place, item=item) + self._event(
            "response.content_part.added", **self._place(), part=self._part("")
        )

    def _delta(self, text: str) -> bytes:
        if not text:
            return b""
        opened = self._open() if self._words is None else b""
        assert self._words is not None
        self._words.append(text)
        return opened + self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def _close(self, status: str) -> bytes:
        """The item of words is done."""
        place, where = len(self._output), self._place()
        text = "".join(self._words or ())
        item = self._message(place, text, status)
        self._words = None
        self._output.append(item)
        return b"".join(
            (
                self._event("response.output_text.done", **where, text=text, logprobs=[]),
                self._event("response.content_part.done", **where, part=self._part(text)),
                self._event("response.output_item.done", output_index=place, item=item),
            )
        )

    def _called(self, call: Called) -> bytes:
        closed = b"" if self._words is None else self._close("completed")
        item, place = self._call(call), len(self._output)
        self._output.append(item)
        where = {"item_id": item["id"], "output_index": place}
        begun = {**item, "status": "in_progress", "arguments": ""}
        return b"".join(
            (
                closed,
                self._event("response.output_item.added", output_index=place, item=begun),
                *(
                    self._event("response.function_call_arguments.delta", **where, delta=piece)
                    for piece in call.pieces()
                ),
                self._event("response.function_call_arguments.done", **where, name=call.name, arguments=call.arguments),
                self._event("response.output_item.done", output_index=place, item=item),
            )
        )

    def _done(self, output: list[dict[str, Any]], whole: bool, tokens: Tokens, bill: Bill) -> dict[str, Any]:
        return {
            **self._head,
            "status": "completed" if whole else "incomplete",
            "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "output": output,
            "usage": {
                "input_tokens": tokens.prompt,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": tokens.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens.prompt + tokens.completion,
            },
            "headwater": bill.to_json(),
        }

    def _item_id(self, place: int) -> str:
        return f"msg_{self._number}" + (f"_{place}" if place else "")

    def _place(self) -> dict[str, Any]:
        place = len(self._output)
        return {"item_id": self._item_id(place), "output_index": place, "content_index": 0}

    def _message(self, place: int, text: str, status: str) -> dict[str, Any]:
        return {
            "id": self._item_id(place),
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [self._part(text)],
        }

    @staticmethod
    def _call(call: Called) -> dict[str, Any]:
        return {
            "id": f"fc_{call.id.removeprefix('tool_')}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _event(self, kind: str, **fields: object) -> bytes:
        number = self._sequence
        self._sequence += 1
        data = _encode({"type": kind, "sequence_number": number, **fields})
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
