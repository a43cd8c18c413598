"""One account of a call from several: of several answers to one prompt, and of parts that are one contribution.

Bits add up, over answers as over parts, and so do the ends of their intervals. Weights are not added: they are made
anew from the sums, by the same rule as those of a single answer. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from headwater.attribution.account import Rules
from headwater.attribution.bits import Attribution, Share, microbits, sure_and_unsure, weigh


def combine(found: Sequence[Attribution], rules: Rules) -> Attribution:
    """The account of several answers to one prompt, as of one answer that is all of them in turn.

    Args:
        found: one account for each answer, at least one; parts may be missing in some of them.

    Returns:
        Shares in the order in which they are met; tokens of the answers one after the other; the worst grade.
    """
    if len(found) == 1:
        return found[0]
    starts = np.cumsum([0, *(len(one.base_token_bits) for one in found)])
    given: dict[tuple[str, str], Share] = {}
    for one, start in zip(found, starts, strict=False):
        for share in one.shares:
            token_bits = np.zeros(int(starts[-1]))
            token_bits[start : start + len(share.token_bits)] = share.token_bits
            add_share(given, replace(share, token_bits=token_bits))
    whole = replace(
        found[0],
        base_bits=sum(one.base_bits for one in found),
        total_bits=sum(one.total_bits for one in found),
        base_token_bits=np.concatenate([one.base_token_bits for one in found]),
        grade=max(one.grade for one in found),
        passes=sum(one.passes for one in found),
        tokens=sum(one.tokens for one in found),
        players=max(one.players for one in found),
    )
    return weighed(whole, tuple(given.values()), rules)


def settle_parts(
    found: Attribution, contribution: Callable[[str], str | None], owner: Callable[[str], str], rules: Rules
) -> Attribution:
    """The account with one share for each contribution and channel, weighed anew, as its receipt will say it.

    Args:
        contribution: which one a part is from; None for a part that is nobody's, such as what an earlier answer keeps:
            its bits are the base model's.
        owner: whose a contribution is.
    """
    given: dict[tuple[str, str], Share] = {}
    base_bits, base_token_bits = found.base_bits, found.base_token_bits
    for share in found.shares:
        name = contribution(share.part_id)
        if name is None:
            base_bits, base_token_bits = base_bits + share.bits, base_token_bits + share.token_bits
        else:
            whose = owner(name) if share.channel == "grounded" else share.owner
            add_share(given, replace(share, part_id=name, owner=whose))
    return weighed(replace(found, base_bits=base_bits, base_token_bits=base_token_bits), tuple(given.values()), rules)


def weighed(found: Attribution, shares: Sequence[Share], rules: Rules) -> Attribution:
    """The account with these shares instead of its own, their weights made of their bits; reproduced ones come last."""
    own = [share for share in shares if share.channel != "reproduced"]
    copied = [share for share in shares if share.channel == "reproduced"]
    sure, unsure = sure_and_unsure(
        [(microbits(share.bits), microbits(share.low_bits)) for share in own],
        [share.owner if share.channel == "grounded" else None for share in own],
    )
    weights, residual = weigh(
        sure,
        [microbits(share.bits) for share in copied],
        microbits(found.base_bits),
        model_weight_ppm=rules.model_weight_ppm,
        evidence_floor_millibits=rules.evidence_floor_millibits,
        unsure=unsure,
    )
    return replace(
        found,
        shares=tuple(replace(share, weight_ppb=w) for share, w in zip((*own, *copied), weights, strict=True)),
        residual_ppb=residual,
    )


def add_share(given: dict[tuple[str, str], Share], share: Share) -> None:
    """Add a share to those of its part and channel, or begin them."""
    key = (share.part_id, share.channel)
    there = given.get(key)
    given[key] = share if there is None else _sum(there, share)


def _sum(one: Share, other: Share) -> Share:
    return replace(
        one,
        weight_ppb=one.weight_ppb + other.weight_ppb,
        bits=one.bits + other.bits,
        low_bits=one.low_bits + other.low_bits,
        high_bits=one.high_bits + other.high_bits,
        token_bits=one.token_bits + other.token_bits,
    )
