"""A lock beside the index file, for what one process at a time does to it. The system lets go of a dead process's."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

_POLL = 0.05


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock of the index at ``path``; blocks until it is free."""
    with _opened(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@asynccontextmanager
async def turn(path: str) -> AsyncIterator[None]:
    """`locked`, for coroutines: waiting for it blocks nothing and can be cancelled."""
    with _opened(path) as descriptor:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_POLL)
        yield


@contextmanager
def _opened(path: str) -> Iterator[int]:
    # Its own file: SQLite has locks of its own on the index, and the index may be replaced.
    descriptor = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
