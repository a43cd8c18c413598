"""What an operator should look at now: each alert says what is wrong, how much of it, and where to go.

Everything is read afresh and cheaply; the full proof that the books add up is `headwater ledger check`.
"""

from __future__ import annotations

import shutil
from typing import Any, Final

from headwater.core.instants import SECOND_NS
from headwater.core.money import PPB
from headwater.dashboard.readings_keeper import Freshness
from headwater.dashboard.site import Site
from headwater.store.readings_registry import epoch_lines

LEAK_PPB: Final = PPB // 2
QUEUE_MAX: Final = 100
DISK_MIB: Final = 512
EPOCH_LATE_S: Final = 86_400
CREDIT_LEAST_UNITS: Final = 10_000_000


def queues(site: Site, fresh: Freshness) -> dict[str, Any]:
    """What waits: answers, measurements, receipts to be counted, epochs to be posted."""
    worker, answering = site.gateway.worker.state(), site.gateway.answering.state()
    waiting = [one.epoch for one in epoch_lines(site.db, limit=20) if not one.posted]
    return {
        "answering": answering.generating,
        "queued": answering.waiting,
        "measuring": worker.waiting,
        "retrying": worker.retrying,
        "failed": [{"call": call, "code": code} for call, code in worker.failed[:20]],
        "worker_alive": worker.alive,
        "measured": worker.done,
        "uncounted": fresh.missing,
        "receipts": fresh.counted + fresh.missing,
        "unposted": waiting,
    }


def alerts(site: Site, found: dict[str, Any], waits: dict[str, Any]) -> list[dict[str, Any]]:
    """The alerts of a moment, the gravest first: level, key of its words, and their values."""
    seen: list[dict[str, Any]] = []

    def say(level: str, key: str, **values: Any) -> None:
        seen.append({"level": level, "key": key, "values": values})

    if found["paid_units"] and found["leaked_ppb"] > LEAK_PPB:
        say("warn", "leak", percent=round(100 * found["leaked_ppb"] / PPB))
    if not waits["worker_alive"] and site.gateway.flow.parts.models:
        say("bad", "worker")
    if waits["measuring"] > QUEUE_MAX:
        say("warn", "queue", count=waits["measuring"])
    if waits["failed"]:
        say("bad", "failed", count=len(waits["failed"]))
    if waits["unposted"]:
        say("warn", "unposted", epochs=", ".join(map(str, waits["unposted"][:5])))
    last, now = next(iter(epoch_lines(site.db, limit=1)), None), site.now_ns()
    matured = site.settings.maturity_s + EPOCH_LATE_S
    if waits["receipts"] and (last is None or now - last.closed_at_ns > matured * SECOND_NS):
        size = last.log_size if last else 0
        if waits["receipts"] > size:
            say("warn", "unclosed", count=waits["receipts"] - size)
    free = shutil.disk_usage(site.folder).free // 2**20
    if free < DISK_MIB:
        say("bad", "disk", mib=free)
    low = [key for key in site.keys.list() if not key.revoked and 0 < _credit(site, key.account) < CREDIT_LEAST_UNITS]
    if low:
        say("info", "credit", count=len(low), first=low[0].label)
    return sorted(seen, key=lambda one: ("bad", "warn", "info").index(one["level"]))


def _credit(site: Site, account: str) -> int:
    return site.ledger.available(account, site.currency)
