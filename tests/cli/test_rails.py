"""`headwater rails …` on an embedded chain: every noun once, through the program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater import ledger
from headwater.chain import derived_signer
from headwater.cli.home import Home
from headwater.cli.main import main
from headwater.cli.options import settings
from headwater.cli.rails_backing import shares_behind
from headwater.cli.settling import open_chain
from headwater.core.keccak import keccak256
from headwater.rails import RailsManifest
from headwater.registry import unenrolled

SEED = b"\x66" * 32


def key(number: int) -> bytes:
    """The key of a person of these tests."""
    return keccak256(b"headwater.embedded.account" + number.to_bytes(4, "big") + SEED)


def who(number: int) -> str:
    """Its address."""
    return derived_signer(SEED, number).address


class Program:
    """The program in one home."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.home = folder / "home"
        with Home(settings(self.home), create=True):
            pass

    def key_file(self, number: int) -> str:
        """A key file that only its owner can read."""
        path = self.folder / f"{number}.key"
        path.touch(mode=0o600)
        path.write_text(key(number).hex() + "\n")
        return str(path)

    def run(self, *words: object, by: int | None = None, fails: bool = False):
        """What it prints as JSON; `by` acts."""
        more = [] if by is None else ["--key-file", self.key_file(by)]
        with pytest.raises(SystemExit) as ended:
            main([*(str(word) for word in words), *more, "--home", str(self.home), "--json"])
        captured = self._capsys.readouterr()
        assert bool(ended.value.code) == fails, captured.err
        return json.loads(captured.err if fails else captured.out)

    def jump(self, seconds: int) -> None:
        """Move the chain's clock."""
        with Home(settings(self.home)) as home, open_chain(home) as (chain, _):
            chain.jump(seconds)

    def pay(self, address: str, units: int) -> None:
        """Income from nowhere: test tokens."""
        with Home(settings(self.home)) as home, open_chain(home) as (chain, _):
            chain.mint(address, units)


@pytest.fixture
def program(tmp_path, capsys, monkeypatch) -> Program:
    """A home whose rails are switched on."""
    monkeypatch.setenv("HEADWATER_RAILS", "1")
    return Program(tmp_path, capsys)


def test_rails_are_off_until_they_are_switched_on(program, monkeypatch):
    """Without the setting nothing is deployed; with it and nothing deployed the status is empty."""
    monkeypatch.setenv("HEADWATER_RAILS", "0")
    assert program.run("rails", "status", fails=True)["error"]["code"] == "rails_off"
    monkeypatch.setenv("HEADWATER_RAILS", "1")
    assert program.run("rails", "status") == {}
    assert program.run("rails", "bond", "show", fails=True)["error"]["code"] == "rails_missing"


def test_a_bond_is_staked_slashed_appealed_and_dropped(program, tmp_path):
    """Stake, slash, appeal, decision, unbonding and withdrawal, each by who may."""
    program.run(
        "rails", "deploy", "bond", "--guardian", who(1), "--slasher", who(2), "--arbiter", who(3), "--unbond-s", 600,
        "--appeal-s", 300,
    )  # fmt: skip
    assert program.run("rails", "deploy", "bond", "--guardian", who(1), fails=True)["error"]["code"] == "rail_exists"
    decision = tmp_path / "decision.txt"
    decision.write_text("gold task 7 was answered wrongly")
    staked = program.run("rails", "bond", "stake", "25.00", "--role", "reviewer", by=4)
    assert staked["staked_token_units"] == "25000000"
    first = ("rails", "bond", "slash", who(4), "5", "--role", "reviewer", "--to", who(5), "--decision", decision)
    assert program.run(*first, by=2)["state"] == "open"
    assert program.run("rails", "bond", "appeal", 1, by=4)["state"] == "appealed"
    assert program.run("rails", "bond", "decide", 1, "--drop", by=3)["state"] == "dropped"
    program.run(*first, by=2)
    program.run("rails", "bond", "unbond", "25", "--role", "reviewer", by=4)
    program.jump(600)
    assert program.run("rails", "bond", "finish", 2)["state"] == "done"
    assert program.run("rails", "bond", "take", "--role", "reviewer", by=4)["token_units"] == "20000000"
    assert program.run("rails", "bond", "withdraw", by=5)["token_units"] == "5000000"
    assert [one["state"] for one in program.run("rails", "bond", "show")] == ["dropped", "done"]
    assert program.run("rails", "bond", "show", who(4))["reviewer"]["staked_token_units"] == "0"
    assert program.run("rails", "status")["bond"]["held_token_units"] == "0"


def test_shares_are_issued_shown_and_collected(program):
    """Holders collect what reaches the payee, and the statement names who stands behind it."""
    made = program.run(
        "rails", "shares", "issue", "dn_demo", "--supply", 1_000, "--name", "Demo", "--symbol", "DEMO", "--to", who(4)
    )
    program.run("rails", "shares", "transfer", "dn_demo", who(5), 250, by=4)
    program.pay(made["address"], 1_000_001)
    shown = program.run("rails", "shares", "show", "dn_demo")
    assert [(one["shares"], one["part_ppb"], one["collectable_token_units"]) for one in shown["holders"]] == [
        (750, 750_000_000, "750000"),
        (250, 250_000_000, "250000"),
    ]
    assert program.run("rails", "shares", "collect", "dn_demo", "--holder", who(5))["token_units"] == "250000"
    assert program.run("rails", "shares", "show", made["address"])["collected_token_units"] == "250000"
    with Home(settings(program.home)) as home:
        home.registry.add_contributor(unenrolled("demo", "Ada"))
        ada = unenrolled("demo", "Ada").id
        home.registry.enroll(ada, made["address"])
        assert shares_behind(home.path, home.registry, [f"contributor:{ada}", "commons"]) == {
            f"contributor:{ada}": RailsManifest.load(home.path / "rails.json").share_of("dn_demo")
        }
        deposit = ledger.deposit("payer:key_1", 1_000, asset=home.policy.currency, cause="test")
        earned = ledger.correction("payer:key_1", f"contributor:{ada}", 1_000, asset=home.policy.currency, cause="test")
        home.ledger.post([deposit, earned], key="test", at_ns=1)
    (statement,) = program.run("ledger", "statement", ada)
    assert (statement["share_holders"]["payee"], statement["share_holders"]["supply"]) == (made["address"], 1_000)
    exported = program.run("chain", "export", program.folder / "export")
    assert "RevenueShare.standard.json" in exported["files"]
    again = ("rails", "shares", "issue", "dn_demo", "--supply", 1, "--name", "Again")
    assert program.run(*again, fails=True)["error"]["code"] == "shares_exist"


@pytest.mark.slow
def test_an_advance_is_drawn_on_what_the_ledger_holds(program):
    """The operator attests a contributor's balance; the borrower draws, and income repays first."""
    with Home(settings(program.home)) as home:
        asset, ada = home.policy.currency, unenrolled("demo", "Ada")
        home.registry.add_contributor(ada)
        drafts = [
            ledger.deposit("payer:key_1", 10**10, asset=asset, cause="test"),
            ledger.correction("payer:key_1", f"contributor:{ada.id}", 10**10, asset=asset, cause="test"),
        ]
        for place, draft in enumerate(drafts):
            home.ledger.post([draft], key=f"test:{place}", at_ns=1)
    program.run("rails", "deploy", "advance", "--guardian", who(1), "--term-s", 7_200, "--release-s", 3_600)
    program.run("rails", "advance", "deposit", "100", by=3)
    lane = program.run("rails", "advance", "open", who(4))["lane"]
    attest = ("rails", "advance", "attest", lane, ada.id)
    assert program.run(*attest, fails=True)["error"]["code"] == "lane_not_payee"
    with Home(settings(program.home)) as home:
        home.registry.enroll(ada.id, lane)
    state = program.run(*attest)
    assert (state["income_token_units"], state["drawable_token_units"]) == ("10000000", "7000000")
    drawn = program.run("rails", "advance", "draw", lane, "7", by=4)
    assert drawn["fee_token_units"] == str(7_000_000 * (50 + 200 * 7 // 100 + 100) // 10_000)
    program.pay(lane, 8_000_000)
    divided = program.run("rails", "advance", "collect", lane)
    assert int(divided["repaid_token_units"]) == 7_000_000 + int(drawn["fee_token_units"])
    assert int(divided["passed_on_token_units"]) == 1_000_000 - int(drawn["fee_token_units"])
    program.jump(3_600)
    assert int(program.run("rails", "advance", "redeem", by=3)["token_units"]) >= 100_000_000


@pytest.mark.slow
def test_a_stream_is_opened_taken_and_revoked(program):
    """What has vested is the payee's; the rest goes back where that was agreed."""
    program.run("rails", "deploy", "stream", "--guardian", who(1))
    opened = program.run("rails", "stream", "open", who(5), "86.4", "--days", "1", "--revocable", by=4)
    assert opened["token_units"] == "86400000"
    program.jump(60 + 43_200)
    taken = int(program.run("rails", "stream", "take", 1)["token_units"])
    returned = int(program.run("rails", "stream", "revoke", 1, by=4)["returned_token_units"])
    assert 43_000_000 <= taken <= 43_600_000
    assert 42_000_000 <= returned <= 86_400_000 - taken
    assert program.run("rails", "stream", "show")[0]["revocable"] is False


def test_a_policy_is_simulated_voted_for_and_in_force(program, tmp_path):
    """The proposal names the report; a changed report is noticed; after the timelock the home has the policy."""
    program.run(
        "rails", "deploy", "governance", "--guardian", who(1), "--vote-s", 300, "--delay-s", 300, "--quorum-bps", 5_000
    )
    clusters = tmp_path / "clusters.json"
    clusters.write_text(json.dumps({"ctr_a": [who(4)], "ctr_b": [who(5)]}))
    voters, report = tmp_path / "roll.json", tmp_path / "impact.json"
    program.run("rails", "govern", "roll", clusters, "--to", voters)
    program.jump(300)
    with Home(settings(program.home)) as home:
        old = home.policy_text
    new = tmp_path / "new.toml"
    new.write_text(old.replace("bps = 500", "bps = 400", 1))
    assert new.read_text() != old
    scenario = tmp_path / "scenario.toml"
    scenario.write_text("[run]\ndays = 5\n[agents]\ncontributors = 60\nusers = 60\napps = 4\n")
    made = program.run(
        "rails", "govern", "propose", new, "--roll", voters, "--to", report, "--scenario", scenario, "--seeds", 2, by=4
    )
    change = {one["figure"]: one["difference"] for one in made["changes"]}
    assert change["take_share"] < 0 < change["contributors_earned_share"]
    assert change["events_lost_units"] == 0
    again = program.run(
        "rails", "govern", "impact", new, "--to", tmp_path / "again", "--scenario", scenario, "--seeds", 2
    )
    assert again["digest"] == made["digest"]
    program.run("rails", "govern", "vote", 1, "--for", "--roll", voters, by=4)
    program.jump(600)
    assert program.run("rails", "govern", "show", 1, "--impact", report)["state"] == "ready"
    report.write_bytes(report.read_bytes() + b" ")
    assert program.run("rails", "govern", "show", 1, "--impact", report, fails=True)["error"]["code"] == (
        "impact_differs"
    )
    assert program.run("rails", "govern", "execute", 1, "--policy", new)["state"] == "executed"
    with Home(settings(program.home)) as home:
        assert home.policy.digest == made["new_policy"]
    assert program.run("rails", "govern", "show")["in_force"]["policy"] == made["new_policy"]
