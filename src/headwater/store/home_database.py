"""The database of a home folder, opened where the setting says, and only if it is the one that belongs to the folder.

A folder holds what is no table: keys, the receipt log, policies, indexes. It and its database belong together: receipts
without their ledger, or a ledger without its receipts, are not a home. A SQLite file lies in the folder, so the two
cannot part. For a PostgreSQL schema both are marked with the same number, the schema in the table `home_marks` and
the folder in the file `database.json`, and a folder whose setting points somewhere else is refused instead of being
shown an empty ledger.

Knows nothing of stores: whoever opens one makes its tables.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, MissingError
from headwater.store.database import Database, Sql
from headwater.store.database_address import PostgresAddress, parse_address
from headwater.store.postgres import PostgresDatabase

FILE: Final = "headwater.db"
MARK: Final = "database.json"
MODULE: Final = "home"
STEPS: Final = ("CREATE TABLE home_marks (name TEXT PRIMARY KEY, value TEXT NOT NULL);",)
OWN_MODULES: Final = ("postgres", MODULE)
"""What stands among the migrations of a schema and is of the schema itself, not of the home."""


def open_home_database(folder: Path, setting: str, *, create: bool = True) -> Sql:
    """The database of the home in `folder`.

    Args:
        setting: empty for the SQLite file in the folder, or the address of a PostgreSQL schema.
        create: make what is missing; with false, a folder without a database is refused.

    Raises:
        MissingError: ``home_missing``.
        ConflictError: ``home_database_differs``: folder and database do not belong together.
        InvalidError: ``database_address_invalid``, ``database_missing``.
        UpstreamError: the server cannot be reached.
    """
    mark, file = read_mark(folder), folder / FILE
    if not setting:
        if mark is not None:
            raise _differs(
                f"the records of {folder} are in {mark['shown']}, and the setting `database` names none",
                f"set `database` to that address ({MARK} in the folder says which it is)",
            )
        if not create and not file.exists():
            raise missing(folder)
        return Database(file, create=create)
    address = parse_address(setting)
    if mark is None and file.exists():
        raise _differs(
            f"the records of {folder} are in its file {FILE}, and the setting `database` names {address.shown}",
            "leave the setting empty, or move them there with `headwater home move --to ADDRESS`",
        )
    if mark is None and not create:
        raise missing(folder)
    if create:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = open_postgres(address, folder, create=create and mark is None)
    try:
        belong_together(database, folder, address, mark)
    except HeadwaterError:
        database.close()
        raise
    return database


def open_postgres(address: PostgresAddress, folder: Path, *, create: bool = True) -> PostgresDatabase:
    """The schema at an address, whomever it belongs to."""
    return PostgresDatabase(address.url, schema=address.schema, folder=folder, create=create)


def belong_together(
    database: PostgresDatabase, folder: Path, address: PostgresAddress, mark: dict[str, Any] | None
) -> None:
    """See that schema and folder bear the same mark; both are given one when both are new.

    Raises:
        ConflictError: ``home_database_differs``.
    """
    if mark is None:
        mark = _first(database, folder, address)
    # Only read, so that nobody who opens a home waits for a writer.
    there = number_of(database)
    if there != mark["home"]:
        raise _differs(
            f"{address.shown} is not the database that {folder} was made with, which is {mark['shown']}",
            "set `database` to that one, or restore it there from its backup",
        )
    if mark["shown"] != address.shown:  # moved with its number: the name that people see follows
        write_mark(folder, there, address)


def _first(database: PostgresDatabase, folder: Path, address: PostgresAddress) -> dict[str, Any]:
    """Mark a new folder and a new schema; what the folder says from then on."""
    database.migrate(MODULE, STEPS)
    with database.transaction():
        there, mark = number_of(database), read_mark(folder)
        if mark is not None:  # another process came first
            return mark
        # With nothing in it but a mark it is nobody's yet: whoever made the mark died before the folder had it.
        modules = {module for (module,) in database.query("SELECT DISTINCT module FROM migrations")}
        if not modules <= {*OWN_MODULES}:
            raise _differs(
                f"{address.shown} holds records already, and {folder} is new to it",
                "restore the folder that belongs to them, or name another database or `?schema=`",
            )
        number = there or new_mark(database)
    return write_mark(folder, number, address)


def number_of(database: PostgresDatabase) -> str:
    """The number of the home that a database is marked as; empty for none."""
    if not database.query("SELECT 1 FROM migrations WHERE module = ?", (MODULE,)):
        return ""
    return "".join(value for (value,) in database.query("SELECT value FROM home_marks WHERE name = 'home'"))


def new_number() -> str:
    """A number that no other home has."""
    return os.urandom(16).hex()


def new_mark(database: Sql, number: str = "") -> str:
    """Mark a database as a home's; gives the number that the folder is to be marked with."""
    number = number or new_number()
    database.execute("INSERT INTO home_marks VALUES ('home', ?)", (number,))
    return number


def read_mark(folder: Path) -> dict[str, Any] | None:
    """What the folder says of its database: ``home``, its number, and ``shown``, its address; None for its own file."""
    try:
        mark = json.loads((folder / MARK).read_text("utf-8"))
        if isinstance(mark["home"], str) and isinstance(mark["shown"], str):
            return dict(mark)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InvalidError(
        f"{folder / MARK} cannot be read",
        code="home_mark_invalid",
        fix="restore it from the folder's backup; it says which database the folder belongs to",
    )


def write_mark(folder: Path, number: str, address: PostgresAddress) -> dict[str, Any]:
    """Let the folder say, durably, that its records are at `address`; gives what it says."""
    mark = {"home": number, "shown": address.shown}
    write_durably(folder / MARK, mark)
    return mark


def remove_mark(folder: Path) -> None:
    """Let the folder say, durably, that its records are in its own file."""
    (folder / MARK).unlink(missing_ok=True)
    sync_folder(folder)


def write_durably(path: Path, value: dict[str, str]) -> None:
    """A small JSON file, whole or as it was before, whatever happens."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let what was renamed or removed in a folder be so after a power cut, too."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def missing(folder: Path) -> MissingError:
    """The refusal of a folder that is no home."""
    return MissingError(
        f"there is no headwater home at {folder}",
        code="home_missing",
        fix="give --home, or make one with `headwater demo` or `headwater contribution add`",
    )


def _differs(message: str, fix: str) -> ConflictError:
    return ConflictError(message, code="home_database_differs", fix=fix)
