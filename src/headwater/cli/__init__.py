"""The command line: `headwater NOUN VERB`, `--json` everywhere, exit status 0 done, 1 refused or problems, 2 wrong usage."""

from headwater.cli.main import main

__all__ = ["main"]
