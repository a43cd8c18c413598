"""One SQLite file with transactions, numbered migrations and errors that say what to do; and the seam it fills.

`Sql` is what a store needs of a database. `Database` is SQLite, `headwater.store.postgres.PostgresDatabase` the
other; statements are written once, with `?` or `?1` for parameters, in the words that both engines know.

Invariants: a transaction is durable when its block ends without an error (write-ahead log, synchronous
FULL) and leaves no trace when it ends with one; threads share the connection one transaction at a
time; processes queue for the one write lock. Integers leave and enter as `int` and overflow raises.

Traps this module and its users mind: SQLite turns ``a + b`` beyond 2^63 into a float, so columns of
money carry a range CHECK (`sum()` raises by itself); DDL belongs in `migrate`, never in a store.

Knows nothing of ledgers, keys or calls.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, InvariantError, Problem, UpstreamError
from headwater.store.migration_steps import MIGRATIONS, bring_up

Params = Sequence[Any]
Row = tuple[Any, ...]
Result = TypeVar("Result")

INT64_MAX = 2**63 - 1
"""Largest integer a column holds."""


class ConstraintError(ConflictError):
    """A row breaks a rule of its table. `kind` is unique, check, foreignkey, notnull, trigger or datatype."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message, code="constraint_failed", fix="nothing was written; correct the values and retry")
        self.kind = kind


class Sql(Protocol):
    """What a store needs of a database: transactions that queue for one writer, statements, sets of rows."""

    @property
    def folder(self) -> Path:
        """Where what belongs to this database and is no part of it is kept: keys of texts, marks of processes."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """Everything inside is written, durably, or nothing is; one writer at a time; may be nested."""
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """Every query inside sees the same moment. For reading only."""
        ...

    def run(self, work: Callable[[], Result]) -> Result:
        """`work` in a transaction, again when the database asks for it to be repeated.

        Inside a transaction it is part of that: an error of `work` is one of the whole, and must not be passed over.
        """
        ...

    def execute(self, sql: str, params: Params = ()) -> int:
        """Run one statement; gives the number of rows changed."""
        ...

    def executemany(self, sql: str, rows: Iterable[Params]) -> int:
        """Run one statement for every row, all or none; gives the number of rows changed."""
        ...

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        """All rows of a statement."""
        ...

    def query_in(self, sql: str, values: Sequence[object], *before: object) -> Iterator[Row]:
        """The rows of a query whose ``IN ({})`` holds any of `values`; parameters `before` precede it."""
        ...

    def insert_rows(self, table: str, rows: Sequence[Params]) -> None:
        """Insert rows, all or none; after its name a table may list the columns they hold: ``calls (call_id, …)``."""
        ...

    def update_rows(self, table: str, columns: Sequence[str], key: str, rows: Sequence[Params]) -> None:
        """Set `columns` of the rows that `key` names; a row is the new values and, last, the key. Integers only."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """What is written inside may be sent at once, and refused as late as at its end; nothing is read inside.

        To be used inside a transaction.
        """
        ...

    def migrate(self, module: str, steps: Sequence[str]) -> None:
        """Bring the tables of `module` to the newest step; each step (one or more statements) is applied once.

        Steps are written in SQLite's words; another engine translates them (`postgres_words`).

        Raises:
            InvalidError: ``database_newer``, the database was written by a newer version.
            InvariantError: ``migration_changed``, a step that was applied has since been edited.
        """
        ...

    def integrity(self) -> tuple[Problem, ...]:
        """What is damaged."""
        ...

    def scrub(self) -> None:
        """Overwrite or drop old copies of values that were erased, as far as the engine can and others allow."""
        ...

    def close(self) -> None:
        """Give the connection back; what was committed stays."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


_ROWS_CHUNK = 64
"""Rows given to one INSERT, where there are as many."""

_IN_CHUNK = 512
"""Values given to one IN (…); powers of two, so that few statements are prepared and each is used again."""


class Database:
    """A SQLite file, opened for this process; safe to share between threads.

    Args:
        path: the file; it and its folder are made (readable by the owner only) unless `create` is false.
        create: with false, a missing file is an `InvalidError` with code ``database_missing``.
        busy_timeout_ms: how long to wait for another process's write lock.
    """

    def __init__(self, path: Path | str, *, create: bool = True, busy_timeout_ms: int = 10_000) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._depth = 0
        with _clean_errors(self.path):
            _make_file(self.path, create)
            self._connection = sqlite3.connect(
                self.path, timeout=busy_timeout_ms / 1000, isolation_level=None, check_same_thread=False
            )
        try:
            self._configure()
        except HeadwaterError:
            self._connection.close()
            raise

    @property
    def folder(self) -> Path:
        """As `Sql.folder`: the folder that holds the file."""
        return self.path.parent

    def _configure(self) -> None:
        # Switching to the write-ahead log takes a lock; it is a no-op when the file already uses it.
        if self.query("PRAGMA journal_mode") != [("wal",)] and self.query("PRAGMA journal_mode = wal") != [("wal",)]:
            raise UpstreamError(
                f"{self.path} cannot use a write-ahead log",
                code="database_unsupported_disk",
                fix="keep the home folder on a local disk, not a network share",
            )
        # With recursive triggers a REPLACE fires the triggers that forbid deleting, as a DELETE does.
        for pragma in (
            "synchronous = FULL",
            "foreign_keys = ON",
            "recursive_triggers = ON",
            "secure_delete = ON",  # what is erased is overwritten, not only unlinked
            "temp_store = MEMORY",
            "cache_size = -65536",  # KiB
            "wal_autocheckpoint = 4096",  # pages: a page that many commits touch is copied back once
        ):
            self.query(f"PRAGMA {pragma}")
        # Opening a file that is already set up takes no write lock: readers never wait for a writer.
        if not self.query("SELECT 1 FROM sqlite_master WHERE name = 'migrations'"):
            self.execute(MIGRATIONS)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is written, durably, or nothing is.

        Nested use joins the outer transaction: the inner block is all-or-nothing by itself, so an
        outer block may catch an inner error and go on; only the outermost end is durable.
        """
        with self._lock:
            depth = self._depth
            savepoint = f"level_{depth}"
            self._run("BEGIN IMMEDIATE" if depth == 0 else f"SAVEPOINT {savepoint}", ())
            self._depth = depth + 1
            try:
                yield
                self._run("COMMIT" if depth == 0 else f"RELEASE {savepoint}", ())
            except BaseException:
                self._undo(savepoint if depth else None)
                raise
            finally:
                self._depth = depth

    def _undo(self, savepoint: str | None) -> None:
        # A full disk makes SQLite roll back by itself; then there is nothing left to undo.
        if savepoint is not None and self._connection.in_transaction:
            try:
                self._connection.execute(f"ROLLBACK TO {savepoint}")
                self._connection.execute(f"RELEASE {savepoint}")
                return
            except sqlite3.Error:
                pass  # half a block must not stay for the outer one to commit: undo all of it
        if self._connection.in_transaction:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Every query inside sees the same moment; other processes go on writing. For reading only."""
        with self._lock:
            if self._depth:  # a transaction sees one moment already
                yield
                return
            self._run("BEGIN DEFERRED", ())
            self._depth = 1
            try:
                yield
            finally:
                self._depth = 0
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")

    def execute(self, sql: str, params: Params = ()) -> int:
        """Run one statement; outside a transaction it commits by itself. Gives the number of rows changed."""
        with self._lock:
            return self._run(sql, params).rowcount

    def executemany(self, sql: str, rows: Iterable[Params]) -> int:
        """Run one statement for every row, all or none. Gives the number of rows changed."""
        with self.transaction(), _clean_errors(self.path):
            return self._connection.executemany(sql, rows).rowcount

    def query(self, sql: str, params: Params = ()) -> list[Row]:
        """All rows of a statement; a statement with RETURNING may be given."""
        with self._lock, _clean_errors(self.path):
            return self._run(sql, params).fetchall()

    def run(self, work: Callable[[], Result]) -> Result:
        """`work` in a transaction. SQLite makes writers queue, so it never has to be repeated."""
        with self.transaction():
            return work()

    def query_in(self, sql: str, values: Sequence[object], *before: object) -> Iterator[Row]:
        """As `Sql.query_in`."""
        for start in range(0, len(values), _IN_CHUNK):
            chunk = list(values[start : start + _IN_CHUNK])
            # Filled up to a power of two with what is there already, which changes nothing.
            size = 1 << (len(chunk) - 1).bit_length()
            chunk += chunk[-1:] * (size - len(chunk))
            yield from self.query(sql.format(", ".join("?" * size)), [*before, *chunk])

    def insert_rows(self, table: str, rows: Sequence[Params]) -> None:
        """As `Sql.insert_rows`."""
        if not rows:
            return
        one = f"({', '.join('?' * len(rows[0]))})"
        whole = len(rows) - len(rows) % _ROWS_CHUNK
        with self.transaction():
            for start in range(0, whole, _ROWS_CHUNK):
                # Many rows to a statement, so that other threads are not asked for the interpreter after each row.
                self._run(
                    f"INSERT INTO {table} VALUES {', '.join([one] * _ROWS_CHUNK)}",
                    list(chain.from_iterable(rows[start : start + _ROWS_CHUNK])),
                )
            if whole < len(rows):
                self.executemany(f"INSERT INTO {table} VALUES {one}", rows[whole:])

    def update_rows(self, table: str, columns: Sequence[str], key: str, rows: Sequence[Params]) -> None:
        """As `Sql.update_rows`."""
        changes = ", ".join(f"{column} = ?" for column in columns)
        self.executemany(f"UPDATE {table} SET {changes} WHERE {key} = ?", rows)

    def together(self) -> AbstractContextManager[None]:
        """As `Sql.together`; there is nothing to wait for between statements."""
        return nullcontext()

    def migrate(self, module: str, steps: Sequence[str]) -> None:
        """As `Sql.migrate`."""
        bring_up(self, str(self.path), module, steps, lambda statement: (statement,))

    def integrity(self) -> tuple[Problem, ...]:
        """What is damaged in the file: pages, indexes, checks and references; empty when it is sound."""
        try:
            damage = [str(text) for (text,) in self.query("PRAGMA integrity_check") if text != "ok"]
            orphans = self.query("PRAGMA foreign_key_check")
        except UpstreamError as error:
            damage, orphans = [error.message], []
        damage += [f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}" for row in orphans]
        fix = "stop, keep the file as evidence and restore the last good copy"
        return tuple(Problem(str(self.path), "database_corrupt", text, fix) for text in damage)

    def scrub(self) -> None:
        """Drop old copies of erased values from the write-ahead log, as far as readers at work allow."""
        with self._lock:
            if not self._depth:
                self.query("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the connection; what was committed stays."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, sql: str, params: Params) -> sqlite3.Cursor:
        if self._depth and not self._connection.in_transaction:
            # After a full disk SQLite has undone the whole transaction; a later write must not land alone.
            raise UpstreamError(
                f"{self.path}: the transaction was already undone", code="transaction_undone", fix="retry all of it"
            )
        with _clean_errors(self.path):
            return self._connection.execute(sql, params)


def _make_file(path: Path, create: bool) -> None:
    if path.exists():
        return
    if not create:
        raise InvalidError(
            f"there is no database at {path}", code="database_missing", fix="give the home folder with --home"
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


@contextmanager
def _clean_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise _explained(error, path) from error
    except OverflowError as error:
        raise _too_large(path, str(error)) from error
    except OSError as error:
        raise UpstreamError(
            f"{path}: {error.strerror or error}", code="database_unopenable", fix="check the path and its permissions"
        ) from error


def _too_large(path: Path, detail: str) -> InvalidError:
    return InvalidError(
        f"{path}: a number does not fit in 64 bits ({detail})",
        code="amount_out_of_range",
        fix=f"keep amounts and their sums within {INT64_MAX} nano units",
    )


def _explained(error: sqlite3.Error, path: Path) -> HeadwaterError:
    name: str = getattr(error, "sqlite_errorname", "") or ""
    text = f"{path}: {error}"
    if name.startswith("SQLITE_CONSTRAINT"):
        kind = name.removeprefix("SQLITE_CONSTRAINT_").lower()
        return ConstraintError(str(error), kind="unique" if kind in ("primarykey", "rowid") else kind)
    if name == "SQLITE_FULL":
        return UpstreamError(text, code="disk_full", fix="free some space; nothing of this transaction was written")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return UpstreamError(
            text, code="database_locked", fix="another process is writing; retry, or stop the other process"
        )
    if name.startswith("SQLITE_CORRUPT"):
        return UpstreamError(text, code="database_corrupt", fix="keep the file as evidence; restore the last good copy")
    if name == "SQLITE_NOTADB":
        return InvalidError(text, code="not_a_database", fix="give a file that headwater made, or move this one away")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY", "SQLITE_AUTH")):
        return UpstreamError(text, code="database_unopenable", fix="check the path and its permissions")
    if name.startswith("SQLITE_IOERR"):
        return UpstreamError(text, code="disk_failed", fix="check the disk; nothing of this transaction was written")
    if "overflow" in str(error):
        return _too_large(path, str(error))
    return InvariantError(f"{text} [{name or type(error).__name__}]", code="database_misused")
