"""`headwater mcp`: a server of the Model Context Protocol on standard input and output, over one home."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys

from headwater.cli.home import Home
from headwater.cli.options import HomeOption, outcome, settings
from headwater.core.errors import MissingError

KEY_VARIABLE = "HEADWATER_KEY"


def mcp(*, home: HomeOption = None) -> int:
    """Serve tools for assistants on standard input and output: find, explain, statement, quote, verify.

    The environment's HEADWATER_KEY says whose receipts and statement may be read; without it those are refused.
    """
    with outcome(False) as result:
        if importlib.util.find_spec("mcp") is None:
            raise MissingError(
                "the mcp package is not installed", code="mcp_missing", fix="pip install 'headwater[mcp]'"
            )
        from headwater.cli.mcp_server import server
        from headwater.cli.mcp_tools import Tools

        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True)  # standard output is the protocol's
        with Home(settings(home), create=False) as opened:
            server(Tools(opened, os.environ.get(KEY_VARIABLE, "").strip())).run("stdio")
    return result.status
