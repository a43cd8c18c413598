"""From receipts to money in somebody's hands: the second half of the path, run once per window.

    correct a receipt that supersedes another moves money that has not settled, or pays only what is new
    close   mature receipts become one cumulative amount per account, one tree and one manifest
    post    the root goes on the chain, funded; the ledger moves what is due to *claimable*
    sync    what the chain has paid is booked
    bundle  everything a stranger needs to check one receipt

Each step may be repeated: a closed epoch is kept, a posted root is found, a payment is booked once.
Nothing is ever in two places: due (contributor), promised (claimable) or paid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from headwater.chain import Chain, Paid, PostedEpoch
from headwater.core.canonical import digest_of
from headwater.core.errors import ConflictError, InvariantError, MissingError, Problem, RefusedError
from headwater.core.ids import AccountId
from headwater.core.instants import SECOND_NS
from headwater.corrections import Books as Books
from headwater.corrections import Corrections, chain_of
from headwater.corrections import version_of as version_of
from headwater.ledger import CASH, VAULT, claimable, enroll, fund, settle
from headwater.ledger import paid as paid_on_chain
from headwater.receipts import Bundle, EpochManifest, PayoutProof, Receipt
from headwater.settlement.claim import Claim, claim_of, plan_pushes
from headwater.settlement.disputes import Move, adjustments
from headwater.settlement.epoch import UNITS_DECIMALS, Window, close, escrow_of, holder, read_manifest
from headwater.settlement.tree import Domain, Leaf, PayoutTree, Proof, verify
from headwater.store.close_sealed import SealedTotals
from headwater.store.epoch_store import EpochRecord


class Settlement:
    """Closes windows and settles them on one deployment."""

    def __init__(self, books: Books, chain: Chain) -> None:
        self.books, self.chain = books, chain

    # Close

    def close(self) -> EpochRecord:
        """Close the window of all receipts that have matured since the last epoch.

        A close that was interrupted goes on with the window it had opened. A receipt that comes in meanwhile, or has
        not matured, belongs to a later epoch; one that was corrected before its window opened does not count. A
        correction that is in the log but not in the books, because its process died between, is booked first.

        Raises:
            RefusedError: no receipt has matured.
        """
        books = self.books
        Corrections(books).book_logged()
        last = books.epochs.last()
        window = self._opened_window(last)
        sealed = books.sealed.totals(window, books.currency) if books.sealed else None
        receipts = self._receipts(sealed.reach if sealed else window.log_from, window.log_size)
        previous = _cumulative(last)
        payouts = self._payouts(window, receipts, sealed)
        policies = {receipt.policy_digest for receipt in receipts} | set(sealed.policy_digests if sealed else ())
        holders = {holder(account) for account, _ in payouts} | set(previous)
        epoch = close(
            window,
            payouts,
            previous=previous,
            previous_digest=last.manifest_digest if last else None,
            previous_amounts=_token_amounts(last),
            payees=books.epochs.add_payees(self._addresses(holders)),
            domain=self.chain.domain(window.epoch),
            token_decimals=self.chain.manifest.token_decimals,
            policy_digests=sorted(policies),
            registry_digest=books.registry.mark(),
        )
        return books.epochs.add(epoch)

    def _opened_window(self, last: EpochRecord | None) -> Window:
        """The window to close: one that is open already, or all receipts that have matured since the last epoch."""
        books = self.books
        with books.epochs.transaction():  # nobody corrects a receipt between reading the log and keeping the window
            unfinished = books.epochs.opened()
            if unfinished is not None:
                return unfinished
            now = books.now_ns()
            log_from, seen = last.log_size if last else 0, books.log.promised().size
            newest, size = now - books.maturity_s * SECOND_NS, log_from
            # The log is in order of issue; what is younger waits for the next epoch.
            while size < seen and Receipt.from_bytes(books.log.at(size).raw).issued_at_ns <= newest:
                size += 1
            if size == log_from:
                raise RefusedError(
                    f"no receipt since log index {log_from} is older than {books.maturity_s} s",
                    code="epoch_empty",
                    fix="wait until receipts have matured, or answer some calls first",
                )
            window = Window(last.epoch + 1 if last else 1, log_from, size, books.log.root(size), now, seen)
            books.epochs.open_window(window)
            return window

    def _receipts(self, start: int, end: int) -> list[Receipt]:
        log = self.books.log
        return [Receipt.from_bytes(log.at(index).raw) for index in range(start, end)]

    def _payouts(
        self, window: Window, receipts: Sequence[Receipt], sealed: SealedTotals | None
    ) -> list[tuple[AccountId, int]]:
        """What the window's receipts pay, and what corrections take back or add.

        Args:
            receipts: those of the window that are not in `sealed`.
        """
        books = self.books
        ours = [receipt for receipt in receipts if receipt.currency == books.currency]
        found = [(payout.account, payout.amount) for receipt in ours for payout in receipt.payouts]
        spans = [span for span in books.epochs.spans() if span.log_from <= window.log_from]
        later = [*receipts, *self._receipts(window.log_size, window.log_seen)]
        corrections = [receipt for receipt in later if receipt.supersedes is not None]
        if sealed is not None:
            found += sealed.paid
            corrections += [Receipt.from_bytes(books.log.at(seq).raw) for seq in sealed.corrections]
        for call in sorted({one.call_id for one in corrections if one.currency == books.currency}):
            found += adjustments(chain_of(books.log, call, window.log_seen), spans).items()
        return found

    def correct(self, raw: bytes, signature: str, *, payer: AccountId) -> tuple[Move, ...]:
        """As `Corrections.correct`."""
        return Corrections(self.books).correct(raw, signature, payer=payer)

    def _addresses(self, holders: Iterable[AccountId]) -> dict[AccountId, str]:
        """Addresses of those who can be paid on chain, in a fixed order."""
        addresses: dict[AccountId, str] = {}
        for account in sorted(holders):
            if account.startswith("contributor:"):
                contributor = self.books.registry.contributor(account.removeprefix("contributor:"))  # type: ignore[arg-type]
                if contributor.payout_address is not None:
                    addresses[account] = contributor.payout_address
            elif account in self.books.operator_addresses:
                addresses[account] = self.books.operator_addresses[account]
        return addresses

    # Post

    def post(self, number: int) -> PostedEpoch:
        """Put the root of a closed epoch on the chain, and move what it promises to *claimable*.

        Raises:
            MissingError: the epoch has not been closed.
            ConflictError: it was closed for another deployment.
            RefusedError: there is less cash than the root promises.
        """
        record = self.books.epochs.get(number)
        manifest = read_manifest(record.manifest)
        if manifest["contract"] != self.chain.domain(number).contract or manifest["chain_id"] != self.chain.chain_id:
            raise ConflictError(
                f"epoch {number} was closed for contract {manifest['contract']} on chain {manifest['chain_id']}",
                code="deployment_differs",
                fix="connect to that deployment",
            )
        tree = payout_tree(manifest)
        self._fund(number, tree.total)
        posted = self.chain.post(number, tree.root, tree.total, record.data_hash)
        self._book_promises(record, posted.transaction)
        return posted

    def _fund(self, number: int, total: int) -> None:
        """Bring the vault to what the root promises; the ledger then says what the chain holds."""
        status = self.chain.status()
        needed = (total - status.funded) * self._unit
        cash = self.books.ledger.balance(CASH, self.books.currency).balance_units
        if needed > cash:
            raise RefusedError(
                f"epoch {number} needs {needed} nano {self.books.currency} more in the vault, there are {cash} in cash",
                code="insufficient_cash",
                fix="a root never promises what payers have not paid; check the ledger",
            )
        if needed > 0:
            self.chain.fund(total - status.funded)
        self._book_funds(number)

    def _book_funds(self, number: int) -> None:
        funded = self.chain.status().funded * self._unit
        booked = self.books.ledger.balance(VAULT, self.books.currency).balance_units + sum(self._booked_paid().values())
        if funded > booked:
            draft = fund(funded - booked, asset=self.books.currency, cause=f"epoch:{number}")
            self.books.ledger.post(
                [draft], key=f"fund:{self.chain.manifest.payout}:{funded}", at_ns=self.books.now_ns()
            )

    def _book_promises(self, record: EpochRecord, transaction: str) -> None:
        before = _promised(self.books.epochs.get(record.epoch - 1)) if record.epoch > 1 else {}
        asset, cause = self.books.currency, f"epoch:{record.epoch}"
        drafts = []
        for account, units in _promised(record).items():
            waiting = self._in_escrow(account)
            if waiting:
                # Measured before its owner enrolled, booked after: it follows what was released then.
                drafts.append(enroll(account.removeprefix("contributor:"), waiting, asset=asset, cause=cause))
            if units > before.get(account, 0):
                due = units - before.get(account, 0)
                drafts.append(settle(account, due, asset=asset, cause=cause))
        with self.books.ledger.db.transaction():
            if drafts:
                self.books.ledger.post(drafts, key=f"settle:{record.epoch}", at_ns=self.books.now_ns())
            self.books.epochs.posted(record.epoch, transaction)

    def _in_escrow(self, account: AccountId) -> int:
        if not account.startswith("contributor:"):
            return 0
        return self.books.ledger.balance(escrow_of(account), self.books.currency).balance_units

    # Sync

    def sync(self) -> int:
        """Book what the chain has paid since the last time. Gives the nano units booked now."""
        last = self.books.epochs.last_posted()
        if last is None:
            return 0
        asset = self.books.currency
        booked, drafts, keys = self._booked_paid(), [], []
        payees = self.books.epochs.payees()
        on_chain = self.chain.paid_many(payee.index for payee in payees)
        for payee in payees:
            paid = on_chain[payee.index] * self._unit
            if paid > booked.get(payee.account, 0):
                units = paid - booked.get(payee.account, 0)
                drafts.append(paid_on_chain(payee.account, units, asset=asset, cause=f"epoch:{last.epoch}"))
                keys.append(f"{payee.index}:{paid}")
        if drafts:
            key = f"paid:{self.chain.manifest.payout}:{digest_of(keys)}"
            self.books.ledger.post(drafts, key=key, at_ns=self.books.now_ns())
        return sum(draft.amount_units for draft in drafts)

    def push(self, number: int) -> Iterator[tuple[int, Paid]]:
        """Pay everybody whom an active epoch owes something, in as few pushes as pay off.

        Returns:
            (first index of the range, what was paid), push by push; `sync` books it.
        """
        tree = self.tree(number)
        paid = self.chain.paid_many(leaf.index for leaf in tree.leaves)
        wanted = [leaf.index for leaf in tree.leaves if leaf.amount > paid[leaf.index]]
        for start, count in plan_pushes(tree, wanted):
            chosen = [index for index in wanted if start <= index < start + count]
            yield start, self.chain.push(number, tree.prove_range(start, count), wanted=chosen)

    def reconcile(self) -> tuple[Problem, ...]:
        """Whether ledger and chain say the same; empty when they do. Run `sync` first."""
        status, ledger = self.chain.status(), self.books.ledger
        vault = ledger.balance(VAULT, self.books.currency).balance_units
        paid = sum(self.chain.paid_many(payee.index for payee in self.books.epochs.payees()).values())
        facts = (
            ("paid_above_funded", paid <= status.funded, f"paid {paid}, funded {status.funded} token units"),
            (
                "vault_differs",
                vault == (status.funded - paid) * self._unit,
                f"the ledger has {vault} nano in the vault, the chain {status.funded - paid} token units",
            ),
            (
                "tokens_missing",
                status.held >= status.funded - paid,
                f"the vault holds {status.held} token units, should hold {status.funded - paid}",
            ),
            (
                "paid_differs",
                sum(self._booked_paid().values()) == paid * self._unit,
                f"the chain has paid {paid} token units, the ledger {sum(self._booked_paid().values())} nano",
            ),
        )
        fix = "stop posting; run `headwater epoch sync`, and if it stays compare transfers with the chain's events"
        return tuple(Problem(self.chain.manifest.payout, code, text, fix) for code, holds, text in facts if not holds)

    def _booked_paid(self) -> dict[AccountId, int]:
        """Nano units booked as paid on chain, by account: promised, less what can still be claimed."""
        last = self.books.epochs.last_posted()
        if last is None:
            return {}
        return {
            account: units - self.books.ledger.balance(claimable(account), self.books.currency).balance_units
            for account, units in _promised(last).items()
        }

    @property
    def _unit(self) -> int:
        """Nano units in one token unit; exact, the token has at most nine decimals."""
        return int(10 ** (UNITS_DECIMALS - self.chain.manifest.token_decimals))

    # Claims and proofs

    def tree(self, number: int) -> PayoutTree:
        """The payout tree of a closed epoch, from its manifest."""
        return payout_tree(read_manifest(self.books.epochs.get(number).manifest))

    def claim(self, number: int, account: AccountId) -> Claim:
        """What a payee needs to be paid.

        Raises:
            MissingError: that account is no payee of the epoch.
        """
        for payee in self.books.epochs.payees():
            if payee.account == account:
                return claim_of(self.tree(number), payee.index)
        raise MissingError(
            f"{account} is no payee of epoch {number}",
            code="payee_missing",
            fix="enrol it with an address first; its money waits",
        )

    def bundle(self, receipt_id: str) -> Bundle:
        """Everything a stranger needs, besides the chain, to check one receipt.

        Raises:
            MissingError: no such receipt, or its epoch has not been closed.
        """
        logged = self.books.log.get(receipt_id)
        record = self.books.epochs.containing(logged.entry.index)
        receipt = Receipt.from_bytes(logged.raw)
        return Bundle(
            receipt=logged.raw,
            signature=logged.signature,
            proof=self.books.log.prove(receipt_id, record.log_size),
            policy=self.books.policy_text(receipt.policy_digest),
            manifest=record.manifest,
            payout_proofs=self._payout_proofs(record, receipt),
        )

    def _payout_proofs(self, record: EpochRecord, receipt: Receipt) -> tuple[PayoutProof, ...]:
        tree = payout_tree(read_manifest(record.manifest))
        paid = {holder(payout.account) for payout in receipt.payouts}
        places = {leaf.index for leaf in tree.leaves}
        return tuple(
            PayoutProof(payee.account, payee.index, leaf.leaf.address, leaf.leaf.amount, leaf.path)
            for payee in self.books.epochs.payees()
            if payee.account in paid and payee.index in places
            for leaf in (tree.prove(payee.index),)
        )


def payout_tree(manifest: Mapping[str, Any]) -> PayoutTree:
    """The payout tree that a manifest describes.

    Raises:
        InvariantError: its payees do not give the root it names.
    """
    domain = Domain(manifest["chain_id"], manifest["contract"], manifest["token"], manifest["epoch"])
    leaves = [Leaf(row["index"], row["address"], int(row["cumulative_token_units"])) for row in manifest["payees"]]
    tree = PayoutTree.build(leaves, domain)
    if tree.root.hex() != manifest["tree_root"]:
        raise InvariantError(f"payees of epoch {manifest['epoch']} do not give its root", code="tree_differs")
    return tree


def check_payout(proof: PayoutProof, manifest: EpochManifest, domain: Domain) -> bool:
    """Whether a payout proof leads to the root of its epoch."""
    leaf = Leaf(proof.index, proof.address, proof.amount)
    return verify(Proof(leaf, proof.path), domain, manifest.tree_root)


def _cumulative(record: EpochRecord | None) -> dict[AccountId, int]:
    """Cumulative nano units per holder after an epoch."""
    if record is None:
        return {}
    return {row["account"]: int(row["cumulative_units"]) for row in read_manifest(record.manifest)["totals"]}


def _token_amounts(record: EpochRecord | None) -> tuple[int, ...]:
    """Cumulative token units by index after an epoch."""
    if record is None:
        return ()
    return tuple(int(row["cumulative_token_units"]) for row in read_manifest(record.manifest)["payees"])


def _promised(record: EpochRecord) -> dict[AccountId, int]:
    """Cumulative nano units that an epoch's root promises, per account; whole token units only."""
    manifest = read_manifest(record.manifest)
    unit = 10 ** (UNITS_DECIMALS - manifest["token_decimals"])
    return {row["account"]: int(row["cumulative_token_units"]) * unit for row in manifest["payees"]}
