"""The same model, written the obvious way: one whole pass a prompt, full mask, numpy matrix products.

Slow and short. It is what the fast scorer is compared with, in tests and in the bench, and shares
nothing with it but the decoded weights. Never used for a paid figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from headwater.models.weights import LlamaWeights

Array = NDArray[Any]


class PlainModel:
    """Full passes in one float type; float64 is the ground truth."""

    def __init__(self, weights: LlamaWeights, dtype: DTypeLike = np.float64) -> None:
        """Decode all weights to float32 now; they are widened where used if `dtype` is wider."""
        self._shape, self._dtype = weights.shape, np.dtype(dtype)
        self._embedding, self._output = weights.embedding.dense(), weights.output.dense()
        self._final_norm = weights.final_norm
        self._layers = []
        for index in range(self._shape.layers):
            layer = weights.layer(index)
            matrices = (layer.query_key_value, layer.attention_output, layer.gate_up, layer.down)
            self._layers.append((layer.attention_norm, layer.ffn_norm, *(matrix.dense() for matrix in matrices)))

    def log2_probabilities(self, context: Sequence[int], answer: Sequence[int]) -> NDArray[np.float64]:
        """log2 p of each answer token after the context and the earlier ones: (answer tokens,)."""
        shape, tokens = self._shape, np.array([*context, *answer])
        count, half = len(tokens), shape.head_width // 2
        angle = np.arange(count)[:, None] * shape.rope_base ** (-np.arange(half) / half)
        turn = np.exp(1j * angle)[:, None].astype(np.result_type(self._dtype, np.complex64))
        mask = np.triu(np.full((count, count), -np.inf, dtype=self._dtype), 1)
        query_width, kv_width = shape.heads * shape.head_width, shape.kv_heads * shape.head_width

        def turned(x: Array) -> Array:
            pairs = x.reshape(count, -1, half, 2)
            spun = (pairs[..., 0] + 1j * pairs[..., 1]) * turn
            return np.stack([spun.real, spun.imag], axis=-1).reshape(count, -1, 2 * half)

        x = self._embedding[tokens].astype(self._dtype)
        for attention_norm, ffn_norm, query_key_value, attention_output, gate_up, down in self._layers:
            projected = self._product(self._norm(x, attention_norm), query_key_value)
            queries, keys = (
                turned(projected[:, :query_width]),
                turned(projected[:, query_width : query_width + kv_width]),
            )
            values = projected[:, query_width + kv_width :].reshape(count, shape.kv_heads, -1)
            heads = []
            for head in range(shape.heads):
                kv = head * shape.kv_heads // shape.heads
                scores = queries[:, head] @ keys[:, kv].T / np.asarray(np.sqrt(shape.head_width), self._dtype) + mask
                weight = np.exp(scores - scores.max(axis=1, keepdims=True))
                heads.append(weight / weight.sum(axis=1, keepdims=True) @ values[:, kv])
            x = x + self._product(np.concatenate(heads, axis=1), attention_output)
            gate, up = np.split(self._product(self._norm(x, ffn_norm), gate_up), 2, axis=1)
            x = x + self._product(gate / (1 + np.exp(-gate)) * up, down)
        asked = x[len(context) - 1 : count - 1]
        logits = self._product(self._norm(asked, self._final_norm), self._output).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        result: NDArray[np.float64] = logits[np.arange(len(answer)), list(answer)] / np.log(2)
        return result

    def _norm(self, x: Array, gain: Array) -> Array:
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        normed: Array = (
            x / np.sqrt(mean_square + np.asarray(self._shape.norm_epsilon, self._dtype)) * gain.astype(self._dtype)
        )
        return normed

    def _product(self, x: Array, matrix: Array) -> Array:
        product: Array = x @ matrix.astype(self._dtype, copy=False).T
        return product
