"""What receipts add to the readings: collected in memory from a stretch of the log, written to the tables once.

Of a receipt only what is counted is read; the log checked the rest when it took it. Knows nothing of the log.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import msgspec

from headwater.core.instants import DAY_NS, parse_instant
from headwater.store.database import Database
from headwater.store.readings_tables import TOP_ANSWERS, month_of

CHANNELS: Final = ("grounded", "learned", "reproduced")
"""A set of them is kept as the sum of 1, 2 and 4."""


class _Owner(msgspec.Struct):
    contributor: str


class _Share(msgspec.Struct):
    contribution: str
    kind: str
    channel: str
    weight_ppb: int
    microbits: int
    owners: list[_Owner]


class _Attribution(msgspec.Struct):
    estimator: str
    version: str
    grade: str
    tokens: int
    shares: list[_Share]


class _Payout(msgspec.Struct):
    account: str
    amount: str
    line: str
    contribution: str | None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class CountedReceipt(msgspec.Struct):
    """What is read of a receipt: the log has checked the rest when it took it."""

    issued_at: str
    currency: str
    price: str
    usage: _Usage
    attribution: _Attribution
    payouts: list[_Payout]
    supersedes: str | None = None


read_receipt: Final = msgspec.json.Decoder(CountedReceipt).decode
"""The counted fields of a receipt from its canonical bytes."""


def person_of(account: str) -> str:
    """The contributor whose money an account holds, ``ctr_…``; empty for any other account.

    >>> person_of("claimable:contributor:ctr_1"), person_of("escrow:ctr_1"), person_of("commons")
    ('ctr_1', 'ctr_1', '')
    """
    kind, _, owner = account.removeprefix("claimable:").partition(":")
    return owner if kind in ("contributor", "escrow") else ""


CALL_COLUMNS: Final = (
    "answers", "price_units", "prompt_tokens", "answer_tokens", "unsupplied", "unmeasured", "corrections",
)  # fmt: skip
"""What is counted of answers, in the order of `call_days`."""


class Numbers:
    """Small numbers for texts of one table, given out as they come up."""

    def __init__(self, db: Database, table: str, column: str) -> None:
        self._db, self._table, self._column = db, table, column

    def of(self, wanted: dict[str, tuple[str, ...]]) -> dict[str, int]:
        """The number of each name; a new one is kept with the further columns given for it."""
        number = {"people": "person", "works": "work"}[self._table]
        names = sorted(wanted)
        select = f"SELECT {self._column}, {number} FROM {self._table} WHERE {self._column} IN ({{}})"
        found: dict[str, int] = dict(self._db.query_in(select, names))
        new = [name for name in names if name not in found]
        if new:
            ((last,),) = self._db.query(f"SELECT coalesce(max({number}), 0) FROM {self._table}")
            rows = [(last + place, name, *wanted[name]) for place, name in enumerate(new, 1)]
            self._db.insert_rows(self._table, rows)
            found.update((name, last + place) for place, name in enumerate(new, 1))
        return found


_Mine = dict[str, defaultdict[str, int]]
"""Nano units by contributor and contribution."""


class Sums:
    """What some receipts add to the tables, collected in memory and written once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._people: dict[str, tuple[str, ...]] = {}
        self._works: dict[str, tuple[str, ...]] = {}
        self._methods: dict[tuple[str, str, str], int] = {}
        self._flows: defaultdict[tuple[str, int, str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        self._calls: defaultdict[tuple[str, int], list[int]] = defaultdict(lambda: [0] * 7)
        self._days: defaultdict[tuple[str, int, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self._used: defaultdict[tuple[str, str, int, str, tuple[str, str, str]], list[int]] = defaultdict(
            lambda: [0, 0, 0, 0]
        )
        self._top: defaultdict[tuple[str, str, int], list[tuple[int, int, str, int, int]]] = defaultdict(list)

    def take(self, place: int, receipt: CountedReceipt) -> None:
        """Count one receipt, which stands at `place` of the log."""
        asset, account, price = receipt.currency, receipt.attribution, int(receipt.price)
        day = _day(receipt.issued_at)
        calls = self._calls[asset, day]
        if receipt.supersedes is not None:
            calls[6] += 1
            return
        kinds = {share.contribution: share.kind for share in account.shares}
        fees, supplied = 0, False
        mine: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        for payout in receipt.payouts:
            units, name = int(payout.amount), payout.contribution or ""
            holder = payout.account.partition(":")[0]
            kind = kinds.get(name, "")
            flow = self._flows[asset, day, payout.line, kind, holder]
            flow[0] += units
            flow[1] += 1
            if holder == "operator":
                fees += units
            supplied |= bool(name) and units > 0
            person = person_of(payout.account)
            if person:
                mine[person][name] += units
                self._people[person] = ()
                if name:
                    self._works[name] = (kind,)
        for column, number in enumerate(
            (
                1,
                price,
                receipt.usage.prompt_tokens,
                receipt.usage.completion_tokens,
                not supplied,
                account.tokens == 0,
            )
        ):
            calls[column] += number
        if mine:
            self._earned(place, receipt, day, price, fees, mine)

    def _earned(
        self,
        place: int,
        receipt: CountedReceipt,
        day: int,
        price: int,
        fees: int,
        mine: dict[str, defaultdict[str, int]],
    ) -> None:
        asset, account, month = receipt.currency, receipt.attribution, month_of(day)
        method = (account.estimator, account.version, account.grade)
        bits: defaultdict[str, int] = defaultdict(int)
        channels: defaultdict[str, int] = defaultdict(int)
        for share in account.shares:
            bits[share.contribution] += share.microbits
            channels[share.contribution] |= 1 << CHANNELS.index(share.channel)
        for person, works in mine.items():
            units = sum(works.values())
            earned = self._days[asset, day, person]
            for column, number in enumerate((units, 1, price, fees)):
                earned[column] += number
            for name, part in works.items():
                used = self._used[person, asset, month, name, method]
                used[0] |= channels[name]
                used[1] += part
                used[2] += 1
                used[3] += bits[name]
            best = max(works, key=lambda name: (works[name], name))
            self._top[person, asset, month].append((units, place, best, bits[best], price))

    def write(self) -> None:
        """Add it all to the tables, inside the caller's transaction."""
        db = self._db
        people = Numbers(db, "people", "contributor").of(self._people)
        works = Numbers(db, "works", "contribution").of(self._works) | {"": 0}
        methods = self._method_numbers({key[4] for key in self._used})
        db.executemany(
            "INSERT INTO flow_days VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " units = units + excluded.units, payouts = payouts + excluded.payouts",
            [(*key, *sums) for key, sums in self._flows.items()],
        )
        db.executemany(
            "INSERT INTO call_days VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            + ", ".join(f"{name} = {name} + excluded.{name}" for name in CALL_COLUMNS),
            [(*key, *sums) for key, sums in self._calls.items()],
        )
        days = sorted((asset, day, people[person], sums) for (asset, day, person), sums in self._days.items())
        db.executemany(
            "INSERT INTO earned_days VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " units = units + excluded.units, answers = answers + excluded.answers,"
            " price_units = price_units + excluded.price_units, fees_units = fees_units + excluded.fees_units",
            [(*key, *sums) for *key, sums in days],
        )
        months: defaultdict[tuple[str, int, int], list[int]] = defaultdict(lambda: [0, 0])
        for asset, day, number, (units, answers, *_) in days:
            month = months[asset, month_of(day), number]
            month[0] += units
            month[1] += answers
        db.executemany(
            "INSERT INTO earned_months VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " units = units + excluded.units, answers = answers + excluded.answers",
            [(*key, *sums) for key, sums in sorted(months.items())],
        )
        db.executemany(
            "INSERT INTO used_months VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " channels = channels | excluded.channels, units = units + excluded.units,"
            " answers = answers + excluded.answers, microbits = microbits + excluded.microbits",
            sorted(
                (people[person], asset, month, works[name], methods[method], *sums)
                for (person, asset, month, name, method), sums in self._used.items()
            ),
        )
        self._write_top(people, works)
        stale = {(asset, "day", day) for asset, day, _ in self._days}
        stale |= {(asset, "month", month) for asset, month, _ in months}
        db.executemany("INSERT INTO stale VALUES (?, ?, ?) ON CONFLICT DO NOTHING", sorted(stale))

    def _write_top(self, people: dict[str, int], works: dict[str, int]) -> None:
        rows, keys = [], []
        for (person, asset, month), answers in self._top.items():
            key = (people[person], asset, month)
            keys.append(key)
            for units, place, name, microbits, price in sorted(answers, key=lambda row: (-row[0], row[1]))[
                :TOP_ANSWERS
            ]:
                rows.append((*key, units, place, works[name], microbits, price))
        self._db.executemany("INSERT INTO top_answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", sorted(rows))
        self._db.executemany(
            "DELETE FROM top_answers WHERE person = ?1 AND asset = ?2 AND month = ?3 AND (units, place) IN ("
            " SELECT units, place FROM top_answers WHERE person = ?1 AND asset = ?2 AND month = ?3"
            f" ORDER BY units DESC, place LIMIT -1 OFFSET {TOP_ANSWERS})",
            sorted(keys),
        )

    def _method_numbers(self, wanted: set[tuple[str, str, str]]) -> dict[tuple[str, str, str], int]:
        found = {(e, v, g): n for n, e, v, g in self._db.query("SELECT method, estimator, version, grade FROM methods")}
        for method in sorted(wanted - found.keys()):
            found[method] = len(found) + 1
            self._db.execute("INSERT INTO methods VALUES (?, ?, ?, ?)", (found[method], *method))
        return found


def _day(issued_at: str) -> int:
    """The day of an instant as receipts write it, counted from 1970."""
    day = _DAYS.get(issued_at[:10])
    if day is None:
        day = _DAYS[issued_at[:10]] = parse_instant(issued_at) // DAY_NS
    return day


_DAYS: dict[str, int] = {}
