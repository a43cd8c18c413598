"""A whole home on PostgreSQL, by its commands and two workers: from the first text to an epoch that is audited."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from postgres import Cluster, postgres  # noqa: F401 - a fixture

from headwater.cli.home import home_database
from headwater.cli.main import build_app
from headwater.cli.options import settings
from headwater.core.money import NANO
from headwater.registry.contribution import snapshot_digest
from headwater.store.registry_store import RegistryStore
from toy.upstream import upstream

pytestmark = pytest.mark.slow

RULE = "Credit goes where it is due. So says the first rule of this house, and everybody who lives in it."
OTHER = "The tide tables of the northern harbours are printed in March, by hand and on yellow paper."
PRICE, DEPOSIT = NANO // 4, 500 * NANO
SHARED = 6  # calls without sources: workers answer them
GROUNDED = 2  # calls with a source: the head measures them
UPSTREAMS = """
[upstream.real]
base_url = "{url}"
[model.shared]
targets = [{{ upstream = "real", model = "fine" }}]
request_price = "0.25"
"""


@dataclass
class Town:
    """The home and its commands."""

    home: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *tokens: str, status: int = 0) -> Any:
        """A command's JSON."""
        self.capsys.readouterr()
        ended = build_app()([*tokens, "--json"], exit_on_error=False, result_action="return_value")
        told = self.capsys.readouterr()
        assert int(ended or 0) == status, (tokens, told.out[-2_000:], told.err[-2_000:])
        return json.loads(told.out or told.err)

    def counted(self, table: str) -> int:
        """Rows of a table."""
        with home_database(settings(None), create=False) as database:
            return int(database.query(f"SELECT count(*) FROM {table}")[0][0])


@pytest.fixture
def town(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    postgres: Cluster,  # noqa: F811 - the fixture above
) -> Town:
    """A home that is not there yet, whose settings name a new database."""
    for name, value in {
        "HOME": str(tmp_path / "home"), "DATABASE": postgres.fresh(), "ROOT_DELAY_S": "0", "MATURITY_S": "0",
        "LOCAL_MODEL": "0", "UPSTREAMS": str(tmp_path / "upstreams.toml"),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"HEADWATER_{name}", value)
    (tmp_path / "upstreams.toml").write_text(UPSTREAMS.format(url="http://127.0.0.1:9/v1"), "utf-8")
    return Town(tmp_path / "home", capsys)


@contextmanager
def served() -> Iterator[str]:
    """The address of `headwater serve` with two workers; stopped as an operator stops it."""
    command = [sys.executable, "-m", "headwater", "serve", "--port", "0", "--workers", "2"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    said: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"listening on (http://127\.0\.0\.1:\d+)/v1", line):
                break
        else:
            raise AssertionError("".join(said[-20:]))
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def get(url: str, secret: str | None = None) -> str:
    """What a route gives."""
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
        return str(response.read().decode())


def call(url: str, secret: str, *passages: str) -> str:
    """A paid answer from registered passages; gives the name under which its receipt is asked for."""
    asked: dict[str, Any] = {"model": "shared", "messages": [{"role": "user", "content": "Where does credit go?"}]}
    if passages:
        asked["headwater"] = {"passages": [{"id": one} for one in passages]}
    body = json.dumps(asked).encode()
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + "/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        assert "Credit goes where it is due." in json.load(response)["choices"][0]["message"]["content"]
        return str(response.headers["headwater-receipt"])


def receipt(url: str, secret: str, name: str) -> dict[str, Any]:
    """A receipt, as soon as its call is booked and it is final."""
    until = time.monotonic() + 60
    while True:
        found: dict[str, Any] = {}
        with suppress(urllib.error.HTTPError):
            found = json.loads(get(f"{url}/v1/receipts/{name}", secret))
        if found.get("status") == "final":
            return found
        assert time.monotonic() < until, found
        time.sleep(0.05)


def test_a_home_lives_on_postgresql(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts, keys, calls, receipts, pools, claims and epochs are in the schema, and no file of SQLite's is made."""
    for name, text in (("Ada", RULE), ("Ben", OTHER)):
        (tmp_path / f"{name}.md").write_text(text, "utf-8")
        made = town.run("contribution", "add", str(tmp_path / f"{name}.md"), "--owner", name, "--license", "CC0-1.0")
        assert len(made["accepted"]) == 1
    listed = town.run("contribution", "list")
    ada, ben = (one["id"] for one in sorted(listed["contributions"], key=lambda one: one["title"]))
    key = town.run("key", "create", "app")
    for _ in range(2):  # the same payment counts once
        town.run("key", "deposit", key["key_id"], "500.00", "--reference", "bank 1")

    # Two workers and the head answer over one schema, and the pages read it.
    with upstream() as server:
        (tmp_path / "upstreams.toml").write_text(UPSTREAMS.format(url=server.url), "utf-8")
        with served() as url:
            names = [call(url, key["secret"]) for _ in range(SHARED)]
            names += [call(url, key["secret"], ada) for _ in range(GROUNDED)]
            receipts = [receipt(url, key["secret"], name) for name in names]
            assert "Ada" in get(url + "/contributions")
    assert {one["price"] for one in receipts} == {"0.250000000"}, receipts[0]
    assert town.counted("calls") == SHARED + GROUNDED
    balances = {row["account"]: int(row["balance_units"]) for row in town.run("ledger", "balance")["balances"]}
    ada_id, ben_id = owner_of(town, ada), owner_of(town, ben)
    escrow = balances[f"escrow:{ada_id}"]
    assert escrow > 0  # the words of the answers are hers
    assert balances[f"payer:{key['key_id']}"] == DEPOSIT - (SHARED + GROUNDED) * PRICE

    # Somebody disputes whose the text is, and gives up; somebody claims a name; a pool is filled and frozen.
    account = f"payer:{key['key_id']}"
    stated = ("--by", ben_id, "--account", account, "--owner", ben_id, "--statement", "published before")
    case = town.run("dispute", "open", "registration", ada, *stated)
    assert int(case["held_units"]) == escrow
    assert town.run("dispute", "withdraw", case["dispute"])["phase"] == "closed"
    town.run("enrol", "anchor", ben_id, "domain", "example.org", "--source", "his page")
    town.run("enrol", "open", ben_id, "0x" + "11" * 20)
    assert town.run("enrol", "list")["enrolments"][0]["state"] == "waiting"
    rules = ("--rule", "appeal=0d", "--rule", "quorum=1")
    town.run("datanet", "create", "pool", "--owner", "Keeper", "--title", "A pool", "--license", "CC0-1.0", *rules)
    town.run("review", "reviewers", "pool", "--add", "Reviewer")
    town.run("datanet", "submit", "pool", str(tmp_path / "Ben.md"), "--owner", "Ben")
    town.run("review", "settle")
    [task] = town.run("review", "next", "--by", "Reviewer")["tasks"]
    town.run("review", "decide", task["task"], "accept", "--by", "Reviewer")
    town.run("review", "settle")
    town.run("review", "settle")
    assert town.run("datanet", "freeze", "pool")["version"] == 1

    # An epoch is closed, posted, exported, and audited by somebody who has the export alone.
    town.run("epoch", "close")
    town.run("epoch", "post")
    town.run("export", "--epoch", "1", "--out", str(tmp_path / "export"))
    audited = town.run("epoch", "audit", "1", "--from", str(tmp_path / "export"), "--all", "--processes", "1")
    assert audited["problems"] == []
    for one in (receipts[0], receipts[-1]):
        town.run("receipt", "bundle", one["id"], "--to", str(tmp_path / "bundle.json"))
        town.run("receipt", "verify", str(tmp_path / "bundle.json"))
    town.run("consent", "withdraw", ada, "--reason", "another licence")
    assert not town.run("consent", "show", ada)["usable"]

    # Everything adds up, and the registry is the one that its contributions make.
    assert town.run("ledger", "check")["problems"] == []
    assert not [one for one in town.run("doctor") if one["works"] is False]
    assert town.run("audit", "check")["problems"] == []
    with home_database(settings(None), create=False) as database:
        registry = RegistryStore(database)
        assert registry.digest() == snapshot_digest(registry.contributions())
    assert not list(town.home.glob("headwater.db*"))
    server = os.environ["HEADWATER_DATABASE"]
    monkeypatch.setenv("HEADWATER_DATABASE", "")
    assert town.run("ledger", "balance", status=2)["error"]["code"] == "home_database_differs"

    # The records go to the home's file and back to the server: everything adds up there, and calls are served there.
    monkeypatch.setenv("HEADWATER_DATABASE", server)
    balances = town.run("ledger", "balance")["balances"]
    for place, setting in (("file", ""), (server, server)):
        moved = town.run("home", "move", "--to", place)
        assert moved["rows"] > 100
        monkeypatch.setenv("HEADWATER_DATABASE", setting)
        assert town.run("ledger", "check")["problems"] == []
        assert town.run("audit", "check")["problems"] == []
        assert town.run("ledger", "balance")["balances"] == balances
        with upstream() as answering:
            (tmp_path / "upstreams.toml").write_text(UPSTREAMS.format(url=answering.url), "utf-8")
            with served() as url:
                assert receipt(url, key["secret"], call(url, key["secret"]))["price"] == "0.250000000"
        balances = town.run("ledger", "balance")["balances"]


def owner_of(town: Town, contribution: str) -> str:
    """The contributor who owns a contribution alone."""
    [owner] = town.run("contribution", "show", contribution)["owners"]
    return str(owner["contributor_id"])
