"""The chain: an embedded one, a development node or a real network, seen through one client.

Roots go on it, money is claimed from it, and a stranger reads it with an address and a manifest. Nothing
here is imported from web3 or the EVM before it is used, so the base package runs without them. This package
knows nothing of ledgers, receipts, databases or how an epoch is computed.
"""

from headwater.chain.artifacts import Artifact, read_artifact
from headwater.chain.client import Chain, Paid, PostedEpoch, VaultStatus
from headwater.chain.contract import Contract, Deployments
from headwater.chain.credit import ClosedVouchers, Credit, CreditAccount
from headwater.chain.disputes import Disputes, OpenChallenge
from headwater.chain.embedded import EmbeddedChain
from headwater.chain.manifest import Manifest
from headwater.chain.payees import Payees, Recipient
from headwater.chain.sender import RevertedError, Sent
from headwater.chain.signer import (
    KeySigner,
    Signer,
    derived_signer,
    signer_from_environment,
    signer_from_file,
    signer_from_text,
)

__all__ = [
    "Artifact",
    "Chain",
    "ClosedVouchers",
    "Contract",
    "Credit",
    "CreditAccount",
    "Deployments",
    "Disputes",
    "EmbeddedChain",
    "KeySigner",
    "Manifest",
    "OpenChallenge",
    "Paid",
    "Payees",
    "PostedEpoch",
    "Recipient",
    "RevertedError",
    "Sent",
    "Signer",
    "VaultStatus",
    "derived_signer",
    "read_artifact",
    "signer_from_environment",
    "signer_from_file",
    "signer_from_text",
]
