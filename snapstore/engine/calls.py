"""The calls that are under way on a store: what closing it has to wait for, or to end.

Each call runs in a task of its own. So closing can end it without touching the caller's task, and the caller learns of
it by StoreClosed; and a caller that is cancelled has its call cancelled, and waits until that has tidied up.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from contextvars import Context, copy_context
from typing import Any, TypeVar

from snapstore.aio import drop, uninterrupted
from snapstore.errors import InvalidInput, StoreClosed

T = TypeVar("T")

_OTHER_LOOP = (
    "the store is open on another event loop: open one for this loop too, or hand the call to the other"
    " (asyncio.run_coroutine_threadsafe)"
)


class Calls:
    """Of a store that is open on the event loop that this is made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running: set[asyncio.Task[Any]] = set()
        self._callers = _Count()
        self._iterations = _Count()
        """Those that have given an item, whether their next one is asked for now or not."""
        self._generators: set[AsyncGenerator[Any, None]] = set()
        """Theirs."""
        self._closed = self._over = False

    async def run(
        self, work: Coroutine[Any, Any, T], *, undo: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> T:
        """Await ``work``. StoreClosed where the store is closed, or is being closed meanwhile.

        ``undo`` takes back work that was done in the very instant in which its caller was cancelled.
        """
        self._check(work, self._closed)
        return await self._run(work, undo)

    def _check(self, work: Coroutine[Any, Any, T], closed: bool) -> None:
        elsewhere = asyncio.get_running_loop() is not self._loop  # where nothing of ours would wake it
        if closed or elsewhere:
            work.close()
            raise InvalidInput(_OTHER_LOOP) if elsewhere else StoreClosed("the store is closed")

    async def _run(
        self,
        work: Coroutine[Any, Any, T],
        undo: Callable[[], Coroutine[Any, Any, None]] | None = None,
        context: Context | None = None,
    ) -> T:
        task = asyncio.create_task(work, context=context)
        self._running.add(task)
        self._callers.add(1)
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
            self._callers.add(-1)

    async def each(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The items, each awaited as `run` does. All of them are one call, which a closing lets come to its end."""
        end = object()
        begun = 0
        context = copy_context()  # of all items: what the generator sets while it makes one holds for the next
        async with aclosing(items):
            try:
                while True:
                    work = _next(items, end)
                    self._check(work, self._over if begun else self._closed)
                    if (item := await self._run(work, context=context)) is end:
                        return
                    if not begun:
                        begun = 1
                        self._iterations.add(1)
                        self._generators.add(items)
                    yield item  # type: ignore[misc]
            finally:
                self._iterations.add(-begun)
                self._generators.discard(items)

    async def close(self, grace: float) -> None:
        """Refuse new calls, let those under way end within ``grace`` seconds, then cancel them; wait for all."""
        if asyncio.get_running_loop() is not self._loop and not self._loop.is_closed():
            raise InvalidInput(_OTHER_LOOP)
        self._closed = True
        if grace > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._iterations.none.wait()
                    await self._callers.none.wait()
        self._over = True
        await drop(self._running)
        await self._callers.none.wait()  # until each caller has taken back what it has to
        for items in tuple(self._generators):  # whoever asks for the next one is told; what they hold is free
            with suppress(RuntimeError):  # its consumer is closing it
                await items.aclose()


class _Count:
    """How many there are, and an event for when there is none."""

    def __init__(self) -> None:
        self._count = 0
        self.none = asyncio.Event()
        self.none.set()

    def add(self, change: int) -> None:
        self._count += change
        (self.none.clear if self._count else self.none.set)()


async def _next(items: AsyncGenerator[T, None], end: object) -> T | object:
    return await anext(items, end)
