"""What a text says of whether a JSON schema was followed."""

from __future__ import annotations

import pytest

from headwater.core.errors import InvalidError
from headwater.models.structured import check_follows


@pytest.mark.parametrize(
    ("schema", "text", "whole"),
    [
        ('{"type": "object"}', ' {"a": 1}', True),
        ('{"type": "object"}', '{"a": "un', False),
        ('{"type": "array"}', "[1", False),
        ('{"enum": ["a", 1]}', "1", True),
        ('{"type": ["object", "null"]}', "null", True),
        ('{"type": "object"}', "", False),
    ],
)
def test_json_and_its_beginnings_pass(schema: str, text: str, whole: bool):
    """An answer that was cut short need not be whole."""
    check_follows(schema, text, whole=whole)


@pytest.mark.parametrize(
    ("schema", "text", "whole"),
    [
        ('{"type": "object"}', "The river", False),
        ('{"type": "object"}', "[1]", True),
        ('{"type": "object"}', '{"a": ', True),
        ('{"$ref": "#/nowhere"}', "Once", False),
        ('{"type": "nonsense"}', "So it is", True),
    ],
)
def test_a_text_that_is_none_means_the_schema_was_not_followed(schema: str, text: str, whole: bool):
    """The engine itself says nothing."""
    with pytest.raises(InvalidError) as refused:
        check_follows(schema, text, whole=whole)

    assert refused.value.code == "schema_invalid"
