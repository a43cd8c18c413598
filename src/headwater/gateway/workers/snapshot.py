"""What a worker tells of itself once a second: a small file in the private folder, replaced whole.

Counters only grow while a worker lives; the supervisor adds up those of the dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from headwater.gateway.metrics import Sample


class Snapshot(msgspec.Struct, frozen=True):
    """How one worker is doing. Instants are of the machine's monotonic clock, in seconds."""

    at_s: float
    counters: list[Sample]  # name, labels, value
    passed: int = 0  # requests that went to the head
    held: int = 0  # relayed calls at work
    waiting: int = 0  # answers that wait for their receipt
    behind: int = 0  # receipts that wait to be booked
    error: str | None = None  # why the books do not follow
    paused: tuple[str, ...] = ()  # upstreams that are left alone
    connections: Mapping[str, int] = {}  # by upstream, idle ones included
    rss_bytes: int = 0


def path_of(folder: Path, number: int) -> Path:
    """The file of a worker."""
    return folder / f"worker-{number}.json"


def write(path: Path, snapshot: Snapshot) -> None:
    """Replace the file; a folder that is gone is not made again."""
    draft = path.with_suffix(".new")
    with suppress(FileNotFoundError):
        draft.write_bytes(msgspec.json.encode(snapshot))
        draft.replace(path)


def read(path: Path) -> Snapshot | None:
    """What the file says; None when there is none yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except (OSError, msgspec.DecodeError):
        return None


def rss_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096
