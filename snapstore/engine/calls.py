"""The calls that are under way on a store: what closing it has to wait for, or to end.

Each call runs in a task of its own. So closing can end it without touching the caller's task, and the caller learns of
it by StoreClosed; and a caller that is cancelled has its call cancelled, and waits until that has tidied up. What a
call calls in its turn is part of it, and goes on while the store is being closed.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from contextvars import Context, copy_context
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from snapstore.aio import Tidying, cancellations, drop, tidying, uninterrupted
from snapstore.errors import InvalidInput, StoreClosed

T = TypeVar("T")
P = ParamSpec("P")

log = logging.getLogger("snapstore")

_OTHER_LOOP = (
    "the store is open on another event loop: open one for this loop too, or hand the call to the other"
    " (asyncio.run_coroutine_threadsafe)"
)
_CUT_OFF = (
    "the store was closed before this call had ended: a create or a restore is taken back (the log tells what could not"
    " be), any other change may have been made or not"
)


class Calls:
    """Of a store that is open on the event loop that this is made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running: set[asyncio.Task[Any]] = set()
        self._callers = _Count()
        self._iterations = _Count()
        """Those that were begun, whether their next item is asked for now or not."""
        self._generators: set[AsyncGenerator[Any, None]] = set()
        """Theirs."""
        self._closed = self._over = False
        self._grace: asyncio.Timeout | None = None
        self._at_most = math.inf
        """Until when calls may go on once it is closed, however long the grace."""

    async def run(
        self, work: Coroutine[Any, Any, T], *, undo: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> T:
        """Await ``work``. StoreClosed where the store is closed, or is being closed meanwhile.

        ``undo`` takes back work that was done in the very instant in which its caller was cancelled.
        """
        if asyncio.current_task() in self._running:
            return await work
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
        if context is None:  # an empty one counts as false
            context = copy_context()
        context.run(tidying.set, Tidying())
        task = asyncio.create_task(work, context=context)
        self._running.add(task)
        self._callers.add(1)
        cancelled_before = cancellations()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._closed and cancellations() == cancelled_before:
                raise StoreClosed(_CUT_OFF) from None
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
        context = copy_context()  # of all items: what the generator sets while it makes one holds for the next
        async with aclosing(items):
            work = _next(items, end)
            self._check(work, self._closed)
            self._iterations.add(1)
            try:
                while (item := await self._run(work, context=context)) is not end:
                    self._generators.add(items)
                    yield item  # type: ignore[misc]
                    work = _next(items, end)
                    self._check(work, self._over)
            finally:
                self._iterations.add(-1)
                self._generators.discard(items)

    async def close(self, grace: float) -> None:
        """Refuse new calls, let those under way end within ``grace`` seconds, then cancel them; wait for all."""
        self.check_loop()
        self._closed = True
        if grace > 0:
            try:
                async with asyncio.timeout_at(min(self._loop.time() + grace, self._at_most)) as self._grace:
                    while self._iterations.count or self._callers.count:
                        await self._iterations.none.wait()
                        await self._callers.none.wait()
            except TimeoutError:
                pass
            finally:
                self._grace = None
        self._over = True
        await drop(self._running)
        await self._callers.none.wait()  # until each caller has taken back what it has to
        for items in tuple(self._generators):  # whoever asks for the next one is told; what they hold is free
            try:
                await items.aclose()
            except RuntimeError:
                pass  # its consumer is closing it
            except Exception:
                log.warning("what was being read could not be closed", exc_info=True)

    def check_loop(self) -> None:
        """InvalidInput on another loop, unless this one has ended."""
        if asyncio.get_running_loop() is not self._loop and not self._loop.is_closed():
            raise InvalidInput(_OTHER_LOOP)

    def hasten(self, grace: float) -> None:
        """Where `close` lets calls end for longer than that, it does not any more."""
        self._at_most = min(self._at_most, self._loop.time() + grace)
        if self._grace is not None and not self._grace.expired():
            self._grace.reschedule(min(self._grace.when() or 0.0, self._at_most))


class _HasCalls(Protocol):
    @property
    def _calls(self) -> Calls: ...


S = TypeVar("S", bound=_HasCalls)


def one_call(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """A method of a store all of whose steps are one call."""

    @wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._calls.run(method(self, *args, **kwargs))

    return call


class _Count:
    """How many there are, and an event for when there is none."""

    def __init__(self) -> None:
        self.count = 0
        self.none = asyncio.Event()
        self.none.set()

    def add(self, change: int) -> None:
        self.count += change
        (self.none.clear if self.count else self.none.set)()


async def _next(items: AsyncGenerator[T, None], end: object) -> T | object:
    return await anext(items, end)
