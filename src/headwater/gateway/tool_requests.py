"""Reads the tools of a request to a model in process: what the model is shown of them, and the grammar of its calls.

A call is one JSON array of `{"name": …, "arguments": {…}}`, whose arguments follow the function's JSON schema, strict
or not. How an answer comes to one:

    AFTER    the model chooses: words, or the opening `<tool_call>` at the beginning of a line and then the array
    AT_ONCE  it must call: the opening is put into its mouth, and the answer is the array
    EITHER   it chooses, and its words have to follow a JSON schema of objects: whichever bracket comes first decides

With `tool_choice: "none"` no tool is shown, so none is paid for. A definition may be marked as coming from a registered
tool, as a tool's result may. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from headwater.core.ids import ContributionId
from headwater.core.limits import TOOL_CALLS_MAX, TOOL_NAME_CHARS_MAX, TOOLS_MAX
from headwater.gateway import fields
from headwater.gateway.fields import unsupported
from headwater.gateway.marks import invalid, mark_of
from headwater.serving import Message, Said

OPENING: Final = "<tool_call>"
_NAME: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{TOOL_NAME_CHARS_MAX}}}")
_NOTHING: Final = {"type": "object", "properties": {}, "additionalProperties": False}
_TABLES: Final = ("properties", "patternProperties", "$defs", "definitions")  # of schemas, by name
_VALUES: Final = ("const", "enum", "default", "examples")  # of answers, not schemas
_SHOWN: Final = "You can use these tools, one JSON object a line:\n"
_CALL: Final = '[{"name": "the tool\'s name", "arguments": {"its": "arguments"}}]'


class Comes(Enum):
    """How an answer comes to a call."""

    AFTER = "after"
    AT_ONCE = "at once"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request."""

    names: frozenset[str]  # that may be called
    comes: Comes
    shown: Message  # the definitions, and how to call
    grammar: str  # the JSON schema of the calls; with EITHER, also of the words

    @property
    def opening(self) -> str:
        """What is put into the model's mouth."""
        return OPENING if self.comes is Comes.AT_ONCE else ""

    @property
    def grammar_after(self) -> str:
        """What the model says before the grammar holds."""
        return OPENING if self.comes is Comes.AFTER else ""


@dataclass(frozen=True, slots=True)
class _Function:
    name: str
    description: str
    parameters: Mapping[str, Any]
    mark: ContributionId | None

    def shown(self) -> Said:
        described = {"description": self.description} if self.description else {}
        text = {"name": self.name, **described, "parameters": self.parameters}
        return Said(json.dumps(text, ensure_ascii=False) + "\n", self.mark)


def read_tools(body: Mapping[str, Any], answer_schema: str, *, nested: bool) -> Tools | None:
    """The tools of a request; None when the model is to call none.

    Args:
        answer_schema: JSON schema that an answer in words must follow; empty for any words.
        nested: whether a function's definition and its choice have an object of their own, as in chat.

    Raises:
        RequestError: with the field in `param`.
    """
    given = body.get("tools")
    if given is not None and (not isinstance(given, list) or len(given) > TOOLS_MAX):
        raise invalid("tools", "no list, or too long", f"send at most {TOOLS_MAX} tools")
    functions = {}
    for place, item in enumerate(given or ()):
        function = _function(item, f"tools[{place}]", nested=nested)
        if function.name in functions:
            raise invalid(f"tools[{place}]", f"a second tool {function.name}", "give each tool a name of its own")
        functions[function.name] = function
    several = body.get("parallel_tool_calls") is None or fields.flag(body, "parallel_tool_calls")
    must, names = _choice(body.get("tool_choice"), functions, nested=nested)
    if not names:
        return None
    chosen = [functions[name] for name in functions if name in names]
    comes = Comes.AT_ONCE if must else Comes.EITHER if answer_schema else Comes.AFTER
    if comes is Comes.EITHER:
        _check_both(body, answer_schema)
    return Tools(names, comes, _shown(chosen, comes), _grammar(chosen, comes, answer_schema, several=several))


def _function(item: object, where: str, *, nested: bool) -> _Function:
    if not isinstance(item, dict):
        raise invalid(where, "a tool is not an object", 'send {"type": "function", …}')
    if item.get("type") != "function":
        raise unsupported(f"{where}.type", f"this model calls functions, no {str(item.get('type'))[:40]!r}")
    holder = item.get("function") if nested else item
    at = f"{where}.function" if nested else where
    if not isinstance(holder, dict):
        raise invalid(at, "no definition", 'send {"name": "…", "parameters": {…}}')
    name, description = holder.get("name"), holder.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise invalid(f"{at}.name", "no name", f"use 1 to {TOOL_NAME_CHARS_MAX} letters, digits, _ and -")
    if description is not None and not isinstance(description, str):
        raise invalid(f"{at}.description", "a description is no text", "send a string")
    fields.flag(holder, "strict", f"{at}.")
    parameters = holder.get("parameters")
    schema = _NOTHING if parameters is None else fields.schema(parameters, f"{at}.parameters")
    if schema.get("type", "object") != "object":
        raise invalid(f"{at}.parameters.type", "arguments are an object", 'send {"type": "object", …}')
    return _Function(name, description or "", {"type": "object", **schema}, mark_of(item, where))


def _choice(choice: object, functions: Mapping[str, _Function], *, nested: bool) -> tuple[bool, frozenset[str]]:
    """Whether the model must call, and which tools it may."""
    every = frozenset(functions)
    if choice is None or choice == "auto":
        return False, every
    if choice == "none":
        return False, frozenset()
    if not functions:
        raise invalid("tool_choice", "a choice without tools", "send tools, or leave tool_choice out")
    if choice == "required":
        return True, every
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and kind == "function":
        return True, frozenset((_named(choice, functions, "tool_choice", nested=nested),))
    if isinstance(choice, dict) and kind == "allowed_tools":
        holder = choice.get("allowed_tools") if nested else choice
        listed = holder.get("tools") if isinstance(holder, dict) else None
        mode = holder.get("mode") if isinstance(holder, dict) else None
        if not isinstance(listed, list) or not listed or mode not in ("auto", "required"):
            raise invalid("tool_choice", "no allowed tools", 'send {"mode": "auto", "tools": […]}')
        names = frozenset(_named(one, functions, "tool_choice.tools", nested=nested) for one in listed)
        return mode == "required", names
    raise invalid("tool_choice", "unknown choice", "use none, auto, required, or name a function of tools")


def _named(choice: object, functions: Mapping[str, _Function], where: str, *, nested: bool) -> str:
    holder = choice.get("function") if nested and isinstance(choice, dict) else choice
    name = holder.get("name") if isinstance(holder, dict) else None
    if not isinstance(name, str) or name not in functions:
        raise invalid(where, "names no function of tools", f"name one of {', '.join(functions)}"[:300])
    return name


def _check_both(body: Mapping[str, Any], answer_schema: str) -> None:
    """What cannot be asked beside a choice between calls and words under a schema."""
    if json.loads(answer_schema).get("type") != "object":
        raise unsupported("tools", "beside a JSON schema of anything but an object")
    if body.get("stop"):
        raise unsupported("stop", "beside tools and a JSON schema")


def _shown(functions: list[_Function], comes: Comes) -> Message:
    how = {
        Comes.AFTER: f"\nTo use tools, say nothing but {OPENING} and a JSON array of calls:\n{OPENING}{_CALL}\n"
        "If no tool helps, answer in words.",
        Comes.AT_ONCE: f"\nAnswer with {OPENING} and a JSON array of calls:\n{OPENING}{_CALL}",
        Comes.EITHER: f"\nTo use tools, say nothing but a JSON array of calls:\n{_CALL}\n"
        "If no tool helps, answer with a JSON object.",
    }[comes]
    said = (Said(_SHOWN, template=True), *(one.shown() for one in functions), Said(how, template=True))
    return Message("system", "".join(one.text for one in said), said)


# The grammar of calls


def _grammar(functions: list[_Function], comes: Comes, answer_schema: str, *, several: bool) -> str:
    definitions = {f"arguments_{number}": one.parameters for number, one in enumerate(functions)}
    one_of = [
        {
            "type": "object",
            "properties": {"name": {"const": one.name}, "arguments": {"$ref": f"#/$defs/arguments_{number}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number, one in enumerate(functions)
    ]
    most = TOOL_CALLS_MAX if several else 1
    calls: dict[str, Any] = {"type": "array", "items": {"anyOf": one_of}, "minItems": 1, "maxItems": most}
    if comes is Comes.EITHER:
        definitions["words"] = json.loads(answer_schema)
        calls = {"anyOf": [calls, {"$ref": "#/$defs/words"}]}
    moved = {name: _moved(schema, f"#/$defs/{name}") for name, schema in definitions.items()}
    return json.dumps({**calls, "$defs": moved})


def _moved(schema: Any, root: str) -> Any:
    """A schema that stands at `root` of a larger one: its references to itself go there.

    An object that names properties and does not say whether it has others has none: a model that may invent some does.
    """
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {
        name: {key: _moved(one, root) for key, one in value.items()}
        if name in _TABLES and isinstance(value, Mapping)
        else value
        if name in _VALUES
        else _moved(value, root)
        for name, value in schema.items()
    }
    if isinstance(named := schema.get("$ref"), str):
        moved["$ref"] = root + named.removeprefix("#")
    if isinstance(schema.get("properties"), Mapping):
        moved.setdefault("additionalProperties", False)
    return moved
