"""What every scorer asks of its contexts before it measures any of them."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.core.errors import InvalidError


def check_window(contexts: Sequence[Sequence[int]], answer: Sequence[int], tokens_max: int) -> None:
    """Refuse contexts that nothing can be scored after.

    Args:
        contexts: token ids of each prompt.
        answer: token ids that follow each of them.
        tokens_max: the longest context and answer together.

    Raises:
        InvalidError: ``context_empty`` or ``context_too_long``, with the context's number.
    """
    for index, context in enumerate(contexts):
        if not context:
            raise InvalidError(
                f"context {index} has 0 tokens",
                code="context_empty",
                fix="keep at least one fixed token, such as the template's first, in every context",
            )
        if len(context) + len(answer) > tokens_max:
            raise InvalidError(
                f"context {index} of {len(context)} and answer of {len(answer)} tokens do not fit "
                f"the window of {tokens_max}",
                code="context_too_long",
                fix="use fewer or shorter sources",
            )
