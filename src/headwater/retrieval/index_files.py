"""Keeps a passage index in a cache folder, under its digest.

A cache, not a record: whatever is missing, of another version or damaged is built again. A reader never
sees half of one, since a folder gets its name only when everything in it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.core.ids import ContributionId
from headwater.registry.contribution import Contribution
from headwater.registry.gate import permitted
from headwater.retrieval.embedding import Embedder
from headwater.retrieval.index import (
    Entry,
    PassageIndex,
    Piece,
    Progress,
    Scoring,
    Tables,
    build_tables,
    index_digest,
    silent,
)
from headwater.retrieval.passages import CountTokens, estimate_tokens
from headwater.retrieval.words import WordIndex

_TEXTS = "passages.json"
_MANIFEST = "manifest.json"


def open_index(
    folder: Path,
    contributions: Sequence[Contribution],
    text_of: Callable[[ContributionId], str],
    *,
    now_ns: int,
    priors: Mapping[ContributionId, float] | None = None,
    scoring: Scoring | None = None,
    embedder: Embedder | None = None,
    count_tokens: CountTokens = estimate_tokens,
    progress: Progress | None = None,
    current: PassageIndex | None = None,
) -> PassageIndex:
    """The index of what may `ground` among `contributions`: read from `folder` if it is there, else built and kept.

    The arguments are those of `PassageIndex.build`; `folder` is made when it is missing. `current` is given back when
    nothing has changed since it was made.
    """
    allowed, refused = permitted(contributions, "ground", now_ns)
    chosen = scoring or Scoring()
    digest = index_digest(allowed, priors or {}, chosen, embedder)
    if current is not None and current.digest == digest:
        return current
    place = folder / digest.removeprefix("sha256:")
    tables = load(place)
    if tables is None or tables.digest != digest:
        tables = build_tables(
            allowed, text_of, priors=priors or {}, scoring=chosen, embedder=embedder, progress=progress or silent
        )
        save(place, tables)
    return PassageIndex(tables, scoring=chosen, embedder=embedder, count_tokens=count_tokens, refused=refused)


def forget(folder: Path, digest: str) -> None:
    """Take the index of this digest out of the cache; who has it open keeps it."""
    shutil.rmtree(folder / digest.removeprefix("sha256:"), ignore_errors=True)


def save(place: Path, tables: Tables) -> None:
    """Write `tables` as the folder `place`, whole or not at all; an older folder of that name gives way."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=place.parent))
    try:
        _write(draft, tables)
        if place.exists():
            shutil.rmtree(place)
        os.replace(draft, place)
    except OSError:
        # Another process may have put the same index there first; a cache that cannot be kept is no error.
        shutil.rmtree(draft, ignore_errors=True)


def load(place: Path) -> Tables | None:
    """The tables kept in `place`; nothing when they are not there or not as they were written."""
    try:
        manifest = json.loads((place / _MANIFEST).read_bytes())
        for name, expected in manifest["files"].items():
            if _sha256(place / name) != expected:
                return None
        return _read(place)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(draft: Path, tables: Tables) -> None:
    texts = {
        "digest": tables.digest,
        "entries": [
            [e.contribution_id, e.title, e.registered_at_ns, e.expires_at_ns, e.price_floor_units, e.prior]
            for e in tables.entries
        ],
        "pieces": [[p.document, p.start, p.end, p.ordinal, p.text] for p in tables.pieces],
        "vocabularies": [list(index.vocabulary) for index in (tables.words, tables.document_words)],
        "columns": [list(index.vocabulary.values()) for index in (tables.words, tables.document_words)],
    }
    (draft / _TEXTS).write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    for name, array in _arrays(tables).items():
        np.save(draft / f"{name}.npy", array, allow_pickle=False)
    files = {path.name: _sha256(path) for path in sorted(draft.iterdir())}
    (draft / _MANIFEST).write_text(json.dumps({"files": files}), encoding="utf-8")


def _arrays(tables: Tables) -> dict[str, NDArray[np.generic]]:
    arrays: dict[str, NDArray[np.generic]] = {"vectors": tables.vectors}
    for prefix, index in (("words", tables.words), ("document_words", tables.document_words)):
        arrays |= {f"{prefix}_starts": index.starts, f"{prefix}_texts": index.texts, f"{prefix}_data": index.data}
    return arrays


def _read(place: Path) -> Tables:
    texts = json.loads((place / _TEXTS).read_bytes())
    entries = tuple(Entry(ContributionId(row[0]), *row[1:]) for row in texts["entries"])
    pieces = tuple(Piece(*row) for row in texts["pieces"])
    words, document_words = (
        WordIndex(
            dict(zip(names, columns, strict=True)),
            _array(place, f"{prefix}_starts"),
            _array(place, f"{prefix}_texts"),
            _array(place, f"{prefix}_data"),
            count,
        )
        for prefix, names, columns, count in zip(
            ("words", "document_words"),
            texts["vocabularies"],
            texts["columns"],
            (len(pieces), len(entries)),
            strict=True,
        )
    )
    return Tables(texts["digest"], entries, pieces, words, document_words, _array(place, "vectors"))


def _array(place: Path, name: str) -> Any:
    return np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
