"""Consent that can be taken back: withdrawal, erasure, takedown with counter-notice, and what they end.

    withdrawn   by an owner: neither served, nor trained on, nor paid from the next snapshot on; bytes stay
    erased      withdrawn, and the bytes are gone everywhere; digests stay, so that past receipts still verify
    taken down  on a third party's notice: suspended at once; the owner may counter; the claimant may then dispute

A takedown's state follows from its instants alone, so a restart changes nothing:

    suspended --(no counter within `COUNTER_NS`)--> removed
    suspended --counter--> countered --(no dispute within `WAIT_NS`)--> restored
    countered --dispute opened--> disputed --decision--> removed or restored
    any but removed --claimant gives up--> retracted

Pure: instants are arguments. Knows nothing of where bytes are, or of who may speak for an owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from headwater.core.ids import ContributionId
from headwater.core.instants import DAY_NS, format_instant
from headwater.registry.contribution import Contribution
from headwater.registry.gate import Refusal, permits
from headwater.registry.license import Use

COUNTER_NS: Final = 14 * DAY_NS
"""How long an owner has to counter a notice before the suspension becomes final."""

WAIT_NS: Final = 14 * DAY_NS
"""How long a claimant has to open a dispute after a counter-notice before the contribution is restored."""

TakedownState = Literal["suspended", "countered", "disputed", "removed", "restored", "retracted"]

SUSPENDING: Final[frozenset[TakedownState]] = frozenset(("suspended", "countered", "disputed", "removed"))
"""States in which a contribution may be put to no use."""


@dataclass(frozen=True, slots=True)
class Takedown:
    """A notice against a contribution, and what has happened since."""

    notice: str  # td_ and 32 hex digits
    contribution: ContributionId
    claimant: str  # who says that it infringes; free text, shown to the owner
    reason: str
    filed_at_ns: int
    counter: str | None = None  # the owner's answer
    countered_at_ns: int | None = None
    dispute: str | None = None  # the dispute that the claimant opened
    upheld: bool | None = None  # what the dispute decided; None until then
    retracted_at_ns: int | None = None

    def state(self, now_ns: int) -> TakedownState:
        """What holds at `now_ns`."""
        if self.retracted_at_ns is not None:
            return "retracted"
        if self.dispute is not None:
            return "disputed" if self.upheld is None else "removed" if self.upheld else "restored"
        if self.countered_at_ns is None:
            return "suspended" if now_ns < self.filed_at_ns + COUNTER_NS else "removed"
        return "countered" if now_ns < self.countered_at_ns + WAIT_NS else "restored"

    def deadline_ns(self, now_ns: int) -> int | None:
        """When the state changes by itself; None when it does not."""
        state = self.state(now_ns)
        if state == "suspended":
            return self.filed_at_ns + COUNTER_NS
        if state == "countered":
            return (self.countered_at_ns or 0) + WAIT_NS
        return None


@dataclass(frozen=True, slots=True)
class Standing:
    """What has been said about a contribution since it was registered."""

    withdrawn_at_ns: int | None = None
    erased_at_ns: int | None = None
    reason: str = ""  # given with the withdrawal or erasure
    takedowns: tuple[Takedown, ...] = ()

    def stopped(self, now_ns: int) -> tuple[str, str] | None:
        """(code, in words) of what ended every use of it before or at `now_ns`; None while nothing did."""
        if self.erased_at_ns is not None and self.erased_at_ns <= now_ns:
            return "contribution_erased", f"erased at {format_instant(self.erased_at_ns)}"
        if self.withdrawn_at_ns is not None and self.withdrawn_at_ns <= now_ns:
            why = f": {self.reason}" if self.reason else ""
            return "contribution_withdrawn", f"withdrawn at {format_instant(self.withdrawn_at_ns)}{why}"
        for one in self.takedowns:
            if one.filed_at_ns <= now_ns and (state := one.state(now_ns)) in SUSPENDING:
                return "contribution_taken_down", f"{state} by notice {one.notice}"
        return None


IN_FORCE: Final = Standing()
"""Nothing was said."""


def usable(
    contribution: Contribution, use: Use, now_ns: int, standing: Standing = IN_FORCE, offer_units: int | None = None
) -> Refusal | None:
    """Nothing when `contribution` may be put to `use` at `now_ns`: its consent stands and its licence permits it.

    Args:
        standing: of this contribution, as `store.consent_store.ConsentStore.standing` gives it.
        offer_units: as for `gate.permits`.
    """
    stopped = standing.stopped(now_ns)
    if stopped is not None:
        return Refusal(contribution.id, use, *stopped)
    return permits(contribution, use, now_ns, offer_units)


def earns(contribution: Contribution, now_ns: int, standing: Standing = IN_FORCE) -> Refusal | None:
    """Nothing while `contribution` may earn from words that an answer repeats; else why it no longer does.

    A text that is repeated without leave is still paid for; one whose owner took it back, or whose licence is
    over, is not, and neither is anybody who copied it.
    """
    stopped = standing.stopped(now_ns)
    if stopped is not None:
        return Refusal(contribution.id, "reproduce", *stopped)
    refusal = permits(contribution, "reproduce", now_ns)
    return refusal if refusal is not None and refusal.code == "license_expired" else None


AdapterRule = Literal["stop", "flag", "serve"]
"""What becomes of an adapter that learned from something withdrawn since: no longer served (the default), or
served with the fact on record, or served as before. What was erased or taken down always stops it, but for `serve`."""

ADAPTER_RULES: Final[tuple[AdapterRule, ...]] = ("stop", "flag", "serve")


@dataclass(frozen=True, slots=True)
class AdapterStanding:
    """Whether an adapter may be served, and which of what it learned from was taken back."""

    serves: bool
    flagged: tuple[tuple[ContributionId, str], ...]  # (contribution, why), in the order it was trained on


def adapter_standing(
    trained_on: Sequence[ContributionId],
    standings: Mapping[ContributionId, Standing],
    now_ns: int,
    rule: AdapterRule = "stop",
) -> AdapterStanding:
    """Whether an adapter trained on `trained_on` may be served at `now_ns`.

    >>> adapter_standing(["ctb_a"], {"ctb_a": Standing(withdrawn_at_ns=5)}, 4).serves
    True
    >>> adapter_standing(["ctb_a"], {"ctb_a": Standing(withdrawn_at_ns=5)}, 5).serves
    False
    """
    found = [(one, standings.get(one, IN_FORCE).stopped(now_ns)) for one in trained_on]
    flagged = tuple((one, stopped[1]) for one, stopped in found if stopped is not None)
    hard = any(stopped is not None and stopped[0] != "contribution_withdrawn" for _, stopped in found)
    serves = not flagged or rule == "serve" or (rule == "flag" and not hard)
    return AdapterStanding(serves, flagged)
