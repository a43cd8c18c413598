"""Datanets on disk: rows are checked, kept once and gone on with; versions carry over to another home."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError
from headwater.core.instants import DAY_NS, SECOND_NS
from headwater.receipts import KeySigner
from headwater.registry import License, owned_equally, unenrolled
from headwater.registry.datanet import Card, Datanet, Rules, UseTerms
from headwater.registry.datanet_manifest import difference
from headwater.registry.review import Vote
from headwater.registry.submission import derive, read_derivation
from headwater.store import submission_checks
from headwater.store.consent_store import ConsentStore
from headwater.store.database import Database
from headwater.store.datanet_bundle import export_version, import_version
from headwater.store.datanet_intake import Intake, Progress, Read
from headwater.store.datanet_store import DatanetStore, Kept
from headwater.store.registry_store import RegistryStore
from headwater.store.review_settling import Reviewing
from headwater.store.submission_store import Offered

NOW = 1_700_000_000 * SECOND_NS
OWNER, ADA, BO, *REVIEWERS = [unenrolled("local", name) for name in ("Owner", "Ada", "Bo", "R1", "R2", "R3", "R4")]
SIGNER = KeySigner(b"\x01" * 32)
CC0 = License("CC0-1.0", frozenset({"ground", "train"}))
CARD = Card("Net", "CC0-1.0", (UseTerms("ground"), UseTerms("train")))


def text(number: int) -> bytes:
    """A text that resembles no other one."""
    return " ".join(f"word{number * 1_000 + place}" for place in range(30)).encode()


class Net:
    """A home with one datanet."""

    def __init__(self, folder: Path, rules: Rules, card: Card = CARD) -> None:
        self.database = Database(folder / "headwater.db")
        self.registry = RegistryStore(self.database)
        self.registry.add_contributors([OWNER, ADA, BO, *REVIEWERS])
        self.open()
        made = Datanet("net", OWNER.id, SIGNER.address, NOW, card, rules)
        self.kept: Kept = self.intake.datanets.create(made, NOW)
        for one in REVIEWERS:
            self.reviewing.reviews.add_reviewer(self.kept.number, one.id, NOW)

    def open(self) -> None:
        """As after a restart."""
        self.intake, self.reviewing = Intake(self.database, self.registry), Reviewing(self.database, self.registry)

    def submit(self, *rows: bytes, who=ADA, name: str = "", now: int = NOW) -> Progress:  # type: ignore[no-untyped-def]
        """Submit rows as one batch."""
        offered = Offered(
            self.kept.number, "document", owned_equally([who.id]), CC0, "rows", name or f"sha256:{rows!r}", len(rows)
        )
        batch = self.intake.open(self.kept, offered, [], now)
        reads = (Read(f"row {place}", row, place + 1) for place, row in enumerate(rows) if place >= batch.place)
        return self.intake.take(self.kept, batch, reads, lambda: now)

    def states(self) -> list[tuple[str, tuple[str, ...]]]:
        """State and reasons of every row."""
        return [(one.state, one.reasons) for one in self.reviewing.submissions.select(self.kept.number, limit=10_000)]

    def settle(self, now: int = NOW) -> None:
        """Do what is due."""
        self.reviewing.settle(now, public_value="block 1", source="test")

    def review(self, verdict: str = "accept", now: int = NOW) -> None:
        """Everybody votes alike on everything they have."""
        self.settle(now)
        for one in REVIEWERS:
            for task in self.reviewing.reviews.next(one.id, limit=1_000):
                reasons = () if verdict == "accept" else ("low_quality",)
                self.reviewing.vote(task.id, Vote(one.id, verdict, reasons), now)  # type: ignore[arg-type]
        self.settle(now)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    made = Net(tmp_path, Rules(appeal_ns=0))
    yield made
    made.database.close()


def test_rows_are_checked_before_anybody_looks(tmp_path: Path) -> None:
    """Copies, near-copies, personal data, another language, no text: each refused by its name, the rest waits."""
    made = Net(tmp_path, Rules(), replace(CARD, languages=("en",)))
    english = b"The river rises in the hills behind the village and runs slowly through the old town to the sea."
    german = (
        "Der Fluss entspringt in den Bergen hinter dem Dorf und fließt langsam durch die alte Stadt zum Meer.".encode()
    )
    hills = b" ".join([english, b"Its water turned the wheels of eleven mills until the last of them was closed."])
    copy = hills.replace(b"eleven", b"twelve")
    mail = b"mail ada@example.org now please"
    rows = [english, english, hills, copy, mail, german, b"\xff\xfe", b"  \n", b"a\x00b"]

    taken = made.submit(*rows)
    made.submit(english, who=BO)

    assert made.states() == [
        ("waiting", ()), ("waiting", ()), ("refusing", ("near_duplicate",)), ("refusing", ("personal_data",)),
        ("refusing", ("wrong_language",)), ("refused", ("content_not_utf8",)), ("refused", ("content_empty",)),
        ("refused", ("content_binary",)), ("refused", ("duplicate",)),
    ]  # fmt: skip
    assert (taken.batch.rows, taken.batch.unchanged) == (8, 1)


def test_a_screen_that_is_installed_is_asked_and_one_that_is_not_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook for toxicity and the like: an entry point that gives a word or nothing."""

    class Point:
        name = "rude"

        @staticmethod
        def load() -> submission_checks.Screen:
            return lambda given: "Bad word!" if "darn" in given else None

    made = Net(tmp_path, Rules(screens=("rude",)))
    with pytest.raises(HeadwaterError) as missing:
        made.submit(text(1))
    monkeypatch.setattr(
        submission_checks, "entry_points", lambda group: [Point()] if group == "headwater.screens" else []
    )
    made.submit(text(1), b"darn it all")

    assert missing.value.code == "screen_missing"
    assert made.states() == [("waiting", ()), ("refusing", ("screen:rude:bad_word_",))]


def test_cleaned_and_cut_rows_carry_lineage_to_the_bytes_that_were_given(tmp_path: Path) -> None:
    """What is registered can be made again from the contributor's own bytes, which are kept."""
    made = Net(tmp_path, Rules(personal_data="clean", chars_max=200, appeal_ns=0))
    own = b"\n\n".join([text(1)[:190], b"write to ada@example.org\n" + text(2)[:150], text(3)[:190]])
    made.submit(own)
    made.review()

    store, members = made.reviewing.submissions, made.intake.datanets.members(made.kept)
    assert len(members) == 3
    for one in members:
        lineage = read_derivation(str(made.registry.get(one).meta("lineage")))
        assert derive(store.parent(lineage.parent_digest), lineage) == made.registry.content(one)
        assert store.parent(lineage.parent_digest) == own
        assert b"@" not in made.registry.content(one)


def test_a_batch_that_was_interrupted_goes_on_and_takes_each_row_once(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between parts and started again, it ends as one that never stopped; and again changes nothing."""
    monkeypatch.setattr("headwater.store.datanet_intake.PART_ROWS", 4)
    rows = [text(number) for number in range(10)] + [text(3), text(5).replace(b"word5005", b"x")]

    def dying() -> Iterator[Read]:
        for place, row in enumerate(rows):
            if place == 9:
                raise KeyboardInterrupt
            yield Read(f"row {place}", row, place + 1)

    offered = Offered(net.kept.number, "document", owned_equally([ADA.id]), CC0, "rows", "sha256:it", len(rows))
    with pytest.raises(KeyboardInterrupt):
        net.intake.take(net.kept, net.intake.open(net.kept, offered, [], NOW), dying(), lambda: NOW)
    net.open()
    left_at = net.intake.open(net.kept, offered, [], NOW).place
    done, again = net.submit(*rows, name="sha256:it"), net.submit(*rows, name="sha256:it")

    assert (left_at, done.batch.place, again.batch) == (8, 12, done.batch)
    assert [state for state, _ in net.states()] == ["waiting"] * 10 + ["refusing"]
    assert done.batch.unchanged == 1


def test_what_people_refused_is_not_asked_again(net: Net) -> None:
    """The same owner's same bytes are a fact from then on; a stranger's are looked at."""
    net.submit(text(1))
    net.review("refuse")
    net.submit(text(1), name="again")
    net.submit(text(1), who=BO)

    assert [(state, reasons) for state, reasons in net.states()] == [
        ("refused", ("low_quality",)), ("refused", ("refused_before",)), ("waiting", ()),
    ]  # fmt: skip


def test_rows_nobody_looked_at_follow_the_sample(tmp_path: Path) -> None:
    """Of a large batch a drawn part is reviewed; the rest goes the same way, and may be appealed."""
    made = Net(tmp_path, Rules(sample_max=5, appeal_ns=DAY_NS))
    made.submit(*(text(number) for number in range(40)))
    made.review("accept")
    tasks = made.reviewing.reviews.closed_tasks(made.kept.number)
    rows = made.reviewing.submissions.select(made.kept.number, limit=100)

    assert len(tasks) == 5
    assert {(one.state, one.decided_by) for one in rows} == {("accepting", "review"), ("accepting", "sample")}
    made.settle(NOW + DAY_NS)
    assert len(made.intake.datanets.members(made.kept)) == 40


def test_versions_are_signed_chained_and_leave_out_what_was_withdrawn(net: Net) -> None:
    """Freezing again gives the same; a withdrawal shows as removed in the next version and stays in the last."""
    net.submit(text(1), text(2), text(3))
    net.review()
    store = net.intake.datanets
    first = store.freeze("net", SIGNER, NOW)
    gone = store.members(net.kept)[0]
    assert store.freeze("net", SIGNER, NOW + 1) == first

    ConsentStore(net.database).withdraw(gone, "Ada", "", NOW)
    second = store.freeze("net", SIGNER, NOW + 2)

    found = difference(first.manifest, store.entries(net.kept, 1), second.manifest, store.entries(net.kept, 2))
    assert (found.added, found.removed, found.changed) == ((), (gone,), ())
    assert second.manifest.parent == first.manifest.digest
    assert [entry.contribution for entry in store.entries(net.kept, 1)] == list(store.members(net.kept))


def _exported(net: Net, folder: Path) -> Path:
    net.submit(text(1), text(2), "späte Äpfel ünd\u2028Birnen".encode())
    net.review()
    net.intake.datanets.freeze("net", SIGNER, NOW)
    export_version(net.intake.datanets, net.registry, net.kept, 1, folder)
    return folder


def test_a_version_is_the_same_in_another_home(net: Net, tmp_path: Path) -> None:
    """Same ids, digests, bytes and root; importing twice changes nothing; the next version can be frozen there."""
    folder = _exported(net, tmp_path / "out")
    with Database(tmp_path / "other" / "headwater.db") as database:
        registry = RegistryStore(database)
        store = DatanetStore(database)
        kept, version = import_version(store, registry, folder, NOW)
        again, _ = import_version(store, registry, folder, NOW)

        assert kept == again
        assert version == net.intake.datanets.version(net.kept, 1)
        assert (kept.datanet, kept.members) == (net.kept.datanet, 3)
        assert registry.digest() == net.registry.digest()
        for one in store.members(kept):
            assert registry.content(one) == net.registry.content(one)
        assert store.freeze("net", KeySigner(b"\x02" * 32), NOW) == version
        export_version(store, registry, kept, 1, tmp_path / "back")
    for name in ("manifest.json", "entries.jsonl", "records.jsonl", "data.jsonl", "people.jsonl", "croissant.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("data.jsonl", "word1001", "word1009"),
        ("records.jsonl", "CC0-1.0", "CC-BY-4.0"),
        ("entries.jsonl", "sha256:", "sha256:0"),
        ("manifest.json", '"size":3', '"size":2'),
        ("manifest.sig", "0x", "0x0"),
        ("charter.json", "Net", "Nets"),
        ("people.jsonl", "Ada", "Eve"),
        ("records.jsonl", "\n", ""),
        ("data.jsonl", "{", "["),
    ],
)
def test_a_changed_bundle_is_refused_and_leaves_nothing(
    net: Net, tmp_path: Path, file: str, old: str, new: str
) -> None:
    """Whatever was changed, nothing of it is kept."""
    folder = _exported(net, tmp_path / "out")
    changed = (folder / file).read_text("utf-8").replace(old, new, 1)
    (folder / file).write_text(changed, "utf-8")
    with Database(tmp_path / "other" / "headwater.db") as database:
        registry, store = RegistryStore(database), DatanetStore(database)
        with pytest.raises(HeadwaterError):
            import_version(store, registry, folder, NOW)

        assert (store.all(), registry.counts()) == ((), {"contributors": 0})


def test_bytes_that_somebody_else_registered_there_are_not_taken_over(net: Net, tmp_path: Path) -> None:
    """The earlier owner in the other home stands; the import says what it met."""
    folder = _exported(net, tmp_path / "out")
    other = Net(tmp_path / "other", Rules(appeal_ns=0), replace(CARD, title="Other"))
    other.submit(text(1), who=BO)
    other.review()

    with pytest.raises(ConflictError) as refused:
        import_version(other.intake.datanets, other.registry, folder, NOW)

    assert refused.value.code in ("content_of_another_owner", "import_conflict")
    other.database.close()


def test_an_export_goes_into_a_new_folder_and_a_missing_file_is_said(net: Net, tmp_path: Path) -> None:
    """Nothing is written over, and what is not a bundle is refused with the file's name."""
    folder = _exported(net, tmp_path / "out")
    with pytest.raises(InvalidError) as taken:
        export_version(net.intake.datanets, net.registry, net.kept, 1, folder)
    shutil.copytree(folder, tmp_path / "short")
    (tmp_path / "short" / "people.jsonl").unlink()
    with pytest.raises(InvalidError) as short:
        import_version(net.intake.datanets, net.registry, tmp_path / "short", NOW)

    assert (taken.value.code, short.value.code) == ("folder_taken", "bundle_invalid")
    assert "people.jsonl" in short.value.message
    row = json.loads((folder / "croissant.json").read_text())["distribution"][0]
    assert row["contentSize"] == f"{(folder / 'data.jsonl').stat().st_size} B"
