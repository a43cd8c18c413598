"""Receipts: the record of a paid call, its signature, the Merkle log it stands in, and how a stranger checks it.

Knows nothing of how shares or payouts were computed, nor of files, clocks, databases or chains.
"""

from headwater.attribution.bits import microbits
from headwater.receipts.form import Issued, ReceiptForm
from headwater.receipts.log import (
    EMPTY_ROOT,
    Frontier,
    InclusionProof,
    LogTree,
    TreeHead,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from headwater.receipts.receipt import (
    ModelUse,
    Receipt,
    ReceiptAttribution,
    ReceiptOwner,
    ReceiptPayout,
    ReceiptShare,
    Usage,
)
from headwater.receipts.signing import KeySigner, SignedReceipt, Signer, issue, recover
from headwater.receipts.verify import Bundle, Check, EpochManifest, PayoutProof, manifest_hash, verify_receipt

__all__ = [
    "EMPTY_ROOT",
    "Bundle",
    "Check",
    "EpochManifest",
    "Frontier",
    "InclusionProof",
    "Issued",
    "KeySigner",
    "LogTree",
    "ModelUse",
    "PayoutProof",
    "Receipt",
    "ReceiptAttribution",
    "ReceiptForm",
    "ReceiptOwner",
    "ReceiptPayout",
    "ReceiptShare",
    "SignedReceipt",
    "Signer",
    "TreeHead",
    "Usage",
    "issue",
    "leaf_hash",
    "manifest_hash",
    "microbits",
    "recover",
    "verify_consistency",
    "verify_inclusion",
    "verify_receipt",
]
