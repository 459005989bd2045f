"""Read the whole bucket into a new index beside the old one, and put it in that one's place when it is complete."""

import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from snapstore.aio import uninterrupted
from snapstore.index import checkpoints, file, replacement
from snapstore.index.catalog import Catalog
from snapstore.index.comparison import Comparison
from snapstore.index.database import Database
from snapstore.index.sync import all_spans
from snapstore.index.walk import walk
from snapstore.model import Progress, ProgressCallback, SyncReport
from snapstore.objectstore import ObjectStore

_ABANDONED = 24 * 3600.0


async def rebuild(store: ObjectStore, catalog: Catalog, progress: ProgressCallback | None = None) -> SyncReport:
    """Read the whole bucket into a new index, and put it in the place of the catalog's, which is read meanwhile.

    One that was interrupted is gone on with, as long as nothing stands in the way. The caller holds the index's lock.
    """
    started = time.monotonic()
    mirror = catalog.mirror
    async with mirror.noting():
        beside = await _open_beside(catalog)
        try:
            report = await _fill(store, beside, progress)
        finally:
            await uninterrupted(beside.aclose())
        if progress is not None:
            progress(Progress("replace", report.snapshots, report.snapshots, 0, 0))
        removed = await catalog.workers.run(replacement.gone, catalog.path, beside.path)
        stop = threading.Event()
        await catalog.workers.run_stoppable(stop, replacement.replace, catalog.path, beside.path, mirror.check, stop)
        catalog.database.filled = True
        await catalog.workers.run(file.remove, beside.path)
        compared = Comparison(store, mirror)
        await compared.read_again(await mirror.noted())
        await compared.look_again()
    changed = await compared.report()
    return SyncReport(
        snapshots=await mirror.count(),
        read=report.read + changed.read,
        removed=removed,
        problems=changed.problems,
        seconds=time.monotonic() - started,
        from_checkpoints=report.from_checkpoints,
    )


async def _fill(store: ObjectStore, catalog: Catalog, progress: ProgressCallback | None) -> SyncReport:
    """Fill a catalog that is ours alone. What an earlier attempt has brought into it is not fetched again."""
    began = datetime.now(UTC)
    mirror = catalog.mirror
    async with mirror.noting():
        await checkpoints.load(store, catalog, progress)
        compared = Comparison(store, mirror, progress, certain=True)
        await walk(store, await all_spans(store, mirror), compared.compare)
        await mirror.finish(began, compared.misnamed)
    return msgspec.structs.replace(await compared.report(), from_checkpoints=await mirror.covered())


async def remove_abandoned(catalog: Catalog) -> None:
    """Remove what an interrupted rebuild has left beside an index, where nobody has gone on with it for a day."""
    await catalog.workers.run(_remove_abandoned, _beside(catalog))


def _remove_abandoned(path: str) -> None:
    with suppress(FileNotFoundError):
        if os.path.getmtime(path) < time.time() - _ABANDONED:
            file.remove(path)


def _beside(catalog: Catalog) -> str:
    return f"{catalog.path}-rebuild"


async def _open_beside(catalog: Catalog) -> Catalog:
    path = _beside(catalog)
    await catalog.workers.run(file.prepare_aside, path, catalog.store_url)
    beside = Catalog(Database(path), catalog.workers, catalog.store_url)
    beside.mirror.logged = catalog.mirror.logged
    beside.mirror.pauses = catalog.mirror.pauses  # it is the old one that is read meanwhile
    return beside
