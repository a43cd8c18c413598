"""Influence: which training examples, and whose, lowered the loss of an answer.

    task = hw.Task(losses=…, sampled_losses=…)
    index = hw.InfluenceIndex.build(model, examples, task, "index", contributors=names)
    index.contributor_scores(queries)

Everything but `Task` needs torch, which is imported when such a name is first used. Does not know what a
contribution is worth, who is paid, or where adapters come from.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headwater.attribution.influence.task import Task
from headwater.core.errors import MissingError

if TYPE_CHECKING:
    from headwater.attribution.influence.evaluation import Evaluation, evaluate, fit_for_payout
    from headwater.attribution.influence.index import InfluenceIndex
    from headwater.attribution.influence.intervals import Calibration, Intervals
    from headwater.attribution.influence.manifest import Manifest
    from headwater.attribution.influence.unroll import AdamW, Sgd, TrainRecord, audit_influence

__all__ = [
    "AdamW",
    "Calibration",
    "Evaluation",
    "InfluenceIndex",
    "Intervals",
    "Manifest",
    "Sgd",
    "Task",
    "TrainRecord",
    "audit_influence",
    "evaluate",
    "fit_for_payout",
]

_HOMES = {
    "InfluenceIndex": "index",
    "AdamW": "unroll",
    "Calibration": "intervals",
    "Evaluation": "evaluation",
    "Intervals": "intervals",
    "Manifest": "manifest",
    "Sgd": "unroll",
    "TrainRecord": "unroll",
    "audit_influence": "unroll",
    "evaluate": "evaluation",
    "fit_for_payout": "evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingError(
            "the influence index needs torch, which is not installed",
            code="torch_missing",
            fix='pip install "headwater[torch]"',
        ) from None
    globals()[name] = value
    return value
