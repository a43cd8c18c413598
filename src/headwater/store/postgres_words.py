"""Our migration steps, written in the words that SQLite knows, as the statements that PostgreSQL takes.

    INTEGER, TEXT, BLOB, REAL      bigint, text COLLATE "C" (by bytes, as SQLite orders it), bytea, double precision
    INTEGER PRIMARY KEY            one more than the highest when no number is given, as SQLite numbers rows: writers
                                   queue, so there are no gaps and whoever reads by number misses none
    STRICT, WITHOUT ROWID          left out
    CREATE TRIGGER … RAISE(ABORT)  a function that raises and a trigger; where deleting is forbidden, TRUNCATE is too
    DROP TRIGGER                   drops the function, and the trigger with it

A step is read word by word, and a word that is not known here is an `InvariantError` that names it: nothing is passed
on in the hope that both engines mean the same by it. Words in capitals are SQL's, all others are names. Statements
that read and write rows are not translated but written in words that both engines know. Pure: no connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import InvariantError

_TYPES: Final = {"INTEGER": "bigint", "TEXT": 'text COLLATE "C"', "BLOB": "bytea", "REAL": "double precision"}
_KEYWORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        ALL AND AS ASC BETWEEN BY CASE CONFLICT DELETE DESC DISTINCT DO ELSE END EXISTS FROM GROUP HAVING IN INSERT INTO
        IS JOIN LEFT LIMIT NEW NOT NOTHING NULL OFFSET OLD ON OR ORDER SELECT SET THEN UNION UPDATE USING VALUES WHEN
        WHERE
        """,
    )
)
_FUNCTIONS: Final = frozenset(("abs", "coalesce", "count", "length", "lower", "max", "min", "nullif", "sum", "upper"))
_RESERVED: Final = frozenset(
    re.findall(
        r"\w+",
        """
        all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
        column concurrently constraint create cross current_date current_role current_time current_timestamp
        current_user default deferrable desc distinct do else end except false fetch for foreign freeze from full grant
        group having ilike in initially inner intersect into is isnull join lateral leading left like limit localtime
        localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references
        returning right select session_user similar some symmetric table tablesample then to trailing true union unique
        user using variadic verbose when where window with
        """,
    )
)
"""Names that PostgreSQL only takes in quotation marks."""

FUNCTIONS: Final = (
    """
    CREATE FUNCTION instr(text, text) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT strpos($1, $2)::bigint';
    CREATE FUNCTION max(bigint, bigint) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT AS 'SELECT greatest($1, $2)';
    CREATE FUNCTION min(bigint, bigint) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT AS 'SELECT least($1, $2)';
    """,
)
"""Functions that SQLite has and PostgreSQL lacks, as steps of PostgreSQL's own; made with the schema."""

_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|--[^\n]*)
      | (?P<text>'(?:[^']|'')*')
      | (?P<blob>[xX]'[0-9a-fA-F]*')
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<quoted>"[^"]+")
      | (?P<number>[0-9]+(?:\.[0-9]+)?)
      | (?P<sign><>|<=|>=|<<|>>|\|\||[-+*/%&|~<>=(),.;])""",
    re.VERBOSE,
)


def postgres_statements(statement: str) -> tuple[str, ...]:
    """What PostgreSQL is to be told for one statement of a migration step, in order.

    Raises:
        InvariantError: ``migration_untranslated``, with the word that is not known.

    >>> postgres_statements("CREATE TABLE notes (note TEXT PRIMARY KEY, size INTEGER NOT NULL) STRICT;")
    ('CREATE TABLE notes (note text COLLATE "C" PRIMARY KEY, size bigint NOT NULL)',)
    """
    words = _Words(statement)
    first = words.take()
    reader = _READERS.get(first)
    if reader is None:
        raise words.unknown(first)
    made = reader(words)
    if words.next_is(";"):
        words.take()
    if not words.at_end:
        raise words.unknown(words.take())
    return made


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


class _Words:
    """The tokens of one statement, taken from left to right."""

    def __init__(self, statement: str) -> None:
        self._statement, self._tokens, self._at = statement, [], 0
        place = 0
        tokens: list[_Token] = []
        while place < len(statement):
            match = _TOKEN.match(statement, place)
            if match is None:
                raise self.unknown(statement[place : place + 20])
            place = match.end()
            if match.lastgroup != "space":
                tokens.append(_Token(str(match.lastgroup), match[0]))
        self._tokens = tokens

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._tokens)

    def unknown(self, word: str) -> InvariantError:
        """The refusal of a word."""
        whole = " ".join(self._statement.split())[:200]
        return InvariantError(
            f"a migration step has {word!r}, which is not known for PostgreSQL: {whole}",
            code="migration_untranslated",
        )

    def take(self) -> str:
        if self.at_end:
            raise self.unknown("its end")
        token = self._tokens[self._at]
        self._at += 1
        return token.text

    def next_is(self, *words: str) -> bool:
        following = self._tokens[self._at : self._at + len(words)]
        return tuple(token.text for token in following) == words

    def take_if(self, *words: str) -> bool:
        found = self.next_is(*words)
        self._at += len(words) * found
        return found

    def expect(self, *words: str) -> None:
        for word in words:
            taken = self.take()
            if taken != word:
                raise self.unknown(taken)

    def name(self) -> str:
        """A name as PostgreSQL takes it; names differ by more than their case."""
        word = self.take()
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", word) or word.isupper() or len(word) > 63:
            raise self.unknown(word)
        return _name(word)

    def literal(self) -> str:
        """A number, a text or NULL."""
        sign = "-" if self.take_if("-") else ""
        token = self._tokens[min(self._at, len(self._tokens) - 1)]
        word = self.take()
        if token.kind == "number" or (not sign and (token.kind == "text" or word == "NULL")):
            return sign + word
        raise self.unknown(word)

    def names(self) -> str:
        """Names in brackets."""
        return f"({self.listed(self.name)})"

    def listed(self, read: Callable[[], str]) -> str:
        """What stands between brackets, apart by commas."""
        self.expect("(")
        read_so_far = [read()]
        while self.take_if(","):
            read_so_far.append(read())
        self.expect(")")
        return ", ".join(read_so_far)

    def bracketed(self) -> str:
        """An expression in brackets, with them."""
        self.expect("(")
        inside = self.until(")")
        self.expect(")")
        return f"({inside})"

    def until(self, *ends: str) -> str:
        """Everything up to one of `ends` outside brackets, or up to the end; every word of it is known."""
        made: list[str] = []
        depth = 0
        while not self.at_end and not (depth == 0 and self._tokens[self._at].text in ends):
            token = self._tokens[self._at]
            word = self.take()
            depth += (word == "(") - (word == ")")
            made.append(self._known(token, called=self.next_is("(")))
        return re.sub(r" ?(\.) ?|(\() | (?=[,);])", r"\1\2", " ".join(made))

    def _known(self, token: _Token, *, called: bool) -> str:
        word = token.text
        if token.kind == "blob":
            return f"'\\x{word[2:-1]}'::bytea"
        if token.kind != "name":
            return word
        if word.isupper():
            if word not in _KEYWORDS or (word == "IS" and not (self.next_is("NULL") or self.next_is("NOT", "NULL"))):
                raise self.unknown(word)
            return word
        if called and word not in _FUNCTIONS and not self._is_inserted_into():
            raise self.unknown(f"{word}()")
        return word if called else _name(word)

    def _is_inserted_into(self) -> bool:
        """Whether the word taken last is a table whose columns are named next."""
        return self._at >= 2 and self._tokens[self._at - 2].text == "INTO"


def _name(word: str) -> str:
    word = word.lower()
    return f'"{word}"' if word in _RESERVED else word


def _create(words: _Words) -> tuple[str, ...]:
    kind = words.take()
    if kind == "TABLE":
        return _table(words)
    if kind == "INDEX":
        return _index(words, "INDEX")
    if kind == "UNIQUE":
        words.expect("INDEX")
        return _index(words, "UNIQUE INDEX")
    if kind == "TRIGGER":
        return _trigger(words)
    if kind == "VIEW":
        name = words.name()
        words.expect("AS")
        return (f"CREATE VIEW {name} AS {words.until(';')}",)
    raise words.unknown(kind)


def _table(words: _Words) -> tuple[str, ...]:
    unless = "IF NOT EXISTS " if words.take_if("IF", "NOT", "EXISTS") else ""
    table = words.name()
    numbered: list[str] = []
    items = words.listed(lambda: _item(words, table, numbered))
    rowless = False
    while not words.at_end and not words.next_is(";"):
        if words.take_if("WITHOUT", "ROWID"):
            rowless = True
        elif not words.take_if("STRICT"):
            raise words.unknown(words.take())
        words.take_if(",")
    made = f"CREATE TABLE {unless}{table} ({items})"
    if not numbered:
        return (made,)
    if rowless:
        raise words.unknown("INTEGER PRIMARY KEY … WITHOUT ROWID")
    return (
        f"CREATE OR REPLACE FUNCTION {table}_next() RETURNS bigint LANGUAGE plpgsql AS"
        f" $$ BEGIN RETURN (SELECT coalesce(max({numbered[0]}), 0) + 1 FROM {table}); END $$",
        made,
    )


def _item(words: _Words, table: str, numbered: list[str]) -> str:
    """A column, or a constraint of the table; a column that numbers its rows is added to `numbered`."""
    if words.take_if("PRIMARY", "KEY"):
        return f"PRIMARY KEY {words.names()}"
    if words.take_if("UNIQUE"):
        return f"UNIQUE {words.names()}"
    if words.take_if("CHECK"):
        return f"CHECK {words.bracketed()}"
    column, given = words.name(), words.take()
    if given not in _TYPES:
        raise words.unknown(given)
    parts = [column, _TYPES[given]]
    if words.next_is("PRIMARY") and given == "INTEGER":
        numbered.append(column)
        parts.append(f"DEFAULT {table}_next()")
    while not (words.next_is(",") or words.next_is(")")):
        parts.append(_constraint(words))
    return " ".join(parts)


def _constraint(words: _Words) -> str:
    word = words.take()
    if word == "PRIMARY":
        words.expect("KEY")
        return "PRIMARY KEY"
    if word == "NOT":
        words.expect("NULL")
        return "NOT NULL"
    if word == "UNIQUE":
        return word
    if word == "CHECK":
        return f"CHECK {words.bracketed()}"
    if word == "REFERENCES":
        return f"REFERENCES {words.name()} {words.names()}"
    if word == "DEFAULT":
        return f"DEFAULT {words.literal()}"
    raise words.unknown(word)


def _index(words: _Words, kind: str) -> tuple[str, ...]:
    name = words.name()
    words.expect("ON")
    table = words.name()
    columns = words.listed(lambda: words.name() + (" DESC" if words.take_if("DESC") else ""))
    where = f" WHERE {words.until(';')}" if words.take_if("WHERE") else ""
    return (f"CREATE {kind} {name} ON {table} ({columns}){where}",)


def _trigger(words: _Words) -> tuple[str, ...]:
    name, moment, event = words.name(), words.take(), words.take()
    if moment not in ("BEFORE", "AFTER") or event not in ("INSERT", "UPDATE", "DELETE"):
        raise words.unknown(f"{moment} {event}")
    columns = [words.name()] if words.take_if("OF") else []
    while columns and words.take_if(","):
        columns.append(words.name())
    words.expect("ON")
    table = words.name()
    words.take_if("FOR", "EACH", "ROW")
    condition = words.until("BEGIN") if words.take_if("WHEN") else ""
    words.expect("BEGIN")
    refuses = words.next_is("SELECT", "RAISE")
    body = _refusal(words) if refuses else ""
    while not words.take_if("END"):
        body += words.until(";") + "; "
        words.expect(";")
    # PostgreSQL knows no subqueries in the condition of a trigger, so there its function asks.
    asks = "SELECT" in condition
    if asks:
        body = f"IF {condition} THEN {body}END IF; "
    when = f" WHEN ({condition})" if condition and not asks else ""
    gives = "OLD" if event == "DELETE" else "NEW"
    of = f" OF {', '.join(columns)}" if columns else ""
    made = [
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {body}RETURN {gives}; END $$",
        f"CREATE TRIGGER {name} {moment} {event}{of} ON {table} FOR EACH ROW{when} EXECUTE FUNCTION {name}()",
    ]
    if refuses and event == "DELETE" and not condition:
        made.append(
            f"CREATE TRIGGER {name[:54]}_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT"
            f" EXECUTE FUNCTION {name}()"
        )
    return tuple(made)


def _refusal(words: _Words) -> str:
    words.expect("SELECT", "RAISE", "(", "ABORT", ",")
    text = words.literal()
    words.expect(")", ";")
    return f"RAISE EXCEPTION USING MESSAGE = {text}; "


def _alter(words: _Words) -> tuple[str, ...]:
    words.expect("TABLE")
    table = words.name()
    words.expect("ADD", "COLUMN")
    column, given = words.name(), words.take()
    if given not in _TYPES:
        raise words.unknown(given)
    parts = [column, _TYPES[given]]
    while not words.at_end and not words.next_is(";"):
        if words.next_is("PRIMARY"):
            raise words.unknown("PRIMARY")
        parts.append(_constraint(words))
    return (f"ALTER TABLE {table} ADD COLUMN {' '.join(parts)}",)


def _drop(words: _Words) -> tuple[str, ...]:
    kind, name = words.take(), words.name()
    if kind == "TRIGGER":
        return (f"DROP FUNCTION {name}() CASCADE",)
    if kind == "TABLE":
        return f"DROP TABLE {name}", f"DROP FUNCTION IF EXISTS {name}_next()"
    if kind in ("INDEX", "VIEW"):
        return (f"DROP {kind} {name}",)
    raise words.unknown(kind)


def _rows(first: str) -> Callable[[_Words], tuple[str, ...]]:
    """A reader of statements that change rows."""

    def read(words: _Words) -> tuple[str, ...]:
        return (f"{first} {words.until(';')}",)

    return read


_READERS: Final[dict[str, Callable[[_Words], tuple[str, ...]]]] = {
    "CREATE": _create,
    "ALTER": _alter,
    "DROP": _drop,
    "INSERT": _rows("INSERT"),
    "UPDATE": _rows("UPDATE"),
    "DELETE": _rows("DELETE"),
}
