"""Contributions: every registered thing that an answer may owe something to, with its owners and terms.

Invariants: owners' shares are positive and sum to 10^9; owners are distinct; the id follows from the
kind and the bytes. What is large (adapter or base-model weights) is registered as a small manifest
that holds its digest. Knows nothing of where the bytes are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from headwater.core.canonical import Json, digest, digest_of
from headwater.core.errors import InvalidError
from headwater.core.ids import ContributionId, ContributorId, contribution_id
from headwater.core.instants import format_instant, parse_instant
from headwater.core.limits import CONTRIBUTION_OWNERS_MAX, CONTRIBUTION_SIZE_BYTES_MAX, CONTRIBUTION_TITLE_CHARS_MAX
from headwater.core.money import PPB, allocate
from headwater.registry.license import License

Kind = Literal["document", "prompt", "feedback", "adapter", "base_model", "tool", "review"]

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Ownership:
    """One owner's part of a contribution."""

    contributor_id: ContributorId
    share_ppb: int  # 1..10**9; all shares of a contribution sum to 10**9


@dataclass(frozen=True, slots=True)
class Contribution:
    """One registered thing. The bytes themselves are kept under `content_digest`."""

    id: ContributionId
    kind: Kind
    title: str
    content_digest: str  # sha256:…
    size_bytes: int
    owners: tuple[Ownership, ...]  # in the order they were given; that order breaks ties of a division
    license: License
    registered_at_ns: int  # the earliest claim wins where two hold the same words
    source: str  # where it came from, in words or a relative path
    metadata: tuple[tuple[str, str], ...] = ()  # sorted by key

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", tuple(sorted(self.metadata)))
        if self.kind not in KINDS:
            raise InvalidError(
                f"unknown kind {self.kind!r}", code="kind_unknown", fix=f"choose from {', '.join(KINDS)}"
            )
        check_title(self.title)
        check_owners(self.owners)
        check_size(self.size_bytes)
        if len(dict(self.metadata)) != len(self.metadata) or not all(key.isascii() for key, _ in self.metadata):
            raise InvalidError(
                f"metadata keys of {self.id} are repeated or not ASCII",
                code="metadata_invalid",
                fix="use each ASCII key once",
            )

    def meta(self, key: str) -> str | None:
        """The metadata under `key`, if there is any."""
        return dict(self.metadata).get(key)


def contribute(
    kind: Kind,
    content: bytes,
    *,
    title: str,
    owners: Sequence[Ownership],
    license: License,
    registered_at_ns: int,
    source: str,
    metadata: Iterable[tuple[str, str]] = (),
) -> Contribution:
    """The contribution that `content` is: id, digest and size follow from the bytes.

    Raises:
        InvalidError: shares, owners, title or size that no contribution may have.
    """
    return Contribution(
        id=contribution_id(kind, content),
        kind=kind,
        title=" ".join(title.split()),
        content_digest=digest(content),
        size_bytes=len(content),
        owners=tuple(owners),
        license=license,
        registered_at_ns=registered_at_ns,
        source=source,
        metadata=tuple(metadata),
    )


def equal_shares(count: int) -> tuple[int, ...]:
    """`count` shares in ppb that are equal to within one and sum to 10^9.

    >>> equal_shares(3)
    (333333334, 333333333, 333333333)
    """
    return allocate(PPB, [1] * count)


def owned_equally(owners: Sequence[ContributorId]) -> tuple[Ownership, ...]:
    """Each of `owners`, in order, with an equal share."""
    return tuple(Ownership(owner, share) for owner, share in zip(owners, equal_shares(len(owners)), strict=True))


def check_owners(owners: Sequence[Ownership]) -> None:
    """Refuse owners that cannot be paid without loss or doubt.

    Raises:
        InvalidError: none or too many, one twice, a share below 1 ppb, or a sum other than 10^9.
    """
    names = [owner.contributor_id for owner in owners]
    total = sum(owner.share_ppb for owner in owners)
    if not 1 <= len(owners) <= CONTRIBUTION_OWNERS_MAX:
        raise InvalidError(
            f"{len(owners)} owners", code="owners_count", fix=f"name 1 to {CONTRIBUTION_OWNERS_MAX} owners"
        )
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InvalidError(
            f"owner {twice[0]} is named twice", code="owner_repeated", fix="name each owner once, shares added up"
        )
    if min(owner.share_ppb for owner in owners) < 1:
        raise InvalidError("an owner's share is below 1 ppb", code="shares_not_positive", fix="leave that owner out")
    if total != PPB:
        raise InvalidError(
            f"owners' shares sum to {total} ppb", code="shares_do_not_sum", fix=f"make them sum to {PPB} ppb"
        )


def check_title(title: str) -> None:
    """Refuse a title that cannot be shown.

    Raises:
        InvalidError: empty or too long.
    """
    if not title.strip() or len(title) > CONTRIBUTION_TITLE_CHARS_MAX:
        raise InvalidError(
            f"title {title[:60]!r} has {len(title.strip())} characters",
            code="title_invalid",
            fix=f"give 1 to {CONTRIBUTION_TITLE_CHARS_MAX} characters",
        )


def check_size(size_bytes: int) -> None:
    """Refuse content beyond the limit.

    Raises:
        InvalidError: empty, or over the limit.
    """
    if not 0 < size_bytes <= CONTRIBUTION_SIZE_BYTES_MAX:
        raise InvalidError(
            f"content of {size_bytes} bytes", code="content_size", fix=f"give 1 to {CONTRIBUTION_SIZE_BYTES_MAX} bytes"
        )


def describe(contribution: Contribution) -> Json:
    """The contribution as canonical JSON can hold it: instants as text, amounts as decimal strings."""
    terms = contribution.license
    return {
        "id": contribution.id,
        "kind": contribution.kind,
        "title": contribution.title,
        "content_digest": contribution.content_digest,
        "size_bytes": contribution.size_bytes,
        "owners": [{"contributor_id": o.contributor_id, "share_ppb": o.share_ppb} for o in contribution.owners],
        "license": {
            "expression": terms.expression,
            "uses": sorted(terms.uses),
            "price_floor_units": str(terms.price_floor_units),
            "expires_at": None if terms.expires_at_ns is None else format_instant(terms.expires_at_ns),
            "terms": terms.terms,
        },
        "registered_at": format_instant(contribution.registered_at_ns),
        "source": contribution.source,
        "metadata": dict(contribution.metadata),
    }


def read_description(value: Json) -> Contribution:
    """The contribution that `describe` described so.

    Raises:
        InvalidError: ``description_invalid``, or what the fields themselves refuse.
    """
    try:
        terms = value["license"]
        made = Contribution(
            id=ContributionId(value["id"]),
            kind=value["kind"],
            title=value["title"],
            content_digest=value["content_digest"],
            size_bytes=value["size_bytes"],
            owners=tuple(Ownership(ContributorId(o["contributor_id"]), o["share_ppb"]) for o in value["owners"]),
            license=License(
                terms["expression"],
                frozenset(terms["uses"]),
                int(terms["price_floor_units"]),
                None if terms["expires_at"] is None else parse_instant(terms["expires_at"]),
                terms["terms"],
            ),
            registered_at_ns=parse_instant(value["registered_at"]),
            source=value["source"],
            metadata=tuple(value["metadata"].items()),
        )
        if describe(made) != value:
            raise ValueError("fields that a contribution does not have")
        return made
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidError(
            f"not a contribution's description: {str(error)[:200]}",
            code="description_invalid",
            fix="use it as it was exported",
        ) from None


def registry_digest(records: Iterable[tuple[ContributionId, str]]) -> str:
    """Digest of a registry from (contribution id, digest of its description), in whatever order they come.

    Contributors are not part of it: enrolling somebody changes no evidence.
    """
    return digest_of({"version": 1, "contributions": [list(record) for record in sorted(records)]})


def snapshot_digest(contributions: Iterable[Contribution]) -> str:
    """Digest of the registry that holds exactly `contributions`."""
    return registry_digest((c.id, digest_of(describe(c))) for c in contributions)
