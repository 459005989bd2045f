"""The frame of every restore: admitted, opened, filled by its reader, published, and closed, whatever happens."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from snapstore.archive.restore import Restoration, RestoreOptions
from snapstore.archive.target import InUse
from snapstore.engine.limits import Limits
from snapstore.errors import TargetConflict
from snapstore.model import RestoreReport, Snapshot

_PATIENCE = 60.0
"""Seconds that a restore waits for others with the same target: the last step of each takes an instant, but a merge is
one such step from its beginning to its end."""
_LOOK_AGAIN = 0.05


@asynccontextmanager
async def restoring(limits: Limits, options: RestoreOptions, memory: int) -> AsyncIterator[Restoration]:
    """A restoration to write through; what was written appears when the block ends without an error."""
    restoration = Restoration(options)
    try:
        async with limits.admit(memory):
            await _patiently(limits, restoration.open, options.target)
            yield restoration
            await limits.files.run(restoration.finish)
            try:
                await _patiently(limits, restoration.publish, options.target)
            except BaseException:
                # Cancelled while it appeared: the thread has ended that by now, and it is taken back.
                await limits.files.finish(restoration.revert)
                raise
    finally:
        await limits.files.finish(restoration.close)


async def _patiently(limits: Limits, step: Callable[[], None], target: str) -> None:
    """``step``, as soon as no other restore is in its way."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return await limits.files.run(step)
        except InUse:
            if time.monotonic() > end:
                raise TargetConflict(
                    ".",
                    target,
                    f"{target!r} has been locked for a minute (flock), by another restore into it or by a program of"
                    " yours: try again when that is done",
                ) from None
        await asyncio.sleep(_LOOK_AGAIN)


def report(restoration: Restoration, snapshot: Snapshot, started: float) -> RestoreReport:
    """What a restore that began at ``started`` (of the monotonic clock) has written."""
    return RestoreReport(
        snapshot=snapshot,
        target=restoration.target.path,
        members=restoration.writer.members,
        content_size=restoration.writer.content_size,
        seconds=time.monotonic() - started,
        skipped=restoration.writer.notes.lines(),
    )
