"""A sync that runs beside those who read the index leaves them time."""

import asyncio

import pytest

from snapstore.index import pace
from snapstore.index.pace import Pace


class Clock:
    """Seconds that pass only when a test says so, or when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept = 0
        monkeypatch.setattr(pace.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(pace.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.now += seconds


async def work(pace: Pace, clock: Clock, steps: int) -> None:
    for _ in range(steps):
        await pace.step()
        clock.now += 0.0005


async def test_it_pauses_while_the_index_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    await work(Pace(lambda: clock.now), clock, 100)
    assert 16 <= clock.slept <= 26
    assert clock.now - 1000 < 100 * 0.0005 * 3.2, "nor is it starved"


async def test_it_does_not_pause_while_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    await work(Pace(lambda: 0.0), clock, 100)
    assert clock.slept == 0


async def test_tasks_pause_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    kept = Pace(lambda: clock.now)
    await asyncio.gather(*(work(kept, clock, 10) for _ in range(10)))
    assert 16 <= clock.slept <= 26
