"""Reading proposals: headers, authors, dates, licences and repaired text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis.strategies import text

from headwater.core.errors import InvalidError
from headwater.core.instants import parse_instant
from headwater.registry.proposals import (
    UNDATED_NS,
    Byline,
    bylines,
    created_at,
    header_fields,
    one_name_each,
    parse_proposal,
    stated_license,
    tidy,
)

HEADER = """PEP: 9001 Title: Types: A \\_\\_tale\\_\\_ Version: $Revision$
Last-Modified: $Date$ Author: Ada Lovelace \\<<ada@example.org>\\>, Bo
Bee <bo@example.org> Status: Final Type: Standards Track Created:
01-Aug-2015 Python-Version: 3.6 Post-History: 07-Aug-2015
"""
BODY = """
Abstract
========

The tale is told\\[1\\]\\_ in one sentence that the converter
wrapped. See :pep:`20` and write to ada\\@example.org.

    code = "kept \\_ as it is"

Copyright
=========

This document has been placed in the public domain.

.. Local Variables: mode: indented-text End:
"""


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("Ada Lovelace", ["Ada Lovelace"]),
        ("Ada Lovelace, Bo Bee", ["Ada Lovelace", "Bo Bee"]),
        ("Ada Lovelace and Bo Bee", ["Ada Lovelace", "Bo Bee"]),
        ("Ada Lovelace, Bo Bee, and Cy Cod", ["Ada Lovelace", "Bo Bee", "Cy Cod"]),
        ("Ada Lovelace & Bo Bee", ["Ada Lovelace", "Bo Bee"]),
        ("The core team and community", ["The core team and community"]),
        ("PEP Editors", ["PEP Editors"]),
        ("Fred Drake, Jr. <fred@example.org>", ["Fred Drake Jr."]),
        ("E. W. Durbin III <e@example.org>, Bo Bee", ["E. W. Durbin III", "Bo Bee"]),
        ("ada\\@example.org (Ada Lovelace), bo\\@example.org (Bo Bee)", ["Ada Lovelace", "Bo Bee"]),
        ("<ada@example.org> (Ada Lovelace)", ["Ada Lovelace"]),
        ("ada at example.org (Ada Lovelace)", ["Ada Lovelace"]),
        ("Ada Lovelace \\<<ada@example.org>\\>, Łukasz Ł \\<<l@example.org>\\>", ["Ada Lovelace", "Łukasz Ł"]),
        ("Ada Lovelace <a@example.org> Bo Bee <b@example.org>", ["Ada Lovelace", "Bo Bee"]),
        ("Ada Lovelace <ada@example.org> (Looms, Inc.)", ["Ada Lovelace"]),
        ("Steven D\\'Arc <s@example.org>,", ["Steven D'Arc"]),
        ("(James) Eric P, Bo Bee", ["(James) Eric P", "Bo Bee"]),
        ("Martin v. Löwe <m@example.org>", ["Martin v. Löwe"]),
        ("Talin <t@example.org>", ["Talin"]),
        ("Ada Lovelace, Ada Lovelace <ada@example.org>", ["Ada Lovelace"]),
        ("Laurens \\<\\_@example.cc\\>", ["Laurens"]),
        ("", []),
        ("<ada@example.org>", []),
    ],
)
def test_author_fields_give_names_and_nothing_else(field: str, names: list[str]) -> None:
    """Several spellings of several people, suffixes, groups, affiliations and missing commas are told apart."""
    assert [byline.name for byline in bylines(field)] == names


@given(text(max_size=80))
def test_no_author_field_is_too_odd_to_read(field: str) -> None:
    """Whatever the field, names come out distinct and hold a letter."""
    names = [byline.name for byline in bylines(field)]

    assert len(set(names)) == len(names)
    assert all(any(c.isalpha() for c in name) for name in names)


def test_names_with_one_address_are_one_person() -> None:
    """The name signed most often stands; likeness without a shared address merges nobody."""
    headers = [
        [Byline("Martin v. Löwe", "m@example.org"), Byline("Jim Jay", None)],
        [Byline("Martin von Löwe", "m@example.org")],
        [Byline("Martin von Löwe", None), Byline("Jim J. Jay", "j@example.org")],
    ]

    names = one_name_each(headers)

    assert names["Martin v. Löwe"] == names["Martin von Löwe"] == "Martin von Löwe"
    assert (names["Jim Jay"], names["Jim J. Jay"]) == ("Jim Jay", "Jim J. Jay")


@pytest.mark.parametrize(
    ("field", "day"),
    [
        ("01-Aug-2015", "2015-08-01"),
        ("1-August-2015", "2015-08-01"),
        ("2015-08-01", "2015-08-01"),
        ("1 Aug 2015", "2015-08-01"),
        ("22-Aug-2001 (edited down on 9-Jan-2002)", "2001-08-22"),
    ],
)
def test_dates_are_read_in_every_form_in_use(field: str, day: str) -> None:
    """A created date is midnight UTC of its day."""
    assert created_at(field) == parse_instant(f"{day}T00:00:00Z")


@pytest.mark.parametrize("field", ["", "soon", "31-Feb-2015", "01-Xyz-2015", "2015-13-01"])
def test_unreadable_dates_count_as_late(field: str) -> None:
    """A proposal without a date never predates a dated one of the collection's time."""
    assert created_at(field) == UNDATED_NS


@pytest.mark.parametrize(
    ("statement", "expression", "granted"),
    [
        ("This document has been placed in the public domain.", "LicenseRef-public-domain", True),
        ("This document is placed in the Public Domain.", "LicenseRef-public-domain", True),
        (
            "This document is placed in the public domain or under the\nCC0-1.0-Universal license.",
            "LicenseRef-public-domain OR CC0-1.0",
            True,
        ),
        ("Licensed under CC0.", "CC0-1.0", True),
        ("Copyright (c) by a company. Open Publication License.", "LicenseRef-other-terms", False),
        ("The rest of this document has been placed in the public domain.", "LicenseRef-other-terms", False),
        ("", "LicenseRef-unstated", False),
        ("\n.. Local Variables: mode: text End:", "LicenseRef-unstated", False),
    ],
)
def test_only_a_dedication_of_the_whole_text_grants_a_use(statement: str, expression: str, granted: bool) -> None:
    """Other terms and silence grant nothing."""
    for heading in ("Copyright\n=========\n\n", "=========== Copyright ===========\n\n", "Copyright\n"):
        found, uses = stated_license(f"Words about the public domain.\n\n{heading}{statement}\n")
        assert (found, bool(uses)) == (expression, granted)


def test_without_a_copyright_section_nothing_is_granted() -> None:
    """A text that talks of the public domain has not put itself there."""
    assert stated_license("This talks of the public domain.\n") == ("LicenseRef-unstated", frozenset())


def test_a_proposal_is_read_whole() -> None:
    """Number, title, authors, status, date, licence and text come out of one flattened header and its body."""
    proposal = parse_proposal(HEADER + BODY)

    assert (proposal.number, proposal.title, proposal.status) == (9001, "Types: A __tale__", "Final")
    assert [byline.name for byline in proposal.authors] == ["Ada Lovelace", "Bo Bee"]
    assert proposal.registered_at_ns == parse_instant("2015-08-01T00:00:00Z")
    assert (proposal.license_expression, len(proposal.uses)) == ("LicenseRef-public-domain", 3)
    assert "@" not in proposal.text
    assert "The tale is told in one sentence that the converter wrapped. See PEP 20 and write to …." in proposal.text
    assert '    code = "kept \\_ as it is"' in proposal.text
    assert "Local Variables" not in proposal.text


def test_only_the_first_of_a_repeated_field_counts() -> None:
    """A later word with a colon cannot displace a field."""
    assert header_fields("PEP: 1 Title: A Status: Draft Status: Final\n\nAuthor: Eve\n") == {
        "PEP": "1",
        "Title": "A",
        "Status": "Draft",
    }


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("", "proposal_header_missing"),
        ("Some other text", "proposal_header_missing"),
        ("PEP: one Title: A Author: Ada Lovelace", "proposal_header_missing"),
        ("PEP: 1 Author: Ada Lovelace", "proposal_header_missing"),
        ("PEP: 1 Title: A Status: Final", "proposal_author_missing"),
    ],
)
def test_what_is_no_proposal_is_refused(raw: str, code: str) -> None:
    """A file without number, title or author is not registered in anybody's name."""
    with pytest.raises(InvalidError) as caught:
        parse_proposal(raw)

    assert caught.value.code == code


def test_repaired_text_keeps_lists_headings_and_code() -> None:
    """Wrapped lines join; items, underlines, fences and indented code stay lines of their own."""
    raw = "Head\n====\n\none\ntwo::\n\n    a\n    b\n\n-   first\n    more\n-   second\n\n::\n\n```\nx\ny\n```\n"

    assert tidy(raw) == "Head\n====\n\none two:\n\n    a\n    b\n\n-   first more\n-   second\n\n```\nx\ny\n```\n"
