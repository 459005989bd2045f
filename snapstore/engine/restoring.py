"""The frame of every restore: admitted, opened, filled by its reader, published, and closed, whatever happens."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from snapstore.aio import uninterrupted
from snapstore.archive.restore import Restoration, RestoreOptions
from snapstore.engine.limits import Limits
from snapstore.model import RestoreReport, Snapshot


@asynccontextmanager
async def restoring(limits: Limits, options: RestoreOptions, memory: int) -> AsyncIterator[Restoration]:
    """A restoration to write through; what was written appears when the block ends without an error."""
    restoration = Restoration(options)
    run = limits.files.run
    try:
        async with limits.admit(memory):
            await run(restoration.open)
            yield restoration
            try:
                await run(restoration.finish)
            except BaseException:
                # Cancelled while it appeared: the thread has ended that by now, and it is taken back.
                await uninterrupted(run(restoration.revert))
                raise
    finally:
        await uninterrupted(run(restoration.close))


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
