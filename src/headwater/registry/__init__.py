"""Who contributed what, on which terms, and what those terms allow: values and pure functions.

Knows nothing of files, databases, clocks, scores or money that was earned.
"""

from __future__ import annotations

from headwater.registry.contribution import (
    KINDS,
    Contribution,
    Kind,
    Ownership,
    contribute,
    describe,
    equal_shares,
    owned_equally,
    registry_digest,
    snapshot_digest,
)
from headwater.registry.contributor import (
    Contributor,
    account_for,
    checksum_address,
    enrolled,
    unenrolled,
)
from headwater.registry.gate import Refusal, permits, permitted
from headwater.registry.intake import Admitted, Candidate, Intake, Known, admit
from headwater.registry.license import USES, License, Use, parse_expression
from headwater.registry.near_duplicates import merge_near_duplicates, resemblance, shingles

__all__ = [
    "KINDS",
    "USES",
    "Admitted",
    "Candidate",
    "Contribution",
    "Contributor",
    "Intake",
    "Kind",
    "Known",
    "License",
    "Ownership",
    "Refusal",
    "Use",
    "account_for",
    "admit",
    "checksum_address",
    "contribute",
    "describe",
    "enrolled",
    "equal_shares",
    "merge_near_duplicates",
    "owned_equally",
    "parse_expression",
    "permits",
    "permitted",
    "registry_digest",
    "resemblance",
    "shingles",
    "snapshot_digest",
    "unenrolled",
]
