"""The passage index: what registered documents have to say to a question, or nothing.

Only contributions that the licence gate lets `ground` get in. A passage scores by words (of itself and
of its document) and by embeddings; below the floor nothing is returned, so a greeting finds no source.
Near-duplicates are merged into the earliest registered; by default a document gives one passage.
Deterministic: equal scores go by registration, then id, then place. Knows nothing of databases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from headwater.core.canonical import Json, digest_of
from headwater.core.ids import ContributionId
from headwater.core.limits import CHUNK_TOKENS_MAX
from headwater.registry.contribution import Contribution
from headwater.registry.gate import Refusal, permitted
from headwater.registry.near_duplicates import merge_near_duplicates
from headwater.retrieval.embedding import Embedder, Vectors
from headwater.retrieval.passages import CountTokens, cut, estimate_tokens, trim
from headwater.retrieval.terms import question_terms, terms
from headwater.retrieval.words import WordIndex

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, of how many."""

VERSION = 2
"""Of the cutting and scoring; part of the index digest."""


QUESTION_CHARS_MAX = 8_000
QUESTION_TERMS_MAX = 64
"""What of a question is read; the rest changes nothing."""

OPENING_PASSAGES = 3
"""How many passages at the start of a document count as its opening."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document that may answer a question."""

    contribution_id: ContributionId
    start: int  # characters into the document's text
    end: int
    text: str  # exactly text[start:end] of the document
    score: float  # relevance; higher is better, comparable within one search


@dataclass(frozen=True, slots=True)
class Scoring:
    """How the parts of a score are weighed; chosen on the questions in `tests/retrieval/test_demo_corpus.py`."""

    words: float = 0.6  # the passage's own words
    meaning: float = 0.4  # embeddings, when there are any
    document: float = 0.5  # the words of the whole document
    opening: float = 0.15  # the first passages of a document, which say what it is about
    floor: float = 0.62  # words, meaning and document together; less is not relevant, whatever the prior
    information_min: float = 2.8  # nats a question's terms must carry together
    duplicate: float = 0.6  # resemblance from which two passages say the same

    def describe(self) -> Json:
        """The weights in millionths, as canonical JSON can hold them."""
        return {name: round(getattr(self, name) * 1_000_000) for name in (field.name for field in fields(self))}


@dataclass(frozen=True, slots=True)
class Entry:
    """One document as the index knows it."""

    contribution_id: ContributionId
    title: str
    registered_at_ns: int
    expires_at_ns: int | None
    price_floor_units: int
    prior: float


@dataclass(frozen=True, slots=True)
class Piece:
    """One passage as the index keeps it, before anything is asked."""

    document: int  # which entry
    start: int
    end: int
    ordinal: int  # which passage of its document
    text: str


@dataclass(frozen=True, slots=True)
class Tables:
    """Everything an index holds; what is saved is this and nothing else."""

    digest: str
    entries: tuple[Entry, ...]
    pieces: tuple[Piece, ...]  # by registration, contribution id, place
    words: WordIndex  # of pieces
    document_words: WordIndex  # of entries
    vectors: Vectors  # (pieces, dimensions); no dimensions without embeddings


def index_digest(
    contributions: Sequence[Contribution],
    priors: Mapping[ContributionId, float],
    scoring: Scoring,
    embedder: Embedder | None,
) -> str:
    """Digest of the index that these would make: the evidence, the weights and the version of the method."""
    return digest_of(
        {
            "version": VERSION,
            "scoring": scoring.describe(),
            "embeddings": None if embedder is None else embedder.digest,
            "passage_tokens_max": CHUNK_TOKENS_MAX,
            "documents": [
                [
                    c.id,
                    c.title,
                    str(c.registered_at_ns),
                    None if c.license.expires_at_ns is None else str(c.license.expires_at_ns),
                    str(c.license.price_floor_units),
                    round(priors.get(c.id, 0.0) * 1_000_000),
                ]
                for c in in_order(contributions)
            ],
        }
    )


def in_order(contributions: Sequence[Contribution]) -> list[Contribution]:
    """By registration, then id: the order in which equal scores are preferred."""
    return sorted(contributions, key=lambda c: (c.registered_at_ns, c.id))


def build_tables(
    contributions: Sequence[Contribution],
    text_of: Callable[[ContributionId], str],
    *,
    priors: Mapping[ContributionId, float],
    scoring: Scoring,
    embedder: Embedder | None,
    progress: Progress,
) -> Tables:
    """Cut and index documents that are permitted already."""
    ordered = in_order(contributions)
    entries: list[Entry] = []
    pieces: list[Piece] = []
    piece_terms: list[list[str]] = []
    document_terms: list[list[str]] = []
    contexts: list[str] = []
    for number, c in enumerate(ordered):
        text = text_of(c.id)
        prior = priors.get(c.id, 0.0)
        floor = c.license.price_floor_units
        entries.append(Entry(c.id, c.title, c.registered_at_ns, c.license.expires_at_ns, floor, prior))
        title = terms(c.title)
        # A title says what the whole is about; three times is as often as a short text would.
        whole = title * 3
        for ordinal, span in enumerate(cut(text, CHUNK_TOKENS_MAX)):
            said = text[span.start : span.end]
            pieces.append(Piece(number, span.start, span.end, ordinal, said))
            spoken = terms(said)
            whole += spoken
            piece_terms.append(title * 2 + terms(span.heading) + spoken)
            contexts.append(f"{c.title}. {span.heading}. {said}")
        document_terms.append(whole)
        progress("cutting", number + 1, len(ordered))
    words = WordIndex.build(piece_terms)
    document_words = WordIndex.build(document_terms)
    progress("words", len(pieces), len(pieces))
    vectors = _embed(contexts, embedder, progress)
    digest = index_digest(ordered, priors, scoring, embedder)
    return Tables(digest, tuple(entries), tuple(pieces), words, document_words, vectors)


def _embed(texts: Sequence[str], embedder: Embedder | None, progress: Progress) -> Vectors:
    if embedder is None or not texts:
        return np.zeros((len(texts), 0), dtype=np.float32)
    parts = []
    for start in range(0, len(texts), 2048):
        parts.append(embedder.embed(texts[start : start + 2048]))
        progress("meaning", min(start + 2048, len(texts)), len(texts))
    return np.concatenate(parts)


class PassageIndex:
    """Documents cut into passages, ready to be searched. Immutable, safe to share between threads."""

    def __init__(
        self,
        tables: Tables,
        *,
        scoring: Scoring | None = None,
        embedder: Embedder | None = None,
        count_tokens: CountTokens = estimate_tokens,
        refused: tuple[Refusal, ...] = (),
    ) -> None:
        self._tables = tables
        self._scoring = scoring or Scoring()
        self._embedder = embedder
        self._count_tokens = count_tokens
        self._document = np.array([piece.document for piece in tables.pieces], dtype=np.int64)
        self._prior = np.array([self._prior_of(piece) for piece in tables.pieces], dtype=np.float64)
        self.refused = refused

    @classmethod
    def build(
        cls,
        contributions: Sequence[Contribution],
        text_of: Callable[[ContributionId], str],
        *,
        now_ns: int,
        priors: Mapping[ContributionId, float] | None = None,
        scoring: Scoring | None = None,
        embedder: Embedder | None = None,
        count_tokens: CountTokens = estimate_tokens,
        progress: Progress | None = None,
    ) -> PassageIndex:
        """Index those of `contributions` that may `ground` at `now_ns`.

        Args:
            contributions: documents; what the gate refuses is listed in `refused` and not read.
            text_of: the text of a contribution.
            now_ns: the instant at which the gate is asked.
            priors: added to the score of every passage of a contribution, e.g. below zero for what is superseded.
            scoring: how the parts of a score are weighed.
            embedder: static embeddings; without them scores go by words alone.
            count_tokens: the serving model's count, which every passage returned is held to.
            progress: called as the work goes on.
        """
        allowed, refused = permitted(contributions, "ground", now_ns)
        tables = build_tables(
            allowed,
            text_of,
            priors=priors or {},
            scoring=scoring or Scoring(),
            embedder=embedder,
            progress=progress or silent,
        )
        return cls(tables, scoring=scoring, embedder=embedder, count_tokens=count_tokens, refused=refused)

    @property
    def digest(self) -> str:
        """Names the index in receipts, ``sha256:…``."""
        return self._tables.digest

    @property
    def tables(self) -> Tables:
        """What is saved of this index."""
        return self._tables

    def __len__(self) -> int:
        """How many passages there are."""
        return len(self._tables.pieces)

    def search(
        self,
        question: str,
        k: int,
        *,
        now_ns: int | None = None,
        offer_units: int | None = None,
        per_document: int = 1,
    ) -> tuple[Passage, ...]:
        """At most `k` passages that are relevant to `question`, best first; none when nothing is.

        Args:
            question: what is asked, in words.
            k: most passages wanted.
            now_ns: the instant of use; without it, whatever has an expiry is left out.
            offer_units: the price of the call in nano units; without it, whatever has a price floor is left out.
            per_document: most passages of one document.
        """
        question = question[:QUESTION_CHARS_MAX]
        asked = question_terms(question)[:QUESTION_TERMS_MAX]
        if k < 1 or not self._tables.pieces or not self._informative(asked):
            return ()
        scores = self._scores(question, asked)
        scores[~self._open(now_ns, offer_units)[self._document]] = -np.inf
        pool = self._pool(scores, 8 * k, per_document)
        found: list[Passage] = []
        taken: dict[int, int] = {}
        for group in merge_near_duplicates([self._tables.pieces[i].text for i in pool], self._scoring.duplicate):
            first = min(pool[i] for i in group)  # pieces are in order of registration: copies earn nothing
            document = self._tables.pieces[first].document
            passage = self._passage(first, float(scores[pool[group[0]]]))
            if passage is not None and taken.get(document, 0) < per_document:
                taken[document] = taken.get(document, 0) + 1
                found.append(passage)
            if len(found) == k:
                break
        return tuple(found)

    def _pool(self, scores: NDArray[np.float64], size: int, per_document: int) -> list[int]:
        """The best pieces, `size` at most, with no more of one document than could be of use."""
        pool: list[int] = []
        taken: dict[int, int] = {}
        relevant = int(np.count_nonzero(np.isfinite(scores)))
        for i in np.argsort(-scores, kind="stable")[:relevant]:
            document = int(self._document[i])
            taken[document] = taken.get(document, 0) + 1
            if taken[document] <= per_document + 1:
                pool.append(int(i))
            if len(pool) == size:
                break
        return pool

    def _informative(self, asked: Sequence[str]) -> bool:
        weigh = self._tables.words.weight
        return sum(weigh(term) for term in asked) >= self._scoring.information_min

    def _scores(self, question: str, asked: Sequence[str]) -> NDArray[np.float64]:
        """(pieces,) scores; minus infinity below the floor."""
        weights, tables = self._scoring, self._tables
        words = tables.words.scores(asked)
        meaning = words
        if self._embedder is not None and tables.vectors.shape[1]:
            cosines = tables.vectors @ self._embedder.embed([question])[0]
            meaning = np.maximum(cosines, 0.0).astype(np.float64)
        whole = tables.document_words.scores(asked)[self._document]
        relevance: NDArray[np.float64] = weights.words * words + weights.meaning * meaning + weights.document * whole
        # Without a word in common likeness is not evidence; a prior orders what is relevant, and makes nothing so.
        return np.where((words > 0) & (relevance >= weights.floor), relevance + self._prior, -np.inf)

    def _open(self, now_ns: int | None, offer_units: int | None) -> NDArray[np.bool_]:
        """(documents,) which may be used now, at this price."""
        return np.array(
            [
                (entry.expires_at_ns is None or (now_ns is not None and now_ns < entry.expires_at_ns))
                and entry.price_floor_units <= (offer_units or 0)
                for entry in self._tables.entries
            ],
            dtype=np.bool_,
        )

    def _passage(self, number: int, score: float) -> Passage | None:
        piece = self._tables.pieces[number]
        length = trim(piece.text, 0, len(piece.text), CHUNK_TOKENS_MAX, self._count_tokens)
        if length == 0:
            return None
        entry = self._tables.entries[piece.document]
        return Passage(entry.contribution_id, piece.start, piece.start + length, piece.text[:length], score)

    def _prior_of(self, piece: Piece) -> float:
        opening = self._scoring.opening if piece.ordinal < OPENING_PASSAGES else 0.0
        return self._tables.entries[piece.document].prior + opening


def silent(what: str, done: int, total: int) -> None:
    """No progress is shown."""
