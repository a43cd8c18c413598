"""Answers, facts, the page and the commands: whole, self-contained and honest about what was missed."""

from __future__ import annotations

import csv
import json
import re
from importlib.resources import files

import numpy as np
import pytest

from headwater.cli import economy as command
from headwater.economy.catalogue import BASE, QUESTIONS
from headwater.economy.charts import heat_map, sankey
from headwater.economy.draws import normal
from headwater.economy.questions import COMMON_FACTORS, ask, interval
from headwater.economy.report import Material, answer_csv, answer_text, facts_text, html_report, write_report
from headwater.economy.scenario import default_scenario
from headwater.economy.simulation import simulate
from headwater.economy.sweep import Factor
from headwater.economy.validation import CHECKS, PUBLISHED_CHANGES, Fact


def test_there_are_twelve_questions_whose_rows_are_valid_scenarios():
    """Every row of every question passes the checks of a scenario, and says what it assumes."""
    assert list(QUESTIONS) == [f"Q{i}" for i in range(1, 13)]
    for question in QUESTIONS.values():
        base = default_scenario().with_values({**BASE, **question.base})
        for _, changes in question.rows:
            base.with_values(changes)
        assert len(question.assumption) > 40


def test_an_answer_has_intervals_and_factors():
    """Means come with half-widths over seeds, and the strongest factors are named."""
    pytest.importorskip("SALib")
    answer = ask("q3", seeds=2, scale=0.1, factor_paths=2)

    ours = dict(zip([h for h, _ in answer.columns], answer.rows[0][1], strict=True))
    assert ours["compute"] == pytest.approx((0.2, 0.0), abs=1e-6)
    assert ours["contributors earn"][1] > 0
    assert len(answer.factors) == len(COMMON_FACTORS)
    assert "assumes:" in answer_text(answer)
    rows = list(csv.reader(answer_csv(answer).decode().splitlines()))
    assert [len(rows), len(rows[0])] == [4, 1 + 2 * len(answer.columns)]


def test_an_interval_is_students():
    """Three values 1, 2, 3: mean 2, half-width 4.303 / sqrt 3."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5))
    assert interval([5.0]) == (5.0, 0.0)


def test_the_page_stands_alone_and_says_what_was_missed(tmp_path):
    """No address, script or file from elsewhere; text is escaped; a missed fact is shown as missed."""
    run = simulate(default_scenario().with_values({"contributors": 200, "users": 200, "apps": 5, "run.days": 30}))
    answers = tuple(ask(q, seeds=1, scale=0.05, factor_paths=0) for q in ("Q2", "Q9"))
    facts = (Fact("V0", "<b>x</b>", "exact", "1", "2", False),)
    material = Material("An <economy>", (run,), answers, facts, (("effort", (Factor("a.b", 0.5, 0.1, 0.4),)),))

    page = html_report(material)

    assert not re.search(r"https?://|<script|src=|@import|url\(", page)
    assert "&lt;economy&gt;" in page
    assert "&lt;b&gt;x" in page
    assert page.count("<svg") == page.count("</svg>") >= 6
    assert "missed" in page
    assert "MISSED" in facts_text(facts)
    names = {path.name for path in write_report(tmp_path, material)}
    assert names == {"report.html", "report.txt", "q2.csv", "q9.csv", "validation.csv"}


def test_charts_show_nothing_without_failing():
    """Empty material gives an empty picture, and widths follow amounts."""
    assert "nothing to show" in sankey("none", [])
    drawn = sankey("two", [("a", "b", 3 * 10**9), ("a", "c", 10**9)])
    assert "a 100.0%" in drawn
    assert "b 75.0%" in drawn
    assert "50.0%" in heat_map("m", ["r"], ["c"], [[0.5]], what="part")


QUICK = ("pareto", "wash", "copies", "stacked", "labour")


@pytest.mark.parametrize("check", [c for c in CHECKS if c.__name__ in QUICK])
def test_facts_that_follow_from_definitions_are_met(check):
    """The quick ones of the twelve facts; the others are run with the slow tests."""
    assert check(True).met


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_every_fact_is_met(check):
    """At full size all twelve facts are met."""
    assert check(False).met


def test_a_taste_for_rank_alone_is_refuted_by_the_ranks_that_it_was_not_fitted_to():
    """Fitted to the top 10, a power of rank that grows with activity takes 11 % from ranks 11-100, which gained 1 %."""
    z = np.array([normal((i + 0.5) / 100) for i in range(100)])
    by_money = np.exp(z) / np.exp(z).sum()
    rank = np.arange(1, 200_001)
    weights = np.exp(-np.outer(0.817 + 0.028 * z, np.log(rank)))
    weights /= weights.sum(axis=1, keepdims=True)
    groups = [g.sum(axis=1) for g in np.split(weights, (10, 100, 1_000, 10_000), axis=1)]
    changes = [g.mean() / (by_money @ g) - 1 for g in groups]

    assert by_money @ groups[0] == pytest.approx(0.093, abs=0.002)
    assert changes[0] == pytest.approx(-0.17, abs=0.01)
    assert changes[1] < -0.1 < PUBLISHED_CHANGES[1]
    assert changes[4] > PUBLISHED_CHANGES[4] + 0.025


def test_facts_say_which_numbers_were_fitted_and_which_predicted():
    """Every calibrated fact names at least one of the two, half of them predict something, and the text prints both."""
    facts = (Fact("V0", "a", "exact", "1", "1", True), Fact("V1", "b", "fitted", "1", "1", True, "x of it", "y of it"))
    text = facts_text(facts)

    assert "fitted: x of it" in text
    assert "out of sample: y of it" in text
    assert text.endswith("missed: none\n2 of 2 facts met")


def _command(*arguments):
    return command.app([str(a) for a in arguments], result_action="return_value")


SMALL = ("--set", "contributors=150", "--set", "users=150", "--set", "apps=5", "--set", "run.days=20")


def test_run_writes_what_it_says(tmp_path, capsys):
    """The command runs each seed, prints figures as JSON and leaves tables and a page."""
    assert _command("run", *SMALL, "--seeds", 2, "--out", tmp_path, "--json") == 0

    printed = json.loads(capsys.readouterr().out)
    assert set(printed["figures"]) == {"1", "2"}
    assert {"run.json", "report.html"} <= {p.name for p in tmp_path.iterdir()}


def test_sweep_prints_its_cost_first_and_can_stop_there(tmp_path, capsys):
    """With --estimate nothing is run; without, factors are written and a report can show them."""
    pytest.importorskip("SALib")
    file = tmp_path / "s.toml"
    file.write_text(
        '[agents]\ncontributors=150\nusers=150\napps=5\n[run]\ndays=10\nseeds=1\n[sweep]\nmethod="morris+sobol"\n'
        'paths=2\nsamples=8\nbest=1\noutput="residual_share"\nparams={generic_share=[0.0,0.9],claim_week=[0.1,0.2]}\n',
        "utf-8",
    )
    assert _command("sweep", file, "--out", tmp_path / "o", "--estimate") == 0
    assert "6 runs, 0 known" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()

    assert _command("sweep", file, "--out", tmp_path / "o", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["factors"][0]["name"] == "evidence.generic_share"
    assert _command(
        "report", *SMALL, "--seeds", 1, "--questions", "none", "--no-facts", "--sweep", tmp_path / "o", "--out",
        tmp_path / "r"
    ) == 0  # fmt: skip
    assert "What moves" in (tmp_path / "r" / "report.html").read_text("utf-8")


def test_bad_commands_fail_with_a_fix(tmp_path, capsys):
    """Unknown questions, assumptions and folders without a sweep end with status 1 and a fix."""
    assert _command("ask", "Q13") == 1
    assert _command("run", "--set", "feee_nano=3", "--out", tmp_path) == 1
    assert _command("run", "--set", "fee_nano", "--out", tmp_path) == 1
    assert _command("report", *SMALL, "--questions", "none", "--no-facts", "--seeds", 1, "--sweep", tmp_path) == 1
    assert capsys.readouterr().err.count("fix:") == 4


def test_what_can_be_refused_is_refused_before_the_first_run(tmp_path, capsys, monkeypatch):
    """A folder that cannot be written, no seeds, no scale and an unknown question cost no simulation."""
    monkeypatch.setattr(command, "simulate", lambda *_, **__: pytest.fail("ran"))
    blocked = tmp_path / "file"
    blocked.write_text("x", "utf-8")

    assert _command("run", *SMALL, "--out", blocked / "in") == 1
    assert _command("report", *SMALL, "--questions", "Q3,Q77", "--out", tmp_path / "r") == 1
    assert _command("ask", "Q3", "--seeds", 0) == 1
    assert _command("ask", "Q3", "--scale", -1) == 1
    said = capsys.readouterr().err
    assert said.count("fix:") == 4
    assert "disk_failed" in said


def test_one_seed_has_no_interval_and_what_does_not_exist_is_null(capsys):
    """A table of one seed says so, and JSON stays JSON when nobody was kept."""
    assert _command("ask", "Q11", "--seeds", 1, "--scale", 0.01, "--factors", 0, "--json") == 0
    printed = capsys.readouterr().out
    assert "NaN" not in printed
    assert json.loads(printed)["seeds"] == 1
    text = answer_text(ask("Q3", seeds=1, scale=0.02, factor_paths=0))
    assert "one seed, so no interval" in text
    assert "±" not in text


def test_a_run_takes_the_operators_policy(tmp_path):
    """--policy and --set split.policy read the file: its lines are the ones that are paid."""
    shipped = files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8")
    (tmp_path / "policy.toml").write_text(shipped.replace('name = "default"', 'name = "mine"'), "utf-8")

    for i, option in enumerate(
        (("--policy", tmp_path / "policy.toml"), ("--set", f"split.policy={tmp_path}/policy.toml"))
    ):
        assert _command("run", *SMALL, "--seeds", 1, *option, "--out", tmp_path / str(i)) == 0
        described = json.loads((tmp_path / str(i) / "run.json").read_bytes())
        assert described["policy"]["name"] == "mine"


def test_a_run_starts_from_a_real_ledger(tmp_path):
    """Balances of contributors and escrow are read from a home folder and stay due in the run."""
    from headwater.ledger import Code, TransferDraft
    from headwater.store.database import Database
    from headwater.store.ledger_store import Batch, Ledger

    with Database(tmp_path / "headwater.db") as database:
        ledger = Ledger(database)
        drafts = (
            TransferDraft("cash", "payer:key_1", 900, "USD", Code.DEPOSIT, "test"),
            TransferDraft("payer:key_1", "escrow:ctr_1", 400, "USD", Code.CORRECTION, "test"),
        )
        for i, draft in enumerate(drafts):
            ledger.post_each((Batch(f"k{i}", (draft,)),), at_ns=i)

    opening = command._opening(tmp_path, "USD")

    assert opening.rows == (("escrow:ctr_1", 400, False),)
