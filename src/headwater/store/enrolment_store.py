"""Enrolment carried out: claims, anchors, vouches and objections on record, and escrow released when a claim holds.

Invariants: what was said is never changed; a contributor is enrolled, and its escrow released, in the commit that ends
the claim; deadlines are counted on the deadline clock. What epochs held for the contributor so far enters the next
root: totals are kept by holder, enrolled or not. Knows nothing of how proofs are looked up.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from headwater import ledger as books
from headwater.core.canonical import canonical
from headwater.core.errors import ConflictError, InvalidError, MissingError, RefusedError
from headwater.core.ids import AccountId, ContributionId, ContributorId
from headwater.core.instants import DAY_NS
from headwater.ledger import Code, Kind, parse_account
from headwater.registry.clusters import Probation
from headwater.registry.contribution import Contribution, Ownership, check_owners
from headwater.registry.enrolment import (
    PERIOD_NS,
    Agreement,
    Claim,
    Proof,
    Seams,
    Standing,
    State,
    check_agreement,
    check_anchor,
    claim_of,
    prove,
    state,
)
from headwater.store.cluster_store import ClusterStore
from headwater.store.database import Sql
from headwater.store.deadline_clock import DeadlineClock
from headwater.store.dispute_store import DisputeStore
from headwater.store.ledger_store import Ledger
from headwater.store.registry_store import RegistryStore

CLOCK = "enrolment"
PROBATION = Probation(days=PERIOD_NS // DAY_NS)
"""What is asked of somebody new: the public period, and twice that when it was found to act with others."""

WORDS_MAX = 1_000

_STEPS = (
    """
    CREATE TABLE enrolment_anchors (
      contributor_id TEXT NOT NULL REFERENCES contributors (id),
      kind TEXT NOT NULL,
      value TEXT NOT NULL,
      source TEXT NOT NULL,
      at_ns INTEGER NOT NULL,
      PRIMARY KEY (contributor_id, kind, value)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE enrolment_claims (
      number INTEGER PRIMARY KEY,
      id TEXT NOT NULL UNIQUE,
      contributor_id TEXT NOT NULL REFERENCES contributors (id),
      address TEXT NOT NULL,
      opened_at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE enrolment_events (
      claim TEXT NOT NULL REFERENCES enrolment_claims (id),
      number INTEGER NOT NULL,
      kind TEXT NOT NULL CHECK (kind IN ('shown', 'for', 'against', 'objected', 'granted', 'refused')),
      detail TEXT NOT NULL,
      at_ns INTEGER NOT NULL,
      PRIMARY KEY (claim, number)
    ) STRICT, WITHOUT ROWID;
    """,
    "".join(
        f"""
        CREATE TRIGGER {table}_stay_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, 'what was said of an enrolment is never changed'); END;
        """
        for table in ("enrolment_anchors", "enrolment_claims", "enrolment_events")
        for verb in ("UPDATE", "DELETE")
    ),
    """
    CREATE TABLE spokesmen (
      contributor_id TEXT NOT NULL REFERENCES contributors (id),
      account TEXT NOT NULL,
      by_whom TEXT NOT NULL,
      at_ns INTEGER NOT NULL,
      PRIMARY KEY (contributor_id, account)
    ) STRICT, WITHOUT ROWID;
    """,
)


@dataclass(frozen=True, slots=True)
class Record:
    """A claim, what was said about it, and where it stands."""

    claim: Claim
    standing: Standing
    state: State
    shown: tuple[tuple[str, str], ...]  # (kind, value) that proofs showed control of
    objections: tuple[tuple[str, str], ...]  # (by whom, why)


class Enrolments:
    """The enrolments of a home."""

    def __init__(self, database: Sql, registry: RegistryStore, ledger: Ledger, currency: str, seams: Seams) -> None:
        self._db, self._registry, self._ledger, self._currency = database, registry, ledger, currency
        self._seams, self._clock = seams, DeadlineClock(database, CLOCK)
        self._judges = DisputeStore(database)
        database.migrate("enrolment", _STEPS)

    # Anchors

    def anchor(self, contributor: ContributorId, kind: str, value: str, source: str, now_ns: int) -> tuple[str, str]:
        """Record a fact by which a contributor can be recognised later; `source` says where it is known from.

        Raises:
            MissingError: no such contributor.
            InvalidError: not written as its kind is.
            RefusedError: the contributor has an open claim: facts are recorded beforehand.
        """
        plain = check_anchor(kind, value)
        _check_words(source)
        with self._db.transaction():
            self._registry.contributor(contributor)
            if any(record.state in ("waiting", "contested") for record in self.claims(now_ns, contributor)):
                raise RefusedError(
                    f"{contributor} has an open claim", code="anchor_late", fix="let reviewers vouch for the claim"
                )
            self._db.execute(
                "INSERT INTO enrolment_anchors VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (contributor, kind, plain, source, now_ns),
            )
        return kind, plain

    def anchors(self, contributor: ContributorId) -> tuple[tuple[str, str, str], ...]:
        """(kind, value, source) of what is known about a contributor."""
        rows = self._db.query(
            "SELECT kind, value, source FROM enrolment_anchors WHERE contributor_id = ? ORDER BY kind, value",
            (contributor,),
        )
        return tuple((kind, value, source) for kind, value, source in rows)

    def let_speak(self, contributor: ContributorId, account: AccountId, by_whom: str, now_ns: int) -> None:
        """Record that whoever holds the key of a payer's account speaks for a contributor.

        Raises:
            MissingError: no such contributor.
            InvalidError: not a payer's account.
        """
        _check_words(by_whom)
        if parse_account(account).kind is not Kind.PAYER:
            raise InvalidError(f"{account} is no key's", code="account_invalid", fix="name a payer: account")
        self._registry.contributor(contributor)
        self._db.execute(
            "INSERT INTO spokesmen VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (contributor, account, by_whom, now_ns)
        )

    def speaks(self, contributor: ContributorId, account: AccountId) -> bool:
        """Whether the key of an account speaks for a contributor."""
        return bool(
            self._db.query("SELECT 1 FROM spokesmen WHERE contributor_id = ? AND account = ?", (contributor, account))
        )

    # Claims

    def open(self, contributor: ContributorId, address: str, now_ns: int) -> Record:
        """Begin a claim; its statement is what the claimant then signs or publishes.

        Raises:
            MissingError: no such contributor.
            ConflictError: enrolled already, or that address claims already.
        """
        at = self._clock.counted(now_ns)
        with self._db.transaction():
            known = self._registry.contributor(contributor)
            if known.enrolled:
                raise ConflictError(
                    f"{known.name!r} is enrolled with {known.payout_address}",
                    code="already_enrolled",
                    fix="a claim that is wrong is disputed",
                )
            claim = claim_of(contributor, address, at)
            for other in self.claims(now_ns, contributor):
                if other.claim.address == claim.address and other.state in ("waiting", "contested"):
                    raise ConflictError(
                        f"{other.claim.id} claims {contributor} for that address", code="claim_open", fix="prove that"
                    )
            self._db.execute(
                "INSERT INTO enrolment_claims (id, contributor_id, address, opened_at_ns) VALUES (?, ?, ?, ?)",
                (claim.id, contributor, claim.address, at),
            )
        return self.get(claim.id, now_ns)

    def prove(self, id: str, proof: Proof, now_ns: int) -> Record:
        """Check a proof and keep what it shows; a claim may be proved in several ways.

        Raises:
            InvalidError: it does not fit.
            ConflictError: the claim has ended.
            UpstreamError: a domain could not be asked.
        """
        record = self._still_open(id, now_ns)
        name = self._registry.contributor(record.claim.contributor).name
        shown = prove(record.claim, name, proof, self._seams)
        with self._db.transaction():
            record = self._still_open(id, now_ns)
            for one in shown:
                self._say(id, "shown", {"kind": one[0], "value": one[1], "method": proof.method}, now_ns)
            if self._is_anchored(record.claim.contributor, shown):
                # Two who both prove it contradict each other; somebody has to look.
                for other in self.claims(now_ns, record.claim.contributor):
                    if other.claim.id != id and other.state in ("waiting", "contested") and other.standing.proved:
                        for mine, theirs in ((id, other.claim.id), (other.claim.id, id)):
                            self._say(mine, "objected", {"by": theirs, "why": "another claim is proved"}, now_ns)
        return self.get(id, now_ns)

    def vouch(self, id: str, reviewer: ContributorId, for_: bool, reason: str, now_ns: int) -> Record:
        """A reviewer says whether the claimant is who it says.

        Raises:
            RefusedError: no reviewer, or the claimant.
            ConflictError: it vouched before, or the claim has ended.
        """
        _check_words(reason)
        with self._db.transaction():
            record = self._still_open(id, now_ns)
            if reviewer not in self._judges.reviewers() or reviewer == record.claim.contributor:
                raise RefusedError(
                    f"{reviewer} may not vouch in {id}", code="not_a_reviewer", fix="let reviewers of disputes vouch"
                )
            if reviewer in (*record.standing.for_, *record.standing.against):
                raise ConflictError(f"{reviewer} has vouched in {id}", code="already_vouched", fix="a word stands")
            self._say(id, "for" if for_ else "against", {"by": reviewer, "why": reason}, now_ns)
        return self.get(id, now_ns)

    def object(self, id: str, by: str, reason: str, now_ns: int) -> Record:
        """Anybody objects: reviewers must then decide.

        Raises:
            ConflictError: the claim has ended.
        """
        _check_words(by)
        _check_words(reason)
        with self._db.transaction():
            self._still_open(id, now_ns)
            self._say(id, "objected", {"by": by, "why": reason}, now_ns)
        return self.get(id, now_ns)

    def settle_due(self, now_ns: int) -> tuple[tuple[Claim, int], ...]:
        """End what is due: (claim, nano units released) for each that was granted now."""
        at, granted = self._clock.counted(now_ns), []
        clusters = {member: one for one in ClusterStore(self._db).clusters() for member in one.members}
        for record in self.claims(now_ns):
            if record.standing.ended is not None or record.state not in ("granted", "refused"):
                continue
            known_as = clusters.get(record.claim.contributor)
            if record.state == "granted" and at < PROBATION.release_at_ns(record.claim.opened_at_ns, known_as):
                continue  # found to act with others, and did not say so
            with self._db.transaction():
                known = self._registry.contributor(record.claim.contributor)
                held = known.payout_address in (None, record.claim.address) and record.state == "granted"
                self._say(record.claim.id, "granted" if held else "refused", {}, at)
                if held:
                    units = self._release(record.claim, now_ns)
                    granted.append((record.claim, units))
        return tuple(granted)

    def _release(self, claim: Claim, now_ns: int) -> int:
        """Enrol, and move what waits in escrow to the contributor's own account; gives nano units."""
        self._registry.enroll(claim.contributor, claim.address)
        escrow = f"escrow:{claim.contributor}"
        waiting = self._ledger.balance(escrow, self._currency).available_units
        if waiting:
            draft = books.enroll(claim.contributor, waiting, asset=self._currency, cause=f"enroll:{claim.id}")
            assert draft.code is Code.ENROLL
            self._ledger.post([draft], key=f"enroll:{claim.id}", at_ns=now_ns)
        return waiting

    # Reading

    def get(self, id: str, now_ns: int) -> Record:
        """A claim as it stands.

        Raises:
            MissingError: there is none.
        """
        rows = self._db.query("SELECT contributor_id, address, opened_at_ns FROM enrolment_claims WHERE id = ?", (id,))
        if not rows:
            raise MissingError(f"no enrolment {id[:80]!r}", code="enrolment_missing", fix="see `headwater enrol list`")
        claim = Claim(id, ContributorId(rows[0][0]), rows[0][1], rows[0][2])
        events = [
            (kind, json.loads(detail), at)
            for kind, detail, at in self._db.query(
                "SELECT kind, detail, at_ns FROM enrolment_events WHERE claim = ? ORDER BY number", (id,)
            )
        ]
        shown = tuple((detail["kind"], detail["value"]) for kind, detail, _ in events if kind == "shown")
        objected = [(detail["by"], detail["why"], at) for kind, detail, at in events if kind == "objected"]
        ended = [kind for kind, _, _ in events if kind in ("granted", "refused")]
        standing = Standing(
            self._is_anchored(claim.contributor, shown),
            tuple(detail["by"] for kind, detail, _ in events if kind == "for"),
            tuple(detail["by"] for kind, detail, _ in events if kind == "against"),
            objected[0][2] if objected else None,
            ended[0] if ended else None,
        )
        now = state(claim, standing, self._clock.counted(now_ns))
        return Record(claim, standing, now, shown, tuple((by, why) for by, why, _ in objected))

    def claims(self, now_ns: int, contributor: ContributorId | None = None) -> tuple[Record, ...]:
        """Every claim, oldest first; those of one contributor if given."""
        where, params = ("", ()) if contributor is None else (" WHERE contributor_id = ?", (contributor,))
        rows = self._db.query(f"SELECT id FROM enrolment_claims{where} ORDER BY number", params)
        return tuple(self.get(row[0], now_ns) for row in rows)

    def _still_open(self, id: str, now_ns: int) -> Record:
        record = self.get(id, now_ns)
        if record.standing.ended is not None or record.state == "refused":
            raise ConflictError(f"{id} is {record.state}", code="enrolment_ended", fix="open another claim")
        return record

    def _is_anchored(self, contributor: ContributorId, shown: Sequence[tuple[str, str]]) -> bool:
        return bool({(kind, value) for kind, value, _ in self.anchors(contributor)} & set(shown))

    def _say(self, id: str, kind: str, detail: dict[str, str], now_ns: int) -> None:
        self._db.execute(
            "INSERT INTO enrolment_events VALUES (?, (SELECT count(*) FROM enrolment_events WHERE claim = ?), ?, ?, ?)",
            (id, id, kind, canonical(detail).decode(), self._clock.counted(now_ns)),
        )

    # Shares that co-authors agree on

    def agreement(self, contribution: ContributionId, owners: Sequence[Ownership]) -> Agreement:
        """What everybody concerned has to sign for `owners` to own a contribution.

        Raises:
            MissingError: no such contribution or contributor.
            InvalidError: shares that do not sum to the whole.
        """
        check_owners(owners)
        for owner in owners:
            self._registry.contributor(owner.contributor_id)
        return Agreement(contribution, tuple(owners), len(self._registry.owner_history(contribution)) - 1)

    def agree(
        self, contribution: ContributionId, owners: Sequence[Ownership], signatures: Sequence[str], now_ns: int
    ) -> Contribution:
        """Give a contribution other owners, with the signatures of all before and after.

        Raises:
            RefusedError: somebody concerned has not signed, or has not enrolled.
            InvalidError: a signature of somebody else.
        """
        agreement = self.agreement(contribution, owners)
        before = {owner.contributor_id for owner in self._registry.get(contribution).owners}
        people = sorted(before | {owner.contributor_id for owner in owners})
        addresses = [(one, self._registry.contributor(one).payout_address) for one in people]
        check_agreement(agreement, signatures, addresses, self._seams.recover)
        return self._registry.change_owners(contribution, owners, cause=agreement.id, now_ns=now_ns)


def _check_words(text: str) -> None:
    if not 0 < len(text.strip()) <= WORDS_MAX or not text.isprintable():
        raise InvalidError(
            f"a text of {len(text)} characters",
            code="enrolment_invalid",
            fix=f"give 1 to {WORDS_MAX} printable characters",
        )
