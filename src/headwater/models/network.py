"""The llama architecture over a prefix tree: log-probabilities of an answer after many prompts at once.

Nodes whose ancestors are done are computed together, up to `GROUP_ROWS` tokens in one pass, so each
weight is read once for many tokens; the tree is walked depth first by such groups, so memory holds
the keys and values of one branch of groups and not of the whole tree. Only answer positions reach
the vocabulary. Nothing here depends on which nodes share a group: see `tiles` and `attention`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.models.attention import tree_attention
from headwater.models.elementwise import gate, log2_probabilities, rms_norm, rotary_tables, rotate
from headwater.models.linear import ROW_STEP, AdaptedLinear, Linear, Precision, Rows, make_linear
from headwater.models.lora import Lora, heads_of, split_module, stored_rows
from headwater.models.prefix_tree import PrefixTree, build_tree
from headwater.models.weights import LayerWeights, LlamaWeights

GROUP_ROWS = 512
LOGIT_ROWS = 64

_Addresses = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class _Cache:
    """Keys and values of a group: (layers kept, rows, kv width) each."""

    keys: Rows
    values: Rows


@dataclass(frozen=True, slots=True)
class _Segment:
    """A node's part of a cache."""

    cache: _Cache
    row: int
    size: int


@dataclass(frozen=True, slots=True)
class _Task:
    """A node that can be computed: its ancestors are in their caches."""

    node: int
    ancestors: tuple[_Segment, ...]


@dataclass(frozen=True, slots=True)
class _Request:
    """One number asked for: the probability of `target` after the token at `offset` of a node."""

    offset: int
    target: int
    context: int
    position: int


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Rows
    query_key_value: Linear
    attention_output: Linear
    ffn_norm: Rows
    gate_up: Linear
    down: Linear


class Network:
    """A model ready to run. Immutable: any number of threads may use it at once, each with its own buffers."""

    def __init__(self, weights: LlamaWeights, precision: Precision, context_tokens_max: int) -> None:
        """Pack `weights` for `precision`; positions are known up to `context_tokens_max`."""
        self.shape = weights.shape
        self._embedding = weights.embedding
        careful: Precision = "int16" if precision == "int8" else precision
        self._output = make_linear(weights.output, careful)
        self._final_norm = weights.final_norm
        # 8 bits are enough to read a prompt. The tokens that are asked about are computed with 16: their own rounding
        # is what would be seen, and they are a quarter of the work.
        self._answers_apart = careful != precision
        layers = []
        for index in range(self.shape.layers):
            stored = weights.layer(index)
            reading = _pack(stored, precision)
            layers.append((reading, _pack(stored, careful) if self._answers_apart else reading))
        self._layers = tuple(reading for reading, _ in layers)
        self._answer_layers = tuple(answering for _, answering in layers)
        self._cosine, self._sine = rotary_tables(context_tokens_max, self.shape.head_width, self.shape.rope_base)
        self._epsilon = np.float32(self.shape.norm_epsilon)

    def with_adapter(self, lora: Lora) -> Network:
        """This network with an adapter on top; the base weights are shared."""
        adapted = copy(self)
        by_layer: dict[int, dict[str, tuple[Rows, Rows]]] = {}
        for module, (a, b) in lora.tensors.items():
            index, projection = split_module(module)
            heads = heads_of(self.shape, projection)
            by_layer.setdefault(index, {})[projection] = (a, b if heads is None else stored_rows(b, heads))
        adapted._layers, adapted._answer_layers = (
            tuple(
                self._adapted(layer, by_layer[index], lora.scale) if index in by_layer else layer
                for index, layer in enumerate(layers)
            )
            for layers in (self._layers, self._answer_layers)
        )
        return adapted

    def _adapted(self, layer: _Layer, tensors: Mapping[str, tuple[Rows, Rows]], scale: float) -> _Layer:
        """A layer whose products have the adapter's additions where its stacked projections stand."""
        query, key = self.shape.heads * self.shape.head_width, self.shape.kv_heads * self.shape.head_width
        stacks = {
            "query_key_value": {"self_attn.q_proj": 0, "self_attn.k_proj": query, "self_attn.v_proj": query + key},
            "attention_output": {"self_attn.o_proj": 0},
            "gate_up": {"mlp.gate_proj": 0, "mlp.up_proj": self.shape.hidden},
            "down": {"mlp.down_proj": 0},
        }
        changed: dict[str, Any] = {}
        for field, places in stacks.items():
            additions = [
                (at, *tensors[projection], scale) for projection, at in places.items() if projection in tensors
            ]
            if additions:
                changed[field] = AdaptedLinear(getattr(layer, field), additions)
        return replace(layer, **changed)

    def score(self, contexts: Sequence[tuple[int, ...]], answer: tuple[int, ...]) -> NDArray[np.float64]:
        """(contexts, answer tokens) of log2 p; contexts are distinct and, like the answer, not empty."""
        tree = self._tree(contexts, answer)
        children: list[list[int]] = [[] for _ in tree.nodes]
        roots: list[int] = []
        for index, node in enumerate(tree.nodes):
            (roots if node.parent is None else children[node.parent]).append(index)
        requests = _requests(tree, contexts, answer)
        result = np.empty((len(contexts), len(answer)), dtype=np.float64)
        waiting = [[_Task(root, ()) for root in roots]]
        while waiting:
            group, *later = _groups(tree, children, waiting.pop())
            waiting.extend(reversed(later))  # after everything below this group, whose caches are then free again
            keep = any(children[task.node] for task in group)
            cache, rows = self._run(tree, group, requests, result, keep=keep)
            following = [
                _Task(child, (*task.ancestors, _Segment(cache, row, len(tree.nodes[task.node].tokens))))
                for task, row in zip(group, rows, strict=True)
                for child in children[task.node]
            ]
            if following:
                waiting.append(following)
        return result

    def _tree(self, contexts: Sequence[tuple[int, ...]], answer: tuple[int, ...]) -> PrefixTree:
        """What is to be computed. Where answers have an arithmetic of their own, their tokens are leaves of their own:
        another token than the same one in a prompt, so that a context's numbers depend on that context alone."""
        if not self._answers_apart:
            return build_tree([(*context, *answer[:-1]) for context in contexts])
        size = self.shape.vocabulary
        asked = [(*context[:-1], *(size + token for token in (context[-1], *answer[:-1]))) for context in contexts]
        return build_tree(asked, [len(context) - 1 for context in contexts])

    def _run(
        self,
        tree: PrefixTree,
        group: list[_Task],
        requests: list[list[_Request]],
        result: NDArray[np.float64],
        *,
        keep: bool,
    ) -> tuple[_Cache, list[int]]:
        """Compute a group of nodes, write what is asked of them into `result`; returns cache and first rows."""
        shape = self.shape
        sizes = [len(tree.nodes[task.node].tokens) for task in group]
        first_rows = np.concatenate(([0], np.cumsum(sizes)))[:-1].tolist()
        count = sum(sizes)
        rows = _up(count)
        tokens = np.fromiter(
            (token for task in group for token in tree.nodes[task.node].tokens), dtype=np.int64, count=count
        )
        tokens %= shape.vocabulary  # as they were before `_tree`
        positions = np.concatenate(
            [np.arange(size) + tree.nodes[task.node].start for task, size in zip(group, sizes, strict=True)]
        )
        kv_width, query_width = shape.kv_heads * shape.head_width, shape.heads * shape.head_width
        kept = shape.layers if keep else 1
        cache = _Cache(*(np.empty((kept, count, kv_width), dtype=np.float32) for _ in range(2)))
        plan = _AttentionPlan(group, first_rows, sizes, cache)
        asked = [
            (first + request.offset, request)
            for task, first in zip(group, first_rows, strict=True)
            for request in requests[task.node]
        ]

        x = np.zeros((rows, shape.width), dtype=np.float32)
        x[:count] = self._embed(tokens)
        mixed = np.zeros((rows, query_width), dtype=np.float32)
        layers = self._layers if keep else self._answer_layers
        buffers = _Buffers(layers[0], rows, shape.width, shape.hidden)
        for index, layer in enumerate(layers):
            at = index if keep else 0
            rms_norm(x, layer.attention_norm, self._epsilon, buffers.normed)
            layer.query_key_value(buffers.normed, buffers.projected)
            rotate(buffers.projected, 0, query_width + kv_width, positions, self._cosine, self._sine)
            cache.keys[at] = buffers.projected[:count, query_width : query_width + kv_width]
            cache.values[at] = buffers.projected[:count, query_width + kv_width : query_width + 2 * kv_width]
            last = index == shape.layers - 1
            if last and not asked:
                break
            self._attend(buffers.projected, plan, plan.addresses(index, at), mixed)
            if last:  # from here on only the rows asked for matter
                wanted = np.array([row for row, _ in asked], dtype=np.int64)
                x, mixed = _take(x, wanted), _take(mixed, wanted)
                buffers = _Buffers(layer, len(x), shape.width, shape.hidden)
            layer.attention_output(mixed, buffers.added)
            x += buffers.added[:, : shape.width]
            rms_norm(x, layer.ffn_norm, self._epsilon, buffers.normed)
            layer.gate_up(buffers.normed, buffers.widened)
            gate(buffers.widened, shape.hidden, buffers.gated)
            layer.down(buffers.gated, buffers.added)
            x += buffers.added[:, : shape.width]
        if asked:
            self._answer(x, [request for _, request in asked], result)
        return cache, first_rows

    def _attend(self, projected: Rows, plan: _AttentionPlan, addresses: _Addresses, mixed: Rows) -> None:
        shape, (keys, values) = self.shape, addresses
        sizes = (shape.heads, shape.kv_heads, shape.head_width)
        tree_attention(
            projected, *sizes, plan.rows, plan.sizes, plan.starts, keys, values, plan.lengths, plan.keys_max, mixed
        )

    def _embed(self, tokens: NDArray[np.int64]) -> Rows:
        """(tokens, width) embeddings, decoded from their codes."""
        coded = self._embedding
        blocks: Rows = coded.codes[tokens].reshape(len(tokens), coded.scale.shape[1], -1).astype(np.float32)
        with np.errstate(invalid="ignore"):  # damaged weights are caught once, in the scores
            decoded: Rows = blocks * coded.scale[tokens][..., None] + coded.minimum[tokens][..., None]
        return decoded.reshape(len(tokens), -1)

    def _answer(self, x: Rows, asked: list[_Request], result: NDArray[np.float64]) -> None:
        """Project the asked rows onto the vocabulary, a few at a time."""
        normed = np.empty_like(x)
        rms_norm(x, self._final_norm, self._epsilon, normed)
        logits = np.empty((min(LOGIT_ROWS, len(x)), self._output.outputs), dtype=np.float32)
        for start in range(0, len(x), LOGIT_ROWS):
            part = normed[start : start + LOGIT_ROWS]
            self._output(part, logits[: len(part)])
            batch = asked[start : start + LOGIT_ROWS]
            numbers = np.empty(len(batch), dtype=np.float64)
            log2_probabilities(
                logits, self.shape.vocabulary, np.array([request.target for request in batch], dtype=np.int64), numbers
            )
            result[[request.context for request in batch], [request.position for request in batch]] = numbers


class _Buffers:
    """Scratch for one group; padded rows stay finite and are never read."""

    def __init__(self, layer: _Layer, rows: int, width: int, hidden: int) -> None:
        self.normed, self.projected, self.added, self.widened, self.gated = (
            np.empty((rows, columns), dtype=np.float32)
            for columns in (
                width,
                layer.query_key_value.outputs,
                layer.attention_output.outputs,
                layer.gate_up.outputs,
                hidden,
            )
        )


class _AttentionPlan:
    """Which keys and values each node of a group sees, as the addresses the kernel reads."""

    def __init__(self, group: list[_Task], first_rows: list[int], sizes: list[int], own: _Cache) -> None:
        segments: list[_Segment] = []
        starts = [0]
        for task, row, size in zip(group, first_rows, sizes, strict=True):
            segments += (*task.ancestors, _Segment(own, row, size))
            starts.append(len(segments))
        self.rows, self.sizes, self.starts = (
            np.array(values, dtype=np.int64) for values in (first_rows, sizes, starts)
        )
        self.lengths = np.array([segment.size for segment in segments], dtype=np.int64)
        self.keys_max = max(int(self.lengths[start:stop].sum()) for start, stop in pairwise(starts))
        width = own.keys.shape[2]
        row_at = np.array([4 * width * segment.row for segment in segments], dtype=np.int64)
        self._key_at, self._value_at = (
            row_at + np.array([getattr(segment.cache, field).ctypes.data for segment in segments], dtype=np.int64)
            for field in ("keys", "values")
        )
        self._stride = np.array([4 * width * segment.cache.keys.shape[1] for segment in segments], dtype=np.int64)
        self._own = np.array([segment.cache is own for segment in segments])

    def addresses(self, layer: int, own_layer: int) -> _Addresses:
        """Where the keys and values of a layer start, which the group's own cache keeps as `own_layer`."""
        shift = np.where(self._own, own_layer, layer) * self._stride
        return self._key_at + shift, self._value_at + shift


def _pack(stored: LayerWeights, precision: Precision) -> _Layer:
    """A layer for an arithmetic."""
    query_key_value, attention_output, gate_up, down = (
        make_linear(matrix, precision)
        for matrix in (stored.query_key_value, stored.attention_output, stored.gate_up, stored.down)
    )
    return _Layer(stored.attention_norm, query_key_value, attention_output, stored.ffn_norm, gate_up, down)


def _groups(tree: PrefixTree, children: list[list[int]], tasks: list[_Task]) -> list[list[_Task]]:
    """Tasks in groups of at most `GROUP_ROWS` tokens (one long node may exceed it), leaves apart."""
    groups: list[list[_Task]] = []
    for inner in (False, True):
        size = GROUP_ROWS
        for task in tasks:
            if bool(children[task.node]) != inner:
                continue
            length = len(tree.nodes[task.node].tokens)
            if size + length > GROUP_ROWS:
                groups.append([])
                size = 0
            groups[-1].append(task)
            size += length
    return [group for group in groups if group]


def _requests(tree: PrefixTree, contexts: Sequence[tuple[int, ...]], answer: tuple[int, ...]) -> list[list[_Request]]:
    """For each node, what is asked of its tokens."""
    requests: list[list[_Request]] = [[] for _ in tree.nodes]
    for index, (context, end) in enumerate(zip(contexts, tree.ends, strict=True)):
        for node in tree.path(end):
            start = tree.nodes[node].start
            for offset in range(max(0, len(context) - 1 - start), len(tree.nodes[node].tokens)):
                position = start + offset - (len(context) - 1)
                requests[node].append(_Request(offset, answer[position], index, position))
    return requests


def _up(count: int) -> int:
    """Rows padded to whole steps."""
    return -(-count // ROW_STEP) * ROW_STEP


def _take(source: Rows, wanted: NDArray[np.int64]) -> Rows:
    """Some rows, with zero rows below up to a whole step."""
    taken = np.zeros((_up(len(wanted)), source.shape[1]), dtype=np.float32)
    taken[: len(wanted)] = source[wanted]
    return taken
