"""Rails: bonds, revenue shares, advances, streams and governance, each optional and off until it is deployed.

They stand beside settlement and redistribute callers' money; none of them mints anything or is needed for a payment.
The chain comes as an argument (`Contracts`), the caller composes. This package knows nothing of databases, models,
settings or the command line, and not how a policy is simulated.
"""

from headwater.rails.advances import AdvancePool, LaneState, PoolLimits
from headwater.rails.bond_book import BondBook, Role, Slash, SlashRequest, SlashState, Stake
from headwater.rails.chain_bonds import ChainBonds
from headwater.rails.digests import digest_bytes, digest_text
from headwater.rails.governance import Governance, Proposal
from headwater.rails.ledger_bonds import BondRules, LedgerBonds, bond_account
from headwater.rails.manifest import RAILS, Issued, RailsManifest
from headwater.rails.seams import ContractHandle, Contracts
from headwater.rails.shares import Backing, Holding, RevenueShares
from headwater.rails.streams import Flow, Streams
from headwater.rails.voter_roll import VoterRoll, cluster_key, governance_domain, sign_roll, sign_vote

__all__ = [
    "RAILS",
    "AdvancePool",
    "Backing",
    "BondBook",
    "BondRules",
    "ChainBonds",
    "ContractHandle",
    "Contracts",
    "Flow",
    "Governance",
    "Holding",
    "Issued",
    "LaneState",
    "LedgerBonds",
    "PoolLimits",
    "Proposal",
    "RailsManifest",
    "RevenueShares",
    "Role",
    "Slash",
    "SlashRequest",
    "SlashState",
    "Stake",
    "Streams",
    "VoterRoll",
    "bond_account",
    "cluster_key",
    "digest_bytes",
    "digest_text",
    "governance_domain",
    "sign_roll",
    "sign_vote",
]
