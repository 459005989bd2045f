"""How snapshots and restores go on in a service that is busy: few frames at once, with pauses between them.

A thread that reads or writes thousands of small files gives the interpreter away at each system call and wants it back
right after; each time, the event loop may have to wait for it. That cannot be made cheaper, but rarer.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_BUSY = 0.5
"""Share of its time that an event loop works in, above which it is busy. Our own work takes a tenth at most."""
_LOOK_SECONDS = 0.02
_LONGEST_WORK = 1.0
"""Seconds; a frame takes a tenth of that. One that takes longer waits for a disk, and for that nobody else has to."""


class Pace:
    """The pace of all snapshots and restores of one `Limits`, which belongs to one event loop."""

    def __init__(self, threads: int, *, pauses: bool) -> None:
        self._threads = threads
        self._pauses = pauses
        self._slots = asyncio.Semaphore(threads)
        self._looked_at = self._worked = 0.0
        self._busy = False

    @asynccontextmanager
    async def work(self) -> AsyncIterator[None]:
        """The work of one frame, in a thread.

        While the event loop is busy, as many frames are worked on as there are compressing threads, and after each of
        them that many times less of its time is rested: with a single thread, as long as it took.
        """
        if not self._is_busy():
            yield
            return
        await self._slots.acquire()
        loop, began = asyncio.get_running_loop(), time.monotonic()
        held = True

        def give() -> None:
            nonlocal held
            if held:
                held = False
                self._slots.release()

        no_longer = loop.call_later(_LONGEST_WORK, give)
        try:
            yield
        finally:
            no_longer.cancel()
            loop.call_later((time.monotonic() - began) / self._threads, give)

    def _is_busy(self) -> bool:
        if not self._pauses:
            return False
        now, worked = time.monotonic(), time.thread_time()
        seconds = now - self._looked_at
        if seconds >= _LOOK_SECONDS:
            self._busy = worked - self._worked > _BUSY * seconds
            self._looked_at, self._worked = now, worked
        return self._busy
