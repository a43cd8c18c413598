"""What the explorer asks of the registry and the journal: lists by keyset, newest first, and what a search finds.

Every list is read from behind a number, so that the millionth row costs what the first does. Knows nothing of who may
see a text.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.store.database import Sql

NEWEST = 2**62
"""Behind which everything is."""

HOLDS = r"lower({}) LIKE ? ESCAPE '\'"
"""Whether a column holds words, in whatever case; its parameter is their `pattern`."""


def pattern(words: str) -> str:
    r"""What `HOLDS` asks for: any text with these words in it, none of whose signs means anything else.

    >>> pattern("50% of A_b")
    '%50\\% of a\\_b%'
    """
    plain = words.lower().replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return f"%{plain}%"


@dataclass(frozen=True, slots=True)
class Listed:
    """A contribution in a list."""

    number: int
    id: str
    kind: str
    title: str
    license: str
    registered_at_ns: int
    size_bytes: int


def contributions(db: Sql, *, kind: str = "", words: str = "", before: int = NEWEST, limit: int) -> tuple[Listed, ...]:
    """Contributions, newest first, from below number `before`; of one kind, or with words in the title, if given."""
    conditions: dict[str, object] = {"number < ?": before}
    conditions |= {"kind = ?": kind} if kind else {}
    conditions |= {HOLDS.format("title"): pattern(words)} if words else {}
    rows = db.query(
        "SELECT number, id, kind, title, license_expression, registered_at_ns, size_bytes FROM contributions"
        f" WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?",
        (*conditions.values(), limit),
    )
    return tuple(Listed(*row) for row in rows)


def kinds(db: Sql) -> tuple[tuple[str, int], ...]:
    """How many contributions of each kind there are, most first."""
    rows = db.query("SELECT kind, count(*) FROM contributions GROUP BY kind ORDER BY count(*) DESC, kind")
    return tuple((kind, count) for kind, count in rows)


def contributors_named(db: Sql, words: str, limit: int) -> tuple[tuple[str, str], ...]:
    """(id, name) of contributors whose name holds words."""
    rows = db.query(
        f"SELECT id, name FROM contributors WHERE {HOLDS.format('name')} ORDER BY name, id LIMIT ?",
        (pattern(words), limit),
    )
    return tuple((id, name) for id, name in rows)


def count_contributors(db: Sql) -> int:
    """How many there are."""
    [(count,)] = db.query("SELECT count(*) FROM contributors")
    return int(count)
