"""The operator's desk: where money went, what waits, what to look at, datanets, settlement and the trail.

Everything here is for the operator alone. What changes something is an act with its entry in the audit trail.
"""

# Annotations stay live here: FastAPI resolves them.

from typing import Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from headwater.core.errors import InvalidError, MissingError
from headwater.dashboard import operator_alerts, operator_flow
from headwater.dashboard.operator_settlement import plan_of
from headwater.dashboard.pages import Area, Link, Pages, wants_json
from headwater.dashboard.readings_keeper import Keeper
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.store.audit_trail import AuditTrail
from headwater.store.datanet_store import DatanetStore
from headwater.store.readings_registry import epoch_lines

PERIODS: Final = {"7": 7, "30": 30, "90": 90, "all": 10**5}
AUDIT_PAGE: Final = 50


def area(site: Site, pages: Pages, keeper: Keeper) -> Area:
    """The routes under ``/operator`` but keys and policy."""
    router = APIRouter()

    def operator(request: Request) -> str:
        return pages.sessions.require(request, "operator").subject

    @router.get("/operator", response_class=Response)
    def desk(request: Request, days: str = "30") -> Response:
        operator(request)
        return pages.show(request, "operator/desk.html", say("operator.title"), _desk(request, days))

    @router.get("/operator/waiting", response_class=Response)
    def waiting(request: Request) -> Response:
        """The part of the desk that is looked at again and again."""
        operator(request)
        return pages.fragment(request, "operator/waiting.html", {"waits": operator_alerts.queues(site, keeper.fresh())})

    def _desk(request: Request, days: str) -> dict[str, Any]:
        if days not in PERIODS:
            raise InvalidError(f"{days[:20]!r} days", code="period_invalid", fix=f"one of {', '.join(PERIODS)}")
        fresh = keeper.fresh()
        known = keeper.ask().days()
        first, last = known or (0, 0)
        found = operator_flow.overview(keeper, max(first, last - PERIODS[days] + 1), last)
        waits = operator_alerts.queues(site, fresh)
        data = {
            "days": days,
            "empty_ledger": known is None,
            "missing": fresh.missing,
            "waits": waits,
            "alerts": operator_alerts.alerts(site, found, waits),
            **found,
        }
        if not wants_json(request):
            drawn = operator_flow.diagram(found["flows"], site.currency)
            data |= {
                "sankey": drawn.svg,
                "rows": drawn.rows,
                "take_chart": operator_flow.take_chart(found),
                "inequality_chart": operator_flow.inequality_chart(found["inequality"]),
            }
        return data

    @router.get("/operator/settlement", response_class=Response)
    def settlement(request: Request) -> Response:
        operator(request)
        return pages.show(request, "operator/settlement.html", say("operator.settlement"), _settlement(None))

    @router.post("/operator/settlement", response_class=Response)
    def planned(request: Request) -> Response:
        operator(request)
        if site.books is None:
            raise MissingError("no chain is open", code="chain_missing", fix="start the server with a chain")
        return pages.show(
            request, "operator/settlement.html", say("operator.settlement"), _settlement(plan_of(site.books))
        )

    def _settlement(plan: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "epochs": [
                {"epoch": e.epoch, "log_size": e.log_size, "closed_at_ns": e.closed_at_ns, "posted": e.posted}
                for e in epoch_lines(site.db, limit=20)
            ],
            "plan": plan,
            "chain": site.books is not None,
            "maturity_s": site.settings.maturity_s,
        }

    @router.get("/operator/datanets", response_class=Response)
    def datanets(request: Request) -> Response:
        operator(request)
        found = [
            {
                "name": kept.datanet.name,
                "title": kept.datanet.card.title,
                "license": kept.datanet.card.license_expression,
                "members": kept.members,
                "version": kept.version,
            }
            for kept in DatanetStore(site.db).all()
        ]
        return pages.show(request, "operator/datanets.html", say("operator.datanets"), {"datanets": found})

    @router.get("/operator/audit", response_class=Response)
    def audit(request: Request, before: int | None = Query(None, ge=1), subject: str = "") -> Response:
        operator(request)
        trail = AuditTrail(site.db)
        entries = trail.entries(before=before, limit=AUDIT_PAGE, subject=subject or None)
        number, digest = trail.head()
        return pages.show(
            request,
            "operator/audit.html",
            say("operator.audit"),
            {
                "entries": [one.to_json() for one in entries],
                "subject": subject,
                "older": entries[-1].number if len(entries) == AUDIT_PAGE else None,
                "at_start": before is None,
                "head": {"number": number, "digest": digest.hex()},
                "problems": [problem.message for problem in trail.check()] if number <= 10_000 else None,
            },
        )

    return Area("operator", router, (Link("/operator", "operator.nav", ("operator",)),))
