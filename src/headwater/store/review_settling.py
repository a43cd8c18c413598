"""Review as it goes on: draws, replacements, decisions, appeals and ends, each when its time has come.

`settle` may be called as often as one likes, by any process: it does what is due and nothing twice. Deadlines are
counted on the deadline clock, so they survive restarts and clocks that jump. Every submission ends: a task that nobody
decides in its time ends in a refusal that says so, and may be submitted again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import InvalidError, Problem, RefusedError
from headwater.core.ids import ContributionId, ContributorId
from headwater.registry.datanet import license_of
from headwater.registry.intake import Candidate
from headwater.registry.review import (
    Parties,
    Vote,
    drawing_order,
    eligible,
    follows,
    one_of_each_cluster,
    sample,
    tally,
)
from headwater.registry.review_gold import Slash
from headwater.registry.submission import ENDS, State
from headwater.store.database import Sql
from headwater.store.datanet_intake import CLOCK
from headwater.store.datanet_store import DatanetStore, Kept
from headwater.store.deadline_clock import DeadlineClock
from headwater.store.registry_store import RegistryStore
from headwater.store.review_store import Appeal, Assignment, Draw, ReviewStore, ReviewTask
from headwater.store.submission_store import Batch, Submission, SubmissionStore

PART_ROWS: Final = 500
"""Submissions that are brought to their end in one commit."""

APPEALABLE: Final = frozenset({"checks", "review", "sample", "deadline"})


@dataclass(frozen=True, slots=True)
class Settled:
    """What one call of `settle` did."""

    drawn: int  # batches
    lapsed: int  # assignments
    decided: int  # tasks
    accepted: int  # submissions that became members
    refused: int  # submissions that ended refused

    @property
    def anything(self) -> bool:
        """Whether it did anything."""
        return any((self.drawn, self.lapsed, self.decided, self.accepted, self.refused))


@dataclass(frozen=True, slots=True)
class Question:
    """A task as its reviewer sees it."""

    task: str
    datanet: str
    title: str
    text: str
    notes: tuple[str, ...]  # what the checks noticed, or why it was refused before an appeal
    appeal: bool
    appeal_reason: str


class Reviewing:
    """The reviews of a home."""

    def __init__(self, database: Sql, registry: RegistryStore, reviews: ReviewStore | None = None) -> None:
        self.datanets, self.submissions = DatanetStore(database), SubmissionStore(database)
        self.reviews = reviews or ReviewStore(database)
        self._database, self._registry = database, registry
        self._clock = DeadlineClock(database, CLOCK)

    # What is due

    def settle(
        self, now_ns: int, *, public_value: str, source: str, clusters: Mapping[ContributorId, str] | None = None
    ) -> Settled:
        """Do everything that is due.

        Args:
            now_ns: the machine's clock.
            public_value: what reviewers are drawn by where a draw is due; nobody should have known it when the
                submissions came.
            source: where that value can be looked up.
            clusters: identity clusters of people who act together.
        """
        at = self._clock.counted(now_ns)
        drawn = sum(self._draw(batch, public_value, source, clusters or {}, at) for batch in self._batches(at))
        lapsed = self.reviews.lapse(at)
        decided = sum(self._advance(task, at) for task in self.reviews.open_tasks())
        for batch in self.submissions.open_batches():
            self._follow(batch, at)
        accepted = refused = 0
        while due := self.submissions.due(at, PART_ROWS):
            with self._database.transaction():
                for_, against = self._end(due, at)
            accepted, refused = accepted + for_, refused + against
        return Settled(drawn, lapsed, decided, accepted, refused)

    def _batches(self, at: int) -> list[Batch]:
        """Batches whose draw is due: finished, or not touched for so long that nobody will go on with them."""
        due = []
        for batch in self.submissions.open_batches():
            review_ns = self.datanets.by_number(batch.offered.datanet).datanet.rules.review_ns
            if not batch.finished and at >= batch.touched_at_ns + review_ns:
                self.submissions.finish(batch)
                batch = self.submissions.batch(batch.id)
            if batch.finished and batch.draw is None:
                due.append(batch)
        return due

    def _draw(
        self, batch: Batch, public_value: str, source: str, clusters: Mapping[ContributorId, str], at: int
    ) -> int:
        """Draw the rows that people look at, and their reviewers; 1 if there is anybody to draw."""
        with self._database.transaction():
            kept = self.datanets.by_number(batch.offered.datanet)
            pool = self.reviews.reviewers(kept.number)
            if not eligible(pool, self._parties(kept, batch), clusters):
                if at >= batch.touched_at_ns + kept.datanet.rules.review_ns:
                    self._decide_rest(batch, "refusing", "deadline", "unreviewed", kept, at)
                return 0
            draw = self.reviews.add_draw(kept.number, public_value, source, pool, clusters, at)
            waiting = self.submissions.waiting(batch.number)
            for place in sample(draw.seed, batch.id, len(waiting), kept.datanet.rules.sample_max):
                self._ask(draw, waiting[place], kept, at, appeal=False)
            self.submissions.set_draw(batch, draw.number)
        return 1

    def _ask(self, draw: Draw, submission: int, kept: Kept, at: int, *, appeal: bool) -> None:
        rules = kept.datanet.rules
        task = self.reviews.open_task(
            draw,
            submission,
            appeal=appeal,
            quorum=rules.appeal_quorum if appeal else rules.quorum,
            now_ns=at,
            closes_at_ns=at + rules.review_ns,
        )
        self._fill(task, kept, at)

    def _fill(self, task: ReviewTask, kept: Kept, at: int) -> None:
        """Assign as many of those drawn as the quorum still lacks."""
        held = self.reviews.assignments(task.number)
        lacking = task.quorum - sum(one.state != "lapsed" for one in held)
        if lacking <= 0:
            return
        rules = kept.datanet.rules
        due = min(at + rules.answer_ns, task.closes_at_ns)
        standing = set(self.reviews.reviewers(kept.number))
        order = self.order(task)
        # Down the order only, so that who was asked can be held against it.
        begin = max((order.index(one.reviewer) + 1 for one in held if one.reviewer in order), default=0)
        for reviewer in order[begin:]:
            if lacking and reviewer in standing:
                self.reviews.assign(task, reviewer, now_ns=at, due_at_ns=due, gold_ppm=rules.gold_ppm)
                lacking -= 1

    def order(self, task: ReviewTask) -> tuple[ContributorId, ...]:
        """Everybody who may be asked about a task, in the order of its draw: recomputed from what the draw keeps."""
        if task.submission is None:
            return ()
        draw = self.reviews.draw(task.draw)
        submission = self.submissions.by_numbers([task.submission])[task.submission]
        kept = self.datanets.by_number(task.datanet)
        parties = self._parties(kept, self.submissions.batch_by_number(submission.batch))
        seen: set[ContributorId] = set()
        if task.appeal:
            first = [one for one in self.reviews.tasks_of(task.submission) if not one.appeal]
            seen = {held.reviewer for one in first for held in self.reviews.assignments(one.number)}
        able = eligible(draw.reviewers, parties, draw.clusters, seen)
        ordered = drawing_order(draw.seed, f"{submission.id}/{int(task.appeal)}", able)
        return one_of_each_cluster(ordered, draw.clusters)

    def _advance(self, task: ReviewTask, at: int) -> int:
        """Decide a task if it can be, or give it to somebody else; 1 if it was decided."""
        with self._database.transaction():
            task = self.reviews.task(task.id)
            if task.outcome is not None or task.submission is None:
                return 0
            submission = self.submissions.by_numbers([task.submission])[task.submission]
            held = self.reviews.assignments(task.number)
            over = at >= task.closes_at_ns
            verdicts = [one.verdict for one in held if one.verdict is not None]
            kept = self.datanets.by_number(task.datanet)
            outcome = tally(verdicts, task.quorum, over=over)
            if outcome is None and not over:
                self._fill(task, kept, at)
                return 0
            self.reviews.close_task(task, outcome or "none", at)
            due = at + kept.datanet.rules.appeal_ns
            reasons = _reasons(held) if outcome == "refuse" else ""
            if task.appeal:
                appeal = self.reviews.appeal(task.submission)
                stood = appeal.stood if appeal else "refusing"
                verdict = outcome or ("accept" if stood == "accepting" else "refuse")
                self._finish([submission], verdict, "appeal", reasons, at)
            elif outcome is None:
                self.submissions.step([submission], "refusing", by="deadline", due_at_ns=due, reasons="unreviewed")
            else:
                to: State = "accepting" if outcome == "accept" else "refusing"
                self.submissions.step([submission], to, by="review", due_at_ns=due, reasons=reasons)
        return 1

    def _follow(self, batch: Batch, at: int) -> None:
        """Let the rows nobody looked at go the way of those that somebody did, once all of these are decided."""
        if batch.draw is None:
            return
        with self._database.transaction():
            accepted, refused, open_ = self.submissions.reviewed(batch.number)
            if open_:
                return
            kept = self.datanets.by_number(batch.offered.datanet)
            verdict = follows(accepted, refused)
            if verdict == "accept":
                self._decide_rest(batch, "accepting", "sample", "", kept, at)
            elif verdict == "refuse":
                self._decide_rest(batch, "refusing", "sample", "sample_refused", kept, at)
            else:
                self._decide_rest(batch, "refusing", "deadline", "unreviewed", kept, at)

    def _decide_rest(self, batch: Batch, to: State, by: str, reasons: str, kept: Kept, at: int) -> None:
        self.submissions.step_waiting(
            batch.number, to, by=by, reasons=reasons, due_at_ns=at + kept.datanet.rules.appeal_ns
        )
        self.submissions.set_followed(batch)

    # Ends

    def _end(self, due: Sequence[Submission], at: int) -> tuple[int, int]:
        """Bring submissions to the end their decision leads to; gives (accepted, refused)."""
        made = 0
        for state, verdict in (("accepting", "accept"), ("refusing", "refuse")):
            for by in sorted({one.decided_by for one in due}):
                rows = [one for one in due if (one.state, one.decided_by) == (state, by)]
                made += self._finish(rows, verdict, by, "", at)
        return made, len(due) - made

    def _finish(self, rows: Sequence[Submission], verdict: str, by: str, reasons: str, at: int) -> int:
        """End submissions; accepted ones become contributions and members. Gives how many did."""
        members, barred = self._registered(rows, at) if verdict == "accept" else ({}, {})
        self.submissions.step([one for one in rows if one.number in members], "accepted", by=by)
        self.submissions.set_contributions((number, name) for number, name in members.items())
        rest = [one for one in rows if one.number not in members]
        for one in rest:
            self.submissions.step(
                [one],
                "refused",
                by="registry" if one.id in barred else by,
                reasons=barred.get(one.id, reasons),
            )
        self.submissions.forget_bytes([one.number for one in rows])
        return len(members)

    def _registered(self, rows: Sequence[Submission], at: int) -> tuple[dict[int, ContributionId], dict[str, str]]:
        """Register rows and make them members: (contribution by number, why the registry refused by id)."""
        members: dict[int, ContributionId] = {}
        barred: dict[str, str] = {}
        for number in sorted({one.batch for one in rows}):
            batch = self.submissions.batch_by_number(number)
            kept = self.datanets.by_number(batch.offered.datanet)
            mine = [one for one in rows if one.batch == number]
            try:
                license_of(kept.datanet, batch.offered.license)
            except InvalidError as error:  # the datanet's terms were changed since it was submitted
                barred |= {one.id: error.code for one in mine}
                continue
            intake = self._registry.admit([self._candidate(batch, kept, one) for one in mine])
            known = {one.contribution.content_digest: one.contribution.id for one in intake.accepted}
            known |= {one.content_digest: one.id for one in self._registry.get_many(intake.unchanged)}
            barred |= {problem.where: problem.code for problem in intake.problems}
            taken = [one for one in mine if one.id not in barred]
            self.datanets.add_members(kept, [(known[one.content_digest], one.lineage) for one in taken], at)
            members |= {one.number: known[one.content_digest] for one in taken}
        return members, barred

    def _candidate(self, batch: Batch, kept: Kept, one: Submission) -> Candidate:
        terms = license_of(kept.datanet, batch.offered.license)
        metadata = [("datanet", kept.datanet.id), *([("lineage", one.lineage)] if one.lineage else [])]
        return Candidate(
            where=one.id,
            kind=batch.offered.kind,
            title=one.title,
            content=self.submissions.content(one.number) or b"",
            owners=batch.offered.owners,
            license_expression=terms.expression,
            uses=terms.uses,
            registered_at_ns=batch.opened_at_ns,
            source=batch.offered.source,
            price_floor_units=terms.price_floor_units,
            expires_at_ns=terms.expires_at_ns,
            terms=terms.terms,
            metadata=tuple(metadata),
        )

    # Acts of people

    def vote(self, task_id: str, vote: Vote, now_ns: int) -> Slash | None:
        """Keep a reviewer's vote and decide the task if that completes it; gives the slash gold led to, if any.

        Raises:
            RefusedError: ``not_assigned``, ``task_lapsed``.
            ConflictError: ``vote_given``.
        """
        at = self._clock.counted(now_ns)
        task = self.reviews.task(task_id)
        found = self.reviews.vote(task, vote, at)
        if task.submission is not None:
            self._advance(task, at)
        return found

    def appeal(
        self,
        submission_id: str,
        by_whom: ContributorId,
        reason: str,
        now_ns: int,
        *,
        public_value: str,
        source: str,
        clusters: Mapping[ContributorId, str] | None = None,
    ) -> Submission:
        """Appeal a decision: a refusal by who contributed it, an acceptance by the datanet's owner.

        Reviewers who were not asked before decide, and that is final.

        Raises:
            RefusedError: ``appeal_not_yours``, ``appeal_too_late``, ``not_appealable``, ``reviewers_missing``.
            ConflictError: ``appealed_before``, or a state that has no appeal.
        """
        at = self._clock.counted(now_ns)
        with self._database.transaction():
            found = self.submissions.get(submission_id)
            kept = self.datanets.by_number(found.datanet)
            batch = self.submissions.batch_by_number(found.batch)
            parties = self._parties(kept, batch)
            if by_whom not in (parties.contributors if found.state == "refusing" else {kept.datanet.owner}):
                raise RefusedError(
                    f"{by_whom} cannot appeal what is {found.state}",
                    code="appeal_not_yours",
                    fix="a refusal is appealed by its contributor, an acceptance by the datanet's owner",
                )
            if found.due_at_ns is not None and at >= found.due_at_ns:
                raise RefusedError(f"the time to appeal {found.id} is over", code="appeal_too_late", fix="it is final")
            if found.decided_by not in APPEALABLE:
                raise RefusedError(f"{found.id} cannot be appealed", code="not_appealable", fix="it is a fact")
            seen = {
                held.reviewer
                for task in self.reviews.tasks_of(found.number)
                for held in self.reviews.assignments(task.number)
            }
            pool = self.reviews.reviewers(kept.number)
            if not eligible(pool, parties, clusters or {}, seen):
                raise RefusedError(
                    f"{kept.datanet.name} has no reviewer who was not asked before",
                    code="reviewers_missing",
                    fix="ask its owner for more reviewers before the time to appeal is over",
                )
            self.reviews.add_appeal(found.number, Appeal(by_whom, reason, found.state), at)
            self.submissions.step([found], "appealed", by=found.decided_by)
            draw = self.reviews.add_draw(kept.number, public_value, source, pool, clusters or {}, at)
            self._ask(draw, found.number, kept, at, appeal=True)
        return self.submissions.get(submission_id)

    def withdraw(self, submission_id: str, by_whom: ContributorId, now_ns: int) -> Submission:
        """Take a submission back, before it has ended.

        Raises:
            RefusedError: ``not_yours``.
            ConflictError: ``submission_state``, it has ended.
        """
        at = self._clock.counted(now_ns)
        with self._database.transaction():
            found = self.submissions.get(submission_id)
            owners = {one.contributor_id for one in self.submissions.owners(found.batch)}
            if by_whom not in owners:
                raise RefusedError(f"{found.id} is not {by_whom}'s", code="not_yours", fix="ask its contributor")
            self.submissions.step([found], "withdrawn", by="contributor")
            for task in self.reviews.tasks_of(found.number):
                if task.outcome is None:
                    self.reviews.close_task(task, "void", at)
            self.submissions.forget_bytes([found.number])
        return self.submissions.get(submission_id)

    def question(self, task: ReviewTask) -> Question:
        """What a reviewer is shown of a task: the same fields whether its answer is known or not."""
        name = self.datanets.by_number(task.datanet).datanet.name
        if task.gold is not None:
            title, content = self.reviews.gold_item(task.gold)
            return Question(task.id, name, title, content.decode(), (), task.appeal, "")
        assert task.submission is not None
        row = self.submissions.by_numbers([task.submission])[task.submission]
        appeal = self.reviews.appeal(task.submission) if task.appeal else None
        content = self.submissions.content(row.number) or b""
        why = appeal.reason if appeal else ""
        return Question(task.id, name, row.title, content.decode(), row.reasons, task.appeal, why)

    # Looking back

    def recheck(self, kept: Kept) -> tuple[Problem, ...]:
        """Whether everybody who was given a decided task is who its public value draws; empty when so."""
        problems: list[Problem] = []
        for task in self.reviews.closed_tasks(kept.number):
            order = self.order(task)
            asked = [held.reviewer for held in self.reviews.assignments(task.number)]
            ranks = [order.index(one) if one in order else -1 for one in asked]
            drawn_at = self.reviews.draw(task.draw).at_ns
            passed_over = [
                one
                for one in order[: max(ranks, default=-1)]
                if one not in asked and self.reviews.stands_since(kept.number, one, drawn_at)
            ]
            if -1 in ranks or ranks != sorted(ranks) or passed_over:
                problems.append(
                    Problem(
                        task.id,
                        "draw_differs",
                        f"given to {', '.join(asked)}; the public value draws {', '.join(order[: len(asked)])}",
                        "ask the operator how these reviewers were chosen",
                    )
                )
        return tuple(problems)

    def _parties(self, kept: Kept, batch: Batch) -> Parties:
        return Parties(frozenset(one.contributor_id for one in batch.offered.owners), kept.datanet.owner)


def _reasons(held: Sequence[Assignment]) -> str:
    """The reasons of all who refused, each once, the commonest first."""
    given = [reason for one in held if one.verdict == "refuse" for reason in one.reasons]
    return " ".join(sorted(set(given), key=lambda reason: (-given.count(reason), reason)))


__all__ = ["APPEALABLE", "ENDS", "Reviewing", "Settled"]
