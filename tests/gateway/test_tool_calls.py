"""Tools that the model in process calls: asked and answered through OpenAI's own client."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from headwater.registry import Ownership, unenrolled
from headwater.registry.intake import Candidate
from toy.desk import Desk, open_desk

STATION = {"type": "object", "properties": {"station": {"enum": ["north", "south"]}}, "required": ["station"]}
NESTED = {
    "type": "object",
    "properties": {"points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 2}},
    "required": ["points"],
    "$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}},
}
FUNCTIONS = [
    {"name": "gauge", "description": "Reads a gauge", "parameters": STATION, "strict": True},
    {"name": "draw", "parameters": NESTED},
    {"name": "now"},
]
TOOLS: Any = [{"type": "function", "function": function} for function in FUNCTIONS]
FLAT: Any = [{"type": "function", **function} for function in FUNCTIONS]
BY_NAME = {function["name"]: function.get("parameters", {}) for function in FUNCTIONS}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One gateway for all."""
    with open_desk(tmp_path_factory.mktemp("home")) as running:
        yield running


def ask(desk: Desk, question: str, **more: Any) -> Any:
    """A chat with tools."""
    asked: Any = {"model": "toy", "messages": [{"role": "user", "content": question}], "tools": TOOLS, **more}
    return desk.client().chat.completions.create(**{"max_tokens": 400, **asked})


def gathered(chunks: Any) -> tuple[str, list[dict[str, str]], list[str]]:
    """The words, the calls and the finish reasons of a stream of one answer."""
    words, calls, reasons = "", [], []
    for chunk in chunks:
        for choice in chunk.choices:
            words += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                if call.id:
                    assert call.index == len(calls)
                    assert (call.type, call.function.arguments) == ("function", "")
                    calls.append({"id": call.id, "name": call.function.name, "arguments": ""})
                else:
                    assert call.function.name is None
                    calls[call.index]["arguments"] += call.function.arguments
            reasons += [choice.finish_reason] if choice.finish_reason else []
    return words, calls, reasons


@pytest.mark.parametrize("name", ["gauge", "draw", "now"])
def test_a_named_function_is_called_with_arguments_of_its_schema(desk: Desk, name: str):
    """Whatever the model would have said; `content` is null and the reason is `tool_calls`."""
    answer = ask(desk, "hello", tool_choice={"type": "function", "function": {"name": name}})
    choice = answer.choices[0]

    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", name)
    jsonschema.validate(json.loads(call.function.arguments), BY_NAME[name])


def test_a_required_call_is_made_and_no_tool_is_called_that_was_not_offered(desk: Desk):
    """Of several tools it is one of them; of allowed tools, one of those."""
    some = ask(desk, "hello", tool_choice="required").choices[0].message.tool_calls
    allowed: Any = {"mode": "required", "tools": [{"type": "function", "function": {"name": "draw"}}]}
    few = ask(desk, "hello", tool_choice={"type": "allowed_tools", "allowed_tools": allowed}).choices[0].message

    assert some[0].function.name in BY_NAME
    assert {call.function.name for call in few.tool_calls} == {"draw"}


def test_the_model_may_answer_in_words_or_call(desk: Desk):
    """With `auto`: words stay words, also those before a call, and the opening of a call is never among them."""
    words, call, both = (ask(desk, question, max_tokens=200) for question in ("hello", "[call]", "hello [call]"))

    assert words.choices[0].message.content.startswith("You said: hello.")
    assert (words.choices[0].message.tool_calls, words.choices[0].finish_reason) == (None, "length")
    assert call.choices[0].message.content is None
    assert [c.function.name for c in call.choices[0].message.tool_calls] == ["gauge"]
    assert both.choices[0].message.content == "You said: hello."
    assert both.choices[0].finish_reason == "tool_calls"


def test_a_stream_tells_name_and_id_first_and_then_the_arguments(desk: Desk):
    """And comes to the same words, calls and reason as the whole answer; the usage is the same too."""
    for question, more in (("hi", {}), ("[call=2]", {}), ("so [call=3]", {}), ("x", {"tool_choice": "required"})):
        whole = ask(desk, question, **more)
        chunks = list(ask(desk, question, **more, stream=True, stream_options={"include_usage": True}))
        words, calls, reasons = gathered(chunks)
        message = whole.choices[0].message

        assert words == (message.content or "")
        assert [(c["name"], c["arguments"]) for c in calls] == [
            (c.function.name, c.function.arguments) for c in message.tool_calls or ()
        ]
        assert len({c["id"] for c in calls}) == len(calls)
        assert reasons == [whole.choices[0].finish_reason]
        assert chunks[-1].usage == whole.usage
        assert chunks[0].choices[0].delta.role == "assistant"


@pytest.mark.parametrize(("several", "count"), [(None, 3), (True, 3), (False, 1)])
def test_several_calls_at_once_only_where_they_may(desk: Desk, several: bool | None, count: int):
    """`parallel_tool_calls: false` allows one; the ids of several are their own."""
    more = {} if several is None else {"parallel_tool_calls": several}
    calls = ask(desk, "[call=3]", **more).choices[0].message.tool_calls

    assert len(calls) == len({call.id for call in calls}) == count


def test_none_shows_the_model_no_tools_and_costs_nothing_for_them(desk: Desk):
    """The prompt is as long as without tools, and a call is words."""
    plain = ask(desk, "[call] hi", tools=None, max_tokens=20)
    none = ask(desk, "[call] hi", tool_choice="none", max_tokens=20)

    assert none.choices[0].message.tool_calls is None
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens


def test_definitions_are_shown_to_the_model_and_are_prompt_tokens(desk: Desk):
    """All of their text; a longer description costs its length."""
    longer = [{"type": "function", "function": {**FUNCTIONS[0], "description": "Reads a gauge" + "x" * 50}}]
    short, long = (ask(desk, "hi", tools=tools, max_tokens=1) for tools in (TOOLS[:1], longer))
    plain = ask(desk, "hi", tools=None, max_tokens=1)

    assert long.usage.prompt_tokens - short.usage.prompt_tokens == 50
    assert short.usage.prompt_tokens - plain.usage.prompt_tokens > len(json.dumps(FUNCTIONS[0]["parameters"]))


def test_a_call_that_is_cut_off_is_not_shown(desk: Desk):
    """Calls before it are; the reason is `length`, and what was generated is charged."""
    whole = ask(desk, "[call=2]")
    cut = whole.usage.completion_tokens - 4
    answer = ask(desk, "[call=2]", max_tokens=cut)
    words, calls, reasons = gathered(ask(desk, "[call=2]", max_tokens=cut, stream=True))

    assert [c.function.name for c in answer.choices[0].message.tool_calls] == ["gauge"]
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", cut)
    assert (words, [c["name"] for c in calls], reasons) == ("", ["gauge"], ["length"])
    early = ask(desk, "[call]", max_tokens=15).choices[0]
    assert (early.message.tool_calls, early.message.content, early.finish_reason) == (None, None, "length")


def test_a_stop_string_cuts_words_and_never_a_call(desk: Desk):
    """It stands in the arguments."""
    forced = ask(desk, "x", stop=["n"], tool_choice="required").choices[0]
    words = ask(desk, "hello north", stop=["n"]).choices[0]

    assert json.loads(forced.message.tool_calls[0].function.arguments) == {"station": "north"}
    assert (words.message.content, words.finish_reason) == ("You said: hello ", "stop")


def test_words_may_have_to_follow_a_schema_beside_tools(desk: Desk):
    """The first bracket decides."""
    place = {"type": "object", "properties": {"where": {"const": "sea"}}, "required": ["where"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": place}}
    words, call = (ask(desk, question, response_format=form).choices[0] for question in ("hi", "[call]"))

    assert (json.loads(words.message.content), words.finish_reason) == ({"where": "sea"}, "stop")
    assert (call.message.content, call.message.tool_calls[0].function.name) == (None, "gauge")


def test_a_round_of_calls_and_results_goes_on(desk: Desk):
    """The earlier call and its result are part of the next prompt, and of what is charged."""
    first = ask(desk, "[call]")
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "4711 cm"}
    messages: Any = [{"role": "user", "content": "hi"}, message.model_dump(exclude_none=True), result]
    second = desk.client().chat.completions.create(model="toy", messages=messages, tools=TOOLS, max_tokens=20)
    bare = desk.client().chat.completions.create(model="toy", messages=messages[:1], tools=TOOLS, max_tokens=20)

    assert second.choices[0].message.content.startswith("You said: 4711 cm")
    assert second.usage.prompt_tokens > bare.usage.prompt_tokens + len("4711 cm")


def test_a_call_is_charged_and_attributed_like_any_answer(desk: Desk):
    """Its text is the answer: tokens of the usage, bits that add up, a price that is divided to the unit."""
    answer = ask(desk, "[call=2]", model="toy-grounded")
    desk.settled()
    found = desk.get(f"/v1/receipts/{answer.headwater['receipt']}")
    receipt = found["receipt"]
    account = receipt["attribution"]

    assert found["status"] == "final"
    assert receipt["usage"]["completion_tokens"] == account["tokens"] == answer.usage.completion_tokens
    assert account["base_microbits"] + sum(s["microbits"] for s in account["shares"]) == account["total_microbits"]
    assert sum(int(payout["amount"]) for payout in receipt["payouts"]) == int(receipt["price"])
    assert desk.toy.reserved(desk.key) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_repeated_request_gives_the_same_calls_with_the_same_ids(desk: Desk, stream: bool):
    """Under an idempotency key, charged once."""
    before = desk.toy.spent(desk.key)
    found = []
    for _ in range(2):
        answer = ask(desk, "so [call=2]", stream=stream, extra_headers={"Idempotency-Key": f"tools-{stream}"})
        if stream:
            found.append(gathered(answer))
        else:
            message = answer.choices[0].message
            found.append((message.content, [(c.id, c.function.arguments) for c in message.tool_calls], answer.id))
        desk.settled()
        found.append(desk.toy.spent(desk.key) - before)

    assert found[:2] == found[2:]


def test_each_of_several_answers_has_its_own_calls(desk: Desk):
    """Ids are not shared between choices."""
    choices = ask(desk, "[call]", n=3).choices
    ids = [call.id for choice in choices for call in choice.message.tool_calls]

    assert [choice.finish_reason for choice in choices] == ["tool_calls"] * 3
    assert len(set(ids)) == 3


def test_probabilities_are_those_of_the_words(desk: Desk):
    """None stand beside a call."""
    chunks = ask(desk, "[call]", logprobs=True, stream=True)

    assert all(choice.logprobs is None for chunk in chunks for choice in chunk.choices)


# The Responses API


def respond(desk: Desk, question: Any, **more: Any) -> Any:
    """A response with tools."""
    return desk.client().responses.create(model="toy", input=question, tools=FLAT, max_output_tokens=400, **more)


def test_a_response_holds_calls_as_items(desk: Desk):
    """After the words, if there are any; without any there is no message."""
    call, both = respond(desk, "[call=2]"), respond(desk, "so [call]")
    named = respond(desk, "x", tool_choice={"type": "function", "name": "draw"}, parallel_tool_calls=False)

    assert [item.type for item in call.output] == ["function_call"] * 2
    assert [item.name for item in call.output] == ["gauge", "draw"]
    assert [item.type for item in both.output] == ["message", "function_call"]
    assert (both.output_text, both.status) == ("You said: so.", "completed")
    jsonschema.validate(json.loads(named.output[0].arguments), NESTED)
    assert (named.tool_choice.name, named.parallel_tool_calls, len(named.tools)) == ("draw", False, 3)


@pytest.mark.parametrize("question", ["hello", "[call=2]", "so [call]"])
def test_the_events_of_a_response_come_to_its_output(desk: Desk, question: str):
    """Numbers rise by one; each item begins, goes on and is done in its own place; OpenAI's client adds up alike."""
    whole = respond(desk, question)
    with desk.client().responses.stream(model="toy", input=question, tools=FLAT, max_output_tokens=400) as stream:
        events = list(stream)
    raw = list(respond(desk, question, stream=True))
    final = raw[-1].response
    kinds = [event.type for event in raw]

    assert [event.sequence_number for event in raw] == list(range(len(raw)))
    assert [(i.type, getattr(i, "arguments", None)) for i in final.output] == [
        (i.type, getattr(i, "arguments", None)) for i in whole.output
    ]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == len(whole.output)
    added = [e.output_index for e in raw if e.type == "response.output_item.added"]
    assert added == list(range(len(whole.output)))
    said: dict[str, str] = {}
    for event in raw:
        if event.type == "response.function_call_arguments.delta":
            said[event.item_id] = said.get(event.item_id, "") + event.delta
    assert said == {i.id: i.arguments for i in raw[-1].response.output if i.type == "function_call"}
    assert events[-1].type == kinds[-1] == f"response.{whole.status}"
    snapshots = [e.snapshot for e in events if e.type == "response.function_call_arguments.delta"]
    assert not said or snapshots[-1] == final.output[-1].arguments


def test_results_of_calls_go_back_as_items(desk: Desk):
    """The loop of the Responses API."""
    first = respond(desk, "[call]")
    call = first.output[0]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "4711 cm"}
    second = respond(desk, [{"role": "user", "content": "hi"}, call.model_dump(), result])

    assert second.output_text.startswith("You said: 4711 cm")


# What is refused


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"tools": "gauge"}, "invalid_value", "tools"),
        ({"tools": TOOLS * 50}, "invalid_value", "tools"),
        ({"tools": TOOLS[:1] * 2}, "invalid_value", "tools[1]"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "unsupported_parameter", "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_value", "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "invalid_value",
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            "invalid_value",
            "tools[0].function.parameters.type",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"$ref": "http://127.0.0.1/"}}}]},
            "invalid_value",
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "strict": "yes"}}]},
            "invalid_value",
            "tools[0].function.strict",
        ),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "invalid_value", "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "gone"}}},
            "invalid_value",
            "tool_choice",
        ),
        ({"tools": TOOLS, "parallel_tool_calls": "no"}, "invalid_value", "parallel_tool_calls"),
    ],
)
def test_what_is_no_tool_is_refused_by_name(desk: Desk, body: dict[str, Any], code: str, param: str):
    """Before anything is reserved."""
    before = desk.toy.spent(desk.key)
    with pytest.raises(urllib.error.HTTPError) as refused:
        desk.post({"model": "toy", "messages": [{"role": "user", "content": "x"}], **body})
    error = json.load(refused.value)["error"]

    assert (refused.value.code, error["code"], error["param"]) == (400, code, param)
    assert (desk.toy.spent(desk.key), desk.toy.reserved(desk.key)) == (before, 0)


def test_a_marked_definition_is_a_source_and_template_text_is_nobodys(tmp_path: Path):
    """Its bits are its owner's; an unknown mark is refused."""
    with open_desk(tmp_path / "home") as desk:
        owner = unenrolled("toy", "Tool Maker")
        candidate = Candidate(
            where="tool",
            kind="tool",
            title="Gauge",
            content=b"Reads a gauge of the river",
            owners=(Ownership(owner.id, 10**9),),
            license_expression="CC0-1.0",
            uses=frozenset(("ground", "train", "reproduce")),
            registered_at_ns=1,
            source="toy",
        )
        made = desk.toy.registry.admit([candidate], [owner]).accepted[0].contribution.id
        answer = ask(desk, "[call]", tools=[{**TOOLS[0], "headwater": {"contribution": made}}])
        with pytest.raises(openai.NotFoundError):
            ask(desk, "[call]", tools=[{**TOOLS[0], "headwater": {"contribution": "ctb_unknown"}}])
        desk.settled()
        shares = desk.get(f"/v1/receipts/{answer.headwater['receipt']}")["receipt"]["attribution"]["shares"]

    assert [(s["contribution"], s["kind"]) for s in shares] == [(made, "tool")]
    assert shares[0]["microbits"] > 0
