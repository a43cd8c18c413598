"""A large home for `bench/dashboard.py`: contributors, contributions, signed receipts and their bookings.

Made through the functions that a running gateway uses: the registry's intake, the split, the signer, the receipt
log, and the bulk booking of metered calls. Only texts and bits are drawn, from power laws, by a seed: a few people
and documents take part in most answers, as they do anywhere. A home that is there already is used as it is.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from headwater.attribution.bits import weigh
from headwater.cli.home import Home
from headwater.core.ids import AccountId, CallId, ContributionId
from headwater.core.instants import DAY_NS
from headwater.core.money import NANO
from headwater.flow import pseudonym
from headwater.ledger import deposit, transfer_id
from headwater.receipts import ModelUse, Receipt, ReceiptAttribution, ReceiptOwner, ReceiptShare, Usage, issue
from headwater.registry import Ownership, account_for, unenrolled
from headwater.registry.contributor import Contributor, enrolled
from headwater.registry.intake import Candidate
from headwater.settings import Settings
from headwater.splits.receipt_split import divide_receipt, payouts_of
from headwater.store.call_store import FinishedCall
from headwater.store.metered_store import Metered, metered_key

BEGIN_NS = 1_772_323_200 * NANO  # 2026-03-01
DAYS = 180
KEYS = 40
BATCH = 4_096
_KINDS = ("document",) * 12 + ("prompt",) * 2 + ("feedback",)
_LICENCES = ("CC0-1.0", "CC-BY-4.0", "LicenseRef-PEP-Public-Domain", "Apache-2.0")


def build(folder: Path, *, receipts: int, people: int, works: int, seed: int = 1) -> Home:
    """The home at `folder` with so many receipts, contributors and contributions."""
    home = Home(Settings(home=folder, maturity_s=0), writer=True)
    begun = time.process_time()
    owners = _register(home, people, works, random.Random(seed))
    _say("registered", begun, works)
    keys = [_key(home, number) for number in range(KEYS)]
    begun, done = time.process_time(), len(home.log)
    drawn = _receipts(home, owners, keys, receipts, random.Random(seed + 1))
    batch: list[tuple[Receipt, str, int]] = []
    for number, one in enumerate(drawn):
        if number >= done:
            batch.append(one)
        if len(batch) == BATCH or (batch and number + 1 == receipts):
            _write(home, batch)
            batch = []
            if (number + 1) % (16 * BATCH) == 0:
                _say("receipts", begun, number + 1 - done)
    return home


def _register(
    home: Home, people: int, works: int, rng: random.Random
) -> list[tuple[str, str, tuple[ReceiptOwner, ...]]]:
    """(id, kind, owners as receipts hold them) of every contribution, registered unless it was."""
    contributors = [_contributor(number) for number in range(people)]
    there = sum(1 for _ in home.registry.contributions()) if home.path.exists() else 0
    found, candidates = [], []
    for number in range(works):
        # Everybody owns one work; of the others, and as second owners, a few people own much.
        heavy = min(people - 1, int(rng.paretovariate(0.75)) - 1)
        chosen = {number if number < people else heavy, *([heavy] if rng.random() < 0.15 else [])}
        shares = [10**9 // len(chosen)] * len(chosen)
        shares[0] += 10**9 - sum(shares)
        owned = [contributors[place] for place in sorted(chosen)]
        kind = rng.choice(_KINDS)
        text = f"{kind} {number} of the measured store, seed text {rng.getrandbits(64):016x}\n".encode()
        candidate = Candidate(
            where=str(number),
            kind=kind,  # type: ignore[arg-type]
            title=f"{kind.capitalize()} {number}",
            content=text,
            owners=tuple(Ownership(o.id, part) for o, part in zip(owned, shares, strict=True)),
            license_expression=rng.choice(_LICENCES),
            uses=frozenset({"ground", "train", "reproduce"}),
            registered_at_ns=BEGIN_NS - DAY_NS,
            source="measured store",
        )
        digest = hashlib.sha256(kind.encode() + b"\x00" + text).hexdigest()[:32]
        receipt_owners = tuple(ReceiptOwner(account_for(o), o.id, part) for o, part in zip(owned, shares, strict=True))
        found.append((f"ctb_{digest}", kind, receipt_owners))
        if number >= there:
            candidates.append(candidate)
        if len(candidates) == 2_000 or (candidates and number + 1 == works):
            _admit(home, candidates, contributors)
            candidates = []
    return found


def _admit(home: Home, candidates: Sequence[Candidate], contributors: Sequence[Contributor]) -> None:
    wanted = {o.contributor_id for candidate in candidates for o in candidate.owners}
    intake = home.registry.admit(candidates, [one for one in contributors if one.id in wanted])
    assert not intake.problems, intake.problems[:3]


def _contributor(number: int) -> Contributor:
    name = f"Measured Person {number}"
    if number % 5:
        return unenrolled("bench", name)
    return enrolled("bench", name, "0x" + hashlib.sha256(name.encode()).hexdigest()[:40])


def _key(home: Home, number: int) -> str:
    label = f"measured payer {number}"
    known = {key.label: key for key in home.keys.list()}
    if label not in known:
        secret = hashlib.sha256(label.encode()).digest()
        _, record = home.keys.create(label, secret, BEGIN_NS)
        draft = deposit(record.account, 10**6 * NANO, asset=home.policy.currency, cause=f"deposit:{number}")
        home.ledger.post([draft], key=f"deposit:{number}", at_ns=BEGIN_NS)
        return record.key_id
    return known[label].key_id


def _receipts(
    home: Home,
    works: Sequence[tuple[str, str, tuple[ReceiptOwner, ...]]],
    keys: Sequence[str],
    count: int,
    rng: random.Random,
) -> Iterator[tuple[Receipt, str, int]]:
    """(receipt, key id, when the call began)."""
    policy, signer, registry = home.policy, home.signer, home.registry.digest()
    digests = ["sha256:" + hashlib.sha256(bytes([n])).hexdigest() for n in range(64)]
    payers = {key: pseudonym(key) for key in keys}
    for number in range(count):
        began = BEGIN_NS + DAYS * DAY_NS * number // count
        wanted = min(6, int(rng.paretovariate(1.2)) - (rng.random() < 0.15))
        places = {min(len(works) - 1, int((rng.paretovariate(0.5) - 1) * 40)) for _ in range(wanted)}
        shares = [works[place] for place in sorted(places)]
        bits = [rng.randrange(500_000, 150_000_000) for _ in shares]
        base = rng.randrange(100_000_000, 400_000_000)
        weights, residual = weigh(
            bits,
            [],
            base,
            model_weight_ppm=policy.model_weight_ppm,
            evidence_floor_millibits=policy.evidence_floor_millibits,
        )
        prompt, answer = rng.randrange(40, 900), rng.randrange(10, 300)
        account = ReceiptAttribution(
            estimator="exact-context",
            version="1",
            grade="A" if rng.random() < 0.8 else "B",
            parameters=(("evidence_floor_millibits", policy.evidence_floor_millibits), ("passes", 16)),
            seed=0,
            reference_digest=digests[0],
            index_digest=None,
            scorer_digest=digests[1],
            tokens=answer,
            base_microbits=base,
            total_microbits=base + sum(bits),
            model_weight_ppm=policy.model_weight_ppm,
            shares=tuple(
                ReceiptShare(*(ContributionId(name), kind, "grounded", weight, measured, measured, measured, owners))
                for (name, kind, owners), weight, measured in zip(shares, weights, bits, strict=True)
            ),
            residual_ppb=residual,
            residual_account=AccountId("commons"),
        )
        price = 2_000_000 + 4_000 * prompt + 100_000 * answer
        key = rng.choice(keys)
        receipt = Receipt(
            call_id=CallId(f"call_{rng.getrandbits(128):032x}"),
            issued_at_ns=began + NANO,
            operator=signer.address,
            payer=payers[key],
            model=ModelUse("measured", digests[2], None),
            request_digest=digests[number % 64],
            answer_digest=digests[(number * 7) % 64],
            usage=Usage(prompt, answer),
            currency=policy.currency,
            price=price,
            policy_digest=policy.digest,
            registry_digest=registry,
            attribution=account,
            payouts=(),
        )
        yield replace(receipt, payouts=payouts_of(divide_receipt(price, account, policy))), key, began


def _write(home: Home, batch: Sequence[tuple[Receipt, str, int]]) -> None:
    """Sign, log and book a batch."""
    signed = [issue(receipt, home.signer) for receipt, *_ in batch]
    home.log.append_many([(one.raw, one.signature) for one in signed])
    metered = [
        Metered(
            FinishedCall(
                receipt.call_id,
                key,
                receipt.model.name,
                receipt.currency,
                receipt.price,
                transfer_id(metered_key(receipt.call_id), 0),
                one.id,
                receipt.request_digest,
                receipt.answer_digest,
                began,
                receipt.issued_at_ns,
            ),
            tuple((payout.account, payout.amount) for payout in receipt.payouts),
        )
        for (receipt, key, began), one in zip(batch, signed, strict=True)
    ]
    for start in range(0, len(metered), 1_024):
        home.metered.book(metered[start : start + 1_024], (), logged=len(home.log), at_ns=batch[-1][2], nonce="bench")


def _say(what: str, begun: float, count: int) -> None:
    spent = time.process_time() - begun
    print(f"{what}: {count:,} in {spent:.0f} CPU-s", file=sys.stderr, flush=True)
