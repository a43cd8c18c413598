"""Served models by name, and each of them with each adapter as ``MODEL+ADAPTER``, as adapters come to be.

An adapter is served once it is whole, trained on these weights and registered; a call names it by its
name or by the id of its contribution. Factors, scorer and influence index are loaded when first used.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from headwater.accounting import LEARNED_RULES
from headwater.attribution.learned import Influence, copies_among
from headwater.core.errors import HeadwaterError, MissingError
from headwater.core.ids import ContributionId
from headwater.flow import Scores, ServedAdapter, ServedModel
from headwater.models import LlamaBackend, LocalScorer, load_weights
from headwater.models.adapters import AdapterStore, StoredAdapter
from headwater.models.gguf_file import open_gguf
from headwater.registry.lineage import Lineage
from headwater.store.registry_store import RegistryStore

SEPARATOR = "+"
INFLUENCE = "influence"


class AdaptedModels(Mapping[str, ServedModel]):
    """Models of one backend by name. Safe for several threads."""

    def __init__(
        self,
        plain: Mapping[str, ServedModel],
        backend: LlamaBackend,
        scorer: LocalScorer,
        adapters: AdapterStore,
        registry: RegistryStore,
        *,
        serves: Callable[[StoredAdapter], bool] = lambda _: True,
    ) -> None:
        """`plain`: the models without adapters; `scorer`: of the same weights; `serves`: whether consent permits it."""
        self._serves = serves
        self._plain, self._backend, self._scorer = dict(plain), backend, scorer
        self._adapters, self._registry = adapters, registry
        self._made: dict[tuple[str, str], ServedModel] = {}  # by model and adapter digest
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> ServedModel:
        if name in self._plain:
            return self._plain[name]
        base, _, adapter = name.partition(SEPARATOR)
        if base not in self._plain or not adapter:
            raise KeyError(name)
        try:
            stored = self._adapters.get(adapter)
        except MissingError:
            raise KeyError(name) from None
        if not self._servable(stored):
            raise KeyError(name)
        with self._lock:
            key = (base, stored.lineage.digest)
            if key not in self._made:
                self._made[key] = self._make(self._plain[base], stored)
            return self._made[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._plain
        for name in self._adapters.names():
            try:
                servable = self._servable(self._adapters.get(name))
            except HeadwaterError:
                continue  # a damaged one is told to whoever asks for it
            if servable:
                yield from (f"{base}{SEPARATOR}{name}" for base in self._plain)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _servable(self, stored: StoredAdapter) -> bool:
        """Whether it is of these weights and registered, and may be served."""
        of_these = stored.lineage.base_digest == self._backend.digest
        return of_these and bool(self._registry.get_many([stored.contribution])) and self._serves(stored)

    def _make(self, plain: ServedModel, stored: StoredAdapter) -> ServedModel:
        lineage = stored.lineage
        adapter = ServedAdapter(
            name=stored.name,
            contribution=stored.contribution,
            digest=lineage.adapter_digest,
            trained_on=tuple(one.contribution for one in lineage.trained_on),
            scores=self._scores(stored),
            copy_of=self._copies(lineage),
        )
        return replace(
            plain,
            name=f"{plain.name}{SEPARATOR}{stored.name}",
            backend=self._backend.with_adapter(stored.name),
            scorer=self._scorer.with_adapter(self._adapters.load(stored.name)),
            adapter=adapter,
        )

    def _copies(self, lineage: Lineage) -> dict[str, str]:
        """Contributions it was trained on that nearly repeat an earlier one: their scores count for that one."""
        known = self._registry.get_many([one.contribution for one in lineage.trained_on])
        ordered = sorted(known, key=lambda one: (one.registered_at_ns, one.id))
        return copies_among([(one.id, self._text(one.id)) for one in ordered], LEARNED_RULES)

    def _text(self, contribution: ContributionId) -> str:
        try:
            return self._registry.content(contribution).decode("utf-8", "replace")
        except HeadwaterError:
            return ""  # erased: it resembles nothing

    def _scores(self, stored: StoredAdapter) -> Scores | None:
        """The adapter's influence index, opened when the first answer is attributed; None if none was built."""
        if not (stored.folder / INFLUENCE).is_dir():
            return None
        return _Index(stored, self._backend)


class _Index:
    """An influence index that is opened when it is first asked."""

    def __init__(self, stored: StoredAdapter, backend: LlamaBackend) -> None:
        self._stored, self._backend, self._lock = stored, backend, threading.Lock()
        self._opened: Scores | None = None

    def __call__(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[Sequence[Influence], str, int]:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
        return self._opened(prompt, answer)

    def _open(self) -> Scores:
        if importlib.util.find_spec("torch") is None:
            raise MissingError(
                f"the influence index of {self._stored.name!r} needs torch, which is not installed",
                code="torch_missing",
                fix="pip install 'headwater[torch]'",
            )
        from headwater.models.factory.credit import AdapterCredit
        from headwater.models.factory.factory import Base

        weights = load_weights(open_gguf(self._backend.path), self._backend.digest)
        credit = AdapterCredit(self._stored, Base(self._backend.name, weights, self._backend.tokenizer))

        def scores(prompt: Sequence[int], answer: Sequence[int]) -> tuple[Sequence[Influence], str, int]:
            found = credit.score(prompt, answer)
            return found.influences, found.index_digest, found.seed

        return scores
