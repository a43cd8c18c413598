from __future__ import annotations

import json
from pathlib import Path

import pytest

from headwater.core.errors import HeadwaterError, InvalidError, MissingError, RefusedError
from headwater.models.factory import Row, read_rows, rows_of
from headwater.registry.feedback import judge

CTB = "ctb_" + "0" * 32


def _file(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def test_the_three_kinds_of_row_are_read(tmp_path):
    """A line is a text, an answer or a pair, and keeps its line number."""
    path = _file(
        tmp_path / "rows.jsonl",
        {"text": "words", "contribution": CTB},
        "",
        {"prompt": "q", "completion": "a", "contribution": CTB},
        {"prompt": "q", "chosen": "yes", "rejected": "no", "contribution": CTB},
    )

    rows = read_rows(path)

    assert [(row.where, row.kind, row.chosen, row.rejected) for row in rows] == [
        ("rows.jsonl:1", "text", "words", ""),
        ("rows.jsonl:3", "answer", "a", ""),
        ("rows.jsonl:4", "pair", "yes", "no"),
    ]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "row_invalid"),
        ("[1]", "row_invalid"),
        ("[" * 10_000, "row_invalid"),
        ({"text": "  ", "contribution": CTB}, "row_invalid"),
        ({"text": 3, "contribution": CTB}, "row_invalid"),
        ({"text": "a\x00b", "contribution": CTB}, "row_invalid"),
        ({"text": "a\ud800b", "contribution": CTB}, "row_invalid"),
        ({"prompt": "q", "chosen": "a", "rejected": "", "contribution": CTB}, "row_invalid"),
        ({"prompt": "q", "chosen": "A  b", "rejected": "a b", "contribution": CTB}, "pair_without_preference"),
        ({"prompt": "q", "chosen": "a", "contribution": CTB}, "row_invalid"),
        ({"text": "a", "colour": "red", "contribution": CTB}, "row_invalid"),
        ({"text": "a"}, "row_without_contribution"),
        ({"text": "a", "contribution": 7}, "row_without_contribution"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, code):
    """Malformed or poisoned rows are refused with their file and line."""
    path = _file(tmp_path / "rows.jsonl", {"text": "good", "contribution": CTB}, line)

    with pytest.raises(InvalidError, match=r"rows\.jsonl:2") as refused:
        read_rows(path)

    assert refused.value.code == code


def test_every_bad_line_is_named_at_once(tmp_path):
    """A reader sees all faults of a file, not the first."""
    path = _file(tmp_path / "rows.jsonl", {"text": ""}, {"text": "ok", "contribution": CTB}, "x")

    with pytest.raises(InvalidError, match=r"2 rows.*(?s:.*)rows\.jsonl:1.*(?s:.*)rows\.jsonl:3"):
        read_rows(path)


def test_a_file_without_rows_or_of_other_rows_is_refused(tmp_path):
    """No file, no rows, and texts where pairs are asked for are clear errors."""
    with pytest.raises(MissingError):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(InvalidError, match="0 rows"):
        read_rows(_file(tmp_path / "empty.jsonl", ""))
    with pytest.raises(InvalidError, match=r"texts\.jsonl:1"):
        read_rows(_file(tmp_path / "texts.jsonl", {"text": "a", "contribution": CTB}), pairs_only=True)


def test_what_may_not_be_trained_on_is_refused_with_its_ids(shelf):
    """Licences that do not permit training and withdrawn contributions stop it, all of them named."""
    closed = shelf.add("read only", uses=frozenset({"ground"}))
    gone = shelf.add("withdrawn text")
    shelf.withdrawn[gone] = "asked for it"
    fine = shelf.add("open text")
    rows = [Row(f"r:{i}", i, "text", "", shelf.contents[i].decode()) for i in (closed, gone, fine)]

    with pytest.raises(RefusedError) as refused:
        shelf.dataset(rows)

    assert refused.value.code == "training_refused"
    assert closed in refused.value.message
    assert gone in refused.value.message
    assert fine not in refused.value.message


def test_a_row_must_be_its_contributions(shelf):
    """A text that does not stand in the contribution it names would pay the wrong people."""
    mine = shelf.add("the quick brown fox")

    assert shelf.dataset([Row("r:1", mine, "text", "", "Quick  brown")]).training
    with pytest.raises(InvalidError, match="r:2") as refused:
        shelf.dataset([Row("r:2", mine, "text", "", "somebody else's words")])
    assert refused.value.code == "row_not_of_contribution"


def test_feedback_is_trained_on_as_registered(shelf):
    """A feedback contribution gives its own pair; another pair under its name is refused."""
    said = judge("0" * 64, "why?", "because", correction="for speed")
    given = shelf.add(said.to_bytes().decode(), kind="feedback")

    (row,) = rows_of(shelf.contributions[given], shelf.contents[given])

    assert (row.kind, row.prompt, row.chosen, row.rejected) == ("pair", "why?", "for speed", "because")
    assert shelf.dataset([row]).training == (row,)
    with pytest.raises(HeadwaterError, match="not the feedback registered"):
        shelf.dataset([Row("r:1", given, "pair", "why?", "for money", "because")])


def test_a_rating_alone_teaches_nothing(shelf):
    """Thumbs down without a better answer gives no row; thumbs up makes the answer one."""
    down = shelf.add(judge("0" * 64, "why?", "because", rating="down").to_bytes().decode(), kind="feedback")
    up = shelf.add(judge("0" * 64, "why?", "because", rating="up").to_bytes().decode(), kind="feedback")

    assert not list(rows_of(shelf.contributions[down], shelf.contents[down]))
    assert [row.kind for row in rows_of(shelf.contributions[up], shelf.contents[up])] == ["answer"]


def test_of_equal_rows_the_first_registered_is_trained_on(shelf):
    """A copy, whatever its case or spacing and wherever it stands in the file, is left out."""
    copy = shelf.add("the  QUICK fox", owner="Mallory", at=5)
    original = shelf.add("The quick fox", owner="Ada", at=3)
    rows = [Row("r:1", copy, "text", "", "the  QUICK fox"), Row("r:2", original, "text", "", "The quick fox")]

    made = shelf.dataset(rows)

    assert [row.contribution for row in made.training] == [original]
    assert made.repeated == (("r:1", "r:2"),)
    assert [c.id for c in made.contributions] == [original]


def test_pairs_that_contradict_are_refused(shelf):
    """What one pair prefers and another rejects, for the same prompt, cannot both be learned."""
    some = shelf.add("a registered prompt")
    rows = [Row("r:1", some, "pair", "q", "yes", "no"), Row("r:2", some, "pair", "Q", "No", "Yes")]

    with pytest.raises(InvalidError, match=r"r:2: it prefers what r:1 rejects") as refused:
        shelf.dataset(rows)

    assert refused.value.code == "pair_contradicted"


def test_held_out_rows_follow_the_seed_and_are_not_trained_on(shelf):
    """The same seed holds out the same rows, another seed others, and adding a row moves few."""
    rows = []
    for n in range(40):
        text = f"text number {n}"
        rows.append(Row(f"r:{n}", shelf.add(text), "text", "", text))

    first, again, other = (shelf.dataset(rows, holdout_ppm=250_000, seed=seed) for seed in (1, 1, 2))
    fewer = shelf.dataset(rows[1:], holdout_ppm=250_000, seed=1)

    assert len(first.held_out) == 10
    assert first == again
    assert set(first.held_out) != set(other.held_out)
    assert not set(first.held_out) & set(first.training)
    assert len(set(first.held_out) & set(fewer.held_out)) >= 8


def test_a_long_document_is_cut_where_a_reader_would(shelf):
    """Pieces end at a blank line, lose no word and stand in the contribution."""
    text = "\n\n".join(f"Paragraph {n}. " + "word " * 30 for n in range(20))
    document = shelf.add(text)

    rows = list(rows_of(shelf.contributions[document], text.encode(), chars_max=400))

    assert all(len(row.chosen) <= 400 for row in rows)
    assert "".join("".join(row.chosen.split()) for row in rows) == "".join(text.split())
    assert all(row.chosen.startswith("Paragraph") for row in rows)
    assert len(shelf.dataset(rows).training) == len(rows)
