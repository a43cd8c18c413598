"""Feedback on record: review, quota and copies, without HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.core.errors import ConflictError, HeadwaterError, MissingError
from headwater.registry.feedback import DAY, HOUR, PER_DAY_MAX, PER_HOUR_MAX, Feedback, judge, within_quota
from headwater.store.consent_store import ConsentStore
from headwater.store.database import Database
from headwater.store.feedback_store import FeedbackStore
from headwater.store.registry_store import RegistryStore

RECEIPT = "ab" * 32


@pytest.fixture
def database(tmp_path: Path):
    """An empty home's database."""
    with Database(tmp_path / "headwater.db") as opened:
        yield opened


@pytest.fixture
def store(database: Database) -> FeedbackStore:
    """No feedback yet."""
    return FeedbackStore(database, RegistryStore(database))


def give(store: FeedbackStore, said: Feedback, key: str = "key_1", now_ns: int = 5, reviewed: bool = True):
    """Feedback of a key; its record."""
    return store.give(said, key_id=key, request_digest="d", now_ns=now_ns, reviewed=reviewed)[0]


def test_reviewed_feedback_waits_and_is_decided_once(store: FeedbackStore) -> None:
    """Pending, then accepted; the same verdict again is fine, the other one is a conflict."""
    record = give(store, judge(RECEIPT, "q", "a", correction="b"))

    assert record.review == "pending"
    assert store.review(record.contribution, "accepted", "Ada", 9).reviewed_by == "Ada"
    assert store.review(record.contribution, "accepted", "Eve", 10).reviewed_by == "Ada"
    with pytest.raises(ConflictError):
        store.review(record.contribution, "declined", "Eve", 11)
    assert [one.contribution for one in store.list("accepted")] == [record.contribution]
    assert store.list("pending") == ()


def test_without_review_feedback_is_accepted_at_once_unless_it_is_a_copy(store: FeedbackStore) -> None:
    """A copy stays declined whoever sends it and however its answer was worded."""
    first = give(store, judge(RECEIPT, "why?", "because", correction="for speed"), reviewed=False)
    copy = give(store, judge("cd" * 32, " WHY? ", "just so", correction="For  speed"), key="key_2", reviewed=False)

    assert first.review == "accepted"
    assert (copy.review, copy.copied_from) == ("declined", first.contribution)


def test_ratings_are_no_copies_of_each_other(store: FeedbackStore) -> None:
    """Thumbs without a better answer teach nothing, so there is nothing to copy."""
    first = give(store, judge(RECEIPT, "q", "a", rating="down"))
    second = give(store, judge("cd" * 32, "q", "a", rating="down"), key="key_2")

    assert first.contribution != second.contribution
    assert second.copied_from is None


def test_unknown_feedback_is_told(store: FeedbackStore) -> None:
    """No such record is an error, not an empty one."""
    with pytest.raises(MissingError):
        store.get("ctb_" + "0" * 32)  # type: ignore[arg-type]


def test_the_quota_counts_hours_and_days() -> None:
    """So many in an hour, so many in a day, and what lies before does not count."""
    now = 10 * DAY

    assert within_quota([], now)
    assert within_quota([now] * (PER_HOUR_MAX - 1), now)
    assert not within_quota([now] * PER_HOUR_MAX, now)
    assert within_quota([now - HOUR] * PER_HOUR_MAX, now)
    assert not within_quota([now - HOUR] * PER_DAY_MAX, now)
    assert within_quota([now - DAY] * PER_DAY_MAX, now)


def test_consent_is_the_last_word_and_stays_on_record(database: Database) -> None:
    """Nobody agrees by default; the last word counts; the table cannot be rewritten."""
    consents = ConsentStore(database)

    assert consents.in_force("key_1") is None
    consents.give("key_1", "cc-by-4.0", 5)
    found = consents.in_force("key_1")
    assert found is not None
    assert (found.license_expression, found.at_ns) == ("CC-BY-4.0", 5)
    consents.end("key_1", 6)
    assert consents.in_force("key_1") is None
    for statement in ("DELETE FROM signal_consents", "UPDATE signal_consents SET given = 1"):
        with pytest.raises(HeadwaterError):
            database.execute(statement)
    assert len(database.query("SELECT * FROM signal_consents")) == 2


def test_withdrawing_twice_keeps_the_first_word(database: Database) -> None:
    """The first withdrawal stands; its reason is kept."""
    consents = ConsentStore(database)
    one = "ctb_" + "1" * 32

    assert consents.withdraw(one, "key_1", "mine", 5)  # type: ignore[arg-type]
    assert not consents.withdraw(one, "key_2", "other", 6)  # type: ignore[arg-type]
    assert consents.withdrawn([one, "ctb_" + "2" * 32]) == {one: "mine"}  # type: ignore[list-item]
