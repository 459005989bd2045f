"""Waiting for other processes, which nobody's loop notices and which can be cancelled.

What one process at a time does to an index has a lock beside its file. The system lets go of a dead process's.
"""

import asyncio
import fcntl
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from snapstore.errors import CatalogBusy, CatalogError, reason_of
from snapstore.index import file

_POLL = 0.05


@asynccontextmanager
async def turn(path: str) -> AsyncIterator[None]:
    """Hold the lock of the index at ``path``; waiting for it blocks nothing and can be cancelled. CatalogError."""
    with _opened(path) as descriptor:
        while True:
            if _taken(path, descriptor):
                break
            await asyncio.sleep(_POLL)
        yield


async def when_free(path: str, attempt: Callable[[], Awaitable[bool]], patience: float | None = None) -> None:
    """Repeat ``attempt`` while it gives False, as SQLite's own lock on the file is another process's. CatalogBusy."""
    deadline = time.monotonic() + (file.PATIENCE if patience is None else patience)
    while not await attempt():
        if time.monotonic() > deadline:
            raise locked_too_long(path)
        await asyncio.sleep(random.uniform(0.001, 0.02))


def locked_too_long(path: str) -> CatalogBusy:
    return CatalogBusy(path, f"the index {path!r} was locked by another process for {file.PATIENCE:g} s")


def _taken(path: str, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _unusable(path, error) from error
    return True


@contextmanager
def _opened(path: str) -> Iterator[int]:
    # Its own file: SQLite has locks of its own on the index, and the index may be replaced.
    try:
        descriptor = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unusable(path: str, error: OSError) -> CatalogError:
    return CatalogError(path, f"the index {path!r} cannot be locked by {path}-lock: {reason_of(error)}")
