"""Erasure: a contribution's bytes go from everywhere they are kept; digests stay, and past receipts still verify.

    record     that it is to be erased: from here on it is put to no use
    contents   the bytes in the registry are emptied
    evidence   calls whose prompt held it lose prompt and answer (their receipts hold digests)
    passages   every cached retrieval index that holds it is deleted; the next snapshot is built without it
    spans      it is taken out of the span index, which is written again without its words
    scrub      the database drops old copies: pages of SQLite's write-ahead log, dead rows of a PostgreSQL table

Each step may be repeated; a call that still waits for its attribution is left and counted, and erasing again once
it has its receipt finishes. What a database copy, a server's own log or a backup elsewhere holds is not reached. Knows
nothing of who may ask, of datanets (their store erases its own copies by `extra`), or of what a model has learned.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headwater.attribution.evidence import read_layout
from headwater.attribution.spans import SpanIndex
from headwater.attribution.spans.manifest import MANIFEST_FILE
from headwater.core.errors import HeadwaterError
from headwater.core.ids import ContributionId
from headwater.store.call_store import CallStore
from headwater.store.consent_store import ConsentStore
from headwater.store.database import Sql
from headwater.store.registry_store import RegistryStore

SETTLED = ("attributed",)
"""States in which a call's text is no longer needed."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did."""

    contributions: tuple[ContributionId, ...]  # all that had these bytes
    calls_count: int  # whose text went
    waiting_count: int  # whose attribution still needs it: erase again later
    indexes_count: int  # cached retrieval indexes deleted
    spans_count: int  # documents taken out of the span index
    new: bool  # it was not on record before


@dataclass(frozen=True, slots=True)
class Places:
    """Where bytes are kept in a home."""

    db: Sql
    registry: RegistryStore
    calls: CallStore
    consents: ConsentStore
    passages: Path  # folder of cached retrieval indexes
    spans: Path  # folder of the span index


def erase(
    places: Places,
    contribution_id: ContributionId,
    *,
    by_whom: str,
    reason: str,
    now_ns: int,
    extra: Sequence[Callable[[ContributionId], int]] = (),
) -> Erased:
    """Erase a contribution's bytes from every place.

    Args:
        extra: called with every id, in other stores that keep copies; each gives how many it erased.

    Raises:
        MissingError: no such contribution.
        ConflictError: another process writes the span index; what came before it is done.
    """
    new = places.consents.erased(places.registry.get(contribution_id).id, by_whom, reason, now_ns)
    ids = places.registry.empty(contribution_id, now_ns)
    for one in ids:
        places.consents.erased(one, by_whom, reason, now_ns)
        for elsewhere in extra:
            elsewhere(one)
    calls, waiting = _forget_calls(places, frozenset(ids), now_ns)
    indexes = _delete_indexes(places.passages, ids)
    spans = _take_out(places.spans, ids)
    places.db.scrub()
    return Erased(ids, calls, waiting, indexes, spans, new)


def _forget_calls(places: Places, ids: frozenset[ContributionId], now_ns: int) -> tuple[int, int]:
    """Erase the text of calls that were offered any of `ids`: (erased, still waiting)."""
    forgotten = waiting = 0
    rows = places.db.query("SELECT call_id, state FROM calls WHERE evidence IS NOT NULL ORDER BY call_id")
    for call, state in rows:
        try:
            evidence = places.calls.get(call).evidence
            held = evidence is not None and any(part.contribution in ids for part in read_layout(evidence).parts)
        except HeadwaterError:
            continue  # no key opens it any more, or it is not ours to read
        if held and state in SETTLED:
            places.calls.forget(call, at_ns=now_ns)
            forgotten += 1
        elif held:
            waiting += 1
    return forgotten, waiting


def _delete_indexes(folder: Path, ids: Sequence[ContributionId]) -> int:
    """Delete cached indexes whose texts name any of `ids`; they are built again when they are wanted."""
    found = 0
    wanted = [one.encode() for one in ids]
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        texts = place / "passages.json"
        if place.name.startswith(".draft-") or (texts.is_file() and any(w in texts.read_bytes() for w in wanted)):
            shutil.rmtree(place, ignore_errors=True)
            found += 1
    return found


def _take_out(folder: Path, ids: Sequence[ContributionId]) -> int:
    if not (folder / MANIFEST_FILE).is_file():
        return 0
    with SpanIndex.open(folder) as index:
        held = [one for one in ids if index.snapshot.find(one) is not None]
        for one in held:
            index.remove(one)
        index.compact()  # also when it was removed before: its words may still be in a segment or journal
    return len(held)
