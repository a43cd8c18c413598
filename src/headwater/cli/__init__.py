"""The command line: `headwater NOUN VERB`, `--json` everywhere.

Exit status: 0 done, 1 refused or problems found, 2 wrong usage.
"""

from headwater.cli.main import main

__all__ = ["main"]
