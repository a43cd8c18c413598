"""The trainable model in torch: the last layers of a llama with low-rank factors; the lower ones run once.

A row of a batch holds one or two stretches side by side (a text, or the two answers of a preference
pair); each sees itself only, so one example is one row for whatever collects gradients per example.
Query and key rows stay in the order of the stored weights; `lora` gives the published order back.

Torch is imported here and nowhere outside this package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from headwater.core.errors import InvalidError
from headwater.models.factory.recipe import Frozen, Recipe
from headwater.models.lora import Lora, heads_of, projection_shape, published_rows, stored_rows
from headwater.models.weights import CodedMatrix, LayerWeights, LlamaShape, LlamaWeights

HEAD_ROWS = 256
"""Rows projected onto the vocabulary at once: (256, 49152) float32 is 50 MB."""

DECODED_ROWS = 2_048


@dataclass(frozen=True)
class Batch:
    """Rows as tensors. Padding has segment -1 and is seen by nobody."""

    hidden: Tensor  # (rows, places, width) what enters the first trained layer
    positions: Tensor  # (rows, places) int64, from 0 in each stretch
    segments: Tensor  # (rows, places) int64, -1 for padding
    target_rows: Tensor  # (targets,) int64: the row whose
    target_places: Tensor  # (targets,) int64: place must foretell
    targets: Tensor  # (targets,) int64: this token
    target_segments: Tensor  # (targets,) int64: in this stretch


class LowRank(nn.Module):
    """One projection's factors: ``x -> scale * B(A(x))``, both plain linear layers."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.a = nn.Linear(inputs, rank, bias=False)
        self.b = nn.Linear(rank, outputs, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """What the adapter adds to this projection."""
        out: Tensor = self.b(self.a(x)) * self.scale
        return out


class Layer(nn.Module):
    """One transformer layer with frozen weights and, where the recipe says so, low-rank factors."""

    def __init__(self, stored: LayerWeights, shape: LlamaShape, frozen: Frozen, loras: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.shape = shape
        self.kind = torch.bfloat16 if frozen == "bfloat16" else torch.float32
        self.attention_norm = torch.from_numpy(np.array(stored.attention_norm))
        self.ffn_norm = torch.from_numpy(np.array(stored.ffn_norm))
        self.query_key_value, self.attention_output, self.gate_up, self.down = (
            _dense(matrix, self.kind)
            for matrix in (stored.query_key_value, stored.attention_output, stored.gate_up, stored.down)
        )
        self.loras = nn.ModuleDict({name.replace(".", "_"): lora for name, lora in loras.items()})

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None) -> Tensor:
        """(rows, places, width) to the same; `mask` says who sees whom, None for one causal stretch."""
        shape = self.shape
        rows, places, width = x.shape
        kv_width = shape.kv_heads * shape.head_width
        normed = _norm(x, self.attention_norm, shape.norm_epsilon)
        projected = self._product(normed, self.query_key_value)
        query, key, value = projected.split_with_sizes((width, kv_width, kv_width), dim=-1)
        query = self._added("self_attn_q_proj", normed, query)
        key = self._added("self_attn_k_proj", normed, key)
        value = self._added("self_attn_v_proj", normed, value)
        heads = [part.reshape(rows, places, -1, shape.head_width) for part in (query, key, value)]
        q, k = (_turned(part, cosine, sine).transpose(1, 2) for part in heads[:2])
        v = heads[2].transpose(1, 2)
        shared = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        mixed = mixed.transpose(1, 2).reshape(rows, places, width)
        x = x + self._added("self_attn_o_proj", mixed, self._product(mixed, self.attention_output))
        normed = _norm(x, self.ffn_norm, shape.norm_epsilon)
        gate, up = self._product(normed, self.gate_up).chunk(2, dim=-1)
        gate, up = self._added("mlp_gate_proj", normed, gate), self._added("mlp_up_proj", normed, up)
        widened = functional.silu(gate) * up
        return x + self._added("mlp_down_proj", widened, self._product(widened, self.down))

    def _product(self, x: Tensor, matrix: Tensor) -> Tensor:
        return functional.linear(x.to(self.kind), matrix).float()

    def _added(self, name: str, x: Tensor, plain: Tensor) -> Tensor:
        return plain + self.loras[name](x) if name in self.loras else plain


class TopLayers(nn.Module):
    """The trained part: the last `recipe.layers` layers and the frozen head. Only the factors are parameters."""

    def __init__(self, weights: LlamaWeights, recipe: Recipe) -> None:
        """Factors are drawn from the recipe's seed: A as He and others 2015 for its inputs, B zero.

        Raises:
            InvalidError: the recipe trains more layers than the model has.
        """
        super().__init__()
        shape = weights.shape
        if recipe.layers > shape.layers:
            raise InvalidError(
                f"{recipe.layers} layers to train, the model has {shape.layers}",
                code="recipe_invalid",
                fix=f"train at most {shape.layers}",
            )
        self.shape, self.recipe = shape, recipe
        self.first = shape.layers - recipe.layers
        generator = torch.Generator().manual_seed(recipe.seed)
        layers = []
        for index in range(self.first, shape.layers):
            loras = {}
            for projection in recipe.projections:
                outputs, inputs = projection_shape(shape, projection)
                lora = LowRank(inputs, outputs, recipe.rank, recipe.alpha / recipe.rank)
                bound = (1.0 / inputs) ** 0.5
                nn.init.uniform_(lora.a.weight, -bound, bound, generator=generator)
                nn.init.zeros_(lora.b.weight)
                loras[projection] = lora
            layers.append(Layer(weights.layer(index), shape, recipe.frozen, loras))
        self.layers = nn.ModuleList(layers)
        self.final_norm = torch.from_numpy(np.array(weights.final_norm))
        self.head = _dense(weights.output, layers[0].kind)
        self.twice_differentiable = False  # whether `log_probabilities` must bear second derivatives

    def forward(self, batch: Batch) -> Tensor:
        """ln p of each target of the batch: (targets,)."""
        return self.log_probabilities(self.states(batch), batch.targets)

    def states(self, batch: Batch) -> Tensor:
        """(targets, width) normed states before the head."""
        cosine, sine = rotary(batch.positions, self.shape)
        mask = visible(batch.segments)
        x = batch.hidden
        for layer in self.layers:
            x = layer(x, cosine, sine, mask)
        return _norm(x[batch.target_rows, batch.target_places], self.final_norm, self.shape.norm_epsilon)

    def log_probabilities(self, states: Tensor, targets: Tensor) -> Tensor:
        """ln p of each target after its state: (targets,)."""
        if self.twice_differentiable:
            logits = functional.linear(states.to(self.head.dtype), self.head).float()
            return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        found: Tensor = _Head.apply(states, targets, self.head)  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def draw(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """A token drawn from the model's own distribution after each state: (targets,) int64."""
        drawn = []
        for start in range(0, len(states), HEAD_ROWS):
            part = states[start : start + HEAD_ROWS]
            logits = functional.linear(part.to(self.head.dtype), self.head).float()
            drawn.append(torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0])
        return torch.cat(drawn)

    def factors(self) -> Iterable[tuple[str, LowRank]]:
        """(published module name, factors) in the order of layers and of the recipe."""
        for number, layer in enumerate(self.layers):
            for projection in self.recipe.projections:
                factors = layer.loras[projection.replace(".", "_")]  # type: ignore[index]
                assert isinstance(factors, LowRank)
                yield f"model.layers.{self.first + number}.{projection}", factors

    def lora(self, name: str, base_digest: str) -> Lora:
        """The adapter as a value, rows in the published order."""
        tensors = {}
        for module, factors in self.factors():
            a, b = (part.weight.detach().numpy().copy() for part in (factors.a, factors.b))
            heads = heads_of(self.shape, module.split(".", 3)[3])
            tensors[module] = (a, b if heads is None else published_rows(b, heads))
        recipe = self.recipe
        return Lora(name, base_digest, recipe.rank, recipe.alpha, tensors, recipe.alpha / recipe.rank)

    @torch.no_grad()
    def load(self, lora: Lora) -> None:
        """Take over an adapter's factors.

        Raises:
            InvalidError: it adapts other projections, or with another rank or scale.
        """
        mine = dict(self.factors())
        if set(mine) != set(lora.tensors) or (lora.rank, lora.scale) != (
            self.recipe.rank,
            self.recipe.alpha / self.recipe.rank,
        ):
            raise InvalidError(
                f"adapter {lora.name!r} has other layers, projections, rank or scale than the recipe",
                code="adapter_recipe_mismatch",
                fix="train on with the recipe of its lineage record",
            )
        for module, factors in mine.items():
            heads = heads_of(self.shape, module.split(".", 3)[3])
            a, b = lora.tensors[module]
            factors.a.weight.copy_(torch.from_numpy(np.array(a)))
            factors.b.weight.copy_(torch.from_numpy(np.array(b if heads is None else stored_rows(b, heads))))


class _Head(torch.autograd.Function):
    """ln softmax(W s)[target], with its gradient found on the way, so that no row of logits is kept."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: Tensor) -> Tensor:
        found = torch.empty(len(targets))
        wanted = states.requires_grad or ctx.needs_input_grad[0]
        slopes = torch.empty_like(states) if wanted else None
        for start in range(0, len(targets), HEAD_ROWS):
            part = slice(start, start + HEAD_ROWS)
            logits = functional.linear(states[part].to(head.dtype), head).float()
            top = logits.max(dim=-1, keepdim=True).values
            picked = logits.gather(1, targets[part][:, None])[:, 0]
            weights = logits.sub_(top).exp_()
            total = weights.sum(dim=-1)
            found[part] = picked - top[:, 0] - total.log()
            if slopes is not None:
                mean = (weights.div_(total[:, None]).to(head.dtype) @ head).float()
                slopes[part] = head[targets[part]].float() - mean
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradient[:, None] * slopes, None, None


@torch.no_grad()
def lower_states(
    weights: LlamaWeights, first: int, tokens: Sequence[NDArray[np.int64]], states: NDArray[np.float32], frozen: Frozen
) -> Iterable[int]:
    """Fill `states` with what enters layer `first` after each stretch of tokens; yields layers done.

    Args:
        weights: the base model; one decoded layer is in memory at a time.
        first: layers below it run.
        tokens: stretches; their places lie one after the other in `states`.
        states: (places of all stretches, width), written in place.
    """
    shape = weights.shape
    at = np.concatenate(([0], np.cumsum([len(stretch) for stretch in tokens])))
    for number, stretch in enumerate(tokens):
        coded = weights.embedding
        blocks = coded.codes[stretch].reshape(len(stretch), coded.scale.shape[1], -1).astype(np.float32)
        decoded = blocks * coded.scale[stretch][..., None] + coded.minimum[stretch][..., None]
        states[at[number] : at[number + 1]] = decoded.reshape(len(stretch), -1)
    for index in range(first):
        layer = Layer(weights.layer(index), shape, frozen, {})
        for number, stretch in enumerate(tokens):
            cosine, sine = rotary(torch.arange(len(stretch))[None], shape)
            part = slice(at[number], at[number + 1])
            x = torch.from_numpy(np.array(states[part]))[None]
            states[part] = layer(x, cosine, sine, None)[0].numpy()
        yield index + 1


def rotary(positions: Tensor, shape: LlamaShape) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every place: (rows, places, 1, half a head) each."""
    half = shape.head_width // 2
    slow = torch.tensor(shape.rope_base, dtype=torch.float64) ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = positions.double()[..., None, None] * slow
    return angle.cos().float(), angle.sin().float()


def visible(segments: Tensor) -> Tensor | None:
    """Who sees whom: (rows, 1, places, places) booleans, None when every row is one whole stretch."""
    if bool((segments == 0).all()):
        return None
    same = segments[:, :, None] == segments[:, None, :]
    return (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]


def _dense(matrix: CodedMatrix, kind: torch.dtype) -> Tensor:
    """A coded matrix decoded a few rows at a time: whole copies in between would set the peak of memory."""
    rows, columns = matrix.codes.shape
    out = torch.empty(rows, columns, dtype=kind)
    for start in range(0, rows, DECODED_ROWS):
        part = slice(start, start + DECODED_ROWS)
        piece = CodedMatrix(matrix.codes[part], matrix.scale[part], matrix.minimum[part])
        out[part] = torch.from_numpy(piece.dense())
    return out


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions on neighbouring pairs, as the stored rows have them."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1).flatten(-2)


def _norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + epsilon) * gain
