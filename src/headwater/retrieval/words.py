"""Scores texts by the words they share with a question: BM25, as a fraction of what a perfect text would score.

A plain BM25 score has no scale: how much is much depends on the question and on the size of the corpus.
Here every term weighs what it says at least in a corpus of `CORPUS_MIN` texts, terms the corpus lacks
included, and the score is divided by the sum of the weights: 0 is nothing in common, 1 is never reached.
Source: S. Robertson and H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009,
section 3, in the Lucene form that the bm25s library builds; the fraction is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import bm25s
import numpy as np
from numpy.typing import NDArray

CORPUS_MIN = 10_000
"""Texts a corpus is taken to have when it has fewer: in a handful of texts frequency says little."""

_K1 = 1.2
_B = 0.5  # passages have nearly one length, so length says less than it does of whole documents


class WordIndex:
    """Saturated term frequencies of (texts, terms), as a sparse matrix by term."""

    def __init__(
        self,
        vocabulary: dict[str, int],
        starts: NDArray[np.int64],
        texts: NDArray[np.int32],
        data: NDArray[np.float32],
        count: int,
    ) -> None:
        self.vocabulary, self.starts, self.texts, self.data, self.count = vocabulary, starts, texts, data, count

    @classmethod
    def build(cls, corpus: Sequence[Sequence[str]]) -> WordIndex:
        """Index `corpus`: (texts,) lists of terms."""
        if not any(corpus):
            empty = np.zeros(0)
            return cls({}, np.zeros(1, np.int64), empty.astype(np.int32), empty.astype(np.float32), len(corpus))
        model = bm25s.BM25(method="lucene", k1=_K1, b=_B)
        model.index([list(text) for text in corpus], show_progress=False)
        scores: dict[str, Any] = model.scores
        starts = np.asarray(scores["indptr"], dtype=np.int64)
        data = np.asarray(scores["data"], dtype=np.float32)
        # The library multiplies the inverse document frequency in; it is taken out again to be weighed per question.
        documents = np.diff(starts)
        idf = np.log1p((len(corpus) - documents + 0.5) / (documents + 0.5))
        saturated: NDArray[np.float32] = np.divide(data, np.repeat(idf, documents), dtype=np.float32)
        texts = np.asarray(scores["indices"], dtype=np.int32)
        return cls(dict(model.vocab_dict), starts, texts, saturated, len(corpus))

    def weight(self, term: str) -> float:
        """What a term says, in nats: the rarer, the more."""
        column = self.vocabulary.get(term)
        documents = 0 if column is None else int(self.starts[column + 1] - self.starts[column])
        count = max(self.count, CORPUS_MIN)
        return math.log1p((count - documents + 0.5) / (documents + 0.5))

    def scores(self, question: Sequence[str]) -> NDArray[np.float64]:
        """(texts,) fractions 0..1 of a perfect match with the terms in `question`."""
        total = np.zeros(self.count)
        weights = [self.weight(term) for term in question]
        for term, weight in zip(question, weights, strict=True):
            column = self.vocabulary.get(term)
            if column is not None:
                rows = slice(self.starts[column], self.starts[column + 1])
                total[self.texts[rows]] += weight * self.data[rows]
        return total / sum(weights) if weights else total
