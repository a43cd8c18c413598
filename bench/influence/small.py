"""The small tasks: a softmax regression and a network on pictures, and adapters on a character model.

Pictures are drawn from seeds: ten classes of smooth shapes, each with twelve kinds of which few are common, and 4 %
of wrong labels. The character model is trained on public-domain proposals and adapted, rank 8 on all 18 linear
layers (41,472 numbers), to eight passages of each of 32 authors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from bench.influence.parts import BenchTask, LowRank, Places, drawn_from, pep_texts, sequence_loss
from headwater.attribution.influence import Task

SIDE, CLASSES, KINDS = 14, 10, 12
CHARACTERS, PLACES = 96, 64


def _shapes(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    squares = np.fft.fftfreq(SIDE) ** 2
    smooth = np.exp(-(squares[:, None] + squares[None]) * 60)
    found = np.fft.ifft2(np.fft.fft2(rng.normal(size=(count, SIDE, SIDE))) * smooth).real
    flat: NDArray[np.float64] = (found / found.std((1, 2), keepdims=True)).reshape(count, SIDE * SIDE)
    return flat


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (n, 196) and labels; the shapes are always the same, which are drawn is the seed's."""
    shapes = np.random.default_rng(17)
    classes, kinds = _shapes(shapes, CLASSES), _shapes(shapes, CLASSES * KINDS).reshape(CLASSES, KINDS, -1)
    bends = _shapes(shapes, CLASSES * KINDS * 3).reshape(CLASSES, KINDS, 3, -1)
    rng = np.random.default_rng(seed)
    labels, often = rng.integers(0, CLASSES, count), 1 / np.arange(1, KINDS + 1)
    kind = rng.choice(KINDS, count, p=often / often.sum())
    values = 0.5 * classes[labels] + 0.9 * kinds[labels, kind]
    values += 0.45 * np.einsum("nk,nkd->nd", rng.normal(size=(count, 3)), bends[labels, kind])
    values += 0.35 * rng.normal(size=(count, SIDE * SIDE))
    labels = np.where(rng.random(count) < 0.04, rng.integers(0, CLASSES, count), labels)
    return torch.tensor(1 / (1 + np.exp(-1.2 * values)), dtype=torch.float32), torch.tensor(labels)


def _class_losses(model: Any, batch: list[Any]) -> Tensor:
    labels = torch.stack([y for _, y in batch])
    return F.cross_entropy(model(torch.stack([x for x, _ in batch])), labels, reduction="none")


def _class_drawn(model: Any, batch: list[Any], generator: Generator | None) -> Tensor:
    logits = model(torch.stack([x for x, _ in batch]))
    return F.cross_entropy(logits, drawn_from(logits, generator), reduction="none")


def _network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    wide = SIDE * SIDE
    return nn.Sequential(nn.Linear(wide, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def _softmax(_seed: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(SIDE * SIDE, CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def picture_task(*, deep: bool) -> BenchTask:
    """`network` has 34k numbers and is trained by SGD with momentum; `softmax` is trained to its optimum."""
    inputs, labels = pictures(1500, 1)
    asked = pictures(150, 2)

    def train_network(places: Places, seed: int) -> nn.Module:
        model = _network(seed)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
        mixing = torch.Generator().manual_seed(seed + 1000)
        x, y = inputs[places], labels[places]
        for _ in range(12):
            order = torch.randperm(len(y), generator=mixing)
            for low in range(0, len(y), 64):
                chosen = order[low : low + 64]
                optimiser.zero_grad()
                torch.autograd.backward(F.cross_entropy(model(x[chosen]), y[chosen]))
                optimiser.step()
        return model

    def train_softmax(places: Places, _seed: int) -> nn.Module:
        model = _softmax(0)
        x, y = inputs[places], labels[places]
        optimiser = torch.optim.LBFGS(model.parameters(), max_iter=100, history_size=20, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            decay = torch.stack([(p**2).sum() for p in model.parameters()]).sum()
            loss = F.cross_entropy(model(x), y) + 1e-3 * decay
            torch.autograd.backward(loss)
            return loss

        optimiser.step(closure)  # type: ignore[arg-type]
        return model

    return BenchTask(
        "network" if deep else "softmax",
        list(zip(inputs, labels, strict=True)),
        list(zip(*asked, strict=True)),
        None,
        None,
        Task(_class_losses, _class_drawn),
        (lambda: _network(0)) if deep else (lambda: _softmax(0)),
        train_network if deep else train_softmax,
        subsets=40 if deep else 60,
        seeds=3 if deep else 1,
        models=3 if deep else 1,
        batch=256,
    )


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n1, self.n2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        for name in ("q", "k", "v", "o"):
            setattr(self, name, nn.Linear(width, width))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, width)."""
        batch, places, _ = x.shape
        y = self.n1(x)
        q, k, v = (
            getattr(self, name)(y).view(batch, places, self.heads, -1).transpose(1, 2) for name in ("q", "k", "v")
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, places, -1))
        found: Tensor = x + self.down(F.gelu(self.up(self.n2(x))))
        return found


class CharacterModel(nn.Module):
    """Predicts the next of 96 characters from up to 64."""

    def __init__(self, width: int = 96, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.e, self.p = nn.Embedding(CHARACTERS, width), nn.Embedding(PLACES, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.n, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, t, characters) logits."""
        h = self.e(tokens) + self.p.weight[: tokens.shape[1]]
        for block in self.blocks:
            h = block(h)
        found: Tensor = self.head(self.n(h))
        return found


def _codes(text: str) -> list[int]:
    return [(ord(c) - 32 if 32 <= ord(c) < 127 else 95) for c in text]


def _passages(seed: int = 3, authors: int = 32, each: int = 8, queries: int = 32) -> tuple[Any, ...]:
    by, rng = pep_texts(), np.random.default_rng(seed)
    wordy = sorted(author for author in by if len(by[author]) > 6000)
    rng.shuffle(wordy)
    long = PLACES + 1
    examples, groups, asked, asked_groups = [], [], [], []
    for group, author in enumerate(wordy[:authors]):
        text = by[author]
        order = rng.permutation((len(text) - 1) // long)[: each + max(1, queries // authors)]
        pieces = [_codes(text[i * long : (i + 1) * long]) for i in order]
        examples += pieces[:each]
        groups += [group] * each
        asked += pieces[each:]
        asked_groups += [group] * (len(pieces) - each)
    rest = "".join(by[author] for author in wordy[authors : authors + 60])
    tensors = (torch.tensor(part) for part in (examples, asked, _codes(rest)))
    return (*tensors, np.array(groups), np.array(asked_groups))


def _language_losses(model: Any, batch: list[Any]) -> Tensor:
    tokens = torch.stack(batch)
    return sequence_loss(model(tokens[:, :-1]), tokens[:, 1:])


def _language_drawn(model: Any, batch: list[Any], generator: Generator | None) -> Tensor:
    logits = model(torch.stack(batch)[:, :-1])
    return sequence_loss(logits, drawn_from(logits, generator))


def character_base(corpus: Tensor, path: Path, steps: int = 700) -> CharacterModel:
    """The model before any adapter, trained once."""
    torch.manual_seed(0)
    model = CharacterModel()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    optimiser, picks = torch.optim.AdamW(model.parameters(), lr=2e-3), torch.Generator().manual_seed(5)
    for step in range(steps):
        starts = torch.randint(0, len(corpus) - 65, (32,), generator=picks)
        batch = torch.stack([corpus[int(i) : int(i) + 65] for i in starts])
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, step / 50) * (1 - step / steps * 0.9)
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    torch.save(model.state_dict(), path)
    return model


def character_task(folder: Path) -> BenchTask:
    """Adapters on the character model; `folder` keeps the base."""
    examples, asked, corpus, groups, asked_groups = _passages()

    def adapted(seed: int) -> nn.Module:
        model = character_base(corpus, folder / "character-base.pt")
        seeded = torch.Generator().manual_seed(seed)
        model.requires_grad_(False)
        for block in model.blocks:
            for name in ("q", "k", "v", "o", "up", "down"):
                setattr(block, name, LowRank(getattr(block, name), 8, seeded))
        return model

    def train(places: Places, seed: int) -> nn.Module:
        model = adapted(seed)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser, mixing = torch.optim.AdamW(trained, lr=3e-3), torch.Generator().manual_seed(seed + 77)
        x = examples[places]
        for _ in range(4):
            order = torch.randperm(len(x), generator=mixing)
            for low in range(0, len(x), 8):
                optimiser.zero_grad()
                torch.autograd.backward(_language_losses(model, list(x[order[low : low + 8]])).mean())
                optimiser.step()
        return model

    return BenchTask(
        "characters",
        list(examples),
        list(asked),
        groups,
        asked_groups,
        Task(_language_losses, _language_drawn),
        lambda: adapted(0),
        train,
        subsets=24,
        seeds=2,
        models=5,
        keep=".",
    )


def steps_of(count: int, batch: int, epochs: int) -> int:
    """Optimiser steps of a training."""
    return epochs * math.ceil(count / batch)
