"""The second half of the path on a real embedded chain: receipts to roots to coins, and what a stranger checks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from headwater.chain import Chain, EmbeddedChain
from headwater.core.errors import ConflictError, MissingError, RefusedError
from headwater.flow import CallRequest, Message
from headwater.ledger import Code, TransferDraft
from headwater.models import Sampling
from headwater.receipts import Bundle, Receipt, issue, verify_receipt
from headwater.receipts.receipt import ReceiptPayout
from headwater.settle import Books, Settlement, check_payout
from headwater.settlement.changes import unpack
from headwater.settlement.claim import plan_pushes
from headwater.settlement.epoch import close, read_manifest
from headwater.settlement.tree import Domain, Leaf, PayoutTree
from headwater.splits import Policy, recompute_split
from headwater.store.epoch_store import EpochStore
from toy.home import ToyHome, open_home

ADDRESSES = {name: "0x" + f"{i:02x}" * 20 for i, name in enumerate(("operator:compute", "operator:platform"), 0xA0)}
QUESTION = "what does a river do in the sea?"


@dataclass
class Town:
    """A toy home whose receipts settle on a chain of its own."""

    toy: ToyHome
    chain: Chain
    settlement: Settlement
    clock_s: list[int]

    def ask(self, question: str = QUESTION, model: str = "toy-grounded") -> Receipt:
        """One paid call, answered, measured and booked."""
        _, key = self.toy.key()
        request = CallRequest(model, (Message("user", question),), Sampling(12), "sha256:" + "0" * 64)
        opened = self.toy.flow.open(request, key)
        for _ in self.toy.flow.answer(opened):
            pass
        return self.toy.flow.attribute(opened.record.call_id)

    def pass_delay(self) -> None:
        """Let a posted root become active."""
        self.chain.jump(61)


@contextmanager
def town(path: Path, **changes: object) -> Iterator[Town]:
    clock_s = [0]
    with open_home(path) as toy, EmbeddedChain(seed=b"\x05" * 32) as embedded:
        operator = embedded.accounts[0]
        chain = Chain(embedded.provider(), operator, poll_s=0.01)
        chain.deploy(guardian=embedded.accounts[1].address, cap=10**12, delay_s=60)
        books = Books(
            registry=toy.registry,
            ledger=toy.ledger,
            log=toy.log,
            epochs=EpochStore(toy.db),
            currency=toy.currency,
            maturity_s=0,
            operator_addresses=ADDRESSES,
            policy_text=lambda digest: _policy_text(toy, digest),
            now_ns=lambda: time.time_ns() + clock_s[0] * 10**9,
        )
        yield Town(toy, chain, Settlement(replace(books, **changes), chain), clock_s)


def _policy_text(toy: ToyHome, digest: str) -> str:
    assert digest == toy.flow.parts.policy.digest
    return _toml(toy.flow.parts.policy)


def _toml(policy: Policy) -> str:
    value = policy.to_json()
    lines, discounts = value.pop("lines"), value.pop("grade_discount_bps")
    text = "".join(f"{k} = {json.dumps(v)}\n" for k, v in value.items()) + "[grade_discount_bps]\n"
    text += "".join(f"{k} = {v}\n" for k, v in discounts.items())
    return text + "".join(
        "[[lines]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in line.items()) for line in lines
    )


def test_an_epoch_is_the_sum_of_its_receipts_and_every_unit_ends_with_somebody(tmp_path):
    """Close, post, wait, claim, push, sync: ledger and chain agree to the unit and nothing is paid twice."""
    with town(tmp_path) as here:
        receipts = [here.ask() for _ in range(3)]
        record = here.settlement.close()
        manifest = read_manifest(record.manifest)

        assert int(manifest["paid_units"]) == sum(r.price for r in receipts) == int(manifest["total_units"])
        posted = here.settlement.post(1)
        assert here.chain.data_hash(1) == record.data_hash
        with pytest.raises(Exception, match=r"Epochs: "):
            here.chain.push(1, here.settlement.tree(1).prove_range(0, 1))
        here.pass_delay()
        tree = here.settlement.tree(1)
        wanted = [leaf.index for leaf in tree.leaves if leaf.amount]
        paid = sum(here.chain.push(1, tree.prove_range(s, n)).amount for s, n in plan_pushes(tree, wanted))

        assert paid == posted.total
        assert here.settlement.sync() == paid * 1_000
        assert here.settlement.sync() == 0
        assert here.settlement.reconcile() == ()
        assert here.toy.calls.check() == ()


def test_each_step_may_be_repeated_and_the_next_epoch_goes_on_from_the_last(tmp_path):
    """Posting again finds the root; a second epoch is cumulative and pays only what is new."""
    with town(tmp_path) as here:
        here.ask()
        first = here.settlement.close()
        assert here.settlement.post(1) == here.settlement.post(1)
        with pytest.raises(RefusedError) as nothing:
            here.settlement.close()
        assert nothing.value.code == "epoch_empty"
        here.pass_delay()
        newer = here.ask()
        second = here.settlement.close()
        before, after = read_manifest(first.manifest), read_manifest(second.manifest)

        assert after["previous"] == first.manifest_digest
        assert int(after["total_units"]) - int(before["total_units"]) == newer.price == int(after["paid_units"])
        here.settlement.post(2)
        here.pass_delay()
        assert here.settlement.reconcile() == ()


def test_receipts_that_may_still_be_disputed_wait_for_a_later_epoch(tmp_path):
    """Maturity is counted from the answer; nothing young is settled."""
    with town(tmp_path, maturity_s=3_600) as here:
        here.ask()
        with pytest.raises(RefusedError) as young:
            here.settlement.close()
        assert young.value.code == "epoch_empty"
        here.clock_s[0] = 3_601
        assert here.settlement.close().log_size == 1


def corrected(here: Town, receipt: Receipt, payouts: dict[str, int]) -> tuple[bytes, str]:
    """The same receipt with other payouts, signed, superseding it."""
    rows = tuple(ReceiptPayout(account, amount, "contributors", None) for account, amount in payouts.items())
    later = replace(
        receipt, supersedes=receipt.id, payouts=rows, price=sum(payouts.values()), issued_at_ns=receipt.issued_at_ns + 1
    )
    signed = issue(later, here.toy.flow.parts.signer)
    return signed.raw, signed.signature


def amounts_of(receipt: Receipt) -> dict[str, int]:
    """What a receipt pays, by account."""
    found: dict[str, int] = {}
    for payout in receipt.payouts:
        found[payout.account] = found.get(payout.account, 0) + payout.amount
    return found


def test_a_correction_before_the_window_opens_moves_the_money_and_after_it_only_new_money(tmp_path):
    """Ledger and epoch totals agree through both, repeating changes nothing, and what was settled stays."""
    with town(tmp_path) as here:
        receipt = here.ask()
        payer = here.toy.keys.list()[0].account
        before = amounts_of(receipt)
        loser = max((name for name in before if name.startswith("escrow")), key=lambda name: before[name])
        moved = before | {loser: 0, "commons": before.get("commons", 0) + before[loser]}
        for _ in range(2):
            here.settlement.correct(*corrected(here, receipt, moved), payer=payer)
        assert here.toy.ledger.balance(loser, here.toy.currency).balance_units == 0
        assert here.toy.ledger.balance("commons", here.toy.currency).balance_units == moved["commons"]
        first = read_manifest(here.settlement.close().manifest)
        totals = {row["account"]: int(row["cumulative_units"]) for row in first["totals"]}
        assert totals["commons"] == moved["commons"]
        assert int(first["paid_units"]) == receipt.price

        newest = Receipt.from_bytes(here.toy.log.in_force(receipt.call_id).raw)
        moves = here.settlement.correct(*corrected(here, newest, before), payer=payer)
        assert moves == ()
        second = read_manifest(here.settlement.close().manifest)
        after = {row["account"]: int(row["cumulative_units"]) for row in second["totals"]}
        assert after == totals
        assert int(second["paid_units"]) == 0
        assert here.toy.calls.check() == ()


def test_a_dearer_correction_after_settling_is_paid_by_the_payer_who_must_have_it(tmp_path):
    """New money goes to whoever had too little; without credit nothing is booked."""
    with town(tmp_path) as here:
        receipt = here.ask()
        here.settlement.close()
        payer = here.toy.keys.list()[0].account
        amounts = amounts_of(receipt)
        dearer = amounts | {"commons": amounts.get("commons", 0) + 700}
        with pytest.raises(RefusedError) as poor:
            here.settlement.correct(*corrected(here, receipt, dearer), payer="payer:key_without_credit")
        assert poor.value.code == "insufficient_credit"
        assert len(here.toy.log) == 1
        (move,) = here.settlement.correct(*corrected(here, receipt, dearer), payer=payer)

        assert (move.debit, move.credit, move.amount) == (payer, "commons", 700)
        assert int(read_manifest(here.settlement.close().manifest)["paid_units"]) == 700
        here.settlement.post(1)
        here.pass_delay()
        here.settlement.post(2)
        assert here.toy.calls.check() == ()


def test_a_close_that_was_interrupted_goes_on_with_its_window_and_gives_the_same_bytes(tmp_path):
    """Receipts that came in between belong to the next epoch, and the time of closing is when the window opened."""
    with town(tmp_path) as here:
        here.ask()
        window = here.settlement._opened_window(None)
        here.ask("say hello", model="toy")
        here.clock_s[0] = 100
        record = here.settlement.close()
        manifest = read_manifest(record.manifest)

        assert (manifest["log_size"], manifest["log_seen"]) == (1, 1)
        assert record.closed_at_ns == window.closed_at_ns
        assert here.settlement.close().log_size == 2


def test_sealed_receipts_are_added_up_by_the_engine_to_the_same_bytes(tmp_path):
    """A window partly in segments, with a correction inside, closes to the manifest that reading each receipt gives."""
    pytest.importorskip("duckdb", reason="DuckDB is not installed: pip install 'headwater[close]'")
    from headwater.store.close_sealed import SealedClose
    from headwater.store.receipt_sealing import Sealer

    with town(tmp_path) as here:
        books = here.settlement.books
        receipt = here.ask()
        here.ask("say hello", model="toy")
        payer = here.toy.keys.list()[0].account
        amounts = amounts_of(receipt)
        loser = max((name for name in amounts if name.startswith("escrow")), key=lambda name: amounts[name])
        moved = amounts | {loser: 0, "commons": amounts.get("commons", 0) + amounts[loser]}
        here.settlement.correct(*corrected(here, receipt, moved), payer=payer)
        segments = tmp_path / "segments"
        Sealer(here.toy.path / "receipts.log", str(segments), segment_receipts=2).seal()
        here.ask()
        window = here.settlement._opened_window(None)
        sealed = SealedClose(segments, tmp_path / "rows", here.toy.log, receipts_min=1)
        totals = sealed.totals(window, books.currency)
        assert totals is not None
        assert (totals.reach, totals.corrections) == (3, (2,))
        by_engine = Settlement(replace(books, sealed=sealed), here.chain).close()
        one_by_one = close(
            window,
            here.settlement._payouts(window, here.settlement._receipts(0, window.log_size), None),
            previous={},
            previous_digest=None,
            payees=books.epochs.payees(),
            domain=here.chain.domain(1),
            token_decimals=here.chain.manifest.token_decimals,
            policy_digests=[receipt.policy_digest],
            registry_digest=books.registry.digest(),
        )

        assert one_by_one.manifest == by_engine.manifest
        assert one_by_one.changes == books.epochs.changes(1)


def test_change_sets_rebuild_every_tree(tmp_path):
    """Whoever follows the published changes has the posted roots without asking for totals."""
    with town(tmp_path) as here:
        amounts: dict[int, int] = {}
        addresses: list[bytes] = []
        for number in (1, 2):
            here.ask()
            manifest = read_manifest(here.settlement.close().manifest)
            changes = unpack(here.settlement.books.epochs.changes(number))
            addresses += [row.tobytes() for row in changes.addresses]
            for index, rise in zip(changes.indices.tolist(), changes.increases.tolist(), strict=True):
                amounts[index] = amounts.get(index, 0) + rise
            leaves = [Leaf(i, "0x" + addresses[i].hex(), amount) for i, amount in amounts.items()]

            assert PayoutTree.build(leaves, here.chain.domain(number)).root.hex() == manifest["tree_root"]
            assert changes.digest() == manifest["changes_digest"]


def test_money_of_somebody_who_has_not_enrolled_waits_and_is_paid_after_enrolment(tmp_path):
    """Escrow is held in the manifest under its owner's name and enters the next root once there is an address."""
    with town(tmp_path) as here:
        receipt = here.ask()
        account = next(p.account for p in receipt.payouts if p.line == "contributors" and p.account[:6] == "escrow")
        writer = account.removeprefix("escrow:")
        earned = sum(p.amount for p in receipt.payouts if p.account == account)
        first = read_manifest(here.settlement.close().manifest)
        held = {row["account"] for row in first["totals"] if row["held"]}
        here.settlement.post(1)

        assert f"contributor:{writer}" in held
        with pytest.raises(MissingError):
            here.settlement.claim(1, f"contributor:{writer}")
        here.toy.registry.enroll(writer, "0x" + "ee" * 20)
        draft = TransferDraft(account, f"contributor:{writer}", earned, here.toy.currency, Code.ENROLL, "enroll")
        here.toy.ledger.post([draft], key="enroll", at_ns=1)
        here.pass_delay()
        here.ask("say hello", model="toy")
        here.settlement.close()
        here.settlement.post(2)
        here.pass_delay()
        paid = here.chain.claim(2, here.settlement.claim(2, f"contributor:{writer}").proof)

        assert paid.amount == earned // 1_000
        here.settlement.sync()
        assert here.settlement.reconcile() == ()
        assert here.toy.calls.check() == ()


def test_a_stranger_checks_a_receipt_and_catches_every_changed_part(tmp_path):
    """With the file and the chain everything holds; with any part exchanged, something fails."""
    with town(tmp_path) as here:
        receipt = here.ask()
        other = here.ask("say hello", model="toy")
        record = here.settlement.close()
        here.settlement.post(1)
        bundle = Bundle.from_bytes(here.settlement.bundle(receipt.id).to_bytes())

        def verdict(sent: Bundle) -> dict[str, bool]:
            domain = Domain(here.chain.chain_id, here.chain.manifest.payout, here.chain.manifest.token, 1)
            checks = verify_receipt(
                sent,
                expected_operator=here.toy.flow.parts.signer.address,
                data_hash_on_chain=here.chain.data_hash(1),
                policy_digest=lambda text: Policy.from_toml(text).digest,
                recompute_split=recompute_split,
                check_payout=lambda proof, manifest: check_payout(proof, manifest, domain),
            )
            return {check.name: check.passed for check in checks}

        assert all(verdict(bundle).values())
        assert len(verdict(bundle)) == 7
        assert bundle.payout_proofs
        elsewhere = here.settlement.bundle(other.id)
        greedy = bundle.policy.replace("bps = 500", "bps = 600")
        richer = replace(bundle.payout_proofs[0], amount=bundle.payout_proofs[0].amount + 1)
        for name, changed in {
            "log": replace(bundle, proof=elsewhere.proof),
            "signature": replace(bundle, signature=elsewhere.signature),
            "policy": replace(bundle, policy=greedy),
            "split": replace(bundle, policy=greedy),
            "manifest": replace(bundle, manifest=record.manifest.replace(b'"epoch":1', b'"epoch":2')),
            "payouts": replace(bundle, payout_proofs=(richer,)),
            "receipt": replace(bundle, receipt=bundle.receipt.replace(b'"tokens":', b'"tokens": ')),
        }.items():
            assert not verdict(changed)[name], name


def test_an_epoch_closed_for_one_contract_is_not_posted_to_another(tmp_path):
    """A root is bound to its deployment."""
    with town(tmp_path) as here:
        here.ask()
        here.settlement.close()
        here.chain.deploy(guardian="0x" + "44" * 20, cap=10**12, delay_s=0)
        with pytest.raises(ConflictError) as caught:
            here.settlement.post(1)

        assert caught.value.code == "deployment_differs"


def test_copied_words_that_were_not_in_the_context_are_paid_to_whoever_wrote_them_first(tmp_path):
    """The model's own bits on those words go to their first owner, and no bit is counted twice."""
    from headwater.accounting import Accounting
    from headwater.attribution.evidence import Answer
    from headwater.attribution.layout import Layout, Part
    from headwater.attribution.spans import Document, SpanIndex

    text = "the quick brown fox jumps over the lazy dog while nine zebras quietly vex the jovial wizard " * 2
    with town(tmp_path) as here, SpanIndex.create(tmp_path / "spans") as spans:
        document = here.toy.registry.contributions(kind="document")[0]
        spans.add([Document(document.id, document.owners[0].contributor_id, 1, text)])
        flow = here.toy.flow
        flow.parts = replace(flow.parts, spans=spans)
        model = here.toy.model
        ids = model.tokenize(text, control=False)
        ends, total = [], 0
        for token in ids:
            total += len(bytes([token]))
            ends.append(total)
        answer = Answer(text, tuple(ids), tuple(ends), "stop", 3)
        served = flow.parts.models["toy"]
        layout = Layout((Part("fixed-0", "", "hello", fixed=True),))
        plan = flow.plan(served, layout, answer.prompt_tokens, len(answer.token_ids))
        accounting = Accounting(flow.parts.registry, flow.parts.policy, spans)
        found = accounting.account(served, layout, answer, plan, {})
        (share,) = found.shares

        assert share.channel == "reproduced"
        assert share.contribution == document.id
        assert share.microbits > 0
        assert share.weight_ppb > 0
        assert found.index_digest is not None
        in_context = Layout((Part("fixed-0", "", "hello", fixed=True), Part(document.id, "x", text)))
        plan = flow.plan(served, in_context, answer.prompt_tokens, len(answer.token_ids))
        again = accounting.account(served, in_context, answer, plan, {})
        assert [s.channel for s in again.shares] == ["grounded"]
