"""An epoch: a closed window of receipts becomes one cumulative amount per account.

The manifest is what a stranger needs to recompute it: where the window lies in the receipt log, the
log's root, every account's cumulative amount, and the payees of the tree. Its hash is posted with
the tree's root, so the chain vouches for the log and the log for every receipt.

Invariants: amounts never fall from one epoch to the next; the totals of an epoch exceed those of the
one before by exactly what its receipts paid, corrections netted (`headwater.settlement.disputes`);
amounts that no address can receive wait under their owner's name (*held*), and so does what is finer
than one token unit.

Knows nothing of databases or chains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from headwater.core.canonical import Json, canonical, parse_canonical
from headwater.core.errors import InvalidError, InvariantError
from headwater.core.ids import AccountId
from headwater.core.instants import format_instant
from headwater.core.money import AMOUNT_MAX
from headwater.receipts import manifest_hash
from headwater.receipts.verify import EPOCH_SCHEMA
from headwater.settlement.changes import ChangeSet
from headwater.settlement.tree import Domain, Leaf, PayoutTree

SCHEMA = EPOCH_SCHEMA
UNITS_DECIMALS = 9
"""Decimals of the internal unit; a token with fewer has its amounts floored, the rest stays due."""


@dataclass(frozen=True, slots=True)
class Payee:
    """An account that an address can receive for. An index is given once and for ever."""

    index: int
    account: AccountId
    address: str  # 0x and 40 hex digits


@dataclass(frozen=True, slots=True)
class Window:
    """The receipts of an epoch: those at [log_from, log_size) of a log with root `log_root`."""

    epoch: int  # 1, 2, 3 …
    log_from: int
    log_size: int
    log_root: bytes
    closed_at_ns: int
    log_seen: int = 0  # receipts in the log when the window was opened: what is corrected below here does not count

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_seen", max(self.log_seen, self.log_size))


@dataclass(frozen=True, slots=True)
class Epoch:
    """A closed window with its totals, its tree and the bytes that are published."""

    window: Window
    paid_units: int  # what the receipts of this window paid, nano units
    totals: tuple[tuple[AccountId, int], ...]  # (holder, cumulative nano units), sorted by holder
    payees: tuple[Payee, ...]  # by index
    token_amounts: tuple[int, ...]  # cumulative token units of each payee
    tree: PayoutTree
    manifest: bytes  # canonical JSON
    changes: bytes  # what this epoch adds to the tree before it, packed (`headwater.settlement.changes`)

    @property
    def data_hash(self) -> bytes:
        """What the chain keeps of the manifest, posted beside the root."""
        return manifest_hash(self.manifest)

    @property
    def total_token_units(self) -> int:
        """What all payees may have claimed after this epoch, in token units."""
        return sum(self.token_amounts)


def holder(account: AccountId) -> AccountId:
    """Whose money it is: a contributor's, whether it is enrolled or its money still waits in escrow."""
    return AccountId("contributor:" + account.removeprefix("escrow:")) if account.startswith("escrow:") else account


def escrow_of(account: AccountId) -> AccountId:
    """Where the money of a `contributor:` account waits as long as its owner has not enrolled."""
    return AccountId("escrow:" + account.removeprefix("contributor:"))


def close(
    window: Window,
    payouts: Iterable[tuple[AccountId, int]],
    *,
    previous: Mapping[AccountId, int],
    previous_digest: str | None,
    previous_amounts: Sequence[int] = (),
    payees: Sequence[Payee],
    domain: Domain,
    token_decimals: int,
    policy_digests: Sequence[str],
    registry_digest: str,
) -> Epoch:
    """Close a window.

    Args:
        window: which receipts; `domain.epoch` is the same number.
        payouts: (account, nano units) of every payout of every receipt in the window, and of every adjustment that
            corrections make, which may be negative.
        previous: cumulative nano units per holder of the epoch before, empty for the first.
        previous_digest: digest of that epoch's manifest.
        previous_amounts: cumulative token units of that epoch's payees, by index.
        payees: who can be paid on chain, indices 0..n-1 in order, any new ones at the end.
        domain: chain, contract, token and epoch that the root is bound to.
        token_decimals: decimals of the token, at most 9.

    Raises:
        InvalidError: indices with a gap or an account twice, or a token with more decimals than the ledger.
        InvariantError: totals do not grow by what was paid.
    """
    if not 0 <= token_decimals <= UNITS_DECIMALS:
        raise InvalidError(
            f"the token has {token_decimals} decimals", code="token_decimals", fix="settle in a token with at most 9"
        )
    if [p.index for p in payees] != list(range(len(payees))) or len({p.account for p in payees}) != len(payees):
        raise InvalidError("payee indices are not 0..n-1, once each", code="payees_invalid", fix="assign an index once")
    totals, paid = dict(previous), 0
    for account, amount in payouts:
        who = holder(account)
        totals[who] = totals.get(who, 0) + amount
        paid += amount
    if sum(totals.values()) != sum(previous.values()) + paid or max(totals.values(), default=0) > AMOUNT_MAX:
        raise InvariantError(f"epoch {window.epoch}: totals do not grow by {paid} nano", code="epoch_not_exact")
    # Floor: an address is owed whole token units, what is finer stays due in the ledger.
    amounts = tuple(totals.get(payee.account, 0) // 10 ** (UNITS_DECIMALS - token_decimals) for payee in payees)
    leaves = [Leaf(p.index, p.address, amount) for p, amount in zip(payees, amounts, strict=True)]
    tree = PayoutTree.build(leaves, domain)
    fell = [account for account, units in totals.items() if units < previous.get(account, 0)]
    if fell:
        raise InvariantError(f"epoch {window.epoch}: {fell[0]} would have less than before", code="epoch_not_exact")
    changes = _changes(window.epoch, previous_amounts, amounts, payees)
    epoch = Epoch(window, paid, tuple(sorted(totals.items())), tuple(payees), amounts, tree, b"", changes.pack())
    manifest = _manifest(epoch, domain, token_decimals, previous_digest, policy_digests, registry_digest)
    return replace(epoch, manifest=canonical(manifest | {"changes_digest": changes.digest()}))


def _changes(epoch: int, before: Sequence[int], amounts: Sequence[int], payees: Sequence[Payee]) -> ChangeSet:
    """What the tree of `amounts` adds to one of `before`."""
    width = len(before)
    rises = [amount - (before[i] if i < width else 0) for i, amount in enumerate(amounts)]
    changed = [i for i, rise in enumerate(rises) if rise or i >= width]
    return ChangeSet(
        epoch,
        width,
        np.array(changed, dtype=np.int64),
        np.array([rises[i] for i in changed], dtype=np.uint64),
        np.array([list(bytes.fromhex(p.address[2:])) for p in payees[width:]], dtype=np.uint8).reshape(-1, 20),
    )


def read_manifest(raw: bytes) -> Json:
    """The manifest that `raw` holds.

    Raises:
        InvalidError: not canonical JSON or not an epoch manifest.
    """
    manifest = parse_canonical(raw)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise InvalidError(
            "this is not an epoch manifest", code="manifest_invalid", fix="give the manifest as published"
        )
    return manifest


def _manifest(
    epoch: Epoch,
    domain: Domain,
    token_decimals: int,
    previous_digest: str | None,
    policy_digests: Sequence[str],
    registry_digest: str,
) -> Json:
    payee_accounts = {payee.account for payee in epoch.payees}
    return {
        "schema": SCHEMA,
        "epoch": epoch.window.epoch,
        "closed_at": format_instant(epoch.window.closed_at_ns),
        "log_from": epoch.window.log_from,
        "log_size": epoch.window.log_size,
        "log_seen": epoch.window.log_seen,
        "log_root": epoch.window.log_root.hex(),
        "paid_units": str(epoch.paid_units),
        "total_units": str(sum(units for _, units in epoch.totals)),
        "totals": [
            {"account": account, "cumulative_units": str(units), "held": account not in payee_accounts}
            for account, units in epoch.totals
        ],
        "payees": [
            {"index": p.index, "account": p.account, "address": p.address, "cumulative_token_units": str(amount)}
            for p, amount in zip(epoch.payees, epoch.token_amounts, strict=True)
        ],
        "tree_root": epoch.tree.root.hex(),
        "total_token_units": str(epoch.total_token_units),
        "token_decimals": token_decimals,
        "chain_id": domain.chain_id,
        "contract": domain.contract,
        "token": domain.token,
        "policy_digests": sorted(policy_digests),
        "registry_digest": registry_digest,
        "previous": previous_digest,
    }
