"""What PostgreSQL, or a pooler before it, says when it refuses: our errors, each with a code and what to do about it.

The server gives a five-character state with each refusal; one that ends the attempt to connect reaches us as text
alone, so those are known by their words, in the language that servers speak unless told otherwise. What is not known
is an outage when it ended the connection, and a bug of ours when the server merely refused the statement.

Everything that somebody who runs the server can mend is an `UpstreamError`: it may pass, and whoever books tries again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from headwater.core.errors import HeadwaterError, InvalidError, InvariantError, UpstreamError
from headwater.store.database import INT64_MAX, ConstraintError

if TYPE_CHECKING:
    import psycopg

_REPEAT: Final = ("40001", "40P01")  # serialisation failure, deadlock
_CONSTRAINTS: Final = {
    "23505": "unique", "23514": "check", "23503": "foreignkey", "23502": "notnull", "P0001": "trigger",
}  # fmt: skip

VERSION_MIN: Final = 130_000
UNREACHABLE: Final = "database_unreachable"
_FIXES: Final = {
    UNREACHABLE: "check that the server runs, then repeat; the key makes that safe",
    "disk_full": "free some space; nothing of this transaction was written",
    "disk_failed": "check the server's disk and its log; nothing of this transaction was written",
    "database_corrupt": "stop, keep the server's files as evidence; restore the last good backup",
    "database_locked": "another process is writing; retry, or stop the other process",
    "database_timeout": (
        "nothing of this transaction was written; lengthen statement_timeout and idle_in_transaction_session_timeout"
        " of this role (ALTER ROLE … SET …), then repeat"
    ),
    "database_read_only": (
        "name the primary, or several hosts and target_session_attrs=read-write; a standby cannot hold a home"
    ),
    "database_forbidden": (
        "let the role own the schema and its tables, or grant it USAGE and CREATE on the schema, and CREATE on the"
        " database where the schema is to be made"
    ),
    "database_gone": (
        "the schema was moved, dropped or closed to this role meanwhile: see `headwater home show`, start again"
    ),
    "database_refused": (
        "check the role, its password (~/.pgpass, PGPASSWORD or the setting `database`) and the server's pg_hba.conf"
    ),
    "database_missing": "check the setting `database`, or make the database with createdb",
    "database_busy": "raise max_connections, or let fewer workers or other clients use the server",
    "database_pooling": "let the pooler pool transactions or sessions (pool_mode), or name the server itself",
}
_STATES: Final = {
    "53100": "disk_full",
    "58030": "disk_failed",
    "XX001": "database_corrupt",
    "XX002": "database_corrupt",
    "55P03": "database_locked",
    "57014": "database_timeout",
    "25P03": "database_timeout",
    "25006": "database_read_only",
    "42501": "database_forbidden",
    "42P01": "database_gone",
    "28000": "database_refused",
    "28P01": "database_refused",
    "3D000": "database_missing",
    "53300": "database_busy",
}
_ENDED: Final = ("08", "57P")  # connection failures, shutdown by the operator, a session that idled too long
_WORDS: Final = (
    ("statement pooling", "database_pooling"),
    ("session is read-only", "database_read_only"),
    ("no password supplied", "database_refused"),  # said by the driver
    (r"FATAL: .*(authentication failed|no pg_hba\.conf entry)", "database_refused"),
    ("FATAL: .*(role .* does not exist|role .* is not permitted to log in)", "database_refused"),
    ("FATAL: .*permission denied", "database_forbidden"),
    ("FATAL: .*(too many clients|too many connections|connection slots|no more connections)", "database_busy"),
    ("FATAL: .*(database .* does not exist|no such database)", "database_missing"),
)


class RepeatError(UpstreamError):
    """The server asks for the transaction to be repeated; nothing of it was written."""


def forbidden(text: str) -> UpstreamError:
    """The refusal of what the role may not do."""
    return UpstreamError(text, code="database_forbidden", fix=_FIXES["database_forbidden"])


def refuse_unfit(encoding: str, version: int) -> None:
    """Refuse a database that cannot hold every text, or a server that is older than what is used of it.

    Args:
        encoding: as the server calls it.
        version: such as 150004.

    Raises:
        InvalidError: ``database_encoding``, ``database_old``.
    """
    if encoding.upper() not in ("UTF8", "UNICODE"):
        raise InvalidError(
            f"the database keeps texts as {encoding}",
            code="database_encoding",
            fix="make one that keeps UTF-8: createdb -E UTF8 -T template0 NAME",
        )
    if version < VERSION_MIN:
        raise InvalidError(
            f"the server is PostgreSQL {version // 10_000}",
            code="database_old",
            fix=f"use PostgreSQL {VERSION_MIN // 10_000} or later",
        )


def as_ours(error: psycopg.Error) -> HeadwaterError:
    """The error that says what the driver's error means here."""
    state = error.sqlstate or ""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
    if state in _REPEAT:
        return RepeatError(text, code="serialisation_failed", fix="repeat the request; its key makes that safe")
    if state in _CONSTRAINTS:
        return ConstraintError(text, kind=_CONSTRAINTS[state])
    if state == "22003":
        return InvalidError(
            f"a number does not fit in 64 bits ({text})",
            code="amount_out_of_range",
            fix=f"keep amounts and their sums within {INT64_MAX} nano units",
        )
    code = _STATES.get(state)
    if code is None and (state.startswith(_ENDED) or (not state and _is_outage(error))):
        code = _by_words(text)
    if code is None:
        return InvariantError(f"{text} [{state or type(error).__name__}]", code="database_misused")
    return UpstreamError(text, code=code, fix=_FIXES[code])


def _is_outage(error: psycopg.Error) -> bool:
    """Whether an error without a state is of the connection, not of what was asked."""
    from psycopg import InterfaceError, OperationalError

    return isinstance(error, (OperationalError, InterfaceError))


def _by_words(text: str) -> str:
    """What an error that ended the connection, or never let it begin, is called."""
    return next((code for words, code in _WORDS if re.search(words, text)), UNREACHABLE)
