"""A process for the tests to kill: corrects receipts and closes epochs over a home, and says what was acknowledged."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from headwater.core.errors import RefusedError
from headwater.ledger import correction, deposit, payouts
from headwater.receipts import KeySigner, Receipt, issue
from headwater.receipts.receipt import ReceiptPayout
from headwater.settle import Books, Settlement
from headwater.settlement.tree import Domain
from headwater.store.close_sealed import SealedClose
from headwater.store.database import Database
from headwater.store.epoch_store import EpochStore
from headwater.store.ledger_store import Ledger
from headwater.store.receipt_log import ReceiptLog
from headwater.store.registry_store import RegistryStore

ASSET, PAYER = "USD", "payer:key_1"
SIGNER = KeySigner(b"\x01" * 32)


class NoChain:
    """As much of a chain as closing needs: where its root would go."""

    def __init__(self) -> None:
        self.manifest = type("Manifest", (), {"token_decimals": 6})()

    def domain(self, epoch: int) -> Domain:
        """A fixed deployment."""
        return Domain(31337, "0x" + "c0" * 20, "0x" + "70" * 20, epoch)


def say(text: str) -> None:
    """One whole line, at once: a kill cannot cut it."""
    os.write(1, f"{text}\n".encode())


def open_books(folder: Path, *, sealed: bool = False) -> tuple[Settlement, Database, ReceiptLog]:
    """The settlement over a folder."""
    db = Database(folder / "headwater.db")
    log = ReceiptLog.open(folder / "receipts.log")
    books = Books(
        registry=RegistryStore(db),
        ledger=Ledger(db),
        log=log,
        epochs=EpochStore(db),
        currency=ASSET,
        maturity_s=0,
        operator_addresses={
            "commons": "0x" + "aa" * 20,
            "operator:platform": "0x" + "bb" * 20,
            "operator:compute": "0x" + "cc" * 20,
        },  # type: ignore[dict-item]
        policy_text=str,
        now_ns=time.time_ns,
        sealed=SealedClose(folder / "segments", folder / "rows", log, receipts_min=1) if sealed else None,
    )
    return Settlement(books, NoChain()), db, log  # type: ignore[arg-type]


def template(raw: bytes, number: int, amounts: dict[str, int], supersedes: str | None) -> Receipt:
    """A receipt like the one in `raw`, of call `number`."""
    from dataclasses import replace

    rows = tuple(ReceiptPayout(account, amount, "contributors", None) for account, amount in amounts.items())  # type: ignore[arg-type]
    return replace(
        Receipt.from_bytes(raw),
        call_id=f"call_{number:032x}",  # type: ignore[arg-type]
        issued_at_ns=1_000 + number,
        operator=SIGNER.address,
        currency=ASSET,
        price=sum(amounts.values()),
        payouts=rows,
        supersedes=supersedes,  # type: ignore[arg-type]
    )


def work(folder: Path, raw: bytes) -> None:
    """For ever: log and book a receipt, correct every third, close after every fifth; each step may be a repetition."""
    settlement, _, log = open_books(folder)
    ledger = settlement.books.ledger
    ledger.post([deposit(PAYER, 10**15, asset=ASSET, cause="d")], key="deposit", at_ns=0)
    number = max(0, sum(1 for one in log if Receipt.from_bytes(one.raw).supersedes is None) - 1)
    while True:
        amounts = {"commons": 500 + number, "operator:platform": 100, "operator:compute": 400}
        signed = issue(template(raw, number, amounts, None), SIGNER)
        log.append(signed.raw, signed.signature)
        receipt = Receipt.from_bytes(signed.raw)
        charge = [correction(PAYER, "clearing:calls", receipt.price, asset=ASSET, cause=receipt.call_id)]
        paid = payouts(amounts.items(), asset=ASSET, receipt_id=receipt.id)
        ledger.post([*charge, *paid], key=f"{receipt.call_id}:payouts", at_ns=number)
        say(f"receipt {number} {receipt.price}")
        if number % 3 == 0:
            moved = {"commons": amounts["commons"] + 50, "operator:platform": 50, **dict(list(amounts.items())[2:])}
            later = issue(template(raw, number, moved, receipt.id), SIGNER)
            settlement.correct(later.raw, later.signature, payer=PAYER)  # type: ignore[arg-type]
            say(f"corrected {number}")
        if number % 5 == 4:
            with suppress(RefusedError):  # all of it was in the epoch that the process before this one closed
                say(f"closed {settlement.close().epoch}")
        number += 1


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes())
