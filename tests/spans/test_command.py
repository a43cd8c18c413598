"""`headwater index …` as a person and as a program would use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.cli.index import app

WORDS = " ".join(f"word{i}" for i in range(40))


def run(*arguments: object) -> int:
    status = app([str(a) for a in arguments], exit_on_error=False, print_error=True, result_action="return_value")
    assert isinstance(status, int)
    return status


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text(WORDS)
    (folder / "deep" / "two.html").write_text(
        "<style>p{}</style><p>caf&eacute; <b>" + WORDS.replace("word", "page") + "</b>"
    )
    (folder / "rows.jsonl").write_text(
        json.dumps({"id": "r1", "owner": "row", "registered_at": 5, "text": WORDS.replace("word", "row")}) + "\n\n"
    )
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def test_build_add_trace_stats_verify_compact(tmp_path, files, capsys):
    """The whole life of an index from the command line, as JSON."""
    index = tmp_path / "index"
    assert run("build", index, files, "--owner", "ann", "--at", "2026-01-01T00:00:00Z", "--json") == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 3
    more = tmp_path / "more.md"
    more.write_text(WORDS.upper())
    assert run("add", index, more, "--owner", "bob", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["owned_tokens"], report["copied_tokens"]) == (0, 40)

    answer = tmp_path / "answer.txt"
    answer.write_text("he said " + WORDS + " and café " + WORDS.replace("word", "page"))
    assert run("trace", index, answer, "--json") == 0
    traced = json.loads(capsys.readouterr().out)
    assert [(s["owner"], s["document_id"]) for s in traced["spans"]] == [("ann", "one.txt"), ("ann", "deep/two.html")]
    assert sum(share["microbits"] for share in traced["credit"]["shares"]) > 0

    for command in ("verify", "compact", "stats"):
        assert run(command, index, "--json") == 0
    assert json.loads(capsys.readouterr().out.split("\n}\n")[-2] + "}")["documents"] == 4


def test_trace_shows_the_words_and_their_sources(tmp_path, files, capsys):
    """The coloured text is the text, and the table names document and owner."""
    run("build", tmp_path / "index", files, "--owner", "ann")
    answer = tmp_path / "answer.txt"
    answer.write_text("[odd] he said " + WORDS)
    assert run("trace", tmp_path / "index", answer) == 0
    shown = capsys.readouterr().out

    assert "[odd] he said word0 word1" in shown.replace("\n", " ")
    assert "one.txt @0" in shown
    assert "40 of 43 words" in shown
    assert run("stats", tmp_path / "index") == 0
    assert run("verify", tmp_path / "index") == 0


def test_a_reference_is_the_same_every_time_it_is_built(tmp_path, files, capsys):
    """Same files, same bytes; an index can be built on it."""
    for name in ("a", "b"):
        assert run("reference", tmp_path / name, files, "--json") == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert run("build", tmp_path / "index", files, "--public-domain", "--reference", tmp_path / "a") == 0


def test_what_cannot_be_done_says_what_to_do(tmp_path, files, capsys):
    """Exit status 1 and a fix: no owner, no files, no index, damaged index."""
    index = tmp_path / "index"
    assert run("build", index, files) == 1
    assert "--public-domain" in capsys.readouterr().err
    assert run("build", tmp_path / "b", tmp_path / "nothing", "--owner", "x") == 1
    assert run("stats", tmp_path / "nothing") == 1
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"id": 4}\n')
    assert run("build", tmp_path / "c", bad, "--owner", "x") == 1
    assert "line 2" in capsys.readouterr().err
    large = tmp_path / "large.txt"
    large.write_text(" ".join(f"w{i}" for i in range(300_000)))
    assert run("build", tmp_path / "d", large, "--owner", "x") == 0
    segment = next((tmp_path / "d").glob("*.hws"))
    segment.write_bytes(segment.read_bytes()[:-1])
    assert run("trace", tmp_path / "d", bad) == 1
    assert segment.name in capsys.readouterr().err
    assert run("trace", tmp_path / "d", bad, "--salvage") == 0
    assert run("verify", tmp_path / "d", "--salvage") == 1


def test_files_of_a_folder_that_are_not_read_are_said(tmp_path, files, capsys):
    """Only texts of a folder are read; how many others there are is told, and a file named by itself is taken."""
    (files / "code.py").write_text(WORDS.replace("word", "name"))
    assert run("build", tmp_path / "index", files, "--owner", "ann", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["documents"] == 3
    assert "2 files below files are passed over" in " ".join(shown.err.split())

    assert run("add", tmp_path / "index", files / "code.py", "--owner", "ann", "--json") == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out)["documents"], shown.err) == (1, "")
