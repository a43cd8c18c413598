"""What `headwater serve` adds for disputes, enrolment and consent: their routes, over the home that is served."""

from __future__ import annotations

import time
from typing import Any

from headwater.cli.disputing import case_json, consent_json, disputes_of, enrolments_of, places_of, record_json
from headwater.cli.home import Home
from headwater.core.ids import ContributionId
from headwater.gateway.disputes import Matters
from headwater.store.consent_store import ConsentStore
from headwater.store.erasure import erase as erase_bytes


def matters_of(home: Home) -> Matters:
    """What the routes of disputes, enrolment and consent work on."""

    def erase(contribution: ContributionId, by: str, reason: str) -> dict[str, Any]:
        done = erase_bytes(places_of(home), contribution, by_whom=by, reason=reason, now_ns=time.time_ns())
        return {"contributions": list(done.contributions), "calls": done.calls_count, "waiting": done.waiting_count}

    return Matters(
        disputes_of(home),
        enrolments_of(home),
        ConsentStore(home.db),
        lambda case: case_json(case, home),
        record_json,
        lambda contribution: consent_json(home, contribution),
        erase,
        time.time_ns,
    )
