"""A tiny base model, registered texts and a factory over them: trainings of milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headwater.core.ids import ContributionId, contributor_id
from headwater.models.adapters import AdapterStore
from headwater.models.factory import Dataset, Recipe, Row, assemble
from headwater.models.tokenizer import Tokenizer, byte_alphabet
from headwater.models.weights import tiny_weights
from headwater.receipts.signing import KeySigner
from headwater.registry import Contribution, Kind, License, Use, contribute, owned_equally

torch = pytest.importorskip("torch")

RECIPE = Recipe(rank=2, alpha=4.0, layers=1, learning_rate=1e-2, batch=2, epochs=3, tokens_max=64, checkpoint_steps=2)


@dataclass
class Shelf:
    """Registered contributions and their bytes."""

    contributions: dict[str, Contribution] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    withdrawn: dict[ContributionId, str] = field(default_factory=dict)

    def add(
        self,
        text: str,
        *,
        owner: str = "Ada",
        kind: Kind = "document",
        uses: frozenset[Use] = frozenset({"train"}),
        at: int = 1,
    ) -> ContributionId:
        """Register a text; its id."""
        made = contribute(
            kind,
            text.encode(),
            title=text[:40],
            owners=owned_equally([contributor_id("test", owner)]),
            license=License("CC0-1.0", uses),
            registered_at_ns=at,
            source="test",
        )
        self.contributions[made.id], self.contents[made.id] = made, text.encode()
        return made.id

    def dataset(self, rows: Sequence[Row], *, holdout_ppm: int = 0, seed: int = 0, now_ns: int = 10) -> Dataset:
        """Rows checked against this shelf."""
        return assemble(
            rows,
            lookup=lambda ids: [self.contributions[i] for i in ids if i in self.contributions],
            content=self.contents.__getitem__,
            withdrawn=lambda ids: {i: self.withdrawn[i] for i in ids if i in self.withdrawn},
            now_ns=now_ns,
            holdout_ppm=holdout_ppm,
            seed=seed,
        )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests share the machine with others."""
    torch.set_num_threads(1)


@pytest.fixture
def shelf() -> Shelf:
    """Nothing registered yet."""
    return Shelf()


@pytest.fixture
def eight(shelf: Shelf) -> Dataset:
    """Six texts, an answer and a pair."""
    texts = [f"line {n}: {'abcdefgh'[n] * 3} follows {'hgfedcba'[n] * 3}." for n in range(6)]
    rows = [Row(f"t:{n}", shelf.add(text), "text", "", text) for n, text in enumerate(texts)]
    question = shelf.add("what is it? it is a test")
    rows.append(Row("a:1", question, "answer", "what?", "a test"))
    rows.append(Row("p:1", question, "pair", "what?", "yes", "no!"))
    return shelf.dataset(rows)


@pytest.fixture
def signer() -> KeySigner:
    """The operator."""
    return KeySigner(b"\x07" * 32)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    """An empty store."""
    return AdapterStore(tmp_path / "adapters")


@pytest.fixture
def base():  # type: ignore[no-untyped-def]
    """A random model of two layers that reads bytes."""
    from headwater.models.factory.factory import Base

    tokenizer = Tokenizer((*byte_alphabet(), "<|im_start|>", "<|im_end|>"), (), (256, 257))
    return Base("tiny", tiny_weights(3), tokenizer)


@pytest.fixture
def make(base, store, signer) -> Callable[..., object]:  # type: ignore[no-untyped-def]
    """Trains an adapter in the store."""
    from headwater.models.factory.factory import make

    def run(name: str, dataset: Dataset, recipe: Recipe = RECIPE, **options: object) -> object:
        return make(name, dataset, base, recipe, options.pop("store", store), signer, **options)  # type: ignore[arg-type]

    return run
