from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.attribution.learned import LearnedRules, share_learned
from headwater.core.errors import ConflictError, MissingError
from headwater.models.factory import Row

from .conftest import RECIPE, Shelf

torch = pytest.importorskip("torch")

from headwater.models.factory.credit import AdapterCredit, build_index  # noqa: E402

WORDS = ["river", "cloud", "stone", "amber", "tower", "market", "ferry", "salt"]
LEARN = replace(RECIPE, rank=4, epochs=6, learning_rate=2e-2, layers=2, tokens_max=80)


def _rows(shelf: Shelf) -> list[Row]:
    """Each writer answers questions on a word with sayings of their own; a stranger adds noise, a copier copies."""
    rows = []
    for n, word in enumerate(WORDS):
        contribution = shelf.add(f"sayings of {word}", owner=word, at=n + 1)
        for k in range(3):
            rows.append(Row(f"{word}:{k}", contribution, "answer", f"{word} {k}?", f"{word * 2} {word}."))
    rng = np.random.default_rng(0)
    for k in range(3):
        noise = "".join(rng.choice(list("qxzjv ,;"), 14))
        rows.append(
            Row(f"noise:{k}", shelf.add(f"noise {k}", owner="Stranger", at=50 + k), "answer", f"{k}?", noise + "!")
        )
    copy = shelf.add("sayings of river, copied", owner="Copier", at=90)
    rows += [replace(row, where=f"copy:{row.where}", contribution=copy) for row in rows[:3]]
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An adapter with its index, made once."""
    from headwater.models.adapters import AdapterStore
    from headwater.models.factory.factory import Base, make
    from headwater.models.tokenizer import Tokenizer, byte_alphabet
    from headwater.models.weights import tiny_weights
    from headwater.receipts.signing import KeySigner

    tokenizer = Tokenizer((*byte_alphabet(), "<|im_start|>", "<|im_end|>"), (), (256, 257))
    base = Base("tiny", tiny_weights(3), tokenizer)
    shelf, store = Shelf(), AdapterStore(tmp_path_factory.mktemp("adapters"))
    data = shelf.dataset(_rows(shelf))
    made = make("said", data, base, LEARN, store, KeySigner(b"\x07" * 32))
    digest = build_index(made.stored, data, base, None)
    return shelf, base, data, made.stored, digest


def _score(trained, prompt: str, answer: str):
    shelf, base, _, stored, _ = trained
    ids = base.tokenizer.tokenize(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", control=True)
    found = AdapterCredit(stored, base).score(ids, base.tokenizer.tokenize(answer, control=False))
    owners = {i: one.title for i, one in shelf.contributions.items()}
    return found, {owners[one.contribution]: one for one in found.influences}


def test_an_answer_is_credited_to_whose_words_it_learned(trained):
    """The writer of the words has the largest score, and the same question gives the same scores."""
    found, by_title = _score(trained, "river 1?", "riverriver river.")
    again, _ = _score(trained, "river 1?", "riverriver river.")

    assert max(by_title, key=lambda title: by_title[title].score) == "sayings of river"
    assert by_title["sayings of river"].low > 0
    assert found == again
    assert found.index_digest == trained[4]


def test_random_and_copied_feedback_earn_about_nothing(trained):
    """Noise is paid a few parts in a hundred at most over many answers; a copy was never trained on and has no part."""
    paid = total = 0
    for word in WORDS:
        found, by_title = _score(trained, f"{word} 2?", f"{word * 2} {word}.")
        assert "sayings of river, copied" not in by_title
        titles = {one.contribution: title for title, one in by_title.items()}
        for part in share_learned((10**6,) * 3, "adapter", found.influences, LearnedRules()):
            total += part.microbits
            if part.low_microbits > 0 and titles.get(part.contribution, "").startswith("noise"):
                paid += part.microbits

    assert paid / total < 0.05


def test_an_index_is_built_of_the_recorded_rows_only(trained):
    """Other rows than the lineage's are refused, and building again gives the same index."""
    shelf, base, data, stored, digest = trained
    fewer = shelf.dataset(_rows(shelf)[1:])

    with pytest.raises(ConflictError, match="not the rows"):
        build_index(stored, fewer, base, None)
    assert build_index(stored, data, base, None) == digest
    assert not list(stored.folder.glob(".states-*"))


def test_an_adapter_without_an_index_says_so(make, eight, base):
    """Nothing is made up where nothing was built."""
    made = make("bare", eight)

    with pytest.raises(MissingError, match="no influence index"):
        AdapterCredit(made.stored, base)
