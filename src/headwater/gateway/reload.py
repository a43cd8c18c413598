"""Takes over a changed upstreams file while calls run: models, prices and servers, all or nothing.

A call that has begun ends on the server and the prices it began with. A file that cannot be read changes nothing.
What a running gateway cannot change (policy, home, address, local models) needs a restart, and is said so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from headwater.core.errors import HeadwaterError, RefusedError
from headwater.gateway.relay import RelayedModel
from headwater.models.upstream import Upstreams
from headwater.store.audit_trail import AuditTrail

if TYPE_CHECKING:
    from headwater.gateway.app import Gateway

RETIRE_S: Final = 900.0
"""How long calls may go on at servers that are no longer named."""

Read = Callable[[], tuple[Mapping[str, RelayedModel], Upstreams]]

_log = logging.getLogger("headwater.gateway")


class Reloader:
    """Reloads one gateway's upstreams; `read` gives what the file says now."""

    def __init__(self, read: Read | None, trail: AuditTrail, now_ns: Callable[[], int]) -> None:
        self._read, self._trail, self._now_ns = read, trail, now_ns
        self._gateway: Gateway | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    def attach(self, gateway: Gateway) -> None:
        """Name the gateway to reload."""
        self._gateway = gateway

    def ask(self) -> None:
        """Reload soon, from a signal handler or another thread; what goes wrong is logged."""
        loop = self._gateway.loop if self._gateway is not None else None
        if loop is not None:
            loop.call_soon_threadsafe(lambda: self._keep(loop.create_task(self._logged())))

    async def reload(self, actor: str) -> dict[str, Any]:
        """Read the file and take it over; what changed, by model.

        Raises:
            RefusedError: ``reload_not_possible``: this gateway has no upstreams file.
            InvalidError: the file is wrong; nothing changed.
        """
        relay = self._gateway.relay if self._gateway is not None else None
        read = self._read
        if relay is None or read is None:
            raise RefusedError(
                "this gateway has no upstreams file", code="reload_not_possible", fix="start it with --upstreams FILE"
            )
        models, upstreams = await asyncio.to_thread(read)
        changes = _changes(relay.models, models)
        await asyncio.to_thread(self._trail.record, self._now_ns(), actor, "gateway.reload", "upstreams", changes)
        old = relay.take_over(models, upstreams)
        old.unwatch()
        upstreams.watch()
        self._keep(asyncio.get_running_loop().create_task(_retire(old)))
        return changes

    async def _logged(self) -> None:
        try:
            changes = await self.reload("signal")
        except HeadwaterError as error:
            _log.error("reload refused: %s [%s]", error.message, error.code)
        else:
            _log.info("reloaded: %s", changes or "nothing changed")

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


async def _retire(old: Upstreams) -> None:
    """Close servers that are no longer named once their calls have ended."""
    try:
        for _ in range(int(RETIRE_S)):
            if not any(line.open for line in old.state()):
                break
            await asyncio.sleep(1.0)
    finally:
        await old.aclose()


def _changes(before: Mapping[str, RelayedModel], after: Mapping[str, RelayedModel]) -> dict[str, Any]:
    changed = {
        name: {"from": _shown(before[name]), "to": _shown(after[name])}
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    }
    found = {"added": sorted(after.keys() - before.keys()), "removed": sorted(before.keys() - after.keys())}
    return {what: which for what, which in {**found, "changed": changed}.items() if which}


def _shown(model: RelayedModel) -> dict[str, Any]:
    return {
        **model.prices.as_json(),
        "own_key": None if model.own_key is None else model.own_key.prices.as_json(),
        "answer_tokens_max": model.answer_tokens_max,
        "served_as": model.digest,
    }
