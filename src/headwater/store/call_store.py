"""The journal of calls: what a process that dies may not forget, and may not do twice.

    reserved ──> answered ──> attributed
        └──────> released

*reserved*: the ceiling price is set aside, before the first token. *answered*: the answer and the
evidence are kept and the price is charged, before the client sees the end of the stream. *attributed*:
the receipt is known and its payouts are booked. *released*: no answer came, nothing is charged.

Invariants: each step and its money are one commit; repeating a step with the same values changes
nothing, with others it is a conflict; what answered calls cost is what was charged; payouts sum to the
price. A `reserved` call belongs to the run (one life of one process) that began it and is settled by
`recover` once that run is dead, which a file lock tells.

Answer and evidence are encrypted under a key of their payer (`evidence_store`) and can be erased when they are no
longer needed; their digests stay. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from msgspec import Struct

from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, InvalidError, InvariantError, MissingError, Problem, RefusedError
from headwater.core.ids import AccountId, CallId, ReceiptId, check_receipt_id, is_call_id
from headwater.core.limits import CALL_RECORD_SIZE_BYTES_MAX, IDEMPOTENCY_KEY_CHARS_MAX, TRANSFER_UNITS_MAX
from headwater.ledger import CallFact, Code, TransferDraft
from headwater.store.database import Row, Sql
from headwater.store.evidence_store import EvidenceCipher
from headwater.store.kept_store import conflict
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.runs import alive, sweep, take_run

_STEPS = (
    f"""
    CREATE TABLE calls (
      number INTEGER PRIMARY KEY,
      call_id TEXT NOT NULL UNIQUE,
      key_id TEXT NOT NULL,
      idempotency_key TEXT,
      request_digest TEXT NOT NULL,
      state TEXT NOT NULL CHECK (state IN ('reserved', 'answered', 'attributed', 'released')),
      created_at_ns INTEGER NOT NULL,
      updated_at_ns INTEGER NOT NULL,
      model TEXT NOT NULL,
      asset TEXT NOT NULL,
      reserve_id TEXT NOT NULL,
      ceiling_units INTEGER NOT NULL CHECK (ceiling_units BETWEEN 0 AND {TRANSFER_UNITS_MAX}),
      progress_units INTEGER CHECK (progress_units BETWEEN 0 AND ceiling_units),
      price_units INTEGER CHECK (price_units BETWEEN 0 AND ceiling_units),
      evidence BLOB,
      answer BLOB,
      evidence_digest TEXT,
      answer_digest TEXT,
      receipt_id TEXT UNIQUE,
      failure TEXT,
      run_id TEXT NOT NULL,
      CHECK ((state IN ('answered', 'attributed')) = (price_units IS NOT NULL)),
      CHECK ((state = 'attributed') = (receipt_id IS NOT NULL)),
      CHECK ((state = 'released') = (failure IS NOT NULL))
    );
    CREATE UNIQUE INDEX calls_by_key ON calls (key_id, idempotency_key)
      WHERE idempotency_key IS NOT NULL AND state <> 'released';
    CREATE INDEX calls_unfinished ON calls (state, number) WHERE state IN ('reserved', 'answered');
    CREATE TRIGGER calls_stay BEFORE DELETE ON calls
      BEGIN SELECT RAISE(ABORT, 'a call is never deleted: forget its text'); END;
    """,
    """
    CREATE TABLE leases (
      cause TEXT PRIMARY KEY,
      lease_id TEXT NOT NULL,
      run_id TEXT NOT NULL,
      key_id TEXT NOT NULL,
      asset TEXT NOT NULL,
      units INTEGER NOT NULL
    );
    CREATE TABLE metered_marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    """,
    "ALTER TABLE leases ADD COLUMN taken_at_ns INTEGER NOT NULL DEFAULT 0;",
    """
    CREATE TABLE kept_answers (
      key_id TEXT NOT NULL,
      idempotency_key TEXT NOT NULL,
      request_digest TEXT NOT NULL,
      call_id TEXT NOT NULL UNIQUE,
      stream INTEGER NOT NULL,
      answer BLOB,
      receipt BLOB NOT NULL,
      signature TEXT NOT NULL,
      PRIMARY KEY (key_id, idempotency_key)
    );
    """,
    """
    CREATE TABLE answer_marks (
      key_id TEXT NOT NULL,
      mark BLOB NOT NULL,
      call_id TEXT NOT NULL,
      PRIMARY KEY (key_id, mark)
    ) WITHOUT ROWID;
    CREATE INDEX answer_marks_by_call ON answer_marks (call_id);
    """,
)
_COLUMNS = (
    "call_id, key_id, idempotency_key, request_digest, state, created_at_ns, updated_at_ns, model, asset, reserve_id,"
    " ceiling_units, price_units, evidence, answer, evidence_digest, answer_digest, receipt_id, failure"
)


class CallState(StrEnum):
    """How far a call has come."""

    RESERVED = "reserved"
    ANSWERED = "answered"
    ATTRIBUTED = "attributed"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call as the journal has it."""

    call_id: CallId
    key_id: str
    idempotency_key: str | None
    request_digest: str
    state: CallState
    created_at_ns: int
    updated_at_ns: int
    model: str
    asset: str
    reserve_id: str  # the pending transfer that holds the ceiling
    ceiling_units: int
    price_units: int | None  # None until answered
    evidence: bytes | None  # canonical JSON the attribution worker needs; None before or once forgotten
    answer: bytes | None  # what is sent again when the request is repeated; None before or once forgotten
    evidence_digest: str | None
    answer_digest: str | None
    receipt_id: ReceiptId | None
    failure: str | None  # why it was released, a stable code

    @property
    def payer(self) -> AccountId:
        """The account it is charged to."""
        return AccountId(f"payer:{self.key_id}")


@dataclass(frozen=True, slots=True)
class Begun:
    """The outcome of beginning a call."""

    call: CallRecord
    replayed: bool  # the same request was answered before: send `call.answer` again, generate nothing


class FinishedCall(Struct, frozen=True, gc=False):
    """A call that another server answered, with its receipt; no text of it is kept here."""

    call_id: CallId
    key_id: str
    model: str
    asset: str
    price_units: int
    reserve_id: str
    receipt_id: ReceiptId
    request_digest: str
    answer_digest: str
    began_ns: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found after processes died."""

    released: tuple[CallId, ...]  # had given no answer; nothing charged
    charged: tuple[CallId, ...]  # had delivered part of an answer; charged for that part
    to_attribute: tuple[CallId, ...]  # answered and without a receipt, oldest first; includes `charged`


class CallStore:
    """The journal of calls in `db`, whose money is in `ledger` and whose keys are in `keys`.

    Args:
        run_id: names this life of this process and marks it alive while the store is open. None to read only.
    """

    def __init__(self, db: Sql, ledger: Ledger, keys: KeyStore, *, run_id: str | None = None) -> None:
        self.db, self._ledger, self._keys, self._run_id = db, ledger, keys, run_id
        self._runs = db.folder / "runs"
        self._texts = EvidenceCipher(db)
        db.migrate("calls", _STEPS)
        self._run_lock = None if run_id is None else take_run(self._runs, run_id)

    def close(self) -> None:
        """End this run: what it left `reserved` is for the next `recover` to settle."""
        if self._run_lock is not None:
            os.close(self._run_lock)
            self._run_lock = None

    @property
    def run_id(self) -> str:
        """This life of this process.

        Raises:
            InvariantError: the journal was opened to be read.
        """
        if self._run_lock is None or self._run_id is None:
            raise InvariantError("this journal was opened to be read", code="journal_read_only")
        return self._run_id

    def run_alive(self, run_id: str) -> bool:
        """Whether the process that had this run still lives; this one's own run does."""
        return run_id == self._run_id or alive(self._runs, run_id)

    # Calls that another server answered

    def record(self, calls: Iterable[FinishedCall]) -> None:
        """Record calls that were answered and have their receipt, inside the transaction that books their money."""
        ((last,),) = self.db.query("SELECT coalesce(max(number), 0) FROM calls")
        self.db.insert_rows(
            "calls (number, call_id, key_id, request_digest, state, created_at_ns, updated_at_ns, model, asset,"
            " reserve_id, ceiling_units, price_units, evidence_digest, answer_digest, receipt_id, run_id)",
            [
                (
                    *(number, call.call_id, call.key_id, call.request_digest, "attributed"),
                    *(call.began_ns, call.at_ns, call.model),
                    *(call.asset, call.reserve_id, call.price_units, call.price_units, call.request_digest),
                    *(call.answer_digest, call.receipt_id, self.run_id),
                )
                for number, call in enumerate(calls, last + 1)
            ],
        )

    def knows(self, call_id: str) -> bool:
        """Whether the journal has this call."""
        return bool(self.db.query("SELECT 1 FROM calls WHERE call_id = ?", (call_id,)))

    # One call's path

    def begin(
        self,
        *,
        call_id: CallId,
        key_id: str,
        idempotency_key: str | None,
        request_digest: str,
        model: str,
        ceiling_units: int,
        asset: str,
        at_ns: int,
    ) -> Begun:
        """Reserve the ceiling and record the call, or find that this request was made before.

        Raises:
            RefusedError: ``insufficient_credit`` or ``budget_exceeded``; nothing is recorded.
            ConflictError: ``call_in_progress``, or ``idempotency_conflict`` when the key came with another body.
            MissingError: ``answer_forgotten`` when the answer to repeat has been erased.
        """
        run_id = self.run_id
        if not is_call_id(call_id):
            raise InvalidError(f"{call_id[:80]!r} is not a call id", code="call_id_invalid", fix="use core.ids.call_id")
        if idempotency_key is not None and not 0 < len(idempotency_key) <= IDEMPOTENCY_KEY_CHARS_MAX:
            raise InvalidError(
                f"an idempotency key of {len(idempotency_key)} characters",
                code="idempotency_key_invalid",
                fix=f"use 1 to {IDEMPOTENCY_KEY_CHARS_MAX} characters",
            )
        with self.db.transaction():
            if idempotency_key is not None:
                before = self._repeated(key_id, idempotency_key, request_digest)
                if before is not None:
                    return Begun(before, True)
            self._keys.commit_units(key_id, ceiling_units, at_ns=at_ns)
            reserve_id = self._ledger.reserve(
                f"payer:{key_id}", ceiling_units, key=f"{call_id}:reserve", asset=asset, cause=call_id, at_ns=at_ns
            )
            self.db.execute(
                "INSERT INTO calls (call_id, key_id, idempotency_key, request_digest, state, created_at_ns,"
                " updated_at_ns, model, asset, reserve_id, ceiling_units, run_id)"
                " VALUES (?, ?, ?, ?, 'reserved', ?, ?, ?, ?, ?, ?, ?)",
                (
                    call_id,
                    key_id,
                    idempotency_key,
                    request_digest,
                    at_ns,
                    at_ns,
                    model,
                    asset,
                    reserve_id,
                    ceiling_units,
                    run_id,
                ),
            )
            return Begun(self.get(call_id), False)

    def _repeated(self, key_id: str, idempotency_key: str, request_digest: str) -> CallRecord | None:
        rows = self.db.query(
            f"SELECT {_COLUMNS} FROM calls WHERE key_id = ? AND idempotency_key = ? AND state <> 'released'"
            f" UNION ALL SELECT {_COLUMNS} FROM calls WHERE key_id = ? AND idempotency_key = ? AND state = 'released'",
            (key_id, idempotency_key) * 2,
        )
        for (call_id,) in self.db.query(
            "SELECT call_id FROM kept_answers WHERE key_id = ? AND idempotency_key = ?", (key_id, idempotency_key)
        ):
            raise conflict(idempotency_key, call_id)  # a model of another server was asked
        for call in map(self._record, rows):
            if call.request_digest != request_digest:
                raise conflict(idempotency_key, call.call_id)
            if call.state is CallState.RESERVED:
                raise ConflictError(
                    f"{call.call_id} with this idempotency key is still being answered",
                    code="call_in_progress",
                    fix="wait and send the same request again",
                )
            if call.state is not CallState.RELEASED:
                if call.answer is None:
                    raise MissingError(
                        f"the answer of {call.call_id} has been erased",
                        code="answer_forgotten",
                        fix="send the request with a new idempotency key to have it answered again",
                    )
                return call
        return None  # never made, or made and failed without an answer: it may be tried again

    def progress(self, call_id: str, *, answer: bytes, evidence: bytes, price_units: int, at_ns: int) -> None:
        """Keep what has been delivered so far, so that it is charged even if this process dies now."""
        _check_sizes(call_id, answer, evidence)
        with self.db.transaction():
            call = self.get(call_id)
            _check_price(call, price_units)
            if call.state is not CallState.RESERVED:
                raise _wrong_state(call, "record progress of")
            self.db.execute(
                "UPDATE calls SET answer = ?, evidence = ?, progress_units = ?, updated_at_ns = ? WHERE call_id = ?",
                (*self._sealed(call, answer, evidence), price_units, at_ns, call_id),
            )

    def answered(
        self,
        call_id: str,
        *,
        answer: bytes,
        evidence: bytes,
        price_units: int,
        at_ns: int,
        texts: Sequence[str] = (),
    ) -> CallRecord:
        """Keep the answer and charge for it, in one commit. To be called before the client sees the end.

        Also for a client that hung up: with what was generated until then, and its price.

        Args:
            texts: by which `answer_to` knows the answer again.

        Raises:
            RefusedError: ``charge_above_reserve``.
            ConflictError: ``call_state`` when it was released, or answered with other bytes or price.
        """
        _check_sizes(call_id, answer, evidence)
        with self.db.transaction():
            call = self.get(call_id)
            _check_price(call, price_units)
            if call.state in (CallState.ANSWERED, CallState.ATTRIBUTED):
                if (call.answer_digest, call.evidence_digest, call.price_units) != (
                    digest(answer),
                    digest(evidence),
                    price_units,
                ):
                    raise _wrong_state(call, "answer differently")
                return call
            if call.state is CallState.RELEASED:
                raise _wrong_state(call, "answer")
            self._charge(call, price_units, at_ns)
            sealed = self._sealed(call, answer, evidence)
            self.db.execute(
                "UPDATE calls SET state = 'answered', answer = ?, answer_digest = ?, evidence = ?, evidence_digest = ?,"
                " price_units = ?, progress_units = NULL, updated_at_ns = ? WHERE call_id = ?",
                (sealed[0], digest(answer), sealed[1], digest(evidence), price_units, at_ns, call_id),
            )
            self.db.executemany(
                "INSERT INTO answer_marks VALUES (?, ?, ?)"
                " ON CONFLICT (key_id, mark) DO UPDATE SET call_id = excluded.call_id",
                [(call.key_id, self._texts.mark(call.key_id, text), call_id) for text in set(texts) if text],
            )
            return self.get(call_id)

    def answer_to(self, key_id: str, text: str) -> tuple[CallId, int] | None:
        """The newest call of a key that was answered with exactly this text, and when it began; nothing of other keys.

        Nothing either once the answer was erased.
        """
        mark = self._texts.mark_of(key_id, text)
        if mark is None:
            return None
        rows = self.db.query(
            "SELECT calls.call_id, created_at_ns FROM answer_marks JOIN calls ON calls.call_id = answer_marks.call_id"
            " WHERE answer_marks.key_id = ? AND mark = ?",
            (key_id, mark),
        )
        return (CallId(rows[0][0]), rows[0][1]) if rows else None

    def attributed(self, call_id: str, receipt_id: str, payouts: Sequence[TransferDraft], *, at_ns: int) -> CallRecord:
        """Record the receipt and book its payouts, in one commit. The receipt itself must be durable already.

        Raises:
            InvariantError: ``payouts_do_not_sum`` unless they sum to the price, in the call's asset, with the
                receipt as their cause.
            ConflictError: ``call_state`` when it was not answered or has another receipt.
        """
        receipt = check_receipt_id(receipt_id)
        with self.db.transaction():
            call = self.get(call_id)
            if call.state is CallState.ATTRIBUTED and call.receipt_id == receipt:
                return call
            if call.state is not CallState.ANSWERED:
                raise _wrong_state(call, f"attribute with receipt {receipt}")
            total = sum(draft.amount_units for draft in payouts)
            fits = all((d.code, d.asset, d.cause) == (Code.PAYOUT, call.asset, receipt) for d in payouts)
            if total != call.price_units or not fits:
                raise InvariantError(
                    f"{call_id}: payouts of {receipt} sum to {total} nano, its price is {call.price_units}",
                    code="payouts_do_not_sum",
                )
            if payouts:
                self._ledger.post(payouts, key=f"{call_id}:payouts", at_ns=at_ns)
            self.db.execute(
                "UPDATE calls SET state = 'attributed', receipt_id = ?, updated_at_ns = ? WHERE call_id = ?",
                (receipt, at_ns, call_id),
            )
            return self.get(call_id)

    def release(self, call_id: str, *, failure: str, at_ns: int) -> CallRecord:
        """No answer came: give the reservation back. `failure` is a stable code, never text of a request.

        Raises:
            ConflictError: ``call_state`` when it was answered.
        """
        with self.db.transaction():
            call = self.get(call_id)
            if call.state is CallState.RELEASED:
                return call
            if call.state is not CallState.RESERVED:
                raise _wrong_state(call, "release")
            self._ledger.release(call.reserve_id, key=f"{call_id}:release", at_ns=at_ns)
            self._keys.commit_units(call.key_id, -call.ceiling_units, at_ns=call.created_at_ns)
            self.db.execute(
                "UPDATE calls SET state = 'released', failure = ?, answer = NULL, evidence = NULL,"
                " progress_units = NULL, updated_at_ns = ? WHERE call_id = ?",
                (failure or "unknown", at_ns, call_id),
            )
            return self.get(call_id)

    def forget(self, call_id: str, *, at_ns: int) -> CallRecord:
        """Erase answer and evidence from the file; digests, price and receipt stay.

        Raises:
            ConflictError: ``call_state`` while the attribution still needs them.
        """
        with self.db.transaction():
            call = self.get(call_id)
            if call.state in (CallState.RESERVED, CallState.ANSWERED):
                raise _wrong_state(call, "forget")
            self.db.execute(
                "UPDATE calls SET answer = NULL, evidence = NULL, updated_at_ns = ? WHERE call_id = ?", (at_ns, call_id)
            )
            self.db.execute("UPDATE kept_answers SET answer = NULL WHERE call_id = ?", (call_id,))
            self.db.execute("DELETE FROM answer_marks WHERE call_id = ?", (call_id,))
        self.db.scrub()
        return self.get(call_id)

    def forget_owner(self, key_id: str, *, at_ns: int) -> int:
        """Erase all text of a key's calls by deleting the key it is encrypted with; how many calls lost theirs.

        Digests, prices and receipts stay, and receipts verify as before.

        Raises:
            ConflictError: ``call_state`` while the attribution of one of its calls still needs the text.
        """
        with self.db.transaction():
            waiting = self.db.query(
                "SELECT call_id FROM calls WHERE key_id = ? AND state IN ('reserved', 'answered') LIMIT 1", (key_id,)
            )
            if waiting:
                raise _wrong_state(self.get(waiting[0][0]), "forget")
            self._texts.erase(key_id)
            self.db.execute("DELETE FROM answer_marks WHERE key_id = ?", (key_id,))
            count = self.db.execute(
                "UPDATE calls SET answer = NULL, evidence = NULL, updated_at_ns = ?"
                " WHERE key_id = ? AND (answer IS NOT NULL OR evidence IS NOT NULL)",
                (at_ns, key_id),
            ) + self.db.execute(
                "UPDATE kept_answers SET answer = NULL WHERE key_id = ? AND answer IS NOT NULL", (key_id,)
            )
        self.db.scrub()
        return count

    def _sealed(self, call: CallRecord, answer: bytes, evidence: bytes) -> tuple[bytes, bytes]:
        """Answer and evidence as they are written."""
        owner, call_id = call.key_id, call.call_id
        return self._texts.seal(owner, call_id, "answer", answer), self._texts.seal(
            owner, call_id, "evidence", evidence
        )

    def _record(self, row: Row) -> CallRecord:
        fields = list(row)
        call_id, key_id, state, evidence, answer = (fields[i] for i in (0, 1, 4, 12, 13))
        fields[4] = CallState(state)
        fields[12] = self._texts.open(key_id, call_id, "evidence", evidence)
        fields[13] = self._texts.open(key_id, call_id, "answer", answer)
        return CallRecord(*fields)

    def _charge(self, call: CallRecord, price_units: int, at_ns: int) -> None:
        self._ledger.charge(call.reserve_id, price_units, key=f"{call.call_id}:charge", at_ns=at_ns)
        self._keys.commit_units(call.key_id, price_units - call.ceiling_units, at_ns=call.created_at_ns)

    # After a restart

    def recover(self, *, at_ns: int) -> Recovered:
        """Settle what dead processes left behind, and list what is to be attributed. Safe to repeat.

        A reserved call of a dead run is released, or charged for the part it had recorded as delivered.
        Runs that are alive, in this process or another, are left alone.
        """
        released: list[CallId] = []
        charged: list[CallId] = []
        with self.db.transaction():
            runs = [run for (run,) in self.db.query("SELECT DISTINCT run_id FROM calls WHERE state = 'reserved'")]
            for run in runs:
                if self.run_alive(run):
                    continue
                for call_id, progress_units in self.db.query(
                    "SELECT call_id, progress_units FROM calls WHERE state = 'reserved' AND run_id = ? ORDER BY number",
                    (run,),
                ):
                    call = self.get(call_id)
                    if progress_units is None or call.answer is None or call.evidence is None:
                        self.release(call_id, failure="process_died", at_ns=at_ns)
                        released.append(call.call_id)
                    else:
                        self.answered(
                            call_id,
                            answer=call.answer,
                            evidence=call.evidence,
                            price_units=progress_units,
                            at_ns=at_ns,
                        )
                        charged.append(call.call_id)
            waiting = self.db.query("SELECT call_id FROM calls WHERE state = 'answered' ORDER BY number")
        sweep(self._runs, self._run_id)
        return Recovered(tuple(released), tuple(charged), tuple(CallId(call_id) for (call_id,) in waiting))

    # Reading

    def get(self, call_id: str) -> CallRecord:
        """The record of a call.

        Raises:
            MissingError: no such call.
        """
        rows = self.db.query(f"SELECT {_COLUMNS} FROM calls WHERE call_id = ?", (call_id,))
        if not rows:
            raise MissingError(f"no call {call_id[:80]!r}", code="call_unknown", fix="use the id the answer came with")
        return self._record(rows[0])

    def by_receipt(self, receipt_id: str) -> CallRecord:
        """The call that a receipt is about.

        Raises:
            MissingError: no call has it.
        """
        receipt = check_receipt_id(receipt_id)
        rows = self.db.query(f"SELECT {_COLUMNS} FROM calls WHERE receipt_id = ?", (receipt,))
        if not rows:
            raise MissingError(
                f"no call has receipt {receipt}", code="receipt_unknown", fix="use the id of the receipt"
            )
        return self._record(rows[0])

    def unfinished(self, *, limit: int = 1_000) -> tuple[CallRecord, ...]:
        """The oldest calls that are reserved or without a receipt."""
        return tuple(
            self._record(row)
            for row in self.db.query(
                f"SELECT {_COLUMNS} FROM calls WHERE state IN ('reserved', 'answered') ORDER BY number LIMIT ?",
                (limit,),
            )
        )

    def facts(self) -> Mapping[str, CallFact]:
        """What the ledger is held against, by call id; an open lease stands there by its cause."""
        leases = {
            cause: CallFact(True, None, None) for (cause,) in self.db.query("SELECT cause FROM leases ORDER BY cause")
        }
        return leases | {
            call_id: CallFact(state == CallState.RESERVED, price_units, receipt_id)
            for call_id, state, price_units, receipt_id in self.db.query(
                "SELECT call_id, state, price_units, receipt_id FROM calls"
            )
        }

    def check(self) -> tuple[Problem, ...]:
        """Everything that does not hold in the ledger, held against this journal, and in the budgets of keys."""
        with self.db.snapshot():
            problems = list(self._ledger.check(self.facts()))
            committed = Counter[str]()
            for key_id, state, ceiling, price in self.db.query(
                "SELECT key_id, state, ceiling_units, price_units FROM calls WHERE state <> 'released'"
            ):
                committed[key_id] += ceiling if state == CallState.RESERVED else price
            for key_id, units in self.db.query("SELECT key_id, units FROM leases"):
                committed[key_id] += units
            for key in self._keys.list():
                if key.committed_units != committed[key.key_id] or self._keys.days_differ(key):
                    problems.append(
                        Problem(
                            f"key {key.key_id}",
                            "budget_differs",
                            f"counts {key.committed_units} nano, its calls sum to {committed[key.key_id]}",
                            "stop posting, keep the file as evidence and compare it with the last good copy",
                        )
                    )
        return tuple(problems)


def _wrong_state(call: CallRecord, verb: str) -> ConflictError:
    return ConflictError(
        f"cannot {verb} {call.call_id}: it is {call.state}"
        + (f" with price {call.price_units} nano" if call.price_units is not None else ""),
        code="call_state",
        fix="read the call again; it has moved on",
    )


def _check_price(call: CallRecord, price_units: int) -> None:
    if price_units < 0:
        raise InvalidError(f"price of {price_units} nano", code="amount_out_of_range", fix="charge 0 or more")
    if price_units > call.ceiling_units:
        raise RefusedError(
            f"{call.call_id}: price {price_units} nano, {call.ceiling_units} were reserved",
            code="charge_above_reserve",
            fix="stop generating at the ceiling",
        )


def _check_sizes(call_id: str, answer: bytes, evidence: bytes) -> None:
    size = len(answer) + len(evidence)
    if size > CALL_RECORD_SIZE_BYTES_MAX:
        raise InvalidError(
            f"{call_id}: answer and evidence of {size} bytes",
            code="call_too_large",
            fix=f"keep at most {CALL_RECORD_SIZE_BYTES_MAX} bytes per call",
        )
