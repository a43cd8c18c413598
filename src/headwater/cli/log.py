"""`headwater log …`: publish the receipt log as tiles, seal it, prove from tiles alone, and witness somebody's log.

`prove`, `verify` and `witness` need an address and the log's public key: no home, no trust in who serves the tiles.
"""

from __future__ import annotations

import json as jsonlib
import time
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from headwater.cli.home import Home
from headwater.cli.options import HomeOption, JsonOption, outcome, settings
from headwater.cli.output import out, print_json, progress
from headwater.core.errors import InvalidError, MissingError
from headwater.receipts import InclusionProof, TreeHead, leaf_hash, verify_consistency, verify_inclusion
from headwater.receipts.checkpoint import Checkpoint, NoteKey, NoteSigner
from headwater.receipts.tiles import TILE_WIDTH, Tile, TileTree, read_bundle
from headwater.store.key_file import load_or_create_secret
from headwater.store.log_tiles import CHECKPOINT, add_cosignature, consistency_from_tiles, publish, tile_tree
from headwater.store.object_store import ObjectStore, open_source, open_store
from headwater.store.witness_store import Witness

app = App(name="log", help="Publish, seal, prove and witness the receipt log.")

To = Annotated[str | None, Parameter(help="Folder or pyarrow address; `tiles` in the home by default.")]
From = Annotated[str, Parameter(name="--from", help="Folder, pyarrow address or URL where the tiles are.")]
KeyOption = Annotated[str, Parameter(name="--key", help="Public key of the log, as `headwater log checkpoint` prints.")]


@app.command
def checkpoint(*, home: HomeOption = None, json: JsonOption = False) -> int:
    """Sign the log's present size and root; print the note and the public key that it is checked with."""
    with outcome(json) as result, Home(settings(home), create=False) as opened:
        signer = log_signer(opened)
        note = signer.checkpoint(opened.log.promised())
        if json:
            print_json(
                {
                    "origin": note.origin,
                    "size": note.head.size,
                    "root": note.head.root.hex(),
                    "key": signer.key.text,
                    "note": note.to_bytes().decode(),
                }
            )
        else:
            out.print(note.to_bytes().decode(), end="", soft_wrap=True, markup=False)
            out.print(f"key {signer.key.text}", soft_wrap=True, markup=False)
    return result.status


@app.command
def tiles(*, to: To = None, home: HomeOption = None, json: JsonOption = False) -> int:
    """Bring the published tiles up to date and sign the checkpoint; any static server can serve them."""
    with outcome(json) as result, Home(settings(home), create=False) as opened, progress(quiet=json) as bars:
        task = bars.add_task("tiles", total=None)
        store = open_store(to or opened.path / "tiles")
        done = publish(
            opened.log,
            store,
            log_signer(opened),
            progress=lambda at, total: bars.update(task, completed=at, total=total),
        )
        head = done.checkpoint.head
        if json:
            print_json(
                {
                    "location": store.location,
                    "size": head.size,
                    "root": head.root.hex(),
                    "tiles_written": done.tiles_written,
                    "bundles_left_out": done.bundles_left_out,
                    "key": log_signer(opened).key.text,
                }
            )
        else:
            out.print(f"{done.tiles_written} tiles written to {store.location}: {head.size} entries", soft_wrap=True)
            if done.bundles_left_out:
                out.print(f"{done.bundles_left_out} bundles hold a receipt over 65,535 bytes and are left out")
    return result.status


@app.command
def seal(
    *,
    to: Annotated[str | None, Parameter(help="Folder or pyarrow address; `receipts.segments` by default.")] = None,
    drop: Annotated[bool, Parameter(negative=(), help="Give the disk space of sealed receipts back.")] = False,
    home: HomeOption = None,
    json: JsonOption = False,
) -> int:
    """Copy all full segments, and what is left over, into Parquet; safe to repeat and to interrupt.

    With `--drop` the append log keeps its place but no longer the bytes: receipts are then read from the segments,
    and their ids are still refused a second time.
    """
    from headwater.store.receipt_sealing import Sealer  # pyarrow: only who seals pays for it

    with outcome(json) as result, Home(settings(home), create=False) as opened, progress(quiet=json) as bars:
        task = bars.add_task("receipts", total=None)
        # The close reads the segments beside the log; those elsewhere are for others.
        rows = opened.path / "payout-rows" if to is None else None
        sealer = Sealer(opened.path / "receipts.log", to, rows=rows)
        done = sealer.seal(progress=lambda at, total: bars.update(task, completed=at, total=total))
        freed = sealer.drop() if drop else 0
        if json:
            print_json(
                {
                    "location": sealer.store.location,
                    "size": done.size,
                    "segments": len(done.segments),
                    "root": done.root.hex(),
                    "freed_bytes": freed,
                }
            )
        else:
            out.print(f"{done.size} receipts in {len(done.segments)} segments at {sealer.store.location}")
            if drop:
                out.print(f"{freed} bytes of the append log given back")
    return result.status


@app.command
def prove(index: int, /, *, location: From, key: KeyOption, to: Path | None = None, json: JsonOption = False) -> int:
    """Make the proof that an entry is in a published log, from its tiles alone.

    Parameters
    ----------
    index
        The entry's place in the log, from 0.
    to
        File for the proof; standard output by default.
    """
    with outcome(json) as result:
        store = open_source(location)
        note = _checkpoint(store, NoteKey.from_text(key))
        proof = tile_tree(store, note).prove_inclusion(index)
        entry = _entry(store, index, note.head.size)
        value = {
            "schema": "headwater.log-proof/1",
            "checkpoint": note.to_bytes().decode(),
            "index": index,
            "leaf_hash": leaf_hash(entry).hex(),
            "path": [node.hex() for node in proof.path],
        }
        if to is None:
            print_json(value)
        else:
            to.write_text(jsonlib.dumps(value, indent=2) + "\n", "utf-8")
            print_json({"file": str(to)}) if json else out.print(f"wrote {to}")
    return result.status


@app.command
def verify(
    *,
    location: From,
    key: KeyOption,
    since: Annotated[Path | None, Parameter(help="An older checkpoint, which must be its beginning.")] = None,
    entries: Annotated[bool, Parameter(negative=(), help="Hash every entry again, too.")] = False,
    proof: Annotated[Path | None, Parameter(help="A proof made by `headwater log prove`, to be checked.")] = None,
    json: JsonOption = False,
) -> int:
    """Check a published log: signature, tiles, and on request growth, entries, a proof. Status 1 if any fails."""
    with outcome(json) as result:
        store, log_key = open_source(location), NoteKey.from_text(key)
        note = _checkpoint(store, log_key)
        tree = tile_tree(store, note)
        done = [f"signed by {log_key.name}, tiles lead to root {note.head.root.hex()} of {note.head.size} entries"]
        if since is not None:
            done.append(_check_growth(Checkpoint.from_bytes(_bytes(since)), note, log_key, tree))
        if entries:
            done.append(_check_entries(store, note.head, quiet=json))
        if proof is not None:
            done.append(_check_proof(_bytes(proof), log_key))
        if json:
            print_json({"verified": True, "size": note.head.size, "root": note.head.root.hex(), "checks": done})
        else:
            for line in done:
                out.print(f"[green]holds[/] {line}", soft_wrap=True)
    return result.status


@app.command
def witness(
    *,
    location: From,
    key: KeyOption,
    state: Annotated[Path, Parameter(help="Folder in which this witness remembers what it has signed.")],
    name: Annotated[str, Parameter(help="This witness's name in its signatures.")],
    json: JsonOption = False,
) -> int:
    """Cosign a log's checkpoint if it grew from the last one signed here; report a fork and keep the evidence.

    The signature is added to the published checkpoint where that can be written, and printed.
    """
    with outcome(json) as result:
        store, log_key = open_source(location), NoteKey.from_text(key)
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        signer = NoteSigner(name, load_or_create_secret(state / "witness.key"))
        note = _checkpoint(store, log_key)
        line = Witness(state, signer).cosign(
            note, log_key, lambda old_size: consistency_from_tiles(store, old_size, note), at_s=int(time.time())
        )
        try:
            note = add_cosignature(store, note, line)
        except InvalidError as error:
            if error.code != "store_read_only":
                raise
        cosigned = Checkpoint(note.origin, note.head, (line,)).to_bytes().decode().rpartition("\n\n")[2].strip()
        if json:
            print_json(
                {
                    "size": note.head.size,
                    "root": note.head.root.hex(),
                    "signature": cosigned,
                    "key": signer.witness_key.text,
                }
            )
        else:
            out.print(f"cosigned size {note.head.size}, root {note.head.root.hex()}", soft_wrap=True)
            out.print(cosigned, soft_wrap=True, markup=False)
            out.print(f"key {signer.witness_key.text}", soft_wrap=True, markup=False)
    return result.status


def log_signer(home: Home) -> NoteSigner:
    """The key that signs checkpoints of a home's log: `log.key`, named after the operator's address."""
    return NoteSigner(f"headwater/{home.signer.address}", load_or_create_secret(home.path / "log.key"))


def _checkpoint(store: ObjectStore, key: NoteKey) -> Checkpoint:
    note = Checkpoint.from_bytes(store.read(CHECKPOINT))
    note.verify(key)
    return note


def _entry(store: ObjectStore, index: int, size: int) -> bytes:
    number, place = divmod(index, TILE_WIDTH)
    tile = Tile(None, number, min(TILE_WIDTH, size - number * TILE_WIDTH))
    return read_bundle(store.read(tile.path), tile.width)[place]


def _check_growth(old: Checkpoint, new: Checkpoint, key: NoteKey, tree: TileTree) -> str:
    old.verify(key)
    path = tree.prove_consistency(old.head.size) if 0 < old.head.size <= new.head.size else ()
    if not verify_consistency(old.head, new.head, path):
        raise InvalidError(
            f"the log of {new.head.size} entries does not contain that of {old.head.size}, root {old.head.root.hex()}",
            code="log_forked",
            fix="keep both checkpoints: the log signed two stories",
        )
    return f"contains the log of {old.head.size} entries that was signed before"


def _check_entries(store: ObjectStore, head: TreeHead, *, quiet: bool) -> str:
    tree = TileTree(head.size, store.read)
    with progress(quiet=quiet) as bars:
        for number in bars.track(range((head.size + TILE_WIDTH - 1) // TILE_WIDTH), description="entries"):
            tile = Tile(None, number, min(TILE_WIDTH, head.size - number * TILE_WIDTH))
            for place, entry in enumerate(read_bundle(store.read(tile.path), tile.width), tile.first):
                if leaf_hash(entry) != tree.leaf(place):
                    raise InvalidError(
                        f"entry {place} is not what the tree holds", code="entry_differs", fix="fetch it again"
                    )
    return f"{head.size} entries hash to the tree's leaves"


def _check_proof(raw: bytes, key: NoteKey) -> str:
    try:
        value = jsonlib.loads(raw)
        note = Checkpoint.from_bytes(value["checkpoint"].encode())
        path = tuple(bytes.fromhex(node) for node in value["path"])
        proof = InclusionProof(int(value["index"]), note.head.size, path, note.head.root)
        leaf = bytes.fromhex(value["leaf_hash"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise InvalidError("not a log proof", code="proof_invalid", fix="use the file as it was made") from None
    note.verify(key)
    if not verify_inclusion(leaf, proof):
        raise InvalidError(
            f"the path from entry {proof.index} does not lead to the checkpoint's root",
            code="proof_invalid",
            fix="make it again with headwater log prove",
        )
    return f"entry {proof.index} ({leaf.hex()}) is in the log of {proof.size} entries"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingError(f"{path}: {error.strerror}", code="file_missing", fix="give the path of a file") from None
