"""One budget of memory, threads and concurrent work for everything that snapstore does in a process.

A snapshot or a restore has its turn first come, first served, then looks at what it is to do, and goes on once the
memory that it may need is free; from then on it never waits for memory, so nothing can lock up half-way. What waits for
its turn holds neither memory nor descriptors. The threads live as long as some open store uses them.
"""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from snapstore.aio import Workers
from snapstore.engine.arguments import check_count
from snapstore.engine.pace import Pace
from snapstore.errors import InvalidInput, StoreClosed

_FILE_THREADS = 8


class Limits:
    """May be shared by several stores that are open on one event loop.

    ``memory`` is what snapshots and restores may hold in their buffers altogether, in bytes; one that needs more than
    that alone is still admitted when nothing else runs. ``threads`` compress and decompress (default: one a processor,
    four at most). ``operations`` is how many snapshots and restores run at the same time, ``connections`` how many
    requests to S3 (of a single store, `S3Options.connections` at most). With ``nice``, the
    embedding service comes first: threads lower their own priority (Linux), and pause while the event loop is busy, the
    longer the fewer ``threads`` there are.
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
        self._turns = _Budget(operations)
        self._memory = _Budget(memory)
        self.requesting = asyncio.Semaphore(connections)
        """Held by each request to S3 while it has a connection."""
        self.pace = Pace(self.threads, pauses=nice)
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._compute: Workers | None = None
        self._files: Workers | None = None
        self._parsers: Workers | None = None

    def __repr__(self) -> str:
        fields = ("memory", "threads", "operations", "connections")
        return f"Limits({', '.join(f'{name}={getattr(self, name)}' for name in fields)}, nice={self._nice})"

    @property
    def running(self) -> int:
        """How many snapshots and restores are under way."""
        return self.operations - self._turns.free - self._memory.waiting

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return self._turns.waiting + self._memory.waiting

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

    @property
    def parsers(self) -> Workers:
        """Threads for archives that others made: they wait for the network, and so keep nobody else waiting."""
        if self._parsers is None:
            raise StoreClosed("the store is closed")
        return self._parsers

    def attach(self) -> None:
        """A store begins to use the threads, on this event loop: a waiter on another one would not be woken."""
        loop = asyncio.get_running_loop()
        if self._users and loop is not self._loop:
            raise InvalidInput(
                "a store on another event loop uses these Limits: close it first, or give this one Limits of its own"
            )
        if self._users == 0:
            if loop is not self._loop:  # a semaphore belongs to the loop that it was first waited for on
                self.requesting = asyncio.Semaphore(self.connections)
                self.pace = Pace(self.threads, pauses=self._nice)
            self._loop = loop
            self._compute = Workers(self.threads, "compute", nice=self._nice)
            self._files = Workers(_FILE_THREADS, "files", nice=self._nice)
            self._parsers = Workers(self.operations, "parsers", nice=self._nice)
        self._users += 1

    def detach(self) -> None:
        """A store has ended; the last one ends the threads."""
        self._users -= 1
        if self._users == 0:
            for workers in (self._compute, self._files, self._parsers):
                if workers is not None:
                    workers.close()
            self._compute = self._files = self._parsers = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator["Turn"]:
        """Wait until fewer than ``operations`` run, then be one of them."""
        await self._turns.take(1)
        turn = Turn(self._memory, self.memory)
        try:
            yield turn
        finally:
            turn.end()
            self._turns.give(1)

    @asynccontextmanager
    async def admit(self, memory: int) -> AsyncIterator[None]:
        """A `turn`, with ``memory`` bytes from its beginning."""
        async with self.turn() as turn:
            await turn.hold(memory)
            yield


class Turn:
    """One snapshot or restore that may run, and the memory that it holds."""

    def __init__(self, budget: "_Budget", most: int) -> None:
        self._budget = budget
        self._most = most
        self._held = 0

    async def hold(self, memory: int) -> None:
        """Wait until ``memory`` bytes are free (or all, where it is more), and hold them until the turn ends. Once."""
        memory = min(memory, self._most)
        await self._budget.take(memory)
        self._held = memory

    def end(self) -> None:
        self._budget.give(self._held)
        self._held = 0


class _Budget:
    """An amount of something, given out first come, first served."""

    def __init__(self, amount: int) -> None:
        self.free = amount
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def take(self, amount: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((amount, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(amount)
            elif (amount, turn) in self._queue:
                self._queue.remove((amount, turn))
                self._serve()
            raise

    def give(self, amount: int) -> None:
        self.free += amount
        self._serve()

    def _serve(self) -> None:
        while self._queue and self._queue[0][0] <= self.free:
            amount, turn = self._queue.popleft()
            if not turn.done():
                self.free -= amount
                turn.set_result(None)
