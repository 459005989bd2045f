"""A sync that runs beside those who read the index leaves them time; snapshots leave it to a busy service."""

import asyncio
from typing import Any

import pytest

from snapstore.engine import pace as pace_module
from snapstore.engine.pace import Pace
from snapstore.index import pauses
from snapstore.index.pauses import Pauses


class Clock:
    """Seconds that pass only when a test says so, or when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept = 0
        monkeypatch.setattr(pauses.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(pauses.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.now += seconds


async def work(pauses: Pauses, clock: Clock, steps: int) -> None:
    for _ in range(steps):
        await pauses.take()
        clock.now += 0.0005


async def test_it_pauses_while_the_index_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    await work(Pauses(lambda: clock.now), clock, 100)
    assert 16 <= clock.slept <= 26
    assert clock.now - 1000 < 100 * 0.0005 * 3.2, "nor is it starved"


async def test_it_does_not_pause_while_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    await work(Pauses(lambda: 0.0), clock, 100)
    assert clock.slept == 0


async def test_tasks_pause_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    kept = Pauses(lambda: clock.now)
    await asyncio.gather(*(work(kept, clock, 10) for _ in range(10)))
    assert 16 <= clock.slept <= 26


class Loop:
    """An event loop's own time, as a test says it passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, share: float) -> None:
        """``share`` of the time that passes, the loop works in."""
        self.now = 1000.0
        monkeypatch.setattr(pace_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(pace_module.time, "thread_time", lambda: self.now * share)


async def at_once(pace: Pace) -> int:
    """How many of 20 frames are worked on together."""
    under_way = most = 0

    async def one() -> None:
        nonlocal under_way, most
        async with pace.work():
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1

    await asyncio.gather(*(one() for _ in range(20)))
    return most


@pytest.mark.parametrize("threads", [1, 3])
async def test_frames_are_few_at_once_while_the_loop_is_busy(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    loop = Loop(monkeypatch, share=0.9)
    pace = Pace(threads, pauses=True)
    loop.now += 1
    assert await at_once(pace) == threads


@pytest.mark.parametrize(("share", "pauses"), [(0.1, True), (0.9, False)])
async def test_frames_wait_for_nothing_else(monkeypatch: pytest.MonkeyPatch, share: float, pauses: bool) -> None:
    loop = Loop(monkeypatch, share=share)
    pace = Pace(1, pauses=pauses)
    loop.now += 1
    assert await at_once(pace) == 20


@pytest.mark.parametrize(("threads", "rests"), [(1, 0.04), (4, 0.01)])
async def test_a_rest_is_as_long_as_the_work_for_one_thread(
    monkeypatch: pytest.MonkeyPatch, threads: int, rests: float
) -> None:
    loop = Loop(monkeypatch, share=0.9)
    pace = Pace(threads, pauses=True)
    loop.now += 1
    rested = []
    later = asyncio.get_running_loop().call_later

    def call_later(seconds: float, *call: Any) -> Any:
        if seconds == pace_module._LONGEST_WORK:
            return later(seconds, *call)
        rested.append(seconds)
        return later(0, *call)

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
    for _ in range(threads + 2):
        async with pace.work():
            loop.now += 0.04
    assert rested == pytest.approx([rests] * (threads + 2))


async def test_a_frame_that_is_given_up_keeps_its_place_from_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, share=0.9)
    pace = Pace(1, pauses=True)
    loop.now += 1

    async def work() -> None:
        async with pace.work():
            await asyncio.sleep(60)

    working, waiting = asyncio.create_task(work()), asyncio.create_task(work())
    await asyncio.sleep(0)
    for task in (waiting, working):
        task.cancel()
    await asyncio.wait([working, waiting])
    async with asyncio.timeout(5), pace.work():
        pass


async def test_who_waits_for_a_disk_has_nobody_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, share=0.9)
    pace = Pace(1, pauses=True)
    loop.now += 1
    done = asyncio.Event()

    async def wait_for_a_disk() -> None:
        async with pace.work():
            await done.wait()

    waiting = asyncio.create_task(wait_for_a_disk())
    await asyncio.sleep(0)
    loop.now += pace_module._LONGEST_WORK
    async with asyncio.timeout(5), pace.work():
        done.set()
        await waiting
    for _ in range(3):  # its place was given back once
        loop.now += 1
        await asyncio.sleep(0)
    assert pace._slots._value == 1
