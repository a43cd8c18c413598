"""What commands print: tables for people, JSON for programs, errors with their fix."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from headwater.core.errors import HeadwaterError

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def print_error(error: HeadwaterError, *, as_json: bool) -> None:
    """An error and its fix, on standard error; each on one line, so that a command in it can be copied."""
    if as_json:
        value = {"error": {"code": error.code, "message": error.message, "fix": error.fix}}
        sys.stderr.write(json.dumps(value, ensure_ascii=False) + "\n")
        return
    err.print(f"[bold red]error[/] {_plain(error.message)} [dim]\\[{error.code}][/]", soft_wrap=True)
    if error.fix:
        err.print(f"  [green]fix:[/] {_plain(error.fix)}", soft_wrap=True)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Progress]:
    """Progress bars on standard error that disappear when done; nothing with `quiet`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=quiet, transient=True) as bars:
        yield bars


def brief(detail: str) -> str:
    """A detail with its digests cut short, safe to print."""
    return _plain(re.sub(r"[0-9a-f]{40,}", lambda match: match[0][:10] + "…", detail))


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
