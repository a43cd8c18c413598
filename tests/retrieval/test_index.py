"""The passage index: what is found, what is not, and what may not be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headwater.core.ids import ContributionId, ContributorId
from headwater.registry import Contribution, License, contribute, owned_equally
from headwater.retrieval import Embedder, PassageIndex, load_embedder, open_index
from headwater.retrieval.embedding import Vectors
from headwater.retrieval.index import Scoring

NOW = 1_000
FREE = License("CC0-1.0", frozenset({"ground"}))
RIVERS = (
    "The river Rhine rises in the Alps as two springs. "
    "It flows north past Basel and Cologne and reaches the North Sea near Rotterdam."
)
TEA = (
    "Tea is brewed from the leaves of a shrub that grows in the hills of Assam. "
    "Boiling water is poured over the leaves and left to stand."
)
CLOCKS = (
    "A pendulum clock keeps time because a swing of the pendulum takes as long whether it is wide or narrow. "
    "Huygens built the first one."
)
CHESS = (
    "In chess a knight moves two squares along a row and one square across. "
    "No other piece can jump over the pieces in between."
)
TEXTS = {"Rivers": RIVERS, "Tea": TEA, "Clocks": CLOCKS, "Chess": CHESS}


class Library:
    """Documents by id, as a registry would give them."""

    def __init__(self) -> None:
        self.texts: dict[ContributionId, str] = {}
        self.contributions: list[Contribution] = []
        self.read: list[ContributionId] = []

    def add(self, title: str, text: str, terms: License = FREE, at_ns: int = 0, owner: str = "a") -> ContributionId:
        """Put one document in."""
        made = contribute(
            "document",
            text.encode(),
            title=title,
            owners=owned_equally([ContributorId("ctr_" + owner * 32)]),
            license=terms,
            registered_at_ns=at_ns,
            source=title,
        )
        self.texts[made.id] = text
        self.contributions.append(made)
        return made.id

    def text_of(self, contribution_id: ContributionId) -> str:
        """Read one document, and remember that it was read."""
        self.read.append(contribution_id)
        return self.texts[contribution_id]

    def index(self, **options: object) -> PassageIndex:
        """All of it, indexed."""
        return PassageIndex.build(self.contributions, self.text_of, now_ns=NOW, **options)  # type: ignore[arg-type]


@pytest.fixture
def library() -> Library:
    """Four documents on four subjects."""
    made = Library()
    for title, text in TEXTS.items():
        made.add(title, text)
    return made


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("Where does the Rhine rise?", "Rivers"),
        ("How is tea brewed?", "Tea"),
        ("Why does a pendulum clock keep time?", "Clocks"),
        ("How does a knight move in chess?", "Chess"),
    ],
)
def test_a_question_finds_the_document_that_answers_it(library: Library, question: str, title: str) -> None:
    """Even among four documents, the right one comes first, and its text is exact."""
    found = library.index().search(question, 4)

    assert found
    passage = found[0]
    assert library.texts[passage.contribution_id] == TEXTS[title]
    assert passage.text == TEXTS[title][passage.start : passage.end]


@pytest.mark.parametrize(
    "text",
    [
        "Say hello",
        "Thanks!",
        "What is your name?",
        "",
        " \n",
        "?!",
        "Who won the world cup in 1998?",
        "How do I bake bread?",
        "\x00",
        "hello " * 5_000,
    ],
)
def test_what_no_document_answers_finds_nothing(library: Library, text: str) -> None:
    """Greetings, odd input and questions on other subjects retrieve no passage."""
    assert library.index().search(text, 4) == ()


def test_an_empty_index_finds_nothing() -> None:
    """No documents, or documents without prose, are no error."""
    assert Library().index().search("Where does the Rhine rise?", 4) == ()
    scraps = Library()
    scraps.add("Scraps", "1 2 3")
    assert len(scraps.index()) == 0
    assert scraps.index().search("Where does the Rhine rise?", 4) == ()


def test_what_may_not_ground_is_never_read(library: Library) -> None:
    """A licence without that use, or that has ended, keeps a document out of the index altogether."""
    shut = library.add("Rivers 2", RIVERS + " It is long.", License("CC0-1.0", frozenset({"train", "reproduce"})))
    ended = library.add("Rivers 3", RIVERS + " It is wide.", License("CC0-1.0", frozenset({"ground"}), 0, NOW))

    index = library.index()

    assert {refusal.contribution_id for refusal in index.refused} == {shut, ended}
    assert not {shut, ended} & set(library.read)
    found = index.search("Where does the Rhine rise?", 4, per_document=9)
    assert not {shut, ended} & {passage.contribution_id for passage in found}


def test_terms_that_depend_on_the_call_are_asked_at_the_call() -> None:
    """A document with an expiry or a price floor appears only for a call that says when and for how much."""
    library = Library()
    library.add("Rivers", RIVERS, License("CC0-1.0", frozenset({"ground"}), 500, 2 * NOW))
    index = library.index()
    question = "Where does the Rhine rise?"

    assert index.search(question, 1, now_ns=NOW, offer_units=500)
    assert index.search(question, 1) == ()
    assert index.search(question, 1, now_ns=NOW) == ()
    assert index.search(question, 1, offer_units=500) == ()
    assert index.search(question, 1, now_ns=NOW, offer_units=499) == ()
    assert index.search(question, 1, now_ns=2 * NOW, offer_units=500) == ()


def test_a_copy_gives_way_to_the_earlier_registration(library: Library) -> None:
    """Of near-duplicates only the one registered first is returned, however the copies score."""
    original = library.contributions[0].id
    for number in range(5):
        library.add("Rhine Rhine rise rise", RIVERS.replace("near", "by") + "!" * number, at_ns=10 + number, owner="b")

    found = library.index().search("Where does the Rhine rise?", 6)

    assert [passage.contribution_id for passage in found] == [original]


def test_a_document_gives_one_passage_unless_more_are_asked_for() -> None:
    """Sources differ by default; `per_document` and `k` are both upper bounds."""
    library = Library()
    things = (("many", "locks"), ("seven", "ferries"), ("old", "castles"), ("steep", "vineyards"))
    parts = [
        f"The river Rhine has {word} {kind} that boats on the Rhine must mind, says the guide to all {word} {kind}."
        for word, kind in things
    ]
    long = library.add("Guide", "\n\n".join(f"Part {i}\n======\n\n{part}" for i, part in enumerate(parts)))
    other = library.add("Rivers", RIVERS)
    index = library.index()

    ids = [
        [p.contribution_id for p in index.search("Tell me of the river Rhine", 4, per_document=n)] for n in (1, 2, 9)
    ]

    assert sorted(ids[0]) == sorted([long, other])
    assert ids[1].count(long) == 2
    assert ids[2].count(long) >= 3
    assert len(index.search("Tell me of the river Rhine", 2, per_document=9)) == 2
    assert index.search("Tell me of the river Rhine", 0) == ()


def test_passages_are_held_to_the_models_own_count(library: Library) -> None:
    """Where the model counts more tokens than was estimated, the passage ends at an earlier sentence."""

    def count(text: str) -> int:
        return 5 * len(text.split())

    full, held = library.index(), library.index(count_tokens=count)

    (before,), (after,) = (index.search("Where does the Rhine rise?", 1) for index in (full, held))
    assert before.text == RIVERS
    assert after.text == "The river Rhine rises in the Alps as two springs."
    assert RIVERS[after.start : after.end] == after.text
    assert count(after.text) <= 100


def test_a_prior_orders_and_admits_nothing(library: Library) -> None:
    """A superseded document comes after the current one; no prior makes a document relevant."""
    old = library.contributions[0].id
    new = library.add(
        "Rivers", "The Rhine river rises in Switzerland, in the canton of Graubünden, and is long.", at_ns=5
    )
    question = "Where does the river Rhine rise?"

    for lowered, first in ((old, new), (new, old)):
        index = library.index(priors={lowered: -0.5})
        assert [p.contribution_id for p in index.search(question, 2)] == [first, lowered]
    assert library.index(priors={old: 5.0}).search("How do I bake bread?", 4) == ()


def test_the_index_does_not_depend_on_the_order_of_documents(library: Library) -> None:
    """Listed in another order, the same documents give the same digest and the same passages."""
    one = library.index()
    library.contributions.reverse()
    two = library.index()

    assert one.digest == two.digest
    for question in ("Where does the Rhine rise?", "How is tea brewed?"):
        assert one.search(question, 4) == two.search(question, 4)


def test_the_digest_names_everything_that_decides_a_result(library: Library) -> None:
    """Another document, title, prior, weight or embedding is another index."""
    digests = {library.index().digest}
    digests.add(library.index(priors={library.contributions[0].id: -0.1}).digest)
    digests.add(library.index(scoring=Scoring(words=0.7)).digest)
    digests.add(library.index(embedder=letters("sha256:1")).digest)
    digests.add(library.index(embedder=letters("sha256:2")).digest)
    library.contributions[0] = replace(library.contributions[0], title="Streams")
    digests.add(library.index().digest)
    library.add("More", TEA + " More.")
    digests.add(library.index().digest)

    assert len(digests) == 7


def letters(digest: str) -> Embedder:
    """Embeddings that count letters: enough to have a direction."""

    def embed(texts: Sequence[str]) -> Vectors:
        counts = np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], dtype=np.float32)
        lengths = np.linalg.norm(counts, axis=1, keepdims=True)
        scaled: Vectors = np.divide(counts, lengths, out=np.zeros_like(counts), where=lengths > 0)
        return scaled

    return Embedder(digest, embed)


def test_an_index_is_read_from_its_folder_and_finds_the_same(library: Library, tmp_path: Path) -> None:
    """The second opening reads no document and gives equal passages."""
    kept = open_with(library, tmp_path)
    library.read.clear()
    again = open_with(library, tmp_path)

    assert library.read == []
    assert again.digest == kept.digest
    for question in ("Where does the Rhine rise?", "Say hello", "How is tea brewed?"):
        assert again.search(question, 4) == kept.search(question, 4)


def test_a_changed_registry_has_an_index_of_its_own(library: Library, tmp_path: Path) -> None:
    """A new document or a lapsed licence is noticed on opening."""
    open_with(library, tmp_path)
    library.add("Bread", "Bread is baked from flour, water, salt and yeast in a hot oven for an hour.")

    index = open_with(library, tmp_path)

    assert index.search("How do I bake bread?", 1)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:-1] + b"\x00", lambda raw: raw[:0]]
)
def test_a_damaged_cache_is_built_again(library: Library, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """A file cut short or altered is never searched; nothing needs to be repaired by hand."""
    expected = open_with(library, tmp_path).search("Where does the Rhine rise?", 4)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 8
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
        assert open_with(library, tmp_path).search("Where does the Rhine rise?", 4) == expected
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".draft")]


def open_with(library: Library, folder: Path) -> PassageIndex:
    """The library's index, kept in `folder`."""
    return open_index(folder, library.contributions, library.text_of, now_ns=NOW, embedder=letters("sha256:1"))


def test_progress_is_told(library: Library) -> None:
    """Every stage ends with all of its work done."""
    told: list[tuple[str, int, int]] = []

    library.index(embedder=letters("sha256:1"), progress=lambda what, done, total: told.append((what, done, total)))

    last = {what: (done, total) for what, done, total in told}
    assert last == {"cutting": (4, 4), "words": (4, 4), "meaning": (4, 4)}


def test_the_installed_embeddings_tell_related_words_apart() -> None:
    """If static embeddings are installed, they load offline and place kin nearer than strangers."""
    embedder = load_embedder()
    if embedder is None:
        pytest.skip("wordllama is not installed")
    dog, puppy, tax, empty = embedder.embed(["a dog", "a puppy", "income tax law", ""])

    assert dog @ puppy > dog @ tax
    assert np.isclose(np.linalg.norm(dog), 1.0, atol=1e-5)
    assert np.isfinite(empty).all()
    assert embedder.digest.startswith("sha256:")


def test_without_embeddings_retrieval_goes_by_words(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent package is no error; the index still answers."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    assert load_embedder() is None
    assert library.index(embedder=load_embedder()).search("How is tea brewed?", 1)
