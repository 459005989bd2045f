"""When the index is made equal to its store: on opening, when asked, and every so often; by one of us at a time."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta

import msgspec

from snapstore.aio import drop
from snapstore.engine.shared import Asked, Shared
from snapstore.errors import SnapstoreError
from snapstore.index import checkpoints, rebuild, sync
from snapstore.index.archives import Archives
from snapstore.index.catalog import Catalog
from snapstore.index.lock import turn
from snapstore.index.mirror import Synced
from snapstore.model import CheckpointReport, ProgressCallback, SyncReport
from snapstore.objectstore import ObjectStore
from snapstore.operation import reported

log = logging.getLogger("snapstore")

LONGEST_UPLOAD = timedelta(hours=6)
"""How long before its metadata was written a snapshot may have been begun, for a sync in the background to find it at
once. One that took longer is found by the next whole sync."""
_WHOLE_EVERY = 3600.0
_JUST_NOW = 10.0
_WORTH_A_CHECKPOINT = 1000
"""Snapshots: as many requests as a rebuild makes in a second."""
_SHARE = 0.1
_ALMOST = 0.9
"""Of an interval: whoever wakes so early is not late for the next."""


class Syncing:
    """The syncs of one open store."""

    def __init__(self, store: ObjectStore, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog
        self._shared: dict[timedelta | None, Shared[SyncReport]] = {}
        self._background: asyncio.Task[None] | None = None
        self._filled: tuple[float, SyncReport] | None = None
        """When a new index was filled on opening, and the report of that, until something else is done with it."""

    async def fill(self, progress: ProgressCallback | None) -> None:
        """Fill a new index, if nobody else has."""
        if await self._catalog.is_filled():
            return
        async with turn(self._catalog.path):
            report = await self._fill(progress)
        self._filled = (time.monotonic(), report) if report is not None else None

    async def _fill(self, progress: ProgressCallback | None) -> SyncReport | None:
        if await self._catalog.is_filled():
            return None
        return await reported("fill", lambda: rebuild.rebuild(self._store, self._catalog, progress))

    async def sync(self, recent: timedelta | None, progress: ProgressCallback | None) -> SyncReport:
        """Shared with whoever wants the same now, in this process and in others."""
        shared = self._shared.setdefault(
            recent, Shared(lambda asked: reported("sync", lambda: self._sync(recent, asked)))
        )
        try:
            return await shared.join(progress)
        finally:
            if shared.idle:
                self._shared.pop(recent, None)

    async def _sync(self, recent: timedelta | None, asked: Asked) -> SyncReport:
        self._filled = None
        async with turn(self._catalog.path):
            asked.close()
            if (report := await self._fill(asked.tell)) is not None:
                return report
            began = _begun(await self._catalog.mirror.synced(), recent)
            if began is not None and began > asked.latest:
                # By another process, which has ended it while we waited for our turn.
                return await sync.nothing_done(self._catalog)
            report = await sync.sync(self._store, self._catalog, asked.tell, recent=recent)
            if recent is None:
                await rebuild.remove_abandoned(self._catalog)
            return report

    async def rebuild(self, archives: bool, progress: ProgressCallback | None) -> SyncReport:
        return await reported("rebuild", lambda: self._rebuild(archives, progress))

    async def _rebuild(self, archives: bool, progress: ProgressCallback | None) -> SyncReport:
        async with turn(self._catalog.path):
            report = await self._read_anew(progress)
            began = time.monotonic()
            written = await self._checkpoint_if_worth_it(progress)
        problems: Sequence[str] = ()
        recent = 0
        if archives:
            problems, recent = await self._look_at_archives(progress)
        return msgspec.structs.replace(
            report,
            problems=(*report.problems, *problems),
            recent=recent,
            checkpoints=written,
            seconds=report.seconds + time.monotonic() - began,
        )

    async def _look_at_archives(self, progress: ProgressCallback | None) -> tuple[Sequence[str], int]:
        """What does not belong together, and how many archives may still get their metadata."""
        with closing(Archives(self._store, self._catalog)) as found:
            await found.collect(progress)
            problems = await found.problems()
        for problem in problems:
            log.warning("%s", problem)
        return problems, found.recent

    async def _read_anew(self, progress: ProgressCallback | None) -> SyncReport:
        """One that was just built, because it was lost or damaged, is not built twice: a sync makes it as good."""
        filled, self._filled = self._filled, None
        if filled is None or time.monotonic() - filled[0] > _JUST_NOW:
            return await rebuild.rebuild(self._store, self._catalog, progress)
        before, since = filled[1], await sync.sync(self._store, self._catalog, progress)
        return msgspec.structs.replace(
            since,
            read=before.read + since.read,
            seconds=before.seconds + since.seconds,
            from_checkpoints=before.from_checkpoints,
        )

    async def checkpoint(self, progress: ProgressCallback | None) -> CheckpointReport:
        return await reported("checkpoint", lambda: self._checkpoint(progress))

    async def _checkpoint(self, progress: ProgressCallback | None) -> CheckpointReport:
        self._filled = None
        async with turn(self._catalog.path):
            if await self._fill(progress) is None:
                await sync.sync(self._store, self._catalog, progress)
            return await checkpoints.write(self._store, self._catalog, progress)

    async def _checkpoint_if_worth_it(self, progress: ProgressCallback | None = None) -> int:
        """How many were written."""
        count = await self._catalog.mirror.count()
        least = max(_WORTH_A_CHECKPOINT, int(count * _SHARE))
        try:
            return (await checkpoints.write(self._store, self._catalog, progress, least=least)).written
        except SnapstoreError as error:
            # They save time, and are never needed; who may only read cannot write them.
            log.info("no checkpoint was written: %s", error)
            return 0

    def start(self, every: timedelta) -> None:
        """Sync in the background from now on, until `aclose`."""
        self._background = asyncio.create_task(self._keep_up(every.total_seconds()))

    async def aclose(self) -> None:
        if self._background is not None:
            await drop([self._background])

    async def _keep_up(self, seconds: float) -> None:
        whole_every = seconds  # at first: of all that open the index at the same time, one lists all
        told = ""
        while True:
            try:
                if await self._age(None) >= _ALMOST * whole_every:
                    await self.sync(None, None)
                    async with turn(self._catalog.path):
                        await self._checkpoint_if_worth_it()
                elif await self._age(LONGEST_UPLOAD) >= _ALMOST * seconds:
                    await self.sync(LONGEST_UPLOAD, None)
                whole_every = max(seconds, _WHOLE_EVERY)
                told = ""
            except SnapstoreError as error:
                if str(error) != told:  # once, and not again until it is something else
                    log.warning("the index was not brought up to date: %s", error)
                told = str(error)
            except Exception:
                log.exception("the index was not brought up to date")
            # Not all nodes of a fleet at once.
            await asyncio.sleep(seconds * random.uniform(_ALMOST, 2 - _ALMOST))

    async def _age(self, recent: timedelta | None) -> float:
        """Seconds since the last sync that does for this one, of whichever process."""
        began = _begun(await self._catalog.mirror.synced(), recent)
        return (datetime.now(UTC) - began).total_seconds() if began is not None else math.inf


def _begun(synced: Synced, recent: timedelta | None) -> datetime | None:
    """When the last sync began that does for one of this window (None: for a whole one).

    One in the future is of a clock that was ahead.
    """
    as_large = recent is not None and (synced.window is None or synced.window >= recent)
    began = synced.latest if as_large else synced.whole
    return began if began is not None and began <= datetime.now(UTC) else None
