"""Feedback taken in: one row for each, with who gave it on which receipt, and what became of its review.

A contribution is registered with its row in one commit. Nothing here touches the ledger: feedback is
not paid for being given. The same idempotency key with the same body gives the first answer again,
with another body it is refused, for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from headwater.core.errors import ConflictError, InvalidError, MissingError, RefusedError
from headwater.core.ids import ContributionId, ReceiptId
from headwater.registry.contribution import Ownership
from headwater.registry.contributor import unenrolled
from headwater.registry.feedback import DAY, PER_DAY_MAX, PER_HOUR_MAX, Feedback, Review, within_quota
from headwater.registry.intake import Candidate
from headwater.store.database import Row, Sql
from headwater.store.registry_store import RegistryStore

LICENSE: Final = "LicenseRef-headwater-feedback"
TERMS: Final = "given with the call that sent it, to be trained on; may be withdrawn"
KEYS_NAMESPACE: Final = "keys"
_WHOLE_PPB: Final = 10**9
_TITLE_CHARS: Final = 60

_STEPS = (
    """
    CREATE TABLE feedback (
      number INTEGER PRIMARY KEY,
      contribution_id TEXT NOT NULL UNIQUE,
      key_id TEXT NOT NULL,
      receipt_id TEXT NOT NULL,
      given_at_ns INTEGER NOT NULL,
      idempotency_key TEXT,
      request_digest TEXT NOT NULL,
      lesson TEXT NOT NULL,
      copied_from TEXT,
      review TEXT NOT NULL CHECK (review IN ('pending', 'accepted', 'declined')),
      reviewed_by TEXT,
      reviewed_at_ns INTEGER,
      UNIQUE (key_id, idempotency_key)
    ) STRICT;
    CREATE INDEX feedback_by_key ON feedback (key_id, given_at_ns);
    CREATE INDEX feedback_by_receipt ON feedback (receipt_id);
    CREATE INDEX feedback_by_lesson ON feedback (lesson);
    """,
)
_COLUMNS = (
    "contribution_id, key_id, receipt_id, given_at_ns, copied_from, review, reviewed_by, reviewed_at_ns, request_digest"
)


@dataclass(frozen=True, slots=True)
class FeedbackRecord:
    """What is kept of a piece of feedback beside its contribution."""

    contribution: ContributionId
    key_id: str
    receipt: ReceiptId
    given_at_ns: int
    copied_from: ContributionId | None  # earlier feedback that says the same; such a one is declined at once
    review: Review
    reviewed_by: str | None
    reviewed_at_ns: int | None
    request_digest: str


class FeedbackStore:
    """Feedback in `database`, beside the registry it is registered in."""

    def __init__(self, database: Sql, registry: RegistryStore) -> None:
        self._database, self._registry = database, registry
        database.migrate("feedback", _STEPS)

    def give(
        self,
        feedback: Feedback,
        *,
        key_id: str,
        request_digest: str,
        now_ns: int,
        reviewed: bool,
        idempotency_key: str | None = None,
    ) -> tuple[FeedbackRecord, bool]:
        """Register feedback of a key on a receipt of its own; whose receipt it is the caller has checked.

        Args:
            request_digest: of the body as sent; an idempotency key is bound to it.
            reviewed: whether somebody must accept it before it is trained on.

        Returns:
            The record, and whether it was given before: with this idempotency key, or word for word.

        Raises:
            ConflictError: ``idempotency_conflict``.
            RefusedError: ``rate_limit_exceeded``.
        """
        content = feedback.to_bytes()
        with self._database.transaction():
            if idempotency_key is not None and (earlier := self._keyed(key_id, idempotency_key)) is not None:
                if earlier.request_digest != request_digest:
                    raise ConflictError(
                        "the idempotency key was used with another body",
                        code="idempotency_conflict",
                        fix="use a new key for new feedback",
                    )
                return earlier, True
            candidate = self._candidate(feedback, content, key_id, now_ns)
            intake = self._registry.admit([candidate], [unenrolled(KEYS_NAMESPACE, key_id)])
            if intake.unchanged:
                return self.get(intake.unchanged[0]), True
            if intake.problems:
                first = intake.problems[0]
                raise InvalidError(first.message, code=first.code, fix=first.fix)
            if not within_quota(self._times(key_id, now_ns - DAY), now_ns):
                raise RefusedError(
                    f"{key_id} has given {PER_HOUR_MAX} pieces of feedback in an hour or {PER_DAY_MAX} in a day",
                    code="rate_limit_exceeded",
                    fix="give it later",
                )
            copied = self._copied(feedback)
            review: Review = "declined" if copied else "pending" if reviewed else "accepted"
            self._database.execute(
                "INSERT INTO feedback (contribution_id, key_id, receipt_id, given_at_ns, idempotency_key,"
                " request_digest, lesson, copied_from, review) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    intake.accepted[0].contribution.id,
                    key_id,
                    feedback.receipt,
                    now_ns,
                    idempotency_key,
                    request_digest,
                    feedback.lesson,
                    copied,
                    review,
                ),
            )
            return self.get(intake.accepted[0].contribution.id), False

    def get(self, contribution_id: ContributionId) -> FeedbackRecord:
        """The record of one piece of feedback.

        Raises:
            MissingError: there is none.
        """
        rows = self._database.query(f"SELECT {_COLUMNS} FROM feedback WHERE contribution_id = ?", (contribution_id,))
        if not rows:
            raise MissingError(
                f"no feedback {contribution_id[:80]}", code="feedback_missing", fix="see `headwater feedback list`"
            )
        return _record(rows[0])

    def list(self, review: Review | None = None) -> tuple[FeedbackRecord, ...]:
        """All feedback, oldest first, in one state of review if given."""
        where, params = ("", ()) if review is None else (" WHERE review = ?", (review,))
        rows = self._database.query(f"SELECT {_COLUMNS} FROM feedback{where} ORDER BY number", params)
        return tuple(map(_record, rows))

    def review(self, contribution_id: ContributionId, verdict: Review, by_whom: str, now_ns: int) -> FeedbackRecord:
        """Accept or decline feedback; what is accepted may be trained on.

        Raises:
            MissingError: no such feedback.
            ConflictError: reviewed before with another verdict.
        """
        with self._database.transaction():
            record = self.get(contribution_id)
            if record.review not in ("pending", verdict):
                raise ConflictError(
                    f"{contribution_id} was {record.review} already", code="feedback_reviewed", fix="leave it as it is"
                )
            if record.review == "pending":
                self._database.execute(
                    "UPDATE feedback SET review = ?, reviewed_by = ?, reviewed_at_ns = ? WHERE contribution_id = ?",
                    (verdict, by_whom, now_ns, contribution_id),
                )
            return self.get(contribution_id)

    def _keyed(self, key_id: str, idempotency_key: str) -> FeedbackRecord | None:
        rows = self._database.query(
            f"SELECT {_COLUMNS} FROM feedback WHERE key_id = ? AND idempotency_key = ?", (key_id, idempotency_key)
        )
        return _record(rows[0]) if rows else None

    def _times(self, key_id: str, since_ns: int) -> tuple[int, ...]:
        rows = self._database.query(
            "SELECT given_at_ns FROM feedback WHERE key_id = ? AND given_at_ns > ? ORDER BY given_at_ns",
            (key_id, since_ns),
        )
        return tuple(row[0] for row in rows)

    def _copied(self, feedback: Feedback) -> ContributionId | None:
        """Earlier feedback with the same lesson, on whatever receipt and by whomever."""
        if not feedback.trainable:
            return None
        rows = self._database.query(
            "SELECT contribution_id FROM feedback WHERE lesson = ? AND copied_from IS NULL ORDER BY number LIMIT 1",
            (feedback.lesson,),
        )
        return ContributionId(rows[0][0]) if rows else None

    @staticmethod
    def _candidate(feedback: Feedback, content: bytes, key_id: str, now_ns: int) -> Candidate:
        owner = unenrolled(KEYS_NAMESPACE, key_id)
        about = "feedback" if feedback.rating is None else f"feedback ({feedback.rating})"
        return Candidate(
            where="feedback",
            kind="feedback",
            title=f"{about} on {feedback.receipt[:12]}"[:_TITLE_CHARS],
            content=content,
            owners=(Ownership(owner.id, _WHOLE_PPB),),
            license_expression=LICENSE,
            uses=frozenset({"train"}),
            registered_at_ns=now_ns,
            source="gateway",
            terms=TERMS,
            metadata=(("receipt", feedback.receipt),),
        )


def _record(row: Row) -> FeedbackRecord:
    return FeedbackRecord(*row)
