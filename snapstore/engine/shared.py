"""One run for all who want the same work at once.

Whoever asks while one is under way shares the next: the one that runs may have passed by already what he asks for.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from snapstore.aio import drop
from snapstore.model import Progress, ProgressCallback

log = logging.getLogger("snapstore")

T = TypeVar("T")


class Asked:
    """What the sharers of one run want."""

    def __init__(self) -> None:
        self.latest = datetime.now(UTC)
        """When the last of them asked."""
        self.closed = False
        self._listeners: list[ProgressCallback] = []

    def join(self, listener: ProgressCallback | None) -> None:
        self.latest = datetime.now(UTC)
        if listener is not None:
            self._listeners.append(listener)

    def close(self) -> None:
        """The work begins: nobody shares it from now on."""
        self.closed = True

    def leave(self, listener: ProgressCallback | None) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    def tell(self, progress: Progress) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(progress)
            except Exception:  # which is its owner's, and must not end what others share
                log.exception("a progress callback failed, and is not called any more")
                self.leave(listener)


class Shared(Generic[T]):
    """Calls for ``work``, which closes what it was asked when it has its turn and begins."""

    def __init__(self, work: Callable[[Asked], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._next: _Run[T] | None = None

    @property
    def idle(self) -> bool:
        return self._next is None or self._next.task.done()

    async def join(self, listener: ProgressCallback | None = None) -> T:
        """What the work gives. When all who share a run are cancelled, so is the run, and its end is waited for."""
        run = self._next
        if run is None or run.asked.closed or run.task.done():
            asked = Asked()
            run = self._next = _Run(asked, asyncio.create_task(self._work(asked)))
        run.asked.join(listener)
        run.users += 1
        try:
            return await asyncio.shield(run.task)
        finally:
            run.asked.leave(listener)
            run.users -= 1
            if run.users == 0:
                run.asked.close()
                await drop([run.task])


class _Run(Generic[T]):
    def __init__(self, asked: Asked, task: "asyncio.Task[T]") -> None:
        self.asked = asked
        self.task = task
        self.users = 0
