"""What coalitions are worth: prompts made of the parts that are present, scored a batch at a time, kept as they come.

A scorer that fails midway loses one batch and no more: the caller keeps a `WorthCache` and hands it in again.
Batches follow the order of the prompt, so that prompts that begin alike are scored together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.evidence import layout_bytes
from headwater.attribution.layout import AdapterScorer, Layout, Scorer
from headwater.attribution.shapley import Coalition
from headwater.core.errors import InvalidError, UpstreamError

BATCH_CONTEXTS = 64
"""Prompts in one call of a scorer that does not say otherwise by an attribute ``batch_contexts``."""

LOGP_ABOVE_ZERO = 1e-6
"""Bits by which rounding may lift the probability of a certain token above one."""


class WorthCache:
    """Scored coalitions of one answer, so that an attribution cut short goes on where it stopped.

    Bound to the first scorer, layout and answer it is used with; not for several threads at once.
    """

    def __init__(self) -> None:
        self.rows: dict[Coalition, NDArray[np.float64]] = {}
        self._bound: str | None = None

    def bind(self, key: str) -> None:
        """Refuse another game than the first.

        Raises:
            InvalidError: the cache holds scores of another scorer, layout or answer.
        """
        if self._bound not in (None, key):
            raise InvalidError(
                f"the cache holds {len(self.rows)} scored prompts of another scorer, layout or answer",
                code="worth_cache_mismatch",
                fix="use one cache for one answer",
            )
        self._bound = key


class Worth:
    """log2 p(answer token) for any set of present players, scored when first asked for."""

    def __init__(self, scorer: Scorer, layout: Layout, answer: Sequence[int], cache: WorthCache | None = None) -> None:
        """Tokenise the parts once.

        Raises:
            InvalidError: the whole prompt and the answer do not fit the scorer's window.
        """
        self._scorer, self._layout, self._answer = scorer, layout, tuple(answer)
        self._pieces = [scorer.tokenize(part.text, control=part.control) for part in layout.parts]
        self._batch = int(getattr(scorer, "batch_contexts", BATCH_CONTEXTS))
        self._asked: set[Coalition] = set()
        self._cache = WorthCache() if cache is None else cache
        said = layout_bytes(layout, b"") + repr((scorer.digest, layout.joined, self._answer)).encode()
        self._cache.bind(hashlib.sha256(said).hexdigest())
        longest = len(self.prompt(frozenset(range(len(layout.players))))[0]) + len(self._answer)
        if longest > scorer.context_tokens_max:
            raise InvalidError(
                f"the prompt and its answer have {longest} tokens, the scorer's window is {scorer.context_tokens_max}",
                code="context_too_long",
                fix="use fewer or shorter parts",
            )

    @property
    def passes(self) -> int:
        """Distinct coalitions asked for so far, scored now or in an earlier attempt."""
        return len(self._asked)

    @property
    def silent(self) -> frozenset[int]:
        """Players without a token of their own: nothing changes when they leave."""
        own = [piece for part, piece in zip(self._layout.parts, self._pieces, strict=True) if not part.fixed]
        return frozenset(
            i
            for i, (part, piece) in enumerate(zip(self._layout.players, own, strict=True))
            if not piece and part.adapter is None
        )

    def rows(self, wanted: Sequence[Coalition]) -> NDArray[np.float64]:
        """(coalitions, tokens) bits, all <= 0 and finite.

        Raises:
            UpstreamError: the scorer gave something that is not a log-probability.
        """
        self._asked.update(wanted)
        known = self._cache.rows
        missing = sorted({c for c in wanted if c not in known}, key=self._place)
        for start in range(0, len(missing), self._batch):
            batch = missing[start : start + self._batch]
            for coalition, row in zip(batch, self._score(batch), strict=True):
                known[coalition] = row
        if not wanted:
            return np.zeros((0, len(self._answer)))
        return np.array([known[coalition] for coalition in wanted])

    def prompt(self, present: Coalition) -> tuple[list[int], tuple[str, ...]]:
        """Token ids and adapters of the prompt in which the players `present` are there."""
        prompt: list[int] = []
        adapters: list[str] = []
        text, control, player = "", False, -1
        for part, piece in zip(self._layout.parts, self._pieces, strict=True):
            player += not part.fixed
            if not part.fixed and player not in present:
                continue
            if part.adapter is not None:
                adapters.append(part.adapter)
            elif not self._layout.joined:
                prompt += piece
            elif part.control == control:
                text += part.text
            else:  # special tokens never form across a border between template and somebody's text
                prompt += self._scorer.tokenize(text, control=control)
                text, control = part.text, part.control
        if text:
            prompt += self._scorer.tokenize(text, control=control)
        return prompt, tuple(adapters)

    def _score(self, batch: Sequence[Coalition]) -> NDArray[np.float64]:
        read = [self.prompt(present) for present in batch]
        contexts = [prompt for prompt, _ in read]
        if not any(adapters for _, adapters in read):
            rows = self._scorer.score(contexts, self._answer)
        elif isinstance(self._scorer, AdapterScorer):
            rows = self._scorer.score_with(contexts, self._answer, [adapters for _, adapters in read])
        else:
            raise InvalidError(
                f"the scorer knows no adapters, the layout names {max(adapters for _, adapters in read)}",
                code="adapter_unknown",
                fix="score with a scorer that has the adapter, such as LocalScorer.with_adapter",
            )
        rows = np.asarray(rows, dtype=np.float64)
        if rows.shape != (len(batch), len(self._answer)) or not (np.isfinite(rows) & (rows <= LOGP_ABOVE_ZERO)).all():
            raise UpstreamError(
                f"the scorer gave {rows.shape} numbers that are not all log-probabilities",
                code="scorer_not_finite",
                fix="check the scorer; what was scored before is in the worth cache",
            )
        return np.minimum(rows, 0.0)

    def _place(self, coalition: Coalition) -> tuple[bool, ...]:
        """Order in which prompts that begin alike are neighbours."""
        return tuple(player in coalition for player in range(len(self._layout.players)))
