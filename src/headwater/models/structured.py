"""Whether an answer follows the JSON schema it was asked to follow, as far as a text says so before it has left.

The engine says nothing of a schema that it cannot follow: it answers as if there were none. So a whole answer has
to be JSON, and one that was cut has to begin like it; else the schema is refused, and the answer is neither given nor
charged.

An answer may also come under a schema only once it has said certain words, its *opening*: up to there it is free. The
opening counts at the beginning of a line and nowhere else, so that a sentence may speak of it.
"""

from __future__ import annotations

import json
import re
from typing import Final

from headwater.core.errors import InvalidError

_BEGINNINGS: Final = {"object": "{", "array": "[", "string": '"', "boolean": "tf", "null": "n"}
_ANY: Final = '{["-0123456789tfn'
_LINE: Final = r"(?:\A|\n)[ \t\r\n]*"


def check_follows(schema: str, text: str, *, whole: bool) -> None:
    """Refuse a schema that an answer shows was not followed.

    Args:
        schema: JSON.
        text: the answer so far.
        whole: whether the model ended it by itself.

    Raises:
        InvalidError: ``schema_invalid``.

    >>> check_follows('{"type": "object"}', '{"a": 1', whole=False)
    """
    asked = json.loads(schema)
    kind = asked.get("type") if isinstance(asked, dict) else None
    beginning = text.lstrip()[:1]
    fine = not beginning or beginning in _BEGINNINGS.get(kind if isinstance(kind, str) else "", _ANY)
    if whole:
        try:
            json.loads(text)
        except ValueError:
            fine = False
    if not fine:
        raise InvalidError(
            "the engine cannot follow the JSON schema",
            code="schema_invalid",
            fix="send a JSON schema of objects, arrays, strings, numbers and enums",
        )


def opening_pattern(opening: str) -> str:
    """The regular expression of an opening where it counts: it matches from the line break before it on.

    >>> re.search(opening_pattern("<call>"), "so:\\n <call>[").span()
    (3, 11)
    >>> re.search(opening_pattern("<call>"), "one writes <call> here") is None
    True
    """
    return _LINE + re.escape(opening)


def begun_pattern(opening: str) -> str:
    """The regular expression of an end of a text that may yet become an opening.

    >>> re.search(begun_pattern("<call>"), "so:\\n<ca").start(), re.search(begun_pattern("<call>"), "so: <ca")
    (3, None)
    """
    beginnings = "|".join(re.escape(opening[:size]) for size in range(len(opening) - 1, 0, -1))
    return rf"{_LINE}(?:{beginnings})?\Z"
