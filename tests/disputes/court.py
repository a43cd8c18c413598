"""A toy home with a court: a clock that tests move, keys with credit, reviewers, and a thief who registered first."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from headwater.core.ids import ContributionId, ContributorId
from headwater.core.instants import DAY_NS
from headwater.corrections import Books
from headwater.disputes import Court, Disputes
from headwater.flow import CallRequest, Message
from headwater.models import Sampling
from headwater.receipts import KeySigner, Receipt
from headwater.registry import enrolled, unenrolled
from headwater.registry.dispute import Rules
from headwater.splits import Policy
from headwater.store.epoch_store import EpochStore
from headwater.store.key_store import KeyRecord
from toy.home import ToyHome, open_home

QUESTION = "what does a river do in the sea?"
BOND = 10 * 10**9


def toml_of(policy: Policy) -> str:
    """The TOML of a policy."""
    value = policy.to_json()
    lines, discounts = value.pop("lines"), value.pop("grade_discount_bps")
    text = "".join(f"{k} = {json.dumps(v)}\n" for k, v in value.items()) + "[grade_discount_bps]\n"
    text += "".join(f"{k} = {v}\n" for k, v in discounts.items())
    return text + "".join(
        "[[lines]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in line.items()) for line in lines
    )


@dataclass
class Bench:
    """Everything a dispute needs, at hand."""

    toy: ToyHome
    books: Books
    disputes: Disputes
    clock: list[int]  # nanoseconds added to the machine's clock
    clusters: dict[ContributorId, str] = field(default_factory=dict)

    def ask(self, question: str = QUESTION) -> Receipt:
        """One paid, grounded answer."""
        _, key = self.toy.key()
        request = CallRequest("toy-grounded", (Message("user", question),), Sampling(12), "sha256:" + "0" * 64)
        opened = self.toy.flow.open(request, key)
        for _ in self.toy.flow.answer(opened):
            pass
        return self.toy.flow.attribute(opened.record.call_id)

    def document(self, title: str = "Rivers") -> ContributionId:
        """A document of the toy home."""
        return next(c.id for c in self.toy.registry.contributions() if c.title == title)

    def person(self, name: str, *, address: str | None = None) -> ContributorId:
        """A contributor by name, enrolled when an address is given."""
        made = unenrolled("toy", name) if address is None else enrolled("toy", name, address)
        self.toy.registry.add_contributor(made)
        return made.id

    def credit(self, label: str) -> KeyRecord:
        """A key with credit."""
        return self.toy.key(label)[1]

    def judges(self, count: int) -> dict[ContributorId, KeyRecord]:
        """People who may be drawn."""
        found = {}
        for number in range(count):
            key = self.credit(f"judge {number}")
            name = self.person(f"Judge {number}")
            self.disputes.store.add_reviewer(name, key.account, 0)
            found[name] = key
        return found

    def units(self, account: str) -> int:
        """What an account has."""
        return self.toy.ledger.balance(account, self.toy.currency).balance_units

    def passes(self, days: int) -> None:
        """Let time pass, as a process that runs sees it."""
        for _ in range(days):
            self.clock[0] += DAY_NS
            self.disputes.settle_due()

    def vote(self, id: str, upholds: bool) -> None:
        """The panel that sits votes as one."""
        sitting = self.disputes.store.get(id).sitting
        assert sitting is not None
        for member in sitting.members:
            if self.disputes.store.get(id).sitting.verdict() is None:  # type: ignore[union-attr]
                self.disputes.vote(id, member, upholds, "as the evidence shows")
        self.disputes.settle_due()

    def sound(self) -> bool:
        """Whether the ledger is."""
        assert self.toy.calls.check() == ()
        return True


@contextmanager
def bench(path: Path, *, rules: Rules | None = None, maturity_s: int = 7 * 86_400) -> Iterator[Bench]:
    """Open one."""
    clock = [0]
    clusters: dict[ContributorId, str] = {}
    with open_home(path) as toy:
        policy = toml_of(toy.flow.parts.policy)

        def of_digest(_: str) -> str:
            return policy

        def acting_together() -> Mapping[ContributorId, str]:
            return clusters

        books = Books(
            registry=toy.registry,
            ledger=toy.ledger,
            log=toy.log,
            epochs=EpochStore(toy.db),
            currency=toy.currency,
            maturity_s=maturity_s,
            operator_addresses={
                name: "0x" + f"{i:02x}" * 20 for i, name in enumerate(("operator:compute", "operator:platform"), 0xA0)
            },
            policy_text=of_digest,
            now_ns=lambda: time.time_ns() + clock[0],
        )
        court = Court(
            books=books,
            database=toy.db,
            signer=KeySigner(b"\x01" * 32),
            rules=rules or Rules(),
            clusters=acting_together,
            payer_of=lambda call: toy.calls.get(call).payer,
            public_value=lambda: "a beacon's value",
        )
        yield Bench(toy, books, Disputes(court), clock, clusters)
