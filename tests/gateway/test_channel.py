"""The way of pieces from a thread to the event loop: bounded, in order, with an end for both sides."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from headwater.gateway.channel import Channel, ReaderGone


def test_items_arrive_in_order_and_then_the_end() -> None:
    """Everything that was put is taken, then an empty batch."""

    async def read() -> list[int]:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=3, stall_s=5)
        threading.Thread(target=lambda: ([channel.put(n) for n in range(100)], channel.end())).start()
        taken: list[int] = []
        while batch := await channel.take():
            taken += batch
        return taken

    assert asyncio.run(read()) == list(range(100))


def test_a_writer_waits_for_a_slow_reader() -> None:
    """No more than the capacity is ever waiting."""
    put: list[int] = []

    async def read() -> None:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=3, stall_s=5)
        threading.Thread(target=lambda: ([put.append(n) or channel.put(n) for n in range(9)], channel.end())).start()
        await asyncio.sleep(0.1)
        assert len(put) == 4  # three fit, the fourth waits
        while await channel.take():
            pass

    asyncio.run(read())


def test_an_error_comes_after_the_items_before_it() -> None:
    """What was delivered before a failure is not lost."""

    async def read() -> list[int]:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=3, stall_s=5)
        channel.put(1)
        channel.end(ValueError("broke"))
        first = await channel.take()
        with pytest.raises(ValueError, match="broke"):
            await channel.take()
        return first

    assert asyncio.run(read()) == [1]


def test_a_closed_channel_tells_both_sides() -> None:
    """A writer that waits for room is woken with false, a reader with `ReaderGone`."""
    outcome: list[bool] = []

    async def leave() -> float:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=1, stall_s=30)
        channel.put(0)
        writer = threading.Thread(target=lambda: outcome.append(channel.put(1)))
        writer.start()
        await asyncio.sleep(0.05)
        began = time.monotonic()
        channel.close()
        with pytest.raises(ReaderGone):
            await channel.take()
        await asyncio.to_thread(writer.join)
        return time.monotonic() - began

    assert asyncio.run(leave()) < 1
    assert outcome == [False]


def test_a_reader_that_takes_nothing_counts_as_gone() -> None:
    """After the stall the writer gives up, and the reader finds the channel closed."""

    async def stall() -> bool:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=1, stall_s=0.05)
        channel.put(0)
        return await asyncio.to_thread(channel.put, 1)

    assert asyncio.run(stall()) is False


def test_a_detached_reader_does_not_stop_the_writer() -> None:
    """What is put is dropped, without waiting."""

    async def detach() -> list[bool]:
        channel: Channel[int] = Channel(asyncio.get_running_loop(), capacity=1, stall_s=30)
        channel.detach()
        return await asyncio.to_thread(lambda: [channel.put(n) for n in range(50)])

    assert asyncio.run(detach()) == [True] * 50
