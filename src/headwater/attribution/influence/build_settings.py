"""What decides the numbers of an index beside its inputs, what "auto" stands for, and who each example is of.

Knows nothing of files or gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from headwater.attribution.influence.capture import trainable_linears
from headwater.core.errors import InvalidError

ROW_BYTES, ROW_NUMBERS = 9_600, 41_472
DEEP_RIDGE = 0.03

Contributors = Sequence[str] | Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """What decides the numbers of an index, beside its inputs."""

    damping: float | None = None  # times the mean curvature of a layer; none: by the labels drawn, see `auto_damping`
    ridge: float | None = None  # times the trace of the rows' second moment; none: 0.03, or no ridge for low-rank pairs
    clip: float = 1.0  # times the median self-influence norm; 0 leaves outliers as they are
    bits: int = 8
    row_bytes: int | None = None  # for each example and checkpoint; none: see `auto_row_bytes`
    batch: int | None = None
    seed: int = 0
    half: bool | None = None  # the model's products in bfloat16; none: where that is faster

    def __post_init__(self) -> None:
        for name, low in (("damping", 0.0), ("ridge", 0.0)):
            value = getattr(self, name)
            if value is not None and (not np.isfinite(value) or value <= low):
                raise InvalidError(
                    f"{name} {value} is not positive", code=f"{name}_invalid", fix=f"use {name}='auto' or more than 0"
                )
        if not np.isfinite(self.clip) or self.clip < 0:
            raise InvalidError(f"clip {self.clip} is negative", code="clip_invalid", fix="use 0 or more")
        if self.row_bytes is not None and self.row_bytes < 64:
            raise InvalidError(f"rows of {self.row_bytes} bytes", code="row_bytes_invalid", fix="use 64 or more")
        if self.batch is not None and self.batch < 1:
            raise InvalidError(f"batch of {self.batch} examples", code="batch_invalid", fix="use 1 or more")

    def as_json(self) -> dict[str, Any]:
        """For the manifest: fractions as text."""
        return {name: repr(getattr(self, name)) for name in self.__dataclass_fields__ if name != "batch"}


DEEP = BuildSettings()
CONVEX = BuildSettings(damping=0.3, ridge=0.01, clip=0.0)


def automatic(model: nn.Module, modules: Sequence[str] | None) -> BuildSettings:
    """What "auto" stands for.

    A model whose one trainable layer is linear has a convex loss in it: its curvature is exact and no gradient is
    an artefact of one training run, so a small ridge and no clipping. In deeper models examples beyond the median
    self-influence are scaled down to it: they are those that one run happened to find hard. Chosen by retraining.
    """
    chosen = list(trainable_linears(model, modules).values())
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    own = {id(p) for p in chosen[0].parameters()}
    return CONVEX if len(chosen) == 1 and trained <= own else DEEP


def group_of_examples(contributors: Contributors | None, count: int) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names in order of appearance, and for each example the place of its name; no contributors: none and -1.

    Raises:
        InvalidError: not one name for each example, or a contributor without examples.
    """
    if contributors is None:
        return (), np.full(count, -1, dtype=np.int64)
    if isinstance(contributors, Mapping):
        groups = np.full(count, -1, dtype=np.int64)
        for place, (name, members) in enumerate(contributors.items()):
            if not len(members):
                raise InvalidError(
                    f"contributor {name!r} has no examples", code="contributor_empty", fix="leave it out"
                )
            for member in members:
                if not 0 <= int(member) < count or groups[int(member)] != -1:
                    raise InvalidError(
                        f"example {member} of contributor {name!r} does not exist or has another contributor",
                        code="contributor_examples",
                        fix=f"give each of the {count} examples to one contributor",
                    )
                groups[int(member)] = place
        if (groups < 0).any():
            raise InvalidError(
                f"example {int(np.argmin(groups))} has no contributor",
                code="contributor_examples",
                fix="give every example a contributor",
            )
        return tuple(str(name) for name in contributors), groups
    names = [str(name) for name in contributors]
    if len(names) != count:
        raise InvalidError(
            f"{len(names)} contributors for {count} examples",
            code="contributor_examples",
            fix="give one contributor for each example",
        )
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return tuple(order), np.array([order[name] for name in names], dtype=np.int64)


def auto_row_bytes(numbers: int) -> int:
    """Bytes of a row for so many trained numbers: 9,600 to 41,472 of them, in proportion up to four times that."""
    return ROW_BYTES * min(max(numbers, ROW_NUMBERS), 4 * ROW_NUMBERS) // ROW_NUMBERS
