"""How far a training is, as a file that a page reads: written whole, a few times a second at most."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final

_EVERY_S: Final = 0.25
LOSSES_MAX: Final = 2_000


class ProgressFile:
    """Writes ``{phase, done, total, losses, tokens, cpu_s}`` to `path`; without a path it writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._phase, self._at_s = "", 0.0
        self._losses: list[tuple[int, float]] = []
        self._tokens = 0

    def at(self, phase: str, done: int, total: int) -> None:
        """So many of so many of a phase: frozen, training or index."""
        if self._path is None:
            return
        last = done >= total or phase != self._phase
        if not last and time.monotonic() - self._at_s < _EVERY_S:
            return
        self._phase, self._at_s = phase, time.monotonic()
        value: dict[str, Any] = {
            "phase": phase,
            "done": done,
            "total": total,
            "losses": [[step, round(loss, 6)] for step, loss in self._losses],
            "tokens": self._tokens,
            "cpu_s": round(time.process_time(), 2),
        }
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.write_text(json.dumps(value), "utf-8")
        draft.replace(self._path)

    def step(self, number: int, steps: int, loss: float, tokens: int) -> None:
        """A training step was taken."""
        self._losses.append((number, loss))
        if len(self._losses) > LOSSES_MAX:
            del self._losses[1::2]  # every other one is enough of a curve
        self._tokens += tokens
        self.at("training", number, steps)
