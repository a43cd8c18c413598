"""The shipped reference table, and how such a table is built."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from headwater.attribution.reference import build_reference, reference_from_bytes
from headwater.core.errors import InvariantError
from headwater.models import build_reference as builder
from headwater.models import reference_data
from headwater.models.tokenizer import Tokenizer


def test_the_shipped_table_is_small_and_has_its_digest() -> None:
    """The file loads, is the released one, and stays under 80 kB."""
    table = reference_data.shipped_reference()

    assert table.digest == reference_data.DIGEST
    assert len(table.log2_probs) == 49_152
    assert len(files("headwater.models").joinpath("data", reference_data.FILE_NAME).read_bytes()) < 80_000
    assert abs(np.exp2(table.log2_probs).sum() - 1) < 0.01


def test_another_table_in_its_place_is_refused(monkeypatch) -> None:
    """An exchanged file stops the stage instead of changing what bits mean."""
    monkeypatch.setattr(reference_data, "DIGEST", "sha256:" + "0" * 64)
    with pytest.raises(InvariantError) as caught:
        reference_data.shipped_reference.__wrapped__()

    assert caught.value.code == "reference_changed"


def test_tokens_are_counted_as_plain_text(byte_tokenizer: Tokenizer) -> None:
    """Every byte is counted once, and the names of special tokens are only letters."""
    counts = builder.count_tokens(byte_tokenizer, ["abba", "<|im_end|>", ""])

    assert counts.sum() == 14
    assert counts[ord("a")] == 2
    assert counts[[256, 257]].tolist() == [0, 0]
    assert build_reference(counts, name="x").bits([ord("z")])[0] > build_reference(counts, name="x").bits([ord("b")])[0]


def test_library_documentation_is_prose() -> None:
    """The standard library gives thousands of documentation strings without importing anything."""
    texts = [text for text, _ in zip(builder.library_texts(), range(500), strict=False)]

    assert len(texts) == 500
    assert sum(map(len, texts)) > 50_000


def test_the_command_says_how_it_is_used(capsys) -> None:
    """Without a path it prints its usage and fails."""
    assert builder.main([]) == 2
    assert "OUT" in capsys.readouterr().err


@pytest.mark.model
def test_common_words_are_cheap_and_rare_ones_dear(backend) -> None:
    """The table fits the demo model's tokenizer: a common word costs a few bits, an unseen token more than twenty."""
    table = reference_data.shipped_reference()
    cost = {
        word: table.bits(backend.tokenize(word, control=False)) for word in (" the", " Python", " walrus", " zebra")
    }

    assert cost[" the"].sum() < 6
    assert cost[" the"].sum() < cost[" Python"].sum() < cost[" walrus"].sum()
    assert table.bits(range(49_152)).max() > 20


@pytest.mark.model
@pytest.mark.slow
def test_the_build_runs_and_comes_close_to_what_ships(tmp_path) -> None:
    """Built here, from the versions installed, common tokens cost nearly what they cost in the shipped table."""
    pytest.importorskip("opep")
    out = tmp_path / "table.ref"
    assert builder.main([str(out)]) == 0
    built = reference_from_bytes(out.read_bytes())
    shipped = reference_data.shipped_reference()
    common = shipped.log2_probs > -12

    assert np.abs(built.log2_probs - shipped.log2_probs)[common].mean() < 0.25
