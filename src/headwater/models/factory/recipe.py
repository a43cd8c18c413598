"""How an adapter is trained: every number that decides its weights, in one value with one text.

Two trainings with the same recipe, data and base give the same bits on one machine. Knows nothing of torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from headwater.core.canonical import Json
from headwater.core.errors import InvalidError
from headwater.models.lora import PROJECTIONS, RANK_MAX

Frozen = Literal["float32", "bfloat16"]

SHORT = {name.rsplit(".", 1)[1].removesuffix("_proj"): name for name in PROJECTIONS}
"""q, k, v, o, gate, up and down, as commands write them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyper-parameters. The defaults suit the demo model and a few hundred short rows."""

    rank: int = 8
    alpha: float = 16.0
    projections: tuple[str, ...] = PROJECTIONS[:4]
    layers: int = 4  # the last so many; the ones below are frozen and computed once
    learning_rate: float = 2e-3
    batch: int = 4  # rows or pairs a step
    epochs: int = 2
    steps_max: int = 0  # stop after so many steps; 0 for all epochs
    warmup_steps: int = 4
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    beta: float = 0.3  # of preference pairs: how far the adapter may leave the weights it starts from
    tokens_max: int = 128  # of one row; longer texts are cut into pieces
    holdout_ppm: int = 100_000  # rows kept out of training, to measure it
    checkpoint_steps: int = 10  # state is made durable so often
    frozen: Frozen = "float32"  # arithmetic of the base's matrices
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise _wrong(f"{name} is {value}", f"use {low:g} to {high:g}")
        if not self.projections or set(self.projections) - set(PROJECTIONS):
            raise _wrong(f"projections are {self.projections}", f"choose from {', '.join(SHORT)}")
        if len(set(self.projections)) != len(self.projections):
            raise _wrong("a projection is named twice", "name each once")
        if self.frozen not in get_args(Frozen):
            raise _wrong(f"frozen is {self.frozen!r}", f"use {' or '.join(get_args(Frozen))}")

    def to_json(self) -> Json:
        """The recipe as canonical JSON can hold it: numbers with a point are decimal strings."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("rank", 1, RANK_MAX),
    ("alpha", 1e-3, 1e4),
    ("layers", 1, 1_000),
    ("learning_rate", 1e-7, 1.0),
    ("batch", 1, 256),
    ("epochs", 1, 1_000),
    ("steps_max", 0, 1_000_000),
    ("warmup_steps", 0, 100_000),
    ("weight_decay", 0.0, 1.0),
    ("clip_norm", 1e-6, 1e6),
    ("beta", 1e-3, 10.0),
    ("tokens_max", 8, 4_096),
    ("holdout_ppm", 0, 500_000),
    ("checkpoint_steps", 1, 100_000),
    ("seed", 0, 2**32 - 1),
)


def projections(text: str) -> tuple[str, ...]:
    """Projections from a short list.

    >>> projections("q,v")
    ('self_attn.q_proj', 'self_attn.v_proj')
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    strange = [name for name in names if name not in SHORT]
    if strange or not names:
        raise _wrong(f"projections are {text[:80]!r}", f"choose from {', '.join(SHORT)}, with commas between")
    return tuple(SHORT[name] for name in names)


def _plain(value: Any) -> Json:
    if isinstance(value, float):
        return repr(value)
    return list(value) if isinstance(value, tuple) else value


def _wrong(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="recipe_invalid", fix=fix)
