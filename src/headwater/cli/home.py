"""A home folder opened: its stores, keys and policy, and the path composed from them.

    headwater.db     registry, ledger, calls, keys, epochs        receipts.log   the receipt log
    operator.key     signs receipts and posts roots               policies/      every policy ever in force
    passages/        retrieval index                              chain/         the embedded chain, if it is used
    adapters/        trained adapters, with their lineage         database.json  which PostgreSQL holds the records

This is where clocks and randomness enter. Knows nothing of commands or of HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Final

from headwater.attribution.spans import Document, SpanIndex, SpanView
from headwater.attribution.spans.values import OWNER_BYTES_MAX
from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, HeadwaterError, MissingError
from headwater.core.money import parse_units
from headwater.flow import EmbeddingModel, Flow, OutsideModel, Parts, ServedModel
from headwater.gateway.relay import Relays
from headwater.gateway.upstreams_file import read_upstreams
from headwater.meter import Meter, MeterParts
from headwater.models import Backend
from headwater.models.adapters import AdapterStore, StoredAdapter
from headwater.receipts import Signer
from headwater.registry import Contribution, Kind
from headwater.registry.consent import adapter_standing
from headwater.retrieval import Embedder, PassageIndex, estimate_tokens, load_embedder, open_index, standing_priors
from headwater.settings import Settings
from headwater.splits import Measuring, Policy, Prices
from headwater.store.call_store import CallStore
from headwater.store.consent_store import ConsentStore
from headwater.store.database import Sql
from headwater.store.epoch_store import EpochStore
from headwater.store.home_database import open_home_database
from headwater.store.key_file import load_or_create_signer
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.metered_store import MeteredStore
from headwater.store.receipt_log import ReceiptLog
from headwater.store.recent import recent
from headwater.store.registry_store import RegistryStore

PASSAGES: Final = "passages"
"""Folder of a home's cached passage indexes."""


def home_database(settings: Settings, *, create: bool = False) -> Sql:
    """A connection of its own to the records of a home.

    Raises:
        MissingError: ``home_missing``, unless it may be made.
        ConflictError: ``home_database_differs``, they are not the ones that belong to the folder.
    """
    return open_home_database(settings.home, settings.database, create=create)


class Home:
    """An opened home folder. With `writer`, this process serves calls and appends receipts; only one may.

    Raises:
        ConflictError: another process is the writer.
    """

    def __init__(self, settings: Settings, *, writer: bool = False, create: bool = True) -> None:
        self.settings = settings
        self.path = settings.home
        if create:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.db = home_database(settings, create=create)
        self.registry = RegistryStore(self.db)
        self.ledger = Ledger(self.db)
        self.keys = KeyStore(self.db)
        self.epochs = EpochStore(self.db)
        self.adapters = AdapterStore(self.path / "adapters")
        self.calls = CallStore(self.db, self.ledger, self.keys, run_id=os.urandom(16).hex() if writer else None)
        self.metered = MeteredStore(self.db, self.ledger, self.keys, self.calls)
        self.policy_text = self._policy_text()
        self.policy = Policy.from_toml(self.policy_text)
        self._keep_policy()
        self.log = self._open_log(writer)
        self._signer: Signer | None = None

    @property
    def signer(self) -> Signer:
        """The operator's key; made when it is first needed."""
        if self._signer is None:
            self._signer = load_or_create_signer(self.path / "operator.key")
        return self._signer

    def close(self) -> None:
        """Close everything; what was committed stays."""
        self.calls.close()
        self.log.close()
        self.db.close()

    def __enter__(self) -> Home:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def policy_by_digest(self, digest: str) -> str:
        """The TOML text of a policy that was in force here.

        Raises:
            MissingError: it never was.
        """
        path = self.path / "policies" / f"{digest.removeprefix('sha256:')}.toml"
        if not path.exists():
            raise MissingError(f"no policy {digest}", code="policy_missing", fix="ask the operator for its text")
        return path.read_text("utf-8")

    def flow(
        self,
        models: Mapping[str, ServedModel],
        passages: PassageIndex | None,
        spans: SpanIndex | SpanView | None,
        relays: Relays | None = None,
    ) -> Flow:
        """The path of a call, over this home; `relays` as `relays` gave them, if they have been read already."""
        others: dict[str, OutsideModel | EmbeddingModel] = {**self._outside(relays)}
        if models and (embeddings := self.embeddings()) is not None:
            others[embeddings.name] = embeddings
        return Flow(
            Parts(
                registry=self.registry,
                passages=passages,
                spans=spans,
                others=others,
                consents=ConsentStore(self.db),
                models=models,
                ledger=self.ledger,
                calls=self.calls,
                log=self.log,
                signer=self.signer,
                policy=self.policy,
                now_ns=time.time_ns,
                random_bytes=os.urandom,
            )
        )

    def _outside(self, relays: Relays | None) -> dict[str, OutsideModel]:
        """Models of other servers, so that their calls can be measured, again too."""
        try:
            relays = relays or self.relays()
        except HeadwaterError:  # the file is wrong or a key of it is not here: serving says so, this needs none of it
            return {}
        named = {} if relays is None else relays.models
        return {name: model.attributed for name, model in named.items() if model.attributed is not None}

    @cached_property
    def embedder(self) -> Embedder | None:
        """The installed static embeddings, loaded once."""
        return load_embedder()

    def embeddings(self) -> EmbeddingModel | None:
        """The static embeddings as a model that is served; None when they are not installed, or not to be."""
        name, embedder = self.settings.embedding_model, self.embedder if self.settings.embedding_model else None
        if embedder is None:
            return None
        return EmbeddingModel(
            name=name,
            digest=embedder.digest,
            dimensions=embedder.embed([name]).shape[1],
            prices=self.prices(),
            tokenize=embedder.tokenize,
            embed=lambda texts: embedder.embed(texts).tolist(),
        )

    def relays(self) -> Relays | None:
        """The models that other servers answer, as the settings' file names them.

        Raises:
            MissingError: no such file.
            InvalidError: ``upstreams_invalid``.
        """
        if not self.settings.upstreams:
            return None
        path = Path(self.settings.upstreams)
        if not path.is_file():
            raise MissingError(f"no upstreams at {path}", code="upstreams_missing", fix="give the path of a TOML")
        models, upstreams = read_upstreams(path.read_text("utf-8"), environment=os.environ, folder=path.parent)
        parts = MeterParts(
            store=self.metered,
            log=self.log,
            signer=self.signer,
            policy=self.policy,
            registry_digest=recent(self.registry.digest),
            now_ns=time.time_ns,
            random_bytes=os.urandom,
        )
        return Relays(models, upstreams, Meter(parts))

    def prices(self) -> Prices:
        """The price table of the settings."""
        return Prices(
            parse_units(self.settings.request_price),
            parse_units(self.settings.input_token_price),
            parse_units(self.settings.output_token_price),
            parse_units(self.settings.minimum_price),
        )

    def newest(self, kind: Kind) -> Contribution | None:
        """The contribution of this kind that was registered last, if there is any; callers' own words are not meant."""
        found = [one for one in self.registry.contributions(kind=kind) if one.meta("signal") is None]
        return max(found, key=lambda c: c.registered_at_ns, default=None)

    def _policy_text(self) -> str:
        if self.settings.policy:
            path = Path(self.settings.policy)
            if not path.is_file():
                raise MissingError(f"no policy at {path}", code="policy_missing", fix="give the path of a policy TOML")
            return path.read_text("utf-8")
        own = self.path / "policy.toml"
        if own.exists():
            return own.read_text("utf-8")
        return files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8")

    def _keep_policy(self) -> None:
        folder = self.path / "policies"
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.policy.digest.removeprefix('sha256:')}.toml"
        if not path.exists():
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_text(self.policy_text, "utf-8")
            draft.replace(path)

    def _open_log(self, writer: bool) -> ReceiptLog:
        path = self.path / "receipts.log"
        if not path.exists() and not writer:
            with suppress(HeadwaterError):
                ReceiptLog.open(path).close()
        try:
            return ReceiptLog.open(path, read_only=not writer)
        except ConflictError as error:
            if error.code != "log_locked":
                raise
            raise ConflictError(
                f"the home {self.path} is in use: another process serves it or writes receipts",
                code=error.code,
                fix="stop the `headwater serve` or wait for the command that has it, or name another home",
            ) from None


@contextmanager
def models(home: Home) -> Iterator[Mapping[str, ServedModel]]:
    """The demo model, served under its plain name and, with sources and the registered prompt, its grounded one.

    Each is served with every registered adapter too, as NAME+ADAPTER, from the moment the adapter exists.

    Raises:
        MissingError: the model or its engine is not installed.
    """
    from headwater.cli.adapted_models import AdaptedModels  # heavy, as are these: only who answers pays for it
    from headwater.models import LlamaBackend, load_scorer, shipped_reference

    settings = home.settings
    with LlamaBackend(name=settings.model_name, threads=settings.threads, adapters=home.adapters) as backend:
        scorer = load_scorer(tokenizer=backend.tokenizer)
        base, prompt = home.newest("base_model"), home.newest("prompt")
        plain = ServedModel(
            settings.model_name,
            backend,
            scorer,
            shipped_reference(),
            home.prices(),
            base.id if base else None,
            measuring=Measuring(
                settings.max_passes,
                settings.max_cost_bps,
                parse_units(settings.scored_token_price, where="scored_token_price"),
            ),
        )
        grounded = replace(
            plain,
            name=settings.model_name + settings.grounded_suffix,
            prompt=prompt.id if prompt else None,
            sources=settings.sources,
        )
        served = {plain.name: plain, grounded.name: grounded}
        yield AdaptedModels(
            served, backend, scorer, home.adapters, home.registry, serves=lambda stored: adapter_serves(home, stored)
        )


def adapter_serves(home: Home, stored: StoredAdapter) -> bool:
    """Whether consent lets an adapter be served now: its own contribution's, and that of what it was trained on."""
    consents, now = ConsentStore(home.db), time.time_ns()
    trained_on = [one.contribution for one in stored.lineage.trained_on]
    standings = consents.standing([stored.contribution, *trained_on])
    own = standings.get(stored.contribution)
    return (own is None or own.stopped(now) is None) and adapter_standing(
        trained_on, standings, now, consents.adapter_rule()
    ).serves


@contextmanager
def spans(home: Home, *, update: bool = True) -> Iterator[SpanIndex]:
    """The span index over all registered documents; brought up to date unless it is only to be read."""
    folder = home.path / "spans"
    with SpanIndex.open(folder) if folder.exists() else SpanIndex.create(folder) as index:
        if update:
            add_present(home, index)
        yield index


def documents_state(home: Home) -> tuple[str, frozenset[str]]:
    """What a span index is made of: the registry, and what of it was withdrawn, erased or taken down."""
    return home.registry.digest(), frozenset(ConsentStore(home.db).all_stopped(time.time_ns()))


def add_present(home: Home, index: SpanIndex) -> None:
    """Bring a span index up to date with the registered documents."""
    index.add(_present(home, index))


def _present(home: Home, index: SpanIndex) -> Iterator[Document]:
    """Every document as it stands; one whose owner is another by now, or is nobody's any more, is taken out first.

    What was withdrawn keeps its words under no owner, so that no copy of it inherits them; erased words are gone.
    """
    standings = ConsentStore(home.db).all_stopped(time.time_ns())
    for one in home.registry.contributions(kind="document"):
        held = index.snapshot.find(one.id)
        try:
            document = _document(home, one, owned=one.id not in standings)
        except MissingError as erased:
            if erased.code != "content_erased":
                raise
            if held is not None:
                index.remove(one.id)
            continue
        if held is not None and held[0].owner(held[1]) != document.owner:
            index.remove(one.id)
        yield document


def _document(home: Home, contribution: Contribution, *, owned: bool = True) -> Document:
    owner = "+".join(sorted(owner.contributor_id for owner in contribution.owners)) if owned else None
    if owner is not None and len(owner) > OWNER_BYTES_MAX:  # many owners: one name that stands for exactly these
        owner = digest(owner.encode())
    registered_at = max(0, contribution.registered_at_ns)
    return Document(contribution.id, owner, registered_at, home.registry.content(contribution.id))


def passages(
    home: Home,
    backend: Backend | None,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    current: PassageIndex | None = None,
) -> PassageIndex:
    """The retrieval index over all documents that may ground an answer, from the home's cache if it is there.

    `current` is given back when nothing has changed since it was made.
    """
    stopped = ConsentStore(home.db).all_stopped(time.time_ns())
    documents = [one for one in home.registry.contributions(kind="document") if one.id not in stopped]
    if home.settings.datanet:
        from headwater.cli.datanet_use import contributions_of  # it needs this module

        members = set(contributions_of(home, home.settings.datanet, "ground"))
        documents = [one for one in documents if one.id in members]
    return open_index(
        home.path / PASSAGES,
        documents,
        home.registry.text,
        now_ns=time.time_ns(),
        priors=standing_priors(documents),
        embedder=home.embedder,
        count_tokens=estimate_tokens if backend is None else lambda text: len(backend.tokenize(text, control=False)),
        progress=progress,
        current=current,
    )
