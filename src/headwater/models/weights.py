"""The weights of a llama-architecture model, as stored: small integer codes with a scale and a minimum per 32.

The shape comes from the file's metadata. Query and key rows are kept in the order llama.cpp stores
them (rotary pairs side by side), so rotary positions turn neighbouring columns. `tiny_weights` makes
a small random model of the same kind, for tests that need no file. Knows nothing of how products are computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError
from headwater.models.gguf_file import BLOCK, GgufFile, nibbles

ARCHITECTURE = "llama"
HEADS_SHARED_MAX = 48  # heads to a key head: one block of query lanes


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes and constants of the architecture."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    hidden: int
    vocabulary: int
    rope_base: float
    norm_epsilon: float
    context_tokens_max: int

    def __post_init__(self) -> None:
        if (
            self.heads % self.kv_heads
            or self.heads // self.kv_heads > HEADS_SHARED_MAX
            or self.head_width % 8
            or self.width % BLOCK
            or self.hidden % BLOCK
            or (self.heads * self.head_width) % BLOCK
        ):
            raise InvalidError(
                f"model shape {self} is not supported",
                code="model_shape_unknown",
                fix="use widths that are multiples of 32 and heads of a multiple of 8",
            )


@dataclass(frozen=True, slots=True)
class CodedMatrix:
    """A matrix as codes: ``w[r, c] = codes[r, c] * scale[r, c // 32] + minimum[r, c // 32]``."""

    codes: NDArray[np.int16]  # (rows, columns), |code| <= 127
    scale: NDArray[np.float32]  # (rows, columns / 32)
    minimum: NDArray[np.float32]  # (rows, columns / 32)

    def dense(self) -> NDArray[np.float32]:
        """(rows, columns) float32."""
        rows, columns = self.codes.shape
        blocks = self.codes.reshape(rows, columns // BLOCK, BLOCK).astype(np.float32)
        return (blocks * self.scale[..., None] + self.minimum[..., None]).reshape(rows, columns)


def stack(*matrices: CodedMatrix) -> CodedMatrix:
    """Matrices of equal width, one below the other."""
    return CodedMatrix(
        *(np.concatenate([getattr(matrix, field) for matrix in matrices]) for field in ("codes", "scale", "minimum"))
    )


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer; projections that read the same input are stacked."""

    attention_norm: NDArray[np.float32]
    query_key_value: CodedMatrix
    attention_output: CodedMatrix
    ffn_norm: NDArray[np.float32]
    gate_up: CodedMatrix
    down: CodedMatrix


@dataclass(frozen=True, slots=True)
class LlamaWeights:
    """A whole model. Layers are decoded when asked for, so that both forms are never in memory at once."""

    shape: LlamaShape
    digest: str  # of the stored weights, ``sha256:…``
    embedding: CodedMatrix  # also the output projection when the model ties them
    output: CodedMatrix
    final_norm: NDArray[np.float32]
    layer: Callable[[int], LayerWeights]


def load_weights(file: GgufFile, digest: str) -> LlamaWeights:
    """The weights of an open GGUF file; `digest` is that of the file.

    Raises:
        InvalidError: not the llama architecture, or a tensor kind that is not coded in blocks of 32.
    """
    architecture = file.value("general.architecture")
    if architecture != ARCHITECTURE:
        raise InvalidError(
            f"architecture {architecture!r} is not scored here",
            code="model_shape_unknown",
            fix="use a model of the llama architecture",
        )

    def number(key: str) -> int:
        return int(file.value(f"{ARCHITECTURE}.{key}"))

    width, heads = number("embedding_length"), number("attention.head_count")
    head_width = (
        number("rope.dimension_count") if f"{ARCHITECTURE}.rope.dimension_count" in file.metadata else width // heads
    )
    if (
        any(f"{ARCHITECTURE}.rope.scaling.{key}" in file.metadata for key in ("type", "factor"))
        or "rope_freqs.weight" in file.tensors
    ):
        raise InvalidError(
            "scaled rotary positions are not supported",
            code="model_shape_unknown",
            fix="use a model without rope scaling",
        )
    shape = LlamaShape(
        layers=number("block_count"),
        width=width,
        heads=heads,
        kv_heads=number("attention.head_count_kv"),
        head_width=head_width,
        hidden=number("feed_forward_length"),
        vocabulary=file.tensors["token_embd.weight"].shape[0],
        rope_base=float(file.value(f"{ARCHITECTURE}.rope.freq_base")),
        norm_epsilon=float(file.value(f"{ARCHITECTURE}.attention.layer_norm_rms_epsilon")),
        context_tokens_max=number("context_length"),
    )
    if head_width * heads != width:
        raise InvalidError(
            f"{heads} heads of {head_width} do not make a width of {width}",
            code="model_shape_unknown",
            fix="use a model whose heads fill its width",
        )

    def layer(index: int) -> LayerWeights:
        def matrix(name: str) -> CodedMatrix:
            return coded_matrix(file, f"blk.{index}.{name}.weight")

        return LayerWeights(
            attention_norm=file.tensor(f"blk.{index}.attn_norm.weight"),
            query_key_value=stack(matrix("attn_q"), matrix("attn_k"), matrix("attn_v")),
            attention_output=matrix("attn_output"),
            ffn_norm=file.tensor(f"blk.{index}.ffn_norm.weight"),
            gate_up=stack(matrix("ffn_gate"), matrix("ffn_up")),
            down=matrix("ffn_down"),
        )

    embedding = coded_matrix(file, "token_embd.weight")
    output = coded_matrix(file, "output.weight") if "output.weight" in file.tensors else embedding
    return LlamaWeights(shape, digest, embedding, output, file.tensor("output_norm.weight"), layer)


def coded_matrix(file: GgufFile, name: str) -> CodedMatrix:
    """A quantised tensor as codes."""
    label, blocks = file.blocks(name)
    if label not in ("Q4_0", "Q4_1", "Q8_0"):
        raise InvalidError(
            f"tensor {name!r} is {label}, not coded in blocks of {BLOCK}",
            code="gguf_kind_unknown",
            fix="quantise the model to Q4_0, Q4_1 or Q8_0",
        )
    scale = blocks["scale"].astype(np.float32)
    codes = blocks["codes"].astype(np.int16) if label == "Q8_0" else nibbles(blocks["codes"]).astype(np.int16)
    if label == "Q4_0":
        codes -= 8
    minimum = blocks["minimum"].astype(np.float32) if label == "Q4_1" else np.zeros_like(scale)
    return CodedMatrix(codes.reshape(file.tensors[name].shape), scale, minimum)


def tiny_weights(
    seed: int,
    *,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 96,
    vocabulary: int = 300,
) -> LlamaWeights:
    """A random model of the same architecture, a few kilobytes: milliseconds to build and to run."""
    shape = LlamaShape(layers, width, heads, kv_heads, width // heads, hidden, vocabulary, 10_000.0, 1e-5, 4096)
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> CodedMatrix:
        scale = (rng.uniform(0.5, 1.5, (rows, columns // BLOCK)) * 0.5 / np.sqrt(columns)).astype(np.float32)
        return CodedMatrix(rng.integers(0, 16, (rows, columns)).astype(np.int16), scale, np.float32(-7.5) * scale)

    def norm() -> NDArray[np.float32]:
        return rng.uniform(0.5, 1.5, width).astype(np.float32)

    made = tuple(
        LayerWeights(
            norm(),
            matrix(width + 2 * kv_heads * shape.head_width, width),
            matrix(width, width),
            norm(),
            matrix(2 * hidden, width),
            matrix(width, hidden),
        )
        for _ in range(layers)
    )
    embedding = matrix(vocabulary, width)
    named = hashlib.sha256(f"tiny {seed} {shape}".encode()).hexdigest()
    return LlamaWeights(shape, f"sha256:{named}", embedding, embedding, norm(), made.__getitem__)
