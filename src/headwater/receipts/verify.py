"""What a stranger does with a receipt: check it against its log, its epoch and the chain, trusting nobody.

A `Bundle` is one file with all that is needed besides the chain: the receipt, its signature, the proof
that it is in the log, the policy it was divided under and the manifest of its epoch. The chain is
asked for one number, the data hash of the epoch. Knows nothing of how to ask it, and takes the rules
of the split as an argument because they belong to a later stage.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headwater.core.canonical import Json, canonical, parse_canonical
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.ids import receipt_id
from headwater.core.keccak import keccak256
from headwater.core.limits import BUNDLE_SIZE_BYTES_MAX, PAYEES_MAX, PROOF_PATH_MAX, RECEIPT_SIZE_BYTES_MAX
from headwater.receipts import fields
from headwater.receipts.fields import integer, matching, record, rows
from headwater.receipts.log import InclusionProof, leaf_hash, verify_inclusion
from headwater.receipts.receipt import Receipt, ReceiptPayout
from headwater.receipts.signing import recover

BUNDLE_SCHEMA: Final = "headwater.bundle/1"
EPOCH_SCHEMA: Final = "headwater.epoch/1"


@dataclass(frozen=True, slots=True)
class PayoutProof:
    """That an account's cumulative amount is a leaf of the epoch's payout tree."""

    account: str
    index: int
    address: str  # of the payee: 0x and 40 lower-case hex digits
    amount: int  # cumulative, in units of the token
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """Everything a stranger needs besides the chain, as one file."""

    receipt: bytes  # canonical bytes
    signature: str  # 0x and 130 hex digits
    proof: InclusionProof
    policy: str  # TOML text
    manifest: bytes  # canonical bytes of the epoch's manifest
    payout_proofs: tuple[PayoutProof, ...] = ()

    def to_bytes(self) -> bytes:
        """The bundle as a canonical JSON file that `from_bytes` reads back."""
        return canonical(
            {
                "schema": BUNDLE_SCHEMA,
                "receipt": base64.b64encode(self.receipt).decode("ascii"),
                "signature": self.signature,
                "proof": {
                    "index": self.proof.index,
                    "size": self.proof.size,
                    "path": [node.hex() for node in self.proof.path],
                    "root": self.proof.root.hex(),
                },
                "policy": self.policy,
                "manifest": base64.b64encode(self.manifest).decode("ascii"),
                "payout_proofs": [
                    {
                        "account": proof.account,
                        "index": proof.index,
                        "address": proof.address,
                        "amount": str(proof.amount),
                        "path": [node.hex() for node in proof.path],
                    }
                    for proof in self.payout_proofs
                ],
            }
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> Bundle:
        """Read a bundle's file. Only its form is checked here; `verify_receipt` checks what it says.

        Raises:
            InvalidError: too large, not canonical JSON, or a field missing, unknown or of another form.
        """
        if len(raw) > BUNDLE_SIZE_BYTES_MAX:
            raise InvalidError(
                f"bundle takes {len(raw)} bytes, the limit is {BUNDLE_SIZE_BYTES_MAX}",
                code="bundle_too_large",
                fix="use the file as it was issued",
            )
        value = parse_canonical(raw)
        _BUNDLE(value, "$")
        proof = value["proof"]
        return cls(
            receipt=base64.b64decode(value["receipt"]),
            signature=value["signature"],
            proof=InclusionProof(proof["index"], proof["size"], _path(proof["path"]), bytes.fromhex(proof["root"])),
            policy=value["policy"],
            manifest=base64.b64decode(value["manifest"]),
            payout_proofs=tuple(
                PayoutProof(row["account"], row["index"], row["address"], int(row["amount"]), _path(row["path"]))
                for row in value["payout_proofs"]
            ),
        )


@dataclass(frozen=True, slots=True)
class EpochManifest:
    """What an epoch's manifest says that a receipt is checked against; the whole of it is bound by its hash."""

    epoch: int
    log_size: int
    log_root: bytes  # 32
    policy_digests: tuple[str, ...]
    registry_digest: str
    total_units: int
    tree_root: bytes  # 32, of the payout tree

    @classmethod
    def from_bytes(cls, raw: bytes) -> EpochManifest:
        """Read a manifest from its canonical bytes; fields beyond these are the epoch's own affair.

        Raises:
            InvalidError: not canonical JSON, or a field missing or of another form.
        """
        value = parse_canonical(raw)
        _MANIFEST(value, "$manifest")
        return cls(
            epoch=value["epoch"],
            log_size=value["log_size"],
            log_root=bytes.fromhex(value["log_root"]),
            policy_digests=tuple(value["policy_digests"]),
            registry_digest=value["registry_digest"],
            total_units=int(value["total_units"]),
            tree_root=bytes.fromhex(value["tree_root"].removeprefix("0x")),
        )


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked, whether it held, and what was seen."""

    name: str
    passed: bool
    detail: str


PolicyDigest = Callable[[str], str]
"""The digest of a policy given as TOML text; raises HeadwaterError when it cannot be read."""

RecomputeSplit = Callable[[Receipt, str], Sequence[ReceiptPayout]]
"""The payouts that a receipt's shares give under a policy given as TOML text."""

CheckPayout = Callable[[PayoutProof, EpochManifest], bool]
"""Whether a payout proof leads to the tree root of the manifest."""


def manifest_hash(raw: bytes) -> bytes:
    """The 32 bytes that the chain keeps of an epoch's manifest: keccak-256 of its canonical bytes."""
    return keccak256(raw)


def verify_receipt(
    bundle: Bundle,
    *,
    expected_operator: str,
    data_hash_on_chain: bytes,
    policy_digest: PolicyDigest,
    recompute_split: RecomputeSplit | None,
    check_payout: CheckPayout | None = None,
) -> tuple[Check, ...]:
    """Check a receipt from its bundle and one number of the chain. It holds when every check passed.

    Args:
        bundle: the file somebody sent.
        expected_operator: address of the operator that is known from elsewhere, 0x and 40 hex digits.
        data_hash_on_chain: 32 bytes that the chain holds for the epoch.
        policy_digest: how a policy's text is identified.
        recompute_split: the rules of the split; without it the check `split` is left out.
        check_payout: the rules of the payout tree; without it the check `payouts` is left out.

    Returns:
        The checks in order: receipt, signature, manifest, log, policy, split, payouts. One that cannot be made because
        what it reads is broken has failed; none raises.
    """
    receipt = _read(lambda: Receipt.from_bytes(bundle.receipt))
    manifest = _read(lambda: EpochManifest.from_bytes(bundle.manifest))
    checks = [
        _outcome("receipt", lambda: _check_receipt(bundle, receipt)),
        _outcome("signature", lambda: _check_signature(bundle, receipt, expected_operator)),
        _outcome("manifest", lambda: _check_manifest(bundle, manifest, data_hash_on_chain)),
        _outcome("log", lambda: _check_log(bundle, manifest)),
        _outcome("policy", lambda: _check_policy(bundle, receipt, manifest, policy_digest)),
    ]
    if recompute_split is not None:
        split = recompute_split
        checks.append(_outcome("split", lambda: _check_split(bundle, receipt, split)))
    if check_payout is not None:
        check = check_payout
        checks.append(_outcome("payouts", lambda: _check_payouts(bundle, receipt, manifest, check)))
    return tuple(checks)


class _FailedError(Exception):
    """A check did not hold; the text says what was seen."""


def _outcome(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except _FailedError as failed:
        return Check(name, False, str(failed))
    except HeadwaterError as error:
        return Check(name, False, f"{error.message} [{error.code}]")
    except Exception as error:  # what was sent is hostile until shown otherwise: whatever it broke, it did not pass
        return Check(name, False, f"could not be checked: {type(error).__name__}: {error}")


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except HeadwaterError as error:
        return error


def _must(value: Any) -> Any:
    """A value that could be read; else its error, as the outcome of the check that needs it."""
    if isinstance(value, HeadwaterError):
        raise _FailedError(f"{value.message} [{value.code}]")
    return value


def _check_receipt(bundle: Bundle, receipt: Any) -> str:
    _must(receipt)
    return f"canonical bytes of receipt {receipt_id(bundle.receipt)}; payouts sum to the price, weights to 10^9"


def _check_signature(bundle: Bundle, receipt: Any, expected: str) -> str:
    signed: Receipt = _must(receipt)
    signer = recover(signed, bundle.receipt, bundle.signature)
    if signer != expected.lower():
        raise _FailedError(f"signed by {signer}, the operator is {expected.lower()}")
    if signed.operator != signer:
        raise _FailedError(f"signed by {signer}, the receipt names {signed.operator}")
    return f"signed by {signer}"


def _check_manifest(bundle: Bundle, manifest: Any, on_chain: bytes) -> str:
    found = manifest_hash(bundle.manifest)
    if found != on_chain:
        raise _FailedError(f"manifest hashes to 0x{found.hex()}, the chain holds 0x{on_chain.hex()}")
    epoch: EpochManifest = _must(manifest)
    return f"manifest of epoch {epoch.epoch} hashes to 0x{found.hex()}, as on the chain"


def _check_log(bundle: Bundle, manifest: Any) -> str:
    epoch: EpochManifest = _must(manifest)
    proof = bundle.proof
    if (proof.size, proof.root) != (epoch.log_size, epoch.log_root):
        raise _FailedError(
            f"proof leads to size {proof.size} and root {proof.root.hex()}, "
            f"the epoch closed at size {epoch.log_size} and root {epoch.log_root.hex()}"
        )
    if not verify_inclusion(leaf_hash(bundle.receipt), proof):
        raise _FailedError(f"the path from entry {proof.index} does not lead to the root {proof.root.hex()}")
    return f"entry {proof.index} of {proof.size} in the log with root {proof.root.hex()}"


def _check_policy(bundle: Bundle, receipt: Any, manifest: Any, policy_digest: PolicyDigest) -> str:
    named = _must(receipt).policy_digest
    found = policy_digest(bundle.policy)
    if found != named:
        raise _FailedError(f"the policy sent is {found}, the receipt names {named}")
    if named not in _must(manifest).policy_digests:
        raise _FailedError(f"the epoch knows no policy {named}")
    return f"policy {named}, one of the epoch's"


def _check_split(bundle: Bundle, receipt: Any, recompute: RecomputeSplit) -> str:
    stated: Receipt = _must(receipt)
    found = tuple(recompute(stated, bundle.policy))
    if found != stated.payouts:
        at = next(
            (i for i, pair in enumerate(zip(found, stated.payouts, strict=False)) if pair[0] != pair[1]),
            min(len(found), len(stated.payouts)),
        )
        ours, theirs = (str(rows[at]) if at < len(rows) else "nothing" for rows in (found, stated.payouts))
        raise _FailedError(f"payout {at} should be {ours}, the receipt has {theirs}")
    return f"{len(found)} payouts recomputed, {stated.price} nano {stated.currency} in all"


def _check_payouts(bundle: Bundle, receipt: Any, manifest: Any, check: CheckPayout) -> str:
    epoch: EpochManifest = _must(manifest)
    accounts = {payout.account for payout in _must(receipt).payouts}
    for proof in bundle.payout_proofs:
        if proof.account not in accounts:
            raise _FailedError(f"{proof.account} is not paid by this receipt")
        if not check(proof, epoch):
            raise _FailedError(
                f"{proof.amount} units for {proof.account} are not in the payout tree of epoch {epoch.epoch}"
            )
    return f"{len(bundle.payout_proofs)} payees found in the payout tree of epoch {epoch.epoch}"


def _path(nodes: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(node) for node in nodes)


def _base64(high: int) -> fields.Rule:
    def rule(value: Json, where: fields.Where) -> None:
        meaning = f"base64 of at most {high} bytes"
        if type(value) is not str or len(value) > (high + 2) // 3 * 4:
            raise fields.wrong(value, where, meaning)
        try:
            same = base64.b64encode(base64.b64decode(value, validate=True)).decode("ascii") == value
        except (ValueError, binascii.Error):
            same = False
        if not same:
            raise fields.wrong(value, where, meaning)

    return rule


_PATH: Final = rows(fields.hash32, 0, PROOF_PATH_MAX)
_BUNDLE: Final = record(
    {
        "schema": fields.one_of(BUNDLE_SCHEMA),
        "receipt": _base64(RECEIPT_SIZE_BYTES_MAX),
        "signature": matching(r"0x[0-9a-f]{130}", "0x and 130 lower-case hex digits"),
        "proof": record({"index": integer(0), "size": integer(0), "path": _PATH, "root": fields.hash32}),
        "policy": matching(r"(?s:.{1,65536})", "the text of a policy, at most 65,536 characters"),
        "manifest": _base64(2**20),
        "payout_proofs": rows(
            record(
                {
                    "account": fields.account,
                    "index": integer(0, PAYEES_MAX - 1),
                    "address": fields.address,
                    "amount": fields.amount,
                    "path": _PATH,
                }
            ),
            0,
            1_024,
        ),
    }
)
_MANIFEST: Final = record(
    {
        "schema": fields.one_of(EPOCH_SCHEMA),
        "epoch": integer(0),
        "log_size": integer(1),
        "log_root": fields.hash32,
        "policy_digests": rows(fields.digest, 1, 4_096),
        "registry_digest": fields.digest,
        "total_units": fields.amount,
        "tree_root": matching(r"(0x)?[0-9a-f]{64}", "64 lower-case hex digits"),
    },
    open_ended=True,
)
