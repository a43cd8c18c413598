"""Answers of other servers that are kept to be given again: for requests with an idempotency key, and for ever.

An answer is kept, with the signed receipt it will be charged by, *before* that receipt is appended to the log. So
there are three moments to die in: before it is kept, and nothing has happened; after, and the next start appends the
receipt, which is what charges it; after that too, and the books are brought up to the log as for any call. Keeping
the same receipt twice changes nothing, and the log takes it once.

Answers are encrypted under a key of their payer (`evidence_store`); the tables are `call_store`'s, which refuses keys
that were used here. Knows nothing of HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.core.errors import ConflictError, InvalidError
from headwater.core.ids import CallId
from headwater.core.limits import CALL_RECORD_SIZE_BYTES_MAX
from headwater.store.database import ConstraintError, Sql
from headwater.store.evidence_store import EvidenceCipher

_KIND = "kept answer"


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What a request with an idempotency key was answered."""

    key_id: str
    idempotency_key: str
    request_digest: str  # of route and body
    call_id: CallId
    stream: bool
    answer: bytes | None  # every byte of the body, as it was sent; None once erased
    receipt: bytes  # canonical bytes
    signature: str


class KeptStore:
    """The kept answers in `db`."""

    def __init__(self, db: Sql) -> None:
        self.db, self._texts = db, EvidenceCipher(db)

    def find(self, key_id: str, idempotency_key: str, request_digest: str) -> KeptAnswer | None:
        """The answer kept under a payer's idempotency key.

        Raises:
            ConflictError: ``idempotency_conflict`` when the key came with another request.
        """
        for digest, call_id, stream, answer, receipt, signature in self.db.query(
            "SELECT request_digest, call_id, stream, answer, receipt, signature FROM kept_answers"
            " WHERE key_id = ? AND idempotency_key = ?",
            (key_id, idempotency_key),
        ):
            if digest != request_digest:
                raise conflict(idempotency_key, call_id)
            text = self._texts.open(key_id, call_id, _KIND, answer)
            return KeptAnswer(key_id, idempotency_key, digest, call_id, bool(stream), text, receipt, signature)
        for (call_id,) in self.db.query(
            "SELECT call_id FROM calls WHERE key_id = ? AND idempotency_key = ?", (key_id, idempotency_key)
        ):
            raise conflict(idempotency_key, call_id)  # a model of this server's own was asked
        return None

    def keep(self, kept: KeptAnswer) -> None:
        """Keep an answer, durably.

        Raises:
            InvalidError: ``call_too_large``.
            ConflictError: ``call_in_progress`` when another process kept one under this key meanwhile.
        """
        answer = kept.answer or b""
        if len(answer) > CALL_RECORD_SIZE_BYTES_MAX:
            raise InvalidError(
                f"{kept.call_id}: an answer of {len(answer)} bytes",
                code="call_too_large",
                fix=f"ask without Idempotency-Key; answers of up to {CALL_RECORD_SIZE_BYTES_MAX} bytes are kept",
            )
        try:
            with self.db.transaction():
                sealed = self._texts.seal(kept.key_id, kept.call_id, _KIND, answer)
                self.db.execute(
                    "INSERT INTO kept_answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(kept.key_id, kept.idempotency_key, kept.request_digest, kept.call_id, int(kept.stream)),
                        *(sealed, kept.receipt, kept.signature),
                    ),
                )
        except ConstraintError:
            raise ConflictError(
                "this idempotency key was answered by another process meanwhile",
                code="call_in_progress",
                fix="send the same request again",
            ) from None

    def has(self, call_id: str) -> bool:
        """Whether the answer of a call is kept."""
        return bool(self.db.query("SELECT 1 FROM kept_answers WHERE call_id = ?", (call_id,)))

    def unbooked(self) -> tuple[tuple[CallId, bytes, str], ...]:
        """Call, receipt and signature of every kept answer that the journal of calls does not have."""
        return tuple(
            (call_id, receipt, signature)
            for call_id, receipt, signature in self.db.query(
                "SELECT call_id, receipt, signature FROM kept_answers WHERE NOT EXISTS"
                " (SELECT 1 FROM calls WHERE calls.call_id = kept_answers.call_id) ORDER BY call_id"
            )
        )


def conflict(idempotency_key: str, call_id: str) -> ConflictError:
    """The refusal of an idempotency key that came with another request."""
    return ConflictError(
        f"idempotency key {idempotency_key[:80]!r} came with another request ({call_id})",
        code="idempotency_conflict",
        fix="use a new key for a new request",
    )
