"""Who plays, decided before anything is measured: one owner is one player, and a copy plays for its original.

Two copies share their credit equally in any fair game, whoever wrote first; so ownership is not left
to the game. Pure: texts, owners and times of registration decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.attribution.layout import Part
from headwater.registry.near_duplicates import merge_near_duplicates


@dataclass(frozen=True, slots=True)
class Ownership:
    """The players of a game, as indices into a prompt's player parts."""

    unions: tuple[tuple[int, ...], ...]  # partition of all parts; each is one player
    copies: tuple[tuple[int, int], ...]  # (copy, original): whose credit goes to the original's owner


def settle_ownership(players: Sequence[Part], copy_threshold: float) -> Ownership:
    """Decide who plays before anything is measured.

    Args:
        players: the parts that can be taken away, earliest registered first among copies.
        copy_threshold: Jaccard similarity of word shingles from which a later part is a copy.

    Returns:
        Unions such that one owner, with the copies of its parts, is one player; a part is a copy when
        the earliest part it resembles is another owner's.
    """
    union_of = list(range(len(players)))
    copies: dict[int, int] = {}

    def join(a: int, b: int) -> None:
        low, high = sorted((union_of[a], union_of[b]))
        union_of[:] = [low if union == high else union for union in union_of]

    for group in merge_near_duplicates([part.text for part in players], copy_threshold):
        original = min(group, key=lambda i: (players[i].registered_at_ns, i))
        for i in group:
            join(i, original)
            if players[i].owner != players[original].owner:
                copies[i] = original
    for i, part in enumerate(players):
        for j in range(i):
            if players[j].owner == part.owner:
                join(i, j)
    unions = tuple(tuple(i for i, union in enumerate(union_of) if union == label) for label in dict.fromkeys(union_of))
    return Ownership(unions, tuple(sorted(copies.items())))


def everyone_apart(players: Sequence[Part]) -> Ownership:
    """Every part is its own player, copies and parts of one owner too: the plain Shapley game."""
    return Ownership(tuple((i,) for i in range(len(players))), ())
