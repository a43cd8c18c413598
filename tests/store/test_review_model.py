"""Review as a state machine: whatever people and clocks do, every submission ends and no two roles coincide."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headwater.core.errors import HeadwaterError
from headwater.core.instants import DAY_NS, SECOND_NS
from headwater.registry import License, owned_equally, unenrolled
from headwater.registry.datanet import Card, Datanet, Rules, UseTerms
from headwater.registry.review import Vote
from headwater.registry.submission import ENDS
from headwater.store.database import Database
from headwater.store.datanet_intake import Intake, Read
from headwater.store.registry_store import RegistryStore
from headwater.store.review_settling import Reviewing
from headwater.store.review_store import ReviewStore
from headwater.store.submission_store import Offered

START = 1_700_000_000 * SECOND_NS
PEOPLE = [unenrolled("model", f"person {number}") for number in range(7)]
OWNER = PEOPLE[0]
CLUSTERS = {PEOPLE[5].id: "one", PEOPLE[6].id: "one"}
RULES = Rules(quorum=3, appeal_quorum=3, sample_max=2, answer_ns=2 * DAY_NS, review_ns=5 * DAY_NS, appeal_ns=3 * DAY_NS)
CARD = Card("Model", "CC0-1.0", (UseTerms("ground"),))


def text(number: int) -> bytes:
    """A text that resembles no other one."""
    return " ".join(f"w{number * 1_000 + place}" for place in range(30)).encode()


class ReviewMachine(RuleBasedStateMachine):
    """Anybody does anything at any time; the machine's clock jumps to and fro, and the process is started again."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.now, self.made, self.draws = START, 0, 0
        self.voted: dict[tuple[str, str], str] = {}
        self.open()
        self.registry.add_contributors(PEOPLE)
        datanet = Datanet("model", OWNER.id, "0x" + "1" * 40, START, CARD, RULES)
        self.kept = self.intake.datanets.create(datanet, START)
        for person in PEOPLE:
            if person is not OWNER:
                self.reviewing.reviews.add_reviewer(self.kept.number, person.id, START)
        for number, verdict in enumerate(("accept", "refuse", "accept")):
            self.reviewing.reviews.add_gold(self.kept.number, f"gold {number}", text(900 + number), verdict, START)

    def open(self) -> None:
        self.database = Database(Path(self.folder.name) / "headwater.db")
        self.registry = RegistryStore(self.database)
        self.intake = Intake(self.database, self.registry)
        reviews = ReviewStore(self.database, random_bytes=lambda size: b"\x07" * size)
        self.reviewing = Reviewing(self.database, self.registry, reviews)

    def attempt(self, act: Any, *arguments: Any, **named: Any) -> Any:
        """What refuses on purpose refuses; anything else is a bug and comes through."""
        try:
            return act(*arguments, **named)
        except HeadwaterError as error:
            if error.code in ("constraint_failed", "database_misused", "content_digest_wrong"):
                raise
            return None

    def value(self) -> dict[str, Any]:
        self.draws += 1
        return {"public_value": f"value {self.draws}", "source": "model", "clusters": CLUSTERS}

    def rows(self) -> list[Any]:
        return list(self.reviewing.submissions.select(self.kept.number, limit=10_000))

    @rule(rows=st.lists(st.integers(0, 11), min_size=1, max_size=5), who=st.integers(0, 6), finish=st.booleans())
    def submit(self, rows: list[int], who: int, finish: bool) -> None:
        self.made += 1
        owners = owned_equally([PEOPLE[who].id])
        licence = License("CC0-1.0", frozenset({"ground"}))
        offered = Offered(self.kept.number, "document", owners, licence, "s", f"sha256:{self.made}", len(rows))
        batch = self.intake.open(self.kept, offered, [], self.now)
        reads = [Read(f"text {number}", text(number), place + 1) for place, number in enumerate(rows)]
        if finish:
            self.intake.take(self.kept, batch, reads, lambda: self.now)
        else:  # the process died after the first part
            self.intake._keep(self.kept, batch, reads[:1], {}, self.now, {})

    @rule(seconds=st.integers(-10 * 86_400, 10 * 86_400))
    def time_passes(self, seconds: int) -> None:
        self.now = max(1, self.now + seconds * SECOND_NS)

    @rule()
    def settle(self) -> None:
        self.reviewing.settle(self.now, **self.value())

    @rule()
    def start_again(self) -> None:
        self.database.close()
        self.open()

    @rule(who=st.integers(0, 6), accept=st.booleans())
    def vote(self, who: int, accept: bool) -> None:
        person = PEOPLE[who].id
        for task in self.reviewing.reviews.next(person, limit=3):
            verdict = "accept" if accept else "refuse"
            vote = Vote(person, verdict, () if accept else ("low_quality",))  # type: ignore[arg-type]
            self.attempt(self.reviewing.vote, task.id, vote, self.now)
            held = [one for one in self.reviewing.reviews.assignments(task.number) if one.reviewer == person]
            if held[0].verdict is not None:
                self.voted[(task.id, person)] = held[0].verdict

    @rule(who=st.integers(0, 6), which=st.integers(0, 100))
    def appeal(self, who: int, which: int) -> None:
        rows = [one for one in self.rows() if one.state in ("accepting", "refusing")]
        if rows:
            one = rows[which % len(rows)]
            self.attempt(self.reviewing.appeal, one.id, PEOPLE[who].id, "because", self.now, **self.value())

    @rule(who=st.integers(0, 6), which=st.integers(0, 100))
    def withdraw(self, who: int, which: int) -> None:
        rows = self.rows()
        if rows:
            self.attempt(self.reviewing.withdraw, rows[which % len(rows)].id, PEOPLE[who].id, self.now)

    @rule(who=st.integers(1, 6), stays=st.booleans())
    def reviewers_come_and_go(self, who: int, stays: bool) -> None:
        reviews, person = self.reviewing.reviews, PEOPLE[who].id
        if stays:
            self.attempt(reviews.add_reviewer, self.kept.number, person, self.now)
        else:
            reviews.remove_reviewer(self.kept.number, person, self.now)

    @invariant()
    def roles_never_coincide(self) -> None:
        """Nobody is given their own, the owner nothing, a cluster one vote at most, an appeal nobody who was asked."""
        if not hasattr(self, "reviewing"):
            return
        for one in self.rows():
            contributors = {owner.contributor_id for owner in self.reviewing.submissions.owners(one.batch)}
            barred = {CLUSTERS[person] for person in contributors if person in CLUSTERS}
            asked_before: set[str] = set()
            for task in self.reviewing.reviews.tasks_of(one.number):
                asked = [held.reviewer for held in self.reviewing.reviews.assignments(task.number)]
                assert not contributors & set(asked)
                assert OWNER.id not in asked
                assert not asked_before & set(asked)
                assert not barred & {CLUSTERS[person] for person in asked if person in CLUSTERS}
                assert sum(person in CLUSTERS for person in asked) <= 1
                asked_before |= set(asked)

    @invariant()
    def votes_stay(self) -> None:
        """What somebody voted is what is kept, for ever."""
        if not hasattr(self, "reviewing"):
            return
        for (task, person), verdict in self.voted.items():
            number = self.reviewing.reviews.task(task).number
            held = {one.reviewer: one.verdict for one in self.reviewing.reviews.assignments(number)}
            assert held[person] == verdict  # type: ignore[index]

    @invariant()
    def bytes_have_one_owner(self) -> None:
        """Members are registered, and what was accepted is a member."""
        if not hasattr(self, "reviewing"):
            return
        members = set(self.reviewing.datanets.members(self.kept))
        accepted = [one for one in self.rows() if one.state == "accepted"]
        assert {one.contribution for one in accepted} <= members

    def teardown(self) -> None:
        """Whatever state people left things in, time alone brings every submission to its end."""
        if not hasattr(self, "reviewing"):
            return
        for _ in range(40):
            self.now += DAY_NS
            self.reviewing.settle(self.now, **self.value())
        assert {one.state for one in self.rows()} <= set(ENDS)
        assert not self.reviewing.reviews.open_tasks()
        assert not self.reviewing.submissions.open_batches()
        assert self.reviewing.recheck(self.kept) == ()
        self.database.close()
        self.folder.cleanup()


ReviewMachine.TestCase.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestReview = ReviewMachine.TestCase
