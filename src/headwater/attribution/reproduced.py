"""The reproduced channel: the base model's bits on words that copy a registered text which was not in the context.

A credited span says whose words they are; the bits are the model's own on exactly those tokens, moved from
the base model's account, so no bit is counted twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from headwater.attribution.spans import CreditPiece


@dataclass(frozen=True, slots=True)
class Copied:
    """The answer tokens that repeat one registered text."""

    part_id: str  # the contribution whose words they are
    owner: str
    tokens: tuple[int, ...]  # positions in the answer, ascending


def copied_tokens(pieces: Sequence[CreditPiece], token_ends: Sequence[int]) -> tuple[Copied, ...]:
    """Which answer tokens the credited pieces cover.

    Args:
        pieces: credited spans of the answer's text, in bytes, that do not overlap.
        token_ends: (tokens,) byte offset in the answer's UTF-8 at which each token ends, ascending.

    Returns:
        One entry a contribution, in text order. A token belongs to the piece that holds its middle, so to one at most.
    """
    found: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    starts = [0, *token_ends[:-1]]
    for piece in pieces:
        for position, (start, end) in enumerate(zip(starts, token_ends, strict=True)):
            # Twice the middle, to stay in whole numbers; a token without bytes of its own belongs to nobody.
            if start < end and 2 * piece.start <= start + end < 2 * piece.end:
                found[piece.document_id, piece.owner].append(position)
    return tuple(Copied(part_id, owner, tuple(tokens)) for (part_id, owner), tokens in found.items())
