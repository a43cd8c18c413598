"""Reviews on disk: reviewers, draws by public values, tasks, assignments with deadlines, votes, gold and slashes.

Invariants: a draw keeps everything that is needed to draw again; a vote is given once and never changed; a gold task
looks like any other. Who is drawn next and what votes decide is `registry.review`'s; when, `review_settling`'s.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from headwater.core.errors import ConflictError, InvalidError, MissingError, RefusedError
from headwater.core.ids import ContributorId
from headwater.registry.review import NOTE_CHARS_MAX, Verdict, Vote, seed_of
from headwater.registry.review_gold import GoldRecord, Slash, commitment, is_gold, slash
from headwater.registry.review_scores import Task
from headwater.registry.submission import State
from headwater.store.database import Row, Sql

_STEPS = (
    """
    CREATE TABLE reviewers (
      datanet INTEGER NOT NULL,
      reviewer TEXT NOT NULL,
      since_ns INTEGER NOT NULL,
      until_ns INTEGER,
      PRIMARY KEY (datanet, reviewer)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE review_draws (
      number INTEGER PRIMARY KEY,
      datanet INTEGER NOT NULL,
      public_value TEXT NOT NULL,
      source TEXT NOT NULL,
      reviewers TEXT NOT NULL,
      clusters TEXT NOT NULL,
      at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE review_gold (
      number INTEGER PRIMARY KEY,
      datanet INTEGER NOT NULL,
      digest TEXT NOT NULL,
      title TEXT NOT NULL,
      bytes BLOB NOT NULL,
      verdict TEXT NOT NULL CHECK (verdict IN ('accept', 'refuse')),
      at_ns INTEGER NOT NULL,
      UNIQUE (datanet, digest)
    ) STRICT;
    CREATE TABLE review_secrets (
      datanet INTEGER PRIMARY KEY,
      secret BLOB NOT NULL
    ) STRICT;
    CREATE TABLE review_tasks (
      number INTEGER PRIMARY KEY,
      id TEXT NOT NULL UNIQUE,
      datanet INTEGER NOT NULL,
      submission INTEGER,
      gold INTEGER REFERENCES review_gold (number),
      draw INTEGER NOT NULL REFERENCES review_draws (number),
      appeal INTEGER NOT NULL CHECK (appeal IN (0, 1)),
      quorum INTEGER NOT NULL,
      opened_at_ns INTEGER NOT NULL,
      closes_at_ns INTEGER NOT NULL,
      outcome TEXT CHECK (outcome IN ('accept', 'refuse', 'none', 'void')),
      closed_at_ns INTEGER,
      CHECK ((submission IS NULL) <> (gold IS NULL))
    ) STRICT;
    CREATE INDEX review_tasks_open ON review_tasks (closes_at_ns) WHERE outcome IS NULL;
    CREATE UNIQUE INDEX review_tasks_by_submission ON review_tasks (submission, appeal) WHERE submission IS NOT NULL;
    CREATE TABLE review_assignments (
      task INTEGER NOT NULL REFERENCES review_tasks (number),
      reviewer TEXT NOT NULL,
      place INTEGER NOT NULL,
      assigned_at_ns INTEGER NOT NULL,
      due_at_ns INTEGER NOT NULL,
      state TEXT NOT NULL CHECK (state IN ('open', 'voted', 'lapsed')),
      verdict TEXT CHECK (verdict IN ('accept', 'refuse')),
      reasons TEXT NOT NULL DEFAULT '',
      note TEXT NOT NULL DEFAULT '',
      voted_at_ns INTEGER,
      share INTEGER,
      PRIMARY KEY (task, reviewer),
      CHECK ((verdict IS NOT NULL) = (state = 'voted'))
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX review_assignments_by_reviewer ON review_assignments (reviewer, state, task);
    CREATE INDEX review_assignments_due ON review_assignments (due_at_ns) WHERE state = 'open';
    CREATE TABLE review_appeals (
      submission INTEGER PRIMARY KEY,
      by_whom TEXT NOT NULL,
      reason TEXT NOT NULL,
      stood TEXT NOT NULL CHECK (stood IN ('accepting', 'refusing')),
      at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE review_slashes (
      number INTEGER PRIMARY KEY,
      reviewer TEXT NOT NULL,
      bps INTEGER NOT NULL,
      answered INTEGER NOT NULL,
      right INTEGER NOT NULL,
      chance_ppm INTEGER NOT NULL,
      at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE review_shares (
      number INTEGER PRIMARY KEY,
      datanet INTEGER,
      shares TEXT NOT NULL,
      policy_digest TEXT NOT NULL,
      at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TRIGGER review_votes_stay BEFORE UPDATE OF verdict, reasons, note, reviewer ON review_assignments
    WHEN OLD.state = 'voted'
    BEGIN SELECT RAISE(ABORT, 'a vote is never changed'); END;
    CREATE TRIGGER review_votes_are_kept BEFORE DELETE ON review_assignments
    BEGIN SELECT RAISE(ABORT, 'a vote is never removed'); END;
    """,
)
_TASK = (
    "t.number, t.id, t.datanet, t.submission, t.gold, t.draw, t.appeal, t.quorum, t.opened_at_ns, t.closes_at_ns,"
    " t.outcome"
)


@dataclass(frozen=True, slots=True)
class Draw:
    """A public value and whom it could draw."""

    number: int
    datanet: int
    public_value: str
    source: str  # where the value can be looked up
    reviewers: tuple[ContributorId, ...]
    clusters: Mapping[ContributorId, str]
    at_ns: int

    @property
    def seed(self) -> bytes:
        """What orders reviewers."""
        return seed_of(self.public_value)


@dataclass(frozen=True, slots=True)
class ReviewTask:
    """One question: is this to be taken?"""

    number: int
    id: str
    datanet: int
    submission: int | None
    gold: int | None
    draw: int
    appeal: bool
    quorum: int
    opened_at_ns: int
    closes_at_ns: int
    outcome: str | None  # accept, refuse, none (nobody decided), void (withdrawn); None while open


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task in a reviewer's hands."""

    task: int
    reviewer: ContributorId
    place: int
    due_at_ns: int
    state: str  # open, voted or lapsed
    verdict: Verdict | None
    reasons: tuple[str, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Appeal:
    """Who does not accept a decision, and why."""

    by_whom: ContributorId
    reason: str
    stood: State  # accepting or refusing: what was decided, and stands if nobody decides again


class ReviewStore:
    """The reviews in `database`; its tables are made on first use.

    Args:
        random_bytes: makes the secret that hides gold, once for each datanet.
    """

    def __init__(self, database: Sql, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self.database, self._random_bytes = database, random_bytes
        database.migrate("reviews", _STEPS)

    # Reviewers and gold

    def add_reviewer(self, datanet: int, reviewer: ContributorId, now_ns: int) -> None:
        """Let somebody review for a datanet from now on.

        Raises:
            RefusedError: ``reviewer_slashed``.
        """
        if self.slashes(reviewer):
            raise RefusedError(
                f"{reviewer} was slashed on gold tasks", code="reviewer_slashed", fix="let somebody else review"
            )
        self.database.execute(
            "INSERT INTO reviewers VALUES (?, ?, ?, NULL) ON CONFLICT (datanet, reviewer)"
            " DO UPDATE SET since_ns = excluded.since_ns, until_ns = NULL WHERE reviewers.until_ns IS NOT NULL",
            (datanet, reviewer, now_ns),
        )

    def stands_since(self, datanet: int, reviewer: ContributorId, at_ns: int) -> bool:
        """Whether somebody could be drawn at an instant and ever since."""
        rows = self.database.query(
            "SELECT 1 FROM reviewers WHERE datanet = ? AND reviewer = ? AND since_ns <= ? AND until_ns IS NULL",
            (datanet, reviewer, at_ns),
        )
        return bool(rows)

    def remove_reviewer(self, datanet: int, reviewer: ContributorId, now_ns: int) -> bool:
        """Draw somebody no more; what they were given stays theirs. Whether they were drawn until now."""
        return bool(
            self.database.execute(
                "UPDATE reviewers SET until_ns = ? WHERE datanet = ? AND reviewer = ? AND until_ns IS NULL",
                (now_ns, datanet, reviewer),
            )
        )

    def reviewers(self, datanet: int) -> tuple[ContributorId, ...]:
        """Who may be drawn for a datanet now, sorted."""
        rows = self.database.query(
            "SELECT reviewer FROM reviewers WHERE datanet = ? AND until_ns IS NULL ORDER BY reviewer", (datanet,)
        )
        return tuple(ContributorId(row[0]) for row in rows)

    def ever_reviewed(self) -> tuple[ContributorId, ...]:
        """Everybody who may review or has ever been given a task, sorted."""
        rows = self.database.query("SELECT reviewer FROM reviewers UNION SELECT reviewer FROM review_assignments")
        return tuple(ContributorId(name) for (name,) in sorted(rows))

    def add_gold(self, datanet: int, title: str, content: bytes, verdict: Verdict, now_ns: int) -> bool:
        """Keep an item whose right answer is known; whether it was not kept before.

        Raises:
            ConflictError: it is kept with the other answer.
        """
        name = "sha256:" + hashlib.sha256(content).hexdigest()
        with self.database.transaction():
            rows = self.database.query(
                "SELECT verdict FROM review_gold WHERE datanet = ? AND digest = ?", (datanet, name)
            )
            if rows and rows[0][0] != verdict:
                raise ConflictError(f"{name} is gold to {rows[0][0]}", code="gold_differs", fix="use another item")
            if not rows:
                self.database.execute(
                    "INSERT INTO review_gold (datanet, digest, title, bytes, verdict, at_ns) VALUES (?, ?, ?, ?, ?, ?)",
                    (datanet, name, title, content, verdict, now_ns),
                )
        return not rows

    def gold_count(self, datanet: int) -> int:
        """How many gold items a datanet has."""
        return int(self.database.query("SELECT count(*) FROM review_gold WHERE datanet = ?", (datanet,))[0][0])

    def secret(self, datanet: int) -> bytes:
        """What hides a datanet's gold, 32 bytes; made when it is first needed."""
        with self.database.transaction():
            rows = self.database.query("SELECT secret FROM review_secrets WHERE datanet = ?", (datanet,))
            if not rows:
                self.database.execute("INSERT INTO review_secrets VALUES (?, ?)", (datanet, self._random_bytes(32)))
                rows = self.database.query("SELECT secret FROM review_secrets WHERE datanet = ?", (datanet,))
        return bytes(rows[0][0])

    def commitment(self, datanet: int) -> str:
        """What is published of that secret before it is used."""
        return commitment(self.secret(datanet))

    # Draws and tasks

    def add_draw(
        self,
        datanet: int,
        public_value: str,
        source: str,
        reviewers: Sequence[ContributorId],
        clusters: Mapping[ContributorId, str],
        now_ns: int,
    ) -> Draw:
        """Keep a public value and whom it can draw."""
        seed_of(public_value)
        named = {name: clusters[name] for name in sorted(clusters)}
        [(number,)] = self.database.query(
            "INSERT INTO review_draws (datanet, public_value, source, reviewers, clusters, at_ns)"
            " VALUES (?, ?, ?, ?, ?, ?) RETURNING number",
            (datanet, public_value, source, json.dumps(list(reviewers)), json.dumps(named), now_ns),
        )
        return self.draw(number)

    def draw(self, number: int) -> Draw:
        """A draw by its number."""
        [row] = self.database.query(
            "SELECT number, datanet, public_value, source, reviewers, clusters, at_ns FROM review_draws"
            " WHERE number = ?",
            (number,),
        )
        reviewers = tuple(ContributorId(name) for name in json.loads(row[4]))
        return Draw(row[0], row[1], row[2], row[3], reviewers, json.loads(row[5]), row[6])

    def open_task(
        self, draw: Draw, submission: int, *, appeal: bool, quorum: int, now_ns: int, closes_at_ns: int
    ) -> ReviewTask:
        """Ask reviewers about a submission; nobody is assigned yet."""
        mark = f"\x00{submission}\x00{int(appeal)}".encode()
        id = "rvt_" + hashlib.sha256(self.secret(draw.datanet) + mark).hexdigest()[:32]
        self.database.execute(
            "INSERT INTO review_tasks (id, datanet, submission, draw, appeal, quorum, opened_at_ns, closes_at_ns)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (id, draw.datanet, submission, draw.number, int(appeal), quorum, now_ns, closes_at_ns),
        )
        return self.task(id)

    def assign(self, task: ReviewTask, reviewer: ContributorId, *, now_ns: int, due_at_ns: int, gold_ppm: int) -> None:
        """Give a task to a reviewer and, where the secret says so, a gold task beside it."""
        [(place,)] = self.database.query("SELECT count(*) FROM review_assignments WHERE task = ?", (task.number,))
        self._assign(task.number, reviewer, place, now_ns, due_at_ns)
        secret = self.secret(task.datanet)
        if is_gold(secret, task.id, reviewer, gold_ppm):
            self._assign_gold(task, reviewer, secret, now_ns, due_at_ns)

    def task(self, id: str) -> ReviewTask:
        """A task by its id.

        Raises:
            MissingError: ``task_missing``.
        """
        rows = self.database.query(f"SELECT {_TASK} FROM review_tasks t WHERE id = ?", (id,))
        if not rows:
            raise MissingError(f"no task {id[:60]!r}", code="task_missing", fix="see `headwater review next`")
        return _task(rows[0])

    def open_tasks(self) -> tuple[ReviewTask, ...]:
        """Tasks about submissions that are not decided yet, oldest first."""
        rows = self.database.query(
            f"SELECT {_TASK} FROM review_tasks t WHERE outcome IS NULL AND submission IS NOT NULL ORDER BY number"
        )
        return tuple(map(_task, rows))

    def tasks_of(self, submission: int) -> tuple[ReviewTask, ...]:
        """The tasks about a submission: its review, then its appeal."""
        rows = self.database.query(
            f"SELECT {_TASK} FROM review_tasks t WHERE submission = ? ORDER BY appeal", (submission,)
        )
        return tuple(map(_task, rows))

    def closed_tasks(self, datanet: int) -> tuple[ReviewTask, ...]:
        """Decided tasks about a datanet's submissions, oldest first."""
        rows = self.database.query(
            f"SELECT {_TASK} FROM review_tasks t WHERE datanet = ? AND outcome IS NOT NULL AND submission IS NOT NULL"
            " ORDER BY number",
            (datanet,),
        )
        return tuple(map(_task, rows))

    def assignments(self, task: int) -> tuple[Assignment, ...]:
        """Who was given a task, in the order they were."""
        rows = self.database.query(
            "SELECT task, reviewer, place, due_at_ns, state, verdict, reasons, note FROM review_assignments"
            " WHERE task = ? ORDER BY place",
            (task,),
        )
        return tuple(_assignment(row) for row in rows)

    def close_task(self, task: ReviewTask, outcome: str, now_ns: int) -> None:
        """Close a task; assignments that are still open lapse."""
        with self.database.transaction():
            self.database.execute(
                "UPDATE review_tasks SET outcome = ?, closed_at_ns = ? WHERE number = ? AND outcome IS NULL",
                (outcome, now_ns, task.number),
            )
            self.database.execute(
                "UPDATE review_assignments SET state = 'lapsed' WHERE task = ? AND state = 'open'", (task.number,)
            )

    def lapse(self, now_ns: int) -> int:
        """Take tasks from reviewers whose time is over; gives how many."""
        return self.database.execute(
            "UPDATE review_assignments SET state = 'lapsed' WHERE state = 'open' AND due_at_ns <= ?", (now_ns,)
        )

    # Work

    def next(self, reviewer: ContributorId, datanet: int | None = None, limit: int = 1) -> tuple[ReviewTask, ...]:
        """What a reviewer has in hand; in an order that says nothing of which tasks are gold."""
        rows = self.database.query(
            f"SELECT {_TASK} FROM review_assignments a JOIN review_tasks t ON t.number = a.task"
            f" WHERE a.reviewer = ? AND a.state = 'open'{_of(datanet)} ORDER BY t.id LIMIT ?",
            (reviewer, *_given(datanet), limit),
        )
        return tuple(map(_task, rows))

    def gold_item(self, number: int) -> tuple[str, bytes]:
        """Title and bytes of a gold item."""
        [(title, content)] = self.database.query("SELECT title, bytes FROM review_gold WHERE number = ?", (number,))
        return title, bytes(content)

    def vote(self, task: ReviewTask, vote: Vote, now_ns: int) -> Slash | None:
        """Keep a vote; the same vote again changes nothing. Gives the slash that a gold task leads to, if it does.

        Raises:
            RefusedError: ``not_assigned``, ``task_lapsed``.
            ConflictError: ``vote_given``, another vote than before.
        """
        with self.database.transaction():
            held = next((one for one in self.assignments(task.number) if one.reviewer == vote.reviewer), None)
            if held is None:
                raise RefusedError(
                    f"{task.id} was not given to {vote.reviewer}",
                    code="not_assigned",
                    fix="see `headwater review next`",
                )
            if held.state == "voted":
                if (held.verdict, held.reasons, held.note) != (vote.verdict, vote.reasons, vote.note):
                    raise ConflictError(
                        f"{vote.reviewer} voted {held.verdict} on {task.id}", code="vote_given", fix="a vote stays"
                    )
                return None
            if held.state == "lapsed" or now_ns >= held.due_at_ns:
                raise RefusedError(f"the time for {task.id} is over", code="task_lapsed", fix="take the next task")
            self.database.execute(
                "UPDATE review_assignments SET state = 'voted', verdict = ?, reasons = ?, note = ?, voted_at_ns = ?"
                " WHERE task = ? AND reviewer = ?",
                (vote.verdict, " ".join(vote.reasons), vote.note, now_ns, task.number, vote.reviewer),
            )
            if task.gold is None:
                return None
            self.close_task(task, "void", now_ns)
            return self._judge(vote.reviewer, now_ns)

    def reports(self, datanet: int | None = None) -> tuple[Task, ...]:
        """All votes on closed tasks about submissions, in the order the tasks were opened."""
        found: dict[str, dict[ContributorId, Verdict]] = {}
        for id, reviewer, verdict in self.database.query(
            "SELECT t.id, a.reviewer, a.verdict FROM review_tasks t JOIN review_assignments a ON a.task = t.number"
            f" WHERE t.submission IS NOT NULL AND t.outcome IS NOT NULL AND a.state = 'voted'{_of(datanet)}"
            " ORDER BY t.number, a.place",
            _given(datanet),
        ):
            found.setdefault(id, {})[ContributorId(reviewer)] = verdict
        return tuple(Task(id, reports) for id, reports in found.items())

    def gold_record(self, reviewer: ContributorId) -> GoldRecord:
        """How a reviewer has done on gold, everywhere."""
        [(answered, right)] = self.database.query(
            "SELECT count(*), count(*) FILTER (WHERE a.verdict = g.verdict) FROM review_assignments a"
            " JOIN review_tasks t ON t.number = a.task JOIN review_gold g ON g.number = t.gold"
            " WHERE a.reviewer = ? AND a.state = 'voted'",
            (reviewer,),
        )
        return GoldRecord(reviewer, answered, right)

    def agreement(self, reviewer: ContributorId) -> tuple[int, int]:
        """(votes that were as the outcome, votes on tasks that were decided)."""
        [(right, answered)] = self.database.query(
            "SELECT count(*) FILTER (WHERE a.verdict = t.outcome), count(*) FROM review_assignments a"
            " JOIN review_tasks t ON t.number = a.task WHERE a.reviewer = ? AND a.state = 'voted'"
            " AND t.outcome IN ('accept', 'refuse')",
            (reviewer,),
        )
        return right, answered

    def slashes(self, reviewer: ContributorId | None = None) -> tuple[tuple[Slash, int], ...]:
        """Decisions to slash, each with its instant; of everybody, or of one."""
        where, params = ("", ()) if reviewer is None else (" WHERE reviewer = ?", (reviewer,))
        rows = self.database.query(
            f'SELECT reviewer, bps, answered, "right", chance_ppm, at_ns FROM review_slashes{where} ORDER BY number',
            params,
        )
        return tuple((Slash(ContributorId(row[0]), *row[1:5]), row[5]) for row in rows)

    # Pay

    def unpaid(self, datanet: int | None = None) -> dict[ContributorId, int]:
        """Tasks that each reviewer has answered and no share of a line has counted; gold counts like any other."""
        rows = self.database.query(
            "SELECT a.reviewer, count(*) FROM review_assignments a JOIN review_tasks t ON t.number = a.task"
            f" WHERE a.state = 'voted' AND a.share IS NULL{_of(datanet)} GROUP BY a.reviewer",
            _given(datanet),
        )
        return {ContributorId(name): count for name, count in sorted(rows)}

    def add_share(
        self,
        datanet: int | None,
        shares: Sequence[tuple[ContributorId, int]],
        counted: Iterable[ContributorId],
        policy_digest: str,
        now_ns: int,
    ) -> int:
        """Keep how a line is shared from now on, and whose tasks that counted; gives its number."""
        with self.database.transaction():
            [(number,)] = self.database.query(
                "INSERT INTO review_shares (datanet, shares, policy_digest, at_ns) VALUES (?, ?, ?, ?)"
                " RETURNING number",
                (datanet, json.dumps([list(one) for one in shares]), policy_digest, now_ns),
            )
            here = "" if datanet is None else " AND task IN (SELECT number FROM review_tasks WHERE datanet = ?)"
            self.database.executemany(
                "UPDATE review_assignments SET share = ?"
                f" WHERE reviewer = ? AND state = 'voted' AND share IS NULL{here}",
                [(number, reviewer, *_given(datanet)) for reviewer in counted],
            )
        return int(number)

    # Appeals

    def add_appeal(self, submission: int, appeal: Appeal, now_ns: int) -> None:
        """Keep that somebody appealed, and why.

        Raises:
            ConflictError: ``appealed_before``.
            InvalidError: ``appeal_invalid``.
        """
        if not 0 < len(appeal.reason) <= NOTE_CHARS_MAX or not appeal.reason.isprintable():
            raise InvalidError(
                f"an appeal with a reason of {len(appeal.reason)} characters",
                code="appeal_invalid",
                fix=f"say why, in 1 to {NOTE_CHARS_MAX} printable characters",
            )
        if self.appeal(submission) is not None:
            raise ConflictError("it was appealed before", code="appealed_before", fix="an appeal's decision is final")
        self.database.execute(
            "INSERT INTO review_appeals VALUES (?, ?, ?, ?, ?)",
            (submission, appeal.by_whom, appeal.reason, appeal.stood, now_ns),
        )

    def appeal(self, submission: int) -> Appeal | None:
        """The appeal of a submission's decision, if there is one."""
        rows = self.database.query(
            "SELECT by_whom, reason, stood FROM review_appeals WHERE submission = ?", (submission,)
        )
        return Appeal(ContributorId(rows[0][0]), rows[0][1], rows[0][2]) if rows else None

    # Inside

    def _assign(self, task: int, reviewer: ContributorId, place: int, now_ns: int, due_at_ns: int) -> None:
        self.database.execute(
            "INSERT INTO review_assignments (task, reviewer, place, assigned_at_ns, due_at_ns, state)"
            " VALUES (?, ?, ?, ?, ?, 'open')",
            (task, reviewer, place, now_ns, due_at_ns),
        )

    def _assign_gold(
        self, beside: ReviewTask, reviewer: ContributorId, secret: bytes, now_ns: int, due_at_ns: int
    ) -> None:
        """A gold item the reviewer has not seen, if one is left, as a task of its own."""
        rows = self.database.query(
            "SELECT number FROM review_gold g WHERE datanet = ? AND NOT EXISTS (SELECT 1 FROM review_tasks t"
            " JOIN review_assignments a ON a.task = t.number WHERE t.gold = g.number AND a.reviewer = ?)",
            (beside.datanet, reviewer),
        )
        if not rows:
            return
        mark = f"\x00{beside.id}\x00{reviewer}\x00gold".encode()
        drawn = hashlib.sha256(secret + mark).hexdigest()
        gold = rows[int(drawn[32:], 16) % len(rows)][0]
        id = "rvt_" + drawn[:32]
        self.database.execute(
            "INSERT INTO review_tasks (id, datanet, gold, draw, appeal, quorum, opened_at_ns, closes_at_ns)"
            " VALUES (?, ?, ?, ?, ?, 1, ?, ?)",
            (id, beside.datanet, gold, beside.draw, int(beside.appeal), now_ns, due_at_ns),
        )
        self._assign(self.task(id).number, reviewer, 0, now_ns, due_at_ns)

    def _judge(self, reviewer: ContributorId, now_ns: int) -> Slash | None:
        decision = None if self.slashes(reviewer) else slash(self.gold_record(reviewer))
        if decision is not None:
            self.database.execute(
                'INSERT INTO review_slashes (reviewer, bps, answered, "right", chance_ppm, at_ns)'
                " VALUES (?, ?, ?, ?, ?, ?)",
                (reviewer, decision.bps, decision.answered, decision.right, decision.chance_ppm, now_ns),
            )
            self.database.execute(
                "UPDATE reviewers SET until_ns = ? WHERE reviewer = ? AND until_ns IS NULL", (now_ns, reviewer)
            )
            self.database.execute(
                "UPDATE review_assignments SET state = 'lapsed' WHERE reviewer = ? AND state = 'open'", (reviewer,)
            )
        return decision


def _of(datanet: int | None) -> str:
    """Narrows a question about tasks `t` to a datanet, if one is meant; `_given` is its parameter."""
    return "" if datanet is None else " AND t.datanet = ?"


def _given(datanet: int | None) -> tuple[int, ...]:
    return () if datanet is None else (datanet,)


def _task(row: Row) -> ReviewTask:
    number, id, datanet, submission, gold, draw, appeal, quorum, opened, closes, outcome = row
    return ReviewTask(number, id, datanet, submission, gold, draw, bool(appeal), quorum, opened, closes, outcome)


def _assignment(row: Row) -> Assignment:
    return Assignment(row[0], ContributorId(row[1]), row[2], row[3], row[4], row[5], tuple(row[6].split()), row[7])
