"""Disputes carried out: bonds staked, what is disputed held back, panels drawn, outcomes as superseding records.

    hold      every receipt that has not settled and pays the disputed share is superseded by one that pays it to
              ``disputed:<case>``, an account that no root holds; the rest of it settles as ever
    decide    `registry.dispute` says what is due; `settle_due` does it, as often as it is called
    release   each held receipt is superseded again: by what stood before, by the rightful owners, or by nobody's
    close     fees and bonds move in the commit that closes the case

Everything is booked through `headwater.corrections`, so what holds for corrections holds here: a receipt is in the log
before its money moves, nothing is booked twice, and money that has settled is not taken back. Every step may be
repeated, by another process after a crash. Knows nothing of chains: rails that stake on chain are asked by who opens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from headwater.core.errors import InvalidError, RefusedError
from headwater.core.ids import AccountId, CallId, ContributionId, ContributorId
from headwater.corrections import Books, Corrections
from headwater.ledger import correction, disputed
from headwater.receipts import Receipt, ReceiptOwner, Signer, issue
from headwater.registry import account_for
from headwater.registry.dispute import (
    Case,
    Claim,
    Outcome,
    Rules,
    Side,
    barred,
    check_answer,
    check_appeal,
    check_evidence,
    check_text,
    check_vote,
    costs,
    dispute_id,
    draw,
    due,
)
from headwater.splits.reassigning import Supplier, held, reassigned, shares_of
from headwater.store.consent_store import ConsentStore
from headwater.store.database import Sql
from headwater.store.deadline_clock import DeadlineClock
from headwater.store.dispute_store import DisputeStore
from headwater.store.unsettled_receipts import UnsettledReceipts, free_units

CLOCK = "disputes"
"""The deadline clock that cases are counted on."""


@dataclass(frozen=True, slots=True)
class Court:
    """What disputes run on; built by the layer above."""

    books: Books
    database: Sql
    signer: Signer  # of receipts
    rules: Rules
    clusters: Callable[[], Mapping[ContributorId, str]]  # who acts together
    payer_of: Callable[[CallId], AccountId]  # who paid for a call
    public_value: Callable[[], str]  # what panels are drawn by; nobody should know it when a case is opened


@dataclass(frozen=True, slots=True)
class Done:
    """What `settle_due` did."""

    held: int  # receipts
    drawn: int  # panels
    decided: int  # verdicts of an instance
    closed: int  # cases

    @property
    def anything(self) -> bool:
        """Whether it did anything."""
        return any((self.held, self.drawn, self.decided, self.closed))


class Disputes:
    """The disputes of a home. Holding and releasing need the log's writer."""

    def __init__(self, court: Court) -> None:
        self.court = court
        self.store = DisputeStore(court.database)
        self.consents = ConsentStore(court.database)
        self._clock = DeadlineClock(court.database, CLOCK)
        self._corrections = Corrections(court.books)
        self._unsettled = UnsettledReceipts(court.books.log)

    def now_ns(self) -> int:
        """The instant that counts for deadlines."""
        return self._clock.counted(self.court.books.now_ns())

    # What people do

    def open(
        self,
        claim: Claim,
        challenger: ContributorId,
        account: AccountId,
        statement: str,
        *,
        notice: str | None = None,
    ) -> Case:
        """Open a dispute: the bond is staked, and what is disputed is held back.

        Args:
            account: prepaid credit that the bond is taken from, and to which it comes back.
            notice: a countered takedown notice that this is about.

        Raises:
            MissingError: no such contribution, contributor or receipt.
            RefusedError: no standing, or not enough credit for the bond.
            ConflictError: a dispute about this is open.
        """
        check_text(statement)
        court, at = self.court, self.now_ns()
        interested = self._interested(claim, challenger, account)
        id = dispute_id(claim, challenger, at)
        bond = court.rules.bond(sum(units for _, units in self._disputed(claim)))
        with self.store.transaction():
            case = self.store.begin(
                id,
                claim.subject,
                at,
                {
                    "claim": claim.to_json(),
                    "rules": court.rules.to_json(),
                    "challenger": challenger,
                    "account": account,
                    "bond_units": str(bond),
                    "interested": sorted(interested),
                },
            )
            self._stake(case, account, "challenger", "open")
            if notice is not None:
                self.consents.contest(notice, id, court.books.now_ns())
            case = self.store.say(id, "evidence", at, {"by": challenger, "text": statement})
        self.hold(case)
        return case

    def answer(self, id: str, account: AccountId, statement: str) -> Case:
        """The other side answers, with a bond as large as the challenger's.

        Raises:
            ConflictError: it is too late, or was answered.
            RefusedError: not enough credit.
        """
        at = self.now_ns()
        with self.store.transaction():
            case = self.store.get(id)
            check_answer(case, account)
            check_text(statement)
            self._stake(case, account, "respondent", "answer")
            self.store.say(id, "answered", at, {"account": account})
            return self.store.say(id, "evidence", at, {"by": account, "text": statement})

    def evidence(self, id: str, by: str, text: str) -> Case:
        """Add a piece of evidence.

        Raises:
            ConflictError: nothing more is heard.
        """
        with self.store.transaction():
            check_evidence(self.store.get(id), by, text)
            return self.store.say(id, "evidence", self.now_ns(), {"by": by, "text": text})

    def vote(self, id: str, reviewer: ContributorId, upholds: bool, reason: str) -> Case:
        """A member of the panel that sits says what it thinks.

        Raises:
            RefusedError: not a member.
            ConflictError: no panel sits, or its vote is in.
        """
        with self.store.transaction():
            check_vote(self.store.get(id), reviewer, reason)
            detail = {"by": reviewer, "upholds": upholds, "reason": reason}
            return self.store.say(id, "voted", self.now_ns(), detail)

    def appeal(self, id: str, side: Side, statement: str) -> Case:
        """The side that lost asks for a larger panel, with a further bond from the account it staked from.

        Raises:
            ConflictError: there is nothing to appeal, or no longer.
            RefusedError: not enough credit.
        """
        at = self.now_ns()
        with self.store.transaction():
            case = self.store.get(id)
            check_appeal(case, side)
            check_text(statement)
            account = case.challenger_account if side == "challenger" else case.respondent_account
            assert account is not None
            self._stake(case, account, side, "appeal")
            case = self.store.say(id, "appealed", at, {"side": side})
            return self.store.say(id, "evidence", at, {"by": side, "text": statement})

    def withdraw(self, id: str) -> Case:
        """The challenger gives up before a panel is drawn: as if rejected, with no panel to pay.

        Raises:
            ConflictError: a panel was drawn.
        """
        with self.store.transaction():
            check_evidence(self.store.get(id), "challenger", "withdrawn")
            self.store.say(id, "final", self.now_ns(), {"verdict": "rejected", "by": "withdrawal"})
        self._carry_out(self.store.get(id))
        return self.store.get(id)

    # What time does

    def settle_due(self) -> Done:
        """Do everything that is due; run it before an epoch is closed, so that what is disputed does not settle."""
        self._corrections.book_logged()
        at = self.now_ns()
        holds = drawn = decided = closed = 0
        for case in self.store.cases(open_only=True):
            if case.open:
                holds += self.hold(case)
            while (step := due(case, at)) is not None:
                if step in ("draw", "redraw"):
                    case = self._draw(case, at)
                    drawn += 1
                elif step == "final":
                    case = self.store.say(case.id, "final", at, {"verdict": case.verdict, "by": "time"})
                else:
                    case = self._decide(case, step == "decide", at)
                    decided += 1
            if case.phase == "final":
                self._carry_out(case)
                closed += 1
        return Done(holds, drawn, decided, closed)

    def _draw(self, case: Case, at: int) -> Case:
        value = self.court.public_value()
        members = draw(case, self.store.reviewers(), self.court.clusters(), value)
        return self.store.say(case.id, "drawn", at, {"members": list(members), "public_value": value})

    def _decide(self, case: Case, reached: bool, at: int) -> Case:
        sitting = case.sitting
        verdict: Outcome = "undecided"
        if reached and sitting is not None:
            verdict = "upheld" if sitting.verdict() else "rejected"
        if case.phase == "appeal":
            # An appeal that nobody decides leaves what was decided before.
            final = verdict if reached else case.verdict
            return self.store.say(case.id, "final", at, {"verdict": final, "by": "appeal"})
        return self.store.say(case.id, "decided", at, {"verdict": verdict})

    # Holding and releasing

    def hold(self, case: Case) -> int:
        """Hold back what is disputed in every receipt that has not settled; gives how many are held now."""
        account, found = disputed(case.id), 0
        for index, _ in self._disputed(case.claim):
            receipt = Receipt.from_bytes(self.court.books.log.at(index).raw)
            text = self.court.books.policy_text(receipt.policy_digest)
            fresh = self._newer(receipt, held(receipt, case.claim.contribution, account, text))
            moved = [m for m in self._corrections.planned(fresh, account) if m.credit == account]
            if moved:
                self.store.hold(case.id, [receipt.call_id])
                self._correct(fresh, account)
                found += 1
        return found

    def _disputed(self, claim: Claim) -> list[tuple[int, int]]:
        """(place in the log, nano units) of each receipt that has not settled and pays the disputed share."""
        log = self.court.books.log
        if claim.receipt is None:
            settled = max((span.log_size for span in self.court.books.epochs.spans()), default=0)
            return [(one.index, one.units) for one in self._unsettled.paying(claim.contribution, settled)]
        newest = log.in_force(Receipt.from_bytes(log.get(claim.receipt).raw).call_id)
        units = free_units(Receipt.from_bytes(newest.raw), claim.contribution) if newest is not None else 0
        return [(newest.entry.index, units)] if newest is not None and units else []

    def release(self, case: Case) -> int:
        """Give what is held to whom the outcome names; gives how many receipts were superseded."""
        account, log, done = disputed(case.id), self.court.books.log, 0
        for call in self.store.held(case.id):
            newest = log.in_force(call)
            receipt = Receipt.from_bytes(newest.raw) if newest is not None else None
            if receipt is None or not any(payout.account == account for payout in receipt.payouts):
                continue
            self._correct(self._newer(receipt, self._released(case, receipt)), account)
            done += 1
        return done

    def _released(self, case: Case, receipt: Receipt) -> Receipt:
        claim, text = case.claim, self.court.books.policy_text(receipt.policy_digest)
        if case.verdict != "upheld":
            owners = shares_of(receipt, claim.contribution)[0].owners
            before = tuple(replace(owner, account=self._account(owner.contributor)) for owner in owners)
            kind = self.court.books.registry.get(claim.contribution).kind
            return reassigned(receipt, claim.contribution, Supplier(claim.contribution, kind, before), text)
        rightful = claim.replacement if claim.kind == "receipt" else claim.contribution if claim.owners else None
        try:
            return reassigned(receipt, claim.contribution, self._supplier(rightful), text)
        except InvalidError as error:
            if error.code != "share_repeated":
                raise
            return reassigned(receipt, claim.contribution, None, text)  # it has its share of the answer already

    def _supplier(self, contribution: ContributionId | None) -> Supplier | None:
        if contribution is None:
            return None
        one = self.court.books.registry.get(contribution)
        owners = tuple(ReceiptOwner(self._account(o.contributor_id), o.contributor_id, o.share_ppb) for o in one.owners)
        return Supplier(one.id, one.kind, owners)

    def _account(self, contributor: ContributorId) -> AccountId:
        return account_for(self.court.books.registry.contributor(contributor))

    def _newer(self, old: Receipt, fresh: Receipt) -> Receipt:
        """`fresh` as the receipt that supersedes `old`."""
        at = max(self.court.books.now_ns(), old.issued_at_ns)
        return replace(fresh, operator=self.court.signer.address, supersedes=old.id, issued_at_ns=at)

    def _correct(self, receipt: Receipt, account: AccountId) -> None:
        signed = issue(receipt, self.court.signer)
        self._corrections.correct(signed.raw, signed.signature, payer=account)

    # Ends

    def _carry_out(self, case: Case) -> None:
        """Make the outcome true; each part may have been done before a crash."""
        claim, cause, now = case.claim, f"dispute:{case.id}", self.court.books.now_ns()
        upheld = case.verdict == "upheld"
        self.hold(case)  # what came since the last time
        with self.store.transaction():
            if upheld and claim.kind != "receipt":
                if claim.owners:
                    self.court.books.registry.change_owners(claim.contribution, claim.owners, cause=cause, now_ns=now)
                else:
                    self.consents.withdraw(claim.contribution, cause, "nobody's, as a dispute found", now)
        self.release(case)
        with self.store.transaction():
            for notice in self.consents.notices(case.id):
                if self.consents.takedown(notice).upheld is None:
                    self.consents.decide(notice, upheld, now)
            self._pay(case)
            self.store.say(case.id, "closed", self.now_ns(), {})

    def _pay(self, case: Case) -> None:
        """Fees to panels and bonds to sides; nothing staked stays behind."""
        told, sides = costs(case), {"challenger": case.challenger_account, "respondent": case.respondent_account}
        wanted = [(self.store.account_of(reviewer), units) for reviewer, units in told.fees]
        wanted += [(account, units) for side, units in told.back if (account := sides[side]) is not None]
        asset, drafts = self.court.books.currency, []
        pots = {disputed(case.id, side): 0 for side in ("challenger", "respondent")}
        for pot in pots:
            pots[pot] = self.court.books.ledger.balance(pot, asset).balance_units
        for payee, units in wanted:
            for pot in pots:
                moved = min(units, pots[pot])
                if moved:
                    drafts.append(correction(pot, payee, moved, asset=asset, cause=f"dispute:{case.id}"))
                    pots[pot], units = pots[pot] - moved, units - moved
        if drafts:
            self.court.books.ledger.post(drafts, key=f"dispute:{case.id}:close", at_ns=self.court.books.now_ns())

    def _stake(self, case: Case, account: AccountId, side: Side, what: str) -> None:
        if not account.startswith("payer:"):
            raise InvalidError(
                f"a bond from {account}", code="account_invalid", fix="stake prepaid credit: name a payer: account"
            )
        draft = correction(
            account,
            disputed(case.id, side),
            case.bond_units,
            asset=self.court.books.currency,
            cause=f"dispute:{case.id}",
        )
        key = f"dispute:{case.id}:{what}"
        if case.bond_units:
            self.court.books.ledger.post([draft], key=key, at_ns=self.court.books.now_ns())

    # Standing

    def _interested(self, claim: Claim, challenger: ContributorId, account: AccountId) -> frozenset[str]:
        """Everybody with an interest in a claim, once it is clear that its challenger has standing."""
        registry = self.court.books.registry
        present = {owner.contributor_id for owner in registry.get(claim.contribution).owners}
        named = {owner.contributor_id for owner in claim.owners}
        for one in sorted(named):
            registry.contributor(one)
        people = present | named
        standing = challenger in people
        if claim.receipt is not None:
            receipt = Receipt.from_bytes(self.court.books.log.get(claim.receipt).raw)
            if not shares_of(receipt, claim.contribution):
                raise InvalidError(
                    f"receipt {claim.receipt} has no share of {claim.contribution}",
                    code="dispute_invalid",
                    fix="name a contribution that the receipt pays",
                )
            owners = {o.contributor for share in receipt.attribution.shares for o in share.owners}
            if claim.replacement is not None:
                if shares_of(receipt, claim.replacement):
                    raise InvalidError(
                        f"{claim.replacement} has a share of receipt {claim.receipt} already",
                        code="share_repeated",
                        fix="dispute the share as nobody's instead",
                    )
                owners |= {o.contributor_id for o in registry.get(claim.replacement).owners}
            people |= owners
            standing = challenger in owners or account == self.court.payer_of(receipt.call_id)
        elif not claim.owners:
            # That something is nobody's concerns everybody who shares pools with it.
            standing = standing or bool(registry.contributions(owner=challenger))
        if not standing:
            raise RefusedError(
                f"{challenger} has no standing about {claim.contribution}",
                code="no_standing",
                fix="an owner, somebody who should be one, or who paid for the call, may open it",
            )
        return barred({*people, challenger})


def public_value(log_root: Callable[[], bytes], outside: str | None = None) -> str:
    """What a panel is drawn by: a value from outside, such as a block hash or a beacon's, or else the log's root.

    The log's root is known to the operator alone until it is published, who could add a receipt to change it: name a
    value from outside wherever one is at hand.
    """
    return outside or f"log:{log_root().hex()}"


def sides(case: Case) -> Sequence[tuple[Side, AccountId | None]]:
    """The two sides and the accounts they stake from."""
    return (("challenger", case.challenger_account), ("respondent", case.respondent_account))
