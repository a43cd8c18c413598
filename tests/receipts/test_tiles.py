import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError, MissingError
from headwater.receipts import LogTree, leaf_hash, verify_consistency, verify_inclusion
from headwater.receipts.tiles import Tile, TileTree, bundle, exists, read_bundle, read_path, tiles_of

LEAVES = [leaf_hash(number.to_bytes(4, "big")) for number in range(70_000)]


def rfc_root(leaves):
    """The definition of RFC 6962, written out: nothing of the code under test."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + rfc_root(leaves[:split]) + rfc_root(leaves[split:])).digest()


def rfc_tile(leaves, tile):
    """A tile by the definition: each hash is the root of 256^level leaves."""
    span = 256**tile.level
    return b"".join(rfc_root(leaves[(tile.first + i) * span : (tile.first + i + 1) * span]) for i in range(tile.width))


def published(size):
    tree = LogTree(LEAVES[:size])
    return {
        tile.path: tree.nodes(8 * tile.level, tile.first, tile.width)
        for tile in tiles_of(size)
        if tile.level is not None
    }


def reading(files):
    def read(path):
        if path not in files:
            raise MissingError(path, code="object_missing")
        return files[path]

    return read


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0, 256), "tile/0/000"),
        (Tile(0, 1_234_067, 256), "tile/0/x001/x234/067"),
        (Tile(0, 273, 112), "tile/0/273.p/112"),
        (Tile(1, 1, 17), "tile/1/001.p/17"),
        (Tile(2, 0, 1), "tile/2/000.p/1"),
        (Tile(None, 1_000, 256), "tile/entries/x001/000"),
        (Tile(None, 5, 3), "tile/entries/005.p/3"),
    ],
)
def test_paths_are_those_of_the_specification(tile, path):
    """The examples of C2SP's tlog-tiles page, both ways."""
    assert tile.path == path
    assert read_path(path) == tile


@pytest.mark.parametrize(
    "path",
    ["tile/0/0", "tile/0/x000/001", "tile/0/000.p/256", "tile/0/000.p/0", "tile/64/000", "tile/0/../000", "tile/x/000",
     "/tile/0/000", "tile/00/000", "tile/0/000.p/01", "tile/entries", "checkpoint"],
)  # fmt: skip
def test_another_way_of_writing_a_path_is_no_path(path):
    """A tile has one path: nothing can be served twice under different names."""
    assert read_path(path) is None


def test_the_tiles_of_a_log_of_70_000_are_those_of_the_specification():
    """C2SP's own example: 256 full tiles and a partial one below, one full and a partial one above, one on top."""
    names = [tile.path for tile in tiles_of(70_000) if tile.level is not None]
    assert len(names) == 274 + 2 + 1
    assert names[-4:] == ["tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 700, 65_537])
def test_tiles_hold_the_roots_that_the_definition_gives(size):
    """Every hash of every tile is the root of its leaves as RFC 6962 defines it."""
    files = published(size)
    for tile in tiles_of(size):
        if tile.level is not None and (tile.level > 0 or tile.number in (0, size // 256)):
            assert files[tile.path] == rfc_tile(LEAVES[:size], tile)


@given(size=st.integers(1, 70_000), old=st.integers(1, 70_000), index=st.integers(0, 69_999))
def test_proofs_from_tiles_alone_verify(size, old, index):
    """Inclusion and consistency proofs made from tiles lead to the roots that the whole tree has."""
    old, index = min(old, size), index % size
    tree = TileTree(size, reading(FILES[70_000] | published_partial(size)))
    assert tree.head() == WHOLE.head(size)
    assert verify_inclusion(LEAVES[index], tree.prove_inclusion(index))
    assert verify_consistency(WHOLE.head(old), tree.head(), tree.prove_consistency(old))


WHOLE = LogTree(LEAVES)
FILES = {70_000: published(70_000)}


def published_partial(size):
    return {
        tile.path: WHOLE.nodes(8 * tile.level, tile.first, tile.width)
        for tile in tiles_of(size)
        if tile.level is not None and tile.width < 256
    }


@given(old=st.integers(0, 3_000), new=st.integers(0, 3_000))
def test_growing_writes_only_what_changed_and_misses_nothing(old, new):
    """Publishing in two steps leaves every tile that publishing at once would make."""
    old, new = min(old, new), max(old, new)
    stepwise = {tile.path for tile in tiles_of(old)} | {tile.path for tile in tiles_of(new, old)}
    assert {tile.path for tile in tiles_of(new)} <= stepwise
    full_before = {tile.path for tile in tiles_of(old) if tile.width == 256}
    assert not full_before & {tile.path for tile in tiles_of(new, old)}
    assert all(exists(tile, new) for tile in tiles_of(new))


def test_a_changed_byte_in_any_tile_shows(tmp_path):
    """A root from changed tiles is another root, and a tile of another length is refused."""
    files = published(700)
    head = LogTree(LEAVES[:700]).head()
    for path, raw in files.items():
        changed = {**files, path: bytes([raw[0] ^ 1]) + raw[1:]}
        tree = TileTree(700, reading(changed))
        proofs = [tree.prove_inclusion(index) for index in (0, 300, 699)]
        assert tree.root() != head.root or any(
            not verify_inclusion(LEAVES[proof.index], proof) or tree.leaf(proof.index) != LEAVES[proof.index]
            for proof in proofs
        )
        with pytest.raises(InvalidError):
            TileTree(700, reading({**files, path: raw[:-1]}))._tile(*((read_path(path).level), read_path(path).number))


def test_bundles_hold_entries_up_to_65535_bytes():
    """Length-prefixed entries come back as they were; one byte too many, or a cut bundle, is refused."""
    entries = [b"", b"x", os.urandom(65_535)]
    raw = bundle(entries)
    assert raw[:5] == b"\x00\x00\x00\x01x"
    assert read_bundle(raw, 3) == tuple(entries)
    for bad, width in ((raw[:-1], 3), (raw + b"\x00", 3), (raw, 2), (b"", 1)):
        with pytest.raises(InvalidError):
            read_bundle(bad, width)
    with pytest.raises(InvalidError) as refusal:
        bundle([bytes(65_536)])
    assert refusal.value.code == "entry_too_large"
