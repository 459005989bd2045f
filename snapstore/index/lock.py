"""A lock beside the index file, for what one process at a time does to it. The system lets go of a dead process's."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from snapstore.errors import CatalogError, reason_of

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
