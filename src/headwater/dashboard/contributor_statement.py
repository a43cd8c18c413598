"""A contributor's statement as a page shows it: what was earned, by what, in which answers, and where the money is now.

The sums come from the readings, the balances from the ledger, the words of a few answers from their receipts. Amounts
are nano units. Whoever calls has already decided who may see it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.ids import AccountId
from headwater.core.instants import DAY_NS
from headwater.dashboard.contributor_forecast import AHEAD, HISTORY, WEEK, forecast
from headwater.dashboard.readings_keeper import Keeper
from headwater.dashboard.site import Site
from headwater.ledger import Code
from headwater.ledger.earnings import accounts_of
from headwater.receipts import Receipt
from headwater.registry import Contributor
from headwater.store.readings_queries import Questions, TopAnswer, Work, paid
from headwater.store.readings_registry import titles
from headwater.store.readings_tables import first_day, month_of

WORKS_SHOWN: Final = 12
ANSWERS_SHOWN: Final = 5
ALL: Final = "all"
_WHOLE_PPB: Final = 10**9


@dataclass(frozen=True, slots=True)
class Period:
    """A month, or everything so far."""

    name: str  # 2026-11, or all
    first: int  # days counted from 1970, inclusive
    last: int

    @property
    def months(self) -> tuple[int, int]:
        """The first and the last month."""
        return month_of(self.first), month_of(self.last)


def month_name(month: int) -> str:
    """A month as it is written in addresses.

    >>> month_name(24_322)
    '2026-11'
    """
    return f"{month // 12:04d}-{month % 12 + 1:02d}"


def period_of(name: str, ask: Questions) -> Period:
    """The period that a page is asked for; everything when nothing is named.

    Raises:
        InvalidError: not a month like 2026-11.
    """
    days = ask.days() or (0, 0)
    if name in ("", ALL):
        return Period(ALL, *days)
    year, dash, month = name.partition("-")
    if (
        dash
        and name.isascii()
        and year.isdecimal()
        and month.isdecimal()
        and len(month) == 2
        and len(year) == 4
        and 1 <= int(month) <= 12
        and int(year)
    ):
        found = 12 * int(year) + int(month) - 1
        return Period(month_name(found), first_day(found), first_day(found + 1) - 1)
    raise InvalidError(f"{name[:80]!r} is not a period", code="period_invalid", fix="give a month like 2026-11, or all")


def balances(site: Site, contributor: Contributor) -> dict[str, int]:
    """Where a contributor's money stands now."""
    escrow, due, promised = (
        site.ledger.balance(account, site.currency).balance_units for account in accounts_of(contributor.id)
    )
    return {"escrow_units": escrow, "due_units": due, "claimable_units": promised}


def statement(site: Site, keeper: Keeper, contributor: Contributor, period: Period) -> dict[str, Any]:
    """Everything the page of a statement says."""
    ask, who = keeper.ask(), contributor.id
    days = ask.earned(who, period.first, period.last)
    total = paid(days)
    works = ask.used(who, *period.months, limit=WORKS_SHOWN)
    moved = ask.moved(period.first, period.last, contributor=who)
    named = titles(site.db, tuple(work.contribution for work in works if work.contribution))
    answers = [_answer(site, named, one) for one in ask.top(who, *period.months, limit=ANSWERS_SHOWN)]
    return {
        "period": period.name,
        "periods": [ALL, *(month_name(month) for month in ask.months()[:24])],
        "units": total.units,
        "answers_count": total.answers,
        "price_units": total.price_units,
        "fees_units": total.fees_units,
        "part_ppb": total.units * _WHOLE_PPB // total.price_units if total.price_units else 0,
        "claimed_units": moved.get(Code.PAID, 0),
        "corrected_units": moved.get(Code.CORRECTION, 0),
        **balances(site, contributor),
        "works_count": ask.used_count(who, *period.months),
        "works": [_work(named, work, total.units) for work in works],
        "top": [one for one in answers if one is not None],
        "days": [asdict(day) for day in days],
    }


def outlook(site: Site, keeper: Keeper, contributor: Contributor) -> dict[str, Any]:
    """What may come, and what would raise it: figures of the contributor's own, never a promise."""
    ask, who = keeper.ask(), contributor.id
    known = ask.days()
    daily = [] if known is None else _daily(ask, who, known)
    found = forecast(daily)
    works = () if known is None else ask.used(who, month_of(known[0]), month_of(known[1]), limit=50)
    owned = keeper.holdings.of(who)
    unnamed = sum(not work.contribution for work in works)
    named = [work for work in works if work.contribution]
    return {
        "forecast": None if found is None else asdict(found),
        "raises": _raises(site, contributor, named, ask.used_count(who, 0, 10**6) if unnamed or named else 0, owned),
        "owned": {"contributions": owned.contributions, "kinds": dict(owned.kinds), "closed": owned.closed},
    }


def _daily(ask: Questions, who: str, known: tuple[int, int]) -> list[int]:
    """Earnings of every day from the contributor's first one on, at most as long as forecasts look back, twice."""
    since = max(known[0], known[1] - 2 * (HISTORY + AHEAD) * WEEK)
    earned = {day.day: day.units for day in ask.earned(who, since, known[1])}
    if not earned:
        return []
    return [earned.get(day, 0) for day in range(min(earned), known[1])]  # the last day is not over


def _work(named: dict[str, str], work: Work, total_units: int) -> dict[str, Any]:
    return {
        **asdict(work),
        "title": named.get(work.contribution, work.contribution),
        "part_ppb": work.units * _WHOLE_PPB // total_units if total_units else 0,
    }


def _answer(site: Site, named: dict[str, str], one: TopAnswer) -> dict[str, Any] | None:
    """One of the best paid answers, from its receipt; None when the log no longer gives it."""
    try:
        receipt = Receipt.from_bytes(site.flow.parts.log.at(one.place).raw)
    except HeadwaterError:
        return None
    account = receipt.attribution
    shares = [share for share in account.shares if share.contribution == one.contribution]
    title = named.get(one.contribution) or titles(site.db, (one.contribution,)).get(one.contribution, "")
    return {
        "receipt": receipt.id,
        "day": receipt.issued_at_ns // DAY_NS,
        "issued_at_ns": receipt.issued_at_ns,
        "model": receipt.model.name,
        "units": one.units,
        "price_units": receipt.price,
        "contribution": one.contribution,
        "title": title or one.contribution,
        "channels": sorted({share.channel for share in shares}),
        "microbits": sum(share.microbits for share in shares),
        "low_microbits": sum(share.low_microbits for share in shares),
        "high_microbits": sum(share.high_microbits for share in shares),
        "total_microbits": account.total_microbits,
        "weight_ppb": sum(share.weight_ppb for share in shares),
        "residual_ppb": account.residual_ppb,
        "estimator": account.estimator,
        "version": account.version,
        "grade": account.grade,
    }


def _raises(site: Site, contributor: Contributor, works: list[Work], used: int, owned: Any) -> list[dict[str, Any]]:
    """What would raise earnings, each with the figures that say so; keys of the area's words."""
    found: list[dict[str, Any]] = []
    waiting = balances(site, contributor)["escrow_units"]
    if not contributor.enrolled:
        found.append({"key": "enrol", "units": waiting})
    if owned.closed:
        found.append({"key": "open", "count": owned.closed, "of": owned.contributions})
    if owned.priced:
        found.append({"key": "floor", "count": owned.priced, "of": owned.contributions})
    if owned.contributions and used < owned.contributions:
        found.append({"key": "unused", "count": owned.contributions - used, "of": owned.contributions})
    bits = [work for work in works if work.answers >= 1 and work.microbits > 0]
    if len(bits) >= 2:
        best = max(bits, key=lambda work: work.microbits / work.answers)
        middle = sorted(work.microbits / work.answers for work in bits)[len(bits) // 2]
        if best.microbits / best.answers > 1.5 * middle > 0:
            title = titles(site.db, (best.contribution,)).get(best.contribution, best.contribution)
            times = round(best.microbits / best.answers / middle * 10)
            found.append({"key": "bits", "title": title, "tenths": times, "microbits": best.microbits // best.answers})
    if any(work.grade != "A" for work in works):
        poorer = sum(work.units for work in works if work.grade != "A")
        found.append({"key": "grade", "units": poorer})
    found.append({"key": "copies"})
    return found


def account_due(contributor: Contributor) -> AccountId:
    """The account whose money a posted root promises."""
    return AccountId(accounts_of(contributor.id)[1])
