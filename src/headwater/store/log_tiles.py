"""The receipt log published as tiles: kept up incrementally in a store that any static server can serve.

The checkpoint is written last, so whoever reads it finds every tile it needs; a crash in between leaves
tiles that are simply written again. Only entries that were promised are published. Partial tiles of
before stay: readers of older checkpoints still need them, and they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, MissingError
from headwater.receipts import verify_consistency
from headwater.receipts.checkpoint import Checkpoint, NoteSignature, NoteSigner
from headwater.receipts.log import HASH_BYTES
from headwater.receipts.tiles import TILE_HEIGHT, Tile, TileTree, bundle, exists, read_path, tiles_of
from headwater.store.object_store import ObjectStore
from headwater.store.receipt_log import ReceiptLog

CHECKPOINT: Final = "checkpoint"


@dataclass(frozen=True, slots=True)
class Published:
    """What a round of publishing did."""

    checkpoint: Checkpoint
    tiles_written: int
    bundles_left_out: int  # with an entry too large for one


def publish(
    log: ReceiptLog,
    store: ObjectStore,
    signer: NoteSigner,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Published:
    """Bring the tiles in `store` up to the log's promised size, then sign and write the checkpoint.

    Raises:
        ConflictError: what is published there is not a beginning of this log; nothing is written.
    """
    before = last_checkpoint(store)
    head = log.promised()
    if before is not None:
        _refuse_other_log(log, before, head.size, signer)
        if before.head == head:
            return Published(before, 0, 0)
    left_out = written = 0
    wanted = tuple(tiles_of(head.size, before.head.size if before else 0))
    for done, tile in enumerate(wanted):
        raw = tile_bytes(log, tile)
        if raw is None:
            left_out += 1
        else:
            store.write(tile.path, raw)
            written += 1
        if progress is not None:
            progress(done + 1, len(wanted))
    checkpoint = signer.checkpoint(head)
    store.write(CHECKPOINT, checkpoint.to_bytes())
    return Published(checkpoint, written, left_out)


def add_cosignature(store: ObjectStore, checkpoint: Checkpoint, line: NoteSignature) -> Checkpoint:
    """Keep a witness's signature on the published checkpoint, unless a newer one has been published since."""
    current = last_checkpoint(store)
    if current is None or current.head != checkpoint.head:
        return checkpoint
    others = tuple(one for one in current.signatures if (one.name, one.key_id) != (line.name, line.key_id))
    signed = Checkpoint(current.origin, current.head, (*others, line))
    store.write(CHECKPOINT, signed.to_bytes())
    return signed


def last_checkpoint(store: ObjectStore) -> Checkpoint | None:
    """The published checkpoint, or None before the first."""
    try:
        return Checkpoint.from_bytes(store.read(CHECKPOINT))
    except MissingError:
        return None


def tile_bytes(log: ReceiptLog, tile: Tile) -> bytes | None:
    """The bytes of a tile of the log; None when a bundle's entry is too large for it."""
    if tile.level is None:
        try:
            return bundle([log.at(tile.first + i).raw for i in range(tile.width)])
        except InvalidError:
            return None
    height = tile.level * TILE_HEIGHT
    raw = log.nodes(height, tile.first, tile.width)
    assert len(raw) == tile.width * HASH_BYTES
    return raw


class TileServer:
    """Answers requests for the log's files straight from the log, signing a checkpoint when it has grown.

    For a gateway to mount: `serve_tile` is a plain function of a path. What it serves is what `publish` writes.
    """

    def __init__(self, log: ReceiptLog, signer: NoteSigner) -> None:
        self._log, self._signer = log, signer
        self._checkpoint: Checkpoint | None = None

    def serve_tile(self, path: str) -> bytes | None:
        """The bytes at ``checkpoint`` or ``tile/…``; None for anything the log does not have (yet)."""
        if path == CHECKPOINT:
            head = self._log.promised()
            if self._checkpoint is None or self._checkpoint.head != head:
                self._checkpoint = self._signer.checkpoint(head)
            return self._checkpoint.to_bytes()
        tile = read_path(path)
        if tile is None or not exists(tile, self._log.promised().size):
            return None
        try:
            return tile_bytes(self._log, tile)
        except HeadwaterError:
            return None


def tile_tree(store: ObjectStore, checkpoint: Checkpoint) -> TileTree:
    """The tree of a published log, checked against its checkpoint.

    Raises:
        ConflictError: its tiles do not lead to the checkpoint's root.
    """
    tree = TileTree(checkpoint.head.size, store.read)
    if tree.root() != checkpoint.head.root:
        raise ConflictError(
            f"the tiles in {store.location} lead to the root {tree.root().hex()}, the checkpoint of size "
            f"{checkpoint.head.size} says {checkpoint.head.root.hex()}",
            code="tiles_differ",
            fix="fetch the tiles again; if it stays, do not trust this copy",
        )
    return tree


def consistency_from_tiles(store: ObjectStore, old_size: int, checkpoint: Checkpoint) -> Sequence[bytes]:
    """The proof that a log grew from `old_size` to its checkpoint, from tiles alone; empty from size 0."""
    if old_size == 0 or old_size > checkpoint.head.size:
        return ()
    return TileTree(checkpoint.head.size, store.read).prove_consistency(old_size)


def _refuse_other_log(log: ReceiptLog, before: Checkpoint, size: int, signer: NoteSigner) -> None:
    if before.origin != signer.name:
        raise ConflictError(
            f"tiles of {before.origin!r} are kept there, this log is {signer.name!r}",
            code="log_differs",
            fix="give every log its own folder",
        )
    same = before.head.size <= size and verify_consistency(
        before.head, log.head(size), log.prove_consistency(before.head.size, size) if before.head.size else ()
    )
    if not same:
        raise ConflictError(
            f"the log of {size} entries does not contain the published one of {before.head.size}",
            code="log_forked",
            fix="do not publish: restore the log; what was published was promised",
        )
