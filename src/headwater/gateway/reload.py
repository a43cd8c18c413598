"""Takes over a changed upstreams file and changed documents while calls run, all or nothing.

A call that has begun ends on the server and the prices it began with, and on the indexes. A file that cannot be read,
or an index that cannot be made, changes nothing; one reload waits for another. What a running gateway cannot change
(policy, home, address, models in process) needs a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headwater.core.errors import HeadwaterError, MissingError, RefusedError
from headwater.gateway.relay import Relay, RelayedModel
from headwater.gateway.upstreams_file import read_upstreams
from headwater.models.upstream import Upstreams
from headwater.store.audit_trail import AuditTrail

if TYPE_CHECKING:
    from headwater.gateway.app import Gateway
    from headwater.gateway.reindex import Indexes, Renewed  # heavy: workers, which look in none, pay nothing for it

RETIRE_S: Final = 900.0
"""How long calls may go on at servers that are no longer named."""

Read = Callable[[], tuple[Mapping[str, RelayedModel], Upstreams]]

_log = logging.getLogger("headwater.gateway")


class UpstreamsFile:
    """The operator's file, and its text as it was when it was last read without an error."""

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self.path, self._environment = path, environment
        self.text = ""

    def read(self) -> tuple[Mapping[str, RelayedModel], Upstreams]:
        """What it says now.

        Raises:
            MissingError: ``upstreams_missing``.
            InvalidError: ``upstreams_invalid``.
        """
        try:
            text = self.path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MissingError(
                f"the upstreams file {self.path} cannot be read: {error}",
                code="upstreams_missing",
                fix="put it back, in UTF-8; what it said before is served meanwhile",
            ) from None
        found = read_upstreams(text, environment=self._environment, folder=self.path.parent)
        self.text = text
        return found


class Retiring:
    """Upstreams that were replaced and still have calls at work. Belongs to one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def swap(self, relay: Relay, models: Mapping[str, RelayedModel], upstreams: Upstreams) -> None:
        """Have `relay` serve other models; those it served are closed once their calls have ended."""
        old = relay.take_over(models, upstreams)
        old.unwatch()
        upstreams.watch()
        self.keep(asyncio.get_running_loop().create_task(_retire(old)))

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Hold a task until it is done: the event loop alone does not."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Reloader:
    """Reloads one gateway's upstreams and indexes; `read` gives what the file says now."""

    def __init__(self, read: Read | None, trail: AuditTrail, now_ns: Callable[[], int]) -> None:
        self._read, self._trail, self._now_ns = read, trail, now_ns
        self._gateway: Gateway | None = None
        self._retiring = Retiring()
        self._one = asyncio.Lock()
        self.indexes: Indexes | None = None  # made from the registry; of a gateway that looks in any
        self.spread: Callable[[], None] | None = None  # has other processes take over the same; blocks

    def attach(self, gateway: Gateway) -> None:
        """Name the gateway to reload."""
        self._gateway = gateway

    def ask(self) -> None:
        """Reload soon, from a signal handler or another thread; what goes wrong is logged."""
        loop = self._gateway.loop if self._gateway is not None else None
        if loop is not None:
            loop.call_soon_threadsafe(lambda: self._retiring.keep(loop.create_task(self._logged())))

    async def reload(self, actor: str) -> dict[str, Any]:
        """Take over what the file and the registry say now; what changed.

        It goes on to its end when whoever asked has left.

        Raises:
            RefusedError: ``reload_not_possible``: this gateway has neither an upstreams file nor indexes.
            InvalidError: the file is wrong; nothing changed.
            UpstreamError: ``reindex_failed``, or what the disk says: an index could not be made; nothing changed.
        """
        task = asyncio.get_running_loop().create_task(self._reload(actor))
        self._retiring.keep(task)
        return await asyncio.shield(task)

    async def _reload(self, actor: str) -> dict[str, Any]:
        gateway, read, indexes = self._gateway, self._read, self.indexes
        relay = gateway.relay if gateway is not None else None
        rereads = relay is not None and read is not None
        if gateway is None or not (rereads or indexes is not None):
            raise RefusedError(
                "this gateway has neither an upstreams file nor documents to look in",
                code="reload_not_possible",
                fix="start it with --upstreams FILE or a model in process",
            )
        async with self._one:
            changes: dict[str, Any] = {}
            named: tuple[Mapping[str, RelayedModel], Upstreams] | None = None
            if relay is not None and read is not None:
                named = await asyncio.to_thread(read)
                changes |= _changes(relay.models, named[0])
            renewed: Renewed | None = None
            if indexes is not None:
                renewed = await asyncio.to_thread(indexes.renew)
                changes |= renewed.changes if renewed is not None else {}
            await asyncio.to_thread(self._trail.record, self._now_ns(), actor, "gateway.reload", "upstreams", changes)
            if relay is not None and named is not None:
                self._retiring.swap(relay, *named)
            if renewed is not None:
                gateway.flow.take_over(renewed.passages, renewed.spans)
                await asyncio.to_thread(renewed.in_force)
            if named is not None and self.spread is not None:
                await asyncio.to_thread(self.spread)
            return changes

    async def _logged(self) -> None:
        try:
            changes = await self.reload("signal")
        except HeadwaterError as error:
            _log.error("reload refused: %s [%s]", error.message, error.code)
        else:
            _log.info("reloaded: %s", changes or "nothing changed")


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
    changed = [  # a list, not a table by name: keys of canonical JSON are ASCII, names of models need not be
        {"model": name, "from": _shown(before[name]), "to": _shown(after[name])}
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    ]
    found = {"added": sorted(after.keys() - before.keys()), "removed": sorted(before.keys() - after.keys())}
    return {what: which for what, which in {**found, "changed": changed}.items() if which}


def _shown(model: RelayedModel) -> dict[str, Any]:
    return {
        **model.prices.as_json(),
        "own_key": None if model.own_key is None else model.own_key.prices.as_json(),
        "answer_tokens_max": model.answer_tokens_max,
        "served_as": model.digest,
    }
