"""`headwater dispute`, `enrol` and `consent` on a home with a paid call: what each prints, does and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.main import build_app
from headwater.core.money import NANO
from headwater.flow import CallRequest, Message
from headwater.models import Sampling
from headwater.registry import unenrolled
from toy.home import open_home

VICTIM = unenrolled("toy", "The Victim")


@pytest.fixture
def home(tmp_path: Path) -> tuple[Path, str, str]:
    """A home whose one call used "Rivers": its path, that document, and the account of a key with credit."""
    with open_home(tmp_path / "home") as toy:
        _, key = toy.key()
        request = CallRequest("toy-grounded", (Message("user", "what does a river do in the sea?"),), Sampling(12), "x")
        opened = toy.flow.open(request, key)
        for _ in toy.flow.answer(opened):
            pass
        toy.flow.attribute(opened.record.call_id)
        toy.registry.add_contributor(VICTIM)
        rivers = next(c.id for c in toy.registry.contributions() if c.title == "Rivers")
        return toy.path, rivers, toy.key("bond")[1].account


def run(capsys: Any, home: Path, *words: str) -> tuple[int, Any]:
    """(status, JSON or the error's) of a command."""
    status = build_app()([*words, "--home", str(home), "--json"], result_action="return_value", exit_on_error=False)
    told = capsys.readouterr()
    return int(status or 0), json.loads(told.out or told.err)


def test_a_dispute_from_the_command_line_holds_money_and_gives_it_back(home, capsys):
    """Opened, shown, evidenced, withdrawn; the ledger is sound and the books are as before."""
    path, rivers, account = home
    words = ("dispute", "open", "registration", rivers, "--by", VICTIM.id, "--account", account, "--owner", VICTIM.id)
    status, opened = run(capsys, path, *words, "--statement", "published before")
    assert (status, opened["phase"]) == (0, "evidence")
    assert int(opened["held_units"]) > 0
    assert int(opened["bond_units"]) == 10 * NANO
    assert run(capsys, path, *words, "--statement", "again")[1]["error"]["code"] == "dispute_open"
    assert run(capsys, path, "ledger", "check")[0] == 0
    assert len(run(capsys, path, "dispute", "evidence", opened["dispute"], "a link", "--by", "x")[1]["evidence"]) == 2
    assert run(capsys, path, "dispute", "decide", opened["dispute"], "uphold", "--by", "ctr_x", "--reason", "y")[0] == 1
    assert run(capsys, path, "dispute", "settle")[1]["drawn"] == 0
    assert run(capsys, path, "dispute", "withdraw", opened["dispute"])[1]["phase"] == "closed"
    assert run(capsys, path, "dispute", "show", opened["dispute"])[1]["held_units"] == "0"
    assert run(capsys, path, "dispute", "list", "--open")[1] == {"disputes": []}
    assert run(capsys, path, "ledger", "check")[0] == 0


def test_an_enrolment_prints_what_to_sign_and_waits(home, capsys, tmp_path):
    """Anchors first; a proof that does not fit is refused; nothing is granted before the period is over."""
    path, *_ = home
    anchors = run(capsys, path, "enrol", "anchor", VICTIM.id, "domain", "Example.org", "--source", "her page")[1]
    assert anchors["anchors"] == [{"kind": "domain", "value": "example.org", "source": "her page"}]
    opened = run(capsys, path, "enrol", "open", VICTIM.id, "0x" + "11" * 20)[1]
    assert opened["statement"].endswith("0x1111111111111111111111111111111111111111")
    bad = tmp_path / "sig"
    bad.write_text("nonsense")
    status, error = run(capsys, path, "enrol", "prove", opened["enrolment"], "ssh", "--signature", str(bad))
    assert (status, error["error"]["code"]) == (1, "signature_invalid")
    assert run(capsys, path, "enrol", "settle")[1] == {"granted": []}
    assert run(capsys, path, "enrol", "list")[1]["enrolments"][0]["state"] == "waiting"
    listed = run(capsys, path, "enrol", "cluster", "add", "a", "key", "k", "--source", "seen")[1]
    assert listed == {"clusters": []}
    assert run(capsys, path, "enrol", "cluster", "add", "b", "key", "k", "--source", "s")[1]["clusters"][0][
        "members"
    ] == ["a", "b"]


def test_consent_is_taken_back_from_the_command_line(home, capsys):
    """Taken down, countered, withdrawn, erased; each shows what holds now, and the books stay sound."""
    path, rivers, _ = home
    down = run(capsys, path, "consent", "takedown", rivers, "--claimant", "C", "--reason", "mine")[1]
    assert down["why"]["code"] == "contribution_taken_down"
    notice = down["takedowns"][0]["notice"]
    assert run(capsys, path, "consent", "counter", notice, "it is mine")[1]["takedowns"][0]["state"] == "countered"
    assert run(capsys, path, "consent", "retract", notice)[1]["usable"] is True
    assert run(capsys, path, "consent", "withdraw", rivers, "--reason", "moved")[1]["usable"] is False
    assert run(capsys, path, "consent", "erase", rivers)[1]["calls"] == 1
    assert run(capsys, path, "consent", "show", rivers)[1]["why"]["code"] == "contribution_erased"
    assert run(capsys, path, "consent", "adapters", "flag")[1] == {"rule": "flag", "adapters": []}
    assert run(capsys, path, "ledger", "check")[0] == 0
