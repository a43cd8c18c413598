"""The audit trail: what was done stays as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.core.errors import ConflictError, InvalidError
from headwater.store.audit_trail import AuditTrail
from headwater.store.database import Database
from toy.unguarded import unguard


@pytest.fixture
def trail(tmp_path: Path) -> AuditTrail:
    """An empty trail."""
    return AuditTrail(Database(tmp_path / "headwater.db"))


def test_acts_are_read_newest_first_in_pages(trail: AuditTrail) -> None:
    """The last number of a page gives the next one, and a subject narrows it."""
    for n in range(5):
        trail.record(10 + n, "key_a", "key.limit", f"key_{n % 2}", {"requests_per_minute": n})

    first = trail.entries(limit=2)
    second = trail.entries(limit=2, before=first[-1].number)

    assert [e.number for e in first + second] == [5, 4, 3, 2]
    assert [e.detail["requests_per_minute"] for e in trail.entries(subject="key_1")] == [3, 1]
    assert trail.head() == (5, first[0].digest)
    assert trail.check() == ()


def test_an_act_that_fails_leaves_no_entry(trail: AuditTrail) -> None:
    """An entry stands or falls with the transaction it is written in."""
    with pytest.raises(RuntimeError), trail.db.transaction():  # noqa: PT012
        trail.record(1, "key_a", "policy.publish", "policy")
        raise RuntimeError

    assert trail.entries() == ()


def test_entries_cannot_be_changed_through_the_database(trail: AuditTrail) -> None:
    """The table refuses every change to what stands in it."""
    trail.record(1, "key_a", "policy.publish", "policy")

    for sql in ("UPDATE audit_entries SET actor = 'x'", "DELETE FROM audit_entries"):
        with pytest.raises(ConflictError):
            trail.db.execute(sql)


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("UPDATE audit_entries SET detail = '{}' WHERE number = 2", "audit_entry_changed"),
        ("DELETE FROM audit_entries WHERE number = 2", "audit_entry_missing"),
    ],
)
def test_a_forged_file_is_found_out(trail: AuditTrail, sql: str, code: str) -> None:
    """Whoever edits the file behind the triggers breaks the chain."""
    for n in range(3):
        trail.record(n, "key_a", "key.limit", "key_b", {"n": n})
    unguard(trail.db, "audit_entries")
    trail.db.execute(sql)

    assert code in {problem.code for problem in trail.check()}


@pytest.mark.parametrize("bad", ["", "line\nbreak", "x" * 201])
def test_names_that_cannot_be_shown_are_refused(trail: AuditTrail, bad: str) -> None:
    """An actor, an act and a subject are printable and short."""
    for names in ((bad, "a", "s"), ("a", bad, "s"), ("a", "b", bad)):
        with pytest.raises(InvalidError, match=r"actor|action|subject"):
            trail.record(1, *names)
