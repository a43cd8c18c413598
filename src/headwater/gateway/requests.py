"""Reads the body of `/v1/chat/completions`: strict about what changes the answer or the price, tolerant of the rest.

A field that asks for something this server cannot do is refused by name, an unknown one too, as
OpenAI does: a mistyped `max_tokens` that is silently ignored would cost the caller money. A field
that is null counts as absent. Refusals never quote what the caller wrote to the model.

Pure: bytes in, values out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headwater.core.canonical import digest, refuse_deep
from headwater.core.errors import InvalidError
from headwater.core.ids import ContributionId
from headwater.core.limits import (
    ANSWER_TOKENS_DEFAULT,
    ANSWER_TOKENS_MAX,
    REQUEST_DEPTH_MAX,
    REQUEST_MESSAGES_MAX,
    SOURCES_MAX,
    STOP_CHARS_MAX,
    STOPS_MAX,
)
from headwater.flow import CallRequest, Message
from headwater.gateway.errors import RequestError
from headwater.models.backend import Sampling

_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MODEL_CHARS_MAX: Final = 200
_CONTRIBUTION_PREFIX: Final = "ctb_"
_TOP_P_MIN: Final = 1e-6  # 0 is let through, as OpenAI does, and means the likeliest token

_READ: Final = frozenset(
    [
        *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop"),
        *("stream", "stream_options", "n", "headwater"),
    ]
)
# These say something about the caller or the bookkeeping, nothing about the answer.
_IGNORED: Final = frozenset(
    [
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "parallel_tool_calls", "prediction"),
    ]
)
# What each may be although nothing is done for it: the value that asks for nothing.
_UNSUPPORTED: Final[dict[str, tuple[object, ...]]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that was understood; whether it is admitted is the flow's to say."""

    call: CallRequest
    stream: bool
    include_usage: bool


def read_chat(raw: bytes, *, route: str, idempotency_key: str | None, seed: Callable[[], int]) -> ChatRequest:
    """The request in `raw`.

    Args:
        raw: the body as sent.
        route: where it was sent; part of what an idempotency key is bound to.
        idempotency_key: from the header.
        seed: draws a seed for a request that has none.

    Raises:
        RequestError: with the field in `param`.
    """
    body = _object(raw)
    _refuse_unknown(body)
    stream = _flag(body, "stream")
    include_usage = _stream_options(body, stream)
    sources, prompt, contribute = _extension(body)
    if _whole(body, "n", 1, 128, 1) != 1:
        raise _unsupported("n", "one answer a call is given")
    call = CallRequest(
        model=_model(body),
        messages=_messages(body),
        sampling=Sampling(
            max_tokens=_max_tokens(body),
            temperature=_number(body, "temperature", 0.0, 2.0, 0.0),
            top_p=max(_number(body, "top_p", 0.0, 1.0, 1.0), _TOP_P_MIN),
            seed=_seed(body, seed),
            stop=_stop(body),
        ),
        body_digest=digest(route.encode() + b"\x00" + raw),
        idempotency_key=idempotency_key,
        sources=sources,
        prompt=prompt,
        contribute=contribute,
    )
    return ChatRequest(call, stream, include_usage)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        refuse_deep(raw, REQUEST_DEPTH_MAX)
        body = msgspec.json.decode(raw)
    except InvalidError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise _not_json(f"the body is not UTF-8 at byte {error.start}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise _not_json(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise _not_json("the body is not a JSON object")
    return body


def _refuse_unknown(body: dict[str, Any]) -> None:
    for name, value in body.items():
        if name in _READ or name in _IGNORED or value is None:
            continue
        allowed = _UNSUPPORTED.get(name)
        if allowed is None:
            raise RequestError(
                f"unknown parameter {name[:80]!r}",
                param=name[:80],
                code="unknown_parameter",
                fix="check its spelling, or leave it out",
            )
        if not any(_equal(value, harmless) for harmless in allowed):
            raise _unsupported(name, "this model cannot do it")


def _equal(value: object, harmless: object) -> bool:
    """Equality as JSON has it: 0 and 0.0 are one number, false is none."""
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)


def _model(body: dict[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= _MODEL_CHARS_MAX:
        raise _invalid("model", "the model is missing or not a name", "send a name from GET /v1/models")
    return model


def _messages(body: dict[str, Any]) -> tuple[Message, ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _invalid("messages", "messages is missing, empty or not an array", "send at least one message")
    if len(messages) > REQUEST_MESSAGES_MAX:
        raise _invalid("messages", f"{len(messages)} messages", f"send at most {REQUEST_MESSAGES_MAX}")
    return tuple(_message(item, f"messages[{i}]") for i, item in enumerate(messages))


def _message(item: object, where: str) -> Message:
    if not isinstance(item, dict):
        raise _invalid(where, "a message is not an object", 'send {"role": "user", "content": "…"}')
    role = item.get("role")
    if role in ("tool", "function") or item.get("tool_calls") or item.get("function_call"):
        raise _unsupported(where, "this model calls no tools")
    plain = _ROLES.get(role) if isinstance(role, str) else None
    if plain is None:
        raise _invalid(f"{where}.role", f"unknown role {str(role)[:40]!r}", f"use one of {', '.join(_ROLES)}")
    return Message(plain, _content(item.get("content"), f"{where}.content", may_be_absent=plain == "assistant"))


def _content(content: object, where: str, *, may_be_absent: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and may_be_absent:
        return ""
    if isinstance(content, list) and content:
        return "".join(_text_part(part, f"{where}[{i}]") for i, part in enumerate(content))
    raise _invalid(where, "content is missing or neither text nor a list of parts", "send a string")


def _text_part(part: object, where: str) -> str:
    if not isinstance(part, dict):
        raise _invalid(where, "a content part is not an object", 'send {"type": "text", "text": "…"}')
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        raise _unsupported(where, f"this model reads text, not parts of type {str(kind)[:40]!r}")
    if not isinstance(text, str):
        raise _invalid(f"{where}.text", "a text part holds no text", "send text as a string")
    return text


def _max_tokens(body: dict[str, Any]) -> int:
    old, new = body.get("max_tokens"), body.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise _invalid("max_tokens", "max_tokens and max_completion_tokens differ", "send one of them")
    name = "max_completion_tokens" if old is None else "max_tokens"
    return _whole(body, name, 1, ANSWER_TOKENS_MAX, ANSWER_TOKENS_DEFAULT)


def _seed(body: dict[str, Any], draw: Callable[[], int]) -> int:
    if body.get("seed") is None:
        return draw()
    # Samplers take 32 bits; a larger seed is folded, so it is as repeatable as a small one.
    return _whole(body, "seed", -(2**63), 2**63 - 1, 0) % 2**32


def _stop(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > STOPS_MAX:
        raise _invalid("stop", "stop is neither a string nor a short list", f"send at most {STOPS_MAX} strings")
    for text in stops:
        if not isinstance(text, str) or not 0 < len(text) <= STOP_CHARS_MAX:
            raise _invalid("stop", "a stop is empty, too long or no string", f"use 1 to {STOP_CHARS_MAX} characters")
    return tuple(stops)


def _stream_options(body: dict[str, Any], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise _invalid("stream_options", "stream_options without stream", "set stream, or leave stream_options out")
    if not isinstance(options, dict):
        raise _invalid("stream_options", "stream_options is not an object", 'send {"include_usage": true}')
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise _invalid(f"stream_options.{name[:80]}", "unknown stream option", "use include_usage")
    return _flag(options, "include_usage", "stream_options.")


def _extension(body: dict[str, Any]) -> tuple[int | None, ContributionId | None, bool | None]:
    """The fields of our own object: how many sources, which registered prompt, and whether to register the words."""
    extension = body.get("headwater")
    if extension is None:
        return None, None, None
    if not isinstance(extension, dict):
        raise _invalid("headwater", "headwater is not an object", 'send {"sources": 4}')
    for name in extension:
        if name not in ("sources", "prompt", "contribute"):
            raise RequestError(
                f"unknown parameter {name[:80]!r} in headwater",
                param=f"headwater.{name[:80]}",
                code="unknown_parameter",
                fix="use sources, prompt and contribute",
            )
    sources = None
    if extension.get("sources") is not None:
        sources = _whole(extension, "sources", 0, SOURCES_MAX, 0, "headwater.")
    prompt = extension.get("prompt")
    if prompt is not None and not (isinstance(prompt, str) and prompt.startswith(_CONTRIBUTION_PREFIX)):
        raise _invalid("headwater.prompt", "prompt is not a contribution id", "send the ctb_… of a registered prompt")
    contribute = None if extension.get("contribute") is None else _flag(extension, "contribute", "headwater.")
    return sources, None if prompt is None else ContributionId(prompt), contribute


def _flag(table: dict[str, Any], name: str, prefix: str = "") -> bool:
    value = table.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _invalid(prefix + name, f"{name} is neither true nor false", "send true or false")


def _whole(table: dict[str, Any], name: str, low: int, high: int, default: int, prefix: str = "") -> int:
    value = table.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _invalid(prefix + name, f"{name} is {_shown(value)}", f"use a whole number from {low} to {high}")
    return value


def _number(table: dict[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = table.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise _invalid(name, f"{name} is {_shown(value)}", f"use a number from {low:g} to {high:g}")
    return float(value)


def _shown(value: object) -> str:
    return str(value)[:40] if isinstance(value, int | float) else f"a {type(value).__name__}"


def _invalid(param: str, message: str, fix: str) -> RequestError:
    return RequestError(f"{param}: {message}", param=param, code="invalid_value", fix=fix)


def _unsupported(param: str, why: str) -> RequestError:
    return RequestError(
        f"{param} is not supported: {why}", param=param, code="unsupported_parameter", fix="leave it out"
    )


def _not_json(message: str) -> RequestError:
    return RequestError(message, param=None, code="invalid_json", fix="send a JSON object in UTF-8")


def _too_deep() -> RequestError:
    return RequestError(
        f"the body is nested deeper than {REQUEST_DEPTH_MAX}",
        param=None,
        code="invalid_json",
        fix="send a flatter object",
    )
