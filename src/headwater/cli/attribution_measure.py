"""Measures planted cases on the demo's corpus and model, and keeps the tables so that a second run is cheap.

A table is kept under a digest of everything it depends on: prompt, answer, weights, arithmetic and seed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.evaluate import (
    PLAYERS,
    Case,
    CaseTable,
    Passage,
    contexts,
    held_out_halves,
    plant,
    shipped_recipes,
    table_from_arrays,
    whole_subsets,
)
from headwater.attribution.layout import Layout, Part
from headwater.core.canonical import digest_of
from headwater.core.errors import InvalidError
from headwater.models import (
    LlamaBackend,
    LocalScorer,
    Sampling,
    Tokenizer,
    file_digest,
    load_scorer,
    load_tokenizer,
    load_weights,
    render_chat,
    smollm_path,
)
from headwater.models.gguf_file import open_gguf
from headwater.retrieval import cut, load_embedder, load_proposals
from headwater.retrieval.terms import question_terms, terms
from headwater.retrieval.words import WordIndex

ANSWER_TOKENS_MAX = 32
CONTEXT_TOKENS_MAX = 1024
TABLE_VERSION = 1


class Bench:
    """The demo's model and corpus, loaded when they are first needed."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: where tables are kept; None keeps none."""
        self.folder = folder
        self._loaded: set[str] = set()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The demo model's."""
        return load_tokenizer(open_gguf(smollm_path()))

    @cached_property
    def scorer(self) -> LocalScorer:
        """The demo model in its default arithmetic."""
        return load_scorer(context_tokens_max=CONTEXT_TOKENS_MAX, tokenizer=self.tokenizer)

    @cached_property
    def passages(self) -> tuple[Passage, ...]:
        """The corpus, cut as the recipes ask for."""
        size = shipped_recipes().passage_tokens
        made: list[Passage] = []
        for document in load_proposals().candidates:
            text, number_of = document.content.decode(), dict[str, int]()
            pep = int(dict(document.metadata)["number"])
            for span in cut(text, size, lambda part: len(self.tokenizer.tokenize(part, control=False))):
                number = number_of.get(span.heading, 0)
                number_of[span.heading] = number + 1
                made.append(Passage(pep, document.title, span.heading, number, text[span.start : span.end]))
        return tuple(made)

    def cases(self, count: int, *, seed: int, players: int = PLAYERS) -> tuple[Case, ...]:
        """The first `count` shipped cases, planted.

        Raises:
            InvalidError: fewer than one, or more than ship.
        """
        recipes = shipped_recipes().cases
        if not 1 <= count <= len(recipes):
            raise InvalidError(
                f"{count} cases were asked for", code="cases_invalid", fix=f"ask for 1 to {len(recipes)}"
            )
        return tuple(
            plant(recipe, self.passages, *framed(recipe.question), seed=seed, players=players)
            for recipe in recipes[:count]
        )

    def measure(self, case: Case) -> CaseTable:
        """The table of a case, from the disk if it was measured before."""
        arrays = self._kept(f"{self._key(case)}.npz", lambda: self._measure(case).to_arrays())
        return table_from_arrays(arrays)

    def outside(
        self, case: Case, table: CaseTable, names: Sequence[str]
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, tuple[float, float]]]:
        """Scores of methods that need an index or another engine, and (CPU, wall) seconds, from the disk if kept.

        A method whose packages are not installed is left out.
        """
        scores, costs = {}, {}
        for name in names:
            arrays = self._kept(f"{self._key(case)}-{name}.npz", partial(self._time_outside, name, case, table))
            if "scores" in arrays:
                scores[name] = arrays["scores"].astype(np.float64)
                if "cost" in arrays:
                    cpu, wall = arrays["cost"].astype(np.float64)
                    costs[name] = (float(cpu), float(wall))
        return scores, costs

    def cost(self, case: Case, table: CaseTable, rows: Sequence[int], name: str) -> tuple[float, float]:
        """(CPU, wall) seconds of scoring some rows of a case's table by themselves, from the disk if kept."""

        def time_rows() -> dict[str, NDArray[np.generic]]:
            prompts = contexts(case.layout, self.scorer, whole_subsets(table.players)[list(rows)])
            cpu, wall = time.process_time(), time.perf_counter()
            self.scorer.score(prompts, table.answer_ids)
            return {"cost": np.array([time.process_time() - cpu, time.perf_counter() - wall])}

        cpu, wall = self._kept(f"{self._key(case)}-{name}-{len(rows)}-cost.npz", time_rows)["cost"].astype(np.float64)
        return float(cpu), float(wall)

    def _kept(self, name: str, make: Callable[[], Mapping[str, NDArray[Any]]]) -> Mapping[str, NDArray[Any]]:
        """Named arrays from a file, made and written there the first time."""
        path = None if self.folder is None else self.folder / name
        if path is not None and path.is_file():
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    return dict(arrays)
            except (OSError, ValueError, BadZipFile) as error:
                raise InvalidError(
                    f"{path.name} cannot be read: {error}", code="table_invalid", fix="delete it: it is measured again"
                ) from None
        made = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            with part.open("wb") as handle:
                np.savez_compressed(handle, allow_pickle=False, **made)
            part.replace(path)  # whole or not at all
        return made

    def _key(self, case: Case) -> str:
        parts = [[p.text, p.fixed, p.control] for p in case.layout.parts]
        said = {"answer": case.answer or "", "parts": parts, "scorer": self.scorer.digest, "version": TABLE_VERSION}
        return digest_of(said).removeprefix("sha256:")[:32]

    def _measure(self, case: Case) -> CaseTable:
        scorer = self.scorer
        if case.answer is None:
            ids, text = self._ask(case)
        else:
            ids, text = scorer.tokenize(case.answer, control=False), case.answer
        players = len(case.roles)
        halves = held_out_halves(players, seed=int(hashlib.sha256(case.id.encode()).hexdigest()[:8], 16))
        prompts = contexts(case.layout, scorer, whole_subsets(players))
        held = contexts(case.layout, scorer, halves)
        cpu, wall = time.process_time(), time.perf_counter()
        logp = scorer.score(prompts, ids)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return CaseTable(ids, text, logp, halves.mean(axis=2), scorer.score(held, ids), cpu, wall)

    def _time_outside(self, name: str, case: Case, table: CaseTable) -> dict[str, NDArray[Any]]:
        if name not in self._loaded:
            self._score_outside(name, case, table)  # loads what it needs, which is not the answer's cost
            self._loaded.add(name)
        cpu, wall = time.process_time(), time.perf_counter()
        made = self._score_outside(name, case, table)
        return made | {"cost": np.array([time.process_time() - cpu, time.perf_counter() - wall])} if made else made

    def _score_outside(self, name: str, case: Case, table: CaseTable) -> dict[str, NDArray[Any]]:
        texts = [part.text for part in case.layout.players]
        if name == "bm25":
            index = WordIndex.build([terms(text) for text in texts])
            return {"scores": index.scores(question_terms(case.question))}
        if name == "embedding":
            embedder = load_embedder()
            if embedder is None:
                return {}
            vectors = embedder.embed([table.answer_text, *texts])
            return {"scores": (vectors[1:] @ vectors[0]).astype(np.float64)}
        return {} if self.attention is None else {"scores": self.attention(case.layout, table.answer_ids)}

    @cached_property
    def attention(self) -> Callable[[Layout, Sequence[int]], NDArray[np.float64]] | None:
        """Attention paid to each source, by the same weights in torch; None where torch is not installed."""
        try:
            import torch

            from headwater.models.torch_weights import llama_module
        except ImportError:
            return None
        torch.set_num_threads(1)
        module = llama_module(load_weights(open_gguf(smollm_path()), file_digest(smollm_path())))
        module.set_attn_implementation("eager")

        def attention(layout: Layout, answer: Sequence[int]) -> NDArray[np.float64]:
            """(players,) attention from the answer, mean over layers, heads and answer tokens."""
            pieces = [self.tokenizer.tokenize(part.text, control=part.control) for part in layout.parts]
            ids = [token for piece in pieces for token in piece]
            with torch.inference_mode():
                seen = module(input_ids=torch.tensor([[*ids, *answer]]), output_attentions=True).attentions
            weights = (
                torch.stack([layer[0, :, len(ids) - 1 : -1].mean(dim=(0, 1)) for layer in seen]).mean(dim=0).numpy()
            )
            ends = np.cumsum([len(piece) for piece in pieces])
            return np.array(
                [
                    float(weights[end - len(piece) : end].sum())
                    for part, piece, end in zip(layout.parts, pieces, ends, strict=True)
                    if not part.fixed
                ]
            )

        return attention

    def _ask(self, case: Case) -> tuple[tuple[int, ...], str]:
        """What the model itself answers, greedily, with all sources before it."""
        prompt = [t for p in case.layout.parts for t in self.tokenizer.tokenize(p.text, control=p.control)]
        with LlamaBackend(context_tokens_max=CONTEXT_TOKENS_MAX, tokenizer=self.tokenizer, parallel=1) as backend:
            pieces = list(backend.generate(prompt, Sampling(ANSWER_TOKENS_MAX)))
        return tuple(token for piece in pieces for token in piece.token_ids), "".join(piece.text for piece in pieces)


def framed(question: str) -> tuple[tuple[Part, ...], int]:
    """The fixed parts of a prompt that asks `question`, and where among them its sources go: before the question."""
    pieces = render_chat([("user", question)], system_default=None)
    parts = tuple(Part(f"fixed-{i}", "", p.text, fixed=True, control=p.control) for i, p in enumerate(pieces))
    return parts, next(i for i, piece in enumerate(pieces) if piece.message == 0)
