"""What a corrected receipt is worth: before it settles everything may move, afterwards only new money does.

The receipts of one call form a chain, each superseding the one before. An epoch's window opens with two places in
the log: where it ends (`log_size`) and how far the log reached when it was opened (`log_seen`). A receipt *counts* in
the window that holds it unless a receipt below `log_seen` supersedes it.

- Nothing of the call has counted in an earlier window: the receipt pays all it says. What its predecessor was going to
  pay is not paid: the money moves.
- Something has: nobody's settled money is taken back. The receipt pays what its price adds to what was settled,
  in proportion to how much more each account should have had. At the same price it pays nothing.

What a receipt pays to a `disputed:` account counts in no window: it is held until a later receipt of the call names
somebody else in its place, and is paid then as new money, whether or not the rest has settled meanwhile.

Invariants, whatever the order of corrections and windows: no account's settled amount falls; what the ledger stands at
for a call is what the windows will have settled once all of it has matured. Pure; knows nothing of logs, ledgers or
databases.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import InvariantError
from headwater.core.ids import AccountId
from headwater.core.money import allocate
from headwater.settlement.epoch import holder

HELD: Final = "disputed:"
"""How accounts begin that hold what is disputed."""

Amounts = Mapping[AccountId, int]
"""Nano units by holder."""


@dataclass(frozen=True, slots=True)
class Span:
    """A window as it was opened."""

    log_from: int
    log_size: int
    log_seen: int  # receipts in the log when it was opened; at least `log_size`


@dataclass(frozen=True, slots=True)
class Version:
    """One receipt of a chain."""

    seq: int  # its place in the log
    payouts: tuple[tuple[AccountId, int], ...]  # nano units

    def said(self) -> Counter[AccountId]:
        """What its payouts say, by holder."""
        found: Counter[AccountId] = Counter()
        for account, amount in self.payouts:
            found[holder(account)] += amount
        return found

    def amounts(self) -> Counter[AccountId]:
        """What it pays, by holder; what it holds back for a dispute is nobody's yet."""
        found = self.said()
        for account in [one for one in found if one.startswith(HELD)]:
            del found[account]
        return found


@dataclass(frozen=True, slots=True)
class Move:
    """Money that changes its owner because of a correction."""

    debit: AccountId
    credit: AccountId
    amount: int  # nano units, > 0


def counts(chain: Sequence[Version], span: Span, settled: Amounts) -> Amounts:
    """What a chain pays in one window, by holder.

    Args:
        chain: every receipt of one call, oldest first.
        settled: what earlier windows have paid for it.
    """
    seen = bisect_left(chain, span.log_seen, key=_place)
    if not seen or not span.log_from <= chain[seen - 1].seq < span.log_size:
        return {}
    return _adds(chain[seen - 1], settled)


def adjustments(chain: Sequence[Version], spans: Sequence[Span]) -> dict[AccountId, int]:
    """What the last of `spans` pays for a chain beyond the plain sum of its receipts there; negative to take back.

    Args:
        chain: every receipt of one call, oldest first.
        spans: all windows so far, oldest first.
    """
    settled = settled_by(chain, spans[:-1])
    here = spans[-1]
    difference: Counter[AccountId] = Counter(counts(chain, here, settled))
    for version in chain:
        if here.log_from <= version.seq < here.log_size:
            difference.subtract(version.said())
    return {account: amount for account, amount in sorted(difference.items()) if amount}


def settled_by(chain: Sequence[Version], spans: Iterable[Span]) -> Counter[AccountId]:
    """What windows have paid for a chain in all."""
    settled: Counter[AccountId] = Counter()
    for span in spans:
        if chain and chain[0].seq < span.log_size and span.log_from <= chain[-1].seq:  # others hold none of it
            settled.update(counts(chain, span, settled))
    return settled


def stands(chain: Sequence[Version], spans: Sequence[Span]) -> dict[AccountId, int]:
    """What the ledger owes for a chain in all: settled, what its last receipt adds when it matures, and what is held.

    Held is what the price leaves when everybody else has theirs: nothing, once all of it had settled before.
    """
    settled = settled_by(chain, spans)
    last = chain[-1]
    if not any(span.log_from <= last.seq < span.log_size for span in spans):
        settled.update(_adds(last, settled))
    said = last.said()
    held = {account: amount for account, amount in sorted(said.items()) if account.startswith(HELD) and amount}
    left = sum(said.values()) - sum(settled.values())
    if held and left > 0:
        settled.update(dict(zip(held, allocate(left, list(held.values())), strict=True)))
    return {account: amount for account, amount in settled.items() if amount}


def moves(before: Amounts, after: Amounts, *, payer: AccountId) -> tuple[Move, ...]:
    """The moves that turn what stood before a correction into what stands after it.

    A rise of the whole comes from `payer`, and a fall goes back to it. Losers pay gainers in the order of their names.
    """
    change = {account: after.get(account, 0) - before.get(account, 0) for account in sorted({*before, *after})}
    change[payer] = change.get(payer, 0) - sum(change.values())
    giving = [(account, -amount) for account, amount in change.items() if amount < 0]
    taking = [(account, amount) for account, amount in change.items() if amount > 0]
    found: list[Move] = []
    while giving and taking:
        (source, left), (target, wanted) = giving[-1], taking[-1]
        amount = min(left, wanted)
        found.append(Move(source, target, amount))
        giving[-1], taking[-1] = (source, left - amount), (target, wanted - amount)
        if not giving[-1][1]:
            giving.pop()
        if not taking[-1][1]:
            taking.pop()
    if giving or taking:
        raise InvariantError(f"a correction would lose {sum(a for _, a in giving + taking)} nano", code="not_conserved")
    return tuple(found)


def _place(version: Version) -> int:
    return version.seq


def _adds(version: Version, settled: Amounts) -> dict[AccountId, int]:
    amounts = version.amounts()
    if not any(settled.values()):
        return dict(amounts)
    new = sum(amounts.values()) - sum(settled.values())
    rises = {account: max(0, amount - settled.get(account, 0)) for account, amount in sorted(amounts.items())}
    if new <= 0:
        return {}
    # Rises sum to at least the new money, so nobody gets more than the correction says.
    return dict(zip(rises, allocate(new, list(rises.values())), strict=True))
