"""Small tasks with everything needed to retrain them in seconds: data, a task and a training recipe.

They are made from seeds alone, nothing is downloaded: a softmax regression and a small network on pictures made of
smooth shapes (some classes have rare kinds, some labels are wrong), and low-rank adapters on a tiny sequence model.
Contributors hold related examples, as people do. Knows nothing of estimators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from headwater.attribution.influence.task import Task

SIDE, CLASSES, KINDS = 14, 10, 8


@dataclass(frozen=True, slots=True, eq=False)
class SmallTask:
    """One task, ready to be evaluated."""

    name: str
    examples: list[Any]
    queries: list[Any]
    contributors: tuple[str, ...]
    task: Task
    train: Callable[[NDArray[np.int64], int], nn.Module]
    mislabelled: NDArray[np.bool_] | None


def collate(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a batch of classified items."""
    return torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch])


def class_losses(model: Any, batch: list[Any]) -> Tensor:
    """(b,) cross-entropy."""
    inputs, labels = collate(batch)
    return F.cross_entropy(model(inputs), labels, reduction="none")


def class_sampled_losses(model: Any, batch: list[Any], generator: Generator) -> Tensor:
    """(b,) cross-entropy of labels drawn from the model."""
    logits = model(collate(batch)[0])
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    return F.cross_entropy(logits, drawn, reduction="none")


def sequence_losses(model: Any, batch: list[Any]) -> Tensor:
    """(b,) mean cross-entropy of the next token."""
    tokens = torch.stack(batch)
    return F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


def sequence_sampled_losses(model: Any, batch: list[Any], generator: Generator) -> Tensor:
    """(b,) the same with tokens drawn from the model."""
    logits = model(torch.stack(batch)[:, :-1])
    probabilities = logits.detach().softmax(-1)
    drawn = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view(logits.shape[:2])
    return F.cross_entropy(logits.transpose(1, 2), drawn, reduction="none").mean(1)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()


def pictures(seed: int, *, deep: bool, count: int = 480, queries: int = 60, wrong: float = 0.05) -> SmallTask:
    """Classified pictures; `deep` is a network with a hidden layer, else softmax regression."""
    rng = np.random.default_rng(seed)
    smooth = np.exp(-(np.fft.fftfreq(SIDE)[:, None] ** 2 + np.fft.fftfreq(SIDE)[None] ** 2) * 60)

    def shapes(number: int) -> NDArray[np.float64]:
        found = np.fft.ifft2(np.fft.fft2(rng.normal(size=(number, SIDE, SIDE))) * smooth).real
        flat: NDArray[np.float64] = (found / found.std((1, 2), keepdims=True)).reshape(number, SIDE * SIDE)
        return flat

    classes, kinds = shapes(CLASSES), shapes(CLASSES * KINDS).reshape(CLASSES, KINDS, -1)
    often = 1 / np.arange(1, KINDS + 1)
    total = count + queries
    labels, kind = rng.integers(0, CLASSES, total), rng.choice(KINDS, total, p=often / often.sum())
    values = 0.5 * classes[labels] + 0.9 * kinds[labels, kind] + 0.5 * rng.normal(size=(total, SIDE * SIDE))
    inputs = torch.tensor(1 / (1 + np.exp(-1.2 * values)), dtype=torch.float32)
    flipped = (rng.random(total) < wrong) & (np.arange(total) < count)
    labels = np.where(flipped, (labels + rng.integers(1, CLASSES, total)) % CLASSES, labels)
    items = list(zip(inputs, labels.tolist(), strict=True))
    order = np.lexsort((kind[:count], labels[:count]))
    owners = np.empty(count, dtype=np.int64)
    owners[order] = np.arange(count) * 24 // count

    def train(places: NDArray[np.int64], run: int) -> nn.Module:
        torch.manual_seed(run)
        wide = SIDE * SIDE
        model = (
            nn.Sequential(nn.Linear(wide, 48), nn.ReLU(), nn.Linear(48, CLASSES))
            if deep
            else nn.Sequential(nn.Linear(wide, CLASSES))
        )
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        x, y = collate([items[int(i)] for i in places])
        for _ in range(12 if deep else 30):
            mixed = torch.randperm(len(y))
            for low in range(0, len(y), 32):
                chosen = mixed[low : low + 32]
                _step(optimiser, F.cross_entropy(model(x[chosen]), y[chosen]))
        return model

    return SmallTask(
        "pictures-network" if deep else "pictures-softmax",
        items[:count],
        items[count:],
        tuple(f"contributor-{o:02d}" for o in owners),
        Task(class_losses, class_sampled_losses),
        train,
        flipped[:count],
    )


class LowRank(nn.Module):
    """A frozen linear layer plus a trained product of two thin ones."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.a.weight, std=base.in_features**-0.5)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The layer, adapted."""
        found: Tensor = self.base(x) + 2.0 * self.b(self.a(x))
        return found


class SequenceModel(nn.Module):
    """Predicts the next token from the mean of what came before and the token at hand."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.first, self.second = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, t, vocabulary) logits."""
        x = self.embedding(tokens)
        past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[None, :, None]
        hidden = torch.tanh(self.first(torch.cat((x, past), dim=2)))
        found: Tensor = self.head(torch.tanh(self.second(hidden)))
        return found


def sequences(seed: int, *, contributors: int = 16, each: int = 8, queries: int = 32, length: int = 24) -> SmallTask:
    """Low-rank adapters on a pre-trained sequence model; each contributor writes by habits of its own."""
    rng = np.random.default_rng(seed)
    vocabulary, width = 32, 24
    common = rng.dirichlet(np.full(vocabulary, 0.15), vocabulary)

    def text(table: NDArray[np.float64], size: int) -> list[Tensor]:
        rows = np.zeros((size, length + 1), dtype=np.int64)
        rows[:, 0] = rng.integers(0, vocabulary, size)
        edges = table.cumsum(1)
        for t in range(length):
            rows[:, t + 1] = np.minimum((rng.random((size, 1)) > edges[rows[:, t]]).sum(1), vocabulary - 1)
        return list(torch.tensor(rows))

    habits = [0.5 * common + 0.5 * rng.dirichlet(np.full(vocabulary, 0.15), vocabulary) for _ in range(contributors)]
    examples = [item for habit in habits for item in text(habit, each)]
    asked = [item for k in range(queries) for item in text(habits[k % contributors], 1)]
    torch.manual_seed(seed)
    base = SequenceModel(vocabulary, width)
    optimiser = torch.optim.AdamW(base.parameters(), lr=5e-3)
    corpus = torch.stack(text(common, 256))
    for step in range(120):
        _step(optimiser, sequence_losses(base, list(corpus[(step * 32) % 256 : (step * 32) % 256 + 32])).mean())
    state = base.state_dict()

    def train(places: NDArray[np.int64], run: int) -> nn.Module:
        torch.manual_seed(run)
        model = SequenceModel(vocabulary, width)
        model.load_state_dict(state)
        model.requires_grad_(False)
        for name in ("first", "second", "head"):
            setattr(model, name, LowRank(getattr(model, name), 6))
        trained = [p for p in model.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.01)
        data = torch.stack([examples[int(i)] for i in places])
        for _ in range(6):
            mixed = torch.randperm(len(data))
            for low in range(0, len(data), 8):
                _step(adam, sequence_losses(model, list(data[mixed[low : low + 8]])).mean())
        return model

    owners = tuple(f"contributor-{k:02d}" for k in range(contributors) for _ in range(each))
    task = Task(sequence_losses, sequence_sampled_losses)
    return SmallTask("sequences-lora", examples, asked, owners, task, train, None)


def small_tasks(seed: int) -> dict[str, Callable[[], SmallTask]]:
    """The tasks by name, made when called."""
    return {
        "pictures-softmax": lambda: pictures(seed, deep=False),
        "pictures-network": lambda: pictures(seed, deep=True),
        "sequences-lora": lambda: sequences(seed),
    }
