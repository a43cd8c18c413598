"""Identity clusters: who acts together, as far as signs show it, and what a cluster may have flow back to itself.

A *sign* is a value that a person was seen with: a key, a payout address, where its first money came from, words that
near-copy another's, or its own word that it acts with others. People who share a sign's value are one cluster. Signs
join and never accuse: a cluster has one vote, sits on no panel about its own, and is capped as one. Whoever declares a
cluster before anybody else joins it loses nothing but the extra votes (*amnesty*).

Invariants: clusters partition people; their names do not depend on the order of signs. Knows nothing of databases.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId, ContributorId
from headwater.core.instants import DAY_NS
from headwater.core.money import PPB

SignKind = Literal["address", "key", "funding", "content", "declared"]
SIGN_KINDS: Final[tuple[SignKind, ...]] = get_args(SignKind)


@dataclass(frozen=True, slots=True)
class Sign:
    """A value that somebody was seen with. `who` is a contributor, or an account such as ``payer:key_…``."""

    who: str
    kind: SignKind
    value: str
    at_ns: int

    def __post_init__(self) -> None:
        if self.kind not in SIGN_KINDS or not self.who or not 0 < len(self.value) <= 200:
            raise InvalidError(
                f"a sign of kind {str(self.kind)[:40]!r} for {self.who[:80]!r}",
                code="sign_invalid",
                fix=f"use {', '.join(SIGN_KINDS)} and a value of 1 to 200 characters",
            )


@dataclass(frozen=True, slots=True)
class Cluster:
    """People joined by signs."""

    name: str  # cl_ and 16 hex digits, from its members
    members: tuple[str, ...]  # sorted, two or more
    kinds: tuple[SignKind, ...]  # of signs that join them
    declared: bool  # its own word joined all of it before any other sign did


def clusters(signs: Iterable[Sign]) -> tuple[Cluster, ...]:
    """Everybody whom signs join, in clusters of two or more, by name.

    >>> found = clusters([Sign("a", "key", "k", 1), Sign("b", "key", "k", 2), Sign("c", "key", "l", 3)])
    >>> [one.members for one in found]
    [('a', 'b')]
    """
    ordered = sorted(signs, key=lambda s: (s.at_ns, s.kind, s.value, s.who))
    whole = _joined(ordered)
    # Amnesty: with the declarations alone it is the same cluster, and no other sign joined two of it earlier.
    by_word = _joined([s for s in ordered if s.kind == "declared"])
    found = []
    for members in {frozenset(group) for group in whole.values() if len(group) > 1}:
        mine = [s for s in ordered if s.who in members]
        shared = Counter((s.kind, s.value) for s in {(s.who, s.kind, s.value): s for s in mine}.values())
        joining = [s for s in mine if shared[s.kind, s.value] > 1]
        last_word = max((s.at_ns for s in joining if s.kind == "declared"), default=-1)
        other = [s.at_ns for s in joining if s.kind != "declared"]
        declared = by_word.get(min(members), set()) == members and (not other or _second(joining) >= last_word)
        digest = hashlib.sha256("\x00".join(sorted(members)).encode()).hexdigest()[:16]
        kinds = tuple(kind for kind in SIGN_KINDS if any(s.kind == kind for s in joining))
        found.append(Cluster(f"cl_{digest}", tuple(sorted(members)), kinds, declared))
    return tuple(sorted(found, key=lambda one: one.name))


def _second(joining: Iterable[Sign]) -> int:
    """When a sign other than somebody's own word first joined two people."""
    seen: dict[tuple[str, str], set[str]] = {}
    for sign in joining:
        if sign.kind != "declared":
            people = seen.setdefault((sign.kind, sign.value), set())
            people.add(sign.who)
            if len(people) > 1:
                return sign.at_ns
    return 2**63


def _joined(signs: Iterable[Sign]) -> dict[str, set[str]]:
    """Everybody's group: the union of all who share a value with somebody in it."""
    groups: dict[str, set[str]] = {}
    holders: dict[tuple[str, str], str] = {}
    for sign in signs:
        mine = groups.setdefault(sign.who, {sign.who})
        first = holders.setdefault((sign.kind, sign.value), sign.who)
        theirs = groups[first]
        if theirs is not mine:
            small, large = sorted((mine, theirs), key=len)
            large |= small
            for one in small:
                groups[one] = large
    return groups


def cluster_of(found: Iterable[Cluster]) -> dict[ContributorId, str]:
    """The cluster of everybody who is in one."""
    return {ContributorId(member): one.name for one in found for member in one.members}


# What flows back


@dataclass(frozen=True, slots=True)
class Flowed:
    """Money between one payer and one payee, nano units."""

    payer: str  # account
    payee: str  # account, or contributor
    units: int


@dataclass(frozen=True, slots=True)
class SelfDealing:
    """What a cluster paid, and what came back to it."""

    cluster: str
    paid_units: int  # by its payers, for calls
    returned_units: int  # of those very payments, to itself
    rewarded_units: int  # from anywhere else: fees, awards, matching, subsidies

    @property
    def return_ppb(self) -> int:
        """θ+σ: what came back per unit paid, in ppb, rounded up."""
        return -(-(self.returned_units + self.rewarded_units) * PPB // self.paid_units) if self.paid_units else 0

    @property
    def flagged(self) -> bool:
        """Whether anything it paid came back to it."""
        return self.returned_units > 0


def self_dealing(
    paid: Iterable[Flowed], rewards: Mapping[str, int], found: Iterable[Cluster]
) -> tuple[SelfDealing, ...]:
    """What every cluster paid itself, by name; clusters that paid nothing are left out.

    Args:
        paid: for every payout of a call: who paid the call, and who is paid.
        rewards: by account or contributor, what they got that no call of theirs paid for.
    """
    of: dict[str, str] = {member: one.name for one in found for member in one.members}
    spent, back = Counter[str](), Counter[str]()
    for flow in paid:
        mine = of.get(flow.payer, flow.payer)
        spent[mine] += flow.units
        if of.get(flow.payee, flow.payee) == mine:
            back[mine] += flow.units
    extra = Counter[str]()
    for who, units in rewards.items():
        extra[of.get(who, who)] += units
    return tuple(SelfDealing(name, spent[name], back[name], extra[name]) for name in sorted(spent))


def reward_allowed(one: SelfDealing, wanted_units: int) -> int:
    """How much of a reward a cluster may be given so that θ+σ stays below 1: what it paid always exceeds what returns.

    A cluster none of whose own payments came back to it may be rewarded freely: it deals with others.

    >>> reward_allowed(SelfDealing("cl_1", 100, 60, 10), 50)
    29
    """
    if wanted_units < 0:
        raise ValueError(f"a reward of {wanted_units} nano")
    if not one.flagged:
        return wanted_units
    return max(0, min(wanted_units, one.paid_units - one.returned_units - one.rewarded_units - 1))


# Probation


@dataclass(frozen=True, slots=True)
class Probation:
    """What is asked of accounts that nobody knows yet."""

    days: int = 14  # what a new account earns waits in escrow for so long
    cluster_units: int = 20 * 10**9  # nano units that a cluster's new accounts may be released a day, together
    amnesty_days: int = 14  # a declared cluster is not held longer for having been found

    def release_at_ns(self, first_seen_ns: int, cluster: Cluster | None) -> int:
        """When what waits for a new account may be released: later for one of a cluster that did not say so."""
        held_days = self.days if cluster is None or cluster.declared else 2 * self.days
        return first_seen_ns + held_days * DAY_NS

    def released(self, waiting: Mapping[AccountId, int], of: Mapping[AccountId, str]) -> dict[AccountId, int]:
        """How much of what waits is released today, with each cluster capped as one; what is capped waits on.

        Within a cluster smaller amounts go first: a cap never keeps a small account waiting for a large one.
        """
        left: dict[str, int] = {}
        out: dict[AccountId, int] = {}
        for account, units in sorted(waiting.items(), key=lambda row: (row[1], row[0])):
            name = of.get(account, account)
            room = left.setdefault(name, self.cluster_units)
            out[account] = min(units, room)
            left[name] = room - out[account]
        return out
