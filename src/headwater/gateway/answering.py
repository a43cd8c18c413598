"""Runs answers on threads: a bounded number at once, a bounded number waiting, each settled however it ends.

Generation blocks, so it has threads of its own; the journal blocks for a disk write, so it has others,
and neither blocks the event loop. Whatever happens to a call after its ceiling was reserved — the
caller leaves before it starts, in the middle or at the end, the model fails, the task is cancelled, the
server stops — the thread that owns it charges or releases it. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from headwater.attribution.evidence import Answer, read_layout
from headwater.attribution.layout import Layout
from headwater.core.errors import HeadwaterError, MissingError, RefusedError, UpstreamError
from headwater.core.ids import CallId, ContributionId
from headwater.flow import CallRequest, Flow, OpenCall, OutsideCall
from headwater.gateway.channel import Channel
from headwater.gateway.errors import place_of
from headwater.gateway.frames import Bill, Source
from headwater.gateway.keeping import Claims, OwnClaims, claimed
from headwater.meter import RECALL_PAUSES_S
from headwater.models.backend import Piece
from headwater.store.call_store import CallRecord
from headwater.store.key_store import KeyRecord

Result = TypeVar("Result")

PIECES_WAITING_MAX: Final = 8
_DESK_THREADS: Final = 4

_log = logging.getLogger("headwater.gateway")


@dataclass(frozen=True, slots=True)
class Delivered:
    """A piece on its way to the caller; the last one comes with the bill, after the charge is durable."""

    piece: Piece
    bill: Bill | None


@dataclass(frozen=True, slots=True)
class AnsweringState:
    """What is going on; for /readyz and /metrics."""

    generating: int
    waiting: int
    unsettled: int  # calls whose charge or release failed; tried again with the next call, and after a restart


class Answering:
    """Admits and runs calls.

    Args:
        flow: the path of a call.
        parallel: answers generated at once.
        waiting_max: admitted calls that may wait for a place; beyond it callers are told to come back.
        stall_s: how long a caller may leave a stream unread.
        answered: told of every call that was charged.
        make_room: asked when a payer's credit does not suffice: whether some of it, set aside and not used, is freed.
        claims: idempotency keys at work, the same ones as those of calls that are passed on; without them, its own.
    """

    def __init__(
        self,
        flow: Flow,
        *,
        parallel: int,
        waiting_max: int,
        stall_s: float,
        answered: Callable[[CallId], None],
        make_room: Callable[[KeyRecord, RefusedError], bool] = lambda *_: False,
        claims: Claims | None = None,
    ) -> None:
        self.flow, self._make_room = flow, make_room
        self._claims = OwnClaims() if claims is None else claims
        self._places = parallel + waiting_max
        self._stall_s = stall_s
        self.answered = answered
        self._desk = ThreadPoolExecutor(_DESK_THREADS, thread_name_prefix="desk")
        self._model = ThreadPoolExecutor(parallel, thread_name_prefix="generate")
        self._count = threading.Lock()
        self._inside = 0
        self._generating = 0
        self._unsettled: set[CallId] = set()
        self._closing = False
        flow.in_doubt = self._doubt

    # On the event loop

    def enter(self) -> None:
        """Take a place; `leave` gives it back, and `start` takes it over.

        Raises:
            RefusedError: ``rate_limit_exceeded`` when every place is taken.
            UpstreamError: ``shutting_down``.
        """
        if self._closing:
            raise _shutting_down()
        with self._count:
            if self._inside >= self._places:
                raise RefusedError(
                    f"{self._places} calls are at work or waiting",
                    code="rate_limit_exceeded",
                    fix="try again in a moment",
                )
            self._inside += 1

    def leave(self) -> None:
        """Give a place back."""
        with self._count:
            self._inside -= 1

    async def at_desk(self, work: Callable[[], Result]) -> Result:
        """Run something short that may wait for the disk."""
        return await asyncio.get_running_loop().run_in_executor(self._desk, work)

    async def open(
        self, request: CallRequest, key: KeyRecord, *, outside: bool = False
    ) -> OpenCall | OutsideCall | CallRecord:
        """Admit a call. If the task is cancelled meanwhile, a call that was opened is released again.

        Args:
            outside: another server is to answer it: whoever asks it calls `settle` in the end.
        """
        if self._unsettled:
            self._desk.submit(self._settle)
        pauses = iter(RECALL_PAUSES_S)
        while True:
            job: Future[OpenCall | OutsideCall | CallRecord] = self._desk.submit(
                self._claimed, self.flow.open_outside if outside else self.flow.open, request, key
            )
            try:
                return await asyncio.wrap_future(job)
            except asyncio.CancelledError:
                job.add_done_callback(self._release_orphan)
                raise
            except RefusedError as error:
                pause_s = next(pauses, None)
                if pause_s is None or not await self.at_desk(partial(self._make_room, key, error)):
                    raise
                await asyncio.sleep(pause_s)

    async def embed(self, request: CallRequest, key: KeyRecord) -> tuple[CallRecord, Answer, bool]:
        """Answer texts with vectors, or find what they were answered; see `Flow.embed`."""
        return await self.at_desk(partial(self._claimed, self.flow.embed, request, key))

    async def settle(self, call: CallId) -> None:
        """Release what a call still has reserved, or hand it on to attribution; also when nobody waits any more."""
        try:
            job = self._desk.submit(self.settle_now, call)
        except RuntimeError:  # the desk is closed: this is the end of the process's life
            self.settle_now(call)
            return
        await asyncio.shield(asyncio.wrap_future(job))

    def start(self, call: OpenCall) -> Channel[Delivered]:
        """Generate the answer on a thread of its own, which gives the caller's place back when the call is settled."""
        channel: Channel[Delivered] = Channel(
            asyncio.get_running_loop(), capacity=PIECES_WAITING_MAX, stall_s=self._stall_s
        )
        # Not awaited as a future: cancelling that would drop a job that has not begun, and its reservation with it.
        self._model.submit(self._run, call, channel)
        return channel

    def close(self) -> None:
        """Refuse new calls, and wait until those at work are settled. Blocks."""
        self._closing = True
        self._desk.shutdown(wait=True)
        self._model.shutdown(wait=True)

    # On any thread

    def _claimed(
        self, work: Callable[[CallRequest, KeyRecord], Result], request: CallRequest, key: KeyRecord
    ) -> Result:
        """Put a call into the journal while its idempotency key is nobody else's; from then on the journal has it."""
        with claimed(self._claims, key.key_id, request.idempotency_key, request.body_digest):
            return work(request, key)

    def busy(self) -> bool:
        """Whether an answer is being generated."""
        return self._generating > 0

    def state(self) -> AnsweringState:
        """What is going on."""
        with self._count:
            return AnsweringState(self._generating, self._inside - self._generating, len(self._unsettled))

    def bill(self, record: CallRecord, layout: Layout | None = None) -> Bill:
        """What an answered call cost, and which registered contributions were put before the model.

        Args:
            layout: the call's, where it is at hand; otherwise it is read from the journal's evidence.
        """
        registry = self.flow.parts.registry
        if layout is None and record.evidence is not None:
            layout = read_layout(record.evidence)
        names = [part.contribution for part in layout.players if part.contribution is not None] if layout else []
        found = [registry.get(ContributionId(name)) for name in dict.fromkeys(names)]
        return Bill(
            call_id=record.call_id,
            price_units=record.price_units or 0,
            currency=record.asset,
            status="final" if record.receipt_id else "pending",
            sources=tuple(Source(c.id, c.kind, c.title) for c in found),
        )

    # On a generating thread

    def _run(self, call: OpenCall, channel: Channel[Delivered]) -> None:
        with self._count:
            self._generating += 1
        error: BaseException | None = None
        try:
            if not channel.closed:
                self._generate(call, channel)
        except BaseException as raised:
            error = raised
            if not isinstance(raised, HeadwaterError):
                _log.error("%s failed with %s\n%s", call.record.call_id, type(raised).__name__, place_of(raised))
        try:
            self.settle_now(call.record.call_id)
        finally:
            with self._count:
                self._generating -= 1
                self._inside -= 1
            channel.end(error)

    def _generate(self, call: OpenCall, channel: Channel[Delivered]) -> None:
        with closing(self.flow.answer(call)) as pieces:
            for piece in pieces:
                last = piece.last
                if self._closing and channel.detached and not last:
                    pieces.throw(_shutting_down())  # not charged, so that the retry it is made for begins anew
                bill = self.bill(self.flow.parts.calls.get(call.record.call_id), call.layout) if last else None
                if not channel.put(Delivered(piece, bill)):
                    return  # closing the iterator stops the model and charges what it gave

    def settle_now(self, call: CallId) -> None:
        """Whatever is still reserved is released, and what was charged goes to attribution."""
        self._settle(call)

    def _settle(self, *ended: CallId) -> None:
        """Settle these calls, and those that ended before and could not be settled then."""
        with self._count:
            calls = {*ended, *self._unsettled}
            self._unsettled.clear()
        for each in calls:
            try:
                record = self.flow.parts.calls.get(each)
                if record.state == "reserved":
                    self.flow.release(each)
            except Exception as error:
                if isinstance(error, MissingError) and error.code == "call_unknown":
                    continue  # it was in doubt, and never reserved
                _log.error("%s could not be settled: %s", each, getattr(error, "code", type(error).__name__))
                with self._count:
                    self._unsettled.add(each)
                continue
            if record.state == "answered":
                self.answered(each)

    def _doubt(self, call: CallId) -> None:
        with self._count:
            self._unsettled.add(call)

    def _release_orphan(self, job: Future[OpenCall | OutsideCall | CallRecord]) -> None:
        if job.cancelled() or job.exception() is not None:
            return
        if isinstance(opened := job.result(), OpenCall | OutsideCall):
            self.settle_now(opened.record.call_id)


def _shutting_down() -> UpstreamError:
    return UpstreamError("the server is shutting down", code="shutting_down", fix="try again in a moment")
