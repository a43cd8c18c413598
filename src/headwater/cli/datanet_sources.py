"""Reads what people submit: text files and folders whole, JSONL a row at a time, Parquet a row at a time.

A source can be read from any place on, so that a submission that was interrupted goes on. The bytes of a row are the
contributor's own: a file as it is; the named text of a JSONL or Parquet row, or a JSONL row's whole line when it has no
such text (pairs and answers to train on). Nothing is rewritten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.cli.contribution_files import files_in
from headwater.core.canonical import refuse_deep
from headwater.core.errors import InvalidError, MissingError, UpstreamError
from headwater.core.limits import CONTRIBUTION_SIZE_BYTES_MAX
from headwater.store.datanet_intake import Read

ROW_SUFFIXES = (".jsonl", ".parquet")
_LINE_BYTES_MAX = 6 * CONTRIBUTION_SIZE_BYTES_MAX  # the escapes of JSON at most sextuple a text
_PARQUET_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Source:
    """Something to submit as one batch."""

    name: str  # relative to what was named on the command line
    path: Path
    files: tuple[Path, ...]  # of a folder, in order; of one file, that file
    digest: str  # sha256:… of the bytes; of a folder, of its files' names and bytes
    total: int  # bytes of a JSONL, rows of a Parquet, files of a folder


def sources_in(path: Path) -> tuple[Source, ...]:
    """What `path` holds: each JSONL or Parquet file by itself, and all text files together.

    Raises:
        InvalidError: no such path, or nothing in it to read.
    """
    files = _all_files(path)
    rows = [file for file in files if file.suffix.lower() in ROW_SUFFIXES]
    texts = tuple(file for file in files if file not in rows)
    found = [Source(_name(file, path), file, (file,), _digest_of(file), _total(file)) for file in rows]
    if texts:
        listing = hashlib.sha256()
        for file in texts:
            listing.update(f"{_name(file, path)}\x00{_digest_of(file)}\n".encode())
        found.insert(0, Source(path.name, path, texts, f"sha256:{listing.hexdigest()}", len(texts)))
    return tuple(found)


def read(source: Source, place: int, text_field: str) -> Iterator[Read]:
    """The rows of a source from a place on.

    Raises:
        InvalidError: ``row_invalid``, with file and line; ``field_missing`` for a Parquet without that column.
        UpstreamError: a file that cannot be read.
    """
    try:
        if source.path.suffix.lower() == ".jsonl" and source.files == (source.path,):
            yield from _jsonl(source, place, text_field)
        elif source.path.suffix.lower() == ".parquet" and source.files == (source.path,):
            yield from _parquet(source, place, text_field)
        else:
            for number, file in enumerate(source.files[place:], start=place + 1):
                yield Read(file.stem, file.read_bytes(), number)
    except OSError as error:
        raise UpstreamError(
            f"{source.name}: {error.strerror or error}", code="file_unreadable", fix="check the file, then submit again"
        ) from None


def _jsonl(source: Source, place: int, text_field: str) -> Iterator[Read]:
    with source.path.open("rb") as lines:
        lines.seek(place)
        at = place
        while line := lines.readline(_LINE_BYTES_MAX):
            begin, at = at, at + len(line)
            if not line.endswith(b"\n") and at < source.total:
                raise _bad_row(source, begin, f"a line of more than {_LINE_BYTES_MAX} bytes")
            if line.strip():
                title, content = _row(source, line, begin, text_field)
                yield Read(title or f"{source.path.stem} at {begin}", content, at)


def _row(source: Source, line: bytes, begin: int, text_field: str) -> tuple[str, bytes]:
    try:
        refuse_deep(line)
        row: Any = json.loads(line.decode("utf-8-sig"))
        if not isinstance(row, dict):
            raise ValueError("not an object")
        named = row.get("title")
        title = named if isinstance(named, str) else ""
        text = row.get(text_field)
        if text is None:
            return title, line.strip()
        if not isinstance(text, str):
            raise ValueError(f"{text_field} is not a text")
        return title, text.encode("utf-8")
    except (ValueError, InvalidError) as error:  # half characters and wrong UTF-8 are ValueErrors too
        raise _bad_row(source, begin, str(error)) from None


def _parquet(source: Source, place: int, text_field: str) -> Iterator[Read]:
    parquet = _parquet_module()
    with parquet.ParquetFile(source.path) as file:
        names = file.schema_arrow.names
        if text_field not in names:
            raise InvalidError(
                f"{source.name} has no column {text_field!r}",
                code="field_missing",
                fix=f"give --text-field, one of {', '.join(names[:20])}",
            )
        columns = [text_field, *(["title"] if "title" in names and text_field != "title" else [])]
        number = 0
        for part in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
            if number + part.num_rows <= place:
                number += part.num_rows
                continue
            for row in part.to_pylist():
                number += 1
                if number <= place:
                    continue
                value = row[text_field]
                if not isinstance(value, str | bytes):
                    raise _bad_row(source, number, f"{text_field} is {type(value).__name__}")
                content = value.encode() if isinstance(value, str) else value
                title = row.get("title")
                yield Read(
                    title if isinstance(title, str) and title else f"{source.path.stem} {number}", content, number
                )


def _parquet_module() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise MissingError(
            "reading Parquet needs pyarrow", code="pyarrow_missing", fix="pip install 'headwater[close]'"
        ) from None
    return parquet


def _all_files(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise InvalidError(f"there is no {path}", code="path_missing", fix="give a file or a folder")
    tables = tuple(
        sorted(
            file
            for file in path.rglob("*.parquet")
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
    )
    try:
        return (*files_in(path), *tables)
    except InvalidError:
        if tables:
            return tables
        raise


def _total(file: Path) -> int:
    if file.suffix.lower() == ".parquet":
        try:
            with _parquet_module().ParquetFile(file) as opened:
                return int(opened.metadata.num_rows)
        except ValueError as error:  # the library's refusal of what is no Parquet
            raise InvalidError(
                f"{file.name} is not Parquet: {str(error)[:100]}", code="parquet_invalid", fix="check the file"
            ) from None
    return file.stat().st_size


def _digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return "sha256:" + hashlib.file_digest(opened, "sha256").hexdigest()


def _name(file: Path, root: Path) -> str:
    return file.name if file == root else f"{root.name}/{file.relative_to(root).as_posix()}"


def _bad_row(source: Source, place: int, why: str) -> InvalidError:
    return InvalidError(
        f"{source.name} at {place}: {why[:200]}",
        code="row_invalid",
        fix="correct the row and submit again; what came before it is kept",
    )
