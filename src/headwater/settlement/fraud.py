"""What is wrong with a root, as something the chain can judge: two paths, or the top of a tree.

`find_fraud` compares the tree of the root before with the tree that was published for the pending one; what it
gives is what `Disputes.vy` takes. Knows nothing of chains, bonds or how a tree was obtained.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.settlement.tree import PayoutTree


@dataclass(frozen=True, slots=True)
class Shown:
    """What a tree has at an index."""

    index: int
    address: str | None  # None when nobody stands there
    amount: int  # cumulative token units, 0 when nobody does
    path: tuple[bytes, ...]  # siblings, lowest first; of the index modulo the tree's width when it is beyond


@dataclass(frozen=True, slots=True)
class Lowered:
    """An index whose leaf fell, left or changed its account from one root to the next."""

    old: Shown
    new: Shown


@dataclass(frozen=True, slots=True)
class WrongSum:
    """Leaves that add up to something else than the total that was posted."""

    depth: int
    top: bytes  # 32
    total: int  # token units they add up to


Fraud = Lowered | WrongSum


def show(tree: PayoutTree, index: int) -> Shown:
    """What `tree` has at `index`, to answer a challenge with or to refute a root by."""
    place = index & ((1 << tree.depth) - 1)
    # Beyond the tree the leaf at the index's place is shown: its path proves how deep the tree is.
    leaf = tree.find(place)
    return Shown(index, leaf.address if leaf else None, leaf.amount if leaf else 0, tree.path(place))


def find_fraud(before: PayoutTree | None, after: PayoutTree, posted_total: int) -> Fraud | None:
    """The first thing by which the chain itself would refuse `after`, or None.

    Args:
        before: the tree of the root before; None for the first epoch.
        after: the tree behind the pending root.
        posted_total: cumulative token units that were posted with it.
    """
    if after.total != posted_total:
        return WrongSum(after.depth, after.top, after.total)
    for leaf in before.leaves if before else ():
        new = after.find(leaf.index)
        if new is None or new.address != leaf.address or new.amount < leaf.amount:
            assert before is not None
            return Lowered(show(before, leaf.index), show(after, leaf.index))
    return None
