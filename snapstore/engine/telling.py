"""A caller's progress callback, told of work that is done in a thread."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from snapstore.model import Progress, ProgressCallback


@contextmanager
def told_from_thread(callback: ProgressCallback | None) -> Iterator[ProgressCallback | None]:
    """What a thread calls within, for ``callback`` to be called on the event loop, as it always is.

    What that raises ends the thread's work at the next call, and comes out.
    """
    if callback is None:
        yield None
        return
    loop = asyncio.get_running_loop()
    errors: list[Exception] = []

    def call(progress: Progress) -> None:
        if not errors:
            try:
                callback(progress)
            except Exception as error:
                errors.append(error)

    def tell(progress: Progress) -> None:
        if errors:
            raise errors[0]
        loop.call_soon_threadsafe(call, progress)

    yield tell
    if errors:
        raise errors[0]
