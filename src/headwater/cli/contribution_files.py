"""Reads files that people offer for registration: text and Markdown whole, JSONL a row at a time.

A file or row that cannot be read becomes a `Problem` with its place; nothing here is registered yet. Paths
are recorded relative to what was named on the command line, never as they are on the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from headwater.core.errors import InvalidError, Problem
from headwater.core.ids import ContributorId
from headwater.core.limits import CONTRIBUTION_SIZE_BYTES_MAX, CONTRIBUTION_TITLE_CHARS_MAX
from headwater.core.money import PPB
from headwater.registry import Contributor, Kind, License, Ownership, Use, owned_equally, unenrolled
from headwater.registry.intake import Candidate

SUFFIXES = (".txt", ".md", ".jsonl")

_ROW_FIELDS = frozenset({"text", "title", "owners", "license", "uses"})
_SHARED = re.compile(r"(?P<name>.*\S)\s*:\s*(?P<share>\d[\d.]*%?)\s*")
_ID = re.compile(r"ctr_[0-9a-f]{32}")
_HEADING = re.compile(r"^#{1,6}\s+(\S.*?)\s*#*\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Owner:
    """An owner as named: a new or known contributor, or the id of one, and a share if one was given."""

    id: ContributorId
    contributor: Contributor | None  # None when named by id
    share_ppb: int | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every item that does not say otherwise."""

    owners: tuple[Owner, ...]
    namespace: str
    license_expression: str
    uses: frozenset[Use]
    kind: Kind
    price_floor_units: int
    expires_at_ns: int | None
    now_ns: int


@dataclass(frozen=True, slots=True)
class Offer:
    """One item as it may be registered, and the owners it names."""

    candidate: Candidate
    contributors: tuple[Contributor, ...]


def files_in(path: Path) -> tuple[Path, ...]:
    """The files to read: `path` itself, or everything below it with a known ending, by name, hidden ones left out.

    Raises:
        InvalidError: there is no such path, or nothing in it to read.
    """
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise InvalidError(f"there is no {path}", code="path_missing", fix="give a file or a folder")
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not found:
        raise InvalidError(
            f"{path} holds no {', '.join(SUFFIXES)} file", code="nothing_to_add", fix="name another folder"
        )
    return tuple(found)


def read_offers(file: Path, root: Path, terms: Terms) -> Iterator[Offer | Problem]:
    """What `file` offers, in order, `root` being the path that was named."""
    source = file.name if file == root else f"{root.name}/{file.relative_to(root).as_posix()}"
    try:
        if file.suffix.lower() == ".jsonl":
            yield from _rows(file, source, terms)
        else:
            yield _whole(file, source, terms)
    except OSError as error:
        yield Problem(source, "file_unreadable", str(error.strerror or error), "check the file and its permissions")


def _whole(file: Path, source: str, terms: Terms) -> Offer | Problem:
    size_bytes = file.stat().st_size
    if size_bytes > CONTRIBUTION_SIZE_BYTES_MAX:
        return _too_large(source, size_bytes)
    content = file.read_bytes()
    heading = _HEADING.search(content.decode("utf-8", errors="replace")) if file.suffix.lower() == ".md" else None
    title = heading[1] if heading else file.stem
    return _offer(source, source, content, title, terms.owners, terms, terms.license_expression, terms.uses)


def _rows(file: Path, source: str, terms: Terms) -> Iterator[Offer | Problem]:
    with file.open("rb") as lines:
        number = 0
        # A line is never read beyond the limit; the escapes of JSON at most sextuple a text.
        while line := lines.readline(6 * CONTRIBUTION_SIZE_BYTES_MAX):
            number += 1
            where = f"{source}:{number}"
            if not line.endswith(b"\n") and lines.peek(1):
                yield _too_large(where, len(line))
                return
            if line.strip():
                try:
                    yield _row(line, where, source, terms)
                except InvalidError as error:
                    yield Problem(where, error.code, error.message, error.fix or "correct the row")


def _row(line: bytes, where: str, source: str, terms: Terms) -> Offer:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidError(f"not UTF-8: {error.reason}", code="content_not_utf8", fix="save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"not JSON: {error}", code="row_not_json", fix="write one JSON object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InvalidError("the row has no text", code="row_without_text", fix='write {"text": "…"}')
    if strange := sorted(set(row) - _ROW_FIELDS):
        known = ", ".join(sorted(_ROW_FIELDS))
        raise InvalidError(
            f"unknown field {strange[0][:60]!r}", code="row_field_unknown", fix=f"the fields are {known}"
        )
    owners = _row_owners(row["owners"], terms.namespace) if "owners" in row else terms.owners
    title = _text_of(row, "title", f"{Path(source).stem} {where.rsplit(':', 1)[1]}")
    expression = _text_of(row, "license", terms.license_expression)
    uses = row.get("uses", terms.uses)
    if not isinstance(uses, list | frozenset) or not all(isinstance(use, str) for use in uses):
        raise InvalidError(f"uses is {uses!r}", code="row_field_invalid", fix='write a list such as ["ground"]')
    try:
        content = row["text"].encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidError(
            "the text holds half a character", code="content_not_utf8", fix="correct its escapes"
        ) from None
    return _offer(where, source, content, title, owners, terms, expression, frozenset(uses))


def _offer(
    where: str,
    source: str,
    content: bytes,
    title: str,
    owners: Sequence[Owner],
    terms: Terms,
    expression: str,
    uses: frozenset[Any],
) -> Offer:
    # A title taken from the text may be long; one that was given is checked at admission.
    candidate = Candidate(
        where=where,
        kind=terms.kind,
        title=title[:CONTRIBUTION_TITLE_CHARS_MAX],
        content=content,
        owners=shares_of(owners),
        license_expression=expression,
        uses=uses,
        registered_at_ns=terms.now_ns,
        source=source,
        price_floor_units=terms.price_floor_units,
        expires_at_ns=terms.expires_at_ns,
    )
    return Offer(candidate, tuple(owner.contributor for owner in owners if owner.contributor is not None))


def _text_of(row: Mapping[str, Any], field: str, default: str) -> str:
    value = row.get(field, default)
    if not isinstance(value, str):
        raise InvalidError(f"{field} is {value!r}", code="row_field_invalid", fix="write it as text")
    return value


def _row_owners(value: Any, namespace: str) -> tuple[Owner, ...]:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(parse_owner(name, namespace) for name in value)
    raise InvalidError(
        f"owners is {str(value)[:60]!r}",
        code="row_field_invalid",
        fix='write a list such as ["Ada", "Bo"] or ["Ada:0.7", "Bo:0.3"]',
    )


def owners_of(texts: Sequence[str], namespace: str) -> tuple[Owner, ...]:
    """The owners named on the command line.

    Raises:
        InvalidError: a name or share that cannot be read, or shares that do not sum to one.
    """
    owners = tuple(parse_owner(text, namespace) for text in texts)
    shares_of(owners)
    return owners


def parse_owner(text: str, namespace: str) -> Owner:
    """One owner: ``NAME``, ``NAME:0.7``, ``NAME:70%`` or the same with a contributor id for the name.

    Raises:
        InvalidError: a name or share that cannot be read.
    """
    match = _SHARED.fullmatch(text)
    name, share = (match["name"], _share(match["share"])) if match else (text.strip(), None)
    if _ID.fullmatch(name):
        return Owner(ContributorId(name), None, share)
    contributor = unenrolled(namespace, name)
    return Owner(contributor.id, contributor, share)


def _share(text: str) -> int:
    try:
        share = Decimal(text.rstrip("%")) * PPB / (100 if text.endswith("%") else 1)
    except InvalidOperation:
        raise InvalidError(
            f"share {text!r} is not a number", code="share_invalid", fix="write it like 0.7 or 70%"
        ) from None
    if share != share.to_integral_value():
        raise InvalidError(
            f"share {text!r} is finer than a billionth", code="share_invalid", fix="use at most 9 decimals"
        )
    return int(share)


def shares_of(owners: Sequence[Owner]) -> tuple[Ownership, ...]:
    """Owners with their shares: all as given, or all equal when none was given.

    Raises:
        InvalidError: some have a share and some have none, or the shares do not sum to one.
    """
    given = [owner.share_ppb for owner in owners if owner.share_ppb is not None]
    if not given:
        return owned_equally([owner.id for owner in owners]) if owners else ()
    if len(given) != len(owners):
        raise InvalidError(
            "some owners have a share and some have none", code="shares_mixed", fix="give every owner a share, or none"
        )
    if sum(given) != PPB:
        raise InvalidError(
            f"owners' shares sum to {Decimal(sum(given)) / PPB}", code="shares_do_not_sum", fix="make them sum to 1"
        )
    return tuple(Ownership(owner.id, owner.share_ppb or 0) for owner in owners)


def check_terms(terms: Terms) -> None:
    """Refuse terms that no item could be registered under, before anything is read.

    Raises:
        InvalidError: an unknown licence or use, a bad floor.
    """
    License(terms.license_expression, terms.uses, terms.price_floor_units, terms.expires_at_ns)


def _too_large(where: str, size_bytes: int) -> Problem:
    message = f"{size_bytes} bytes or more are over the limit of {CONTRIBUTION_SIZE_BYTES_MAX}"
    return Problem(where, "content_too_large", message, "split it into smaller items")
