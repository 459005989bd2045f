"""Threads and cancellation, as snapstore needs them: whoever waits for a thread's work also waits for its end.

`asyncio.to_thread` returns at once when its caller is cancelled and leaves the thread running, with whatever files and
buffers it holds. Here a cancelled caller learns of it only when the thread has let go of everything.
"""

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_NICENESS = 10
"""Halves the delay that packing causes in the embedding service's event loop, and costs no time on a quiet machine."""


TIDY_SECONDS = 30.0
"""Whoever cancels is not made to wait longer for a store that does not answer."""
_LEAST_TIDY_SECONDS = 1.0


class Tidying:
    """How long one call may take to end and to take back what it did, in all its steps together."""

    def __init__(self) -> None:
        self._until: float | None = None

    def seconds(self) -> float:
        """What is left of `TIDY_SECONDS` since this was asked for first; a little for each step at least."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + TIDY_SECONDS
        return max(min(_LEAST_TIDY_SECONDS, TIDY_SECONDS), self._until - now)


tidying: contextvars.ContextVar[Tidying | None] = contextvars.ContextVar("snapstore_tidying", default=None)
"""That of the call which runs here; the tasks that it begins share it."""


def tidy_seconds() -> float:
    """How long a step that ends or takes back something may be waited for."""
    shared = tidying.get()
    return TIDY_SECONDS if shared is None else shared.seconds()


class Stopped(Exception):
    """A long job was told to stop; not an error: somebody asked for it."""


class Workers:
    """A pool of threads whose jobs can be awaited and never outlive the wait."""

    def __init__(self, threads: int, name: str, *, nice: bool = True) -> None:
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix=f"snapstore-{name}", initializer=_lower_priority if nice else None
        )

    async def run(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """``job(*args, **kwargs)`` in a thread.

        When cancelled, a job that has not begun is dropped and one that has begun is waited for; jobs are therefore
        short, or have a flag that makes them end early.
        """
        began = self._submit(job, *args, **kwargs)
        future = asyncio.wrap_future(began)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not began.cancel():
                await _settled(future)
            raise

    async def finish(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`run` for what tidies up: done whatever happens meanwhile, and a cancellation comes out afterwards."""
        future = asyncio.wrap_future(self._submit(job, *args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await _settled(future)
            raise

    def _submit(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        # With the caller's context: what is logged in the thread is said to be of the caller's operation.
        context = contextvars.copy_context()
        return self._pool.submit(lambda: context.run(job, *args, **kwargs))

    async def run_stoppable(
        self, stop: threading.Event, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`run` for a long job that looks at ``stop`` now and then, and ends (by Stopped) once a cancel has set it."""
        running = self.start(job, *args, **kwargs)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await drop([running])
            raise

    def start(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "asyncio.Task[T]":
        """Begin a job and return its task, for callers that keep several under way and `drop` what they don't want."""
        return asyncio.create_task(self.run(job, *args, **kwargs))

    def close(self) -> None:
        """End the threads once their jobs are done; blocks until then."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def drop(tasks: "Iterable[asyncio.Task[T]]") -> None:
    """Cancel these tasks, wait until each has ended, and forget their results."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    for task in tasks:
        await _settled(task)


async def run_all(jobs: Iterable[Coroutine[Any, Any, None]], *, at_once: int) -> None:
    """Await all ``jobs``, at most ``at_once`` at a time, taking each from its iterator only when its turn comes.

    The first error ends them all, and comes out as it is once the others have ended.
    """
    running: set[asyncio.Task[None]] = set()
    try:
        for job in jobs:
            running.add(asyncio.create_task(job))
            if len(running) >= at_once:
                running = await _one_ended(running)
        while running:
            running = await _one_ended(running)
    finally:
        await drop(running)


async def _one_ended(running: "set[asyncio.Task[None]]") -> "set[asyncio.Task[None]]":
    ended, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in ended if task.cancelled() or task.exception()]
    if failed:
        await drop(others)
        failed[0].result()
    return others


async def uninterrupted(step: Awaitable[T]) -> T:
    """Run ``step`` to its end even when the caller is cancelled meanwhile; the cancellation comes out afterwards."""
    future = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if future.cancelled():
            raise
        await _settled(future)
        raise


async def ended(step: Coroutine[Any, Any, T]) -> T:
    """Await ``step``; when cancelled, let it end by itself for up to `tidy_seconds` before it is cancelled too.

    For requests whose effect is taken back then: one that is cut off on its way could be applied after that.
    """
    task = asyncio.create_task(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await uninterrupted(asyncio.wait([task], timeout=tidy_seconds()))
        raise
    finally:
        await drop([task])


async def completed(step: Coroutine[Any, Any, T]) -> T:
    """`ended`, whose result counts if there is one, though it was cancelled: for a call that runs in a task of its own,
    where a caller who has cancelled it is told so anyway."""
    outcome: list[T] = []

    async def kept() -> None:
        outcome.append(await step)

    try:
        await ended(kept())
    except asyncio.CancelledError:
        if not outcome:
            raise
    return outcome[0]


def cancellations() -> int:
    """How often the task that runs was asked to end."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


async def _settled(future: "asyncio.Future[T]") -> None:
    """Wait until ``future`` is done, whatever happens to us meanwhile, and mark its error as seen."""
    while not future.done():
        # A second cancellation changes nothing: the first one is raised by the caller when the work has ended.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()


def _lower_priority() -> None:
    if sys.platform == "linux":
        # Not allowed in some sandboxes: then we run at the service's own priority.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
