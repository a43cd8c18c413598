"""Whether an answer follows the JSON schema it was asked to follow, as far as a text says so before it has left.

The engine says nothing of a schema that it cannot follow: it answers as if there were none. So a whole answer has
to be JSON, and one that was cut has to begin like it; else the schema is refused, and the answer is neither given nor
charged.
"""

from __future__ import annotations

import json
from typing import Final

from headwater.core.errors import InvalidError

_BEGINNINGS: Final = {"object": "{", "array": "[", "string": '"', "boolean": "tf", "null": "n"}
_ANY: Final = '{["-0123456789tfn'


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
