"""The operator's commands: the audit trail, telemetry in and out, and logs a machine reads."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from headwater.cli.home import Home
from headwater.cli.main import LATER, main
from headwater.cli.options import settings
from headwater.core.errors import ConflictError
from headwater.gateway.lines import JsonLines
from headwater.store.database import Database
from toy.desk import open_desk
from toy.unguarded import unguard

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command on a home and gives its status and its JSON."""

    def call(*arguments: str) -> tuple[int, Any]:
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--home", str(tmp_path / "home")])
        shown = capsys.readouterr()
        return int(end.value.code or 0), json.loads(shown.out or shown.err)

    return call


def test_acts_of_the_command_line_are_recorded(run: Run) -> None:
    """Making, funding, limiting and revoking a key leaves a chained entry each, without the secret."""
    _, made = run("key", "create", "app", "--json")
    key = made["key_id"]
    run("key", "deposit", key, "5.00", "--reference", "wire 1", "--json")
    run("key", "deposit", key, "5.00", "--reference", "wire 1", "--json")
    run("key", "limit", key, "--budget", "2", "--json")
    run("key", "revoke", key, "--json")

    status, rows = run("audit", "list", "--json")
    assert status == 0
    assert [row["action"] for row in rows] == ["key.revoke", "key.limit", "key.deposit", "key.create"]
    assert {row["actor"] for row in rows} == {"cli"}
    assert rows[1]["detail"]["budget"] == {"from": None, "to": "2.000000000"}
    assert made["secret"] not in json.dumps(rows)
    checked = run("audit", "check", "--json")[1]
    assert (checked["entries"], checked["head"], checked["problems"]) == (4, rows[0]["digest"], [])


def test_a_forged_trail_ends_with_status_one(run: Run, tmp_path: Path) -> None:
    """Whoever changed the file behind the database is found out."""
    run("key", "create", "app", "--json")
    with Database(tmp_path / "home" / "headwater.db") as db:
        unguard(db, "audit_entries")
        db.execute("UPDATE audit_entries SET actor = 'nobody'")

    with pytest.raises(SystemExit) as end:
        main(["audit", "check", "--home", str(tmp_path / "home")])
    assert end.value.code == 1


def test_a_receipt_is_exported_and_its_export_checks(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `telemetry export` prints is what `telemetry check` accepts."""
    with open_desk(tmp_path / "home") as desk:
        answer = desk.client().chat.completions.with_raw_response.create(
            model=next(iter(desk.app.model_names)), messages=[{"role": "user", "content": "hello"}]
        )
        desk.settled()
        receipt = desk.get("/v1/receipts/" + answer.headers["headwater-receipt"])["id"]

    for form, flags in (("events", ()), ("fractional", ("--fractional",))):
        status, body = run("telemetry", "export", receipt, *flags)
        assert status == 0
        file = tmp_path / f"{form}.json"
        file.write_text(json.dumps(body))
        for said in ((), ("--form", form)):
            with pytest.raises(SystemExit) as end:
                main(["telemetry", "check", str(file), *said, "--json"])
            assert (end.value.code or 0, json.loads(capsys.readouterr().out)["valid"]) == (0, True)


def test_a_receipt_is_exported_by_the_id_of_its_call_too(run: Run, tmp_path: Path) -> None:
    """An answer carries its call's id, so that is what its caller has."""
    with open_desk(tmp_path / "home") as desk:
        answer = desk.client().chat.completions.with_raw_response.create(
            model=next(iter(desk.app.model_names)), messages=[{"role": "user", "content": "hello"}]
        )
        desk.settled()
        call = answer.headers["headwater-receipt"]
        receipt = desk.get("/v1/receipts/" + call)["id"]

    for flags in ((), ("--fractional",)):
        assert run("telemetry", "export", call, *flags) == run("telemetry", "export", receipt, *flags)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            '{"schema_version": "0.1", "roles": ["agent"], "operator": {"name": "A"},'
            ' "id": "https://a.example/.well-known/content-telemetry.json"}',
            "manifest of A",
        ),
        ('\n<rsl xmlns="https://rslstandard.org/rsl" />', "terms of 0 addresses"),
    ],
)
def test_a_document_is_checked_as_what_it_says_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, found: str
) -> None:
    """Manifests and terms need no flag."""
    file = tmp_path / "x"
    file.write_text(text)

    with pytest.raises(SystemExit) as end:
        main(["telemetry", "check", str(file), "--json"])
    shown = capsys.readouterr()
    assert (end.value.code or 0, shown.err) == (0, "")
    assert json.loads(shown.out)["found"] == found


def test_the_trail_is_read_whole_on_a_narrow_terminal(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each act has its second, its subject and its actor on one line; nothing is cut to fit."""
    monkeypatch.setenv("COLUMNS", "40")
    key = run("key", "create", "app", "--json")[1]["key_id"]
    run("key", "deposit", key, "5.00", "--reference", "wire 1", "--json")
    rows = run("audit", "list", "--json")[1]

    with pytest.raises(SystemExit):
        main(["audit", "list", "--home", str(tmp_path / "home")])
    lines = capsys.readouterr().out.splitlines()

    assert lines[0].split() == ["2", rows[0]["at"][:19] + "Z", "key.deposit", key, "by", "cli"]
    assert json.loads(lines[1]) == rows[0]["detail"]
    assert lines[2].split() == ["1", rows[1]["at"][:19] + "Z", "key.create", key, "by", "cli"]


def test_help_says_of_every_noun_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Of those that are imported late too, and in the words they use of themselves."""
    for noun, (where, said) in LATER.items():
        module, name = where.split(":")
        found = getattr(importlib.import_module(f"headwater.cli.{module}"), name)
        own = found.help if isinstance(found, App) else inspect.getdoc(found).split("\n\nParameters")[0]
        assert said == own, noun


def test_a_home_that_is_served_is_told_by_its_name(tmp_path: Path) -> None:
    """Whoever wants to write to it as well learns who has it, not which file is locked."""
    home = tmp_path / "home"
    with Home(settings(home), writer=True), pytest.raises(ConflictError) as refusal:
        Home(settings(home), writer=True)
    assert refusal.value.code == "log_locked"
    assert str(home) in refusal.value.message
    assert "headwater serve" in str(refusal.value.fix)


def test_a_bundle_that_cannot_be_made_yet_makes_no_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Asking for one before its epoch is closed is refused and leaves no deployment behind."""
    with open_desk(tmp_path / "home") as desk:
        answer = desk.client().chat.completions.with_raw_response.create(
            model=next(iter(desk.app.model_names)), messages=[{"role": "user", "content": "hello"}]
        )
        desk.settled()
        call = answer.headers["headwater-receipt"]

    with pytest.raises(SystemExit) as end:
        main(["receipt", "bundle", call, "--home", str(tmp_path / "home"), "--json"])
    assert (end.value.code, json.loads(capsys.readouterr().err)["error"]["code"]) == (1, "epoch_not_closed")
    assert not (tmp_path / "home" / "deployment.json").exists()
    assert not (tmp_path / "home" / "chain").exists()


@pytest.mark.parametrize("form", ["events", "manifest", "fractional", "rsl"])
def test_a_bad_document_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """Status 1, a code and a fix."""
    file = tmp_path / "x"
    file.write_bytes(b"{}" if form != "rsl" else b"<a/>")

    with pytest.raises(SystemExit) as end:
        main(["telemetry", "check", str(file), "--form", form, "--json"])
    told = json.loads(capsys.readouterr().err)
    assert end.value.code == 1
    assert told["error"]["fix"]


def test_a_log_line_is_one_json_object() -> None:
    """Time, level, logger and message; line breaks in a message do not make a second line."""
    record = logging.LogRecord("headwater.gateway", logging.INFO, "", 0, "POST %s", ("/v1/chat\ncompletions",), None)
    record.created, record.msecs = 1_700_000_000.25, 250.0

    line = JsonLines().format(record)

    assert "\n" not in line
    assert json.loads(line) == {
        "at": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "headwater.gateway",
        "message": "POST /v1/chat\ncompletions",
    }
