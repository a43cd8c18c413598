"""Where a home's database is: a file in its folder, or a schema of a PostgreSQL server; and that without its secrets.

An address is a `postgresql://` URL as libpq takes it, with `?schema=NAME` for another schema than `headwater`. It may
hold a password (better ones are in ~/.pgpass or PGPASSWORD), so it is shown with `***` in its place, and an address
that cannot be read is not repeated in the error. Pure: nothing is opened here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from headwater.core.errors import InvalidError

SCHEMES: Final = ("postgresql", "postgres")
SCHEMA: Final = "headwater"
_SECRETS: Final = ("password", "sslpassword", "oauth_client_secret")
_HIDDEN: Final = "***"
_FIX: Final = "use postgresql://USER@HOST/NAME, with ?schema=NAME for another schema"


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """A schema of a PostgreSQL database."""

    url: str = field(repr=False)  # what libpq is given; may hold a password
    schema: str
    shown: str  # the whole of it, schema included, with secrets left out


def parse_address(text: str) -> PostgresAddress:
    """The address that a setting or an option gives.

    Raises:
        InvalidError: ``database_address_invalid``; the text, which may hold a password, is not in the message.

    >>> parse_address("postgresql://ada:secret@db.example/money?schema=east").shown
    'postgresql://ada:***@db.example/money?schema=east'
    """
    try:
        parts = urlsplit(text)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _invalid("cannot be read as a URL") from None
    if parts.scheme not in SCHEMES:
        raise _invalid("does not begin with postgresql://")
    schemas = [value for name, value in pairs if name == "schema"]
    schema = schemas[-1] if schemas else SCHEMA
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema) or schema.startswith("pg_") or schema == "public":
        raise _invalid(f"names the schema {schema[:80]!r}", "use lower-case letters, digits and _; not public")
    rest = [(name, value) for name, value in pairs if name != "schema"]
    url = _url(parts.netloc, parts.path, urlencode(rest, quote_via=quote))
    hidden = [(name, _HIDDEN if name in _SECRETS else value) for name, value in rest]
    if schemas:
        hidden.append(("schema", schema))
    shown = _url(_without_password(parts.netloc), parts.path, _plain(hidden))
    return PostgresAddress(url, schema, shown)


def shown(setting: str) -> str:
    """A setting `database` as people may see it: nothing of it when it cannot be read."""
    if not setting:
        return ""
    try:
        return parse_address(setting).shown
    except InvalidError:
        return _HIDDEN


def _url(netloc: str, path: str, query: str) -> str:
    return f"postgresql://{netloc}{path}{query and '?' + query}"


def _without_password(netloc: str) -> str:
    user, at, hosts = netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    return f"{name}{colon and ':' + _HIDDEN}{at}{hosts}"


def _plain(pairs: list[tuple[str, str]]) -> str:
    return unquote(urlencode(pairs, quote_via=quote, safe="/*"))


def _invalid(what: str, fix: str = _FIX) -> InvalidError:
    return InvalidError(f"the address of the database {what}", code="database_address_invalid", fix=fix)
