"""A home's records from where they are to somewhere else: file to PostgreSQL, back, or to another schema or server.

What tables there are is read from the file that is left, or made again from the stores' own steps where a schema is
left (`home_steps`). They are carried in one transaction of the target (`carrying`): definitions, rows, and then every
row is read back from both and compared, and the books are checked. Only when all is equal and sound do the records
count where they are now, by one change of the folder's mark; then what was before is put aside under another name.

Nobody writes what is left meanwhile: its write lock is held from before the first row until it is put aside. What is on
its way is noted in the folder first, so that a move that was cut off is known: one that had not come to the mark is
cleared away by the next and begins anew, one that had come to it is ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from headwater.core.errors import ConflictError, HeadwaterError, InvariantError, Problem, UpstreamError
from headwater.store.carrying import MIGRATIONS, Progress, Table, carry, compare, tables_of
from headwater.store.database import Database, Sql
from headwater.store.database_address import PostgresAddress, parse_address
from headwater.store.home_database import (
    FILE,
    MARK,
    MODULE,
    OWN_MODULES,
    STEPS,
    missing,
    new_mark,
    new_number,
    number_of,
    open_home_database,
    open_postgres,
    read_mark,
    remove_mark,
    sync_folder,
    write_durably,
    write_mark,
)
from headwater.store.home_steps import empty_copy
from headwater.store.postgres import PostgresDatabase

NOTE: Final = "moving.json"
_DRAFT: Final = "headwater.moving.db"
_JOURNALS: Final = ("", "-wal", "-shm", "-journal")

Check = Callable[[Sql], Sequence[Problem]]


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved."""

    tables: int
    rows: int
    place: str  # where the records are now
    before: str  # what they were read from, put aside; as it was where it could not be


@dataclass(frozen=True, slots=True)
class _Note:
    """What is on its way; an address without its secrets, or empty for the file."""

    source: str
    target: str
    before: str  # the number of the schema that is left
    number: str  # the number of the schema that is made


def move_home(
    folder: Path,
    to: PostgresAddress | None,
    *,
    setting: str = "",
    check: Check,
    progress: Progress = lambda *_: None,
) -> Moved:
    """Move the records of the home in `folder` to the schema at `to`, or with None to the file in the folder.

    To be called while nothing serves the home. Until what was put aside is deleted, nothing is lost.

    Args:
        setting: the address of the schema where the records are, if they are in one.
        check: what does not hold in the records, asked of the target before it counts.

    Raises:
        MissingError: ``home_missing``.
        ConflictError: ``home_moved_already``; ``home_target_taken``, there is something already;
            ``home_database_differs``, `setting` is not where the records are; nothing was changed.
        InvariantError: ``move_differs``, what arrived is not what left; ``move_unsound``, `check` found something;
            nothing was changed.
        UpstreamError: either database failed; nothing was changed.
    """
    ended = _end_earlier(folder, setting)
    mark = read_mark(folder)
    place = str(folder / FILE) if to is None else to.shown
    if (mark is None) if to is None else (mark is not None and mark["shown"] == to.shown):
        if ended is not None:
            with _in_force(folder, to) as database:
                found = tuple(_tables(database))
            return Moved(len(found), sum(table.rows for table in found), place, ended)
        if to is None and not (folder / FILE).exists():
            raise missing(folder)
        raise _already(folder, place)
    if mark is None and not (folder / FILE).exists():
        raise missing(folder)
    note = _Note("" if mark is None else mark["shown"], to.shown if to else "", mark["home"] if mark else "", "")
    with open_home_database(folder, setting if mark else "", create=False) as source:
        if to is None:
            return _to_file(folder, source, note, check, progress)
        return _to_schema(folder, source, to, note, check, progress)


def _to_schema(folder: Path, source: Sql, to: PostgresAddress, note: _Note, check: Check, progress: Progress) -> Moved:
    left = _Left(folder, source)
    with open_postgres(to, folder) as target:
        number = number_of(target)
        if number and number == note.before:
            raise _already(folder, to.shown)
        earlier = _read_note(folder)
        cut_off = earlier is not None and earlier.number == number != ""
        if not cut_off:
            _refuse_taken(target, to)
        # The same number again, so that whenever this is cut off the schema is known by it.
        note = _Note(note.source, note.target, note.before, number if cut_off else new_number())
        with left.closing():
            with target.transaction():
                if cut_off:
                    _clear(target)
                _write_note(folder, note)
                tables = _carried(source, target, check, progress)
                target.migrate(MODULE, STEPS)
                new_mark(target, note.number)
            left.put_aside()
            write_mark(folder, note.number, to)  # from here on the schema counts
            left.counts = False
    return _done(folder, tables, to.shown, left.name())


def _to_file(folder: Path, source: Sql, note: _Note, check: Check, progress: Progress) -> Moved:
    file, draft = folder / FILE, folder / _DRAFT
    if file.exists():
        raise ConflictError(
            f"{folder} holds a {FILE} already, which is not where its records are",
            code="home_target_taken",
            fix="see what it is, and move it away",
        )
    _remove(draft)
    left = _Left(folder, source)
    _write_note(folder, note)
    try:
        with left.closing():
            with Database(draft) as target:
                with target.transaction():
                    target.query("PRAGMA defer_foreign_keys = ON")
                    tables = _carried(source, target, check, progress)
                target.query("PRAGMA wal_checkpoint(TRUNCATE)")
            left.put_aside()
            os.rename(draft, file)
            sync_folder(folder)
            remove_mark(folder)  # from here on the file counts
            left.counts = False
    finally:
        if left.counts and (folder / MARK).exists():  # the mark still says that records are elsewhere
            _remove(draft)
            _remove(file)
            (folder / NOTE).unlink()
    return _done(folder, tables, str(file), left.name())


def _carried(source: Sql, target: Sql, check: Check, progress: Progress) -> tuple[Table, ...]:
    """Everything of `source`, in `target`: compared and found sound.

    Raises:
        InvariantError: ``move_differs``, ``move_unsound``.
    """
    with _defining(source) as definitions:
        tables = tuple(tables_of(definitions, source, OWN_MODULES))
        translated = isinstance(target, PostgresDatabase)
        carry(definitions, source, target, tables, translated=translated, progress=progress)
    compare(source, target, tables, progress)
    problems = check(target)
    if problems:
        raise InvariantError(
            f"{len(problems)} problems, the first: {problems[0].where}: {problems[0].message}",
            code="move_unsound",
            fix="see `headwater ledger check`; the home is as it was",
        )
    return tables


@contextmanager
def _defining(source: Sql) -> Iterator[Sql]:
    """A SQLite file that has the tables of `source`: itself, or an empty one."""
    with empty_copy(source) if isinstance(source, PostgresDatabase) else nullcontext(source) as definitions:
        yield definitions


def _tables(source: Sql) -> Iterator[Table]:
    with _defining(source) as definitions:
        yield from tables_of(definitions, source, OWN_MODULES)


class _Left:
    """What the records are read from, until it is put aside; mutable, and it does not leave this module."""

    def __init__(self, folder: Path, source: Sql) -> None:
        self._folder, self._source = folder, source
        self.counts = True  # it is where the home's records are
        self._schema = ""

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Its write lock is held; what fails once it does not count any more only leaves it under its old name."""
        try:
            with self._source.transaction():
                yield
        except HeadwaterError:
            self._schema = ""
            if self.counts:
                raise

    def put_aside(self) -> None:
        """Rename a schema as soon as the transaction ends, so that nobody writes there who still has its name."""
        if isinstance(self._source, PostgresDatabase):
            self._schema = put_schema_aside(self._source)

    def name(self) -> str:
        """What it is called now; a file is given its other name."""
        if isinstance(self._source, PostgresDatabase):
            return f"schema {self._schema or self._source.schema}"
        self._source.query("PRAGMA wal_checkpoint(TRUNCATE)")
        self._source.close()
        return put_file_aside(self._folder)


def put_schema_aside(source: PostgresDatabase) -> str:
    """Rename a schema inside the transaction that is open; its new name, or nothing where the role may not."""
    taken = {name for (name,) in source.query("SELECT nspname FROM pg_namespace")}
    name = next(
        name
        for number in range(1, len(taken) + 2)
        if (name := f"{source.schema[:55]}_moved{number if number > 1 else ''}") not in taken
    )
    try:
        with source.transaction():
            source.execute(f"ALTER SCHEMA {source.schema} RENAME TO {name}")
    except UpstreamError as error:
        if error.code != "database_forbidden":
            raise
        return ""
    return name


def put_file_aside(folder: Path) -> str:
    """Rename the file of records that are elsewhere now; gives its new path."""
    aside = next(
        aside
        for number in range(1, 10_000)
        if not (aside := folder / f"headwater.moved{number if number > 1 else ''}.db").exists()
    )
    os.rename(folder / FILE, aside)
    for ending in _JOURNALS[1:]:
        (folder / f"{FILE}{ending}").unlink(missing_ok=True)
    sync_folder(folder)
    return str(aside)


def _done(folder: Path, tables: Sequence[Table], place: str, before: str) -> Moved:
    (folder / NOTE).unlink(missing_ok=True)
    return Moved(len(tables), sum(table.rows for table in tables), place, before)


# What a move left that was cut off


def _end_earlier(folder: Path, setting: str) -> str | None:
    """End a move that was cut off after its records counted: what it left is put aside, and named; else None.

    Of one that was cut off before that, a file is removed here; a schema is cleared when it is moved to again.
    """
    note, mark = _read_note(folder), read_mark(folder)
    if note is None:
        return None
    if (mark is None) if not note.target else (mark is not None and mark["home"] == note.number):
        if not note.source:
            before = put_file_aside(folder) if (folder / FILE).exists() else ""
        else:
            before = _end_schema(folder, note, setting)
        (folder / NOTE).unlink()
        return before
    if not note.target:
        _remove(folder / _DRAFT)
        _remove(
            folder / FILE
        )  # the mark says that records are elsewhere: this was put there, and did not come to count
        (folder / NOTE).unlink()
    return None


def _end_schema(folder: Path, note: _Note, setting: str) -> str:
    """Put aside the schema that was left; where it cannot be reached it stays, under its name and of no use."""
    with suppress(HeadwaterError):
        address = parse_address(setting)
        if address.shown == note.source:
            with open_postgres(address, folder, create=False) as source, source.transaction():
                if number_of(source) == note.before:
                    return f"schema {put_schema_aside(source) or source.schema}"
    return note.source


def _clear(target: PostgresDatabase) -> None:
    """Drop what a move that was cut off had made."""
    for (name,) in target.query(
        "SELECT tablename FROM pg_tables WHERE schemaname = ? AND tablename <> ?", (target.schema, MIGRATIONS)
    ):
        target.execute(f'DROP TABLE "{name}" CASCADE')
    for (name,) in target.query(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = (SELECT oid FROM pg_namespace"
        " WHERE nspname = ?) AND (prorettype = 'trigger'::regtype OR proname LIKE ?)",
        (target.schema, r"%\_next"),
    ):
        target.execute(f"DROP FUNCTION {name} CASCADE")
    target.execute("DELETE FROM migrations WHERE module <> ?", (OWN_MODULES[0],))


def _refuse_taken(target: PostgresDatabase, address: PostgresAddress) -> None:
    tables = target.query(
        "SELECT tablename FROM pg_tables WHERE schemaname = ? AND tablename <> ?", (target.schema, MIGRATIONS)
    )
    if tables:
        raise ConflictError(
            f"{address.shown} holds {len(tables)} tables already",
            code="home_target_taken",
            fix="name another `?schema=`, or drop that one if nobody needs it",
        )


def _already(folder: Path, place: str) -> ConflictError:
    return ConflictError(
        f"the records of {folder} are in {place} already", code="home_moved_already", fix="nothing is to do"
    )


@contextmanager
def _in_force(folder: Path, to: PostgresAddress | None) -> Iterator[Sql]:
    with Database(folder / FILE, create=False) if to is None else open_postgres(to, folder, create=False) as database:
        yield database


def _read_note(folder: Path) -> _Note | None:
    try:
        return _Note(**json.loads((folder / NOTE).read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        raise InvariantError(
            f"{folder / NOTE} cannot be read",
            code="move_note_invalid",
            fix=f"see `headwater home show`; when the records are there, delete {NOTE} and what else was left",
        ) from None


def _write_note(folder: Path, note: _Note) -> None:
    write_durably(folder / NOTE, asdict(note))


def _remove(file: Path) -> None:
    for ending in _JOURNALS:
        file.with_name(f"{file.name}{ending}").unlink(missing_ok=True)
