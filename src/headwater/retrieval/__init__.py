"""Finds, for a question, the passages of registered documents that may answer it.

Knows nothing of databases, models, prompts or money; what may be retrieved at all is the licence gate's word.
"""

from __future__ import annotations

from headwater.retrieval.demo_corpus import DemoCorpus, load_proposals, proposals_folder, standing_priors
from headwater.retrieval.embedding import ABSENT, Embedder, load_embedder
from headwater.retrieval.index import Passage, PassageIndex, Scoring
from headwater.retrieval.index_files import forget, open_index
from headwater.retrieval.passages import CountTokens, Span, cut, estimate_tokens, trim

__all__ = [
    "ABSENT",
    "CountTokens",
    "DemoCorpus",
    "Embedder",
    "Passage",
    "PassageIndex",
    "Scoring",
    "Span",
    "cut",
    "estimate_tokens",
    "forget",
    "load_embedder",
    "load_proposals",
    "open_index",
    "proposals_folder",
    "standing_priors",
    "trim",
]
