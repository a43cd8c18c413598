"""Reads requests to models in process: strict about what changes the answer or the price, tolerant of the rest.

A field that asks for something this server cannot do is refused by name, an unknown one too, as
OpenAI does: a mistyped `max_tokens` that is silently ignored would cost the caller money. A field
that is null counts as absent. Refusals never quote what the caller wrote to the model.

Pure: bytes in, values out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from headwater.core.canonical import digest
from headwater.core.limits import (
    ANSWER_TOKENS_DEFAULT,
    ANSWER_TOKENS_MAX,
    ANSWERS_MAX,
    EMBEDDED_TEXTS_MAX,
    REQUEST_MESSAGES_MAX,
    TOP_LOGPROBS_MAX,
)
from headwater.gateway import fields
from headwater.gateway.fields import unsupported
from headwater.gateway.marks import Extension, invalid, mark_of, message, read_extension
from headwater.gateway.tool_requests import Comes, Tools, read_tools
from headwater.models.backend import Sampling
from headwater.serving import CallRequest, Message, Said

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_TOP_P_MIN: Final = 1e-6  # 0 is let through, as OpenAI does, and means the likeliest token
_TEXT_PARTS: Final = ("text", "input_text", "output_text")

# These say something about the caller or the bookkeeping, nothing about the answer.
_IGNORED: Final = frozenset(
    [
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prediction"),
    ]
)
_COMMON: Final = frozenset(["model", "temperature", "top_p", "stream", "headwater", *_IGNORED])
_CHAT: Final = _COMMON | frozenset(
    [
        *("messages", "max_tokens", "max_completion_tokens", "seed", "stop", "stream_options", "n", "prompt"),
        *("logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls"),
    ]
)
_COMPLETIONS: Final = _COMMON | frozenset(["prompt", "max_tokens", "seed", "stop", "stream_options", "n", "logprobs"])
_RESPONSES: Final = _COMMON | frozenset(
    [
        *("input", "instructions", "max_output_tokens", "text", "prompt", "truncation", "stream_options"),
        *("tools", "tool_choice", "parallel_tool_calls"),
    ]
)
_EMBEDDINGS: Final = frozenset(["model", "input", "encoding_format", "dimensions", *_IGNORED])
# What each may be although nothing is done for it: the value that asks for nothing.
_NOT_CHAT: Final[dict[str, tuple[object, ...]]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
_NOT_COMPLETIONS: Final[dict[str, tuple[object, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
}
_NOT_RESPONSES: Final[dict[str, tuple[object, ...]]] = {
    "include": ([],),
    "reasoning": ({}, {"effort": "none"}),
    "background": (False,),
    "previous_response_id": (),
    "conversation": (),
    "max_tool_calls": (),
    "top_logprobs": (0,),
}


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request that was understood; whether it is admitted is the flow's to say."""

    call: CallRequest
    stream: bool
    include_usage: bool
    echoed: Mapping[str, Any]  # what the answer says again of the request
    tools: Tools | None = None  # that the model may call


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A request for vectors."""

    call: CallRequest
    base64: bool
    dimensions: int | None


def read_chat(raw: bytes, *, route: str, idempotency_key: str | None, seed: Callable[[], int]) -> TextRequest:
    """The request in `raw`.

    Args:
        raw: the body as sent.
        route: where it was sent; part of what an idempotency key is bound to.
        idempotency_key: from the header.
        seed: draws a seed for a request that has none.

    Raises:
        RequestError: with the field in `param`.
    """
    body = fields.read_object(raw)
    fields.refuse_unknown(body, _CHAT, _NOT_CHAT)
    old, new = body.get("max_tokens"), body.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise invalid("max_tokens", "max_tokens and max_completion_tokens differ", "send one of them")
    top = fields.whole(body, "top_logprobs", 0, TOP_LOGPROBS_MAX, 0)
    wanted = fields.flag(body, "logprobs")
    if top and not wanted:
        raise invalid("top_logprobs", "top_logprobs without logprobs", "set logprobs")
    asked = _format(body.get("response_format"), "response_format", nested=True)
    tools = read_tools(body, asked, nested=True)
    sampling = _sampling(
        body,
        _tokens(body, "max_completion_tokens" if old is None else "max_tokens"),
        seed=fields.seed(body, seed),
        stop=fields.stop(body),
        logprobs=top if wanted else None,
        grammar=asked,
        tools=tools,
    )
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise invalid("messages", "messages is missing, empty or not an array", "send at least one message")
    return _read(raw, body, route, idempotency_key, _messages(given, "messages"), sampling, tools=tools)


def read_completion(raw: bytes, *, route: str, idempotency_key: str | None, seed: Callable[[], int]) -> TextRequest:
    """The request in `raw`, for a text to be gone on with. As `read_chat`."""
    body = fields.read_object(raw)
    fields.refuse_unknown(body, _COMPLETIONS, _NOT_COMPLETIONS)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list):
        raise unsupported("prompt", "one text a call is gone on with, not several and no token ids")
    if not isinstance(prompt, str) or not prompt:
        raise invalid("prompt", "the prompt is missing, empty or no text", "send a string")
    top = None if body.get("logprobs") is None else fields.whole(body, "logprobs", 0, 5, 0)
    sampling = _sampling(
        body,
        _tokens(body, "max_tokens", 16),
        seed=fields.seed(body, seed),
        stop=fields.stop(body),
        logprobs=top,
    )
    return _read(raw, body, route, idempotency_key, (Message("user", prompt),), sampling, plain=True)


def read_response(raw: bytes, *, route: str, idempotency_key: str | None, seed: Callable[[], int]) -> TextRequest:
    """The request in `raw`, as the Responses API has it. As `read_chat`."""
    body = fields.read_object(raw)
    fields.refuse_unknown(body, _RESPONSES, _NOT_RESPONSES)
    given, text = body.get("input"), body.get("text") or {}
    if not isinstance(text, dict):
        raise invalid("text", "text is not an object", 'send {"format": {"type": "text"}}')
    if isinstance(given, str) and given:
        messages: tuple[Message, ...] = (Message("user", given),)
    elif isinstance(given, list) and given:
        messages = _messages(given, "input")
    else:
        raise invalid("input", "input is missing, empty or neither text nor a list", "send a string")
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise invalid("instructions", "instructions are no text", "send a string")
    if instructions:
        messages = (Message("system", instructions), *messages)
    asked = _format(text.get("format"), "text.format", nested=False)
    tools = read_tools(body, asked, nested=False)
    sampling = _sampling(body, _tokens(body, "max_output_tokens"), seed=seed(), grammar=asked, tools=tools)
    return _read(raw, body, route, idempotency_key, messages, sampling, tools=tools)


def read_embedding(raw: bytes, *, route: str, idempotency_key: str | None) -> EmbeddingRequest:
    """The request in `raw`, for vectors.

    Raises:
        RequestError: with the field in `param`.
    """
    body = fields.read_object(raw)
    fields.refuse_unknown(body, _EMBEDDINGS, {})
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not 0 < len(texts) <= EMBEDDED_TEXTS_MAX:
        raise invalid("input", "no texts, or too many", f"send 1 to {EMBEDDED_TEXTS_MAX} strings")
    if any(isinstance(text, int | list) for text in texts):
        raise unsupported("input", "this model reads text, not token ids of another")
    if not all(isinstance(text, str) and text for text in texts):
        raise invalid("input", "a text is empty or no string", "send strings")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise invalid("encoding_format", "unknown encoding", "use float or base64")
    dimensions = fields.whole(body, "dimensions", 1, 2**20, 0)
    call = CallRequest(
        model=fields.model(body),
        messages=tuple(Message("user", text) for text in texts),
        sampling=Sampling(max_tokens=1),
        body_digest=digest(route.encode() + b"\x00" + raw),
        idempotency_key=idempotency_key,
    )
    return EmbeddingRequest(call, encoding == "base64", dimensions or None)


def _read(
    raw: bytes,
    body: Mapping[str, Any],
    route: str,
    idempotency_key: str | None,
    messages: tuple[Message, ...],
    sampling: Sampling,
    *,
    plain: bool = False,
    tools: Tools | None = None,
) -> TextRequest:
    stream = fields.flag(body, "stream")
    extension: Extension = read_extension(body, prompt_field=not plain)
    if not plain and body.get("prompt") is not None and extension.prompt is None:
        raise unsupported("prompt", "only registered prompts, by the id of their contribution")
    call = CallRequest(
        model=fields.model(body),
        messages=messages if tools is None else (tools.shown, *messages),
        sampling=sampling,
        body_digest=digest(route.encode() + b"\x00" + raw),
        idempotency_key=idempotency_key,
        sources=extension.sources,
        prompt=extension.prompt,
        contribute=extension.contribute,
        passages=extension.passages,
        answers=fields.whole(body, "n", 1, ANSWERS_MAX, 1),
        plain=plain,
        opening=tools.opening if tools else "",
    )
    return TextRequest(call, stream, fields.stream_options(body, stream), body, tools)


def _sampling(
    body: Mapping[str, Any],
    max_tokens: int,
    *,
    seed: int,
    stop: tuple[str, ...] = (),
    logprobs: int | None = None,
    grammar: str = "",
    tools: Tools | None = None,
) -> Sampling:
    must_call = tools is not None and tools.comes is Comes.AT_ONCE
    return Sampling(
        max_tokens=max_tokens,
        temperature=fields.number(body, "temperature", 0.0, 2.0, 0.0),
        top_p=max(fields.number(body, "top_p", 0.0, 1.0, 1.0), _TOP_P_MIN),
        seed=seed,
        stop=() if must_call else stop,  # a stop string cuts words, never a call
        logprobs=logprobs,
        grammar=tools.grammar if tools else grammar,
        grammar_after=tools.grammar_after if tools else "",
    )


def _tokens(body: Mapping[str, Any], name: str, default: int = ANSWER_TOKENS_DEFAULT) -> int:
    return fields.whole(body, name, 1, ANSWER_TOKENS_MAX, default)


def _format(value: object, where: str, *, nested: bool) -> str:
    """The JSON schema an answer must follow; empty for any text.

    Args:
        nested: whether the schema has an object of its own, as in chat.
    """
    if value is None:
        return ""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind not in ("text", "json_object", "json_schema"):
        raise invalid(where, "unknown format", "use text, json_object or json_schema")
    if kind == "text":
        return ""
    if kind == "json_object":
        return '{"type": "object"}'
    holder = value.get("json_schema") if nested else value
    if not isinstance(holder, dict):
        raise invalid(f"{where}.json_schema", "no schema", 'send {"name": "…", "schema": {…}}')
    place = f"{where}.json_schema.schema" if nested else f"{where}.schema"
    return json.dumps(fields.schema(holder.get("schema"), place))


# Messages


def _messages(given: list[Any], where: str) -> tuple[Message, ...]:
    if len(given) > REQUEST_MESSAGES_MAX:
        raise invalid(where, f"{len(given)} messages", f"send at most {REQUEST_MESSAGES_MAX}")
    return tuple(_message(item, f"{where}[{i}]") for i, item in enumerate(given))


def _message(item: object, where: str) -> Message:
    if not isinstance(item, dict):
        raise invalid(where, "a message is not an object", 'send {"role": "user", "content": "…"}')
    kind = item.get("type")
    if kind == "function_call":
        return message("assistant", [Said(_called(item, where))])
    if kind == "function_call_output":
        return message("tool", _content(item.get("output"), f"{where}.output", item, may_be_absent=False))
    if kind not in (None, "message"):
        raise unsupported(f"{where}.type", f"this model reads messages, not items of type {str(kind)[:40]!r}")
    role = item.get("role")
    plain = _ROLES.get(role) if isinstance(role, str) else None
    if plain is None:
        raise invalid(f"{where}.role", f"unknown role {str(role)[:40]!r}", f"use one of {', '.join(_ROLES)}")
    said = _content(item.get("content"), f"{where}.content", item, may_be_absent=plain == "assistant")
    calls = item.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise invalid(f"{where}.tool_calls", "no list", "send the calls as they were given")
    for place, call in enumerate(calls or ()):
        at = f"{where}.tool_calls[{place}]"
        function = call.get("function") if isinstance(call, dict) else None
        said.append(Said(_called(function, at)))
    return message(plain, said)


def _called(function: object, where: str) -> str:
    """A call of a tool, as the model is shown that it made it."""
    name = function.get("name") if isinstance(function, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise invalid(where, "no call of a function", 'send {"name": "…", "arguments": "…"}')
    return f"{name}({arguments})"


def _content(content: object, where: str, item: Mapping[str, Any], *, may_be_absent: bool) -> list[Said]:
    mark = mark_of(item, where.rsplit(".", 1)[0])
    if isinstance(content, str):
        return [Said(content, mark)]
    if content is None and may_be_absent:
        return []
    if isinstance(content, list) and content:
        found = []
        for place, part in enumerate(content):
            said = _text_part(part, f"{where}[{place}]")
            found.append(said if said.contribution is not None else Said(said.text, mark))
        return found
    raise invalid(where, "content is missing or neither text nor a list of parts", "send a string")


def _text_part(part: object, where: str) -> Said:
    if not isinstance(part, dict):
        raise invalid(where, "a content part is not an object", 'send {"type": "text", "text": "…"}')
    kind, text = part.get("type"), part.get("text")
    if kind not in _TEXT_PARTS:
        raise unsupported(where, f"this model reads text, not parts of type {str(kind)[:40]!r}")
    if not isinstance(text, str):
        raise invalid(f"{where}.text", "a text part holds no text", "send text as a string")
    return Said(text, mark_of(part, where))
