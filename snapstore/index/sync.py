"""Make the catalog equal to the bucket: list ``_metadata/``, read each object, drop what is gone."""

import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any
from uuid import UUID

from snapstore import metadata
from snapstore.aio import run_all
from snapstore.errors import MetadataInvalid, ObjectNotFound
from snapstore.index.catalog import Catalog
from snapstore.keys import METADATA_PREFIX, canonical_id
from snapstore.model import Progress, ProgressCallback, RebuildReport, Snapshot
from snapstore.storage.base import ObjectInfo, ObjectStore

log = logging.getLogger("snapstore")

_AT_ONCE = 16


async def rebuild(store: ObjectStore, catalog: Catalog, progress: ProgressCallback | None = None) -> RebuildReport:
    """Read all metadata of the bucket into the catalog; readers see what it held until each row is replaced."""
    started = time.monotonic()
    # Known before the listing: what another process adds meanwhile is not taken for gone.
    before = await catalog.ids()
    seen: set[bytes] = set()
    problems: list[str] = []
    count = 0
    with catalog.rebuilding() as put:
        async for page in store.list(METADATA_PREFIX):
            found: list[tuple[Snapshot, str]] = []
            await run_all(_reads(store, page, found, problems), at_once=_AT_ONCE)
            await put(found)
            seen |= {UUID(snapshot.id).bytes for snapshot, _ in found}
            count += len(found)
            if progress is not None:
                progress(Progress("rebuild", count, count, 0, 0))
    await catalog.remove(before - seen)
    await catalog.mark_filled()
    for problem in problems:
        log.warning("not listed: %s", problem)
    return RebuildReport(snapshots=count, problems=tuple(problems), seconds=time.monotonic() - started)


def _reads(
    store: ObjectStore, page: Sequence[ObjectInfo], found: list[tuple[Snapshot, str]], problems: list[str]
) -> Iterator[Coroutine[Any, Any, None]]:
    for info in page:
        if canonical_id(info.key.removeprefix(METADATA_PREFIX)) is None:
            problems.append(f"{info.key}: its name is no snapshot's id")
        else:
            yield _read(store, info, found.append, problems.append)


async def _read(
    store: ObjectStore,
    info: ObjectInfo,
    take: Callable[[tuple[Snapshot, str]], None],
    report: Callable[[str], None],
) -> None:
    try:
        body = await store.get(info.key)
        take((metadata.decode(info.key, body.content), body.etag))
    except ObjectNotFound:
        pass  # deleted since the listing: gone, then
    except MetadataInvalid as error:
        report(str(error))
