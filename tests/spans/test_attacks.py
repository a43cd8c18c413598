"""What dishonest registrants try, on real text: each earns nothing, and their victims lose nothing."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from headwater.attribution.spans import CreditRules, Document, Reference, SpanIndex
from headwater.attribution.spans.tokens import tokenise

Proposals = Sequence[tuple[str, bytes]]
HONEST = 120
RULES = CreditRules()


@pytest.fixture
def honest(proposals: Proposals) -> list[Document]:
    """Real documents, one owner each."""
    return [Document(name, f"owner-of-{name}", 1000 + i, text) for i, (name, text) in enumerate(proposals[:HONEST])]


@pytest.fixture
def answers(honest: list[Document], proposals: Proposals) -> list[bytes]:
    """Answers that quote two registered documents among other people's words."""
    rng = random.Random(7)
    other = [text for _, text in proposals[HONEST : HONEST + 60]]
    mine = [document.raw for document in honest]
    return [
        b" ".join(
            cut(rng, rng.choice(texts), words) for texts, words in ((other, 60), (mine, 40), (other, 60), (mine, 40))
        )
        for _ in range(150)
    ]


def cut(rng: random.Random, text: bytes, words: int) -> bytes:
    found = tokenise(text)
    begin = rng.randrange(max(1, len(found.starts) - words))
    return text[found.starts[begin] : found.ends[min(begin + words, len(found.ends)) - 1]]


def income(index: SpanIndex, answers: Sequence[bytes]) -> Counter[str]:
    """Micro-bits of each owner."""
    out: Counter[str] = Counter()
    for answer in answers:
        for share in index.credit(index.trace(answer), RULES).shares:
            out[share.owner] += share.microbits
    return out


@pytest.fixture
def index(tmp_path: Path, reference: Reference, honest: list[Document]) -> Iterator[SpanIndex]:
    with SpanIndex.create(tmp_path / "spans", reference=reference, background=False) as made:
        made.add(honest)
        yield made


@pytest.mark.parametrize("times", [1, 10])
def test_copying_the_top_earners_earns_nothing_and_costs_nobody(index, honest, answers, times):
    """A hundred best-paid documents copied once or ten times: copier 0, victims exactly what they had."""
    before = income(index, answers)
    by_id = {f"owner-of-{d.id}": d for d in honest}
    top = [by_id[owner] for owner, _ in before.most_common(100)]
    report = index.add(Document(f"copy-{n}-of-{d.id}", "copier", 10**6 + n, d.raw) for n in range(times) for d in top)
    after = income(index, answers)

    assert sum(before.values()) > 0
    assert report.owned_tokens == 0
    assert after["copier"] == 0
    assert after == before


def test_stuffing_with_common_phrases_earns_nothing(index, honest, proposals, answers):
    """A document of ten thousand 12-word phrases that many documents share."""
    seen: Counter[bytes] = Counter()
    for document in honest:
        found = tokenise(document.raw)
        grams = {tuple(found.hashes[i : i + 12].tolist()): i for i in range(len(found.hashes) - 12)}
        for i in grams.values():
            seen[document.raw[found.starts[i] : found.ends[i + 11]]] += 1
    phrases = [phrase for phrase, _ in seen.most_common(10_000)]
    before = income(index, answers)
    index.add([Document("stuffed", "stuffer", 10**6, b"\n".join(phrases))])
    after = income(index, [*answers, *(b" ".join(phrases[i : i + 20]) for i in range(0, 2000, 20))])

    assert len(phrases) == 10_000
    assert after["stuffer"] == 0
    assert all(after[owner] >= before[owner] for owner in before)


def test_splitting_a_document_or_an_owner_never_raises_the_total(tmp_path, reference, honest, answers):
    """One document in many pieces, under one name or many, earns at most what it earned whole."""
    chosen = honest[:40]

    def total(documents: list[Document], mine: set[str | None]) -> int:
        with SpanIndex.create(
            tmp_path / f"i{len(list(tmp_path.iterdir()))}", reference=reference, background=False
        ) as made:
            made.add([*documents, *honest[40:]])
            return sum(v for owner, v in income(made, answers).items() if owner in mine)

    owners: set[str | None] = {"me"}
    whole = total([Document(d.id, "me", d.registered_at, d.raw) for d in chosen], owners)
    for pieces in (2, 9):
        split, names = [], []
        for d in chosen:
            step = len(d.raw) // pieces + 1
            for n in range(0, len(d.raw), step):
                split.append(Document(f"{d.id}-{n}", "me", d.registered_at, d.raw[n : n + step]))
                names.append(Document(f"{d.id}-{n}", f"me-{n}", d.registered_at, d.raw[n : n + step]))
        assert 0 < total(split, owners) <= whole
        assert 0 < total(names, {d.owner for d in names}) <= whole


def test_interleaving_two_owners_captures_neither(index, honest):
    """Alternate passages of two documents: an answer that repeats the mixture pays the two, not the mixer."""
    rng = random.Random(3)
    one, two = honest[10], honest[50]
    parts = []
    for _ in range(30):
        parts += [cut(rng, one.raw, 25), cut(rng, two.raw, 25)]
    mixture = b" ".join(parts)
    before = income(index, [mixture])
    index.add([Document("mixture", "mixer", 10**6, mixture)])
    after = income(index, [mixture])

    assert after["mixer"] == 0
    assert before[one.owner] > 0
    assert before[two.owner] > 0
    assert all(after[owner] >= before[owner] for owner in before)


def test_changing_every_tenth_word_falls_to_the_original(index, honest):
    """An edited copy joins the original's cluster; quoting the edited version pays the original's owner."""
    victims = [d for d in honest if len(d.raw) > 8000][:25]
    edited = []
    for d in victims:
        words = d.raw.split()
        edited.append(b" ".join(b"altered%d" % i if i % 10 == 9 else w for i, w in enumerate(words)))
    report = index.add(Document(f"edit-{d.id}", "editor", 10**6, text) for d, text in zip(victims, edited, strict=True))
    rng = random.Random(5)
    quotes = [cut(rng, text, 120) for text in edited for _ in range(4)]
    earned = income(index, quotes)
    clustered = dict(report.clusters)

    assert [clustered.get(f"edit-{d.id}") for d in victims] == [d.id for d in victims]
    assert earned["editor"] == 0
    assert sum(earned.values()) > 0


def test_disguises_of_case_space_and_unicode_do_not_escape(index, honest, answers):
    """Upper case, other line breaks, decomposed letters, full width, soft hyphens, markdown: still copies."""
    before = income(index, answers)
    text = honest[20].raw.decode()
    wide = {c: c + 0xFEE0 for c in range(0x21, 0x7F)}
    disguises = {
        "upper": text.upper(),
        "flow": "\r\n\t".join(text.split()),
        "nfd": unicodedata.normalize("NFD", text),
        "wide": text.translate(wide),
        "shy": "\u00ad".join(text[:20_000]),
        "marked": " ".join(f"**{word}**," for word in text.split()),
    }
    report = index.add(Document(name, "forger", 10**6, disguise) for name, disguise in disguises.items())

    assert report.owned_tokens <= 40, "only joints that the cut-off of one disguise makes may be new"
    assert income(index, [*answers, *(d.encode() for d in disguises.values())])["forger"] == 0
    assert income(index, answers) == before


def test_what_remains_open_is_what_the_documentation_says(index, honest):
    """A thief who registers first is presumed the owner, and a paraphrase is not seen: the docs must say so."""
    index.add([Document("stolen", "thief", 1, honest[5].raw)])
    page = Path(__file__).parents[2] / "docs" / "spans.md"

    assert income(index, [honest[5].raw])["thief"] > 0
    assert "paraphrase" in page.read_text().lower()
    assert "registered first" in page.read_text().lower()
