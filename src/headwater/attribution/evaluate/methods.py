"""The estimators that are compared, each asked on the same measured table.

A method gives a score a source; what is positive would be paid. Those that ablate look subsets up in the table, so
that they cost nothing here; how many subsets a method asks for is its price. Those of others are written from
their papers: leave-one-out, single source, the LASSO of ContextCite, paired KernelSHAP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.account import Rules, attribute
from headwater.attribution.budget import Budget
from headwater.attribution.evaluate.planting import Case
from headwater.attribution.evaluate.tables import CaseTable, TableScorer, every_subset
from headwater.attribution.layout import Scorer
from headwater.attribution.reference import Reference
from headwater.attribution.surrogate import overlap_bits
from headwater.core.errors import InvalidError, MissingError

Scores = NDArray[np.float64]
APART = Rules(merge=False, evidence_floor_millibits=0)
"""Every source by itself, copies too: the game in which dividing is compared."""

LASSO_ALPHA = 0.01
"""Penalty of the package's defaults, on nats a token."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a method may use of one case."""

    case: Case
    table: CaseTable
    scorer: Scorer
    reference: Reference
    passes: int  # of the methods that sample
    seed: int
    outside: Mapping[str, Scores]  # scores that need a model or an index, made where those are


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a method says of one case."""

    scores: Scores  # (players,)
    passes: int  # prompts scored
    in_bits: bool  # whether the scores mean bits, so that they should add up
    rows: tuple[int, ...] = ()  # the table's rows that were looked up


Method = Callable[[Setting], Estimate]


def exact(setting: Setting) -> Estimate:
    """Shapley values from all subsets."""
    scorer = TableScorer(setting.case.layout, setting.scorer, setting.table)
    budget = Budget(passes=2**setting.table.players)
    found = attribute(
        scorer, setting.case.layout, setting.table.answer_ids, budget=budget, reference=setting.reference, rules=APART
    )
    return Estimate(np.array([share.bits for share in found.shares]), found.passes, True, tuple(sorted(scorer.asked)))


def sampled(setting: Setting) -> Estimate:
    """Our own, with a budget of passes."""
    scorer = TableScorer(setting.case.layout, setting.scorer, setting.table)
    found = attribute(
        scorer,
        setting.case.layout,
        setting.table.answer_ids,
        budget=Budget(passes=setting.passes),
        seed=setting.seed,
        reference=setting.reference,
        rules=APART,
    )
    return Estimate(np.array([share.bits for share in found.shares]), found.passes, True, tuple(sorted(scorer.asked)))


def leave_one_out(setting: Setting) -> Estimate:
    """Bits lost when one source is taken away."""
    worth, players = setting.table.worth(), setting.table.players
    everybody = 2**players - 1
    scores = [worth[everybody] - worth[everybody ^ (1 << i)] for i in range(players)]
    rows = (everybody, *(everybody ^ (1 << i) for i in range(players)))
    return Estimate(np.array(scores), players + 1, True, rows)


def single_source(setting: Setting) -> Estimate:
    """Bits gained when one source stands alone."""
    worth, players = setting.table.worth(), setting.table.players
    rows = (0, *(1 << i for i in range(players)))
    return Estimate(np.array([worth[row] - worth[0] for row in rows[1:]]), players + 1, True, rows)


def lasso(setting: Setting) -> Estimate:
    """Sparse linear weights on the logit of the answer's probability under random halves of the sources.

    Source: Cohen-Wang, Shah, Georgiev, Madry, 2024, ContextCite, section 3, with the package's defaults.
    """
    try:
        from sklearn.linear_model import Lasso
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise MissingError(
            "scikit-learn is not installed", code="bench_missing", fix="pip install 'headwater[bench]'"
        ) from None
    masks = _random_masks(setting)
    rows = masks @ (1 << np.arange(setting.table.players))
    nats = setting.table.worth()[rows] * np.log(2)
    logit = nats - np.log1p(-np.exp(np.minimum(nats, -1e-9)))
    tokens = len(setting.table.answer_ids)
    scaler = StandardScaler()
    fit = Lasso(alpha=LASSO_ALPHA, random_state=0).fit(scaler.fit_transform(masks.astype(np.float64)), logit / tokens)
    weights: Scores = fit.coef_ / scaler.scale_ * tokens / np.log(2)
    return Estimate(weights, setting.passes, True, tuple(sorted(set(rows.tolist()))))


def kernel_shap(setting: Setting) -> Estimate:
    """Weighted least squares on random pairs of a subset and its complement, summing to the whole.

    Source: Covert, Lee, 2021, Improving KernelSHAP, sections 3 and 4.
    """
    players, worth = setting.table.players, setting.table.worth()
    present = every_subset(players).astype(np.float64)
    sizes = np.arange(1, players)
    chance = (players - 1) / (sizes * (players - sizes))
    rng = np.random.default_rng(setting.seed)
    counts: dict[int, int] = {}
    everybody = 2**players - 1
    asked = {0, everybody}
    for _ in range(64 * setting.passes):
        size = int(rng.choice(sizes, p=chance / chance.sum()))
        row = int(sum(1 << int(i) for i in rng.choice(players, size, replace=False)))
        if len(asked | {row, everybody ^ row}) > setting.passes:
            break
        asked |= {row, everybody ^ row}
        for one in (row, everybody ^ row):
            counts[one] = counts.get(one, 0) + 1
    rows = np.array(sorted(counts))
    weight = np.array([counts[int(row)] for row in rows], dtype=np.float64)
    total = worth[everybody] - worth[0]
    design = present[rows][:, :-1] - present[rows][:, -1:]
    target = worth[rows] - worth[0] - present[rows][:, -1] * total
    root = np.sqrt(weight)
    free = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)[0]
    return Estimate(np.append(free, total - free.sum()), len(asked), True, tuple(sorted(asked)))


def overlap(setting: Setting) -> Estimate:
    """Grade C: shared words in reference bits."""
    return Estimate(overlap_bits(setting.case.layout, setting.table.answer_text, rules=APART), 0, in_bits=False)


def three_grams(setting: Setting) -> Estimate:
    """How many runs of three words of the answer each source holds."""
    said = _grams(setting.table.answer_text)
    scores = [sum(gram in set(_grams(part.text)) for gram in said) for part in setting.case.layout.players]
    return Estimate(np.array(scores, dtype=np.float64), 0, in_bits=False)


def cited_split(setting: Setting) -> Estimate:
    """The sources an answer is said to cite, in equal parts: the one that holds it and one that was not used."""
    cited = setting.case.places("gold", "cited")
    return Estimate(np.isin(np.arange(setting.table.players), cited).astype(np.float64), 0, in_bits=False)


def equal_split(setting: Setting) -> Estimate:
    """Everybody alike: what any estimator must beat."""
    return Estimate(np.ones(setting.table.players), 0, in_bits=False)


def outside(name: str) -> Method:
    """A method whose scores were made elsewhere."""

    def look_up(setting: Setting) -> Estimate:
        if name not in setting.outside:
            raise MissingError(f"no {name} scores were made", code="scores_missing", fix="install what they need")
        return Estimate(setting.outside[name], 1 if name == "attention" else 0, in_bits=False)

    return look_up


METHODS: Mapping[str, Method] = {
    "exact": exact,
    "sampled": sampled,
    "kernel-shap": kernel_shap,
    "lasso": lasso,
    "leave-one-out": leave_one_out,
    "single-source": single_source,
    "grade-c": overlap,
    "3-gram": three_grams,
    "bm25": outside("bm25"),
    "embedding": outside("embedding"),
    "attention": outside("attention"),
    "cited": cited_split,
    "equal": equal_split,
}
"""Every method by its name on the command line, best known first."""

OUTSIDE = ("bm25", "embedding", "attention")
"""Methods whose scores come from outside this package."""


def chosen(names: str) -> tuple[str, ...]:
    """Method names from a comma-separated list, ``all`` for every one; the exact one and the equal split always.

    Raises:
        InvalidError: a name that is none of them.
    """
    wanted = list(METHODS) if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in METHODS]:
        raise InvalidError(
            f"no method is called {unknown[0]!r}", code="method_unknown", fix=f"choose from {', '.join(METHODS)}"
        )
    return tuple(name for name in METHODS if name in {*wanted, "exact", "equal"})


def shapley(worth: NDArray[np.float64]) -> Scores:
    """Shapley values of a whole table, the short way: what the fast ones are compared with.

    Args:
        worth: (2^players,) in row order.
    """
    players = int(worth.shape[0]).bit_length() - 1
    values = np.zeros(players)
    for row, present in enumerate(every_subset(players)):
        share = 1.0 / (players * comb(players - 1, int(present.sum()))) if not present.all() else 0.0
        for i in np.flatnonzero(~present):
            values[i] += share * (worth[row | 1 << int(i)] - worth[row])
    return values


def _random_masks(setting: Setting) -> NDArray[np.int64]:
    """Each source kept with probability one half, drawn as the package draws."""
    rows = [
        np.random.RandomState(setting.seed + number).choice([0, 1], size=setting.table.players, p=[0.5, 0.5])
        for number in range(setting.passes)
    ]
    return np.array(rows, dtype=np.int64)


def _grams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return [tuple(words[at : at + 3]) for at in range(len(words) - 2)]
