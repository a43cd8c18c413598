"""Disputes: who says what is wrong, who decides it, until when, and what it costs whom. Pure rules over events.

    evidence   anybody with standing opens one, with a bond; both sides give evidence; the other side may answer, with
               a bond as large
    voting     a panel drawn by a public value decides by majority; one that does not is replaced, a limited number of
               times, and then everything stays as it was
    decided    the side that lost may appeal once, with another bond, to a larger panel of others
    final      the outcome is carried out; the loser's bonds pay the panels, and the rest goes to the winner

A case is folded from its events, which are only ever added to; what time alone must bring about is a `Step`. Every
instant is one of the deadline clock (`registry.deadlines`). Knows nothing of receipts, ledgers or databases.

Invariant: whatever comes or does not come, a case is final after at most `Rules.longest_ns`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, get_args

from headwater.core.canonical import Json, digest_of
from headwater.core.errors import ConflictError, InvalidError, RefusedError
from headwater.core.ids import AccountId, ContributionId, ContributorId
from headwater.core.instants import SECOND_NS
from headwater.core.money import BPS, NANO
from headwater.registry.contribution import Ownership, check_owners

Kind = Literal["registration", "share", "receipt"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Side = Literal["challenger", "respondent"]
Outcome = Literal["upheld", "rejected", "undecided"]
Phase = Literal["evidence", "voting", "decided", "appeal", "final", "closed"]

TEXT_CHARS_MAX: Final = 4_000
EVIDENCE_MAX: Final = 100
"""Pieces of evidence in one case."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Periods in seconds, panels in people, money in nano units. A case keeps the rules that it was opened under."""

    evidence_s: int = 7 * 86_400
    vote_s: int = 5 * 86_400
    appeal_s: int = 5 * 86_400
    panel: int = 3
    appeal_panel: int = 5
    panel_min: int = 3  # fewer who may judge are no panel
    rounds_max: int = 3  # panels of one instance
    bond_units: int = 10 * NANO  # least bond
    bond_bps: int = 1_000  # of what is disputed, when that is more
    fee_units: int = NANO  # to each member of a panel who voted

    def __post_init__(self) -> None:
        for field in fields(self):
            if type(getattr(self, field.name)) is not int or getattr(self, field.name) < 0:
                raise _wrong(f"{field.name} of {getattr(self, field.name)!r}", "use whole numbers from 0")
        if not (
            1 <= self.panel_min <= self.panel <= self.appeal_panel <= 99 and self.panel % 2 and self.appeal_panel % 2
        ):
            raise _wrong(f"panels of {self.panel} and {self.appeal_panel}", "use odd numbers, the second not smaller")
        if not 1 <= self.rounds_max <= 10:
            raise _wrong(f"{self.rounds_max} rounds", "use 1 to 10")
        if self.bond_units < self.fee_units * (self.panel + self.appeal_panel):
            raise _wrong(
                f"a bond of {self.bond_units} nano and {self.panel + self.appeal_panel} fees of {self.fee_units}",
                "the least bond must cover both panels",
            )

    def bond(self, disputed_units: int) -> int:
        """The bond for a dispute about so much."""
        return max(self.bond_units, disputed_units * self.bond_bps // BPS)  # rounded down, in the challenger's favour

    @property
    def longest_ns(self) -> int:
        """The longest that a case can take on the deadline clock."""
        return (self.evidence_s + 2 * self.rounds_max * self.vote_s + self.appeal_s) * SECOND_NS

    def to_json(self) -> Json:
        """As canonical JSON can hold it."""
        return {field.name: str(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Rules:
        """What `to_json` gave.

        Raises:
            InvalidError: unknown names, or values that are no rules.
        """
        try:
            return cls(**{name: int(number) for name, number in value.items()})
        except (TypeError, ValueError) as error:
            raise _wrong(f"rules {str(error)[:100]!r}", "use the names of the page on disputes") from None


@dataclass(frozen=True, slots=True)
class Claim:
    """What somebody says is wrong, and what should stand in its place.

    registration   `contribution` is not its owners': it is `owners`', or nobody's when that is empty
    share          its owners are right but their shares are not, or somebody is missing: it is `owners`'
    receipt        in `receipt`, the share of `contribution` is `replacement`'s, or nobody's when that is None
    """

    kind: Kind
    contribution: ContributionId
    owners: tuple[Ownership, ...] = ()
    receipt: str | None = None
    replacement: ContributionId | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise _wrong(f"kind {str(self.kind)[:40]!r}", f"choose from {', '.join(KINDS)}")
        if (self.kind == "receipt") != (self.receipt is not None) or (self.kind != "receipt" and self.replacement):
            raise _wrong(f"a {self.kind} and receipt {self.receipt}", "only a dispute of a receipt names one")
        if self.owners:
            check_owners(self.owners)
        if (bool(self.owners) and self.kind == "receipt") or (self.kind == "share" and not self.owners):
            raise _wrong(f"{len(self.owners)} owners for a {self.kind}", "a share names owners, a receipt none")

    @property
    def subject(self) -> str:
        """What only one open dispute may be about."""
        return self.contribution if self.receipt is None else f"{self.receipt}/{self.contribution}"

    def to_json(self) -> Json:
        """As canonical JSON can hold it."""
        return {
            "kind": self.kind,
            "contribution": self.contribution,
            "owners": [[owner.contributor_id, owner.share_ppb] for owner in self.owners],
            "receipt": self.receipt,
            "replacement": self.replacement,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Claim:
        """What `to_json` gave."""
        owners = tuple(Ownership(ContributorId(name), share) for name, share in value["owners"])
        return cls(value["kind"], value["contribution"], owners, value["receipt"], value["replacement"])


EventKind = Literal[
    "opened", "answered", "evidence", "drawn", "voted", "lapsed", "decided", "appealed", "final", "closed"
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a case; `detail` is JSON."""

    kind: EventKind
    at_ns: int  # of the deadline clock
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Panel:
    """Those who were drawn together."""

    members: tuple[ContributorId, ...]
    drawn_at_ns: int
    public_value: str  # what they were drawn by
    votes: tuple[tuple[ContributorId, bool, str], ...] = ()  # (who, upholds, reason), in the order they came

    def verdict(self) -> bool | None:
        """What more than half of the panel say; None while no side has that many."""
        for upholds in (True, False):
            if 2 * sum(vote[1] is upholds for vote in self.votes) > len(self.members):
                return upholds
        return None


@dataclass(frozen=True, slots=True)
class Case:
    """A dispute as its events tell it."""

    id: str
    rules: Rules
    claim: Claim
    challenger: ContributorId
    challenger_account: AccountId
    bond_units: int
    opened_at_ns: int
    phase: Phase = "evidence"
    phase_at_ns: int = 0  # when the phase began
    respondent_account: AccountId | None = None  # of whoever answered, with a bond as large
    evidence: tuple[tuple[int, str, str], ...] = ()  # (when, by whom, text)
    first: tuple[Panel, ...] = ()  # panels of the first instance
    second: tuple[Panel, ...] = ()  # panels of the appeal
    verdict: Outcome | None = None
    appellant: Side | None = None
    interested: frozenset[str] = frozenset()  # contributors who may not judge it

    @property
    def open(self) -> bool:
        """Whether it can still be decided otherwise."""
        return self.phase not in ("final", "closed")

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Those of the instance that sits."""
        return self.second if self.phase == "appeal" else self.first

    @property
    def sitting(self) -> Panel | None:
        """The panel that may vote now."""
        return self.panels[-1] if self.phase in ("voting", "appeal") and self.panels else None

    def deadline_ns(self) -> int | None:
        """When time alone moves the case on; None when it is over."""
        seconds = {
            "evidence": self.rules.evidence_s,
            "voting": self.rules.vote_s,
            "appeal": self.rules.vote_s,
            "decided": self.rules.appeal_s,
        }.get(self.phase)
        if seconds is None:
            return None
        sitting = self.sitting
        return (sitting.drawn_at_ns if sitting else self.phase_at_ns) + seconds * SECOND_NS

    def loser(self) -> Side | None:
        """Whose side the last verdict went against; None when nobody's."""
        return {"upheld": "respondent", "rejected": "challenger"}.get(self.verdict or "")  # type: ignore[return-value]


Step = Literal["draw", "redraw", "undecided", "decide", "final"]


def due(case: Case, now_ns: int) -> Step | None:
    """What must happen next without anybody doing anything; None while the case waits, or is over."""
    deadline = case.deadline_ns()
    if deadline is None:
        return None
    over = now_ns >= deadline
    if case.phase == "evidence":
        return "draw" if over else None
    if case.phase == "decided":
        return "final" if over else None
    sitting = case.sitting
    if sitting is None:
        return "draw"
    if sitting.verdict() is not None:
        return "decide"
    if not over and not (sitting.members and len(sitting.votes) == len(sitting.members)):
        return None
    return "redraw" if len(case.panels) < case.rules.rounds_max else "undecided"


def draw(
    case: Case,
    pool: Iterable[ContributorId],
    cluster_of: Mapping[ContributorId, str],
    public_value: str,
) -> tuple[ContributorId, ...]:
    """The next panel: by SHA-256 of the public value, the case, the round and the name; one of each identity cluster.

    Nobody with an interest in the case, nobody who acts together with one of them, and nobody who has sat before.

    Returns:
        An odd number of people, `panel` or `appeal_panel` of them if there are so many; none when fewer than
        `panel_min` may judge.
    """
    sat = {member for panel in (*case.first, *case.second) for member in panel.members}
    barred = {*case.interested, case.challenger, *sat}
    clusters = {cluster_of[one] for one in barred if one in cluster_of}  # type: ignore[index]
    appeal = case.phase in ("decided", "appeal")
    salt = f"{public_value}\x00{case.id}\x00{int(appeal)}\x00{len(case.second if appeal else case.first)}\x00"
    able = [one for one in pool if one not in barred and cluster_of.get(one) not in clusters]
    chosen: list[ContributorId] = []
    for one in sorted(able, key=lambda one: hashlib.sha256((salt + one).encode()).digest()):
        cluster = cluster_of.get(one)
        if cluster is None or cluster not in clusters:
            chosen.append(one)
            clusters |= {cluster} - {None}  # type: ignore[arg-type]
    wanted = case.rules.appeal_panel if appeal else case.rules.panel
    size = min(wanted, len(chosen))
    size -= 1 - size % 2
    return tuple(chosen[:size]) if size >= case.rules.panel_min else ()


@dataclass(frozen=True, slots=True)
class Costs:
    """Where the bonds of a case go; nano units. Everything that was staked is in it."""

    fees: tuple[tuple[ContributorId, int], ...]  # to those who voted
    back: tuple[tuple[Side, int], ...]  # to each side: its own bonds, and what the loser's leave


def costs(case: Case) -> Costs:
    """Who is paid what at the end.

    The panels are paid from the loser's bonds, and when those are too few from the winner's; what is left of the
    loser's goes to the winner, if the winner is the challenger or somebody answered. Nobody wins an undecided case: the
    challenger's bond pays the panels, and the rest goes back.
    """
    staked: dict[Side, int] = {"challenger": case.bond_units, "respondent": 0}
    if case.respondent_account is not None:
        staked["respondent"] += case.bond_units
    if case.appellant is not None:
        staked[case.appellant] += case.bond_units
    voters = [vote[0] for panel in (*case.first, *case.second) for vote in panel.votes]
    fees = _affordable(voters, case.rules.fee_units, sum(staked.values()))
    left = sum(units for _, units in fees)
    loser: Side = case.loser() or "challenger"
    winner: Side = "respondent" if loser == "challenger" else "challenger"
    for side in (loser, winner):
        paid = min(left, staked[side])
        staked[side] -= paid
        left -= paid
    contested = case.verdict in ("upheld", "rejected")
    if contested and (winner == "challenger" or case.respondent_account is not None):
        staked[winner] += staked[loser]
        staked[loser] = 0
    return Costs(fees, tuple((side, units) for side, units in staked.items() if units))


def _affordable(voters: Sequence[ContributorId], fee: int, units: int) -> tuple[tuple[ContributorId, int], ...]:
    """A fee for each vote while the stakes last: further rounds can cost more than what was staked for two panels."""
    paid: dict[ContributorId, int] = {}
    for voter in voters:
        if fee == 0 or units < fee:
            break
        paid[voter] = paid.get(voter, 0) + fee
        units -= fee
    return tuple(paid.items())


def dispute_id(claim: Claim, challenger: ContributorId, opened_at_ns: int) -> str:
    """The id of a case: the same words at the same instant are the same case."""
    return "dsp_" + digest_of([claim.to_json(), challenger, str(opened_at_ns)]).removeprefix("sha256:")[:32]


def fold(id: str, events: Sequence[Event]) -> Case:
    """The case that its events tell, oldest first; the first one opens it."""
    opened = events[0].detail
    case = Case(
        id=id,
        rules=Rules.from_json(opened["rules"]),
        claim=Claim.from_json(opened["claim"]),
        challenger=ContributorId(opened["challenger"]),
        challenger_account=AccountId(opened["account"]),
        bond_units=int(opened["bond_units"]),
        opened_at_ns=events[0].at_ns,
        phase_at_ns=events[0].at_ns,
        interested=frozenset(opened["interested"]),
    )
    for event in events[1:]:
        case = _next(case, event)
    return case


def _next(case: Case, event: Event) -> Case:
    detail, at = event.detail, event.at_ns
    if event.kind == "answered":
        return replace(case, respondent_account=AccountId(detail["account"]))
    if event.kind == "evidence":
        return replace(case, evidence=(*case.evidence, (at, detail["by"], detail["text"])))
    if event.kind == "drawn":
        panel = Panel(tuple(ContributorId(one) for one in detail["members"]), at, detail["public_value"])
        if case.phase in ("decided", "appeal"):
            return replace(case, phase="appeal", second=(*case.second, panel))
        return replace(case, phase="voting", phase_at_ns=at, first=(*case.first, panel))
    if event.kind == "voted":
        panels = case.panels
        vote = (ContributorId(detail["by"]), bool(detail["upholds"]), str(detail["reason"]))
        panels = (*panels[:-1], replace(panels[-1], votes=(*panels[-1].votes, vote)))
        return replace(case, second=panels) if case.phase == "appeal" else replace(case, first=panels)
    if event.kind == "decided":
        return replace(case, phase="decided", phase_at_ns=at, verdict=detail["verdict"])
    if event.kind == "appealed":
        return replace(case, phase="appeal", phase_at_ns=at, appellant=detail["side"])
    if event.kind == "final":
        return replace(case, phase="final", phase_at_ns=at, verdict=detail["verdict"])
    if event.kind == "closed":
        return replace(case, phase="closed", phase_at_ns=at)
    return case


# What may be done


def check_evidence(case: Case, by: str, text: str) -> None:
    """Refuse evidence that comes too late or says nothing.

    Raises:
        ConflictError: nothing more is heard in this phase.
        InvalidError: an empty or too long text.
    """
    if case.phase != "evidence" and not (case.phase == "appeal" and not case.second):
        raise _state(case, "more evidence", "give evidence before a panel is drawn")
    check_text(text)
    check_text(by)
    if len(case.evidence) >= EVIDENCE_MAX:
        raise _state(case, f"more than {EVIDENCE_MAX} pieces of evidence", "bring together what belongs together")


def check_answer(case: Case, account: str) -> None:
    """Refuse an answer that is not due.

    Raises:
        ConflictError: answered already, too late, or by the challenger.
    """
    if case.phase != "evidence" or case.respondent_account is not None or account == case.challenger_account:
        raise _state(case, f"an answer by {account}", "answer once, from another account, before a panel is drawn")


def check_vote(case: Case, by: ContributorId, reason: str) -> None:
    """Refuse a vote that does not count.

    Raises:
        ConflictError: no panel sits, or its vote is in.
        RefusedError: not a member of the panel.
    """
    sitting = case.sitting
    if sitting is None or sitting.verdict() is not None:
        raise _state(case, "a vote", "vote while a panel sits")
    if by not in sitting.members:
        raise RefusedError(
            f"{by} was not drawn for {case.id}", code="not_on_panel", fix="only the members of the panel vote"
        )
    if any(vote[0] == by for vote in sitting.votes):
        raise _state(case, f"a second vote of {by}", "a vote stands")
    check_text(reason)


def check_appeal(case: Case, side: Side) -> None:
    """Refuse an appeal that is not open.

    Raises:
        ConflictError: not decided, decided for this side, or appealed before.
    """
    if case.phase != "decided" or case.appellant is not None or case.loser() not in (side, None):
        raise _state(case, f"an appeal of the {side}", "the side that lost may appeal once, in time")
    if side == "respondent" and case.respondent_account is None:
        raise _state(
            case, "an appeal of somebody who never answered", "answer a dispute with a bond to have a say in it"
        )


def check_text(text: str) -> None:
    """Refuse a text that cannot be kept or shown.

    Raises:
        InvalidError: empty, too long, or with control characters.
    """
    if not 0 < len(text.strip()) <= TEXT_CHARS_MAX or not text.replace("\n", " ").isprintable():
        raise _wrong(f"a text of {len(text)} characters", f"give 1 to {TEXT_CHARS_MAX} printable characters")


def barred(names: Collection[str]) -> frozenset[str]:
    """People with an interest, as a case keeps them."""
    return frozenset(name for name in names if name)


def _state(case: Case, what: str, fix: str) -> ConflictError:
    return ConflictError(f"{case.id} is in the phase {case.phase}: {what} is refused", code="dispute_phase", fix=fix)


def _wrong(what: str, fix: str) -> InvalidError:
    return InvalidError(f"a dispute with {what}", code="dispute_invalid", fix=fix)
