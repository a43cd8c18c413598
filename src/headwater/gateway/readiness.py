"""Whether a paid call would be answered now: what was looked at, and what is wrong if not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

from headwater.core.errors import HeadwaterError
from headwater.core.limits import DISK_FREE_BYTES_MIN
from headwater.meter import BEHIND_MAX, MeterState

if TYPE_CHECKING:
    from headwater.gateway.native import Service
    from headwater.gateway.relay import Relay

FAILED_SHOWN_MAX: Final = 20

_NOT_THERE: Final = ("upstream_unreachable", "upstream_untrusted", "upstream_timeout")
"""What a health check found where a request would not be answered either."""


def readiness(service: Service) -> tuple[bool, dict[str, Any]]:
    """(ready, what was found). Ready means that a paid call would be admitted, answered and charged.

    A service that answers some of its models, or is behind with what follows an answer, is ready and degraded.
    """
    worker, answering = service.worker.state(), service.answering.state()
    relay = service.gateway.relay if service.gateway is not None else None
    reached, unreached = _relayed(relay)
    local = sorted(service.flow.parts.models)
    checks = {
        "model": "ok" if local or reached else "no model can be asked",
        "database": _database(service),
        "disk": _disk(service),
        "attribution": "ok" if worker.alive else "the worker is not running",
        "queue": "full: the journal holds the rest" if worker.overflowed else "ok",
    }
    behind: dict[str, Any] = {}
    meter = None if relay is None else relay.meter.state()
    if relay is not None and meter is not None:
        checks["books"] = _books(meter)
        behind = {
            "upstreams": upstreams_json(relay),
            "relayed": {"at_work": meter.held, "waiting": meter.waiting, "behind": meter.behind, "error": meter.error},
        }
    elsewhere = None if service.metrics.elsewhere is None else service.metrics.elsewhere()
    if elsewhere is not None:
        checks["workers"] = "ok" if elsewhere.alive else "no worker answers"
        behind["workers"] = list(elsewhere.workers)
    ready = all(found == "ok" for found in checks.values())
    ill = relay is not None and any(one.health not in ("ok", "not checked") for one in relay.upstreams.state())
    late = worker.failed or worker.retrying or answering.unsettled or (meter is not None and meter.error)
    short = elsewhere is not None and (elsewhere.alive < elsewhere.wanted or elsewhere.failing)
    degraded = bool(late or unreached or ill or short)
    return ready, {
        "status": "degraded" if ready and degraded else "ready" if ready else "unready",
        "checks": checks,
        "models": sorted({*local, *reached}),
        "models_out_of_reach": unreached,
        "generating": answering.generating,
        "waiting": answering.waiting,
        "unsettled": answering.unsettled,
        "attribution": {
            "queue": worker.waiting,
            "retrying": worker.retrying,
            "failed": len(worker.failed),
            "failures": [{"call": call, "code": code} for call, code in worker.failed[:FAILED_SHOWN_MAX]],
        },
        **behind,
    }


def upstreams_json(relay: Relay | None) -> list[dict[str, Any]]:
    """How every upstream is doing."""
    return [
        {
            "name": one.name,
            "connections": one.open,
            "failures": one.failures,
            "paused": one.paused,
            "health": one.health,
        }
        for one in (() if relay is None else relay.upstreams.state())
    ]


def _relayed(relay: Relay | None) -> tuple[list[str], list[str]]:
    """Models of other servers that can be asked now, and those whose every upstream is left alone or not there."""
    if relay is None:
        return [], []
    out = {one.name for one in relay.upstreams.state() if one.paused or one.health in _NOT_THERE}
    reached: list[str] = []
    unreached: list[str] = []
    for name in sorted(relay.models):
        alone = all(target.upstream in out for target in relay.upstreams.targets(name))
        (unreached if alone else reached).append(name)
    return reached, unreached


def _books(meter: MeterState) -> str:
    if meter.behind < BEHIND_MAX:
        return "ok"
    return f"{meter.behind} receipts wait to be booked: {meter.error or 'they are being written'}"


def _database(service: Service) -> str:
    try:
        with service.flow.parts.calls.db.transaction():
            return "ok"
    except HeadwaterError as error:
        return error.code


def _disk(service: Service) -> str:
    try:
        free = shutil.disk_usage(service.flow.parts.log.path.parent).free
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "ok" if free >= DISK_FREE_BYTES_MIN else f"{free} bytes are free, {DISK_FREE_BYTES_MIN} are needed"
