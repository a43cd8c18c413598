"""`headwater datanet` and `headwater review`: what a person does, from a pool to a shared line of the policy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.main import main
from headwater.splits import Policy
from headwater.store.database import Database

LINE = """
[[lines]]
name = "reviewers"
account = "operator:reviewers"
bps = 200
rule = "looking at what is submitted"
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    """The JSON a command prints."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    said = capsys.readouterr()
    assert ended.value.code == status, said.err
    return json.loads(said.out if status == 0 else said.err)


def rows(count: int) -> str:
    """JSONL of texts that do not resemble each other."""
    texts = (" ".join(f"word{number * 1_000 + place}" for place in range(30)) for number in range(count))
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def test_a_pool_from_its_making_to_its_reviewers_pay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Created, submitted, reviewed, frozen, carried to another home; the line is shared among the reviewers."""
    monkeypatch.setenv("HEADWATER_HOME", str(tmp_path / "home"))
    create = ("datanet", "create", "net", "--owner", "O", "--title", "Net", "--license", "CC0-1.0", "--use", "train")
    made = run(capsys, *create, "--rule", "appeal=0s", "--rule", "quorum=3")
    names = ("R1", "R2", "R3")
    run(capsys, "review", "reviewers", "net", *(part for name in names for part in ("--add", name)))
    (tmp_path / "rows.jsonl").write_text(rows(24))
    [batch] = run(capsys, "datanet", "submit", "net", str(tmp_path / "rows.jsonl"), "--owner", "A")["batches"]
    assert (batch["rows"], batch["counts"]) == (24, {"waiting": 24})
    from headwater.core.ids import contributor_id
    from headwater.registry.review import Vote
    from headwater.store.registry_store import RegistryStore
    from headwater.store.review_settling import Reviewing

    with Database(tmp_path / "home" / "headwater.db") as database:  # as `review decide` does, without its start-up
        reviewing = Reviewing(database, RegistryStore(database))
        for name in names:
            me = contributor_id("local", name)
            for task in reviewing.reviews.next(me, limit=100):
                bad = int(reviewing.question(task).text.split()[0].removeprefix("word")) % 3_000 == 0
                vote = Vote(me, "refuse", ("low_quality",)) if bad else Vote(me, "accept")
                reviewing.vote(task.id, vote, time.time_ns())
    assert run(capsys, "review", "settle")["accepted"] == 16
    assert run(capsys, "review", "check", "net") == {"problems": []}
    frozen = run(capsys, "datanet", "freeze", "net")
    run(capsys, "datanet", "export", "net@1", str(tmp_path / "out"))
    there = ("--home", str(tmp_path / "there"))
    carried = run(capsys, "datanet", "import", str(tmp_path / "out"), *there)
    assert carried == {"datanet": made["id"], "version": 1, "manifest": frozen["digest"]}

    assert run(capsys, "review", "pay", status=1)["error"]["code"] == "policy_invalid"
    default = Policy.from_toml(Policy.from_json(_default()).to_toml() + LINE)
    (tmp_path / "home" / "policy.toml").write_text(default.to_toml())
    paid = run(capsys, "review", "pay")
    policy = Policy.from_toml((tmp_path / "home" / "policy.toml").read_text())
    assert sum(one["share_ppb"] for one in paid["payees"]) == 10**9
    assert (len(policy.lines[-1].payees), policy.digest, policy.version) == (3, paid["policy"], default.version + 1)
    assert run(capsys, "review", "pay", status=1)["error"]["code"] == "reviewers_unmeasured"


def _default() -> Any:
    from importlib.resources import files

    return Policy.from_toml(files("headwater.splits").joinpath("default_policy.toml").read_text()).to_json()


def test_wrong_words_are_refused_with_their_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules, conditions, references and files that mean nothing."""
    monkeypatch.setenv("HEADWATER_HOME", str(tmp_path / "home"))
    create = ("datanet", "create", "net", "--owner", "O", "--title", "Net", "--license", "CC0-1.0")
    for extra, code in (
        (("--rule", "quorum=2"), "datanet_invalid"),
        (("--rule", "speed=9"), "rule_unknown"),
        (("--rule", "appeal=soon"), "rule_invalid"),
        (("--use", "train,cheap=1"), "use_condition_unknown"),
        (("--use", "sell"), "datanet_invalid"),
    ):
        assert run(capsys, *create, *extra, status=1)["error"]["code"] == code
    run(capsys, *create)
    (tmp_path / "bad.jsonl").write_text('{"text": 5}\n')
    for arguments, code in (
        (("datanet", "show", "other"), "datanet_missing"),
        (("datanet", "diff", "net@x", "net@2"), "datanet_reference_invalid"),
        (("datanet", "freeze", "net"), "datanet_empty"),
        (("datanet", "submit", "net", str(tmp_path / "bad.jsonl"), "--owner", "A"), "row_invalid"),
        (("datanet", "submit", "net", str(tmp_path / "none"), "--owner", "A"), "path_missing"),
        (("review", "reviewers", "net", "--add", "O"), "reviewer_is_owner"),
    ):
        assert run(capsys, *arguments, status=1)["error"]["code"] == code


@pytest.mark.slow
def test_a_submission_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL while rows are taken; the same command again ends with every row once."""
    home, source = tmp_path / "home", tmp_path / "rows.jsonl"
    source.write_text(rows(30_000))

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "headwater", *arguments, "--home", str(home), "--json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "NUMBA_NUM_THREADS": "1"})

    def taken() -> int:
        with Database(home / "headwater.db") as database:
            return int(database.query("SELECT coalesce(max(rows), 0) FROM submission_batches")[0][0])

    create = ("datanet", "create", "net", "--owner", "O", "--title", "Net", "--license", "CC0-1.0")
    start(*create, "--rule", "near_duplicates=flag").communicate()
    submit = ("datanet", "submit", "net", str(source), "--owner", "A")
    first = start(*submit)
    while first.poll() is None and taken() < 3_000:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    reached = taken()
    [batch] = json.loads(start(*submit).communicate()[0])["batches"]

    assert 3_000 <= reached < 30_000
    assert (batch["rows"], batch["unchanged"], batch["resumed_at"] > 0) == (30_000, 0, True)
    with Database(home / "headwater.db") as database:
        counts = database.query("SELECT count(DISTINCT digest), count(*) FROM submissions")
        assert counts == [(30_000, 30_000)]
