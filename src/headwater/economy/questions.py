"""Asking: every row of a question is run with the same seeds, so that differences between rows need few of them.

An answer carries an interval over seeds, the strongest factors found by a Morris screen, and its assumption in words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from headwater.core.errors import InvalidError
from headwater.economy.catalogue import BASE, QUESTIONS, Figures, Question
from headwater.economy.figures import figures
from headwater.economy.scenario import Scenario, default_scenario
from headwater.economy.simulation import simulate
from headwater.economy.sweep import Factor, morris_factors, morris_points, run_points

# Student's t for 95 %, by degrees of freedom.
_T95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}


@dataclass(frozen=True, slots=True)
class Answer:
    """The table of a question: means over seeds with half-widths of 95 % intervals."""

    number: str
    text: str
    columns: tuple[tuple[str, str], ...]  # (header, unit)
    rows: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]  # (label, (mean, half-width) by column)
    factors: tuple[Factor, ...]
    output: str
    assumption: str
    scenario_digest: str
    seeds: int
    calls: int
    cpu_s: float


def ask(
    number: str,
    *,
    seeds: int = 5,
    scale: float = 1.0,
    factor_paths: int = 4,
    base: Scenario | None = None,
    on_run: Callable[[], None] | None = None,
) -> Answer:
    """Answer one question.

    Args:
        number: Q1 to Q12.
        seeds: runs per row, with common random numbers across rows.
        scale: multiplies the numbers of people; 1 is small enough for a laptop.
        factor_paths: Morris trajectories for the strongest factors; 0 leaves them out.

    Raises:
        InvalidError: no such question, no seeds, or a scale that leaves nobody.
    """
    question = question_of(number)
    if seeds < 1 or not 0.0 < scale <= 1e4 or factor_paths < 0:
        raise InvalidError(
            f"{seeds} seeds at scale {scale:g} with {factor_paths} paths",
            code="question_invalid",
            fix="use at least one seed, a scale above 0 and no negative number of paths",
        )
    start = time.process_time()
    common = (base or default_scenario()).with_values({**BASE, **question.base})
    calls = 0
    table: list[list[list[float]]] = [[[] for _ in question.columns] for _ in question.rows]
    for seed in range(1, seeds + 1):
        first: Figures | None = None
        for row, (_, changes) in enumerate(question.rows):
            values = _scaled(common.with_values(changes), scale)
            begun = time.process_time()
            got = dict(figures(simulate(values, seed)))
            got["us_per_call"] = (time.process_time() - begun) * 1e6 / max(1.0, got["calls"])
            calls += int(got["calls"])
            # A row that says that nobody attacks is what the rows after it are compared with.
            first = got if first is None or question.rows[row][0].startswith("nobody") else first
            for column, (_, _, cell) in enumerate(question.columns):
                table[row][column].append(cell(got, first))
            if on_run is not None:
                on_run()
    factors = strongest(question, common, factor_paths, on_run) if factor_paths else ()
    return Answer(
        question.number,
        question.text,
        tuple((header, unit) for header, unit, _ in question.columns),
        tuple(
            (label, tuple(interval(samples) for samples in table[row])) for row, (label, _) in enumerate(question.rows)
        ),
        factors,
        question.output,
        question.assumption,
        common.digest,
        seeds,
        calls,
        time.process_time() - start,
    )


def question_of(number: str) -> Question:
    """The question of a number like ``Q3``.

    Raises:
        InvalidError: no such question.
    """
    question = QUESTIONS.get(number.strip().upper())
    if question is None:
        raise InvalidError(f"no question {number!r}", code="question_unknown", fix=f"ask one of {', '.join(QUESTIONS)}")
    return question


def runs_of(number: str, seeds: int, factor_paths: int) -> int:
    """How many runs `ask` will make, for a progress bar."""
    question = question_of(number)
    factors = len(COMMON_FACTORS) + len(question.factors)
    return len(question.rows) * seeds + factor_paths * (factors + 1)


def strongest(
    question: Question, common: Scenario, paths: int, on_run: Callable[[], None] | None
) -> tuple[Factor, ...]:
    """All factors of a question's figure, strongest first, from small runs around one of its rows."""
    at = common.with_values({**question.rows[question.factors_at][1], **_SCREEN, "run.days": question.screen_days})
    ranges = {name: (name, low, high, log) for name, low, high, log in (*COMMON_FACTORS, *question.factors)}
    at = replace(at, ranges=tuple(ranges.values()))
    points, problem, unit = morris_points(at, paths)
    results = run_points(at, points, folder=None, on_run=on_run)
    return tuple(morris_factors(problem, unit, [r[question.output] for r in results]))


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval by Student's t; half-width 0 for a single run."""
    values = np.asarray(samples, np.float64)
    if values.size < 2:
        return float(values.mean()), 0.0
    t = _T95.get(values.size - 1, 1.96 + 2.6 / (values.size - 1))
    return float(values.mean()), float(t * values.std(ddof=1) / np.sqrt(values.size))


def _scaled(scenario: Scenario, scale: float) -> Scenario:
    if scale == 1.0:
        return scenario
    a, attack = scenario.agents, scenario.attack
    return scenario.with_values(
        {
            "contributors": max(10, round(a.contributors * scale)), "users": max(10, round(a.users * scale)),
            "attack.accounts": round(attack.accounts * scale) or min(1, attack.accounts),
            "attack.payers": round(attack.payers * scale) or min(1, attack.payers),
        }
    )  # fmt: skip


_SCREEN = {"contributors": 800, "users": 800, "apps": 40, "run.seeds": 1, "run.mode": "calls"}
COMMON_FACTORS: tuple[tuple[str, float, float, bool], ...] = (
    ("demand.calls_per_day", 0.3, 3.0, True),
    ("price.per_call_nano", 1e6, 2e7, True),
    ("evidence.tail", 1.03, 1.2, False),
    ("evidence.generic_share", 0.1, 0.6, False),
    ("evidence.base_bits", 100.0, 1000.0, True),
    ("settle.fee_nano", 1e6, 2.5e8, True),
    ("settle.claim_week", 0.02, 0.4, False),
    ("settle.lost_year", 0.05, 0.5, False),
    ("supply.elasticity", 0.1, 2.9, True),
    ("supply.salience_month_nano", 1e8, 1e10, True),
)
