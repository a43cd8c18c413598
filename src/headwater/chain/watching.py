"""A watcher: recompute every posted root from what was published, and stop a wrong one.

What is wrong with a root decides what stops it:

    refute      two paths, or the top of the tree, show it to the contract: the root ends, the poster's bond is ours
    challenge   nobody could have recomputed it: a bond of ours asks for a leaf, and without an answer the root ends
    cancel      the root follows from its data but pays the wrong people: no chain can judge that, the guardian does

A watcher with the guardian's key cancels whatever it cannot refute. Without it, a root of the third kind is
reported; `hold` challenges it all the same, which costs the bond and buys the guardian a delay.
Receipts are not looked at here: that an epoch follows from them is `headwater epoch audit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from headwater.chain.client import Chain, PostedEpoch
from headwater.chain.disputes import Disputes
from headwater.core.errors import HeadwaterError, InvalidError, MissingError, Problem, UpstreamError
from headwater.receipts import manifest_hash
from headwater.settlement.changes import replay, unpack
from headwater.settlement.epoch import UNITS_DECIMALS, read_manifest
from headwater.settlement.fraud import Fraud, WrongSum, find_fraud
from headwater.settlement.tree import Leaf, PayoutTree

Remedy = Literal["none", "refute", "challenge", "cancel"]
Done = Literal["accepted", "refuted", "challenged", "cancelled", "expired", "reported", "waiting"]


@dataclass(frozen=True, slots=True)
class Published:
    """What an operator published for an epoch."""

    manifest: bytes | None  # None where only change sets are published: on the chain itself
    changes: bytes | None = None  # packed; the manifest's payees say the same


Source = Callable[[int], Published]
"""From the number of an epoch to what was published for it.

Raises `HeadwaterError` when there is nothing.
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a watcher found about one root."""

    posted: PostedEpoch
    problems: tuple[Problem, ...]
    remedy: Remedy
    fraud: Fraud | None = None  # with the remedy ``refute``
    index: int = 0  # whose leaf a challenge asks for


@dataclass(frozen=True, slots=True)
class Report:
    """What a watcher did in one turn."""

    epoch: int
    done: Done
    verdict: Verdict | None  # None when only a deadline was looked at
    transaction: str | None  # 0x hex, of what it sent


class Watcher:
    """Looks at the newest root of a deployment, again and again."""

    def __init__(self, chain: Chain, source: Source, *, hold: bool = False) -> None:
        """Watch with the key of `chain`, which pays gas and bonds; without a key it only reports.

        Args:
            hold: challenge also what a poster can answer.
        """
        self._chain, self._source, self._hold = chain, source, hold
        self._disputes = Disputes(chain)

    def turn(self) -> Report | None:
        """Look once, act at most once; None when no root is pending."""
        try:
            epoch = self._disputes.pending()
        except MissingError:
            return None
        opened = self._disputes.open_challenge()
        if opened is not None and self._now_s() > opened.deadline_s and self._me() is not None:
            sent = self._disputes.expire(epoch)
            self.collect()
            return Report(epoch, "expired", None, sent.hash)
        verdict = self.examine(epoch)
        return self.act(verdict, challenged=opened is not None)

    def collect(self) -> int:
        """Withdraw bonds that we won, token units."""
        me = self._me()
        owed = self._disputes.owed(me) if me else 0
        if owed:
            self._disputes.withdraw()
        return owed

    def examine(self, epoch: int) -> Verdict:
        """Recompute a posted root.

        Raises:
            MissingError: it was not posted.
        """
        posted = self._chain.posted(epoch)
        if posted is None:
            raise MissingError(f"epoch {epoch} was not posted", code="epoch_missing", fix="ask for a posted epoch")
        try:
            published = self._source(epoch)
        except HeadwaterError as error:
            return self._asking(posted, _problem("data_withheld", f"nothing is published: {error.message}"))
        manifest: Any = None
        problems: list[Problem] = []
        try:
            if published.manifest is None:
                rows = self._replayed(epoch)
            else:
                found = manifest_hash(published.manifest)
                if found != posted.data_hash:
                    text = f"published data hash {found.hex()}, on chain {posted.data_hash.hex()}"
                    return self._asking(posted, _problem("data_hash_differs", text))
                manifest = read_manifest(published.manifest)
                problems = self._check_domain(posted, manifest)
                rows = _rows(manifest)
            doubles = _doubles(rows)
        except UpstreamError:
            raise
        except (HeadwaterError, KeyError, TypeError, ValueError) as error:
            what = "change sets" if published.manifest is None else "manifest"
            return self._asking(posted, _problem("data_unreadable", f"the {what} cannot be read: {error}"))
        before = self._before(epoch)
        tree: PayoutTree | None = None
        if not doubles:
            try:
                tree = PayoutTree.build([Leaf(*row) for row in rows], self._chain.domain(epoch))
            except HeadwaterError as error:
                return self._asking(posted, _problem("tree_invalid", error.message))
        if tree is not None and tree.root != posted.root:
            text = f"the published payees give {tree.root.hex()}, on chain is {posted.root.hex()}"
            return self._asking(posted, *problems, _problem("root_differs", text))
        if tree is not None:
            fraud = find_fraud(before, tree, posted.total)
            if fraud is not None:
                return Verdict(posted, (*problems, _told(fraud)), "refute", fraud)
        problems += doubles
        if manifest is not None:
            problems += _check_amounts(manifest) + self._check_changes(published, before, rows)
        return Verdict(posted, tuple(problems), "cancel" if problems else "none", index=self._some_index(posted))

    def act(self, verdict: Verdict, *, challenged: bool = False) -> Report:
        """Do what a verdict asks for.

        Args:
            challenged: whether a challenge is open already; there is room for one.
        """
        epoch, me = verdict.posted.epoch, self._me()
        if verdict.remedy == "none":
            return Report(epoch, "accepted", verdict, None)
        if me is None:
            return Report(epoch, "reported", verdict, None)
        if verdict.fraud is not None:
            sent = self._disputes.refute(epoch, verdict.fraud)
            self.collect()
            return Report(epoch, "refuted", verdict, sent.hash)
        if me.lower() == self._chain.status().guardian.lower():
            return Report(epoch, "cancelled", verdict, self._chain.cancel(epoch).hash)
        if challenged:
            return Report(epoch, "waiting", verdict, None)
        if verdict.remedy == "challenge" or self._hold:
            return Report(epoch, "challenged", verdict, self._disputes.challenge(epoch, verdict.index).hash)
        return Report(epoch, "reported", verdict, None)

    def _asking(self, posted: PostedEpoch, *problems: Problem) -> Verdict:
        return Verdict(posted, problems, "challenge", index=self._some_index(posted))

    def _some_index(self, posted: PostedEpoch) -> int:
        """An index that the poster could not foresee when it made the tree, within the tree before."""
        before = self._before(posted.epoch)
        width = len(before.leaves) if before and before.leaves else 1
        return int.from_bytes(bytes.fromhex(posted.transaction[2:])[:8], "big") % width

    def _before(self, epoch: int) -> PayoutTree | None:
        """The tree of the root before, when its data are still to be had and give that root."""
        for number in range(epoch - 1, 0, -1):
            root = self._chain.root_at(number)
            if root is None:
                continue
            try:
                published = self._source(number)
                kept = published.manifest
                rows = self._replayed(number) if kept is None else _rows(read_manifest(kept))
                tree = PayoutTree.build([Leaf(*row) for row in rows], self._chain.domain(number))
            except (HeadwaterError, KeyError, TypeError, ValueError):
                return None
            return tree if tree.root == root else None
        return None

    def _replayed(self, epoch: int) -> list[tuple[int, str, int]]:
        """The leaves of an epoch from the change sets of all epochs up to it."""
        sets = []
        for number in range(1, epoch + 1):
            packed = self._source(number).changes
            if packed is None:
                raise MissingError(
                    f"no change set of epoch {number}", code="object_missing", fix="watch where manifests are"
                )
            sets.append(unpack(packed))
            if sets[-1].epoch != number:
                raise InvalidError(
                    f"the change set of epoch {number} says {sets[-1].epoch}",
                    code="changes_invalid",
                    fix="publish again",
                )
        return replay(sets)

    def _check_domain(self, posted: PostedEpoch, manifest: Any) -> list[Problem]:
        meant = self._chain.domain(posted.epoch)
        wanted = {"epoch": posted.epoch, "chain_id": meant.chain_id, "contract": meant.contract, "token": meant.token}
        return [
            _problem("domain_differs", f"the manifest says {name} {manifest.get(name)}, the chain {value}")
            for name, value in wanted.items()
            if str(manifest.get(name)).lower() != str(value).lower()
        ]

    def _check_changes(
        self, published: Published, before: PayoutTree | None, rows: list[tuple[int, str, int]]
    ) -> list[Problem]:
        if published.changes is None:
            return []
        try:
            changes = unpack(published.changes)
        except HeadwaterError as error:
            return [_problem("changes_invalid", error.message)]
        amounts = {leaf.index: leaf.amount for leaf in before.leaves} if before else {}
        for index, rise in zip(changes.indices.tolist(), changes.increases.tolist(), strict=True):
            amounts[index] = amounts.get(index, 0) + rise
        wrong = [index for index, _, amount in rows if amounts.get(index) != amount]
        if not wrong:
            return []
        return [_problem("changes_differ", f"the change set gives {len(wrong)} other amounts, first at {wrong[0]}")]

    def _now_s(self) -> int:
        web3 = self._chain.sender.web3
        block: Any = self._chain.sender.read(lambda: web3.eth.get_block("latest"), "reading the newest block")
        return int(block["timestamp"])

    def _me(self) -> str | None:
        return self._chain.sender.signer.address if self._chain.sender.signer else None


def _rows(manifest: Any) -> list[tuple[int, str, int]]:
    return [(row["index"], row["address"], int(row["cumulative_token_units"])) for row in manifest["payees"]]


def _doubles(rows: list[tuple[int, str, int]]) -> list[Problem]:
    """Payees that are in the tree twice: only the first place is ever paid, what is promised at the other is lost."""
    seen: dict[str, int] = {}
    found = []
    for index, address, _ in rows:
        if address.lower() in seen:
            found.append(_problem("payee_twice", f"{address} stands at {seen[address.lower()]} and {index}"))
        seen.setdefault(address.lower(), index)
    return found


def _check_amounts(manifest: Any) -> list[Problem]:
    """That every payee's token units are its account's money, and that the sums are those of the rows."""
    try:
        unit = 10 ** (UNITS_DECIMALS - int(manifest["token_decimals"]))
        totals = {row["account"]: int(row["cumulative_units"]) for row in manifest["totals"]}
        found = []
        for row in manifest["payees"]:
            owed = totals.get(row["account"], 0) // unit
            if owed != int(row["cumulative_token_units"]):
                text = f"{row['account']} is owed {owed} token units, the tree has {row['cumulative_token_units']}"
                found.append(_problem("amount_differs", text))
        for name, value in (
            ("total_units", sum(totals.values())),
            ("total_token_units", sum(int(row["cumulative_token_units"]) for row in manifest["payees"])),
        ):
            if int(manifest[name]) != value:
                found.append(_problem("sum_differs", f"{name} is {manifest[name]}, its rows add up to {value}"))
    except (KeyError, TypeError, ValueError) as error:
        return [_problem("data_unreadable", f"the manifest cannot be read: {error}")]
    return found


def _told(fraud: Fraud) -> Problem:
    if isinstance(fraud, WrongSum):
        return _problem("total_differs", f"the leaves add up to {fraud.total} token units, not to what was posted")
    old, new = fraud.old, fraud.new
    now = f"{new.amount} units of {new.address}" if new.address else "gone"
    return _problem("leaf_lowered", f"index {old.index} had {old.amount} units of {old.address}, now {now}")


def _problem(code: str, message: str) -> Problem:
    return Problem("root", code, message, "stop the root while it is pending")
