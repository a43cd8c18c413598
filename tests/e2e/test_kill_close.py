"""kill -9 at random points of logging, booking, correcting and closing: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from close_worker import ASSET, PAYER, open_books

from headwater.corrections import Corrections
from headwater.receipts import Receipt
from headwater.settle import payout_tree, version_of
from headwater.settlement.changes import unpack
from headwater.settlement.disputes import counts, settled_by, stands
from headwater.settlement.epoch import read_manifest

WORKER = Path(__file__).with_name("close_worker.py")
SIGNED = Path(__file__).parents[2] / "spec/vectors/receipt_signed.json"


def run_and_kill(folder: Path, raw: Path, lines: int, pause_s: float) -> list[str]:
    """Let a worker acknowledge `lines` things, wait a little, kill it; all it acknowledged."""
    worker = subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), str(raw)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert worker.stdout is not None
    assert worker.stderr is not None
    heard = [worker.stdout.readline() for _ in range(lines)]
    time.sleep(pause_s)
    worker.kill()
    heard += worker.stdout.readlines()
    assert worker.stderr.read() == b""
    worker.wait()
    return [line.decode().strip() for line in heard if line.endswith(b"\n")]


def check_books(folder: Path, said: set[str]) -> None:
    """What was acknowledged is there once, and log, ledger and epochs say the same."""
    settlement, db, log = open_books(folder)
    books = settlement.books
    try:
        Corrections(books).book_logged()
        assert books.ledger.check() == ()
        assert db.integrity() == ()
        chains: dict[str, list] = {}
        ids = {}
        for one in log:
            receipt = Receipt.from_bytes(one.raw)
            chains.setdefault(receipt.call_id, []).append(version_of(receipt, one.entry.index))
            ids[one.entry.index] = receipt.id
        for line in said:
            kind, number, *_ = line.split()
            if kind == "closed":
                assert books.epochs.get(int(number)).epoch == int(number)
            else:
                assert len(chains[f"call_{int(number):032x}"]) > (kind == "corrected")
        spans = books.epochs.spans()
        booked: dict[str, Counter[str]] = {}
        for transfer in books.ledger.transfers():
            for account, units in (
                (transfer.credit_account, transfer.amount_units),
                (transfer.debit_account, -transfer.amount_units),
            ):
                if not account.startswith(("payer", "clearing", "cash")):
                    booked.setdefault(transfer.cause, Counter())[account.replace("escrow:", "contributor:")] += units
        unbooked = 0
        for chain in chains.values():
            total: Counter[str] = Counter()
            for version in chain:
                total.update(booked.get(ids[version.seq], Counter()))
            now = {account: units for account, units in total.items() if units}
            # The last receipt of a killed process may be in the log and not in the books; its repetition books it.
            # A correction is booked by whoever comes next, which was us.
            if now != stands(chain, spans):
                assert len(chain) == 1
                unbooked += 1
        assert unbooked <= 1
        before: dict[str, int] = {}
        amounts: Counter[int] = Counter()
        for record in books.epochs.all():
            manifest = read_manifest(record.manifest)
            after = {row["account"]: int(row["cumulative_units"]) for row in manifest["totals"]}
            assert all(after[account] >= units for account, units in before.items())
            assert sum(after.values()) - sum(before.values()) == int(manifest["paid_units"])
            changes = unpack(books.epochs.changes(record.epoch))
            amounts.update(dict(zip(changes.indices.tolist(), changes.increases.tolist(), strict=True)))
            assert {leaf.index: leaf.amount for leaf in payout_tree(manifest).leaves if leaf.amount} == {
                index: units for index, units in amounts.items() if units
            }
            before = after
        closed = [span for span in spans if span.log_size <= (books.epochs.last().log_size if before else 0)]
        settled: Counter[str] = Counter()
        for chain in chains.values():
            for span in closed:
                earlier = settled_by(chain, [one for one in closed if one.log_from < span.log_from])
                settled.update(counts(chain, span, earlier))
        assert +settled == +Counter(before)
        assert books.ledger.balance(PAYER, ASSET).balance_units <= 10**15
    finally:
        log.close()
        db.close()


DIES = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from close_worker import ASSET, PAYER, SIGNER, open_books, template
from headwater.ledger import correction, deposit, payouts
from headwater.receipts import Receipt, issue
settlement, _, log = open_books(Path(sys.argv[2]))
raw, ledger = Path(sys.argv[3]).read_bytes(), settlement.books.ledger
ledger.post([deposit(PAYER, 10_000, asset=ASSET, cause="d")], key="deposit", at_ns=0)
first = issue(template(raw, 0, {"commons": 100, "operator:platform": 50}, None), SIGNER)
log.append(first.raw, first.signature)
receipt = Receipt.from_bytes(first.raw)
paid = payouts({"commons": 100, "operator:platform": 50}.items(), asset=ASSET, receipt_id=receipt.id)
charge = correction(PAYER, "clearing:calls", 150, asset=ASSET, cause=receipt.call_id)
ledger.post([charge, *paid], key="payouts", at_ns=0)
type(ledger).post = lambda *_, **__: os._exit(9)
later = issue(template(raw, 0, {"commons": 20, "operator:platform": 190}, receipt.id), SIGNER)
settlement.correct(later.raw, later.signature, payer=PAYER)
"""


def test_a_correction_whose_process_died_before_booking_is_booked_by_the_close(tmp_path: Path) -> None:
    """The receipt is in the log, its money is not moved; closing moves it, once, and the epoch pays the new amounts."""
    raw, home = tmp_path / "template.json", tmp_path / "home"
    raw.write_bytes(json.loads(SIGNED.read_text())["receipt"].encode())
    home.mkdir()
    arguments = [sys.executable, "-c", DIES, str(WORKER.parent), str(home), str(raw)]
    assert subprocess.run(arguments, check=False).returncode == 9
    settlement, db, log = open_books(home)
    ledger = settlement.books.ledger

    def held() -> list[int]:
        return [ledger.balance(name, ASSET).balance_units for name in ("commons", "operator:platform", PAYER)]

    assert (len(log), held()) == (2, [100, 50, 9_850])
    totals = read_manifest(settlement.close().manifest)["totals"]
    assert held() == [20, 190, 9_790]
    assert {row["account"]: row["cumulative_units"] for row in totals} == {"commons": "20", "operator:platform": "190"}
    assert Corrections(settlement.books).book_logged() == ()
    assert settlement.books.ledger.check() == ()
    log.close()
    db.close()


def kill_again_and_again(folder: Path, seed: int, kills: int) -> None:
    """Kill, check, go on."""
    raw = folder / "template.json"
    raw.write_bytes(json.loads(SIGNED.read_text())["receipt"].encode())
    home = folder / "home"
    home.mkdir()
    rng, said = random.Random(seed), set()
    for _ in range(kills):
        said.update(run_and_kill(home, raw, rng.randrange(1, 14), rng.random() * 0.03))
        check_books(home, said)
    assert {line.split()[0] for line in said} == {"receipt", "corrected", "closed"}


def test_killed_closers_lose_and_double_nothing(tmp_path: Path) -> None:
    """Four kills at random moments."""
    kill_again_and_again(tmp_path, seed=1, kills=4)


@pytest.mark.slow
def test_many_more_kills_of_closers(tmp_path: Path) -> None:
    """Forty kills; with those of the ledger's own tests more than two hundred."""
    kill_again_and_again(tmp_path, seed=2, kills=40)
