"""The registry on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, InvariantError, MissingError
from headwater.core.ids import ContributionId, ContributorId
from headwater.registry import (
    Admitted,
    Candidate,
    License,
    Ownership,
    account_for,
    contribute,
    enrolled,
    equal_shares,
    owned_equally,
    registry_digest,
    snapshot_digest,
    unenrolled,
)
from headwater.store.database import Database
from headwater.store.registry_store import RegistryStore
from toy.unguarded import unguard

ADA, BO = unenrolled("local", "Ada"), unenrolled("local", "Bo")
ADDRESS = "0x52908400098527886E0F7030069857D2E4169EE7"
OTHER = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database of its own."""
    with Database(tmp_path / "headwater.db") as opened:
        yield opened


@pytest.fixture
def store(database: Database) -> RegistryStore:
    """An empty registry that knows Ada and Bo."""
    made = RegistryStore(database)
    made.add_contributors([ADA, BO])
    return made


def item(content: bytes, owners: tuple[Ownership, ...] = owned_equally([ADA.id]), **changes: object) -> Admitted:
    """Something admitted, with every field in use."""
    terms = License("CC-BY-4.0 OR LicenseRef-own", frozenset({"ground", "train"}), 10**30, 2**62, "elsewhere")
    fields = {
        "title": "A title",
        "owners": owners,
        "license": terms,
        "registered_at_ns": 1_700_000_000_123_456_789,
        "source": "notes.txt",
        "metadata": (("status", "Final"), ("number", "1")),
    } | changes
    return Admitted(contribute("document", content, **fields), content)  # type: ignore[arg-type]


def candidate(content: bytes, owner: ContributorId, where: str = "a.txt") -> Candidate:
    """Something offered by one owner."""
    return Candidate(where, "document", "T", content, owned_equally([owner]), "MIT", frozenset({"ground"}), 1, where)


def test_what_is_registered_comes_back_equal(store: RegistryStore) -> None:
    """Every field, the order of owners and the bytes survive, amounts beyond 64 bits included."""
    many = [unenrolled("local", f"Owner {i}") for i in range(12)]
    store.add_contributors(many)
    owners = tuple(Ownership(p.id, s) for p, s in zip(reversed(many), equal_shares(12), strict=True))
    batch = [item("Größe ≠ 0".encode(), owners), item(b"plain", metadata=())]

    store.register(batch)

    for admitted in batch:
        assert store.get(admitted.contribution.id) == admitted.contribution
        assert store.content(admitted.contribution.id) == admitted.content
    assert store.text(batch[0].contribution.id) == "Größe ≠ 0"
    assert store.counts() == {"document": 2, "contributors": 14}


def test_a_batch_lands_whole_or_not_at_all(store: RegistryStore, database: Database) -> None:
    """One item that cannot be recorded leaves no trace of the others."""
    stranger = item(b"second", owned_equally([ContributorId("ctr_" + "e" * 32)]))

    with pytest.raises(ConflictError):
        store.register([item(b"first"), stranger])

    assert store.contributions() == ()
    for table in ("contents", "owners", "contribution_metadata"):
        assert database.query(f"SELECT count(*) FROM {table}") == [(0,)]


def test_registering_the_same_contribution_twice_is_a_conflict(store: RegistryStore) -> None:
    """The store never overwrites; idempotency is the intake's business."""
    store.register([item(b"words")])

    with pytest.raises(ConflictError):
        store.register([item(b"words")])


def test_bytes_under_another_digest_are_a_bug(store: RegistryStore) -> None:
    """Content that is not what the contribution says is never written."""
    with pytest.raises(InvariantError):
        store.register([Admitted(item(b"words").contribution, b"other")])


def test_altered_bytes_are_noticed_when_read(store: RegistryStore, database: Database) -> None:
    """A flipped byte in the file is an error, not a source."""
    admitted = item(b"words")
    store.register([admitted])
    unguard(database, "contents")
    database.execute("UPDATE contents SET bytes = ? WHERE digest = ?", (b"wordz", digest(b"words")))

    with pytest.raises(InvariantError):
        store.content(admitted.contribution.id)


@pytest.mark.parametrize("table", ["contents", "contributions", "owners", "contribution_metadata"])
def test_what_is_registered_cannot_be_changed_or_removed(store: RegistryStore, database: Database, table: str) -> None:
    """The database itself refuses, whoever asks."""
    store.register([item(b"words")])
    column = {"contents": "bytes", "owners": "share_ppb", "contribution_metadata": "value"}.get(table, "title")

    for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
        with pytest.raises(ConflictError):
            database.execute(statement)


def test_the_digest_follows_what_another_process_adds(store: RegistryStore, tmp_path: Path) -> None:
    """A digest that was taken before is not given again once something was added elsewhere."""
    store.register([item(b"one")])
    before = store.digest()
    with Database(tmp_path / "headwater.db") as elsewhere:
        RegistryStore(elsewhere).register([item(b"two")])

    assert store.digest() not in ("", before)
    assert store.digest() == snapshot_digest(store.contributions())


def test_admitting_twice_changes_nothing(store: RegistryStore) -> None:
    """The second time everything is unchanged and the registry digest is the same."""
    batch = [candidate(f"text {i}".encode(), ADA.id) for i in range(1_200)]

    first, before = store.admit(batch), store.digest()
    second = store.admit(batch)

    assert (len(first.accepted), len(second.accepted), len(second.unchanged)) == (1_200, 0, 1_200)
    assert second.problems == ()
    assert store.digest() == before == snapshot_digest(store.contributions())


def test_good_items_land_beside_bad_ones(store: RegistryStore) -> None:
    """A copy of another owner's bytes and an empty item are explained; the rest is recorded."""
    store.admit([candidate(b"mine", ADA.id)])

    intake = store.admit([candidate(b"mine", BO.id, "copy"), candidate(b"", BO.id, "empty"), candidate(b"new", BO.id)])

    assert [(p.where, p.code) for p in intake.problems] == [
        ("copy", "content_of_another_owner"),
        ("empty", "content_empty"),
    ]
    assert [c.owners[0].contributor_id for c in store.contributions()] == [ADA.id, BO.id]


def test_new_owners_are_recorded_only_with_something_of_theirs(store: RegistryStore) -> None:
    """A refused item leaves no contributor behind."""
    cy, di = unenrolled("local", "Cy"), unenrolled("local", "Di")

    intake = store.admit([candidate(b"words", cy.id), candidate(b"", di.id)], [cy, di])

    assert [p.code for p in intake.problems] == ["content_empty"]
    assert store.contributor(cy.id) == cy
    with pytest.raises(MissingError):
        store.contributor(di.id)


def test_enrolling_changes_flag_and_address_only(store: RegistryStore) -> None:
    """Contributions, shares and the registry digest stay; only the account they are booked to changes."""
    store.register([item(b"words")])
    before = (store.contributions(), store.digest(), account_for(store.contributor(ADA.id)))

    now = store.enroll(ADA.id, ADDRESS.lower())

    assert (now.enrolled, now.payout_address, now.name, now.id) == (True, ADDRESS, "Ada", ADA.id)
    assert store.enroll(ADA.id, ADDRESS) == now
    assert (store.contributions(), store.digest()) == before[:2]
    assert (before[2], account_for(now)) == (f"escrow:{ADA.id}", f"contributor:{ADA.id}")


def test_enrolment_is_refused_for_strangers_bad_addresses_and_second_addresses(store: RegistryStore) -> None:
    """Nobody's money is redirected by a repeated command."""
    store.enroll(ADA.id, ADDRESS)

    for who, address, kind in (
        (ADA.id, OTHER, ConflictError),
        (BO.id, "0x12", InvalidError),
        (ContributorId("ctr_none"), ADDRESS, MissingError),
    ):
        with pytest.raises(kind):
            store.enroll(who, address)
    assert store.contributor(ADA.id).payout_address == ADDRESS
    assert not store.contributor(BO.id).enrolled


def test_adding_a_contributor_again_keeps_what_is_recorded(store: RegistryStore) -> None:
    """An unenrolled namesake does not un-enrol anybody, and another address is a conflict."""
    store.enroll(ADA.id, ADDRESS)

    store.add_contributor(unenrolled("local", "ADA"))

    assert store.contributor(ADA.id).payout_address == ADDRESS
    assert store.contributor(ADA.id).name == "Ada"
    with pytest.raises(ConflictError):
        store.add_contributor(enrolled("local", "Ada", OTHER))
    store.add_contributor(enrolled("local", "Cy", OTHER))
    assert [c.name for c in store.contributors()] == ["Ada", "Bo", "Cy"]


def test_contributions_are_listed_by_kind_and_owner_in_order(store: RegistryStore) -> None:
    """Filters combine; the order is that of registration."""
    both = owned_equally([ADA.id, BO.id])
    batch = [item(b"1"), item(b"2", both), item(b"3", owned_equally([BO.id]))]
    prompt = contribute(
        "prompt", b"4", title="P", owners=both, license=License("MIT", frozenset()), registered_at_ns=0, source=""
    )
    store.register([*batch, Admitted(prompt, b"4")])

    ids = [admitted.contribution.id for admitted in batch]
    assert [c.id for c in store.contributions()] == [*ids, prompt.id]
    assert [c.id for c in store.contributions(kind="document")] == ids
    assert [c.id for c in store.contributions(owner=ADA.id)] == [ids[0], ids[1], prompt.id]
    assert [c.id for c in store.contributions(kind="prompt", owner=BO.id)] == [prompt.id]
    assert [c.id for c in store.get_many([prompt.id, ids[0], prompt.id, ContributionId("ctb_x")])] == [
        prompt.id,
        ids[0],
    ]


def test_what_is_not_there_is_missing(store: RegistryStore) -> None:
    """Unknown ids raise the same code whatever is asked of them."""
    for ask in (store.get, store.content, store.text):
        with pytest.raises(MissingError) as caught:
            ask(ContributionId("ctb_" + "0" * 32))
        assert caught.value.code == "contribution_missing"


_WRITER = """
import sys
from headwater.registry import Candidate, owned_equally, unenrolled
from headwater.store.database import Database
from headwater.store.registry_store import RegistryStore
store = RegistryStore(Database(sys.argv[1]))
people = [unenrolled("local", f"Owner {i}") for i in range(5)]
for number in range(10_000):
    owners = owned_equally([person.id for person in people])
    texts = [f"text {number} {i}".encode() for i in range(40)]
    batch = [Candidate("w", "document", "T", text, owners, "MIT", frozenset({"ground"}), 1, "w",
                       metadata=(("batch", str(number)),)) for text in texts]
    store.admit(batch, people)
    print(number, flush=True)
"""


@pytest.mark.parametrize("pause_s", [0.0, 0.013, 0.031])
def test_a_kill_leaves_whole_batches_only(tmp_path: Path, pause_s: float) -> None:
    """Killed while writing, the registry holds every acknowledged batch, and of each batch all or nothing."""
    path = tmp_path / "headwater.db"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = int(writer.stdout.readline())
    for _ in range(3):
        acknowledged = int(writer.stdout.readline())
    time.sleep(pause_s)
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.communicate()[0].split()
    acknowledged = int(rest[-1]) if rest else acknowledged

    with Database(path) as database:
        store = RegistryStore(database)
        found = store.contributions()
        assert database.integrity() == ()
        assert len(found) % 40 == 0
        assert len(found) >= 40 * (acknowledged + 1)
        assert all(sum(o.share_ppb for o in c.owners) == 10**9 and c.meta("batch") for c in found)
        assert all(store.content(c.id) for c in found)
        assert store.counts()["contributors"] == 5


def test_a_registry_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """An older program does not write into tables it does not know."""
    with Database(tmp_path / "headwater.db") as database:
        RegistryStore(database)
        database.execute("INSERT INTO migrations VALUES ('registry', 999, 'x')")
        with pytest.raises(HeadwaterError):
            RegistryStore(database)


def test_a_marked_registry_can_be_given_after_it_has_changed(store: RegistryStore) -> None:
    """What the digest of a closed epoch covers stays known when things are added and owners change."""
    first, later = item(b"first"), item(b"later")
    store.register([first])
    marked = store.mark()
    assert store.mark() == marked  # twice is once
    store.register([later])
    store.change_owners(first.contribution.id, owned_equally([BO.id]), cause="a gift", now_ns=1)
    assert registry_digest(store.records(marked)) == marked != store.digest()
    changed = store.mark()
    store.change_owners(first.contribution.id, owned_equally([ADA.id]), cause="given back", now_ns=2)
    assert registry_digest(store.records(changed)) == changed != store.digest()
    assert registry_digest(store.records("sha256:" + "0" * 64)) == store.digest()
