"""What a payee is handed to claim with, what is still due, and which ranges to push.

A `Claim` is self-contained: with it and the root that the chain holds, anybody can check it and anybody can
submit it; only the payee gains. Knows nothing of how a transaction is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headwater.core.canonical import Json
from headwater.core.errors import InvalidError, Problem
from headwater.core.limits import PAYOUT_UNITS_MAX, PUSH_PAYEES_MAX
from headwater.settlement.tree import DEPTH_MAX, Domain, Leaf, PayoutTree, Proof, verify

SCHEMA = "headwater.claim/1"

PUSH_GAS = 50_000
"""What a push costs whatever it pays: base, root, domain, path, event (measured, `bench/gas.py`)."""

POSITION_GAS = 2_100
"""What a position adds that is sent and hashed but not paid (measured, `bench/gas.py`)."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One payee's proof for one epoch, with all that it is bound to."""

    domain: Domain
    proof: Proof

    @property
    def epoch(self) -> int:
        """The epoch it claims from."""
        return self.domain.epoch

    def holds(self, root: bytes) -> bool:
        """Whether the root posted for the epoch contains this claim."""
        return verify(self.proof, self.domain, root)

    def as_json(self) -> Json:
        """The claim as JSON, amounts as decimal strings."""
        return {
            "schema": SCHEMA,
            "chain_id": self.domain.chain_id,
            "contract": self.domain.contract,
            "token": self.domain.token,
            "epoch": self.domain.epoch,
            "index": self.proof.leaf.index,
            "address": self.proof.leaf.address,
            "cumulative_token_units": str(self.proof.leaf.amount),
            "path": [sibling.hex() for sibling in self.proof.path],
        }

    @classmethod
    def from_json(cls, value: Json) -> Claim:
        """Read what `as_json` wrote.

        Raises:
            InvalidError: another schema, a missing field, or a value out of range.
        """
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']!r}")
            path = tuple(bytes.fromhex(sibling) for sibling in value["path"])
            if len(path) > DEPTH_MAX or any(len(sibling) != 32 for sibling in path):
                raise ValueError("path is not up to 32 digests")
            leaf = Leaf(int(value["index"]), value["address"], int(value["cumulative_token_units"]))
            domain = Domain(int(value["chain_id"]), value["contract"], value["token"], int(value["epoch"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidError(
                f"not a claim: {error}", code="claim_invalid", fix="use the claim as the operator issued it"
            ) from None
        return cls(domain, Proof(leaf, path))


def claim_of(tree: PayoutTree, index: int) -> Claim:
    """The claim of the payee at `index`.

    Raises:
        MissingError: nobody has that index in this epoch.
    """
    return Claim(tree.domain, tree.prove(index))


def due(leaf: Leaf, paid: int) -> int:
    """Token units still to be paid on `leaf` when `paid` have been; a lowered amount gives 0, never less.

    Raises:
        InvalidError: `paid` is not an amount.
    """
    if not 0 <= paid <= PAYOUT_UNITS_MAX:
        raise InvalidError(f"{paid} token units were paid", code="paid_invalid", fix="read it from the contract")
    return max(0, leaf.amount - paid)


def plan_pushes(tree: PayoutTree, wanted: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """The aligned ranges whose pushes reach all `wanted` indices for the least gas.

    Args:
        wanted: indices to pay, of leaves in the tree.

    Returns:
        (start, count) pairs, ascending: each a power of two of at most 256 positions, disjoint. Hand them to
        `PayoutTree.prove_range`, and the indices to the push, so that nobody else in a range is paid.

    Raises:
        MissingError: an index that nobody has.
    """
    indices = sorted({tree.leaf(index).index for index in wanted})
    size = min(PUSH_PAYEES_MAX, 1 << tree.depth)
    ranges: list[tuple[int, int]] = []
    at = 0
    while at < len(indices):
        start = indices[at] - indices[at] % size
        end = at
        while end < len(indices) and indices[end] < start + size:
            end += 1
        ranges += _cheapest(start, size, indices[at:end])[1]
        at = end
    return tuple(ranges)


def changes_refused(before: Sequence[Leaf], after: Sequence[Leaf]) -> tuple[Problem, ...]:
    """What is wrong with `after` as the epoch that follows `before`: a poster runs it before posting, a watcher after.

    An index keeps its address for ever, no amount falls and nobody who could claim is left out.
    """
    problems = []
    now = {leaf.index: leaf for leaf in after}
    places = {leaf.address: leaf.index for leaf in after}
    for leaf in before:
        where = f"index {leaf.index}"
        new = now.get(leaf.index)
        if new is None:
            problems.append(
                Problem(where, "leaf_left_out", f"{leaf.address} with {leaf.amount} units is gone", "keep every leaf")
            )
        elif new.address != leaf.address:
            problems.append(
                Problem(where, "leaf_reused", f"was {leaf.address}, is {new.address}", "give a new payee a new index")
            )
        elif new.amount < leaf.amount:
            problems.append(
                Problem(where, "leaf_lowered", f"{leaf.amount} units became {new.amount}", "amounts are cumulative")
            )
        moved = places.get(leaf.address, leaf.index)
        if moved != leaf.index:
            problems.append(
                Problem(where, "leaf_moved", f"{leaf.address} is now at {moved}", "an address keeps its index")
            )
    return tuple(problems)


def _cheapest(start: int, count: int, indices: list[int]) -> tuple[int, list[tuple[int, int]]]:
    """Gas and ranges of the cheapest way to reach `indices`, all within [start, start + count)."""
    if not indices:
        return 0, []
    whole = PUSH_GAS + POSITION_GAS * count
    if count == 1:
        return whole, [(start, count)]
    half = count // 2
    left = _cheapest(start, half, [i for i in indices if i < start + half])
    right = _cheapest(start + half, half, [i for i in indices if i >= start + half])
    apart = left[0] + right[0]
    return (apart, left[1] + right[1]) if apart < whole else (whole, [(start, count)])
