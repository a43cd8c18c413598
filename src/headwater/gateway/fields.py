"""One field of a request: read, held against its bounds, and refused by name.

A field that is null counts as absent. Refusals never quote what the caller wrote to the model. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from headwater.core.canonical import refuse_deep
from headwater.core.errors import InvalidError
from headwater.core.limits import REQUEST_DEPTH_MAX, STOP_CHARS_MAX, STOPS_MAX
from headwater.gateway.errors import RequestError
from headwater.gateway.marks import invalid

MODEL_CHARS_MAX: Final = 200


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        RequestError: ``invalid_json``.
    """
    try:
        refuse_deep(raw, REQUEST_DEPTH_MAX)
        body = msgspec.json.decode(raw)
    except InvalidError:
        raise _not_json(f"the body is nested deeper than {REQUEST_DEPTH_MAX}", "send a flatter object") from None
    except UnicodeDecodeError as error:
        raise _not_json(f"the body is not UTF-8 at byte {error.start}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise _not_json(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise _not_json("the body is not a JSON object")
    return body


def refuse_unknown(body: Mapping[str, Any], known: frozenset[str], harmless: Mapping[str, tuple[object, ...]]) -> None:
    """Refuse fields that nobody knows, and those that ask for what the model cannot do.

    Args:
        known: fields that are read, or that change nothing.
        harmless: of the others, the values that ask for nothing.
    """
    for name, value in body.items():
        if name in known or value is None:
            continue
        allowed = harmless.get(name)
        if allowed is None:
            raise RequestError(
                f"unknown parameter {name[:80]!r}",
                param=name[:80],
                code="unknown_parameter",
                fix="check its spelling, or leave it out",
            )
        if not any(value == fine and isinstance(value, bool) == isinstance(fine, bool) for fine in allowed):
            raise unsupported(name, "this model cannot do it")


def model(body: Mapping[str, Any]) -> str:
    """The model's name."""
    name = body.get("model")
    if not isinstance(name, str) or not 0 < len(name) <= MODEL_CHARS_MAX:
        raise invalid("model", "the model is missing or not a name", "send a name from GET /v1/models")
    return name


def seed(body: Mapping[str, Any], draw: Callable[[], int]) -> int:
    """The seed, or one that is drawn."""
    if body.get("seed") is None:
        return draw()
    # Samplers take 32 bits; a larger seed is folded, so it is as repeatable as a small one.
    return whole(body, "seed", -(2**63), 2**63 - 1, 0) % 2**32


def stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The stop strings."""
    given = body.get("stop")
    stops = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or len(stops) > STOPS_MAX:
        raise invalid("stop", "stop is neither a string nor a short list", f"send at most {STOPS_MAX} strings")
    for text in stops:
        if not isinstance(text, str) or not 0 < len(text) <= STOP_CHARS_MAX:
            raise invalid("stop", "a stop is empty, too long or no string", f"use 1 to {STOP_CHARS_MAX} characters")
    return tuple(stops)


def stream_options(body: Mapping[str, Any], stream: bool) -> bool:
    """Whether the usage of a stream is asked for."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid("stream_options", "stream_options without stream", "set stream, or leave stream_options out")
    if not isinstance(options, dict):
        raise invalid("stream_options", "stream_options is not an object", 'send {"include_usage": true}')
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise invalid(f"stream_options.{name[:80]}", "unknown stream option", "use include_usage")
    return flag(options, "include_usage", "stream_options.")


def schema(value: object, where: str) -> dict[str, Any]:
    """A JSON schema that an answer must follow; it refers to nothing but itself."""
    if not isinstance(value, dict):
        raise invalid(where, "no JSON schema", "send an object")
    for reference in _references(value):
        if reference != "#" and not reference.startswith("#/"):
            raise invalid(where, "a $ref to something outside the schema", "refer to #/$defs/…")
    return value


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(named := schema.get("$ref"), str):
            yield named
        schema = list(schema.values())
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item)


def flag(table: Mapping[str, Any], name: str, prefix: str = "") -> bool:
    """A field that is true or false; false when it is absent."""
    value = table.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise invalid(prefix + name, f"{name} is neither true nor false", "send true or false")


def whole(table: Mapping[str, Any], name: str, low: int, high: int, default: int, prefix: str = "") -> int:
    """A whole number within bounds."""
    value = table.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise invalid(prefix + name, f"{name} is {_shown(value)}", f"use a whole number from {low} to {high}")
    return value


def number(table: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    """A number within bounds."""
    value = table.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise invalid(name, f"{name} is {_shown(value)}", f"use a number from {low:g} to {high:g}")
    return float(value)


def unsupported(param: str, why: str) -> RequestError:
    """The refusal of what this model cannot do."""
    return RequestError(
        f"{param} is not supported: {why}", param=param, code="unsupported_parameter", fix="leave it out"
    )


def _shown(value: object) -> str:
    return str(value)[:40] if isinstance(value, int | float) else f"a {type(value).__name__}"


def _not_json(message: str, fix: str = "send a JSON object in UTF-8") -> RequestError:
    return RequestError(message, param=None, code="invalid_json", fix=fix)
