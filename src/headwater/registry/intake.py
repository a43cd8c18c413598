"""Intake: a batch of candidates is checked as a whole, the good ones are admitted, the others are explained.

Pure: what is already registered is an argument. Invariants: every candidate ends in exactly one of
accepted, unchanged or problems; a batch admitted twice changes nothing the second time; bytes that
somebody else registered are never accepted under another owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from headwater.core.canonical import digest
from headwater.core.errors import InvalidError, Problem
from headwater.core.ids import ContributionId, ContributorId, contribution_id
from headwater.core.limits import CONTRIBUTION_SIZE_BYTES_MAX
from headwater.registry.contribution import Contribution, Kind, Ownership, contribute
from headwater.registry.license import License, Use


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something offered for registration, as it came: nothing about it has been checked."""

    where: str  # file and line, for the reader of a problem
    kind: Kind
    title: str
    content: bytes
    owners: tuple[Ownership, ...]
    license_expression: str
    uses: frozenset[Use]
    registered_at_ns: int
    source: str
    price_floor_units: int = 0
    expires_at_ns: int | None = None
    terms: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """What the registry already holds, as far as a batch needs it."""

    contributors: frozenset[ContributorId] = frozenset()
    contributions: Mapping[str, tuple[Contribution, ...]] = field(default_factory=dict)  # by content digest


@dataclass(frozen=True, slots=True)
class Admitted:
    """A contribution that may be registered, and its bytes."""

    contribution: Contribution
    content: bytes


@dataclass(frozen=True, slots=True)
class Intake:
    """What became of a batch."""

    accepted: tuple[Admitted, ...]
    problems: tuple[Problem, ...]
    unchanged: tuple[ContributionId, ...]  # registered before by the same owners on the same terms


def admit(candidates: Iterable[Candidate], known: Known) -> Intake:
    """Check a batch against itself and against `known`.

    Candidates are taken in order, so of two that claim the same bytes the earlier one stands.
    """
    accepted: list[Admitted] = []
    problems: list[Problem] = []
    unchanged: list[ContributionId] = []
    claimed: dict[str, tuple[Contribution, ...]] = {}
    for candidate in candidates:
        faults = _faults_of_content(candidate) + _faults_of_owners(candidate, known)
        made = _make(candidate) if not faults else None
        if isinstance(made, Problem):
            faults = (made,)
        if faults or made is None or isinstance(made, Problem):
            problems.extend(faults)
            continue
        earlier = (*known.contributions.get(made.content_digest, ()), *claimed.get(made.content_digest, ()))
        clash = _clash(candidate, made, earlier)
        if clash is not None:
            problems.append(clash)
        elif any(other.id == made.id for other in earlier):
            unchanged.append(made.id)
        else:
            accepted.append(Admitted(made, candidate.content))
            claimed[made.content_digest] = (*claimed.get(made.content_digest, ()), made)
    return Intake(tuple(accepted), tuple(problems), tuple(unchanged))


def _faults_of_content(candidate: Candidate) -> tuple[Problem, ...]:
    where, size_bytes = candidate.where, len(candidate.content)
    if size_bytes > CONTRIBUTION_SIZE_BYTES_MAX:
        message = f"content of {size_bytes} bytes is over the limit of {CONTRIBUTION_SIZE_BYTES_MAX}"
        return (Problem(where, "content_too_large", message, "split it, or register a manifest with its digest"),)
    try:
        text = candidate.content.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte {candidate.content[error.start]:#04x} at offset {error.start}"
        return (Problem(where, "content_not_utf8", message, "save it as UTF-8 text"),)
    if not text.strip("\ufeff \t\r\n\f\v"):
        return (Problem(where, "content_empty", f"content is empty ({size_bytes} bytes)", "leave it out or fill it"),)
    if "\x00" in text:
        return (Problem(where, "content_binary", "content holds zero bytes", "register text, or a manifest"),)
    return ()


def _faults_of_owners(candidate: Candidate, known: Known) -> tuple[Problem, ...]:
    strangers = [o.contributor_id for o in candidate.owners if o.contributor_id not in known.contributors]
    return tuple(
        Problem(candidate.where, "owner_unknown", f"owner {stranger} is not a contributor", "add the contributor first")
        for stranger in strangers
    )


def _make(candidate: Candidate) -> Contribution | Problem:
    try:
        return contribute(
            candidate.kind,
            candidate.content,
            title=candidate.title,
            owners=candidate.owners,
            license=License(
                candidate.license_expression,
                candidate.uses,
                candidate.price_floor_units,
                candidate.expires_at_ns,
                candidate.terms,
            ),
            registered_at_ns=candidate.registered_at_ns,
            source=candidate.source,
            metadata=candidate.metadata,
        )
    except InvalidError as error:
        return Problem(candidate.where, error.code, error.message, error.fix or "correct it and add it again")


def _clash(candidate: Candidate, made: Contribution, earlier: tuple[Contribution, ...]) -> Problem | None:
    """A contradiction between `made` and a contribution of the same bytes; none when they agree."""
    owners = {owner.contributor_id for owner in made.owners}
    for other in earlier:
        if {owner.contributor_id for owner in other.owners} != owners:
            message = f"the same bytes are registered as {other.id} ({other.title!r}) by other owners"
            return Problem(
                candidate.where, "content_of_another_owner", message, "only the first to register them can own them"
            )
        if other.id == made.id and (other.owners, other.license) != (made.owners, made.license):
            message = f"registered as {other.id} with other shares or another licence ({other.license.expression})"
            return Problem(candidate.where, "terms_differ", message, "use the terms it was registered with")
    return None


def content_digest(candidate: Candidate) -> str:
    """The digest under which `Known` must hold what is already registered of these bytes."""
    return digest(candidate.content)


def content_id(candidate: Candidate) -> ContributionId:
    """The id this candidate would have as a contribution."""
    return contribution_id(candidate.kind, candidate.content)
