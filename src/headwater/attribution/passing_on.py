"""Conversations: an earlier answer that helped a later one passes its credit on to its own sources.

An earlier turn is a part like any other. Where it is an answer of ours, its receipt says who supplied it: its
share is divided by those weights, and what nobody supplied stays with the turn itself. Pure and one level
deep: an earlier receipt has already passed on what came before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headwater.attribution.bits import Share
from headwater.core.errors import InvalidError
from headwater.core.money import PPB, allocate


@dataclass(frozen=True, slots=True)
class Earlier:
    """Who supplied an earlier answer, as its receipt says."""

    weights: tuple[tuple[str, str, int], ...]  # (part, owner, weight_ppb)
    residual_ppb: int

    def __post_init__(self) -> None:
        every = [weight for _, _, weight in self.weights] + [self.residual_ppb]
        if sum(every) != PPB or min(every) < 0:
            raise InvalidError(
                f"weights and residual of an earlier answer sum to {sum(every)} ppb",
                code="shares_not_whole",
                fix="take them from its receipt",
            )


def pass_on(shares: Sequence[Share], earlier: Mapping[str, Earlier]) -> tuple[Share, ...]:
    """Shares in which earlier answers have handed theirs to their own sources.

    Args:
        shares: of a measured answer.
        earlier: for parts that are earlier answers, who supplied those.

    Returns:
        The same bits, intervals and weights in all, per token too: a source that is also in the prompt has both in
        one share, sources of earlier answers follow in the order they are met. A turn keeps its residual.

    >>> import numpy as np
    >>> turn = Share("turn-1", "us", "grounded", 10**9, 8.0, 8.0, 8.0, np.array([8.0]))
    >>> shares = pass_on([turn], {"turn-1": Earlier((("doc", "ann", 750_000_000),), 250_000_000)})
    >>> [(share.part_id, share.bits, share.weight_ppb) for share in shares]
    [('turn-1', 2.0, 250000000), ('doc', 6.0, 750000000)]
    """
    given: dict[tuple[str, str], Share] = {}
    for share in shares:
        parts = earlier[share.part_id].weights if share.part_id in earlier and share.channel == "grounded" else ()
        kept = PPB - sum(weight for _, _, weight in parts)
        weights = allocate(share.weight_ppb, [kept, *(weight for _, _, weight in parts)])
        _add(given, _fraction(share, share.part_id, share.owner, kept, weights[0]))
        for (part, owner, ppb), weight in zip(parts, weights[1:], strict=True):
            _add(given, _fraction(share, part, owner, ppb, weight))
    return tuple(given.values())


def _fraction(share: Share, part_id: str, owner: str, ppb: int, weight_ppb: int) -> Share:
    part = ppb / PPB
    return replace(
        share,
        part_id=part_id,
        owner=owner,
        weight_ppb=weight_ppb,
        bits=share.bits * part,
        low_bits=share.low_bits * part,
        high_bits=share.high_bits * part,
        token_bits=share.token_bits * part,
    )


def _add(given: dict[tuple[str, str], Share], share: Share) -> None:
    key = (share.part_id, share.channel)
    if (there := given.get(key)) is None:
        given[key] = share
        return
    given[key] = replace(
        there,
        weight_ppb=there.weight_ppb + share.weight_ppb,
        bits=there.bits + share.bits,
        low_bits=there.low_bits + share.low_bits,
        high_bits=there.high_bits + share.high_bits,
        token_bits=there.token_bits + share.token_bits,
    )
