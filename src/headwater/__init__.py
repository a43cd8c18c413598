"""headwater: who supplied each answer, in bits, and what they are paid for it, to the last unit.

    import headwater as hw

Names are imported when they are first used, so that `hw.allocate` does not load a model's kernels.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from headwater.attribution import Attribution, Budget, Layout, Part, Reference, Share, attribute
    from headwater.attribution.influence import InfluenceIndex, Task
    from headwater.attribution.spans import CreditRules, Document, SpanIndex
    from headwater.core.errors import HeadwaterError, Problem
    from headwater.core.money import allocate, normalise
    from headwater.receipts import Bundle, Receipt, verify_receipt
    from headwater.settlement import PayoutTree
    from headwater.splits import Policy, divide, explain, recompute_split
    from headwater.store.ledger_store import Ledger

_HOMES = {
    "headwater.attribution": ("Attribution", "Budget", "Layout", "Part", "Reference", "Share", "attribute"),
    "headwater.attribution.influence": ("InfluenceIndex", "Task"),
    "headwater.attribution.spans": ("CreditRules", "Document", "SpanIndex"),
    "headwater.core.errors": ("HeadwaterError", "Problem"),
    "headwater.core.money": ("allocate", "normalise"),
    "headwater.receipts": ("Bundle", "Receipt", "verify_receipt"),
    "headwater.settlement": ("PayoutTree",),
    "headwater.splits": ("Policy", "divide", "explain", "recompute_split"),
    "headwater.store.ledger_store": ("Ledger",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Attribution",
    "Budget",
    "Bundle",
    "CreditRules",
    "Document",
    "HeadwaterError",
    "InfluenceIndex",
    "Layout",
    "Ledger",
    "Part",
    "PayoutTree",
    "Policy",
    "Problem",
    "Receipt",
    "Reference",
    "Share",
    "SpanIndex",
    "Task",
    "allocate",
    "attribute",
    "divide",
    "explain",
    "normalise",
    "recompute_split",
    "verify_receipt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
