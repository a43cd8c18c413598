"""The sealed part of a home's window, added up by DuckDB instead of receipt by receipt.

Small windows are not worth it, and without DuckDB or without segments there is nothing to do: then `totals` gives
nothing and every receipt of the window is read from the log. Both ways give the same epoch, to the byte. The coded
rows are a copy; removing their folder costs only the time to code them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.core.ids import AccountId
from headwater.settlement.epoch import Window
from headwater.store.receipt_log import ReceiptLog

if TYPE_CHECKING:
    from headwater.store.receipt_segments import SegmentManifest

SEALED_RECEIPTS_MIN = 20_000
"""From so many sealed receipts in a window on, coding and an engine are cheaper than reading them one by one."""

POLICIES = "SELECT DISTINCT policy_digest FROM receipts r WHERE r.seq >= {log_from} AND r.seq < {log_size}"


@dataclass(frozen=True, slots=True)
class SealedTotals:
    """What the sealed receipts of a window pay."""

    reach: int  # receipts below this place in the log are included
    paid: tuple[tuple[AccountId, int], ...]  # (holder, nano units), by the number of the account
    policy_digests: tuple[str, ...]
    corrections: tuple[int, ...]  # places of included receipts that supersede another


class SealedClose:
    """Segments in the folder `segments`, coded rows in `rows`, of the log `log`."""

    def __init__(self, segments: Path, rows: Path, log: ReceiptLog, *, receipts_min: int = SEALED_RECEIPTS_MIN) -> None:
        self._segments, self._rows, self._log, self._receipts_min = segments, rows, log, receipts_min

    def totals(self, window: Window, currency: str) -> SealedTotals | None:
        """The sums of the window's sealed receipts, or nothing when reading them one by one is the better way.

        Raises:
            InvariantError: the segments do not sum to their prices.
        """
        if not self._segments.is_dir() or any(find_spec(name) is None for name in ("duckdb", "pyarrow")):
            return None
        from headwater.store.object_store import LocalStore
        from headwater.store.receipt_segments import read_manifest

        manifest = read_manifest(LocalStore(self._segments))
        reach = min(manifest.size, window.log_size)
        if reach - window.log_from < self._receipts_min or self._log.root(manifest.size) != manifest.root:
            return None
        return self._added_up(manifest, window, reach, currency)

    def _added_up(self, manifest: SegmentManifest, window: Window, reach: int, currency: str) -> SealedTotals:
        from headwater.store.close_duckdb import DuckEngine
        from headwater.store.close_rows import PayoutRows
        from headwater.store.close_sql import CORRECTIONS, CloseWindow, close_window

        coded = PayoutRows(self._rows)
        paths = [self._segments / segment.file for segment in manifest.segments]
        with coded.alone():  # what the sealer has not coded, because it was killed or is older than that
            for path in paths:
                coded.code(path, earlier=self._log.place)
        part = CloseWindow(window.log_from, reach, currency)
        with DuckEngine(spill=self._rows) as engine:
            totals = close_window(engine, part, {"receipts": coded.files()}, self._rows / "scratch")
            corrections = engine.run(CORRECTIONS, {"receipts": coded.files()})["seq"].to_pylist()
            policies = engine.run(part.fill(POLICIES), {"receipts": paths})["policy_digest"].to_pylist()
        names = coded.accounts()
        pairs = zip(totals.accounts.tolist(), totals.units("paid_units"), strict=True)
        return SealedTotals(
            reach,
            tuple((AccountId(names[number]), units) for number, units in pairs),
            tuple(sorted(policies)),
            tuple(seq for seq in corrections if window.log_from <= seq < reach),
        )
