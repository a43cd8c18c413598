"""`headwater contribution …` on real folders and a real database."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.contribution import BATCH_ITEMS_MAX, add_path, app
from headwater.cli.contribution_files import Terms, owners_of
from headwater.cli.home import Home
from headwater.cli.main import main
from headwater.cli.options import settings
from headwater.core.errors import InvalidError
from headwater.core.ids import contributor_id
from headwater.core.limits import CONTRIBUTION_SIZE_BYTES_MAX
from headwater.store.database import Database
from headwater.store.registry_store import RegistryStore

NOW = 1_700_000_000_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RegistryStore]:
    """An empty registry in a home of its own."""
    with Database(tmp_path / "home" / "headwater.db") as database:
        yield RegistryStore(database)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for the test's files."""
    made = tmp_path / "notes"
    made.mkdir()
    return made


def terms(*owners: str, license: str = "CC0-1.0") -> Terms:
    """Terms with these owners."""
    return Terms(
        owners_of(owners or ("Ada",), "local"), "local", license, frozenset({"ground"}), "document", 0, None, NOW
    )


def rows(path: Path, *lines: Any) -> None:
    """A JSONL file of these rows; text is written as it is."""
    written = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(written), "utf-8")


def test_a_folder_is_read_with_everything_below_it(store: RegistryStore, folder: Path) -> None:
    """Text, Markdown and rows land with their titles; other and hidden files are left alone."""
    (folder / "a.txt").write_text("Words of a.", "utf-8")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "b.md").write_text("Intro\n\n## Of Rivers ##\n\nWords of b.", "utf-8")
    rows(folder / "c.jsonl", {"text": "Row one."}, "", {"text": "Row two.", "title": "Second"})
    (folder / "d.pdf").write_bytes(b"%PDF")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "e.txt").write_text("Hidden.", "utf-8")
    told: list[tuple[int, int]] = []

    added = add_path(store, folder, terms(), lambda done, total: told.append((done, total)))

    assert added.problems == ()
    assert [(c.title, c.source) for c in store.contributions()] == [
        ("a", "notes/a.txt"),
        ("c 1", "notes/c.jsonl"),
        ("Second", "notes/c.jsonl"),
        ("Of Rivers", "notes/deep/er/b.md"),
    ]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert {c.registered_at_ns for c in store.contributions()} == {NOW}
    assert store.text(store.contributions()[1].id) == "Row one."


def test_good_items_land_beside_bad_ones_and_each_problem_has_its_place(store: RegistryStore, folder: Path) -> None:
    """Every kind of bad input is named with file and line."""
    (folder / "bad.txt").write_bytes(b"caf\xe9")
    (folder / "empty.md").write_bytes(b"")
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(CONTRIBUTION_SIZE_BYTES_MAX + 1)
    (folder / "good.txt").write_text("Good words.", "utf-8")
    rows(
        folder / "rows.jsonl",
        {"text": "Fine.", "owners": ["Bo:0.25", "Cy:75%"], "license": "mit", "uses": ["train"]},
        {"text": "Shares.", "owners": ["Bo:0.5", "Cy:0.4"]},
        {"text": "Mixed.", "owners": ["Bo:0.5", "Cy"]},
        {"text": "Terms.", "license": "Nonsense-1"},
        {"text": "Uses.", "uses": ["eat"]},
        {"text": "Use.", "uses": "ground"},
        {"text": "Field.", "licence": "MIT"},
        {"text": "Owner.", "owners": "Bo"},
        {"text": "Nobody.", "owners": []},
        {"text": "Twice.", "owners": ["Bo", "BO"]},
        {"text": "Name.", "owners": [" "]},
        {"text": 7},
        ["text"],
        "{",
        '{"text": "\\ud800"}',
        {"text": "Title.", "title": 7},
        {"text": "Good words.", "owners": ["Eve"]},
    )

    added = add_path(store, folder, terms())

    assert sorted(c.title for c in added.accepted) == ["good", "rows 1"]
    fine = next(c for c in added.accepted if c.title == "rows 1")
    assert [o.share_ppb for o in fine.owners] == [250_000_000, 750_000_000]
    assert (fine.license.expression, fine.license.uses) == ("MIT", frozenset({"train"}))
    assert {(p.where.removeprefix("notes/"), p.code) for p in added.problems} == {
        ("bad.txt", "content_not_utf8"),
        ("empty.md", "content_empty"),
        ("huge.txt", "content_too_large"),
        ("rows.jsonl:2", "shares_do_not_sum"),
        ("rows.jsonl:3", "shares_mixed"),
        ("rows.jsonl:4", "license_unknown"),
        ("rows.jsonl:5", "license_use_unknown"),
        ("rows.jsonl:6", "row_field_invalid"),
        ("rows.jsonl:7", "row_field_unknown"),
        ("rows.jsonl:8", "row_field_invalid"),
        ("rows.jsonl:9", "owners_count"),
        ("rows.jsonl:10", "owner_repeated"),
        ("rows.jsonl:11", "contributor_name_invalid"),
        ("rows.jsonl:12", "row_without_text"),
        ("rows.jsonl:13", "row_without_text"),
        ("rows.jsonl:14", "row_not_json"),
        ("rows.jsonl:15", "content_not_utf8"),
        ("rows.jsonl:16", "row_field_invalid"),
        ("rows.jsonl:17", "content_of_another_owner"),
    }
    assert all(problem.fix for problem in added.problems)
    assert {c.name for c in store.contributors()} == {"Ada", "Bo", "Cy"}


def test_adding_again_changes_nothing(store: RegistryStore, folder: Path) -> None:
    """More items than one transaction takes, added twice, are there once."""
    count = 2 * BATCH_ITEMS_MAX + 7
    rows(folder / "many.jsonl", *[{"text": f"Text number {i}."} for i in range(count)])

    first = add_path(store, folder, terms())
    digest = store.digest()
    second = add_path(store, folder, terms())

    assert (len(first.accepted), len(second.accepted), len(second.unchanged)) == (count, 0, count)
    assert store.digest() == digest
    assert first.problems == second.problems == ()


def test_an_overlong_line_ends_the_file_and_nothing_else(
    store: RegistryStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line beyond the limit is never read whole; rows before it land."""
    monkeypatch.setattr("headwater.cli.contribution_files.CONTRIBUTION_SIZE_BYTES_MAX", 10)
    rows(folder / "long.jsonl", {"text": "Short."}, {"text": "x" * 100}, {"text": "Never read."})

    added = add_path(store, folder, terms())

    assert [c.title for c in added.accepted] == ["long 1"]
    assert [(p.where, p.code) for p in added.problems] == [("notes/long.jsonl:2", "content_too_large")]


@pytest.mark.parametrize(
    ("owners", "code"),
    [
        (("Ada:0.5", "Bo:0.4"), "shares_do_not_sum"),
        (("Ada:0.5", "Bo"), "shares_mixed"),
        (("Ada:0.0000000001", "Bo:0.9999999999"), "share_invalid"),
        (("Ada:1.2.3",), "share_invalid"),
        (("",), "contributor_name_invalid"),
    ],
)
def test_owners_that_cannot_be_read_stop_the_command(owners: tuple[str, ...], code: str) -> None:
    """A mistake in the command is told before anything is read."""
    with pytest.raises(InvalidError) as caught:
        owners_of(owners, "local")

    assert caught.value.code == code


def test_owners_are_named_by_name_share_or_id() -> None:
    """Fractions and per cent are exact; a name may hold a colon; an id names a known contributor."""
    known = contributor_id("local", "Ada")

    (one,) = owners_of(["Project: Looms"], "local")
    ada, bo = owners_of([f"{known}:33.3333333%", "Bo Bee:0.666666667"], "local")

    assert one.contributor is not None
    assert (one.contributor.name, one.share_ppb) == ("Project: Looms", None)
    assert (ada.id, ada.contributor, ada.share_ppb) == (known, None, 333_333_333)
    assert (bo.id, bo.share_ppb) == (contributor_id("local", "Bo Bee"), 666_666_667)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The command run in this process: exit status, output, errors."""
    with pytest.raises(SystemExit) as caught:
        app(words, exit_on_error=True)
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def test_the_commands_show_what_they_did(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Add, list and show agree, as text and as JSON; exit status 1 tells of problems, 2 of a wrong command."""
    home = ["--home", str(tmp_path / "home")]
    (folder / "river.md").write_text("# The [Rhine]\n\nIt flows north.\n", "utf-8")
    (folder / "empty.txt").write_text("", "utf-8")

    status, printed, _ = run(capsys, "add", str(folder), "--owner", "Ada", "--license", "CC0-1.0", "--json", *home)
    added = json.loads(printed)
    assert status == 1
    assert [p["code"] for p in added["problems"]] == ["content_empty"]
    (river,) = added["accepted"]

    status, printed, _ = run(capsys, "add", str(folder / "river.md"), "--owner", "Ada", "--license", "CC0-1.0", *home)
    assert status == 0
    assert "0 added, 1 unchanged, 0 problems" in printed

    status, printed, _ = run(capsys, "list", "--owner", "ada", "--json", *home)
    assert (status, [c["id"] for c in json.loads(printed)["contributions"]]) == (0, [river["id"]])
    assert run(capsys, "list", "--owner", "Nobody", *home)[1].strip() == "nothing is registered yet"
    assert river["id"] in run(capsys, "list", *home)[1]

    status, printed, _ = run(capsys, "show", river["id"], "--json", "--text", *home)
    shown = json.loads(printed)
    assert (shown["title"], shown["text"]) == ("The [Rhine]", "# The [Rhine]\n\nIt flows north.\n")
    assert shown["owners"][0]["account"].startswith("escrow:ctr_")
    assert "The [Rhine]" in run(capsys, "show", river["id"], *home)[1]


def test_wrong_commands_end_with_status_2(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No home, no such path, nothing to read, an unknown licence or id: each says what to do."""
    home = ["--home", str(tmp_path / "home")]
    (folder / "a.txt").write_text("Words.", "utf-8")
    ada = ["--owner", "Ada", "--license", "CC0-1.0"]

    assert run(capsys, "list", *home)[0] == 2
    assert run(capsys, "add", str(folder / "a.txt"), *ada, *home)[0] == 0
    for words, code in (
        (["add", str(folder / "none"), *ada], "path_missing"),
        (["add", str(tmp_path / "home"), *ada], "nothing_to_add"),
        (["add", str(folder), "--owner", "Ada", "--license", "Nonsense-1"], "license_unknown"),
        (["add", str(folder), *ada, "--price-floor", "-1"], "price_floor_invalid"),
        (["add", str(folder), *ada, "--expires", "soon"], "instant_invalid"),
        (["show", "ctb_0"], "contribution_missing"),
    ):
        status, _, errors = run(capsys, *words, "--json", *home)
        assert (status, json.loads(errors)["error"]["code"]) == (2, code)
        assert json.loads(errors)["error"]["fix"]


def test_the_command_runs_as_a_process(tmp_path: Path, folder: Path) -> None:
    """In a process of its own the home may come from the environment."""
    (folder / "a.txt").write_text("Words of a process.", "utf-8")
    ada = ["--owner", "Ada", "--license", "MIT"]

    done = subprocess.run(
        [sys.executable, "-m", "headwater", "contribution", "add", str(folder), *ada, "--json"],
        capture_output=True,
        text=True,
        env={"HEADWATER_HOME": str(tmp_path / "home"), "PATH": ""},
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["accepted"]) == 1
    assert (tmp_path / "home" / "headwater.db").exists()


def test_who_adds_to_a_home_that_is_served_is_told_when_it_is_found(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The index of a running gateway is of its start or last reload; without a gateway there is nothing to say."""

    flags = ("--owner", "Ada", "--license", "CC0-1.0", "--use", "ground")

    def add(name: str) -> str:
        (folder / name).write_text(f"Words of {name}.", "utf-8")
        with pytest.raises(SystemExit) as end:
            main(["contribution", "add", str(folder), *flags, "--home", str(tmp_path / "served")])
        assert not end.value.code
        return capsys.readouterr().out

    assert "once it is reloaded" not in add("a.txt")
    with Home(settings(tmp_path / "served"), writer=True):
        assert "once it is reloaded" in add("b.txt")
        assert "once it is reloaded" not in add("b.txt")  # nothing new
