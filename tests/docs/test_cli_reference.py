"""docs/cli.md is what the program says of itself; HEADWATER_WRITE_DOCS=1 writes it anew."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

from cyclopts import App
from rich.console import Console

from headwater.cli.main import build_app

DOCS = Path(__file__).parents[2] / "docs"
HEADER = """# Commands

`headwater NOUN VERB`. Exit status: 0 done, 1 refused or problems found, 2 wrong usage. With `--json` a command prints
one JSON document; amounts in it are nano units as decimal strings. Settings come from `headwater.toml`, then
`HEADWATER_*`, then flags (`headwater settings show`). This page is written from the program and held to it by a test.
"""


def _help(arguments: list[str]) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=100, color_system=None, force_terminal=False, legacy_windows=False)
    with contextlib.redirect_stdout(stream):
        build_app()([*arguments, "--help"], console=console, exit_on_error=False, result_action="return_value")
    return re.sub(r" +$", "", stream.getvalue(), flags=re.MULTILINE).strip()


def _commands() -> list[list[str]]:
    """Every command that has none below it, in order of name."""

    def below(app: App, path: list[str]) -> list[list[str]]:
        names = sorted(name for name in app if not name.startswith("-"))
        return [leaf for name in names for leaf in below(app[name], [*path, name])] or [path]

    return below(build_app(), [])


def reference() -> str:
    """The whole page."""
    pages = [f"## headwater {' '.join(command)}\n\n```text\n{_help(command)}\n```\n" for command in _commands()]
    return "\n".join([HEADER, *pages])


def test_the_command_reference_says_what_the_program_says():
    """Every command, with its help as it is printed."""
    page = DOCS / "cli.md"
    if os.environ.get("HEADWATER_WRITE_DOCS"):
        page.write_text(reference(), "utf-8")

    assert page.read_text("utf-8") == reference()


def test_every_command_has_help_in_words():
    """A command without a sentence of its own is not finished."""
    for command in _commands():
        text = _help(command)

        assert len(text.splitlines()) > 3, command
        assert "Usage:" in text
