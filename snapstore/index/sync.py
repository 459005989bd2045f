"""Make the catalog equal to the bucket: list ``_metadata/``, compare ETags, read what is new or changed.

The listing comes in the order of ids, and so do the catalog's rows: page by page both are walked side by side, and
nothing is kept of either. What was read is committed page by page, so a sync that is interrupted is not repeated.

A row that the listing does not have may have been added since, by this node or another: so each is asked for by itself
before it is dropped.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

from snapstore import metadata
from snapstore.aio import run_all
from snapstore.errors import MetadataInvalid, ObjectNotFound
from snapstore.index.catalog import Catalog
from snapstore.keys import METADATA_PREFIX, canonical_id, id_bytes, metadata_key
from snapstore.model import Progress, ProgressCallback, Snapshot, SyncReport
from snapstore.storage.base import ObjectInfo, ObjectStore

log = logging.getLogger("snapstore")

_AT_ONCE = 32
_LAST = b"\xff" * 16
_ROWS = 10_000


async def sync(
    store: ObjectStore,
    catalog: Catalog,
    progress: ProgressCallback | None = None,
    *,
    anew: bool = False,
    after: bytes = b"",
) -> SyncReport:
    """Bring the catalog up to date with the bucket; with ``anew``, every object is read again.

    ``after`` leaves out the snapshots whose ids (16 bytes) are not greater. Readers see each page when it is done.
    """
    began, started = datetime.now(UTC), time.monotonic()
    step = _Step(store, catalog, anew)
    position = after
    start_after = metadata_key(str(UUID(bytes=after))) if after else ""
    with catalog.rebuilding() as step.put:
        async for page in store.list(METADATA_PREFIX, start_after=start_after):
            found = step.named(page)
            upto = max(found, default=position)
            await step.compare(found, await catalog.etags(position, upto))
            position = upto
            if progress is not None:
                progress(Progress("rebuild", step.snapshots, step.snapshots, 0, 0))
        while known := await catalog.etags(position, _LAST, limit=_ROWS):
            await step.drop_gone(known)
            position = max(known)
    if not after:
        await catalog.mark_filled(began)
    for problem in step.problems:
        log.warning("not listed: %s", problem)
    return SyncReport(
        snapshots=step.snapshots,
        read=step.read,
        removed=step.removed,
        problems=tuple(step.problems),
        seconds=time.monotonic() - started,
    )


class _Step:
    """One run's counts, and what it does for each page."""

    put: Callable[[Sequence[tuple[Snapshot, str]]], Awaitable[None]]

    def __init__(self, store: ObjectStore, catalog: Catalog, anew: bool) -> None:
        self._store = store
        self._catalog = catalog
        self._anew = anew
        self.snapshots = self.read = self.removed = 0
        self.problems: list[str] = []

    def named(self, page: Iterable[ObjectInfo]) -> dict[bytes, ObjectInfo]:
        """The metadata objects among these, by id."""
        found = {}
        for info in page:
            snapshot_id = canonical_id(info.key.removeprefix(METADATA_PREFIX))
            if snapshot_id is None:
                self.problems.append(f"{info.key}: its name is no snapshot's id")
            else:
                found[id_bytes(snapshot_id)] = info
        return found

    async def compare(self, found: Mapping[bytes, ObjectInfo], known: Mapping[bytes, str]) -> None:
        """What the bucket has, and what the catalog has, of one range of ids."""
        entries: list[tuple[Snapshot, str]] = []
        lost: list[bytes] = []
        wanted = [info for key, info in found.items() if self._anew or known.get(key) != info.etag]
        await run_all((self._read(info, entries, lost) for info in wanted), at_once=_AT_ONCE)
        if entries:
            await self.put(entries)
        self.read += len(wanted)
        self.snapshots += len(found) - len(wanted) + len(entries)
        await self._drop([snapshot_id for snapshot_id in lost if snapshot_id in known])
        await self.drop_gone(known.keys() - found.keys())

    async def _read(self, info: ObjectInfo, entries: list[tuple[Snapshot, str]], lost: list[bytes]) -> None:
        try:
            body = await self._store.get(info.key)
            entries.append((metadata.decode(info.key, body.content), body.etag))
        except (ObjectNotFound, MetadataInvalid) as error:
            lost.append(id_bytes(info.key.removeprefix(METADATA_PREFIX)))
            if isinstance(error, MetadataInvalid):
                self.problems.append(str(error))

    async def drop_gone(self, candidates: Iterable[bytes]) -> None:
        """Remove from the catalog those of these rows whose objects are not there."""
        gone: list[bytes] = []
        await run_all((self._ask(snapshot_id, gone) for snapshot_id in candidates), at_once=_AT_ONCE)
        await self._drop(gone)

    async def _drop(self, gone: Sequence[bytes]) -> None:
        if gone:
            await self._catalog.remove(gone)
        self.removed += len(gone)

    async def _ask(self, snapshot_id: bytes, gone: list[bytes]) -> None:
        try:
            await self._store.head(metadata_key(str(UUID(bytes=snapshot_id))))
        except ObjectNotFound:
            gone.append(snapshot_id)
