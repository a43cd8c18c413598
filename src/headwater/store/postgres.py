"""PostgreSQL behind the seam of the SQLite file: the same statements, the same refusals, the same order of writers.

psycopg 3 speaks to the server over one connection, which threads share one transaction at a time; a connection that
was lost is made anew before the next transaction. Writers of all processes queue for one advisory lock, as they do for
SQLite's write lock, so numbers have no gaps and balances are read as they are; many rows go in by one statement over
arrays, or by COPY. What the server asks to be repeated (a serialisation failure, a deadlock) is repeated by
`run`; a connection that was lost on the way is an `UpstreamError`, and the caller's idempotency key makes its retry
safe. Tables are made from the steps that SQLite's are made from, see `postgres_words`.

Behind a pooler that gives each transaction another session nothing may rest on the session, so there every transaction
says for itself where its tables are, a query is a transaction too, and no statement is prepared. That a pooler is there
is seen at once: the process that answers is not the one that the connection was told of.

Needs the extra `postgres`. Knows nothing of ledgers, keys or calls.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from headwater.core.errors import HeadwaterError, InvalidError, InvariantError, MissingError, Problem, UpstreamError
from headwater.store.database import Params, Result, Row
from headwater.store.migration_steps import MIGRATIONS, bring_up
from headwater.store.postgres_arrays import for_many, insertion, integers
from headwater.store.postgres_errors import UNREACHABLE, RepeatError, as_ours, forbidden, refuse_unfit
from headwater.store.postgres_words import FUNCTIONS, postgres_statements

if TYPE_CHECKING:
    import psycopg

REPEATS_MAX = 8
COPY_ROWS_MIN = 1_000
"""From so many rows on COPY, which takes more round trips and no array of them all, is cheaper than a statement."""
_PREPARED_MAX = 512
_SETTINGS = {"synchronous_commit": "on", "random_page_cost": "1.1", "standard_conforming_strings": "on"}
_IDLE = 0
"""libpq: no transaction is open."""

_PARAMETER = re.compile(r"'(?:[^']|'')*'|\?(\d*)|%")
_READS = re.compile(r"\s*(SELECT|WITH|VALUES|SHOW)\b")
_LEDGER_BEFORE = "revisions"
"""The table by which ledgers are known whose tables another tool made, before steps were translated."""


class PostgresDatabase:
    """A schema of a PostgreSQL database, opened for this process; threads take turns, processes queue to write.

    Args:
        url: such as ``postgresql://user@host/name``; whatever libpq takes.
        schema: where the tables live.
        folder: as `Sql.folder`; needed by stores that keep something there.
        lock_wait_ms: how long a writer waits for its turn.
        create: make the schema if it is missing; with false, that is an `InvalidError` ``database_missing``.

    Raises:
        MissingError: the driver is not installed.
        UpstreamError: the server cannot be reached.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = "headwater",
        folder: Path | None = None,
        create: bool = True,
        lock_wait_ms: int = 30_000,
    ) -> None:
        try:
            import psycopg

            from headwater.store.postgres_values import adapt
        except ImportError:
            raise MissingError(
                "the PostgreSQL driver is not installed",
                code="postgres_missing",
                fix="pip install 'headwater[postgres]'",
            ) from None
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema) or schema.startswith("pg_"):
            raise InvalidError(f"schema {schema[:80]!r}", code="schema_invalid", fix="use lower-case letters and _")
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError:  # whose text may hold a password
            raise InvalidError(
                "libpq cannot read the address of the database",
                code="database_address_invalid",
                fix="use postgresql://USER@HOST/NAME, with options that libpq knows",
            ) from None
        self.schema = schema
        self._url, self._folder, self._psycopg, self._adapt = url, folder, psycopg, adapt
        self._lock_wait_ms = lock_wait_ms
        self._lock = threading.RLock()
        self._depth = 0
        self._connection: psycopg.Connection[Any] | None = None
        self._pooled = False
        self._spoiled = False  # the connection is not to be used for another transaction
        self._gathers = False  # statements wait to be sent together; COPY cannot be among them
        lock = zlib.crc32(f"headwater {schema}".encode())
        self._begin_writing = f"BEGIN; {{settings}}SELECT pg_advisory_xact_lock({lock})"
        self._open(create)

    def _open(self, create: bool) -> None:
        may_use = self.query(
            "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = ?", (self.schema,)
        )
        if may_use == [(0,)]:  # its tables would only seem not to be there
            raise forbidden(f"permission denied for schema {self.schema}")
        if not may_use:
            if not create:
                raise InvalidError(
                    f"there is no schema {self.schema} in the database",
                    code="database_missing",
                    fix="check the setting `database`, or make the home first",
                )
            self.execute(f"CREATE SCHEMA IF NOT EXISTS {self.schema}")
        # Opening a schema that is already set up takes no write lock: readers never wait for a writer.
        if not self.query("SELECT 1 FROM pg_tables WHERE schemaname = ? AND tablename = 'migrations'", (self.schema,)):
            with self.transaction():
                for statement in postgres_statements(MIGRATIONS):
                    self.execute(statement)
        bring_up(self, self._where, "postgres", FUNCTIONS, lambda statement: (statement,))

    @property
    def folder(self) -> Path:
        """As `Sql.folder`."""
        if self._folder is None:
            raise InvariantError(f"schema {self.schema} was opened without a folder", code="database_misused")
        return self._folder

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """As `Sql.transaction`."""
        with self._lock:
            if self._depth:
                with self._nested():
                    yield
            else:
                with self._outermost(self._begin_writing):
                    yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """As `Sql.snapshot`."""
        with self._lock:
            if self._depth:  # a writer is alone with its schema
                yield
            else:
                with self._outermost("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {settings}"):
                    yield

    def run(self, work: Callable[[], Result]) -> Result:
        """As `Sql.run`."""
        if self._depth:  # the outermost decides whether all of it is repeated
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
        with self._standing():
            return self._run(sql, params).rowcount

    def executemany(self, sql: str, rows: Iterable[Params]) -> int:
        """As `Sql.executemany`."""
        given = list(rows)
        if len(given) < 2:
            return sum(self.execute(sql, row) for row in given)
        if made := for_many(sql, given):
            return self.execute(*made)
        statement, order = _translated(sql)
        values = [[row[at] for at in order] for row in given]
        with self._standing(), self._explained(), self._pipelined():
            cursor = self._connected().cursor()
            cursor.executemany(statement, values)
            return cursor.rowcount

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        """As `Sql.query`."""
        with self._lock:
            if self._depth:
                return self._run(sql, params).fetchall()
            reads = _READS.match(sql)
            with self._explained():
                self._connected()
            if reads and not self._pooled:  # a statement of its own; reading it again harms nobody
                return self._surely(lambda: self._run(sql, params)).fetchall()
            with self._outermost("BEGIN READ ONLY; {settings}" if reads else self._begin_writing):
                return self._run(sql, params).fetchall()

    def query_in(self, sql: str, values: Sequence[object], *before: object) -> Iterator[Row]:
        """As `Sql.query_in`."""
        if values:
            yield from self.query(sql.replace("IN ({})", "= ANY(?)"), [*before, list(values)])

    def insert_rows(self, table: str, rows: Sequence[Params]) -> None:
        """As `Sql.insert_rows`."""
        if not rows:
            return
        if len(rows) == 1:
            self.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows[0])
            return
        if (self._gathers or len(rows) < COPY_ROWS_MIN) and (made := insertion(table, rows)):
            self.execute(*made)
            return
        with (
            self._standing(),
            self._explained(),
            self._connected().cursor() as cursor,
            cursor.copy(f"COPY {table} FROM STDIN") as copy,
        ):
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
            [integers(column) for column in zip(*rows, strict=True)],
        )

    @contextmanager
    def together(self) -> Iterator[None]:
        """As `Sql.together`: one round trip for all of it."""
        with self._standing(), self._explained():
            connection, before = self._connected(), self._gathers
            self._gathers = True
            try:
                with self._pipelined(), connection.pipeline():
                    yield
            finally:
                self._gathers = before

    def migrate(self, module: str, steps: Sequence[str]) -> None:
        """As `Sql.migrate`."""

        def adopted() -> int:
            if module != "ledger" or not self.query(
                "SELECT 1 FROM pg_tables WHERE schemaname = ? AND tablename = ?", (self.schema, _LEDGER_BEFORE)
            ):
                return 0
            self.execute(f"DROP TABLE {_LEDGER_BEFORE}")
            return 2  # all that there was of the ledger then

        bring_up(self, self._where, module, steps, postgres_statements, adopted)

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

    def scrub(self) -> None:
        """As `Sql.scrub`: dead rows are taken out of the tables; what the server logged and kept is the server's."""
        with self._lock:
            if not self._depth:
                tables = self.query("SELECT tablename FROM pg_tables WHERE schemaname = ?", (self.schema,))
                names = ", ".join(f"{self.schema}.{name}" for (name,) in tables)
                self._surely(lambda: self._tell(f"VACUUM {names}"))

    def close(self) -> None:
        """Give the connection back; what was committed stays."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _where(self) -> str:
        return f"schema {self.schema}"

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            if self._depth:
                raise UpstreamError(
                    "the connection to the database was lost, and with it the transaction",
                    code=UNREACHABLE,
                    fix="check that the server runs, then repeat; the key makes that safe",
                )
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> psycopg.Connection[Any]:
        """A new connection, set up.

        Raises:
            InvalidError: ``database_encoding``, ``database_old``.
        """
        connection = self._psycopg.connect(self._url, autocommit=True, client_encoding="utf8")
        try:
            refuse_unfit(connection.info.parameter_status("server_encoding") or "", connection.info.server_version)
            self._adapt(connection.adapters)
            ((answering,),) = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchall()
            self._pooled = answering != connection.info.backend_pid
            if self._pooled:
                connection.prepare_threshold = None
            else:
                connection.prepared_max = _PREPARED_MAX
                connection.execute(self._settings("SET"), prepare=False)
        except BaseException:
            connection.close()
            raise
        return connection

    def _settings(self, put: str) -> str:
        """What sessions, or with ``SET LOCAL`` transactions, are told before anything is asked of them."""
        settings = {"search_path": self.schema, "lock_timeout": self._lock_wait_ms, **_SETTINGS}
        return "".join(f"{put} {name} TO {value}; " for name, value in settings.items())

    def _begin(self, begin: str) -> str | None:
        with self._explained():
            self._connected()
        return self._tell(begin.format(settings=self._settings("SET LOCAL") if self._pooled else ""))

    def _surely(self, ask: Callable[[], Result]) -> Result:
        """`ask`, which changes nothing, and once more over a new connection when the old one was lost meanwhile."""
        fresh = self._connection is None
        try:
            return ask()
        except UpstreamError as error:
            if fresh or error.code != UNREACHABLE:
                raise
            self.close()
            return ask()

    @contextmanager
    def _outermost(self, begin: str) -> Iterator[None]:
        """A transaction of the server."""
        try:
            self._surely(lambda: self._begin(begin))
            self._depth = 1
            yield
            ended = self._tell("COMMIT")
        except BaseException:
            if self._connection is not None and not self._connection.closed:
                with suppress(HeadwaterError):
                    self._tell("ROLLBACK")
            raise
        finally:
            self._depth = 0
            if self._spoiled:
                self._spoiled = False
                self.close()
        if ended != "COMMIT":  # a statement failed, and its error was not heeded
            raise self._undone()

    def _undone(self) -> UpstreamError:
        return UpstreamError(
            f"{self._where}: the transaction was already undone", code="transaction_undone", fix="retry all of it"
        )

    @contextmanager
    def _standing(self) -> Iterator[None]:
        """The block that is open, or one of its own; without a savepoint, because a failed statement ends the block."""
        with self._lock:
            if self._depth:
                yield
            else:
                with self._outermost(self._begin_writing):
                    yield

    @contextmanager
    def _pipelined(self) -> Iterator[None]:
        """Statements sent before the answers of those before them came."""
        try:
            yield
        except BaseException:
            # The driver takes for prepared what the server never read: it prepares no more, and goes with the block.
            if self._connection is not None:
                self._connection.prepare_threshold = None
            self._spoiled = True
            raise

    @contextmanager
    def _nested(self) -> Iterator[None]:
        savepoint = f"level_{self._depth}"
        self._tell(f"SAVEPOINT {savepoint}")
        self._depth += 1
        try:
            yield
            self._tell(f"RELEASE {savepoint}")
        except BaseException:
            with suppress(HeadwaterError):
                self._tell(f"ROLLBACK TO {savepoint}; RELEASE {savepoint}")
            raise
        finally:
            self._depth -= 1

    def _tell(self, command: str) -> str | None:
        """A command without values or rows, and what the server says it did."""
        with self._explained():
            return self._connected().execute(command, prepare=False).statusmessage

    def _run(self, sql: str, params: Params) -> psycopg.Cursor[Any]:
        statement, order = _translated(sql)
        with self._explained():
            connection = self._connected()
            if self._depth and connection.pgconn.transaction_status == _IDLE:
                raise self._undone()  # whatever ended it, a later write must not land alone
            return connection.execute(statement, [params[at] for at in order] if order else None)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.Error as error:
            raise as_ours(error) from error


@lru_cache(maxsize=2_048)
def _translated(sql: str) -> tuple[str, tuple[int, ...]]:
    """A statement with psycopg's placeholders, and which parameter each of them takes; texts within it stay whole."""
    order: list[int] = []

    def place(match: re.Match[str]) -> str:
        found = match[0]
        if not found.startswith("?"):
            return found.replace("%", "%%")
        order.append(int(match[1]) - 1 if match[1] else len(order))
        return "%s"

    made = _PARAMETER.sub(place, sql)
    # Without parameters psycopg leaves percent signs alone.
    return (made if order else sql), tuple(order)
