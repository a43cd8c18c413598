"""The MCP server over `mcp_tools`, with the official package.

A passage that is found comes as text of its own, marked in `_meta` with the contribution it is from: put into a call
to the gateway as it is, it is a source there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mcp.server import MCPServer
from mcp.types import CallToolResult, TextContent, ToolAnnotations

from headwater import __version__
from headwater.cli.mcp_tools import Tools
from headwater.core.errors import HeadwaterError
from headwater.gateway.marks import FIELD


def server(tools: Tools) -> MCPServer:
    """The protocol's server over `tools`; `run` serves it."""
    found = MCPServer(
        "headwater",
        version=__version__,
        instructions="Who supplied AI answers, in bits, and what they are paid: contributions, receipts, prices.",
        log_level="WARNING",
    )
    reading = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

    def answer(work: Callable[[], dict[str, Any]]) -> CallToolResult:
        """What a tool found, as JSON, then each passage by itself; or why it was refused, and what to do."""
        try:
            value = work()
        except HeadwaterError as error:
            why = {"error": {"code": error.code, "message": error.message, "fix": error.fix}}
            text = TextContent(type="text", text=f"{error.message} [{error.code}]; fix: {error.fix}")
            return CallToolResult(content=[text], structured_content=why, is_error=True)
        marked = [
            TextContent(type="text", text=one["passage"], _meta={FIELD: {"contribution": one["contribution"]}})
            for one in value.get("found", ())
            if "passage" in one
        ]
        text = TextContent(type="text", text=json.dumps(value, ensure_ascii=False))
        return CallToolResult(content=[text, *marked], structured_content=value)

    @found.tool(annotations=reading)
    def find(query: str, limit: int = 5) -> CallToolResult:
        """Passages of registered contributions that answer a question, or one contribution by its ctb_ id."""
        return answer(lambda: tools.find(query, limit))

    @found.tool(annotations=reading)
    def explain(receipt: str) -> CallToolResult:
        """Who supplied an answer that this key paid for, in bits and money; by the id of its call or receipt."""
        return answer(lambda: tools.explain(receipt))

    @found.tool(annotations=reading)
    def statement(since: str = "", until: str = "", limit: int = 100) -> CallToolResult:
        """What moved this key's account, oldest first; instants such as 2026-11-22T14:00:00Z."""
        return answer(lambda: tools.statement(since, until, limit))

    @found.tool(annotations=reading)
    def quote(model: str, prompt_tokens: int, answer_tokens: int) -> CallToolResult:
        """What a call to a model costs if it uses so many tokens."""
        return answer(lambda: tools.quote(model, prompt_tokens, answer_tokens))

    @found.tool(annotations=reading)
    def verify(bundle: str = "", receipt: str = "") -> CallToolResult:
        """Whether a receipt holds: the text of a bundle file that somebody sent, or the id of one of this key's own."""
        return answer(lambda: tools.verify(bundle, receipt))

    return found
