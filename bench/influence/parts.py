"""What every task of the bench is made of: its data, its loss, and how it is trained from a seed.

Knows nothing of estimators or of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from headwater.attribution.influence import Task

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BenchTask:
    """One task: `losses` and `drawn` take tensors of a stacked batch, so that both libraries are given the same."""

    name: str
    examples: list[Any]
    queries: list[Any]
    groups: Places | None  # (n,) contributor of each example
    query_groups: Places | None
    task: Task
    blank: Callable[[], nn.Module]  # untrained, to load weights into
    train: Callable[[Places, int], nn.Module]
    subsets: int  # halves of examples, and as many of contributors
    seeds: int
    models: int  # full-data trainings, for one and more checkpoints
    batch: int = 32  # for the peer
    keep: str = ""  # part of a parameter's name that is trained; all by default


def drawn_from(logits: Tensor, generator: Generator | None) -> Tensor:
    """Labels drawn from the model's own predictions; `logits` (…, classes)."""
    chances = logits.detach().softmax(-1)
    return torch.multinomial(chances.flatten(0, -2), 1, generator=generator).view(chances.shape[:-1])


def sequence_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """(b,) mean cross-entropy; logits (b, t, v)."""
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").mean(1)


class LowRank(nn.Module):
    """A frozen linear layer plus twice the product of two thin trained ones."""

    def __init__(self, base: nn.Linear, rank: int, generator: Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(torch.randn(self.a.weight.shape, generator=generator) / math.sqrt(base.in_features))
            self.b.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """The layer, adapted."""
        found: Tensor = self.base(x) + 2 * self.b(self.a(x))
        return found


def halves(count: int, subsets: int, seed: int) -> NDArray[np.bool_]:
    """(subsets, count) random halves."""
    rng = np.random.default_rng(seed)
    found: NDArray[np.bool_] = np.stack(
        [np.isin(np.arange(count), rng.permutation(count)[: count // 2]) for _ in range(subsets)]
    )
    return found


def pep_texts() -> dict[str, str]:
    """Texts of the `opep` wheel by the first-named author, in the order of their files, spaces joined."""
    import re
    from pathlib import Path

    import opep

    by: dict[str, list[str]] = {}
    for path in sorted((Path(opep.__file__).parent / "peps").rglob("pep-*")):
        text = path.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"Author:\s+([A-Z][^<,(:@]{3,40}?)\s*(?:<|,|\(|\n|[A-Z][A-Za-z-]+:)", text[:3000])
        if found is not None:
            body = re.split(r"\n#+ |\n=+\n", text, maxsplit=1)[-1]
            by.setdefault(found.group(1).strip(), []).append(re.sub(r"\s+", " ", body))
    return {author: " ".join(bodies) for author, bodies in by.items()}
