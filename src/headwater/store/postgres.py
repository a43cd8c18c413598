"""PostgreSQL behind the seam of the SQLite file: the same statements, the same refusals, the same order of writers.

SQLAlchemy holds the connections, psycopg 3 speaks to the server, Alembic keeps the tables (`store/migrations`).
Writers queue for one advisory lock, as they do for SQLite's write lock, so numbers have no gaps and balances are
read as they are; rows go in by COPY and balances by one UPDATE over arrays. What the server asks to be repeated (a
serialisation failure, a deadlock) is repeated by `run`; a connection that was lost is an `UpstreamError`, and the
caller's idempotency key makes its retry safe.

Needs the extra `postgres`. Knows nothing of ledgers.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from headwater.core.errors import HeadwaterError, InvalidError, InvariantError, MissingError, Problem, UpstreamError
from headwater.store.database import INT64_MAX, ConstraintError, Params, Result, Row

WRITE_LOCK = zlib.crc32(b"headwater writers")
"""The advisory lock that writers queue for; one number for every database of ours."""

REPEATS_MAX = 8
COPY_ROWS_MIN = 16
"""From so many rows on COPY is cheaper than a statement."""

_PARAMETER = re.compile(r"\?(\d*)")
_REPEAT = ("40001", "40P01")  # serialisation failure, deadlock
_CONSTRAINTS = {"23505": "unique", "23514": "check", "23503": "foreignkey", "23502": "notnull", "P0001": "trigger"}
_LOST = ("08", "57P")  # connection failures, shutdown by the operator


class RepeatError(UpstreamError):
    """The server asks for the transaction to be repeated; nothing of it was written."""


class PostgresDatabase:
    """A PostgreSQL database, opened for this process; threads take turns, processes queue for the write lock.

    Args:
        url: such as ``postgresql://user@host/name``.
        schema: where the tables live; made when it is missing.

    Raises:
        MissingError: the driver is not installed.
        UpstreamError: the server cannot be reached.
    """

    def __init__(self, url: str, *, schema: str = "headwater") -> None:
        try:
            import psycopg
            import sqlalchemy
        except ImportError:
            raise MissingError(
                "the PostgreSQL driver is not installed",
                code="postgres_missing",
                fix="pip install 'headwater[postgres]'",
            ) from None
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
            raise InvalidError(f"schema {schema[:80]!r}", code="schema_invalid", fix="use lower-case letters and _")
        self.url, self.schema = url, schema
        self._lock = threading.RLock()
        self._depth = 0
        self._connection: Any = None
        self._psycopg = psycopg
        plain = url.replace("postgresql://", "postgresql+psycopg://", 1).replace("postgres://", "postgresql+psycopg://")
        self.engine = sqlalchemy.create_engine(
            plain,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,  # a server that was restarted is met with a new connection
            connect_args={"options": f"-c search_path={schema} -c synchronous_commit=on"},
        )
        self.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As `Sql.transaction`."""
        with self._lock:
            if self._depth:
                with self._savepoint():
                    yield
                return
            with self._connected(), self._explained():
                self._run("SELECT pg_advisory_xact_lock(?)", (WRITE_LOCK,))
                yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """As `Sql.snapshot`."""
        with self._lock:
            if self._depth:
                yield
                return
            with self._connected(), self._explained():
                self._run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY", ())
                yield

    def run(self, work: Callable[[], Result]) -> Result:
        """As `Sql.run`."""
        if self._depth:  # the outermost decides whether all of it is repeated
            with self.transaction():
                return work()
        for _ in range(REPEATS_MAX - 1):
            with suppress(RepeatError):
                return self._once(work)
        return self._once(work)

    def _once(self, work: Callable[[], Result]) -> Result:
        with self.transaction():
            return work()

    def execute(self, sql: str, params: Params = ()) -> int:
        """As `Sql.execute`."""
        with self._lock, self._standing():
            return int(self._run(sql, params).rowcount)

    def executemany(self, sql: str, rows: Iterable[Params]) -> int:
        """As `Sql.executemany`."""
        with self.transaction(), self._explained():
            statement, order = _translated(sql)
            values = [[row[at] for at in order] for row in rows]
            if not values:
                return 0
            cursor = self._cursor()
            cursor.executemany(statement, values)
            return int(cursor.rowcount)

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        """As `Sql.query`."""
        with self._lock, self._standing():
            return [tuple(row) for row in self._run(sql, params).fetchall()]

    def query_in(self, sql: str, values: Sequence[object], *before: object) -> Iterator[Row]:
        """As `Sql.query_in`."""
        if values:
            yield from self.query(sql.replace("IN ({})", "= ANY(?)"), [*before, list(values)])

    def insert_rows(self, table: str, rows: Sequence[Params]) -> None:
        """As `Sql.insert_rows`."""
        if len(rows) < COPY_ROWS_MIN:
            if rows:
                self.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
            return
        with self.transaction(), self._explained(), self._cursor().copy(f"COPY {table} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def update_rows(self, table: str, columns: Sequence[str], key: str, rows: Sequence[Params]) -> None:
        """As `Sql.update_rows`."""
        if not rows:
            return
        names = [*columns, key]
        changes = ", ".join(f"{name} = new.{name}" for name in columns)
        arrays = ", ".join("?::bigint[]" for _ in names)
        self.execute(
            f"UPDATE {table} SET {changes} FROM unnest({arrays}) AS new ({', '.join(names)})"
            f" WHERE {table}.{key} = new.{key}",
            [list(column) for column in zip(*rows, strict=True)],
        )

    def migrate(self, module: str, steps: Sequence[str]) -> None:  # noqa: ARG002 - steps are SQLite's
        """Bring the tables to the newest revision of `store/migrations`; they hold every module that may live here."""
        from alembic import command
        from alembic.config import Config

        if module != "ledger":
            raise InvalidError(
                f"the tables of {module} live in the home folder's SQLite file",
                code="module_not_on_postgres",
                fix="only the ledger may live on PostgreSQL",
            )
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        with self.transaction():
            config.attributes.update(connection=self._connection, schema=self.schema)
            command.upgrade(config, "head")

    def integrity(self) -> tuple[Problem, ...]:
        """As `Sql.integrity`: constraints that somebody switched off; the server checks its own pages."""
        rows = self.query(
            "SELECT conrelid::regclass::text, conname FROM pg_constraint c"
            " JOIN pg_namespace n ON n.oid = c.connamespace WHERE n.nspname = ? AND NOT convalidated UNION ALL"
            " SELECT tgrelid::regclass::text, tgname FROM pg_trigger t JOIN pg_class r ON r.oid = t.tgrelid"
            " JOIN pg_namespace n ON n.oid = r.relnamespace WHERE n.nspname = ? AND tgenabled = 'D'",
            (self.schema, self.schema),
        )
        fix = "switch it on again, then run `headwater ledger check`"
        return tuple(
            Problem(table, "constraint_off", f"{name} of {table} is not enforced", fix) for table, name in rows
        )

    def close(self) -> None:
        """Give the connections back."""
        with self._lock:
            self.engine.dispose()

    def __enter__(self) -> PostgresDatabase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """One connection and one server transaction for the outermost block."""
        with self._explained(), self.engine.begin() as connection:
            self._connection, self._depth = connection, 1
            try:
                yield
            finally:
                self._connection, self._depth = None, 0

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        with self._explained(), self._connection.begin_nested():
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    @contextmanager
    def _standing(self) -> Iterator[None]:
        """Inside the transaction that is open, or one of its own."""
        if self._depth:
            with self._explained():
                yield
        else:
            with self._connected(), self._explained():
                yield

    def _cursor(self) -> Any:
        return self._connection.connection.cursor()

    def _run(self, sql: str, params: Params) -> Any:
        statement, order = _translated(sql)
        return self._connection.exec_driver_sql(statement, tuple(params[at] for at in order))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except HeadwaterError:
            raise
        except Exception as error:
            cause = getattr(error, "orig", None) or error
            if isinstance(cause, self._psycopg.Error):
                raise _as_ours(cause) from error
            raise


@lru_cache(maxsize=256)
def _translated(sql: str) -> tuple[str, tuple[int, ...]]:
    """A statement with psycopg's placeholders, and which parameter each of them takes."""
    order: list[int] = []

    def place(match: re.Match[str]) -> str:
        order.append(int(match[1]) - 1 if match[1] else len(order))
        return "%s"

    return _PARAMETER.sub(place, sql.replace("%", "%%")), tuple(order)


def _as_ours(error: Any) -> HeadwaterError:
    state = getattr(error, "sqlstate", None) or ""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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
    if state == "53100":
        return UpstreamError(text, code="disk_full", fix="free some space; nothing of this transaction was written")
    if state.startswith(_LOST) or not state:
        return UpstreamError(
            text, code="database_unreachable", fix="check that the server runs, then repeat; the key makes that safe"
        )
    return InvariantError(f"{text} [{state}]", code="database_misused")
