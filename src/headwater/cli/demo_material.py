"""What the demo is made of: real proposals with their real authors, one prompt, one base model, five questions.

The authors have not enrolled. Whatever they earn here is simulated, waits in escrow under their names and
is paid to nobody; every screen says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from headwater.cli.home import Home
from headwater.core.canonical import canonical
from headwater.core.money import PPB
from headwater.ledger import deposit
from headwater.models import file_digest, smollm_path
from headwater.registry import Candidate, Contributor, Intake, Kind, Ownership, Use, enrolled, unenrolled
from headwater.retrieval import load_proposals
from headwater.store.key_file import load_or_create_signer
from headwater.store.key_store import KeyRecord

PROMPT = "Use the text to answer. Copy the sentence that answers the question."
PROMPT_AUTHOR = "Demo prompt author"
PROMPT_AUTHOR_KEY = "demo-prompt-author.key"

BASE_MODEL = "SmolLM2-135M-Instruct"
BASE_MODEL_OWNER = "Hugging Face TB"

ANSWER_TOKENS = 48
CREDIT_UNITS = 100_000_000
"""Prepaid credit the demo keeps on its key: ten cents."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question that one proposal answers."""

    text: str
    proposal: int
    streamed: bool = False


QUESTIONS = (
    Question("What is an enumeration?", 435, streamed=True),
    Question("What is the maximum line length in Python code?", 8),
    Question("How should comments be written in Python code?", 8),
    Question("Why are underscores allowed in numeric literals?", 515),
    Question("What does the yield from expression do?", 380),
)

SMALL_TALK = "Say hello."
"""Asked too, because nothing registered answers it: its money should go to the base model."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What the registry holds for the demo."""

    documents: int
    authors: int
    closed: int  # documents whose licence does not permit grounding
    new: int
    problems: tuple[str, ...]


def register(home: Home, progress: Callable[[int, int], None]) -> Registered:
    """Register the proposals, the prompt and the base model; doing it again changes nothing."""
    corpus = load_proposals(progress=progress)
    intake = home.registry.admit(corpus.candidates, corpus.contributors)
    others = [_prompt(home), _base_model(home)]
    documents = home.registry.contributions(kind="document")
    authors = {owner.contributor_id for document in documents for owner in document.owners}
    return Registered(
        documents=len(documents),
        authors=len(authors),
        closed=sum("ground" not in document.license.uses for document in documents),
        new=len(intake.accepted) + sum(len(other.accepted) for other in others),
        problems=tuple(map(str, (*corpus.problems, *intake.problems, *(p for o in others for p in o.problems)))),
    )


def prompt_author(home: Home) -> Contributor:
    """The enrolled author of the demo's prompt, paid to a key of this home."""
    folder = home.path / "payees"
    folder.mkdir(exist_ok=True, mode=0o700)
    return enrolled("demo", PROMPT_AUTHOR, load_or_create_signer(folder / PROMPT_AUTHOR_KEY).address)


def paying_key(home: Home) -> tuple[str, KeyRecord]:
    """An API key of this run with prepaid credit; its secret is in no file."""
    secret, record = home.keys.create("demo", os.urandom(32), time.time_ns())
    cause = f"deposit:{record.key_id}"
    draft = deposit(record.account, CREDIT_UNITS, asset=home.policy.currency, cause=cause)
    home.ledger.post([draft], key=cause, at_ns=time.time_ns())
    return secret, record


def _prompt(home: Home) -> Intake:
    return _admit(home, "prompt", "Answer in the proposals' own words", PROMPT.encode(), prompt_author(home), "CC0-1.0")


def _base_model(home: Home) -> Intake:
    manifest = canonical({"name": BASE_MODEL, "weights": file_digest(smollm_path())})
    return _admit(home, "base_model", BASE_MODEL, manifest, unenrolled("models", BASE_MODEL_OWNER), "Apache-2.0")


def _admit(home: Home, kind: Kind, title: str, content: bytes, owner: Contributor, license_expression: str) -> Intake:
    uses: frozenset[Use] = frozenset({"ground", "train", "reproduce"})
    candidate = Candidate(
        where=f"demo {kind}",
        kind=kind,
        title=title,
        content=content,
        owners=(Ownership(owner.id, PPB),),
        license_expression=license_expression,
        uses=uses,
        registered_at_ns=time.time_ns(),
        source="demo",
    )
    return home.registry.admit([candidate], [owner])
