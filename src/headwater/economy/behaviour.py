"""Behaviours are plug-ins: a function, the phase it belongs to, and the columns it reads and writes.

A behaviour sees only what it declared. Columns it reads are read-only; columns it writes it may change in
place. Unless a run is `sequential`, behaviours of one phase see the state as it was before the phase, so
their order changes nothing. Everything a behaviour did not declare is
fingerprinted before and after it acts, and a difference stops the run with the behaviour's name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.core.errors import InvalidError, InvariantError
from headwater.economy.scenario import Scenario
from headwater.economy.state import Column, State

PHASES = (
    "start", "price", "retrieve", "demand", "attention", "budget", "calls", "rails", "book", "settle", "beliefs",
)  # fmt: skip
"""The order of a day. ``start`` runs once, before day 0; ``calls`` and ``book`` are the engine's own."""


class View:
    """What one behaviour may see and change on one day."""

    __slots__ = ("_behaviour", "_frozen", "_state", "day", "scenario", "seed")

    def __init__(self, state: State, behaviour: Behaviour, scenario: Scenario, seed: int, frozen: dict[str, Column]):
        self._state, self._behaviour, self._frozen = state, behaviour, frozen
        self.day, self.seed, self.scenario = state.day, seed, scenario

    def __getitem__(self, name: str) -> Column:
        """The column ``table.column``: writeable if declared in `writes`, read-only if in `reads`."""
        if name in self._behaviour.writes:
            return self._state.columns[name]
        if name in self._behaviour.reads:
            column = self._frozen.get(name, self._state.columns[name]).view()
            column.flags.writeable = False
            return column
        raise self._undeclared("read", name)

    def resize(self, table: str, rows: int) -> None:
        """Give a table so many rows, all of whose columns must be declared; take its columns only afterwards."""
        for name in self._state.columns:
            if name.startswith(f"{table}.") and name not in self._behaviour.writes:
                raise self._undeclared("write", name)
        self._state.resize(table, rows)

    def balance(self, book: str) -> int:
        """What a declared book holds, nano units."""
        if f"book:{book}" not in (*self._behaviour.reads, *self._behaviour.writes):
            raise self._undeclared("read", f"book:{book}")
        return self._state.books.get(book, 0)

    def book(self, book: str, amount: int) -> None:
        """Add nano units to a declared book."""
        if f"book:{book}" not in self._behaviour.writes:
            raise self._undeclared("write", f"book:{book}")
        self._state.book(book, amount)

    def settled(self, kind: str, amount: int) -> None:
        """Account for money that left a contributor's row: ``received``, ``fees`` or ``unreachable``."""
        if "contributor.settled" not in self._behaviour.writes:
            raise self._undeclared("write", "contributor.settled")
        self._state.payouts[kind] += int(amount)

    def _undeclared(self, verb: str, name: str) -> InvariantError:
        return InvariantError(
            f"behaviour {self._behaviour.name!r} tried to {verb} {name!r}, which it did not declare",
            code="behaviour_undeclared",
            fix=f"add {name!r} to its {'reads' if verb == 'read' else 'writes'}, or leave it alone",
        )


@dataclass(frozen=True, slots=True)
class Behaviour:
    """A plug-in. `act` returns nothing: it changes the columns it declared."""

    name: str
    phase: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    act: Callable[[View], None]
    every: Callable[[Scenario], int] = lambda _: 1  # days between two acts
    wanted: Callable[[Scenario], bool] = lambda _: True
    prepare: Callable[[State, Scenario], None] | None = None  # adds columns of its own before day 0
    order: int = 0  # within a phase; behaviours that change the same column need different numbers
    trusted: bool = False  # held by our own tests; the guard watches it only when asked to watch all
    people_max: int = 0  # refuse more contributors than this; 0 for no limit (slow Python behaviours: 10,000)


class Phase:
    """Behaviours of one phase, checked once and run every day."""

    def __init__(self, name: str, behaviours: Iterable[Behaviour], scenario: Scenario):
        self.behaviours = [b for b in behaviours if b.phase == name and b.wanted(scenario)]
        self.behaviours.sort(key=lambda b: b.order)
        writers: dict[str, Behaviour] = {}
        for behaviour in self.behaviours:
            if behaviour.people_max and scenario.agents.contributors > behaviour.people_max:
                raise InvalidError(
                    f"behaviour {behaviour.name!r} is made for {behaviour.people_max} contributors, "
                    f"not {scenario.agents.contributors}",
                    code="behaviour_too_slow",
                    fix="lower agents.contributors or write it as a kernel",
                )
            for column in behaviour.writes:
                other = writers.setdefault(column, behaviour)
                if not column.startswith("book:") and other is not behaviour and other.order == behaviour.order:
                    raise InvalidError(
                        f"{behaviour.name!r} and {other.name!r} both write {column!r} in phase {name!r}",
                        code="behaviour_conflict",
                        fix="give them different orders, or move one to another phase",
                    )
        self.writes = frozenset(writers)
        # Only what one of them writes and another reads must be kept as it was.
        self._shared = {
            column
            for behaviour in self.behaviours
            for column in behaviour.reads
            if not column.startswith("book:") and writers.get(column, behaviour) is not behaviour
        }
        self._scenario = scenario

    def run(self, state: State, seed: int) -> None:
        """Let every behaviour act once, if its day has come."""
        due = [b for b in self.behaviours if state.day % max(1, b.every(self._scenario)) == 0]
        if not due:
            return
        run = self._scenario.run
        frozen = {} if run.sequential else {name: state.columns[name].copy() for name in self._shared}
        for behaviour in due:
            watched = run.guard == "all" or (run.guard == "plug-ins" and not behaviour.trusted)
            before = fingerprints(state, behaviour.writes) if watched else {}
            try:
                behaviour.act(View(state, behaviour, self._scenario, seed, frozen))
            except ValueError as error:
                if "read-only" not in str(error):
                    raise
                raise InvariantError(
                    f"behaviour {behaviour.name!r} wrote to a column it only declared to read",
                    code="behaviour_undeclared",
                    fix="add the column to its writes",
                ) from error
            after = fingerprints(state, behaviour.writes) if watched else {}
            if after != before:
                touched = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
                raise InvariantError(
                    f"behaviour {behaviour.name!r} changed {', '.join(touched)}, which it did not declare",
                    code="behaviour_undeclared",
                    fix="add them to its writes, or leave them alone",
                )


def refuse_unknown_columns(behaviours: Iterable[Behaviour], state: State, scenario: Scenario) -> None:
    """Refuse a plug-in for a phase or with a column that a run does not have; the nearest name is said.

    Raises:
        InvalidError: with code ``behaviour_invalid``.
    """
    for behaviour in behaviours:
        if behaviour.phase not in PHASES:
            known, wrong = list(PHASES), behaviour.phase
        else:
            known = list(state.columns)
            # What comes with the simulator may name columns that only some scenarios have.
            declared = () if behaviour.trusted or not behaviour.wanted(scenario) else behaviour.reads + behaviour.writes
            wrong = next((name for name in declared if not name.startswith("book:") and name not in known), "")
        if wrong:
            near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.4)
            raise InvalidError(
                f"behaviour {behaviour.name!r} names {wrong!r}, which this run does not have",
                code="behaviour_invalid",
                fix=f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}",
            )


def fingerprints(state: State, except_for: tuple[str, ...]) -> dict[str, Any]:
    """A cheap value per column and book that changes when anything in it does (sum of its 64-bit words)."""
    marks: dict[str, Any] = {f"book:{name}": amount for name, amount in state.books.items()}
    for name, column in state.columns.items():
        if name not in except_for and name not in ("asset.card",):
            raw = (
                column.view(np.uint8).ravel()
                if column.flags.c_contiguous
                else np.ascontiguousarray(column).view(np.uint8)
            )
            whole = raw.size // 8 * 8
            marks[name] = (int(raw[:whole].view(np.uint64).sum()), raw[whole:].tobytes())
    return {name: mark for name, mark in marks.items() if name not in except_for}
