"""From spans to what each document earned, in whole micro-bits, replayable to the last one.

Pay is surprisal above a floor. Neighbouring spans of one owner count as one run and pay the floor
once, so cutting a document up, or spreading it over names, can only lower the sum. There is no cap on
occurrences and no sampling. A near-duplicate's words are credited to the earliest of its cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import groupby

from headwater.attribution.spans.reference import MICROBITS
from headwater.attribution.spans.values import Span, Trace
from headwater.core.canonical import digest_of
from headwater.core.errors import InvalidError
from headwater.core.money import allocate


@dataclass(frozen=True, slots=True)
class CreditRules:
    """How spans are paid; the digest goes into the receipt."""

    floor_microbits: int = 80 * MICROBITS  # taken off every run: boilerplate and chance matches stay under it

    def __post_init__(self) -> None:
        if not 0 <= self.floor_microbits < 2**50:
            raise InvalidError(
                f"floor of {self.floor_microbits} micro-bits is out of range",
                code="credit_rules_invalid",
                fix="use 0 to 2^50",
            )

    @property
    def digest(self) -> str:
        """What the rules are."""
        return digest_of({"floor_microbits": self.floor_microbits, "version": 1})


@dataclass(frozen=True, slots=True)
class CreditPiece:
    """What one span of the text earned."""

    start: int  # bytes in the text
    end: int
    document_id: str  # who is credited: the document, or the earliest of its near-duplicates
    owner: str
    microbits: int  # > 0


@dataclass(frozen=True, slots=True)
class CreditShare:
    """What one document earned from a text."""

    document_id: str
    owner: str
    microbits: int  # > 0


@dataclass(frozen=True, slots=True)
class Credit:
    """The credited bits of one trace. Everything covered is in exactly one of its five amounts."""

    shares: tuple[CreditShare, ...]  # most first, then by id
    pieces: tuple[CreditPiece, ...]  # in text order
    unowned_microbits: int  # words of the public domain
    under_floor_microbits: int  # cut off by the floor
    excluded_microbits: int  # words of documents in the context, which earn there
    rules: str  # digest
    manifest: str  # digest of what was registered

    @property
    def microbits(self) -> int:
        """Credited in total."""
        return sum(share.microbits for share in self.shares)


Head = Callable[[Span], tuple[str, str | None]]
"""Who is credited for a span: document id and owner."""


def credit_trace(trace: Trace, rules: CreditRules, head: Head, exclude: Collection[str] = ()) -> Credit:
    """Credit the spans of a trace.

    Args:
        trace: spans in text order.
        rules: the floor.
        head: resolves near-duplicates.
        exclude: ids of documents that were in the context; their words earn nothing here.
    """
    unowned = under = excluded = 0
    pieces: list[CreditPiece] = []
    totals: dict[tuple[str, str], int] = {}
    for (owner, _), run in groupby(_numbered(trace.spans, head), key=lambda item: (item[0][1], item[1])):
        spans = [(document_id, span, round(span.bits * MICROBITS)) for (document_id, _), _, span in run]
        kept = [item for item in spans if item[0] not in exclude and item[1].document_id not in exclude]
        total = sum(microbits for _, _, microbits in kept)
        excluded += sum(microbits for _, _, microbits in spans) - total
        if owner is None:
            unowned += total
            continue
        paid = max(0, total - rules.floor_microbits)
        under += total - paid
        if not paid:
            continue
        for (document_id, span, _), part in zip(kept, allocate(paid, [m for _, _, m in kept]), strict=True):
            if part:
                pieces.append(CreditPiece(span.start, span.end, document_id, owner, part))
                totals[document_id, owner] = totals.get((document_id, owner), 0) + part
    shares = sorted(
        (CreditShare(*key, microbits) for key, microbits in totals.items()), key=lambda s: (-s.microbits, s.document_id)
    )
    return Credit(tuple(shares), tuple(pieces), unowned, under, excluded, rules.digest, trace.manifest)


def _numbered(spans: tuple[Span, ...], head: Head) -> list[tuple[tuple[str, str | None], int, Span]]:
    """Each span with who is credited and the number of its unbroken stretch of covered words."""
    out, stretch, next_token = [], 0, 0
    for span in spans:
        if span.token != next_token:
            stretch += 1
        next_token = span.token + span.tokens
        out.append((head(span), stretch, span))
    return out
