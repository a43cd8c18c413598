"""The manifest of an influence index: every file with its digest, and everything that decides a score.

It is written last, so a folder without one is a build that has not ended and is never served. Numbers with
fractions are kept as text, because canonical JSON has none. Knows nothing of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from headwater.attribution.influence.files import file_digest, whole_file
from headwater.core.canonical import canonical, digest_of, parse_canonical
from headwater.core.errors import InvalidError, MissingError, Problem

MANIFEST_FILE = "MANIFEST.json"
FORMAT = "headwater-influence-1"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the index."""

    name: str  # relative to the index folder
    size_bytes: int
    digest: str  # ``sha256:…``


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of consecutive examples."""

    first: int
    count: int
    file: StoredFile


@dataclass(frozen=True, slots=True)
class CheckpointPart:
    """What one checkpoint adds."""

    model_digest: str
    state: StoredFile | None  # entries to load before a query; none: the model as it is
    basis: StoredFile
    ridge: StoredFile
    contributors: StoredFile | None
    modules: tuple[str, ...]
    modules_unused: tuple[str, ...]
    widths: tuple[int, ...]  # numbers of a row in each module
    bits: int  # of each number
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One finished index."""

    format: str
    examples: int
    examples_digest: str
    contributors: tuple[str, ...]
    membership: StoredFile | None  # which contributor each example is of
    damping: str
    ridge: str
    bits: int  # at most
    seed: int
    settings_digest: str
    checkpoints: tuple[CheckpointPart, ...]

    @property
    def digest(self) -> str:
        """``sha256:…``; what a receipt names. Covers every byte of the index."""
        return digest_of(msgspec.to_builtins(self))

    def files(self) -> tuple[StoredFile, ...]:
        """Every file but the manifest."""
        found = [self.membership]
        for part in self.checkpoints:
            found += [part.state, part.basis, part.ridge, part.contributors, *(shard.file for shard in part.shards)]
        return tuple(file for file in found if file is not None)

    @property
    def row_bytes(self) -> int:
        """Bytes of shards for each example, over all checkpoints."""
        return sum(s.file.size_bytes for part in self.checkpoints for s in part.shards) // max(self.examples, 1)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make an index servable: after this call `read_manifest` finds it."""
    with whole_file(folder / MANIFEST_FILE) as out:
        out.write(canonical({"digest": manifest.digest, "index": msgspec.to_builtins(manifest)}))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished index.

    Raises:
        MissingError: no index there, or its build has not ended.
        InvalidError: not a manifest, or changed after it was written.
    """
    path = folder / MANIFEST_FILE
    try:
        raw = path.read_bytes()
    except OSError:
        raise MissingError(
            f"there is no finished influence index in {folder.name!r}",
            code="index_missing",
            fix="build it; a build that was stopped goes on where it was",
        ) from None
    value: Any = parse_canonical(raw)
    try:
        manifest = msgspec.convert(value["index"], Manifest)
        right = value["digest"] == manifest.digest and manifest.format == FORMAT
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise InvalidError(f"no influence manifest: {error}", code="manifest_invalid", fix="build the index") from None
    if not right:
        raise InvalidError(
            "the influence manifest has been changed or is of another version",
            code="manifest_invalid",
            fix="build the index again",
        )
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> tuple[Problem, ...]:
    """Read every byte again; what differs from the manifest."""
    found = []
    for file in manifest.files():
        path = folder / file.name
        if not path.is_file():
            found.append(Problem(file.name, "file_missing", f"{file.name} is gone", "build the index again"))
        elif file_digest(path) != file.digest:
            found.append(Problem(file.name, "file_changed", f"{file.name} has other bytes", "build the index again"))
    return tuple(found)
