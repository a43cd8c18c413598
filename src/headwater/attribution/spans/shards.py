"""Many shards asked as one index, in this process or over Ray; the answers are those of one index.

A shard holds the documents registered in one stretch of time (`SpanIndex.split` makes them). A trace
takes two rounds: every shard names its first holder of each k-gram, and the words are then described
by the shards that hold their owners. Nothing but these goes between processes.

Ray is an extra: without it `ShardedIndex.local` still works. Shards are served, not written to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.credit import Credit, CreditRules, credit_trace
from headwater.attribution.spans.index import SpanIndex
from headwater.attribution.spans.manifest import Registered, state_digest
from headwater.attribution.spans.reference import MICROBITS
from headwater.attribution.spans.tracing import look_up, runs_chosen
from headwater.attribution.spans.values import Span, Trace, raw_of
from headwater.core.errors import ConflictError, InvalidError, MissingError

_NOBODY = np.iinfo(np.int64).max


class Look(NamedTuple):
    """One shard's first holder of each k-gram of a text."""

    found: NDArray[np.int64]  # (n,) occurrences in the shard; 0 for none
    holder: NDArray[np.int64]  # (n,) place in `holders`
    holders: tuple[tuple[int, str], ...]  # registered_at and id, each once


class Identity(NamedTuple):
    """What a shard is."""

    gram_tokens: int
    reference: str
    tokeniser: str
    count: int  # type: ignore[assignment]  # documents; hides tuple.count
    sum: NDArray[np.uint16]
    clusters: dict[str, str]


class Shard:
    """A span index as a shard."""

    def __init__(self, folder: str) -> None:
        self._index = SpanIndex.open(folder)

    def identity(self) -> Identity:
        """What this shard is."""
        stats, registered = self._index.stats(), self._index.registered
        clusters = dict(self._index.snapshot.clusters)
        tokeniser = self._index.tokeniser
        return Identity(stats.gram_tokens, stats.reference, tokeniser, registered.count, registered.words, clusters)

    def look(self, raw: bytes) -> Look:
        """First holders here."""
        snapshot = self._index.snapshot
        best, found = look_up(np.frombuffer(raw, dtype=np.uint8), snapshot.rows, snapshot.settings.row)
        held = found > 0
        pairs, places = np.unique(best[held, :2], axis=0, return_inverse=True)
        holder = np.zeros(found.size, dtype=np.int64)
        holder[held] = places.reshape(-1)
        names = []
        for segment, document in pairs.tolist():
            at = snapshot.segments[segment]
            names.append((at.registered_at(document), at.document_id(document)))
        return Look(found, holder, tuple(names))

    def describe(self, raw: bytes, chosen: NDArray[np.int64], found: NDArray[np.int64]) -> list[tuple[Any, ...]]:
        """Spans of the words that were given to this shard, as the fields of `Span` without clusters."""
        snapshot = self._index.snapshot
        text = np.frombuffer(raw, dtype=np.uint8)
        runs = runs_chosen(text, chosen, found, snapshot.rows, snapshot.settings.row)
        out = []
        for start, end, microbits, segment, document, source, count, token, tokens in runs.tolist():
            at = snapshot.segments[segment]
            out.append(
                (start, end, microbits, at.owner(document), at.document_id(document), source, count, token, tokens)
            )
        return out

    def count(self, raw: bytes) -> int:
        """Occurrences here."""
        return self._index.count(raw)

    def owner(self, document_id: str) -> tuple[bool, str | None]:
        """Whether the document is here, and its owner."""
        held = self._index.snapshot.find(document_id)
        return (False, None) if held is None else (True, held[0].owner(held[1]))


class Fleet(Protocol):
    """A way to ask all shards."""

    def ask(self, method: str, *arguments: Sequence[Any]) -> list[Any]:
        """Call a method of every shard; each argument is a sequence with one value for each shard."""
        ...


class ShardedIndex:
    """Shards behind the `trace`, `count` and `credit` of one index."""

    def __init__(self, fleet: Fleet, shards: int) -> None:
        """Use `local` or `ray`."""
        self._fleet, self._shards = fleet, shards
        known: list[Identity] = fleet.ask("identity")
        if len({identity[:3] for identity in known}) != 1:
            raise InvalidError(
                "the shards differ in k, tokeniser or reference", code="shards_differ", fix="split one index again"
            )
        self._gram_tokens = known[0].gram_tokens
        self._clusters: Mapping[str, str] = {m: h for identity in known for m, h in identity.clusters.items()}
        registered = Registered()
        for identity in known:
            registered = registered.joined(Registered(identity.count, identity.sum))
        self._state = state_digest(
            registered,
            self._clusters,
            gram_tokens=self._gram_tokens,
            reference=known[0].reference,
            tokeniser=known[0].tokeniser,
        )

    @classmethod
    def local(cls, folders: Sequence[str | Path]) -> ShardedIndex:
        """Shards in this process."""
        return cls(_Local([Shard(str(folder)) for folder in folders]), len(folders))

    @classmethod
    def ray(cls, folders: Sequence[str | Path], **options: Any) -> ShardedIndex:
        """Shards as Ray actors, each where Ray puts it; Ray must have been started.

        Args:
            folders: as the actors see them.
            options: for each actor, such as ``num_cpus=1`` or ``resources``.

        Raises:
            MissingError: Ray is not installed.
        """
        return cls(_Ray([str(folder) for folder in folders], options), len(folders))

    def trace(self, text: str | bytes) -> Trace:
        """As `SpanIndex.trace`."""
        raw = raw_of(text)
        looks: list[Look] = self._fleet.ask("look", [raw] * self._shards)
        found = np.sum([look.found for look in looks], axis=0, dtype=np.int64)
        rank, shard = _ranks(looks)
        winner = _winners(rank, self._gram_tokens)
        parts = [np.where((winner >= 0) & (shard[winner] == i), winner, -1) for i in range(self._shards)]
        answers = self._fleet.ask("describe", [raw] * self._shards, parts, [found] * self._shards)
        rows = sorted((row for answer in answers for row in answer), key=lambda row: row[7])
        spans = tuple(
            Span(start, end, microbits / MICROBITS, owner, name, source, count, self._clusters.get(name), token, tokens)
            for start, end, microbits, owner, name, source, count, token, tokens in rows
        )
        return Trace(spans, int(found.size), sum(row[2] for row in rows) / MICROBITS, self._state)

    def trace_batch(self, texts: Sequence[str | bytes]) -> tuple[Trace, ...]:
        """`trace` of each text."""
        return tuple(self.trace(text) for text in texts)

    def count(self, text: str | bytes) -> int:
        """As `SpanIndex.count`."""
        raw = raw_of(text)
        return sum(self._fleet.ask("count", [raw] * self._shards))

    def credit(self, trace: Trace, rules: CreditRules | None = None, *, exclude: Collection[str] = ()) -> Credit:
        """As `SpanIndex.credit`."""
        if trace.manifest != self._state:
            raise ConflictError(
                f"the trace was made when the index was {trace.manifest}, now it is {self._state}",
                code="trace_outdated",
                fix="trace the text again",
            )

        def head(span: Span) -> tuple[str, str | None]:
            if span.cluster_id is None or span.owner is None:
                return span.document_id, span.owner
            for held, owner in self._fleet.ask("owner", [span.cluster_id] * self._shards):
                if held:
                    return span.cluster_id, owner
            return span.document_id, span.owner

        return credit_trace(trace, rules or CreditRules(), head, exclude)


def _ranks(looks: Sequence[Look]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every k-gram, the rank of its first holder among all holders, and the shard that has it."""
    order = {name: rank for rank, name in enumerate(sorted({name for look in looks for name in look.holders}))}
    ranks = []
    for look in looks:
        table = np.array([order[name] for name in look.holders] or [0], dtype=np.int64)
        ranks.append(np.where(look.found > 0, table[look.holder], _NOBODY))
    stacked = np.stack(ranks)
    shard = stacked.argmin(axis=0).astype(np.int64)
    return stacked.min(axis=0), shard


def _winners(rank: NDArray[np.int64], gram_tokens: int) -> NDArray[np.int64]:
    """For every word the k-gram over it with the earliest holder, the leftmost of equals; -1 for none."""
    count = rank.size
    words = np.arange(count)
    winner, least = np.full(count, -1, dtype=np.int64), np.full(count, _NOBODY, dtype=np.int64)
    for back in range(gram_tokens - 1, -1, -1):
        gram = words - back
        here = np.where(gram >= 0, rank[np.maximum(gram, 0)], _NOBODY)
        better = here < least
        winner[better], least[better] = gram[better], here[better]
    return winner


class _Local:
    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards

    def ask(self, method: str, *arguments: Sequence[Any]) -> list[Any]:
        return [getattr(shard, method)(*(a[i] for a in arguments)) for i, shard in enumerate(self._shards)]


class _Ray:
    def __init__(self, folders: Sequence[str], options: Mapping[str, Any]) -> None:
        try:
            import ray
        except ImportError:
            raise MissingError("Ray is not installed", code="ray_missing", fix="pip install 'headwater[ray]'") from None
        self._get = ray.get
        actor = ray.remote(**options)(Shard) if options else ray.remote(Shard)
        self._actors = [actor.remote(folder) for folder in folders]

    def ask(self, method: str, *arguments: Sequence[Any]) -> list[Any]:
        calls = [getattr(actor, method).remote(*(a[i] for a in arguments)) for i, actor in enumerate(self._actors)]
        return list(self._get(calls))
