"""Submitting to a datanet: rows are checked and kept in parts, each part and the place it reached in one commit.

A batch is found again by what it is of, so the command that was interrupted, given again, goes on where it stopped.
Knows nothing of files: rows come as an iterator that can begin at any place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import InvalidError
from headwater.registry.contribution import check_owners
from headwater.registry.contributor import Contributor
from headwater.registry.datanet import license_of
from headwater.store.database import Sql
from headwater.store.datanet_store import DatanetStore, Kept
from headwater.store.deadline_clock import DeadlineClock
from headwater.store.registry_store import RegistryStore
from headwater.store.submission_checks import Checks, Item, Screen, cut_items, find_screens
from headwater.store.submission_store import Batch, Offered, SubmissionStore

PART_ROWS: Final = 1_000
"""Rows that are checked and kept in one commit."""

PART_BYTES: Final = 8 * 2**20
CLOCK: Final = "review"


@dataclass(frozen=True, slots=True)
class Read:
    """A row as a source gives it."""

    title: str
    content: bytes
    place: int  # where the source goes on after it


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a submission has come."""

    batch: Batch
    counts: tuple[tuple[str, int], ...]  # rows of this run by state, and by ground or fault where refused


class Intake:
    """Takes submissions into the datanets of a home."""

    def __init__(self, database: Sql, registry: RegistryStore) -> None:
        self.datanets, self.submissions = DatanetStore(database), SubmissionStore(database)
        self._database, self._registry = database, registry
        self._clock = DeadlineClock(database, CLOCK)
        self._checks = Checks(self.submissions, registry)

    def open(self, kept: Kept, offered: Offered, contributors: Iterable[Contributor], now_ns: int) -> Batch:
        """The batch of what is offered: new, or as far as it was taken before.

        Raises:
            InvalidError: owners that cannot be paid; ``license_not_accepted``, ``uses_too_narrow``; an owner nobody
                knows; nothing in it.
        """
        check_owners(offered.owners)
        license_of(kept.datanet, offered.license)
        if offered.total <= 0:
            raise InvalidError(f"{offered.source} is empty", code="nothing_to_submit", fix="submit something")
        with self._database.transaction():
            known = {one.id for one in self._registry.contributors()}
            self._registry.add_contributors(one for one in contributors if one.id not in known)
            for owner in offered.owners:
                self._registry.contributor(owner.contributor_id)
            return self.submissions.open(offered, now_ns)

    def take(
        self,
        kept: Kept,
        batch: Batch,
        rows: Iterable[Read],
        now_ns: Callable[[], int],
        on_part: Callable[[Progress], None] | None = None,
    ) -> Progress:
        """Check and keep rows, part by part, and finish the batch.

        Args:
            rows: from `batch.place` on.
            now_ns: the machine's clock, read for each part.
        """
        screens = find_screens(kept.datanet.rules.screens)
        counts: dict[str, int] = {}
        part: list[Read] = []
        size_bytes = 0
        if not batch.finished:
            for row in rows:
                part.append(row)
                size_bytes += len(row.content)
                if len(part) == PART_ROWS or size_bytes >= PART_BYTES:
                    batch = self._keep(kept, batch, part, screens, now_ns(), counts)
                    part, size_bytes = [], 0
                    if on_part is not None:
                        on_part(Progress(batch, tuple(sorted(counts.items()))))
            if part:
                batch = self._keep(kept, batch, part, screens, now_ns(), counts)
            self.submissions.finish(batch)
            batch = self.submissions.batch(batch.id)
        progress = Progress(batch, tuple(sorted(counts.items())))
        if on_part is not None:
            on_part(progress)
        return progress

    def _keep(
        self,
        kept: Kept,
        batch: Batch,
        part: list[Read],
        screens: dict[str, Screen],
        now_ns: int,
        counts: dict[str, int],
    ) -> Batch:
        rules = kept.datanet.rules
        with self._database.transaction():  # of two who submit the same bytes at once, one is first
            items: list[Item] = []
            for row in part:
                items += cut_items(row.title, row.content, rules.chars_max, self.submissions.keep_parent)
            due = self._clock.counted(now_ns) + rules.appeal_ns
            checked = self._checks.check(kept.datanet, batch, items, screens, appeal_until_ns=due)
            for one in checked.rows:
                for name in (one.state, *(one.reasons if one.state != "waiting" else ())):
                    counts[name] = counts.get(name, 0) + 1
            if checked.unchanged:
                counts["unchanged"] = counts.get("unchanged", 0) + checked.unchanged
            return self.submissions.add(
                batch, checked.rows, place=part[-1].place, unchanged=checked.unchanged, now_ns=now_ns
            )
