"""What `ledger check` holds the ledger against besides itself: the receipt log, the closed epochs and the chain.

Each check is independent of the code that wrote: receipts are read back from the log, epochs are added up again
from them, and the chain is asked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from headwater.chain import Manifest
from headwater.cli.home import Home
from headwater.cli.settling import DEPLOYMENT, open_chain, settlement
from headwater.core.errors import HeadwaterError, Problem
from headwater.core.ids import AccountId
from headwater.ledger import Code, Kind, parse_account
from headwater.metered import is_metered
from headwater.receipts import Receipt, recover
from headwater.settle import payout_tree, version_of
from headwater.settlement.disputes import Span, Version, adjustments, stands
from headwater.settlement.epoch import holder, read_manifest
from headwater.store.call_store import CallState
from headwater.store.receipt_log import LoggedReceipt

_FIX = "stop, keep the home as evidence, and compare it with the last good copy"


def record_problems(home: Home) -> tuple[Problem, ...]:
    """What does not hold between ledger, receipt log and closed epochs."""
    receipts = [(logged, Receipt.from_bytes(logged.raw)) for logged in home.log.entries(0)]
    known = {receipt.id for _, receipt in receipts}
    booked: defaultdict[str, Counter[AccountId]] = defaultdict(Counter)
    for transfer in home.ledger.transfers():
        if transfer.code is Code.PAYOUT or (transfer.code is Code.CORRECTION and transfer.cause in known):
            for account, units in (
                (transfer.credit_account, transfer.amount_units),
                (transfer.debit_account, -transfer.amount_units),
            ):
                # Money from the payer or back to it, or held for a dispute, is no part of what a receipt pays.
                if parse_account(account).kind not in (Kind.PAYER, Kind.CLEARING, Kind.DISPUTED):
                    booked[transfer.cause][holder(AccountId(account))] += units
    chains: defaultdict[str, list[Version]] = defaultdict(list)
    for logged, receipt in receipts:
        chains[receipt.call_id].append(version_of(receipt, logged.entry.index))
    mark = home.metered.unbooked_from((), beginning=True)
    problems = [problem for logged, receipt in receipts for problem in _receipt(home, logged, receipt, mark)]
    spans = home.epochs.spans()
    ids = [receipt.id for _, receipt in receipts]
    for call, chain in chains.items():
        problems += _booked(home, call, [ids[version.seq] for version in chain], stands(chain, spans), booked)
    problems += [
        Problem(f"receipt {cause}", "receipt_not_logged", "payouts are booked for it, it is not in the log", _FIX)
        for cause in sorted(set(booked) - known)
    ]
    problems += _held(home, chains.values(), spans)
    return (*problems, *_epochs(home, [receipt for _, receipt in receipts], chains.values()))


def _held(home: Home, chains: Iterable[list[Version]], spans: Sequence[Span]) -> Iterator[Problem]:
    """Whether what is held for disputes is what the receipts of all calls hold back."""
    said: Counter[str] = Counter()
    for chain in chains:
        for held, units in stands(chain, spans).items():
            if parse_account(held).kind is Kind.DISPUTED:
                said[held] += units
    balances = {b.account: b.balance_units for b in home.ledger.balances() if b.asset == home.policy.currency}
    booked = {a: units for a, units in balances.items() if parse_account(a).kind is Kind.DISPUTED and "." not in a}
    for account in sorted({*said, *booked}):
        if said[account] != booked.get(AccountId(account), 0):
            text = f"receipts hold back {said[account]} nano, it has {booked.get(AccountId(account), 0)}"
            yield Problem(f"account {account}", "held_differs", text, _FIX)


def chain_problems(home: Home) -> tuple[tuple[Problem, ...], str]:
    """What does not hold between ledger and chain, and in words whether it was looked at."""
    if not (home.path / DEPLOYMENT).exists():
        return (), "no deployment, nothing on chain"
    try:
        with open_chain(home) as (chain, _):
            found = settlement(home, chain).reconcile()
            return found, f"chain {chain.chain_id}, contract {Manifest.load(home.path / DEPLOYMENT).payout}"
    except HeadwaterError as error:
        return (), f"the chain was not looked at: {error.message}"


def _receipt(home: Home, logged: LoggedReceipt, receipt: Receipt, mark: int) -> Iterator[Problem]:
    where = f"receipt {receipt.id}"
    if recover(receipt, logged.raw, logged.signature) != receipt.operator:
        yield Problem(where, "signature_wrong", "is not signed by the operator it names", _FIX)
    try:
        call = home.calls.get(receipt.call_id)
    except HeadwaterError:
        if logged.entry.index >= mark and is_metered(receipt):
            return  # its receipt came first; the books follow it, at the latest at the next start
        yield Problem(where, "call_unknown", f"its call {receipt.call_id} is not in the journal", _FIX)
        return
    if call.price_units != receipt.price and receipt.supersedes is None:
        yield Problem(
            where, "price_differs", f"says {receipt.price} nano, the call was charged {call.price_units}", _FIX
        )


def _booked(
    home: Home,
    call_id: str,
    ids: list[str],
    expected: Mapping[AccountId, int],
    booked: Mapping[str, Mapping[AccountId, int]],
) -> Iterator[Problem]:
    """Whether the receipts of one call, oldest first, have moved in all what they should have."""
    try:
        call = home.calls.get(call_id)
    except HeadwaterError:
        return  # said already
    if call.state is not CallState.ATTRIBUTED or call.receipt_id not in ids:
        return  # logged, not yet booked: the next start takes it up
    paid: Counter[AccountId] = Counter()
    for one in ids:
        paid.update(booked.get(one, {}))
    due = {account: units for account, units in expected.items() if parse_account(account).kind is not Kind.DISPUTED}
    if {account: units for account, units in paid.items() if units} != due:
        what = "its payouts are" if len(ids) == 1 else "its payouts and its corrections together are"
        yield Problem(f"receipt {ids[-1]}", "payouts_differ", f"{what} not what was booked for it", _FIX)


def _epochs(home: Home, receipts: list[Receipt], chains: Iterable[list[Version]]) -> Iterator[Problem]:
    log_from, total = 0, 0
    corrected, spans = [chain for chain in chains if len(chain) > 1], home.epochs.spans()
    for number, record in enumerate(home.epochs.all()):
        where = f"epoch {record.epoch}"
        manifest = read_manifest(record.manifest)
        window = receipts[log_from : record.log_size]
        paid = sum(receipt.price for receipt in window if receipt.currency == home.policy.currency)
        for chain in corrected:
            seen = [version for version in chain if version.seq < spans[number].log_seen]
            paid += sum(adjustments(seen, spans[: number + 1]).values())
        total += paid
        pairs = (
            ("log_from", int(manifest["log_from"]), log_from),
            ("paid_units", int(manifest["paid_units"]), paid),
            ("total_units", int(manifest["total_units"]), total),
            ("log_root", manifest["log_root"], home.log.root(min(record.log_size, len(home.log))).hex()),
        )
        for field, told, found in pairs:
            if told != found:
                yield Problem(where, f"{field}_differs", f"{field} is {told}, its receipts give {found}", _FIX)
        try:
            payout_tree(manifest)
        except HeadwaterError as error:
            yield Problem(where, error.code, error.message, _FIX)
        log_from = record.log_size
