"""A process of a gateway for the tests to drive and to kill: a meter over a home, without HTTP.

Reads one order a line (JSON) and answers each with one line (JSON).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from headwater.core.errors import HeadwaterError, RefusedError
from headwater.core.keccak import keccak256
from headwater.gateway.keeping import Keeper, Keeping
from headwater.gateway.limits import RateError
from headwater.gateway.sharing import Sharing
from headwater.meter import Meter, MeterParts
from headwater.metered import Charged, Hold, Used
from headwater.receipts import Issued, KeySigner
from headwater.settlement.voucher import Voucher, credit_domain, sign_voucher
from headwater.splits import Policy
from headwater.store.call_store import CallStore
from headwater.store.home_database import open_home_database
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.metered_store import MeteredStore
from headwater.store.recalls import Recalls
from headwater.store.remote_log import RemoteLog
from headwater.store.voucher_store import VoucherStore

DIGEST = "sha256:" + "1" * 64
POLICY = Policy.from_toml(files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8"))
SIGNER = KeySigner(b"\x01" * 32)
PAYER_KEY = keccak256(b"a payer of the tests")
PAYER = KeySigner(PAYER_KEY).address.lower()
PAYEE = "0x" + "a1" * 20
DOMAIN = credit_domain(8453, "0x" + "c0" * 20)
RECALL_TRIES = 25


class Worker:
    """The process."""

    def __init__(self, home: Path, setting: str, folder: Path) -> None:
        self.db = open_home_database(home, setting, create=False)
        self.ledger, self.keys = Ledger(self.db), KeyStore(self.db)
        self.run_id = os.urandom(16).hex()
        self.calls = CallStore(self.db, self.ledger, self.keys, run_id=self.run_id)
        self.log = RemoteLog(folder / "log", self.run_id)
        self.recalls = Recalls(folder, self.run_id)
        store = MeteredStore(self.db, self.ledger, self.keys, self.calls)
        self.ahead_ns = 0
        self.meter = Meter(MeterParts(store, self.log, SIGNER, POLICY, lambda: DIGEST, self.now_ns, os.urandom))
        self.meter.join(self.recalls)
        self.sharing = Sharing.over(folder)
        self.keeper = Keeper(store.kept, at_once, self.sharing.claims)
        self.vouchers = VoucherStore(
            self.db, self.ledger, self.keys, domain=DOMAIN, asset=POLICY.currency, unit_nano=1_000
        )
        self.holds: list[Hold] = []
        self.keeping: dict[str, Keeping] = {}
        self.loop = asyncio.new_event_loop()

    def now_ns(self) -> int:
        """The clock of this process."""
        return time.time_ns() + self.ahead_ns

    def begin(self, books: bool) -> str:
        """Begin; with `books` they are kept behind, without only when asked."""
        if books:
            self.meter.start()
        else:
            self.meter.begin()
        return self.run_id

    def clock(self, ahead_ns: int) -> None:
        """This process's clock runs ahead so much."""
        self.ahead_ns = ahead_ns

    def hold(self, key_id: str, units: int) -> int:
        """Hold a ceiling; the number of the hold."""
        key = self.keys.get(key_id)
        for left in reversed(range(RECALL_TRIES)):
            if (hold := self.meter.hold(key, units)) is not None:
                self.holds.append(hold)
                return len(self.holds) - 1
            try:
                self.meter.lease(key, units)
            except RefusedError as error:
                if not left or not self.meter.recall(key, error):
                    raise
                time.sleep(0.01)
        raise AssertionError("leased, and always gone before it was held")

    def charge(self, number: int, price: int, name: str = "", answer: str = "") -> str:
        """Charge a call, keeping its answer when it has a name; the id of the call."""
        hold, keeping = self.holds[number], self.keeping.get(name)
        used = Used("m", DIGEST, DIGEST, DIGEST, 1, 1, price, "count")

        async def keep(issued: Issued, charged: Charged) -> None:
            assert keeping is not None
            await keeping.keep(charged.call_id, issued, answer.encode())

        charged = self.loop.run_until_complete(self.meter.charge(hold, used, keep if keeping else None))
        return charged.call_id

    def release(self, number: int) -> None:
        """A call did not answer."""
        self.meter.release(self.holds[number])

    def book(self) -> None:
        """Bring the books up."""
        self.meter.settle_books()

    def race(self, key_id: str, units: int, tries: int, at_s: float) -> list[str]:
        """From an instant on: calls one after the other, each to its end; what became of each."""
        time.sleep(max(0.0, at_s - time.time()))
        outcomes = []
        for _ in range(tries):
            try:
                self.charge(self.hold(key_id, units), units)
                outcomes.append("charged")
            except HeadwaterError as error:
                outcomes.append(error.code)
        return outcomes

    def ask(self, key_id: str, name: str, body: str, price: int, at_s: float) -> list[str]:
        """A request with an idempotency key: (answered or replayed, what), or the refusal's code."""
        time.sleep(max(0.0, at_s - time.time()))
        key = self.keys.get(key_id)
        found = self.loop.run_until_complete(self.keeper.begin(key, name, "/v1", body.encode(), stream=False))
        if not isinstance(found, Keeping):
            return ["replayed", (found.answer or b"").decode()]
        self.keeping[name] = found
        try:
            answer = f"answer of {self.run_id}"
            self.charge(self.hold(key_id, price), price, name, answer)
            return ["answered", answer]
        finally:
            self.keeper.end(key, name)
            del self.keeping[name]

    def claim(self, key_id: str, name: str, body: str) -> None:
        """Be at work on a request with an idempotency key."""
        key = self.keys.get(key_id)
        found = self.loop.run_until_complete(self.keeper.begin(key, name, "/v1", body.encode(), stream=False))
        assert isinstance(found, Keeping)
        self.keeping[name] = found

    def voucher(self, amounts: list[int], at_s: float) -> list[str]:
        """Show vouchers over these amounts; what became of each."""
        signed = [sign_voucher(Voucher(PAYER, PAYEE, amount), DOMAIN, PAYER_KEY) for amount in amounts]
        time.sleep(max(0.0, at_s - time.time()))
        outcomes = []
        for one in signed:
            try:
                self.vouchers.take(one, closed=0, at_ns=self.now_ns())
                outcomes.append("taken")
            except HeadwaterError as error:
                outcomes.append(error.code)
        return outcomes

    def rate(self, key_id: str, tries: int, tokens: int, used: int, at_s: float) -> int:
        """Take a key's rates so often, each call then using so many of its tokens; how many calls passed."""
        key, passed = self.keys.get(key_id), 0
        time.sleep(max(0.0, at_s - time.time()))
        for _ in range(tries):
            try:
                taken = self.sharing.rates.take(key, tokens, 0)
            except RateError:
                continue
            assert taken is not None
            taken.settle(used, 0)
            passed += 1
        return passed

    def stop(self) -> None:
        """End in order."""
        self.loop.run_until_complete(self.meter.drain())
        self.meter.close()
        self.recalls.close()
        self.sharing.close()
        self.log.close()
        self.calls.close()
        self.db.close()


async def at_once(work: Callable[[], Any]) -> Any:
    """Work that nobody waits beside."""
    return work()


def main() -> None:
    """Follow orders until they end."""
    home, setting, folder = sys.argv[1:]
    worker = Worker(Path(home), setting, Path(folder))
    for line in sys.stdin:
        order, arguments = json.loads(line)
        try:
            answer = {"said": getattr(worker, order)(**arguments)}
        except HeadwaterError as error:
            answer = {"code": error.code}
        print(json.dumps(answer), flush=True)
        if order == "stop":
            return


if __name__ == "__main__":
    main()
