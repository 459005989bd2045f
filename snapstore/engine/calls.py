"""The calls that are under way on a store: what closing it has to wait for, or to end.

Each call runs in a task of its own. So closing can end it without touching the caller's task, and the caller learns of
it by StoreClosed; and a caller that is cancelled has its call cancelled, and waits until that has tidied up.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from snapstore.aio import drop, uninterrupted
from snapstore.errors import StoreClosed

T = TypeVar("T")


class Calls:
    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def run(
        self, work: Coroutine[Any, Any, T], *, undo: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> T:
        """Await ``work``. StoreClosed where the store is closed, or is being closed meanwhile.

        ``undo`` takes back work that was done in the very instant in which its caller was cancelled.
        """
        if self._closed:
            work.close()
            raise StoreClosed("the store is closed")
        task = asyncio.create_task(work)
        self._running.add(task)
        self._waiting += 1
        self._idle.clear()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and self._closed and not (caller and caller.cancelling()):
                raise StoreClosed("the store was closed while this call was under way; it was taken back") from None
            await drop([task])
            if undo is not None and not task.cancelled() and task.exception() is None:
                await uninterrupted(undo())
            raise
        finally:
            self._running.discard(task)
            self._waiting -= 1
            if self._waiting == 0:
                self._idle.set()

    async def each(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The items, each awaited as `run` does."""
        end = object()
        async with aclosing(items):
            while (item := await self.run(_next(items, end))) is not end:
                yield item  # type: ignore[misc]

    async def close(self, grace: float) -> None:
        """Refuse new calls, let those under way end within ``grace`` seconds, then cancel them; wait for all."""
        self._closed = True
        if self._running and grace > 0:
            await asyncio.wait(self._running, timeout=grace)
        await drop(self._running)
        await self._idle.wait()  # until each caller has taken back what it has to


async def _next(items: AsyncGenerator[T, None], end: object) -> T | object:
    return await anext(items, end)
