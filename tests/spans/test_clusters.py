"""Edited copies share one credit with their original; pages of one template do not."""

from __future__ import annotations

import random

import pytest

from headwater.attribution.spans import CreditRules, Document, SpanIndex


def prose(rng: random.Random, words: int) -> list[str]:
    """Words of no language, rare enough to be somebody's."""
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(4, 9))) for _ in range(words)]


def page(rng: random.Random, template: list[list[str]], own: int) -> list[str]:
    """A page of a template: its parts with `own` words of one's own after each."""
    return [word for part in template for word in (*part, *prose(rng, own))]


def edited(rng: random.Random, words: list[str], every: int) -> list[str]:
    return [prose(rng, 1)[0] if i % every == every - 1 else word for i, word in enumerate(words)]


@pytest.fixture
def template() -> list[list[str]]:
    rng = random.Random(1)
    return [prose(rng, 90) for _ in range(4)]


def add(index: SpanIndex, texts: dict[str, list[str]], at: int = 0) -> dict[str, str]:
    documents = [
        Document(name, f"owner-{name}", at + i, " ".join(words)) for i, (name, words) in enumerate(texts.items())
    ]
    return dict(index.add(documents).clusters)


def test_pages_of_one_template_keep_their_own_credit(tmp_path, reference, template):
    """Three quarters of a page are the template; each page is paid for what is its own, the first for the template."""
    rng = random.Random(2)
    pages = {f"page-{i:02d}": page(rng, template, 30) for i in range(40)}
    with SpanIndex.create(tmp_path / "i", reference=reference, background=False) as index:
        assert add(index, pages) == {}
        credit = index.credit(index.trace(" ".join(pages["page-07"])), CreditRules(floor_microbits=0))

        assert {share.owner for share in credit.shares} == {"owner-page-00", "owner-page-07"}
        assert add(index, {f"later-{i}": page(rng, template, 30) for i in range(5)}, at=1000) == {}


@pytest.mark.parametrize("every", [8, 10, 13])
def test_an_edited_page_falls_to_that_page_and_not_to_the_first_of_its_template(tmp_path, reference, template, every):
    """Among forty alike pages the one that was edited is found, in the same call, a later one and in other segments."""
    rng = random.Random(3)
    pages = {f"page-{i:02d}": page(rng, template, 60) for i in range(40)}
    copy = edited(rng, pages["page-23"], every)
    with SpanIndex.create(tmp_path / "a", reference=reference, background=False) as index:
        assert add(index, pages | {"copy": copy}) == {"copy": "page-23"}
    with SpanIndex.create(tmp_path / "b", reference=reference, background=False) as index:
        index.add(
            [Document(n, f"owner-{n}", i, " ".join(w)) for i, (n, w) in enumerate(pages.items())],
            segment_tokens_max=5000,
        )
        assert add(index, {"copy": copy}, at=1000) == {"copy": "page-23"}


def test_an_original_proved_late_becomes_the_head_of_its_edited_copy(tmp_path, reference):
    """The order of arrival does not matter, that of registration does."""
    rng = random.Random(4)
    original = prose(rng, 800)
    with SpanIndex.create(tmp_path / "i", reference=reference, background=False) as index:
        assert add(index, {"copy": edited(rng, original, 8)}, at=50) == {}
        add(index, {"original": original}, at=10)

        assert index.snapshot.clusters == {"copy": "original"}


def test_an_own_passage_between_exact_quotes_is_no_edit(tmp_path, reference):
    """Who quotes most of a text word for word and adds a paragraph owns the paragraph, and nothing else."""
    rng = random.Random(5)
    original, own = prose(rng, 600), prose(rng, 120)
    with SpanIndex.create(tmp_path / "i", reference=reference, background=False) as index:
        add(index, {"original": original})
        assert add(index, {"review": [*original[:300], *own, *original[300:]]}, at=10) == {}
        shares = index.credit(index.trace(" ".join(own)), CreditRules()).shares

        assert [share.owner for share in shares] == ["owner-review"]
