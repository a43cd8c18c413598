"""The demo's documents: all of them are read, nothing private is left in them, and questions find their answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headwater.core.errors import MissingError
from headwater.core.ids import ContributionId
from headwater.registry import Contribution, Intake, Known, admit
from headwater.retrieval import DemoCorpus, PassageIndex, load_embedder, load_proposals, standing_priors

NOW = 1_750_000_000_000_000_000
ADDRESS = re.compile(r"[\w.+-]+\\?@[\w-]+(?:\\?\.[\w-]+)*\\?\.[A-Za-z]{2,}|<[^<>\s]+ at [^<>\s]+\.[a-z]{2,}>")
NAMED_IN_A_PATH = re.compile(r"\.git@(?:master|[0-9a-f.]+)")

DEMO = {
    "Why were f-strings added to Python?": 498,
    "What does the walrus operator do?": 572,
    "What must a wheel filename look like?": 427,
    "How does a Python virtual environment find the standard library?": 405,
    "What is a data class in Python?": 557,
    "How do async and await work in Python?": 492,
    "Does Python check type hints at runtime?": 484,
    "Why was pathlib added to the standard library?": 428,
    "What is an enumeration in Python?": 435,
    "How long should a line of Python code be at most?": 8,
}
OTHERS: dict[str, set[int]] = {
    # Weights were chosen on these …
    "How should I name my classes and functions in Python?": {8},
    "Why do coroutines need their own syntax?": {492},
    "What is a namespace package?": {420, 382, 402},
    "How does a with statement work?": {343},
    "What are decorators for?": {318, 3129},
    "How can a generator delegate to another generator?": {380},
    "Why was print made a function?": {3105},
    "What is the new integer division operator?": {238},
    "How do ordered dictionaries behave?": {372, 468},
    "How do I write a good docstring?": {257},
    "What happens to dict.has_key in Python 3?": {3100, 3000, 290},
    "Why does Python use a steering council?": {13, 8001},
    "How are version numbers of Python packages compared?": {440},
    "What does pyproject.toml contain?": {518, 621, 517},
    "How does structural subtyping work with protocols?": {544},
    # … and not on these.
    "What does the match statement do?": {622},
    "How are exceptions chained?": {3134},
    "What is the GIL and can subinterpreters help?": {554},
    "How do I annotate variables?": {526},
    "What is the secrets module for?": {506},
    "How does asyncio's event loop get standardised?": {3156},
    "What is a context variable?": {567, 555, 550},
    "How can I specify that a function takes positional-only arguments?": {570, 457},
    "What does the matrix multiplication operator look like?": {465},
    "How are underscores used in numeric literals?": {515},
    "What is the buffer protocol?": {3118},
    "How does pip bootstrapping work in Python installers?": {453, 439},
    "How should the database API represent connections?": {249, 248},
    "What does WSGI specify?": {333, 3333},
    "What is a metaclass in Python 3?": {3115},
    "How do abstract base classes work?": {3119},
    "What is TypedDict?": {589},
    "Why does Python have a conditional expression?": {308},
    "What is the encoding of Python source files?": {263, 3120},
    "How do I remove a prefix from a string?": {616},
    "How does the zipimport of modules work?": {273},
    "What are keyword-only arguments?": {3102},
    "How are binary extension modules tagged with manylinux?": {513, 571, 599},
    "Why was the new parser for CPython introduced?": {617},
    "How does a final name or class work in type checking?": {591},
    "What does the subprocess module replace?": {324},
    "How does Python handle surrogate escapes for undecodable bytes in file names?": {383},
    "What is the fspath protocol?": {519},
    "How can dictionaries be merged with an operator?": {584},
    "What is the statistics module?": {450},
}
GENERIC = """Say hello|Thanks!|What is your name?|How are you?|Tell me a joke.|Good morning|Hi there|Who are you?
Write a poem about the sea.|What is the capital of France?|Please help me|Goodbye|What's the weather like today?
ok|yes|I like pizza|Can you repeat that?|How do I bake bread?|Who won the world cup in 1998?|Count to ten
What should I cook for dinner?|Translate good night to German|Sing me a song|What time is it?|How old are you?
Thank you very much for your help|Do you like music?|Recommend a good film|What is love?|Nice to meet you
Tell me something interesting|What can you do?"""

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def corpus() -> DemoCorpus:
    """The installed collection, read once."""
    return load_proposals()


@pytest.fixture(scope="module")
def intake(corpus: DemoCorpus) -> Intake:
    """The collection, admitted to an empty registry."""
    return admit(corpus.candidates, Known(frozenset(person.id for person in corpus.contributors)))


@pytest.fixture(scope="module")
def contributions(intake: Intake) -> dict[ContributionId, Contribution]:
    """What was accepted, by id."""
    return {admitted.contribution.id: admitted.contribution for admitted in intake.accepted}


@pytest.fixture(scope="module")
def index(intake: Intake, contributions: dict[ContributionId, Contribution]) -> PassageIndex:
    """All that may be used as a source, indexed as the demo does it."""
    texts = {admitted.contribution.id: admitted.content.decode() for admitted in intake.accepted}
    listed = tuple(contributions.values())
    return PassageIndex.build(
        listed, texts.__getitem__, now_ns=NOW, priors=standing_priors(listed), embedder=load_embedder()
    )


def numbers(index: PassageIndex, contributions: dict[ContributionId, Contribution], question: str) -> list[int]:
    """The proposals that four passages come from, best first."""
    found = index.search(question, 4)
    return [int(contributions[passage.contribution_id].meta("number") or 0) for passage in found]


def test_every_proposal_is_registered(corpus: DemoCorpus, intake: Intake) -> None:
    """All 533 are accepted with authors of their own, whose shares are equal; none is a copy of another."""
    assert len(corpus.candidates) == len(intake.accepted) == 533
    assert corpus.problems == intake.problems == ()
    owned = {owner.contributor_id for a in intake.accepted for owner in a.contribution.owners}
    assert owned == {person.id for person in corpus.contributors}
    assert len(corpus.contributors) == 253
    for admitted in intake.accepted:
        shares = [owner.share_ppb for owner in admitted.contribution.owners]
        assert max(shares) - min(shares) <= 1


def test_no_author_is_enrolled_and_no_name_is_an_address(corpus: DemoCorpus) -> None:
    """Authors are people who have agreed to nothing: their money can only wait."""
    names = {person.name for person in corpus.contributors}

    assert not any(person.enrolled for person in corpus.contributors)
    assert not [name for name in names if re.search(r"[@<>\\]|\bat\b", name)]
    assert {"Guido van Rossum", "Łukasz Langa", "Steven D'Aprano", "Fred L. Drake Jr.", "Aahz"} <= names
    assert "The Python core team and community" in names


def test_no_address_is_stored_or_served(intake: Intake, index: PassageIndex) -> None:
    """Nothing that looks like an e-mail address is in a document or in a passage."""
    for text in [a.content.decode() for a in intake.accepted] + [piece.text for piece in index.tables.pieces]:
        assert ADDRESS.search(NAMED_IN_A_PATH.sub("", text)) is None


def test_what_is_not_dedicated_to_the_public_is_never_a_source(
    intake: Intake, index: PassageIndex, contributions: dict[ContributionId, Contribution]
) -> None:
    """The gate keeps out the 33 that state other terms or none; they are registered and unused."""
    silent = {c.id for c in contributions.values() if "ground" not in c.license.uses}

    assert {refusal.contribution_id for refusal in index.refused} == silent
    assert len(silent) == 33
    assert not silent & {entry.contribution_id for entry in index.tables.entries}
    expressions = {c.license.expression for c in contributions.values() if c.id not in silent}
    assert expressions == {"LicenseRef-public-domain", "LicenseRef-public-domain OR CC0-1.0"}


def test_the_demos_questions_find_their_proposal(
    index: PassageIndex, contributions: dict[ContributionId, Contribution]
) -> None:
    """Each question finds the proposal that answers it among four passages, and most find it first."""
    found = {question: numbers(index, contributions, question) for question in DEMO}

    assert [question for question, number in DEMO.items() if number not in found[question]] == []
    assert sum(found[question][0] == number for question, number in DEMO.items()) >= 8


def test_other_questions_find_theirs_too(
    index: PassageIndex, contributions: dict[ContributionId, Contribution]
) -> None:
    """Of 45 further questions at least 42 are answered among four passages, at least 36 by the first."""
    found = {question: numbers(index, contributions, question) for question in OTHERS}

    among = [question for question, right in OTHERS.items() if right & set(found[question])]
    first = [question for question, right in OTHERS.items() if found[question] and found[question][0] in right]
    assert len(among) >= 42
    assert len(first) >= 36


@pytest.mark.parametrize("text", re.split(r"[|\n]", GENERIC))
def test_generic_texts_find_nothing(index: PassageIndex, text: str) -> None:
    """Greetings and questions that no proposal answers get no source, so nobody is paid for them."""
    assert index.search(text, 4) == ()


def test_passages_fit_and_are_exact(index: PassageIndex, intake: Intake) -> None:
    """Every passage is found at its offsets in the text that is registered."""
    texts = {a.contribution.id: a.content.decode() for a in intake.accepted}

    for piece in index.tables.pieces:
        text = texts[index.tables.entries[piece.document].contribution_id]
        assert text[piece.start : piece.end] == piece.text


def test_a_folder_with_other_files_tells_their_problems(tmp_path: Path) -> None:
    """A file that is no proposal, or not UTF-8, is reported; the others are read."""
    (tmp_path / "pep-0001.md").write_text("PEP: 1 Title: A Author: Ada\n\nText.\n", "utf-8")
    (tmp_path / "pep-0002.md").write_text("Something else\n", "utf-8")
    (tmp_path / "pep-0003.md").write_bytes(b"PEP: 3 Title: \xff")

    corpus = load_proposals(tmp_path)

    assert [candidate.title for candidate in corpus.candidates] == ["PEP 1: A"]
    assert [(p.where, p.code) for p in corpus.problems] == [
        ("pep-0002.md", "proposal_header_missing"),
        ("pep-0003.md", "content_not_utf8"),
    ]


def test_a_missing_collection_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error names the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(MissingError) as caught:
        load_proposals()

    assert "pip install" in (caught.value.fix or "")
