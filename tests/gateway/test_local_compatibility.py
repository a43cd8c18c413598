"""OpenAI's other routes and fields on the model in process, with OpenAI's own client."""

from __future__ import annotations

import base64
import json
import math
import struct
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from headwater.flow import EmbeddingModel
from headwater.gateway import create_app, serving
from headwater.splits import Prices
from toy.desk import Desk, open_desk

ASK: Any = [{"role": "user", "content": "hello"}]
VECTORS = {"one": (3.0, 4.0, 0.0, 0.0), "two": (0.0, 0.0, 0.6, 0.8)}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway with the toy model and an embedding model."""
    with open_desk(tmp_path_factory.mktemp("home")) as running:
        flow = running.toy.flow
        embedding = EmbeddingModel(
            name="toy-vectors",
            digest="sha256:" + "1" * 64,
            dimensions=4,
            prices=Prices(1_000, 10, 0),
            tokenize=lambda text: text.encode(),
            embed=lambda texts: [VECTORS.get(text, (1.0, 0.0, 0.0, 0.0)) for text in texts],
        )
        flow.parts = replace(flow.parts, others={"toy-vectors": embedding})
        app = create_app(flow, running.toy.keys)
        with serving(app) as url:
            yield replace(running, app=app, url=url)


def spent_by(desk: Desk, call: str) -> int:
    """What a call was charged, once it has its receipt."""
    desk.settled()
    found = desk.get(f"/v1/receipts/{call}")
    assert found["status"] == "final"
    return int(found["receipt"]["price"])


def test_several_answers_come_apart_with_one_bill(desk: Desk):
    """Each has its number and its finish reason; the prompt is charged once; the same seed gives the same answers."""
    asked: Any = {"model": "toy", "messages": ASK, "n": 3, "temperature": 1, "seed": 5, "max_tokens": 8}
    plain = desk.client().chat.completions.create(**asked)
    chunks = list(desk.client().chat.completions.create(**asked, stream=True))
    said: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] = said.get(choice.index, "") + (choice.delta.content or "")

    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in plain.choices}) == 3
    assert said == {choice.index: choice.message.content for choice in plain.choices}
    assert plain.usage.completion_tokens == 24
    finishes = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert finishes == ["length"] * 3
    assert spent_by(desk, plain.headwater["receipt"]) == 2_000_000 + plain.usage.prompt_tokens * 4_000 + 24 * 100_000


def test_several_answers_are_one_account(desk: Desk):
    """Its tokens are those of all answers, and its bits add up."""
    asked: Any = {"model": "toy-grounded", "messages": ASK, "n": 2, "max_tokens": 8}
    answer = desk.client().chat.completions.create(**asked)
    desk.settled()
    account = desk.get(f"/v1/receipts/{answer.headwater['receipt']}")["receipt"]["attribution"]

    assert account["tokens"] == 16
    shares = [s for s in account["shares"] if s["channel"] != "reproduced"]
    assert account["base_microbits"] + sum(s["microbits"] for s in shares) == account["total_microbits"]
    assert sum(s["weight_ppb"] for s in account["shares"]) + account["residual_ppb"] == 10**9


@pytest.mark.parametrize("stream", [False, True])
def test_completions_go_on_with_a_text(desk: Desk, stream: bool):
    """No template, no role; the usage only where it is asked for."""
    client = desk.client()
    prompt = "<|im_start|>user\nhello<|im_end|>"  # the toy model looks for its question there
    if not stream:
        answer = client.completions.create(model="toy", prompt=prompt, max_tokens=9)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("You said:", "length")
        assert answer.usage.completion_tokens == 9  # type: ignore[union-attr]
        return
    events = list(
        client.completions.create(
            model="toy", prompt=[prompt], max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(e.choices[0].text for e in events if e.choices) == "You said:"
    assert events[-1].usage.total_tokens == events[-1].usage.prompt_tokens + 9  # type: ignore[union-attr]
    assert [e.choices[0].finish_reason for e in events if e.choices][-1] == "length"


def test_a_response_has_its_output_and_usage(desk: Desk):
    """Instructions come first; the id names the call."""
    answer = desk.client().responses.create(
        model="toy", input="hello", instructions="Be brief.", max_output_tokens=9, metadata={"a": "b"}
    )

    assert answer.output_text == "You said:"
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")  # type: ignore[union-attr]
    assert answer.usage.output_tokens == 9  # type: ignore[union-attr]
    assert answer.metadata == {"a": "b"}
    assert answer.headwater["receipt"] == "call_" + answer.id.removeprefix("resp_")  # type: ignore[attr-defined]


def test_a_streamed_response_tells_its_whole_life_in_order(desk: Desk):
    """Every event has a number one above the last; the last has the whole response and the bill."""
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    with desk.client().responses.create(model="toy", input=items, max_output_tokens=9, stream=True) as stream:
        events = list(stream)
    kinds = [event.type for event in events]

    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == events[-1].response.output_text == "You said:"  # type: ignore[union-attr]
    assert events[-1].response.headwater["price"]  # type: ignore[union-attr]


def test_vectors_come_as_numbers_and_as_base64_and_are_charged(desk: Desk):
    """OpenAI's client asks for base64 by itself; fewer dimensions are of length one again."""
    answer = desk.client().embeddings.create(model="toy-vectors", input=["one", "two"])
    with desk.post({"model": "toy-vectors", "input": "one", "dimensions": 2}, path="/v1/embeddings") as response:
        call, short = response.headers["headwater-receipt"], json.load(response)
    raw = desk.post({"model": "toy-vectors", "input": "two", "encoding_format": "base64"}, path="/v1/embeddings").read()

    assert [tuple(row.embedding) for row in answer.data] == [VECTORS["one"], pytest.approx(VECTORS["two"])]
    assert short["data"][0]["embedding"] == [0.6, 0.8]
    assert math.isclose(sum(v * v for v in short["data"][0]["embedding"]), 1.0)
    packed = base64.b64decode(json.loads(raw)["data"][0]["embedding"])
    assert struct.unpack("<4f", packed) == pytest.approx(VECTORS["two"])
    assert short["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert spent_by(desk, call) == 1_000 + 3 * 10


def test_vectors_repeat_under_an_idempotency_key_at_one_price(desk: Desk):
    """As every paid call."""
    before = desk.toy.spent(desk.key)
    first, second = (
        desk.post({"model": "toy-vectors", "input": "one"}, {"Idempotency-Key": "v"}, "/v1/embeddings").read()
        for _ in range(2)
    )

    assert json.loads(first)["data"] == json.loads(second)["data"]
    assert desk.toy.spent(desk.key) - before == 1_030


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_repeated_request_is_answered_alike_on_every_route(desk: Desk, path: str, stream: bool):
    """Several answers too; pieces may be cut otherwise, what they say is the same."""
    text: dict[str, Any] = {
        "/v1/chat/completions": {"messages": ASK, "n": 2},
        "/v1/completions": {"prompt": "<|im_start|>user\nhi<|im_end|>", "n": 2},
        "/v1/responses": {"input": "hello"},
    }[path]
    limit = "max_output_tokens" if path.endswith("responses") else "max_tokens"
    body = {"model": "toy", **text, limit: 12, "stream": stream}
    first = desk.post(body, {"Idempotency-Key": f"r-{path}-{stream}"}, path).read()
    desk.settled()
    second = desk.post(body, {"Idempotency-Key": f"r-{path}-{stream}"}, path).read()

    def said(raw: bytes) -> Any:
        if not stream:
            found = json.loads(raw)
            found["headwater"].pop("status")
            return found
        events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
        texts = [c.get("delta", {}).get("content") or c.get("text") or "" for e in events for c in e.get("choices", ())]
        deltas = [e["delta"] for e in events if e.get("type") == "response.output_text.delta"]
        return "".join(texts), "".join(deltas), events[-1].get("finish_reason")

    assert said(first) == said(second)


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/v1/completions", {"prompt": ["a", "b"]}, "unsupported_parameter", "prompt"),
        ("/v1/completions", {"prompt": [1, 2]}, "unsupported_parameter", "prompt"),
        ("/v1/completions", {}, "invalid_value", "prompt"),
        ("/v1/completions", {"prompt": "x", "echo": True}, "unsupported_parameter", "echo"),
        ("/v1/completions", {"prompt": "x", "messages": []}, "unknown_parameter", "messages"),
        ("/v1/responses", {}, "invalid_value", "input"),
        ("/v1/responses", {"input": "x", "previous_response_id": "r"}, "unsupported_parameter", "previous_response_id"),
        ("/v1/responses", {"input": "x", "tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
        ("/v1/responses", {"input": [{"type": "reasoning"}]}, "unsupported_parameter", "input[0].type"),
        ("/v1/responses", {"input": "x", "prompt": {"id": "pmpt_1"}}, "unsupported_parameter", "prompt"),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema"}}}, "invalid_value", None),
        ("/v1/embeddings", {"input": "x"}, "model_not_found", None),
        ("/v1/embeddings", {"model": "toy-vectors"}, "invalid_value", "input"),
        ("/v1/embeddings", {"model": "toy-vectors", "input": [[1, 2]]}, "unsupported_parameter", "input"),
        ("/v1/embeddings", {"model": "toy-vectors", "input": ["x"] * 2_049}, "invalid_value", "input"),
        ("/v1/embeddings", {"model": "toy-vectors", "input": "x", "dimensions": 5}, "invalid_value", "dimensions"),
        ("/v1/chat/completions", {"model": "toy-vectors", "messages": ASK}, "model_not_found", None),
    ],
)
def test_what_a_route_cannot_do_is_refused_by_name(
    desk: Desk, path: str, body: dict[str, Any], code: str, param: str | None
):
    """OpenAI's envelope, and nothing is charged."""
    before = desk.toy.spent(desk.key)
    with pytest.raises(urllib.error.HTTPError) as refused:
        desk.post({"model": "toy", **body}, path=path)
    error = json.load(refused.value)["error"]

    assert error["code"] == code
    assert param is None or error["param"] == param
    assert (desk.toy.spent(desk.key), desk.toy.reserved(desk.key)) == (before, 0)


def test_a_caller_who_leaves_between_two_answers_pays_for_what_was_given(tmp_path: Path):
    """Whole answers and the one that was cut."""
    with open_desk(tmp_path / "home") as desk:
        slow = [{"role": "user", "content": "[delay=0.01]hi"}]
        body = {"model": "toy", "messages": slow, "n": 3, "max_tokens": 20, "stream": True}
        with desk.post(body) as response:
            call = response.headers["headwater-receipt"]
            while b'"index":1' not in response.readline():
                pass
        desk.settled()
        usage = desk.get(f"/v1/receipts/{call}")["receipt"]["usage"]

        assert 20 <= usage["completion_tokens"] < 60


def test_models_say_what_embeddings_cost(desk: Desk):
    """Beside the others."""
    listed = {model.id: model for model in desk.client().models.list()}

    assert listed["toy-vectors"].headwater["dimensions"] == 4  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        desk.client().models.retrieve("nothing")
