"""Clients as people use them, against a real gateway: every client, every case that it has.

`make test-clients` runs these; the first run installs the clients (see `conftest`).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from toy.desk import Desk

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.model]

PYTHON = ("openai_python", "langchain_openai", "llama_index", "pydantic_ai", "llm")
NODE = ("openai_node", "ai_sdk_compatible", "ai_sdk_openai")
NO_RECEIPT = ("pydantic_ai",)  # it shows neither headers nor fields that it does not know
NO_USAGE = ("llama_index",)  # it does not ask for the usage of a stream
RUN_S = 120


@pytest.fixture(scope="session")
def answers() -> dict[str, dict[str, Any]]:
    """What each client's cases gave; a client is run once."""
    return {}


@pytest.fixture(params=[*PYTHON, *NODE])
def client(
    request: pytest.FixtureRequest, gateway: Desk, answers: dict[str, dict[str, Any]], tmp_path: Path
) -> tuple[str, dict[str, Any]]:
    """A client's name and what its cases gave."""
    name: str = request.param
    if name not in answers:
        url = gateway.url + "/v1"
        if name in PYTHON:
            interpreter = request.getfixturevalue("python")
            script = Path(__file__).parent / "clients.py"
            command = [str(interpreter), str(script), name, url, gateway.secret, "toy", str(tmp_path)]
        else:
            command = ["node", str(request.getfixturevalue("node")), name, url, gateway.secret, "toy"]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, env=environment)
        assert done.returncode == 0, done.stderr[-2_000:]
        answers[name] = json.loads(done.stdout.strip().splitlines()[-1])
    return name, answers[name]


def test_a_plain_answer_and_a_stream_say_the_same(client: tuple[str, dict[str, Any]]):
    """The stream comes in pieces, and with the usage where the client asks for it."""
    name, found = client

    assert isinstance(found["stream"], dict), found["stream"]
    assert found["plain"] == found["stream"]["text"] != ""
    assert found["stream"]["pieces"] > 3
    assert name in NO_USAGE or found["stream"]["usage"] == 12


def test_a_tool_call_of_an_upstream_arrives_whole(client: tuple[str, dict[str, Any]]):
    """Its name, and arguments that are JSON."""
    _, found = client

    assert isinstance(found["tool"], dict), found["tool"]
    assert (found["tool"]["name"], found["tool"]["arguments"]) == ("gauge", {"station": "Upper Fall"})


def test_a_tool_that_the_model_in_process_has_to_call_is_called(client: tuple[str, dict[str, Any]]):
    """Whole and streamed, on chat and on responses, as far as the client can ask for it."""
    _, found = client
    calls = {case: found[case] for case in ("called", "called_stream", "called_response") if case in found}

    for case, call in calls.items():
        assert isinstance(call, dict), (case, call)
        assert call["name"] == "level"
        assert call["arguments"]["station"] in ("Upper Fall", "Lower Fall")
    if "content" in calls.get("called", {}):
        assert (calls["called"]["reason"], calls["called"]["content"]) == ("tool_calls", None)


def test_an_error_is_one_that_the_client_understands(client: tuple[str, dict[str, Any]]):
    """Status and code of OpenAI's envelope."""
    _, found = client

    assert isinstance(found["failure"], dict), found["failure"]
    assert (found["failure"]["status"], found["failure"]["code"]) == (404, "model_not_found")
    assert found["failure"].get("request", "req_").startswith("req_")


def test_the_receipt_can_be_read_where_the_client_allows_it(client: tuple[str, dict[str, Any]]):
    """From the header, or from our object in the answer."""
    name, found = client

    assert name in NO_RECEIPT or found["receipt"] is True


def test_what_only_some_clients_have_works_too(client: tuple[str, dict[str, Any]]):
    """Responses, sources, schemas and log-probabilities."""
    name, found = client
    more = {
        case: found[case] for case in ("responses", "sources", "structured", "logprobs", "completion") if case in found
    }

    for case, value in more.items():
        assert not str(value).startswith("error:"), (name, case, value)
    if "responses" in more:
        assert more["responses"]["text"]
        assert more["responses"]["usage"] in (12, 16)
    if "sources" in more:
        assert set(more["sources"]) == {"document"}
    if "structured" in more:
        assert more["structured"]["where"] in ("hills", "sea")
    if "logprobs" in more:
        assert more["logprobs"] == [2, 2, 2]


def test_every_call_was_paid_and_the_books_are_clean(gateway: Desk, answers: dict[str, dict[str, Any]]):
    """Nothing is left reserved after all of them."""
    if not answers:
        pytest.skip("no client could be installed")
    gateway.settled()
    assert gateway.app.relays is not None
    gateway.app.relays.meter.settle_books()

    assert gateway.toy.calls.check() == ()
    assert gateway.toy.spent(gateway.key) > 0
