"""Rows as the model reads them: tokens as they will be served, and the frozen layers' output, kept on disk.

A prompt is rendered with the template that serving uses, and only the answer with its end of turn is
learned. What the frozen layers make of each token is computed once, written to one file beside the
training, and mapped from there, so memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwater.core.errors import Problem, UpstreamError
from headwater.models.chatml import render_chat
from headwater.models.factory.network import Batch, TopLayers, lower_states
from headwater.models.factory.recipe import Recipe
from headwater.models.factory.rows import Row, refuse
from headwater.models.tokenizer import Tokenizer
from headwater.models.weights import LlamaWeights

END_OF_TURN = "<|im_end|>"
TOKENS_MIN = 2


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens read in one go; those from `learned_from` on are what the adapter must foretell."""

    tokens: NDArray[np.int64]
    learned_from: int  # >= 1: the first token is never foretold

    @property
    def learned(self) -> int:
        """How many tokens are foretold."""
        return len(self.tokens) - self.learned_from


@dataclass(frozen=True, slots=True)
class Example:
    """What one step of training takes at a time: a stretch, or the two answers of a pair."""

    row: Row
    stretches: tuple[Stretch, ...]  # one; or (chosen, rejected)
    states: tuple[NDArray[np.float32], ...] = ()  # (tokens, width) for each stretch: what enters the trained layers
    reference: tuple[float, float] | None = None  # ln p of chosen and rejected before training

    @property
    def tokens(self) -> int:
        """Tokens read."""
        return sum(len(stretch.tokens) for stretch in self.stretches)


def tokenise(rows: Iterable[Row], tokenizer: Tokenizer, tokens_max: int) -> tuple[Example, ...]:
    """Examples in the order of their rows; a long text becomes several.

    Raises:
        InvalidError: a prompt and answer longer than `tokens_max`, by place.
    """
    examples: list[Example] = []
    problems: list[Problem] = []
    for row in rows:
        if row.kind == "text":
            examples += [Example(row, (stretch,)) for stretch in _pieces(row, tokenizer, tokens_max)]
            continue
        answers = (row.chosen, row.rejected) if row.kind == "pair" else (row.chosen,)
        stretches = tuple(_turn(row.prompt, answer, tokenizer) for answer in answers)
        longest = max(len(stretch.tokens) for stretch in stretches)
        if longest > tokens_max:
            problems.append(
                Problem(
                    row.where,
                    "row_too_long",
                    f"prompt and answer have {longest} tokens, the recipe takes {tokens_max}",
                    "shorten the row or raise tokens_max",
                )
            )
        else:
            examples.append(Example(row, stretches))
    refuse(problems)
    return tuple(examples)


def with_states(
    examples: Sequence[Example],
    weights: LlamaWeights,
    recipe: Recipe,
    file: Path,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Example, ...]:
    """The examples with what enters the trained layers, from `file` if it was made before for exactly these.

    The file is renamed into place when it is whole; its name holds the digest of all it depends on.

    Raises:
        UpstreamError: the disk is full or failed; no file is left under the name.
    """
    first, width = weights.shape.layers - recipe.layers, weights.shape.width
    runs = [stretch.tokens for example in examples for stretch in example.stretches]
    places = sum(map(len, runs))
    named = hashlib.sha256(f"states 1 {weights.digest} {first} {recipe.frozen}".encode())
    for run in runs:
        named.update(np.int64(len(run)).tobytes() + run.tobytes())
    path = file.with_name(f"{file.name}-{named.hexdigest()[:32]}.f32")
    if not path.exists():
        draft = path.with_suffix(".draft")
        try:
            with draft.open("wb") as handle:
                os.posix_fallocate(handle.fileno(), 0, places * width * 4)  # a full disk is told now, not by a signal
            states = np.memmap(draft, dtype=np.float32, mode="r+", shape=(places, width))
            for done in lower_states(weights, first, runs, states, recipe.frozen):
                if progress is not None:
                    progress(done, first)
            states.flush()
            del states
            with draft.open("rb+") as handle:
                os.fsync(handle.fileno())
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise UpstreamError(
                f"{path.name} of {places * width * 4} bytes cannot be written: {error.strerror}",
                code="disk_full",
                fix="free some space and run the command again; nothing of this training is served",
            ) from error
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=(places, width))
    made: list[Example] = []
    at = 0
    for example in examples:
        views = []
        for stretch in example.stretches:
            views.append(mapped[at : at + len(stretch.tokens)])
            at += len(stretch.tokens)
        made.append(replace(example, states=tuple(views)))
    return tuple(made)


def collate(examples: Sequence[Example], places_min: int = 0) -> Batch:
    """Examples as one batch: a row each, stretches side by side, padded at the end to at least `places_min`."""
    places = max(places_min, *(example.tokens for example in examples))
    width = examples[0].states[0].shape[1]
    hidden = torch.zeros(len(examples), places, width)
    positions = torch.zeros(len(examples), places, dtype=torch.int64)
    segments = torch.full((len(examples), places), -1, dtype=torch.int64)
    targets: list[tuple[NDArray[np.int64], ...]] = []
    for row, example in enumerate(examples):
        at = 0
        for number, (stretch, states) in enumerate(zip(example.stretches, example.states, strict=True)):
            size = len(stretch.tokens)
            hidden[row, at : at + size] = torch.from_numpy(np.array(states))
            positions[row, at : at + size] = torch.arange(size)
            segments[row, at : at + size] = number
            learned = np.arange(stretch.learned_from, size)
            filled = np.ones_like(learned)
            targets.append((filled * row, at + learned - 1, stretch.tokens[learned], filled * number))
            at += size
    rows, target_places, tokens, numbers = (
        torch.from_numpy(np.concatenate(column)) for column in zip(*targets, strict=True)
    )
    return Batch(hidden, positions, segments, rows, target_places, tokens, numbers)


def stretch_sums(batch: Batch, values: Tensor) -> Tensor:
    """(rows, 2): the sum of per-target values over each stretch of each row."""
    rows = batch.hidden.shape[0]
    flat = torch.zeros(rows * 2).index_add(0, batch.target_rows * 2 + batch.target_segments, values)
    return flat.reshape(rows, 2)


@torch.no_grad()
def with_reference(model: TopLayers, examples: Sequence[Example]) -> tuple[Example, ...]:
    """The examples, pairs with ln p of both answers under the weights the model has now."""
    made = []
    for example in examples:
        if len(example.stretches) == 2 and example.reference is None:
            batch = collate([example])
            chosen, rejected = stretch_sums(batch, model(batch))[0].tolist()
            example = replace(example, reference=(chosen, rejected))
        made.append(example)
    return tuple(made)


def _pieces(row: Row, tokenizer: Tokenizer, tokens_max: int) -> list[Stretch]:
    """A text in pieces of nearly equal length, each of at least two tokens."""
    tokens = np.array(tokenizer.tokenize(row.chosen, control=False), dtype=np.int64)
    if len(tokens) < TOKENS_MIN:
        return []
    parts = np.array_split(tokens, -(-len(tokens) // tokens_max))
    return [Stretch(part, 1) for part in parts if len(part) >= TOKENS_MIN]


def _turn(prompt: str, answer: str, tokenizer: Tokenizer) -> Stretch:
    """One question and its answer, as served: the model has read the prompt, the answer ends the turn."""
    before: list[int] = []
    for piece in render_chat([("user", prompt)], system_default=None):
        before += tokenizer.tokenize(piece.text, control=piece.control)
    after = (*tokenizer.tokenize(answer, control=False), *tokenizer.tokenize(END_OF_TURN, control=True))
    return Stretch(np.array([*before, *after], dtype=np.int64), len(before))
