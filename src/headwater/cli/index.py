"""`headwater index …`: build a span index from files, ask it whose words a text repeats, look after it.

Files are read as text, Markdown, reStructuredText or HTML (tags are left out), also gzipped; of JSON lines
each row is a document with `id`, `owner`, `registered_at` and `text`. The id of a file is its path below what
was named. Exit status: 0 done, 1 refused or something is wrong with the index, 2 wrong usage.
"""

from __future__ import annotations

import gzip
import html
import json as json_codec
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from headwater.attribution.spans import (
    AddReport,
    Document,
    SpanIndex,
    Trace,
    build_reference,
    read_reference,
)
from headwater.cli.options import JsonOption, outcome
from headwater.cli.output import err, out, print_json
from headwater.core.errors import InvalidError, MissingError
from headwater.core.instants import parse_instant

app = App(name="index", help="Whose words a text repeats: build, ask and look after a span index.")

Owner = Annotated[str | None, Parameter(help="Who owns the files; left out for rows that name an owner themselves.")]
PublicDomain = Annotated[bool, Parameter(negative=(), help="The files belong to nobody: first, but never paid.")]
At = Annotated[str | None, Parameter(help="When they were registered, such as 2027-01-01T00:00:00Z [default: now].")]
Salvage = Annotated[bool, Parameter(negative=(), help="Go on without damaged segments and journal records.")]

SUFFIXES = frozenset({".txt", ".md", ".rst", ".html", ".htm", ".jsonl"})
FILE_SIZE_BYTES_MAX = 2**30

_MARKUP = re.compile(rb"(?s)<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.IGNORECASE)
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")


@app.command
def build(
    index: Path,
    files: Annotated[tuple[Path, ...], Parameter(negative=())],
    /,
    *,
    owner: Owner = None,
    public_domain: PublicDomain = False,
    at: At = None,
    gram_tokens: int = 8,
    reference: Path | None = None,
    json: JsonOption = False,
) -> int:
    """Create an index and add files to it.

    Parameters
    ----------
    index
        Folder to make.
    files
        Files, and folders with the texts below them (.txt .md .rst .html .htm .jsonl).
    gram_tokens
        Fewest words in a row that count as a match.
    reference
        What words are worth, from `index reference`; the one that ships by default.
    """
    with outcome(json) as result:
        frozen = None if reference is None else read_reference(_bytes_of(reference))
        found = files_in(files)
        with SpanIndex.create(index, gram_tokens=gram_tokens, reference=frozen) as made:
            _add(made, found, owner, public_domain, at, json)
    return result.status


@app.command
def add(
    index: Path,
    files: Annotated[tuple[Path, ...], Parameter(negative=())],
    /,
    *,
    owner: Owner = None,
    public_domain: PublicDomain = False,
    at: At = None,
    json: JsonOption = False,
) -> int:
    """Add files to an index; those that it has already are skipped.

    Parameters
    ----------
    index
        Its folder.
    files
        Files, and folders with the texts below them (.txt .md .rst .html .htm .jsonl).
    """
    with outcome(json) as result:
        found = files_in(files)
        with SpanIndex.open(index) as opened:
            _add(opened, found, owner, public_domain, at, json)
    return result.status


@app.command
def trace(index: Path, text: Path | None = None, /, *, salvage: Salvage = False, json: JsonOption = False) -> int:
    """Show whose words a text repeats.

    Parameters
    ----------
    index
        Its folder.
    text
        A file; standard input by default.
    """
    with outcome(json) as result, SpanIndex.open(index, salvage=salvage) as opened:
        raw = sys.stdin.buffer.read() if text is None else _bytes_of(text)
        found = opened.trace(raw)
        if json:
            value = asdict(found) | {"spans": [span._asdict() for span in found.spans]}
            value["credit"] = asdict(opened.credit(found))
            print_json(value)
        else:
            _show(found, raw)
    return result.status


@app.command
def stats(index: Path, /, *, salvage: Salvage = False, json: JsonOption = False) -> int:
    """What an index holds."""
    with outcome(json) as result, SpanIndex.open(index, salvage=salvage) as opened:
        value = asdict(opened.stats()) | {"problems": [asdict(problem) for problem in opened.problems]}
        if json:
            print_json(value)
        else:
            table = Table(show_header=False, box=None)
            for name, item in value.items():
                table.add_row(name.replace("_", " "), f"{item:,}" if isinstance(item, int) else str(item or "none"))
            out.print(table)
    return result.status


@app.command
def verify(index: Path, /, *, salvage: Salvage = False, json: JsonOption = False) -> int:
    """Read every byte of an index and recompute every digest."""
    with outcome(json) as result, SpanIndex.open(index, salvage=salvage) as opened:
        problems = opened.verify()
        if json:
            print_json({"problems": [asdict(problem) for problem in problems]})
        else:
            for problem in problems:
                err.print(Text(str(problem)))
            if not problems:
                out.print(f"all {opened.stats().documents:,} documents are as they were registered")
        result.status = 1 if problems else 0
    return result.status


@app.command
def compact(index: Path, /, *, salvage: Salvage = False, json: JsonOption = False) -> int:
    """Merge all segments into one, without what was removed or lost."""
    with outcome(json) as result, SpanIndex.open(index, salvage=salvage) as opened:
        before = opened.stats()
        opened.compact()
        after = opened.stats()
        if json:
            print_json({"before": asdict(before), "after": asdict(after)})
        else:
            out.print(
                f"{before.segments} segments, {before.size_bytes:,} bytes → {after.segments}, {after.size_bytes:,}"
            )
    return result.status


@app.command
def reference(
    target: Path, files: Annotated[tuple[Path, ...], Parameter(negative=())], /, *, json: JsonOption = False
) -> int:
    """Build a frozen reference (what words are worth) from a corpus.

    Parameters
    ----------
    target
        File to write.
    files
        Files, and folders with everything below them; the same files give the same bytes.
    """
    with outcome(json) as result:
        found = files_in(files)
        with _bar(sum(path.stat().st_size for _, path in found), quiet=json) as advance:
            raw = build_reference(_plain_texts(found, advance))
        target.write_bytes(raw)
        made = read_reference(raw)
        if json:
            print_json({"digest": made.digest, "size_bytes": len(raw)})
        else:
            out.print(f"{len(raw):,} bytes, {made.digest}")
    return result.status


def _add(
    index: SpanIndex,
    found: Sequence[tuple[str, Path]],
    owner: str | None,
    public_domain: bool,
    at: str | None,
    quiet: bool,
) -> None:
    if public_domain and owner is not None:
        raise InvalidError("the files have an owner and no owner", code="owner_conflict", fix="give one of the two")
    instant = time.time_ns() if at is None else parse_instant(at)
    with _bar(sum(path.stat().st_size for _, path in found), quiet=quiet) as advance:
        report = index.add(_documents(found, owner, public_domain, instant, advance))
    if quiet:
        print_json(asdict(report))
    else:
        _show_report(report)


def _show_report(report: AddReport) -> None:
    known = report.owned_tokens + report.copied_tokens
    part = f" ({report.owned_tokens / known:.0%} new)" if known else ""
    out.print(f"{report.documents:,} documents, {report.tokens:,} words{part}; {report.skipped:,} were here already")
    for document, head in report.clusters[:10]:
        out.print(Text(f"  {document} nearly repeats {head}: its credit goes there"))
    if len(report.clusters) > 10:
        out.print(f"  … and {len(report.clusters) - 10:,} more near-duplicates (all with --json)")
    for moved in report.reassigned[:10]:
        out.print(
            Text(f"  {moved.to_document_id} was first with {moved.tokens:,} passages of {moved.from_document_id}")
        )
    out.print(f"[dim]{report.manifest}[/]")


def _show(found: Trace, raw: bytes) -> None:
    """The text with each source in its colour, and a table of the sources."""
    colours: dict[str, str] = {}
    shown, at = Text(), 0
    for span in found.spans:
        colour = colours.setdefault(span.document_id, _COLOURS[len(colours) % len(_COLOURS)])
        shown.append(raw[at : span.start].decode("utf-8", "replace"), style="dim")
        shown.append(raw[span.start : span.end].decode("utf-8", "replace"), style=f"bold {colour}")
        at = span.end
    shown.append(raw[at:].decode("utf-8", "replace"), style="dim")
    out.print(shown)
    if found.spans:
        table = Table("source", "owner", "words", "bits", "found", box=None, header_style="bold")
        for span in found.spans:
            source = Text(f"{span.document_id} @{span.document_start}", style=colours[span.document_id])
            owner = Text(span.owner or "public domain")
            table.add_row(source, owner, f"{span.tokens:,}", f"{span.bits:,.1f}", f"{span.count:,}×")
        out.print()
        out.print(table)
    words = sum(span.tokens for span in found.spans)
    out.print(f"{words:,} of {found.tokens:,} words, {found.covered_bits:,.1f} bits  [dim]{found.manifest}[/]")


@contextmanager
def _bar(total_bytes: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar with MB/s and what is left to wait, on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=quiet, transient=True) as bars:
        task = bars.add_task("reading", total=total_bytes)

        def advance(size: int) -> None:
            bars.advance(task, size)
            if bars.tasks[0].finished:
                bars.update(task, description="sorting")

        yield advance


def files_in(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Readable files with the names they get, in order of name.

    Raises:
        MissingError: a path does not exist, or there is nothing to read.
    """
    found: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_file():
            found.append((path.name, path))
        elif path.is_dir():
            inside = [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
            read = [p for p in inside if _suffix(p) in SUFFIXES]
            if len(read) < len(inside):
                err.print(
                    f"{len(inside) - len(read)} files below {path.name} are passed over: of folders only "
                    f"{', '.join(sorted(SUFFIXES))} are read; name other files themselves",
                    markup=False,
                )
            found.extend((p.relative_to(path).as_posix(), p) for p in read)
        else:
            raise MissingError(f"there is no {str(path)!r}", code="file_missing", fix="check the path")
    if not found:
        raise MissingError(
            f"no files with {', '.join(sorted(SUFFIXES))} there",
            code="file_missing",
            fix="name files or folders with text",
        )
    return sorted(found, key=lambda item: item[0])


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > FILE_SIZE_BYTES_MAX:
            raise InvalidError(
                f"{path.name} has {path.stat().st_size:,} bytes (max {FILE_SIZE_BYTES_MAX:,})",
                code="file_too_large",
                fix="split it",
            )
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError) as error:
        raise InvalidError(
            f"{path.name} cannot be read: {error}", code="file_unreadable", fix="check the file"
        ) from None


def text_of(path: Path) -> bytes:
    """The text of a file, without compression and tags."""
    raw = _bytes_of(path)
    if _suffix(path) in {".html", ".htm"}:
        return html.unescape(_MARKUP.sub(b" ", raw).decode("utf-8", "replace")).encode("utf-8", "replace")
    return raw


def _plain_texts(found: Sequence[tuple[str, Path]], advance: Callable[[int], None]) -> Iterator[bytes]:
    for _, path in found:
        yield text_of(path)
        advance(path.stat().st_size)


def _documents(
    found: Sequence[tuple[str, Path]],
    owner: str | None,
    public_domain: bool,
    instant: int,
    advance: Callable[[int], None],
) -> Iterator[Document]:
    for name, path in found:
        if _suffix(path) == ".jsonl":
            yield from _rows(name, _bytes_of(path), owner, instant)
        elif owner is None and not public_domain:
            raise InvalidError(
                f"{name} names no owner", code="owner_missing", fix="give --owner NAME or --public-domain"
            )
        else:
            yield Document(name, owner, instant, text_of(path))
        advance(path.stat().st_size)


def _rows(name: str, raw: bytes, owner: str | None, instant: int) -> Iterator[Document]:
    for number, line in enumerate(raw.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json_codec.loads(line)
            at = row.get("registered_at", instant)
            when = parse_instant(at) if isinstance(at, str) else int(at)
            held = row.get("owner", owner)
            yield Document(
                str(row.get("id", f"{name}:{number}")), None if held is None else str(held), when, str(row["text"])
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidError(
                f"{name} line {number} is no document: {error!r}",
                code="row_invalid",
                fix='write one object a line: {"id": …, "owner": …, "registered_at": …, "text": …}',
            ) from None
