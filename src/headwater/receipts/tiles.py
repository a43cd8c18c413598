"""The log as tiles: files of 256 hashes that never change once full, from which every proof can be made.

    tile/<level>/<n>            256 hashes of the tree's height 8 x level, 32 bytes each
    tile/<level>/<n>.p/<width>  the first `width` of them, while there are no more
    tile/entries/<n>            256 entries, each behind its length as u16; .p/<width> likewise
    checkpoint                  size and root, signed (see `receipts.checkpoint`)

Numbers are written in groups of three digits, all but the last one after an x: 1234067 is x001/x234/067.
A full tile is written once and kept; a partial one may go when the full one is there. Pure: tiles are
read through a callable. Knows nothing of files, networks or receipts.
Source: C2SP, tlog-tiles, whose layout and limits these are; entries over 65,535 bytes cannot be in a bundle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from headwater.core.errors import InvalidError
from headwater.receipts.log import HASH_BYTES, LogTree, node_hash

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 2**TILE_HEIGHT
ENTRY_BYTES_MAX: Final = 2**16 - 1
LEVEL_MAX: Final = 5
"""Level of the uppermost tile of a log with 2^48 entries; the layout allows 63."""

_PATH: Final = re.compile(
    r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?"
)

ReadTile = Callable[[str], bytes]
"""The bytes at a path; raises MissingError when there is nothing."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Which tile: `width` hashes from place `number` * 256 of height 8 * `level`, or as many entries."""

    level: int | None  # None for a bundle of entries
    number: int
    width: int  # 1..256

    @property
    def path(self) -> str:
        """Where it is kept and served, relative to the log's address."""
        groups, number = [f"{self.number % 1000:03d}"], self.number // 1000
        while number:
            groups.append(f"x{number % 1000:03d}")
            number //= 1000
        place = f"tile/{'entries' if self.level is None else self.level}/{'/'.join(reversed(groups))}"
        return place if self.width == TILE_WIDTH else f"{place}.p/{self.width}"

    @property
    def first(self) -> int:
        """Place of its first hash among those of its height."""
        return self.number * TILE_WIDTH


def read_path(path: str) -> Tile | None:
    """The tile that a path names; None when it is not the one way of writing a tile's path."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    level, number, width = found.groups()
    tile = Tile(
        None if level == "entries" else int(level),
        int(number.replace("x", "").replace("/", "")),
        TILE_WIDTH if width is None else int(width),
    )
    return tile if tile.path == path else None


def tiles_of(size: int, old_size: int = 0) -> Iterator[Tile]:
    """The tiles of a log of `size` entries that one of `old_size` did not have in full, hashes before entries."""
    count, before, level = size, old_size, 0
    while count:
        yield from _row(level, count, before)
        count, before, level = count // TILE_WIDTH, before // TILE_WIDTH, level + 1
    yield from _row(None, size, old_size)


def _row(level: int | None, count: int, before: int) -> Iterator[Tile]:
    if count == before:
        return
    for number in range(before // TILE_WIDTH, (count + TILE_WIDTH - 1) // TILE_WIDTH):
        yield Tile(level, number, min(TILE_WIDTH, count - number * TILE_WIDTH))


def exists(tile: Tile, size: int) -> bool:
    """Whether a log of `size` entries has this tile: its hashes are all of full subtrees."""
    count = size >> (TILE_HEIGHT * (tile.level or 0))
    return tile.first + tile.width <= count


def bundle(entries: Sequence[bytes]) -> bytes:
    """The bytes of a bundle of entries.

    Raises:
        InvalidError: an entry is longer than 65,535 bytes; it can be had as a receipt, not in a bundle.
    """
    for entry in entries:
        if len(entry) > ENTRY_BYTES_MAX:
            raise InvalidError(
                f"an entry of {len(entry)} bytes, a bundle holds at most {ENTRY_BYTES_MAX}",
                code="entry_too_large",
                fix="take it from the log's segments",
            )
    return b"".join([len(entry).to_bytes(2, "big") + entry for entry in entries])


def read_bundle(raw: bytes, width: int) -> tuple[bytes, ...]:
    """The `width` entries of a bundle.

    Raises:
        InvalidError: it holds another number of entries, or ends in the middle of one.
    """
    entries: list[bytes] = []
    at = 0
    while at + 2 <= len(raw):
        end = at + 2 + int.from_bytes(raw[at : at + 2], "big")
        entries.append(raw[at + 2 : end])
        at = end
    if at != len(raw) or len(entries) != width:
        raise InvalidError(
            f"a bundle of {len(raw)} bytes does not hold {width} entries",
            code="bundle_invalid",
            fix="fetch it again; if it stays, ask the operator",
        )
    return tuple(entries)


class TileTree(LogTree):
    """A log of which only tiles are at hand: every root and proof of its first `size` entries.

    What it gives is as good as the tiles: hold the root against a signed checkpoint. Tiles are kept while
    it lives, at most `tiles_max` of 8 KiB.
    """

    __slots__ = ("_size", "_tile")

    def __init__(self, size: int, read: ReadTile, *, tiles_max: int = 4_096) -> None:
        super().__init__()
        self._size = size

        def tile(level: int, number: int) -> bytes:
            found = Tile(level, number, min(TILE_WIDTH, (size >> (TILE_HEIGHT * level)) - number * TILE_WIDTH))
            raw = read(found.path)
            if len(raw) != found.width * HASH_BYTES:
                raise InvalidError(
                    f"{found.path} has {len(raw)} bytes, not {found.width * HASH_BYTES}",
                    code="tile_invalid",
                    fix="fetch it again; if it stays, ask the operator",
                )
            return raw

        self._tile = lru_cache(tiles_max)(tile)

    def __len__(self) -> int:
        return self._size

    def _node(self, level: int, position: int) -> bytes:
        tile_level, rise = divmod(level, TILE_HEIGHT)
        count = 1 << rise
        first = position * count
        raw = self._tile(tile_level, first // TILE_WIDTH)
        start = first % TILE_WIDTH * HASH_BYTES
        nodes = [raw[at : at + HASH_BYTES] for at in range(start, start + count * HASH_BYTES, HASH_BYTES)]
        while len(nodes) > 1:
            nodes = [node_hash(nodes[at], nodes[at + 1]) for at in range(0, len(nodes), 2)]
        return nodes[0]
