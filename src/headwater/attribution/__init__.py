"""Who supplied an answer: the bit account, exact in bits and per token, of a prompt's parts and the base model.

Knows nothing of money, databases, servers or how a model is run: a `Scorer` says how likely an answer is.
"""

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
