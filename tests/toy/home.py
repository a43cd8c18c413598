"""A home folder with a little registry, real stores, and the toy model served under three names.

toy            no sources, no prompt          toy-grounded   2 sources and the registered prompt
toy-dear       a call costs one whole unit
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from headwater.attribution.layout import Scorer
from headwater.attribution.reference import Reference, uniform_reference
from headwater.core.ids import ContributionId
from headwater.core.money import NANO, PPB
from headwater.flow import Flow, Parts, ServedModel
from headwater.gateway.relay import Relays
from headwater.gateway.upstreams_file import read_upstreams
from headwater.ledger import deposit
from headwater.meter import Meter, MeterParts
from headwater.models import Backend
from headwater.receipts import KeySigner
from headwater.registry import Ownership, enrolled, unenrolled
from headwater.registry.intake import Candidate
from headwater.retrieval import Passage
from headwater.splits import Policy
from headwater.splits.pricing import Prices
from headwater.store.call_store import CallStore
from headwater.store.consent_store import ConsentStore
from headwater.store.database import Database
from headwater.store.key_store import KeyRecord, KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.metered_store import MeteredStore
from headwater.store.receipt_log import ReceiptLog
from headwater.store.registry_store import RegistryStore
from toy.model import ToyModel

PROMPT = "Answer from the sources and say what you do not know."
DOCUMENTS = {
    "Rivers": "A river begins at its headwater and ends in the sea. You said: a river runs downhill.",
    "Clouds": "A cloud is water in the air. You said: clouds bring rain to the hills.",
    "Stones": "A stone rolls in the river until it is round and smooth.",
}
PRICES = Prices(request_units=2_000_000, input_token_units=4_000, output_token_units=100_000)


class WordSearch:
    """Finds documents by the number of words they share with a question."""

    def __init__(self, documents: dict[ContributionId, str]) -> None:
        self._documents = documents

    def search(self, question: str, wanted: int, **_: object) -> list[Passage]:
        """The best documents first; those that share no word are left out."""
        asked = set(question.lower().split())
        scored = [(len(asked & set(t.lower().split())), i, t) for i, t in self._documents.items()]
        best = sorted((s for s in scored if s[0]), key=lambda s: (-s[0], s[1]))[:wanted]
        return [Passage(i, 0, len(t), t, float(score)) for score, i, t in best]


@dataclass
class ToyHome:
    """An open home and what is in it."""

    path: Path
    db: Database
    ledger: Ledger
    keys: KeyStore
    calls: CallStore
    log: ReceiptLog
    registry: RegistryStore
    model: ToyModel
    flow: Flow

    @property
    def currency(self) -> str:
        """What calls are paid in."""
        return self.flow.parts.policy.currency

    def key(self, label: str = "a caller", units: int = 100 * NANO) -> tuple[str, KeyRecord]:
        """A new key with credit: its secret and its record."""
        secret, record = self.keys.create(label, os.urandom(32), time.time_ns())
        if units:
            self.fund(record, units)
        return secret, record

    def fund(self, key: KeyRecord, units: int) -> None:
        """Credit for a key, once."""
        draft = deposit(key.account, units, asset=self.currency, cause=f"deposit:{key.key_id}")
        self.ledger.post([draft], key=f"deposit:{key.key_id}", at_ns=time.time_ns())

    def relays(self, upstreams: str) -> Relays:
        """The models that the upstreams of a TOML answer."""
        parts, flow = MeteredStore(self.db, self.ledger, self.keys, self.calls), self.flow.parts
        models, servers = read_upstreams(upstreams, environment={"UPSTREAM_KEY": "up-secret"}, folder=self.path)
        meter = Meter(
            MeterParts(parts, self.log, flow.signer, flow.policy, self.registry.digest, time.time_ns, os.urandom)
        )
        return Relays(models, servers, meter)

    def spent(self, key: KeyRecord, deposited: int = 100 * NANO) -> int:
        """Nano units the key's calls were charged."""
        return deposited - self.ledger.balance(key.account, self.currency).balance_units

    def reserved(self, key: KeyRecord) -> int:
        """Nano units set aside for calls at work."""
        return self.ledger.balance(key.account, self.currency).reserved_out_units


@dataclass(frozen=True)
class Engine:
    """What answers and measures."""

    backend: Backend
    scorer: Scorer
    reference: Reference


@contextmanager
def open_home(path: Path, engine: Engine | None = None) -> Iterator[ToyHome]:
    """Open the home at `path` as the process that serves it, and make it when it is new; the toy model by default."""
    path.mkdir(parents=True, exist_ok=True)
    with Database(path / "headwater.db") as db, ReceiptLog.open(path / "receipts.log") as log:
        registry, ledger, keys = RegistryStore(db), Ledger(db), KeyStore(db)
        calls = CallStore(db, ledger, keys, run_id=os.urandom(16).hex())
        documents, prompt, base = _register(registry)
        model = ToyModel()
        engine = engine or Engine(model, model, uniform_reference(256))
        shared = (engine.backend, engine.scorer, engine.reference)
        dear = Prices(request_units=NANO, input_token_units=0, output_token_units=0)
        served = (
            ServedModel("toy", *shared, PRICES, base),
            ServedModel("toy-grounded", *shared, PRICES, base, prompt, 2),
            ServedModel("toy-dear", *shared, dear, base),
        )
        policy = Policy.from_toml(files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8"))
        flow = Flow(
            Parts(
                registry=registry,
                passages=WordSearch(documents),  # type: ignore[arg-type]
                models={each.name: each for each in served},
                ledger=ledger,
                calls=calls,
                log=log,
                signer=KeySigner(b"\x01" * 32),
                policy=policy,
                now_ns=time.time_ns,
                random_bytes=os.urandom,
                consents=ConsentStore(db),
            )
        )
        try:
            yield ToyHome(path, db, ledger, keys, calls, log, registry, model, flow)
        finally:
            calls.close()


def _register(registry: RegistryStore) -> tuple[dict[ContributionId, str], ContributionId, ContributionId]:
    ada = enrolled("toy", "Prompt Author", "0x" + "11" * 20)
    maker = unenrolled("toy", "Model Maker")
    owners = {title: unenrolled("toy", f"Writer of {title}") for title in DOCUMENTS}

    def candidate(kind: str, title: str, text: str, owner: str) -> Candidate:
        return Candidate(
            where=title,
            kind=kind,  # type: ignore[arg-type]
            title=title,
            content=text.encode(),
            owners=(Ownership(owner, PPB),),  # type: ignore[arg-type]
            license_expression="CC0-1.0",
            uses=frozenset(("ground", "train", "reproduce")),
            registered_at_ns=1,
            source="toy",
        )

    batch = [candidate("document", title, text, owners[title].id) for title, text in DOCUMENTS.items()]
    batch.append(candidate("prompt", "House prompt", PROMPT, ada.id))
    batch.append(candidate("base_model", "Toy", "toy weights", maker.id))
    intake = registry.admit(batch, (ada, maker, *owners.values()))
    assert not intake.problems, intake.problems
    found = {c.title: c.id for c in registry.contributions()}
    return {found[title]: text for title, text in DOCUMENTS.items()}, found["House prompt"], found["Toy"]
