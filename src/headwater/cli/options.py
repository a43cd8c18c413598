"""Options that commands share, and how a command's errors end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from headwater.cli.output import print_error
from headwater.core.errors import HeadwaterError
from headwater.settings import Settings, load

HomeOption = Annotated[
    Path | None, Parameter(name="--home", help="Folder that holds records, keys and indexes [default: .headwater].")
]
JsonOption = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]


def settings(home: Path | None = None, **flags: Any) -> Settings:
    """The settings in force, with flags on top."""
    return load({"home": home, **flags}).settings


def served_at(host: str, port: int) -> str:
    """The address of a server, without a slash at its end; IPv6 stands in brackets.

    >>> served_at("::1", 8484)
    'http://[::1]:8484'
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Outcome:
    """Holds a command's exit status: 0 until something sets it or an error ends the command."""

    def __init__(self) -> None:
        self.status = 0


@contextmanager
def outcome(as_json: bool) -> Iterator[Outcome]:
    """Run a command's body; an error we raise on purpose is printed with its fix and becomes status 1."""
    result = Outcome()
    try:
        yield result
    except HeadwaterError as error:
        print_error(error, as_json=as_json)
        result.status = 1
