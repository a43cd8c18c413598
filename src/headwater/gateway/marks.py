"""What a caller says of sources: our own object `headwater`, a registered prompt by its id, and marks on messages.

    "headwater": {"retrieve": 4, "prompt": "ctb_…", "passages": [{"id": "ctb_…", "text": "…"}], "contribute": true}
    "prompt": {"id": "ctb_…"}
    {"role": "tool", "content": "…", "headwater": {"contribution": "ctb_…"}}          a message, all of it
    {"type": "text", "text": "…", "headwater": {"contribution": "ctb_…"}}             a part of one
    {"type": "text", "text": "…", "_meta": {"headwater": {"contribution": "ctb_…"}}}  the same, as MCP results say it

Only these fields make a text a source; nothing that stands in a text does. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from headwater.core.ids import ContributionId
from headwater.core.limits import MARKED_MAX, SOURCES_MAX
from headwater.gateway.errors import RequestError
from headwater.serving import Message, Said

FIELD: Final = "headwater"
PREFIX: Final = "ctb_"
_KNOWN: Final = ("retrieve", "sources", "prompt", "contribute", "passages")
_TEXT_PARTS: Final = ("text", "input_text", "output_text")
_ID_CHARS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Extension:
    """What a request says in our own fields."""

    sources: int | None = None  # how many passages to find; None leaves it to the model
    prompt: ContributionId | None = None
    contribute: bool | None = None
    passages: tuple[Said, ...] = ()  # the caller's own


def read_extension(body: Mapping[str, Any], *, prompt_field: bool = True) -> Extension:
    """Our own fields of a request.

    Args:
        prompt_field: whether the field `prompt` may name a registered prompt; not where it is the text itself.

    Raises:
        RequestError: with the field in `param`.
    """
    extension = body.get(FIELD)
    named = _prompt_field(body.get("prompt")) if prompt_field else None
    if extension is None:
        return Extension(prompt=named)
    if not isinstance(extension, dict):
        raise invalid(FIELD, "headwater is not an object", 'send {"retrieve": 4}')
    for name in extension:
        if name not in _KNOWN:
            raise RequestError(
                f"unknown parameter {name[:80]!r} in headwater",
                param=f"headwater.{name[:80]}",
                code="unknown_parameter",
                fix=f"use {', '.join(_KNOWN)}",
            )
    prompt = _prompt(extension.get("prompt"), "headwater.prompt")
    if prompt is not None and named is not None and prompt != named:
        raise invalid("prompt", "prompt and headwater.prompt differ", "send one of them")
    return Extension(
        sources=_sources(extension),
        prompt=prompt or named,
        contribute=_flag(extension.get("contribute")),
        passages=_passages(extension.get("passages")),
    )


def names_prompt(value: object) -> bool:
    """Whether a field `prompt` names a registered prompt of ours."""
    return isinstance(value, dict) and isinstance(named := value.get("id"), str) and named.startswith(PREFIX)


def _prompt_field(value: object) -> ContributionId | None:
    if not names_prompt(value):
        return None
    assert isinstance(value, dict)
    for name, given in value.items():
        if name != "id" and given is not None:
            raise RequestError(
                f"prompt.{name[:80]} is not supported: registered prompts have no variables or versions",
                param=f"prompt.{name[:80]}",
                code="unsupported_parameter",
                fix="leave it out",
            )
    return contribution(value["id"], "prompt.id")


def _prompt(value: object, where: str) -> ContributionId | None:
    if value is None:
        return None
    if isinstance(value, dict) and set(value) == {"id"}:
        value = value["id"]
    return contribution(value, where)


def _sources(extension: Mapping[str, Any]) -> int | None:
    given = {name: extension[name] for name in ("retrieve", "sources") if extension.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= SOURCES_MAX:
            shown = value if isinstance(value, int | float) and abs(value) < 1e15 else f"a {type(value).__name__}"
            raise invalid(f"headwater.{name}", f"{name} is {shown}", f"use a whole number from 0 to {SOURCES_MAX}")
    if len(set(given.values())) > 1:
        raise invalid("headwater.retrieve", "retrieve and sources differ", "send one of them")
    return next(iter(given.values()), None)


def _passages(value: object) -> tuple[Said, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MARKED_MAX:
        raise invalid("headwater.passages", "no list, or too long", f"send at most {MARKED_MAX} passages")
    return tuple(_passage(item, f"headwater.passages[{i}]") for i, item in enumerate(value))


def _passage(item: object, where: str) -> Said:
    if not isinstance(item, dict) or not set(item) <= {"id", "text"}:
        raise invalid(where, "not a passage", 'send {"id": "ctb_…", "text": "…"}')
    text = item.get("text")
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise invalid(f"{where}.text", "no text", "send words of the contribution, or leave it out for all of it")
    return Said(text or "", contribution(item.get("id"), f"{where}.id"))


def _flag(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise invalid("headwater.contribute", "contribute is neither true nor false", "send true or false")


def contribution(value: object, where: str) -> ContributionId:
    """The id of a contribution.

    Raises:
        RequestError: it is none.
    """
    if isinstance(value, str) and value.startswith(PREFIX) and len(value) <= _ID_CHARS_MAX:
        return ContributionId(value)
    raise invalid(where, "not a contribution id", "send the ctb_… of a registered contribution")


# Marks on messages


def mark_of(table: Mapping[str, Any], where: str) -> ContributionId | None:
    """The contribution that a message or a part of one is marked as coming from."""
    meta = table.get("_meta")
    mark = table.get(FIELD)
    if mark is None and isinstance(meta, dict):
        mark = meta.get(FIELD)
    if mark is None:
        return None
    if not isinstance(mark, dict) or set(mark) != {"contribution"}:
        raise invalid(f"{where}.{FIELD}", "not a mark", 'send {"contribution": "ctb_…"}')
    return contribution(mark["contribution"], f"{where}.{FIELD}.contribution")


def message(role: str, said: Iterable[Said]) -> Message:
    """A message of stretches; they are kept apart only where one of them is marked."""
    kept = tuple(one for one in said if one.text)
    text = "".join(one.text for one in kept)
    return Message(role, text, kept if any(one.contribution is not None for one in kept) else ())


def stretches(content: object, whole: ContributionId | None, where: str) -> list[Said]:
    """The texts in a message's content, whatever else is in it, each with its mark: its own, or that of the `whole`."""
    if isinstance(content, str):
        return [Said(content, whole)]
    found = []
    for place, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
            found.append(Said(part["text"], mark_of(part, f"{where}[{place}]") or whole))
        elif isinstance(part, str):
            found.append(Said(part, whole))
    return found


def unmarked(table: Mapping[str, Any]) -> dict[str, Any]:
    """A message or a part of one without its marks, as another server is to see it."""
    kept = {name: value for name, value in table.items() if name != FIELD}
    meta = kept.get("_meta")
    if isinstance(meta, dict) and FIELD in meta:
        kept["_meta"] = {name: value for name, value in meta.items() if name != FIELD}
        if not kept["_meta"]:
            del kept["_meta"]
    for name in ("content", "output"):
        if isinstance(kept.get(name), list):
            kept[name] = [unmarked(part) if isinstance(part, dict) else part for part in kept[name]]
    return kept


def has_mark(item: object) -> bool:
    """Whether a message, or a part of it, is marked; what is not well formed counts, so that it is refused."""
    if not isinstance(item, dict):
        return False
    meta = item.get("_meta")
    if item.get(FIELD) is not None or (isinstance(meta, dict) and meta.get(FIELD) is not None):
        return True
    return any(
        has_mark(part) for name in ("content", "output") if isinstance(item.get(name), list) for part in item[name]
    )


def invalid(param: str, why: str, fix: str) -> RequestError:
    """The refusal of a value."""
    return RequestError(f"{param}: {why}", param=param, code="invalid_value", fix=fix)
