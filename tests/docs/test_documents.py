"""What the documents say to type is something the program takes, and what they point at exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.cli.main import build_app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "contracts" / "README.md"]
BLOCK = re.compile(r"```(?:sh|text)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def _commands() -> list[tuple[str, str]]:
    """(page, command line) of every `headwater …` line in a code block of the documents, help texts left out."""
    found = []
    for page in PAGES:
        if page.name == "cli.md":
            continue
        for block in BLOCK.findall(page.read_text("utf-8")):
            for line in block.splitlines():
                command = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
                if command.startswith("headwater ") and "NOUN" not in command:
                    found.append((page.name, command))
    return found


@pytest.mark.parametrize(("page", "line"), _commands())
def test_every_documented_command_is_one_that_the_program_takes(page, line):
    """Names, verbs and options are those of the program; values are only shapes."""
    tokens = [token for token in shlex.split(line, comments=True) if token not in ("…", "...")][1:]
    if "--help" in tokens or "--version" in tokens:
        return
    build_app().parse_args(tokens, print_error=False, exit_on_error=False)


def test_documents_name_commands_at_all():
    """The test above has something to look at."""
    assert len(_commands()) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    """Relative links exist in the repository."""
    for target in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_every_make_target_that_the_documents_name_exists():
    """`make demo`, `make test` and the others."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)`", page.read_text("utf-8"))}

    assert named
    assert named <= targets


def test_own_material_goes_in_as_the_readme_says(tmp_path):
    """The README's second way in, as processes: a folder is registered, a key made and given credit."""
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "river.md").write_text("# Rivers\n\nA river begins at its headwater and ends in the sea.\n")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "headwater", *arguments, "--home", "home"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout

    added = run("contribution", "add", "notes/", "--owner", "Your name", "--license", "CC-BY-4.0", "--use", "ground")
    key = re.search(r"key_[0-9a-f]{32}", run("key", "create", "my application"))
    assert key is not None
    first = run("key", "deposit", key[0], "5.00", "--reference", "invoice 1")
    again = run("key", "deposit", key[0], "5.00", "--reference", "invoice 1")

    assert "1" in added
    assert "credit 5.0000" in first
    assert "was booked before" in again
    assert "credit 5.0000" in again
    assert "everything adds up" in run("ledger", "check")
