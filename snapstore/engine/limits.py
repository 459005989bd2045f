"""One budget of memory, threads and concurrent work for everything that snapstore does in a process.

A snapshot or a restore is admitted once the memory that it may need is free, first come first served; from then on it
never waits for memory, so nothing can lock up half-way. The threads live as long as some open store uses them.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from snapstore.aio import Workers
from snapstore.engine.arguments import check_count
from snapstore.errors import InvalidInput, StoreClosed

_FILE_THREADS = 8
_READS = 8


class Limits:
    """May be shared by several stores that are open on one event loop.

    ``memory`` is what snapshots and restores may hold in their buffers altogether, in bytes; one that needs more than
    that alone is still admitted when nothing else runs. ``threads`` compress and decompress (default: one a processor,
    four at most). ``operations`` is how many snapshots and restores run at the same time, ``connections`` how many
    requests to S3 (of a single store, `S3Options.connections` at most). With ``nice``, threads lower their own
    priority, so that the embedding service comes first (Linux).
    """

    def __init__(
        self,
        *,
        memory: int = 128 << 20,
        threads: int | None = None,
        operations: int = 8,
        connections: int = 64,
        nice: bool = True,
    ) -> None:
        self.memory = memory
        self.threads = min(os.cpu_count() or 1, 4) if threads is None else threads
        self.operations = operations
        self.connections = connections
        for name in ("memory", "threads", "operations", "connections"):
            check_count(getattr(self, name), name, 1)
        self._nice = nice
        self._free = memory
        self._running = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.reading = asyncio.Semaphore(_READS)
        """Held while one piece of one file is fetched and checked: single files need not wait for whole snapshots."""
        self.requesting = asyncio.Semaphore(connections)
        """Held by each request to S3 while it has a connection."""
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._compute: Workers | None = None
        self._files: Workers | None = None

    @property
    def running(self) -> int:
        """How many snapshots and restores are under way."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._queue)

    @property
    def compute(self) -> Workers:
        """Threads for compression, decompression and digests."""
        if self._compute is None:
            raise StoreClosed("the store is closed")
        return self._compute

    @property
    def files(self) -> Workers:
        """Threads for walking, reading and tidying folders, which wait for disks."""
        if self._files is None:
            raise StoreClosed("the store is closed")
        return self._files

    def attach(self) -> None:
        """A store begins to use the threads, on this event loop: a waiter on another one would not be woken."""
        loop = asyncio.get_running_loop()
        if self._users and loop is not self._loop:
            raise InvalidInput(
                "a store on another event loop uses these Limits: close it first, or give this one Limits of its own"
            )
        if self._users == 0:
            if loop is not self._loop:  # a semaphore belongs to the loop that it was first waited for on
                self.reading, self.requesting = asyncio.Semaphore(_READS), asyncio.Semaphore(self.connections)
            self._loop = loop
            self._compute = Workers(self.threads, "compute", nice=self._nice)
            self._files = Workers(_FILE_THREADS, "files", nice=self._nice)
        self._users += 1

    def detach(self) -> None:
        """A store has ended; the last one ends the threads."""
        self._users -= 1
        if self._users == 0:
            for workers in (self._compute, self._files):
                if workers is not None:
                    workers.close()
            self._compute = self._files = None

    @asynccontextmanager
    async def admit(self, memory: int) -> AsyncIterator[None]:
        """Wait until ``memory`` bytes are free and fewer than ``operations`` run, then hold them."""
        memory = min(memory, self.memory)
        await self._acquire(memory)
        try:
            yield
        finally:
            self._release(memory)

    async def _acquire(self, memory: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((memory, turn))
        self._admit_next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(memory)
            elif (memory, turn) in self._queue:
                self._queue.remove((memory, turn))
                self._admit_next()
            raise

    def _release(self, memory: int) -> None:
        self._free += memory
        self._running -= 1
        self._admit_next()

    def _admit_next(self) -> None:
        while self._queue and self._running < self.operations and self._queue[0][0] <= self._free:
            memory, turn = self._queue.popleft()
            if not turn.done():
                self._free -= memory
                self._running += 1
                turn.set_result(None)
