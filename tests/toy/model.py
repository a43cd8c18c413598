"""A toy model: a byte is a token, what it has read it repeats, and words in brackets make it misbehave.

`[delay=0.01]` seconds before each token · `[fail=3]` fails after three tokens · `[hold]` waits until the
test lets it go · `[mute]` never says why it ended · `[call=2]` calls two tools, if there are any. The answer to "x" is
"You said: x" over and over; one that has to follow a JSON schema is the least that does.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Generator, Sequence
from functools import reduce
from hashlib import sha256
from operator import getitem
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import UpstreamError
from headwater.models.backend import FinishReason, Piece, Sampling

CONTEXT_TOKENS = 16_384
_ASKED = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)
_DIRECTIVE = re.compile(r"\[(delay|fail|hold|mute|call)(?:=([\d.]+))?\]")
_SMOOTHING = 0.05


class ToyModel:
    """Backend and scorer in one. `held` blocks answers to `[hold]` until it is set."""

    def __init__(self, name: str = "toy") -> None:
        self.name = name
        self.digest = "sha256:" + sha256(b"toy model 1").hexdigest()
        self.context_tokens_max = CONTEXT_TOKENS
        self.held = threading.Event()
        self.scoring_fails = 0  # how many of the next scorings fail, as an engine that is restarting would
        self.started = 0
        self.stopped_early = 0
        self.tokens = 0

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:  # noqa: ARG002
        """UTF-8 bytes."""
        return tuple(text.encode())

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Generator[Piece]:
        """Say the last question again and again; at a temperature, letters are drawn at random."""
        asked = (_ASKED.findall(text := bytes(prompt).decode()) or [text])[-1]
        wishes = dict(_DIRECTIVE.findall(asked))
        said, whole = _said(_DIRECTIVE.sub("", asked).strip(), wishes, sampling)
        rng = Random(sampling.seed)
        self.started += 1
        pending, text = b"", ""
        finish: FinishReason = "length"
        ended = False
        try:
            for number in range(sampling.max_tokens):
                if whole and number == len(said):
                    finish = "stop"
                    break
                if "hold" in wishes and number == 1:
                    self.held.wait(30)
                if wishes.get("delay"):
                    time.sleep(float(wishes["delay"]))
                if wishes.get("fail") and number >= int(wishes["fail"]):
                    raise UpstreamError("the toy broke", code="model_failed", fix="try again")
                token = said[number % len(said)] if whole or sampling.temperature == 0 else rng.choice(b"abcdefgh ")
                self.tokens += 1
                pending += bytes([token])
                piece, pending = _whole_characters(pending)
                text += piece
                stop = next((s for s in sampling.stop if s in text), None)
                if stop is not None:
                    yield Piece(piece[: len(piece) - (len(text) - text.index(stop))], (token,))
                    finish = "stop"
                    break
                yield Piece(piece, (token,))
            ended = True
            if "mute" not in wishes:
                yield Piece("", (), finish)
        finally:
            self.stopped_early += not ended

    def score(self, contexts: Sequence[Sequence[int]], answer: Sequence[int]) -> NDArray[np.float64]:
        """log2 of a bigram model whose counts are those of the context."""
        if self.scoring_fails:
            self.scoring_fails -= 1
            raise UpstreamError("the toy scorer broke", code="scorer_failed", fix="try again")
        rows = []
        for context in contexts:
            read = np.asarray(context, dtype=np.int64)
            counts = np.bincount(read[:-1] * 256 + read[1:], minlength=65_536).reshape(256, 256)
            before = np.asarray([context[-1], *answer[:-1]])
            hits = counts[before, np.asarray(answer)]
            rows.append(np.log2((hits + _SMOOTHING) / (counts[before].sum(axis=1) + 256 * _SMOOTHING)))
        return np.asarray(rows, dtype=np.float64)


def _said(words: str, wishes: dict[str, str], sampling: Sampling) -> tuple[bytes, bool]:
    """What is said, and whether that is all of it."""
    calls = int(wishes["call"] or 1) if "call" in wishes else 0
    if not sampling.grammar or (sampling.grammar_after and not calls):
        return f"You said: {words}. ".encode(), False
    schema = json.loads(sampling.grammar)
    if "anyOf" in schema and not calls:
        schema = {**schema, "anyOf": schema["anyOf"][1:]}
    before = f"You said: {words}.\n" if words and sampling.grammar_after else ""
    return (before + sampling.grammar_after + json.dumps(_least(schema, schema, calls))).encode(), True


def _least(schema: Any, root: Any, many: int = 1, turn: int = 0) -> Any:
    """The least that follows a schema; of the outermost array so many, each of the next of its alternatives."""
    if "$ref" in schema:
        return _least(reduce(getitem, schema["$ref"].split("/")[1:], root), root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _least(schema["anyOf"][turn % len(schema["anyOf"])], root, many)
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: _least(schema["properties"][name], root) for name in schema.get("required", ())}
    if kind == "array":
        count = min(max(many, schema.get("minItems", 0)), schema.get("maxItems", 2**31))
        return [_least(schema["items"], root, turn=turn) for turn in range(count)]
    return {"string": "x", "integer": 7, "number": 0.5, "boolean": True, "null": None}[kind]


def _whole_characters(raw: bytes) -> tuple[str, bytes]:
    """The whole characters at the start of `raw`, and the bytes of one that has only begun."""
    try:
        return raw.decode(), b""
    except UnicodeDecodeError as error:
        return raw[: error.start].decode(), raw[error.start :]
