"""`headwater mcp` over standard input and output, with the official client."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from headwater.cli.home import Home
from headwater.flow import CallRequest, Message
from headwater.models.backend import Sampling
from headwater.receipts import Receipt
from headwater.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy.home import open_home

mcp = pytest.importorskip("mcp")
# The client gives its server no environment of ours but this: which engine the tests run on.
ENGINE = {name: os.environ[name] for name in ("PYTHONPATH", "HEADWATER_TEST_URL") if name in os.environ}
TOOLS = {"find", "explain", "statement", "quote", "verify"}


@dataclass(frozen=True)
class Shop:
    """A home with one paid answer, of the first of two keys."""

    path: Path
    call: str
    receipt: Receipt
    ours: str
    theirs: str


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The home; the process that made it is gone."""
    path = tmp_path_factory.mktemp("home")
    with open_home(path) as toy:
        ours, key = toy.key("ours")
        theirs, _ = toy.key("theirs")
        request = CallRequest("toy-grounded", (Message("user", "a river"),), Sampling(40), "sha256:" + "0" * 64)
        opened = toy.flow.open(request, key)
        assert not hasattr(opened, "state")
        list(toy.flow.answer(opened))  # type: ignore[arg-type]
        receipt = toy.flow.attribute(opened.record.call_id)  # type: ignore[union-attr]
        call = receipt.call_id
    with Home(Settings(home=path)):
        pass  # keeps the policy
    return Shop(path, call, receipt, ours, theirs)


def asked(shop: Shop, calls: list[tuple[str, dict[str, Any]]], key: str = "") -> list[Any]:
    """What the tools said, each asked over the pipe of one process."""
    server = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "headwater", "mcp", "--home", str(shop.path)],
        env={**ENGINE, **({"HEADWATER_KEY": key} if key else {})},
    )

    async def talk() -> list[Any]:
        async with mcp.Client(mcp.stdio_client(server), read_timeout_seconds=60) as client:
            listed = await client.list_tools()
            assert {tool.name for tool in listed.tools} == TOOLS
            assert all(tool.annotations.read_only_hint for tool in listed.tools)
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return anyio.run(talk)


def test_the_owner_of_a_key_finds_explains_and_verifies(shop: Shop):
    """A passage comes with its contribution in `_meta`, which the gateway takes as it is."""
    found, explained, stated, quoted, verified = asked(
        shop,
        [
            ("find", {"query": "Where does a river begin, at its headwater?"}),
            ("explain", {"receipt": shop.call}),
            ("statement", {}),
            ("quote", {"model": "smollm2-135m", "prompt_tokens": 500, "answer_tokens": 48}),
            ("verify", {"receipt": shop.receipt.id}),
        ],
        shop.ours,
    )

    marked = [content for content in found.content if content.meta]
    assert marked[0].meta["headwater"]["contribution"].startswith("ctb_")
    assert "headwater" in marked[0].text
    value = explained.structured_content
    assert (value["id"], value["grade"]) == (shop.receipt.id, "A")
    assert {share["kind"] for share in value["shares"]} == {"prompt", "document"}
    assert value["in_words"][0].startswith("The caller paid")
    assert int(stated.structured_content["closing_units"]) == 100 * 10**9 - shop.receipt.price
    assert quoted.structured_content["price"] == "0.008800000"
    assert verified.structured_content["verified"] is True
    assert json.loads(verified.content[0].text) == verified.structured_content


@pytest.mark.parametrize("which", ["theirs", "none"])
def test_another_keys_receipts_do_not_exist(shop: Shop, which: str):
    """Nor has anybody without a key a statement; prices and contributions are for everybody."""
    key = shop.theirs if which == "theirs" else ""
    *refused, quoted, nothing = asked(
        shop,
        [
            ("explain", {"receipt": shop.call}),
            ("verify", {"receipt": shop.receipt.id}),
            ("explain", {"receipt": "call_" + "0" * 32}),
            ("quote", {"model": "smollm2-135m-grounded", "prompt_tokens": 0, "answer_tokens": 0}),
            ("statement", {}),
        ],
        key,
    )
    codes = [one.structured_content["error"]["code"] for one in refused]

    assert all(one.is_error for one in refused)
    assert codes == ["receipt_unknown" if key else "invalid_api_key"] * 3
    assert not quoted.is_error
    if key:
        assert nothing.structured_content["closing_units"] == str(100 * 10**9)
        assert shop.call not in nothing.content[0].text
    else:
        assert nothing.is_error


def test_bad_arguments_are_refused_with_what_to_do(shop: Shop):
    """The server stays up through all of it."""
    answers = asked(
        shop,
        [
            ("find", {"query": " "}),
            ("find", {"query": "x" * 3_000}),
            ("find", {"query": "river", "limit": 10**9}),
            ("quote", {"model": "nothing", "prompt_tokens": 1, "answer_tokens": 1}),
            ("quote", {"model": "smollm2-135m", "prompt_tokens": -1, "answer_tokens": 1}),
            ("verify", {}),
            ("verify", {"bundle": "[" * 100_000}),
            ("find", {"query": "ctb_nothing"}),
            ("statement", {"since": "yesterday"}),
        ],
        shop.ours,
    )

    assert all(one.is_error for one in answers)
    assert all(one.structured_content["error"]["fix"] for one in answers)
