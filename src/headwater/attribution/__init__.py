"""Who supplied an answer: the bit account, exact in bits and per token, of a prompt's parts and the base model.

Knows nothing of money, databases, servers or how a model is run: a `Scorer` says how likely an answer is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwater.core.on_demand import on_demand

if TYPE_CHECKING:
    from headwater.attribution.account import Rules, attribute
    from headwater.attribution.bits import Attribution, Share, microbits, weigh
    from headwater.attribution.budget import Budget
    from headwater.attribution.evidence import Answer
    from headwater.attribution.layout import AdapterScorer, Layout, Part, Scorer
    from headwater.attribution.passing_on import Earlier, pass_on
    from headwater.attribution.reference import Reference, build_reference, reference_from_bytes, uniform_reference
    from headwater.attribution.worth import WorthCache

__all__ = [
    "AdapterScorer",
    "Answer",
    "Attribution",
    "Budget",
    "Earlier",
    "Layout",
    "Part",
    "Reference",
    "Rules",
    "Scorer",
    "Share",
    "WorthCache",
    "attribute",
    "build_reference",
    "microbits",
    "pass_on",
    "reference_from_bytes",
    "uniform_reference",
    "weigh",
]

__getattr__ = on_demand(
    __name__,
    {
        "headwater.attribution.account": ("Rules", "attribute"),
        "headwater.attribution.bits": ("Attribution", "Share", "microbits", "weigh"),
        "headwater.attribution.budget": ("Budget",),
        "headwater.attribution.evidence": ("Answer",),
        "headwater.attribution.layout": ("AdapterScorer", "Layout", "Part", "Scorer"),
        "headwater.attribution.passing_on": ("Earlier", "pass_on"),
        "headwater.attribution.reference": (
            "Reference",
            "build_reference",
            "reference_from_bytes",
            "uniform_reference",
        ),
        "headwater.attribution.worth": ("WorthCache",),
    },
)
