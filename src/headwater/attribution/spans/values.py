"""What goes into a span index and what comes out of it. Values only; knows nothing of how they are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headwater.core.errors import InvalidError

DOCUMENT_ID_BYTES_MAX = 512
OWNER_BYTES_MAX = 512


def raw_of(text: str | bytes) -> bytes:
    """The bytes of a text; lone surrogates of a `str` read as separators.

    Raises:
        InvalidError: neither `str` nor `bytes`.
    """
    if isinstance(text, bytes):
        return text
    if isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    raise InvalidError(
        f"a text is {type(text).__name__}, not str or bytes", code="text_invalid", fix="give text, or its UTF-8 bytes"
    )


def several(texts: Sequence[str | bytes]) -> Sequence[str | bytes]:
    """The texts of a batch.

    Raises:
        InvalidError: one text, which would be taken for a sequence of its characters.
    """
    if isinstance(texts, str | bytes):
        raise InvalidError("a batch is one text", code="text_invalid", fix="give a list of texts")
    return texts


@dataclass(frozen=True, slots=True)
class Document:
    """A text somebody registered."""

    id: str  # unique in the index
    owner: str | None  # None: the public domain, which is first but is never paid
    registered_at: int  # ns since 1970; the earliest holder of words owns them, ties go to the smaller id
    text: str | bytes  # bytes are UTF-8; bytes that are not separate words like punctuation does

    def __post_init__(self) -> None:
        for field, held, kinds in (
            ("id", self.id, (str,)),
            ("owner", self.owner, (str, type(None))),
            ("registered_at", self.registered_at, (int,)),
            ("text", self.text, (str, bytes)),
        ):
            if not isinstance(held, kinds) or isinstance(held, bool):
                raise InvalidError(
                    f"document {self.id!r}: {field} is {type(held).__name__}",
                    code="document_invalid",
                    fix="give id and owner as str, registered_at as whole nanoseconds, text as str or bytes",
                )
        for name, value, limit in (
            ("id", self.id, DOCUMENT_ID_BYTES_MAX),
            ("owner", "-" if self.owner is None else self.owner, OWNER_BYTES_MAX),
        ):
            size = len(value.encode("utf-8", "replace"))
            if not 0 < size <= limit or not value.isprintable():
                raise InvalidError(
                    f"document {name} {value[:80]!r} has {size} bytes (1 to {limit}) or holds control characters",
                    code="document_invalid",
                    fix=f"use a printable {name} of at most {limit} bytes",
                )
        if not 0 <= self.registered_at < 2**63:
            raise InvalidError(
                f"document {self.id!r}: registered_at {self.registered_at} ns is out of range",
                code="document_invalid",
                fix="give nanoseconds since 1970-01-01T00:00:00Z, at least 0",
            )

    @property
    def raw(self) -> bytes:
        """The text as bytes; lone surrogates of a `str` read as separators."""
        return raw_of(self.text)


class Span(NamedTuple):
    """A run of the text whose words one document held first, word for word and in order."""

    start: int  # byte offset in the UTF-8 of the traced text
    end: int
    bits: float  # surprisal of its words under the frozen reference; a whole number of micro-bits
    owner: str | None  # None: public domain
    document_id: str
    document_start: int  # byte offset in the document's UTF-8
    count: int  # type: ignore[assignment]  # occurrences in the index of the rarest k-gram that gave it to this document
    cluster_id: str | None  # id of the earliest near-duplicate of the document, when there is one
    token: int  # number of its first word in the text
    tokens: int  # how many words


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the words of one text were registered first.

    Spans never overlap and lie in order. A span may be shorter than k words where an earlier owner's
    words cut into it.
    """

    spans: tuple[Span, ...]
    tokens: int
    covered_bits: float  # sum over the spans
    manifest: str  # digest of what was registered when this was traced


class Match(NamedTuple):
    """A maximal match: it occurs in the index and neither end can be moved outwards."""

    start: int  # byte offset in the text
    end: int
    tokens: int
    count: int  # type: ignore[assignment]  # occurrences


@dataclass(frozen=True, slots=True)
class Reassignment:
    """Words that changed hands because an earlier registration was proved later."""

    from_document_id: str
    to_document_id: str
    tokens: int  # k-grams, one for each place where they begin


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an `add` did."""

    documents: int
    skipped: int  # already registered, with the same owner, time and text
    tokens: int
    owned_tokens: int  # words the new documents were first with
    copied_tokens: int  # words that were somebody else's
    clusters: tuple[tuple[str, str], ...]  # (document id, id of the earliest near-duplicate) for those that joined one
    reassigned: tuple[Reassignment, ...]
    manifest: str
