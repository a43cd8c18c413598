"""Who supplied an answer: the bit account, exact in bits and per token, of a prompt's parts and the base model.

Knows nothing of money, databases, servers or how a model is run: a `Scorer` says how likely an answer is.
"""

from headwater.attribution.account import Rules, attribute
from headwater.attribution.bits import Attribution, Share, microbits, weigh
from headwater.attribution.evidence import Answer
from headwater.attribution.layout import Layout, Part, Scorer
from headwater.attribution.reference import Reference, build_reference, reference_from_bytes, uniform_reference

__all__ = [
    "Answer",
    "Attribution",
    "Layout",
    "Part",
    "Reference",
    "Rules",
    "Scorer",
    "Share",
    "attribute",
    "build_reference",
    "microbits",
    "reference_from_bytes",
    "uniform_reference",
    "weigh",
]
