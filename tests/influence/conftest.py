from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch", exc_type=ImportError)
torch.set_num_threads(1)

import torch.nn.functional as F  # noqa: E402

import headwater as hw  # noqa: E402


@dataclass
class Small:
    """A trained classifier with its data: 96 examples of 6 contributors, two of each kind of class pair."""

    model: Any
    task: hw.Task
    examples: list[Any]
    queries: list[Any]
    contributors: list[str]


def cross_entropy(model, batch):
    labels = torch.tensor([y for _, y in batch])
    return F.cross_entropy(model(torch.stack([x for x, _ in batch])), labels, reduction="none")


def sampled_cross_entropy(model, batch, generator):
    logits = model(torch.stack([x for x, _ in batch]))
    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    return F.cross_entropy(logits, drawn, reduction="none")


CLASSIFIER = hw.Task(cross_entropy, sampled_cross_entropy)


def blobs(count, seed, wide=12, classes=4):
    generator = torch.Generator().manual_seed(99)
    centres = torch.randn(classes, wide, generator=generator)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    inputs = centres[labels] + 0.9 * torch.randn(count, wide, generator=generator)
    return list(zip(inputs, labels.tolist(), strict=True))


def train(model, examples, *, steps=150, rate=0.1):
    inputs, labels = torch.stack([x for x, _ in examples]), torch.tensor([y for _, y in examples])
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimiser.step()
    return model


def perceptron(seed=0, wide=12, hidden=10, classes=4):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(wide, hidden), torch.nn.ReLU(inplace=True), torch.nn.Linear(hidden, classes)
    )


@pytest.fixture
def small() -> Small:
    examples = blobs(96, 1)
    return Small(
        train(perceptron(), examples),
        CLASSIFIER,
        examples,
        blobs(16, 2),
        [f"ctr_{i % 6}" for i in range(len(examples))],
    )
