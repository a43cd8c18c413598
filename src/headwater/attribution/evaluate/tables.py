"""The table of a game: how likely an answer is under every subset of its sources, measured once.

Every estimator is then asked on the same numbers, which costs nothing: `TableScorer` stands in for the model.
Beside the subsets a table holds ablations that no estimator sees: halves of sources, taken away at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.layout import Layout, Scorer
from headwater.core.errors import InvalidError, InvariantError

HELD_OUT = 12
"""Ablations by halves that each case is scored under."""


@dataclass(frozen=True, slots=True, eq=False)
class CaseTable:
    """Measured log-probabilities of one case."""

    answer_ids: tuple[int, ...]
    answer_text: str
    logp: NDArray[np.float64]  # (2^players, tokens), log2; bit i of the row number: source i is present
    kept: NDArray[np.float64]  # (held out, players) the part of each source that is present: 0, 0.5 or 1
    held_logp: NDArray[np.float64]  # (held out, tokens)
    cpu_s: float  # of the subsets alone
    wall_s: float

    @property
    def players(self) -> int:
        """Sources in the game."""
        return int(self.logp.shape[0]).bit_length() - 1

    def worth(self) -> NDArray[np.float64]:
        """(2^players,) log2-probability of the whole answer under each subset."""
        total: NDArray[np.float64] = self.logp.sum(axis=1)
        return total

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """As named arrays, to be kept in a file; `table_from_arrays` reads them back."""
        return {
            "answer_ids": np.array(self.answer_ids, dtype=np.int64),
            "answer_text": np.array(self.answer_text),
            "logp": self.logp,
            "kept": self.kept,
            "held_logp": self.held_logp,
            "cost": np.array([self.cpu_s, self.wall_s]),
        }


def table_from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> CaseTable:
    """Read back what `CaseTable.to_arrays` gave.

    Raises:
        InvalidError: arrays are missing or do not fit each other.
    """
    try:
        logp, held = arrays["logp"].astype(np.float64), arrays["held_logp"].astype(np.float64)
        kept, cost = arrays["kept"].astype(np.float64), arrays["cost"].astype(np.float64)
        ids = tuple(int(token) for token in arrays["answer_ids"].astype(np.int64))
        table = CaseTable(ids, str(arrays["answer_text"]), logp, kept, held, float(cost[0]), float(cost[1]))
        fits = logp.shape == (2**table.players, len(ids)) and held.shape == (len(kept), len(ids))
        if not fits or kept.shape[1] != table.players or not (np.isfinite(logp).all() and np.isfinite(held).all()):
            raise ValueError(f"shapes {logp.shape}, {held.shape}, {kept.shape}")
        return table
    except (KeyError, ValueError, IndexError) as error:
        raise InvalidError(
            f"the kept table cannot be read: {error}", code="table_invalid", fix="delete it: it is measured again"
        ) from None


def contexts(layout: Layout, scorer: Scorer, halves: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Prompts with only a part of each source: its first half, its second half, all or none.

    Args:
        layout: the whole prompt.
        scorer: reads the parts.
        halves: (prompts, players, 2) whether each half of each source is there.
    """
    pieces = [scorer.tokenize(part.text, control=part.control) for part in layout.parts]
    made = []
    for row in halves:
        tokens: list[int] = []
        player = -1
        for part, piece in zip(layout.parts, pieces, strict=True):
            player += not part.fixed
            first, second = (True, True) if part.fixed else (bool(row[player, 0]), bool(row[player, 1]))
            middle = len(piece) // 2
            tokens += piece[:middle] * first + piece[middle:] * second
        made.append(tuple(tokens))
    return made


def whole_subsets(players: int) -> NDArray[np.bool_]:
    """(2^players, players, 2) every subset of whole sources, in the order of a table's rows."""
    return np.repeat(every_subset(players)[:, :, None], 2, axis=2)


def every_subset(players: int) -> NDArray[np.bool_]:
    """(2^players, players) which sources are present in each row of a table."""
    rows = np.arange(2**players)[:, None]
    present: NDArray[np.bool_] = (rows >> np.arange(players) & 1).astype(bool)
    return present


def held_out_halves(players: int, *, seed: int) -> NDArray[np.bool_]:
    """(HELD_OUT, players, 2) random halves; each row cuts at least one source in two, so it is no subset of sources."""
    rng = np.random.default_rng(seed)
    rows: list[NDArray[np.bool_]] = []
    while len(rows) < HELD_OUT and players:
        row = rng.random((players, 2)) < 0.5
        if (row[:, 0] != row[:, 1]).any():
            rows.append(row)
    return np.array(rows, dtype=bool).reshape(len(rows), players, 2)


class TableScorer:
    """A `Scorer` that looks up what was measured, and counts the distinct prompts it was asked for."""

    def __init__(self, layout: Layout, scorer: Scorer, table: CaseTable) -> None:
        self._scorer, self._table = scorer, table
        rows = contexts(layout, scorer, whole_subsets(table.players))
        self._row_of: dict[tuple[int, ...], int] = {}
        for row, context in enumerate(rows):
            self._row_of.setdefault(context, row)
        self.asked: set[int] = set()

    @property
    def digest(self) -> str:
        """That of the model that was measured."""
        return self._scorer.digest

    @property
    def context_tokens_max(self) -> int:
        """That of the model that was measured."""
        return self._scorer.context_tokens_max

    def tokenize(self, text: str, *, control: bool) -> tuple[int, ...]:
        """As the model reads it."""
        return self._scorer.tokenize(text, control=control)

    def score(self, contexts: Sequence[Sequence[int]], answer: Sequence[int]) -> NDArray[np.float64]:
        """The measured rows of these prompts.

        Raises:
            InvariantError: another answer, or a prompt that is no subset of the case.
        """
        if tuple(answer) != self._table.answer_ids:
            raise InvariantError("the table is of another answer", code="table_mismatch")
        try:
            rows = [self._row_of[tuple(context)] for context in contexts]
        except KeyError:
            raise InvariantError("a prompt is no subset of the case's sources", code="table_mismatch") from None
        self.asked.update(rows)
        return self._table.logp[rows]
