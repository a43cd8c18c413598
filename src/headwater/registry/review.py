"""Review: who may look at what, who is drawn for it, and what their votes decide.

Who reviews is neither the contributor nor the datanet's owner, nor of a cluster with one of them. Reviewers are drawn
by a public value: everybody who has it, the submission's id and the list of reviewers draws the same ones. Invariants:
nobody is drawn twice for a task, nor for an appeal of what they decided; an odd quorum that has voted always decides.
Knows nothing of clocks, databases or money.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from headwater.core.errors import InvalidError
from headwater.core.ids import ContributorId

Verdict = Literal["accept", "refuse"]

Reason = Literal[
    "duplicate",
    "harmful",
    "low_quality",
    "not_own_work",
    "off_topic",
    "personal_data",
    "wrong_language",
    "wrong_license",
]
"""Why something is refused; a word about it may be added."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
NOTE_CHARS_MAX: Final = 1_000
PUBLIC_VALUE_CHARS_MAX: Final = 500
PPM: Final = 1_000_000
SAMPLE_REFUSED_PPM_MAX: Final = 100_000
"""When more than this of a sample is refused, so is the rest of its batch."""


@dataclass(frozen=True, slots=True)
class Vote:
    """What one reviewer says of one task."""

    reviewer: ContributorId
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise _wrong(f"verdict {self.verdict!r}", "vote accept or refuse")
        if strange := sorted(set(self.reasons) - set(REASONS)):
            raise _wrong(f"reason {strange[0][:60]!r}", f"choose from {', '.join(REASONS)}")
        if self.verdict == "refuse" and not self.reasons:
            raise _wrong("no reason to refuse", f"give one or more of {', '.join(REASONS)}")
        if self.verdict == "accept" and self.reasons:
            raise _wrong("a reason to refuse, and accept", "put what you have to say into the note")
        if len(self.note) > NOTE_CHARS_MAX or not self.note.replace("\n", "").isprintable():
            raise _wrong(f"a note of {len(self.note)} characters", f"use at most {NOTE_CHARS_MAX} printable ones")
        object.__setattr__(self, "reasons", tuple(sorted(set(self.reasons))))


@dataclass(frozen=True, slots=True)
class Parties:
    """Whose interest in a submission keeps them from judging it."""

    contributors: frozenset[ContributorId]
    owner: ContributorId  # of the datanet


def eligible(
    reviewers: Iterable[ContributorId],
    parties: Parties,
    cluster_of: Mapping[ContributorId, str],
    seen: Collection[ContributorId] = (),
) -> tuple[ContributorId, ...]:
    """Those of `reviewers` who may judge.

    Args:
        cluster_of: the identity cluster of people who are known to act together; one without is their own.
        seen: who has been asked before, for this task or for what it is an appeal of.
    """
    barred = {*parties.contributors, parties.owner}
    clusters = {cluster_of[one] for one in barred if one in cluster_of}
    return tuple(
        one for one in reviewers if one not in barred and one not in seen and cluster_of.get(one) not in clusters
    )


def drawing_order(seed: bytes, task: str, reviewers: Iterable[ContributorId]) -> tuple[ContributorId, ...]:
    """All of `reviewers` in the order in which a task asks them: by SHA-256 of seed, task and name.

    The first `quorum` of them are asked; when one does not answer in time, the next one is.
    """
    return tuple(sorted(reviewers, key=lambda one: hashlib.sha256(seed + f"\x00{task}\x00{one}".encode()).digest()))


def one_of_each_cluster(
    ordered: Sequence[ContributorId], cluster_of: Mapping[ContributorId, str], asked: Iterable[ContributorId] = ()
) -> tuple[ContributorId, ...]:
    """`ordered` without those of a cluster that comes before them, or that was asked: a cluster has one vote."""
    taken = {cluster_of[one] for one in asked if one in cluster_of}
    kept: list[ContributorId] = []
    for one in ordered:
        cluster = cluster_of.get(one)
        if cluster is None or cluster not in taken:
            kept.append(one)
        if cluster is not None:
            taken.add(cluster)
    return tuple(kept)


def seed_of(public_value: str) -> bytes:
    """The seed that a public value gives, 32 bytes.

    Raises:
        InvalidError: empty or too long.
    """
    if not 0 < len(public_value) <= PUBLIC_VALUE_CHARS_MAX or not public_value.isprintable():
        raise _wrong(f"a public value of {len(public_value)} characters", "give a block hash or a beacon's value")
    return hashlib.sha256(b"headwater review seed\x00" + public_value.encode()).digest()


def sample(seed: bytes, batch: str, rows: int, sample_max: int) -> tuple[int, ...]:
    """The rows of a batch that people look at: all, or those with the smallest SHA-256 of seed, batch and row.

    >>> sample(b"", "batch", 3, 5)
    (0, 1, 2)
    """
    if rows <= sample_max:
        return tuple(range(rows))
    ranked = sorted((hashlib.sha256(seed + f"\x00{batch}\x00{row}".encode()).digest(), row) for row in range(rows))
    return tuple(sorted(row for _, row in ranked[:sample_max]))


def tally(verdicts: Iterable[Verdict], quorum: int, *, over: bool) -> Verdict | None:
    """What votes decide: a majority once `quorum` have voted or, when time is `over`, of more than half of a quorum.

    None while it is undecided; at the end also when too few voted or the votes tie.
    """
    votes = list(verdicts)
    for_, against = votes.count("accept"), votes.count("refuse")
    if len(votes) < quorum and not (over and 2 * len(votes) > quorum):
        return None
    return "accept" if for_ > against else "refuse" if against > for_ else None


def follows(accepted: int, refused: int) -> Verdict | None:
    """What becomes of the items of a batch that nobody looked at, by those that somebody did; None when nobody did."""
    if not accepted + refused:
        return None
    return "accept" if refused * PPM <= SAMPLE_REFUSED_PPM_MAX * (accepted + refused) else "refuse"


def _wrong(what: str, fix: str) -> InvalidError:
    return InvalidError(f"a review with {what}", code="review_invalid", fix=fix)
