"""Contributors: who they are, what they earned and why, what it may come to, and how they are paid.

A statement is for its contributor and for the operator. Everybody else sees the name, whether it has enrolled, and how
much is registered under it; of somebody who has not enrolled also what waits, because it waits to be fetched.
"""

# Annotations stay live here: FastAPI resolves them.

import csv
import io
from typing import Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from headwater.core.errors import RefusedError
from headwater.core.ids import ContributorId
from headwater.dashboard.charts import Range, Series, bars
from headwater.dashboard.contributor_claims import Claims
from headwater.dashboard.contributor_statement import balances, month_name, outlook, period_of, statement
from headwater.dashboard.figures import money
from headwater.dashboard.pages import Area, Link, Pages, wants_json
from headwater.dashboard.periods import brief, day_text, filled, weekly
from headwater.dashboard.readings_keeper import Keeper
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.registry import Contributor
from headwater.store.readings_registry import COUNTED_MAX, names, people
from headwater.store.readings_tables import month_of

PAGE: Final = 50
WORDS_MAX: Final = 80


def area(site: Site, pages: Pages, keeper: Keeper) -> Area:
    """The routes under ``/contributors`` and ``/statement``."""
    router = APIRouter()
    claims = Claims(site)

    def private(request: Request, contributor: str) -> Contributor:
        """The contributor, to whom its statement belongs.

        Raises:
            RefusedError: ``not_yours``, or nobody has signed in.
        """
        session = pages.sessions.require(request, "contributor", "operator")
        if session.role == "contributor" and session.subject != contributor:
            raise RefusedError(
                "this statement belongs to somebody else", code="role_not_permitted", fix="sign in as its contributor"
            )
        return site.registry.contributor(ContributorId(contributor))

    def sees_all(request: Request, contributor: str) -> bool:
        session = pages.session(request)
        return session is not None and (session.role == "operator" or session.subject == contributor)

    @router.get("/statement", response_class=Response)
    def own(request: Request) -> Response:
        session = pages.sessions.require(request, "contributor")
        return pages.redirect(request, f"/contributors/{session.subject}")

    @router.get("/contributors", response_class=Response)
    def everybody(request: Request, q: str = Query("", max_length=WORDS_MAX), after: str = "") -> Response:
        name, _, known_id = after.rpartition("\n")
        found = people(site.db, words=q.strip(), after=(name, known_id), limit=PAGE + 1)
        shown, session = found[:PAGE], pages.session(request)
        best: list[dict[str, Any]] = []
        if session is not None and session.role == "operator" and not q and not after:
            best = _best(site, keeper)
        return pages.show(
            request,
            "contributor/people.html",
            say("contributor.people"),
            {
                "q": q,
                "people": [
                    {
                        "id": p.id,
                        "name": p.name,
                        "namespace": p.namespace,
                        "enrolled": p.enrolled,
                        "count": p.contributions,
                    }
                    for p in shown
                ],
                "next": f"{shown[-1].name}\n{shown[-1].id}" if len(found) > PAGE else "",
                "at_start": not after,
                "best": best,
                "counted_max": COUNTED_MAX,
            },
        )

    @router.get("/contributors/{contributor}", response_class=Response)
    def one(request: Request, contributor: str, period: str = "") -> Response:
        known = site.registry.contributor(ContributorId(contributor))
        fresh, session = keeper.fresh(), pages.session(request)
        data: dict[str, Any] = {
            "id": known.id,
            "name": known.name,
            "namespace": known.namespace,
            "enrolled": known.enrolled,
            "address": known.payout_address if sees_all(request, contributor) else None,
            "yours": session is not None and session.subject == contributor,
            "missing": fresh.missing,
        }
        if not sees_all(request, contributor):
            owned = keeper.holdings.of(contributor)
            waiting = None if known.enrolled else balances(site, known)["escrow_units"]
            data |= {"contributions": owned.contributions, "kinds": dict(owned.kinds), "waiting_units": waiting}
            return pages.show(request, "contributor/public.html", known.name, data)
        chosen = period_of(period, keeper.ask())
        data |= statement(site, keeper, known, chosen) | outlook(site, keeper, known)
        data["claim"] = claims.offered(known, data["claimable_units"])
        if not wants_json(request):
            data["chart"] = _chart(data, site.currency)
        return pages.show(request, "contributor/statement.html", known.name, data)

    @router.get("/contributors/{contributor}/statement.csv", response_class=Response)
    def spreadsheet(request: Request, contributor: str, period: str = "") -> Response:
        known = private(request, contributor)
        keeper.fresh()
        chosen = period_of(period, keeper.ask())
        raw = _csv(statement(site, keeper, known, chosen), known, site.currency)
        disposition = f'attachment; filename="statement-{known.id}-{chosen.name}.csv"'
        return Response(raw, 200, {"content-disposition": disposition}, media_type="text/csv; charset=utf-8")

    claims.add_routes(router, pages, private)
    links = (
        Link("/statement", "contributor.nav_own", ("contributor",)),
        Link("/contributors", "contributor.nav"),
    )
    return Area("contributor", router, links, {"day": day_text})


def _best(site: Site, keeper: Keeper) -> list[dict[str, Any]]:
    """Who earned most in the newest month with an answer."""
    keeper.fresh()
    ask = keeper.ask()
    known = ask.days()
    if known is None:
        return []
    month = month_of(known[1])
    found = ask.best(month, limit=10)
    named = names(site.db, tuple(one.contributor for one in found))
    return [
        {
            "id": one.contributor,
            "name": named.get(one.contributor, one.contributor),
            "units": one.units,
            "answers": one.answers,
            "month": month_name(month),
        }
        for one in found
    ]


def _chart(data: dict[str, Any], currency: str) -> Any:
    """Earnings over time, and behind them what the forecast says of the next four weeks."""
    days = [(row["day"], row["units"]) for row in data["days"]]
    if not days:
        return ""
    long = days[-1][0] - days[0][0] > 45
    places = weekly(days) if long else filled(days)
    labels = [label for label, _ in places]
    values = tuple(float(units) for _, units in places)
    ranges: tuple[Range, ...] = ()
    found = data["forecast"]
    if found and data["period"] == "all" and long:
        # Beside bars of a week, a week's part of the four weeks.
        labels.append(say("contributor.chart_next"))
        parts = [found[name] / (found["days"] / 7) for name in ("low_units", "middle_units", "high_units")]
        said = say(
            "contributor.chart_range", low=brief(round(parts[0])), high=brief(round(parts[2])), currency=currency
        )
        ranges = (Range(len(labels) - 1, parts[0], parts[1], parts[2], said),)
        values = (*values, 0.0)
    title = say(
        "contributor.chart_weeks" if long else "contributor.chart_days",
        first=places[0][0],
        last=places[-1][0],
        best=brief(round(max(values)), currency),
    )
    return bars(
        labels,
        (Series(say("contributor.earned"), values),),
        title=title,
        show=lambda value: brief(round(value)),
        ranges=ranges,
    )


def _csv(found: dict[str, Any], known: Contributor, currency: str) -> bytes:
    """The days of a statement; amounts in nano units and in the currency."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(
        ["contributor", "day", "answers", "earned_nano", f"earned_{currency}", "callers_paid_nano", "lines_nano"]
    )
    for row in found["days"]:
        writer.writerow(
            [
                known.id,
                day_text(row["day"]),
                row["answers"],
                row["units"],
                money(row["units"]).replace(",", ""),
                row["price_units"],
                row["fees_units"],
            ]
        )
    return out.getvalue().encode()
