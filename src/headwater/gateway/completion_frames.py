"""Writes answers in the shape of the older completions route: `text_completion`, whole or as events. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from headwater.gateway.frames import DONE, FINISH, Bill, Heading, Tokens, gathered
from headwater.models.backend import Piece, TokenLogprob

_encode = msgspec.json.encode


class CompletionWriter:
    """`text_completion`; a stream has the same object again and again, each with some more of the text."""

    def __init__(self, heading: Heading, *, include_usage: bool, logprobs: bool = False) -> None:
        self._include_usage, self._logprobs = include_usage, logprobs
        self._head: dict[str, Any] = {
            "id": "cmpl-" + heading.call_id.removeprefix("call_"),
            "object": "text_completion",
            "created": heading.created_s,
            "model": heading.model,
            "system_fingerprint": heading.fingerprint,
        }
        self._said: dict[int, int] = {}  # characters so far, by answer

    def begin(self) -> bytes:
        """Nothing: there is no role to tell."""
        return b""

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """One event for each piece that says something."""
        return b"".join([self._event(piece) for piece in pieces if self._speaks(piece)])

    def end(self, last: Piece, tokens: Tokens, bill: Bill) -> bytes:
        """The finish reason, the usage if it was asked for, the bill, and the end of the stream."""
        if not self._include_usage:
            return self._event(last, headwater=bill.to_json()) + DONE
        usage = {**self._head, "choices": [], "usage": tokens.to_json(), "headwater": bill.to_json()}
        return self._event(last) + b"data: " + _encode(usage) + b"\n\n" + DONE

    def whole(self, pieces: Sequence[Piece], tokens: Tokens, bill: Bill) -> bytes:
        """The object."""
        choices = [
            {
                "index": number,
                "text": said.text,
                "logprobs": completion_logprobs(said.logprobs, 0) if self._logprobs else None,
                "finish_reason": said.finish_reason,
            }
            for number, said in enumerate(gathered(pieces))
        ]
        return _encode({**self._head, "choices": choices, "usage": tokens.to_json(), "headwater": bill.to_json()})

    @staticmethod
    def _speaks(piece: Piece) -> bool:
        return bool(piece.text or piece.logprobs or piece.finish_reason is not None)

    def _event(self, piece: Piece, **more: object) -> bytes:
        start = self._said.get(piece.choice, 0)
        self._said[piece.choice] = start + len(piece.text)
        choice = {
            "index": piece.choice,
            "text": piece.text,
            "logprobs": completion_logprobs(piece.logprobs, start) if piece.logprobs else None,
            "finish_reason": None if piece.finish_reason is None else FINISH[piece.finish_reason],
        }
        usage = {"usage": None} if self._include_usage else {}
        return b"data: " + _encode({**self._head, "choices": [choice], **usage, **more}) + b"\n\n"


def completion_logprobs(logprobs: Sequence[TokenLogprob], start: int) -> dict[str, Any]:
    """Log-probabilities as completions have them.

    Args:
        start: characters of the text before the first of these tokens.
    """
    offsets, at = [], start
    for token in logprobs:
        offsets.append(at)
        at += len(token.text)
    return {
        "tokens": [token.text for token in logprobs],
        "token_logprobs": [token.logprob for token in logprobs],
        "top_logprobs": [{text: logprob for text, _, logprob in token.top} for token in logprobs],
        "text_offset": offsets,
    }
