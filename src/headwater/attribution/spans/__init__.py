"""Who wrote these words first: an index of registered texts, asked with any text.

Words are found whatever model wrote them, runs of k (default 8) words belong to the earliest
registered document that holds them, and copies earn nothing. The files of an index are the affair of
`segments`, `manifest`, `journal` and `shelf`; everything else is pure.

Does not know: clocks, the network, money, models or what is in a model's context; it does not keep the
registered texts. Does not see: paraphrase, translation, words registered first by a thief.
"""

from headwater.attribution.spans.credit import Credit, CreditPiece, CreditRules, CreditShare
from headwater.attribution.spans.index import IndexStats, SpanIndex, SpanView
from headwater.attribution.spans.reference import Reference, build_reference, default_reference, read_reference
from headwater.attribution.spans.shards import ShardedIndex
from headwater.attribution.spans.values import AddReport, Document, Match, Reassignment, Span, Trace

__all__ = [
    "AddReport",
    "Credit",
    "CreditPiece",
    "CreditRules",
    "CreditShare",
    "Document",
    "IndexStats",
    "Match",
    "Reassignment",
    "Reference",
    "ShardedIndex",
    "Span",
    "SpanIndex",
    "SpanView",
    "Trace",
    "build_reference",
    "default_reference",
    "read_reference",
]
