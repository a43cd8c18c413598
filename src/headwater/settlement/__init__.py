"""Settlement: a closed epoch becomes a tree of cumulative amounts, and a payee gets a proof of its own.

Pure: it knows nothing of databases, of how a root reaches a chain, or of what has been paid there.
"""

from headwater.core.address import format_address, parse_address
from headwater.settlement.claim import Claim, changes_refused, claim_of, due, plan_pushes
from headwater.settlement.mapped_tree import MappedTree
from headwater.settlement.tree import (
    Domain,
    Leaf,
    PayoutTree,
    Proof,
    RangeProof,
    verify,
    verify_absent,
    verify_range,
)

__all__ = [
    "Claim",
    "Domain",
    "Leaf",
    "MappedTree",
    "PayoutTree",
    "Proof",
    "RangeProof",
    "changes_refused",
    "claim_of",
    "due",
    "format_address",
    "parse_address",
    "plan_pushes",
    "verify",
    "verify_absent",
    "verify_range",
]
