"""The evaluation: recipes, planting, tables, peers against brute force, and what a report says of known methods."""

from __future__ import annotations

import hashlib
from itertools import permutations

import numpy as np
import pytest

from headwater.attribution import Part, uniform_reference
from headwater.attribution.evaluate import (
    METHODS,
    OUTSIDE,
    Entry,
    Gold,
    Passage,
    Recipe,
    Setting,
    TableScorer,
    chosen,
    compare,
    contexts,
    held_out_halves,
    plant,
    read_recipes,
    shipped_recipes,
    table_from_arrays,
    whole_subsets,
)
from headwater.attribution.evaluate.comparing import misallocated, skill_of, spearman
from headwater.attribution.evaluate.methods import shapley
from headwater.attribution.evaluate.planting import edited
from headwater.attribution.evaluate.tables import CaseTable
from headwater.core.errors import InvalidError, InvariantError, MissingError

REFERENCE = uniform_reference(256)
FRAME = (
    Part("fixed-0", "", "<", fixed=True),
    Part("fixed-1", "", "asked", fixed=True),
    Part("fixed-2", "", ">", fixed=True),
)


class Bytes:
    """A byte is a token; an answer byte is the likelier the more often the prompt holds it."""

    digest = "sha256:bytes"
    context_tokens_max = 10_000

    def tokenize(self, text, *, control):  # noqa: ARG002
        return tuple(text.encode())

    def score(self, contexts, answer):
        rows = []
        for context in contexts:
            counts = np.bincount(list(context), minlength=256) + 0.05
            rows.append(np.log2(counts / counts.sum())[list(answer)])
        return np.array(rows).reshape(len(contexts), len(answer))


def passages() -> list[Passage]:
    texts = {1: ["qqqq xxxx qqqq", "mmmm nnnn"], 2: ["aaaa bbbb", "cccc dddd"], 3: ["eeee ffff", "gggg hhhh"]}
    return [Passage(pep, f"PEP {pep}", "S", n, text) for pep, each in texts.items() for n, text in enumerate(each)]


def recipe(number: int = 0, gold: bool = True) -> Recipe:
    digest = hashlib.sha256(b"qqqq xxxx qqqq").hexdigest()[:16]
    return Recipe(f"case-{number}", "asked", "qqqq xxxx", Gold(1, "S", 0, digest) if gold else None)


def entry(number: int = 0, gold: bool = True) -> Entry:
    case = plant(recipe(number, gold), passages(), FRAME, 1, seed=3, players=5)
    scorer = Bytes()
    ids = scorer.tokenize("qqqq xxxx", control=False)
    halves = held_out_halves(5, seed=1)
    logp = scorer.score(contexts(case.layout, scorer, whole_subsets(5)), ids)
    held = scorer.score(contexts(case.layout, scorer, halves), ids)
    outside = {name: np.arange(5.0) for name in OUTSIDE}
    return Entry(case, CaseTable(ids, "qqqq xxxx", logp, halves.mean(axis=2), held, 1.0, 2.0), outside)


def test_recipes_that_ship_name_places_and_hold_no_text() -> None:
    """Every fifth or so is generic, ids differ, and each gold place has a digest to check it by."""
    recipes = shipped_recipes().cases

    assert len(recipes) >= 24
    assert sum(one.gold is None for one in recipes[:24]) >= 4
    assert all(len(one.gold.digest) == 16 for one in recipes if one.gold)
    assert any(one.answer is None for one in recipes)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b'{"format": "headwater-cases-1", "passage_tokens": 1, "cases": [{}]}', b"[" * 9]
)
def test_recipes_that_cannot_be_read_are_refused(raw) -> None:
    """A damaged file is named, not guessed at."""
    with pytest.raises(InvalidError) as caught:
        read_recipes(raw)

    assert caught.value.code == "recipes_invalid"


def test_planting_is_repeatable_and_every_role_has_its_text() -> None:
    """One seed, one case; the copy reads as the gold source, the edited one nearly, and the gold one came first."""
    made = [plant(recipe(n), passages(), FRAME, 1, seed=s, players=5) for n in range(12) for s in (0, 0)]
    assert made[::2] == made[1::2]
    roles = {role for case in made for role in case.roles}

    assert {"gold", "copy", "edited", "neighbour", "cited"} <= roles
    for case in made:
        text = {role: part.text for role, part in zip(case.roles, case.layout.players, strict=True)}
        assert len(case.roles) == len({part.owner for part in case.layout.players}) == 5
        assert case.roles.count("gold") == 1
        assert text.get("copy", text["gold"]) == text["gold"] != text.get("edited")
        gold = case.layout.players[case.places("gold")[0]]
        assert gold.registered_at_ns == min(part.registered_at_ns for part in case.layout.players)
    assert edited("one two three four five six seven").split()[-1].casefold() == "seven"


def test_a_corpus_that_changed_is_refused() -> None:
    """A passage that reads otherwise than when the case was made is not measured by mistake."""
    changed = [Passage(p.pep, p.title, p.section, p.number, p.text + "!") for p in passages()]
    for corpus in (changed, []):
        with pytest.raises(MissingError) as caught:
            plant(recipe(), corpus, FRAME, 1, seed=0, players=5)
        assert caught.value.code == "case_stale"


def test_tables_read_back_and_damage_is_refused() -> None:
    """What was kept is what is read; arrays that do not fit are not used."""
    table = entry().table
    arrays = table.to_arrays()
    again = table_from_arrays(arrays)

    assert (again.logp == table.logp).all()
    assert (again.answer_ids, again.answer_text, again.cpu_s) == (table.answer_ids, table.answer_text, 1.0)
    for broken in ({}, arrays | {"logp": arrays["logp"][:-1]}, arrays | {"held_logp": arrays["held_logp"] * np.nan}):
        with pytest.raises(InvalidError) as caught:
            table_from_arrays(broken)
        assert caught.value.code == "table_invalid"


def test_a_table_stands_in_for_the_model_and_counts_what_is_asked() -> None:
    """Rows are those of the model; another answer or a foreign prompt stops the run."""
    one = entry()
    stand_in = TableScorer(one.case.layout, Bytes(), one.table)
    prompts = contexts(one.case.layout, Bytes(), whole_subsets(5))[3:6]

    assert (stand_in.score(prompts, one.table.answer_ids) == Bytes().score(prompts, one.table.answer_ids)).all()
    assert stand_in.asked == {3, 4, 5}
    for bad in (lambda: stand_in.score(prompts, (1,)), lambda: stand_in.score([(1, 2)], one.table.answer_ids)):
        with pytest.raises(InvariantError):
            bad()


def test_held_out_ablations_are_no_subsets_of_sources() -> None:
    """Each cuts a source in two, so no estimator has seen it."""
    halves = held_out_halves(4, seed=0)

    assert (halves[:, :, 0] != halves[:, :, 1]).any(axis=1).all()


def brute_force(worth: np.ndarray) -> np.ndarray:
    """Shapley values as the mean over all orders of joining."""
    players = len(worth).bit_length() - 1
    values = np.zeros(players)
    orders = list(permutations(range(players)))
    for order in orders:
        row = 0
        for i in order:
            values[i] += worth[row | 1 << i] - worth[row]
            row |= 1 << i
    return values / len(orders)


def test_exact_values_are_those_of_all_orders() -> None:
    """The account, the short formula and the mean over every order agree."""
    one = entry()
    setting = Setting(one.case, one.table, Bytes(), REFERENCE, 16, 0, {})
    truth = brute_force(one.table.worth())

    assert METHODS["exact"](setting).scores == pytest.approx(truth, abs=1e-9)
    assert shapley(one.table.worth()) == pytest.approx(truth, abs=1e-9)


def additive(weights) -> Entry:
    """A game in which every source is worth a fixed number of bits."""
    one = entry()
    players = len(weights)
    present = np.array([[row >> i & 1 for i in range(players)] for row in range(2**players)])
    logp = -300 + (present @ np.asarray(weights, dtype=float))[:, None] * np.full((1, 9), 1 / 9)
    return Entry(
        one.case,
        CaseTable(one.table.answer_ids, one.table.answer_text, logp, one.table.kept, one.table.held_logp, 1, 1),
        {},
    )


@pytest.mark.parametrize("name", ["exact", "sampled", "kernel-shap", "leave-one-out", "single-source"])
def test_methods_agree_where_sources_do_not_interact(name: str) -> None:
    """In an additive game every honest method finds the weights; how many prompts it asked for is counted."""
    weights = [12.0, 0.5, -3.0, 7.0, 0.0]
    one = additive(weights)
    found = METHODS[name](Setting(one.case, one.table, Bytes(), REFERENCE, 20, 0, {}))

    assert found.scores == pytest.approx(weights, abs=1e-3)
    assert 0 < found.passes <= 32
    assert found.in_bits


def test_the_lasso_keeps_the_order_and_shrinks() -> None:
    """Sparse weights: the large ones lead, none is larger than it is, small ones may vanish."""
    pytest.importorskip("sklearn")
    weights = np.array([12.0, 0.5, 0.0, 7.0, 0.0])
    one = additive(weights)
    found = METHODS["lasso"](Setting(one.case, one.table, Bytes(), REFERENCE, 64, 0, {})).scores

    assert np.argsort(-found)[:2].tolist() == [0, 3]
    assert (np.abs(found) <= np.abs(weights) + 0.01).all()
    assert found[0] == pytest.approx(12, rel=0.1)


def test_measures_are_what_they_say() -> None:
    """Pay is misallocated as far as it lies elsewhere; ranks with ties; skill against an equal split."""
    assert misallocated(np.array([1.0, 1, 0]), np.array([1.0, 0, 0])) == 0.5
    assert misallocated(np.array([-1.0, 5]), np.array([-7.0, 2])) == 0
    assert misallocated(np.zeros(2), np.array([1.0, 0])) == 1
    assert misallocated(np.array([-1.0, 0]), np.array([-1.0, -2])) == 0
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 25])) == pytest.approx(1)
    assert spearman(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) == 0
    assert skill_of(np.full(5, 0.1), np.full(5, 0.5)) == pytest.approx((0.8, 0.8))
    assert skill_of(np.array([0.1, 0.9, 0.1, 0.9]), np.full(4, 0.5))[1] < 0


def test_a_report_ranks_the_exact_first_and_refuses_the_blind() -> None:
    """Exact values misallocate nothing and add up; an equal split and scores without sense are refused for pay."""
    names = tuple(name for name in chosen("all") if name != "lasso")
    found = compare(
        [*(entry(n) for n in range(6)), entry(9, gold=False)],
        Bytes(),
        REFERENCE,
        names,
        passes=16,
        draws=2,
        costs={"exact": (1.0, 2.0)},
    )
    of = {row.method: row for row in found.methods}

    assert (found.cases, found.strong) == (7, 6)
    assert of["exact"].misallocated == 0
    assert of["exact"].gap_bits == pytest.approx(0, abs=1e-6)
    assert of["exact"].cpu_s == 1.0
    assert not of["exact"].refused
    assert of["equal"].skill == 0
    assert of["equal"].refused
    assert of["attention"].refused
    assert of["sampled"].misallocated < of["equal"].misallocated
    assert found.calibration is not None
    assert all(account.gap_bits < 1e-6 and account.copies_paid == 0 for account in found.accounts)


def test_weak_cases_and_unknown_methods_are_refused() -> None:
    """Nothing to compare, and no such method: both say what to do."""
    with pytest.raises(MissingError) as caught:
        compare([entry(0, gold=False)], Bytes(), REFERENCE, ("exact", "equal"), passes=8, draws=1, costs={})
    assert caught.value.code == "cases_too_weak"
    with pytest.raises(InvalidError) as unknown:
        chosen("exact,tarot")
    assert unknown.value.code == "method_unknown"
    assert chosen("bm25") == ("exact", "bm25", "equal")
