"""Near-copies are found among many texts, whatever else is in the table."""

from __future__ import annotations

import random

from headwater.attribution.spans.sketch_table import SketchTable, nearly_repeats, sketches_of

RNG = random.Random(4)
WORDS = [f"w{number}" for number in range(4_000)]
TEXTS = [" ".join(RNG.choices(WORDS, k=60)) for _ in range(3_000)]


def edited(text: str, every: int) -> str:
    """A text with every so many words changed."""
    words = text.split()
    words[::every] = RNG.choices(WORDS, k=len(words[::every]))
    return " ".join(words)


def test_edited_copies_are_found_and_strangers_are_not() -> None:
    """Every tenth word changed is found, a text with words of its own added too; other texts never."""
    table = SketchTable()
    assert not any(table.add(list(sketches_of([text.encode() for text in TEXTS]).values())))
    copies = [edited(text, 10) for text in TEXTS[:300]] + [f"{text} and five words of mine" for text in TEXTS[300:600]]

    found = table.add(list(sketches_of([text.encode() for text in copies]).values()))

    assert sum(place in rows for place, rows in enumerate(found)) >= 597
    assert all(nearly_repeats(copies[place].encode(), TEXTS[place].encode()) for place in range(600))
    assert not any(nearly_repeats(TEXTS[place].encode(), TEXTS[place + 1].encode()) for place in range(600))


def test_adding_in_parts_finds_what_adding_at_once_finds() -> None:
    """The table grows and is built anew on the way; nothing is lost by it."""
    rows = list(
        sketches_of([text.encode() for text in TEXTS[:1_500] + [edited(one, 12) for one in TEXTS[:1_500]]]).values()
    )
    whole, parts = SketchTable(), SketchTable()

    at_once = whole.add(rows)
    in_parts = [found for begin in range(0, len(rows), 97) for found in parts.add(rows[begin : begin + 97])]

    assert at_once == in_parts
    assert sum(bool(found) for found in at_once) >= 1_498


def test_short_texts_have_no_sketch() -> None:
    """Chance overlap would be too likely."""
    assert sketches_of([b"five words are too few", TEXTS[0].encode()]).keys() == {1}
