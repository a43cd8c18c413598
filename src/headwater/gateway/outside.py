"""Requests with sources for a model of another server: read as a conversation, and written again with them in it.

What is no text is not looked at and goes on as it came: images by their URL, which nobody here fetches, tools, calls of
tools, and every field nobody here knows. Our own fields and marks are taken out. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headwater.core.canonical import digest
from headwater.core.limits import REQUEST_MESSAGES_MAX, REQUEST_SIZE_BYTES_MAX
from headwater.gateway.marks import (
    FIELD,
    has_mark,
    invalid,
    mark_of,
    message,
    names_prompt,
    read_extension,
    stretches,
    unmarked,
)
from headwater.gateway.passing import Request
from headwater.models.backend import Sampling
from headwater.serving import CallRequest, Message, Offered, OutsideModel, Said

_ROLES: Final = {"system": "system", "developer": "system", "assistant": "assistant", "tool": "tool"}
_MARK: Final = b'"' + FIELD.encode() + b'"'


def asks_for_sources(raw: bytes, request: Request) -> bool:
    """Whether a request says anything of sources; quick where it does not."""
    if request.shape == "embeddings":
        return False
    if FIELD in request.fields:
        return _value(request, FIELD) is not None
    if request.shape != "completions" and names_prompt(_value(request, "prompt")):
        return True
    if _MARK not in raw:
        return False
    if request.text_bytes > REQUEST_SIZE_BYTES_MAX:
        return True  # and is refused, because there is more text than is read
    found = _value(request, "messages" if request.shape == "chat" else "input")
    return isinstance(found, list) and any(map(has_mark, found))


def _value(request: Request, name: str) -> Any:
    """A field of a request that was read one level deep; None when it is not there."""
    raw = request.fields.get(name)
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except msgspec.DecodeError as error:  # such as a number beyond all bounds
        raise invalid(name, str(error)[:200], "send JSON with numbers that a double holds") from None


def wants_sources(raw: bytes, request: Request, model: OutsideModel | None) -> bool:
    """Whether a call is served with sources: it says something of them, or its model always has some.

    Args:
        model: how calls of the model with sources are served; None when they cannot be.
    """
    if model is None or request.shape == "embeddings":
        return False
    return model.grounded or asks_for_sources(raw, request)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read."""

    call: CallRequest
    body: Mapping[str, Any]
    shape: str
    question: int | None  # which item of the conversation sources are put before; None: the text itself


def read_asked(raw: bytes, request: Request, *, route: str, idempotency_key: str | None, answer_max: int) -> Asked:
    """A request as a conversation.

    Args:
        answer_max: tokens of one answer.

    Raises:
        RequestError: there is no place for sources in it, or our own fields are wrong.
    """
    body = {name: _value(request, name) for name in request.fields}
    extension = read_extension(body, prompt_field=request.shape != "completions")
    read = {"chat": _chat, "completions": _completion, "responses": _responses}[request.shape]
    messages, items, words_only = read(body)
    users = [i for i, item in zip(range(len(messages)), items, strict=True) if messages[i].role == "user"]
    asked = users[-1] if users else len(messages) - 1
    call = CallRequest(
        model=request.model,
        messages=tuple(messages),
        sampling=Sampling(max_tokens=answer_max),
        body_digest=digest(route.encode() + b"\x00" + raw),
        idempotency_key=idempotency_key,
        sources=extension.sources,
        prompt=extension.prompt,
        contribute=extension.contribute,
        passages=extension.passages,
        answers=request.answers,
        plain=request.shape == "completions",
        size_bytes=request.prompt_bytes,
        words_only=words_only and not body.get("tools") and not body.get("functions"),
    )
    return Asked(call, body, request.shape, items[asked])


def write_asked(asked: Asked, offered: Offered, model: str, *, include_usage: bool) -> bytes:
    """The body for a server that calls the model `model`, with what is offered in it.

    Args:
        include_usage: ask for the usage of a stream.
    """
    body = {name: value for name, value in asked.body.items() if name != FIELD}
    if asked.shape != "completions" and names_prompt(body.get("prompt")):
        del body["prompt"]
    body["model"] = model
    if asked.shape == "chat":
        messages = [unmarked(item) for item in body["messages"]]
        _put(messages, asked.question, offered.sources, "text")
        if offered.prompt:
            messages.insert(0, {"role": "system", "content": offered.prompt})
        body["messages"] = messages
    elif asked.shape == "completions":
        body["prompt"] = "".join(
            (offered.prompt and offered.prompt + "\n\n", offered.sources, asked.call.messages[-1].content)
        )
    else:
        if isinstance(body["input"], str):
            body["input"] = offered.sources + body["input"]
        else:
            body["input"] = [unmarked(item) for item in body["input"]]
            _put(body["input"], asked.question, offered.sources, "input_text")
        if offered.prompt:
            said = body.get("instructions")
            body["instructions"] = offered.prompt if not said else f"{offered.prompt}\n\n{said}"
    if include_usage:
        options = body.get("stream_options")
        body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return msgspec.json.encode(body)


def _put(items: list[dict[str, Any]], place: int | None, sources: str, kind: str) -> None:
    """Put sources before what is said in one item."""
    if not sources or place is None:
        return
    name = "output" if "output" in items[place] else "content"
    content = items[place].get(name)
    if isinstance(content, list):
        items[place][name] = [{"type": kind, "text": sources}, *content]
    else:
        items[place][name] = sources + (content if isinstance(content, str) else "")


_Read = tuple[list[Message], list[int | None], bool]


def _chat(body: Mapping[str, Any]) -> _Read:
    return _conversation(body.get("messages"), "messages")


def _completion(body: Mapping[str, Any]) -> _Read:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise invalid("prompt", "sources can be put before one text only", "send prompt as a string")
    return [Message("user", prompt)], [None], False


def _responses(body: Mapping[str, Any]) -> _Read:
    given = body.get("input")
    if isinstance(given, str):
        messages: list[Message] = [Message("user", given)]
        items: list[int | None] = [None]
        words = True
    else:
        messages, items, words = _conversation(given, "input")
    instructions = body.get("instructions")
    if isinstance(instructions, str) and instructions:
        messages, items = [Message("system", instructions), *messages], [None, *items]
    return messages, items, words


def _conversation(given: object, where: str) -> _Read:
    if not isinstance(given, list) or not given or not all(isinstance(item, dict) for item in given):
        raise invalid(where, "not a list of messages", "send at least one message")
    if len(given) > REQUEST_MESSAGES_MAX:
        raise invalid(where, f"{len(given)} messages", f"send at most {REQUEST_MESSAGES_MAX}")
    messages: list[Message] = []
    words_only = True
    for place, item in enumerate(given):
        at = f"{where}[{place}]"
        content = item.get("output", item.get("content"))
        role = "tool" if item.get("type") == "function_call_output" else _ROLES.get(str(item.get("role")), "user")
        if item.get("type") in ("function_call", "reasoning"):
            role = "assistant"
        said = stretches(content, mark_of(item, at), f"{at}.content")
        calls = _calls(item)
        messages.append(message(role, [*said, *calls]))
        plain = isinstance(content, str) or (isinstance(content, list) and len(said) == len(content))
        words_only &= plain and not calls and role != "tool"
    return messages, list(range(len(given))), words_only


def _calls(item: Mapping[str, Any]) -> list[Said]:
    """What a model said to tools: words of the conversation, and nobody's."""
    calls = item.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return [
        Said(call["arguments"])
        for call in (item, *functions)
        if isinstance(call, dict) and isinstance(call.get("arguments"), str)
    ]
