"""Reads an enhancement proposal: its header, its authors, what its text says of its licence, and its text.

The proposals come as Markdown from a converter that ran header lines into one paragraph, wrapped code as
prose and escaped punctuation; this module undoes what can be undone without guessing. E-mail addresses
are taken out. Pure: text in, value out; knows nothing of where the files are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from headwater.core.errors import InvalidError
from headwater.core.instants import SECOND_NS, parse_instant
from headwater.registry.addresses import without_addresses
from headwater.registry.license import USES, Use

UNDATED_NS = parse_instant("2020-10-01T00:00:00Z")
"""When a proposal without a readable date counts as registered: the month of the collection's edition."""

PUBLIC_DOMAIN = "LicenseRef-public-domain"
UNSTATED = "LicenseRef-unstated"
OTHER_TERMS = "LicenseRef-other-terms"

AUTHOR_FIELD_CHARS_MAX = 4_000

_KEYS = (
    r"PEP|Title|Version|Last-Modified|Authors?|Sponsor|PEP-Delegate|BDFL-Delegate|Discussions-To|Status|Type|Topic|"
    r"Content-Type|Requires|Created|Python-Version|Post-History|Replaces|Superseded-By|Resolution|Obsoletes"
)
_FIELD = re.compile(rf"(?:^|(?<=\s))({_KEYS}):(?=\s|$)")
_ESCAPE = re.compile(r"\\([^A-Za-z0-9\s])")
_COPYRIGHT = re.compile(r"^(?:=+ |\d+\.? )?`?Copyright\b[^A-Za-z0-9\n{]*(?:\{.*\})?$", re.MULTILINE)
_DEDICATED = re.compile(r"public[ -]domain", re.IGNORECASE)
_IN_PART = re.compile(r"\b(?:rest|remainder|part) of this (?:document|pep|work)\b", re.IGNORECASE)
_EDITOR_LINES = re.compile(r"^[ \t]*\.\.\s+Local variables:.*", re.DOTALL | re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Byline:
    """One author as a header has it. The address tells namesakes apart while reading; it is never kept."""

    name: str
    address: str | None


@dataclass(frozen=True, slots=True)
class Proposal:
    """One proposal as it is registered."""

    number: int
    title: str
    authors: tuple[Byline, ...]  # in the order of the header, at least one
    status: str
    registered_at_ns: int
    license_expression: str
    uses: frozenset[Use]  # empty unless the text dedicates itself to the public
    text: str  # the whole proposal, tidied, without e-mail addresses


def parse_proposal(raw: str) -> Proposal:
    """The proposal in `raw`.

    Raises:
        InvalidError: no header, no number, no title or no author.
    """
    fields = header_fields(raw)
    number, title = fields.get("PEP", ""), _unescaped(fields.get("Title", ""))
    if not number.isdigit() or not title:
        raise InvalidError(
            f"not a proposal: it starts {raw[:40]!r}",
            code="proposal_header_missing",
            fix="start the file with 'PEP: number Title: …'",
        )
    field = fields.get("Author") or fields.get("Authors") or ""
    authors = bylines(field) if len(field) <= AUTHOR_FIELD_CHARS_MAX else ()
    if not authors:
        raise InvalidError(
            f"proposal {number} names no author",
            code="proposal_author_missing",
            fix="add an Author field to its header",
        )
    expression, uses = stated_license(raw)
    return Proposal(
        number=int(number),
        title=title,
        authors=authors,
        status=fields.get("Status", ""),
        registered_at_ns=created_at(fields.get("Created", "")),
        license_expression=expression,
        uses=uses,
        text=tidy(raw),
    )


def header_fields(raw: str) -> dict[str, str]:
    """The fields of the header, which ends at the first empty line; a repeated field keeps its first value."""
    flat = " ".join(raw.lstrip("\ufeff").split("\n\n", 1)[0].split())
    found = list(_FIELD.finditer(flat))
    if not found or found[0].start() != 0:
        return {}
    ends = [match.start() for match in found[1:]] + [len(flat)]
    fields: dict[str, str] = {}
    for match, end in zip(found, ends, strict=True):
        fields.setdefault(match[1], flat[match.end() : end].strip())
    return fields


_MAIL = r"[^\s<>(),]+(?:@|\s+at\s+)[^\s<>(),]+"
_MAIL_THEN_NAME = re.compile(rf"(?:^|(?<=,))\s*<*({_MAIL})>*\s*\(([^()]*)\)")
_MAIL_AFTER_NAME = re.compile(r"<+([^<>]*)>+(?:\s*\([^()]*\))?")
_BARE_MAIL = re.compile(r"[^\s<>(),]+@[^\s<>(),]+")
_SUFFIX = re.compile(r",\s*((?:Jr|Sr)\b\.?|II\b|III\b|IV\b)")
_PERSON = re.compile(r"(?!The\b)[^\W\d_][\w.'’-]*(?:\s+[\w.'’-]+)+")


def bylines(field: str) -> tuple[Byline, ...]:
    """The authors in an author field, without affiliations, each name once, in order.

    >>> [b.name for b in bylines("Fred L. Drake, Jr. <f@x.org>, tim@x.org (Tim Peters) and A. M. Kuchling")]
    ['Fred L. Drake Jr.', 'Tim Peters', 'A. M. Kuchling']
    """
    plain = _MAIL_THEN_NAME.sub(r" \2 <\1>, ", _unescaped(field))
    plain = _SUFFIX.sub(r" \1", plain)
    found: dict[str, str | None] = {}
    # Every address closes an entry, whether or not a comma follows it.
    start = 0
    for match in [*_MAIL_AFTER_NAME.finditer(plain), None]:
        names = _names(plain[start : match.start() if match else len(plain)])
        for i, name in enumerate(names):
            address = match[1].strip().casefold() if match and i == len(names) - 1 else None
            found[name] = found.get(name) or address
        start = match.end() if match else start
    return tuple(Byline(name, address or None) for name, address in found.items())


def _names(text: str) -> list[str]:
    pieces = re.split(r"[,;]", _BARE_MAIL.sub(" ", text))
    people = [name for piece in pieces for name in _people(" ".join(piece.split()))]
    return [name for name in people if any(c.isalpha() for c in name)]


def _people(piece: str) -> list[str]:
    """`piece` split at "and" when both sides read as a person's name; a body such as "The A and B team" stays whole."""
    piece = re.sub(r"^(?:and|&)\s+", "", piece.strip(" &"))
    sides = [side.strip() for side in re.split(r"\s+(?:and|&)\s+", piece)]
    return sides if len(sides) > 1 and all(_PERSON.fullmatch(side) for side in sides) else [piece]


def one_name_each(headers: Iterable[Sequence[Byline]]) -> dict[str, str]:
    """For every name in `headers`, the one name its bearer goes by.

    Names that signed with the same address are one person's; the name signed most often stands, of
    equals the longest, then the first in order. Nobody is merged on likeness alone.
    """
    uses: Counter[str] = Counter()
    bearers: dict[str, list[str]] = {}
    for byline in (byline for header in headers for byline in header):
        uses[byline.name] += 1
        if byline.address is not None and byline.name not in bearers.setdefault(byline.address, []):
            bearers[byline.address].append(byline.name)
    group = {name: {name} for name in uses}
    for names in bearers.values():
        merged = set().union(*(group[name] for name in names))
        group.update((name, merged) for name in merged)
    return {name: min(group[name], key=lambda n: (-uses[n], -len(n), n)) for name in uses}


def created_at(field: str) -> int:
    """The instant a Created field names, at midnight UTC; UNDATED_NS when it cannot be read.

    >>> created_at("01-Aug-2015 (edited)") == created_at("2015-08-01") == created_at("1 August 2015")
    True
    """
    match = re.match(r"(\d{4})-(\d\d)-(\d\d)|(\d{1,2})[- ]([A-Za-z]{3})[A-Za-z]*[- ](\d{4})", field)
    if match is None:
        return UNDATED_NS
    try:
        if match[1]:
            moment = datetime(int(match[1]), int(match[2]), int(match[3]), tzinfo=UTC)
        else:
            moment = datetime(int(match[6]), _MONTHS.index(match[5].lower()) + 1, int(match[4]), tzinfo=UTC)
    except ValueError:
        return UNDATED_NS
    return int(moment.timestamp()) * SECOND_NS


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def stated_license(raw: str) -> tuple[str, frozenset[Use]]:
    """The licence a proposal's own copyright section states, and the uses that grants.

    Only a dedication of the whole text to the public grants any use; other terms and silence grant none.
    """
    headings = list(_COPYRIGHT.finditer(raw))
    if not headings:
        return UNSTATED, frozenset()
    statement = " ".join(_EDITOR_LINES.sub("", raw[headings[-1].end() :]).split())
    cc0, dedicated = "CC0" in statement, _DEDICATED.search(statement) is not None
    if _IN_PART.search(statement) or not (cc0 or dedicated):
        return (OTHER_TERMS if re.search(r"\w", statement) else UNSTATED), frozenset()
    expression = f"{PUBLIC_DOMAIN} OR CC0-1.0" if cc0 and dedicated else "CC0-1.0" if cc0 else PUBLIC_DOMAIN
    return expression, frozenset(USES)


_ITEM = re.compile(r"\s{0,3}(?:[-*+]|\d{1,2}\.|[a-z]\.|\(\d\))\s+\S")
_RULE = re.compile(r"[=\-~'\"^`#*+.]{3,}\s*(?:\{#.*\})?")
_CITATION = re.compile(r"\s?\[(?:#?[\w*.-]{0,30})\]_(?!\w)|\s?\[\^[\w-]+\](?!:)")
_ROLE = re.compile(r":pep:`(\d+)`|`(\d+)`\{\.interpreted-text\s+role=\"pep\"\}")
_ROLE_OTHER = re.compile(r"(`[^`]*`)\{\.[^{}]*\}")
_LITERAL_NEXT = re.compile(r"(?:^|(?<=\S))\s*::$")
_CODE_SPAN = re.compile(r"(`[^`\n]*`)")


def tidy(raw: str) -> str:
    """`raw` with the converter's damage repaired and e-mail addresses taken out.

    Wrapped prose becomes one line per paragraph or list item; escapes, citation marks and roles become
    plain text. Indented and fenced blocks stay as they are.
    """
    text = _EDITOR_LINES.sub("", raw.lstrip("\ufeff").replace("\r\n", "\n").replace("\xa0", " "))
    blocks = re.split(r"\n[ \t]*\n+", text.strip("\n"))
    fenced, tidied = False, []
    for block in blocks:
        fences = len(re.findall(r"^\s*```", block, re.MULTILINE))
        if fenced or fences or block.startswith("    "):
            tidied.append(without_addresses(block.rstrip()))
        else:
            tidied.append(_tidy_prose(block))
        fenced ^= fences % 2 == 1
    return "\n\n".join(part for part in tidied if part.strip()) + "\n"


def _tidy_prose(block: str) -> str:
    lines = [line.rstrip() for line in block.split("\n")]
    joined: list[str] = []
    for line in lines:
        starts = not joined or _ITEM.match(line) or _RULE.fullmatch(line) or _RULE.fullmatch(joined[-1])
        if starts:
            joined.append(line)
        else:
            joined[-1] = f"{joined[-1]} {line.strip()}"
    plain = [line if _RULE.fullmatch(line) else _LITERAL_NEXT.sub(":", _plain(line)) for line in joined]
    return "\n".join(line for line in plain if line != ":")


def _plain(line: str) -> str:
    """One line of prose without addresses, escapes, citation marks and roles."""
    pieces = _CODE_SPAN.split(without_addresses(line))
    text = "".join(piece if piece.startswith("`") else _unescaped(piece) for piece in pieces)
    text = _ROLE.sub(lambda match: f"PEP {match[1] or match[2]}", text)
    text = _ROLE_OTHER.sub(r"\1", text)
    text = re.sub(r"`_{1,2}(?!\w)", "`", text)
    return without_addresses(_CITATION.sub("", text))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(r"\1", text)
