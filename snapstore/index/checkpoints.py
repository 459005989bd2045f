"""Checkpoints: copies of metadata in the bucket, from which an index is filled without a request for each snapshot.

FORMAT.md, Checkpoints. They are a cache: a row counts only where key and ETag are those of the listing.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import aclosing

from snapstore import metadata
from snapstore.aio import run_all
from snapstore.errors import MetadataInvalid, ObjectNotFound
from snapstore.index import checkpoint_file, rows
from snapstore.index.catalog import Catalog
from snapstore.index.checkpoint_file import BATCH, ROWS, CheckpointFile, Copy
from snapstore.index.coverage import Coverage
from snapstore.index.rows import Row
from snapstore.keys import METADATA_PREFIX, canonical_id, id_bytes, metadata_key
from snapstore.model import CheckpointReport, Progress, ProgressCallback, Snapshot
from snapstore.objectstore import ObjectInfo, ObjectStore

_AT_ONCE = 32
_GRACE = 24 * 3600.0
"""Seconds for which a superseded checkpoint stays: somebody may be reading it."""


async def load(store: ObjectStore, catalog: Catalog, progress: ProgressCallback | None) -> None:
    """Bring into a catalog that nobody reads yet all that checkpoints have, for a walk over the bucket to compare."""
    brought = 0

    async def bring(number: int, batch: Sequence[Copy]) -> None:
        nonlocal brought
        await catalog.mirror.apply(0, await catalog.workers.run(_rows_of, batch), checkpoint=number)
        brought += len(batch)
        if progress is not None:
            progress(Progress("load", brought, 0, 0, 0))

    await _take_new(store, catalog, await checkpoint_file.listed(store), bring)


async def write(
    store: ObjectStore, catalog: Catalog, progress: ProgressCallback | None = None, *, least: int = 1
) -> CheckpointReport:
    """Write checkpoints for what none has, if that is ``least`` snapshots or more, and remove superseded ones.

    Small ones are merged with what is new, so that their number stays in proportion to the bucket. The caller has just
    synced, and holds the index's lock.
    """
    started = time.monotonic()
    writer = _Writer(store, catalog, progress)
    listed = await checkpoint_file.listed(store)
    await writer.learn(listed)
    await writer.write(least)
    await writer.remove_superseded(listed)
    counts = await writer.coverage.counts()
    return CheckpointReport(
        snapshots=sum(counts.values()),
        covered=sum(count for number, count in counts.items() if number is not None),
        written=writer.written,
        read=writer.read,
        removed=writer.removed,
        seconds=time.monotonic() - started,
    )


async def _take_new(
    store: ObjectStore,
    catalog: Catalog,
    listed: Iterable[ObjectInfo],
    take: Callable[[int, Sequence[Copy]], Awaitable[None]],
) -> None:
    """Read those that the index does not know to their end, and give their numbers and rows to ``take``."""
    coverage = Coverage(catalog.database)
    known = {checkpoint.name for checkpoint in await coverage.checkpoints() if checkpoint.complete}
    for info in listed:
        if info.key in known or (content := await checkpoint_file.read(store, catalog.workers, info)) is None:
            continue
        number = await coverage.add(info.key, info.modified)
        count = 0
        async with aclosing(checkpoint_file.batches(catalog.workers, content)) as batches:
            async for batch in batches:
                await take(number, batch)
                count += len(batch)
        await coverage.complete(number, count)


class _Writer:
    def __init__(self, store: ObjectStore, catalog: Catalog, progress: ProgressCallback | None) -> None:
        self._store = store
        self._catalog = catalog
        self._progress = progress
        self.coverage = Coverage(catalog.database)
        self.written = self.read = self.removed = 0
        self._now = time.time()
        """By the store's clock, once it has told."""

    async def learn(self, listed: Sequence[ObjectInfo]) -> None:
        """Take note of what other nodes have written, and of what is gone."""
        there = {info.key for info in listed}
        await self.coverage.forget(
            {known.number for known in await self.coverage.checkpoints() if known.name not in there}
        )
        # Of our own, an answer told the time; all nodes go by that of the listing.
        await self.coverage.date([(info.modified, info.key) for info in listed])
        await _take_new(self._store, self._catalog, listed, self._cover)

    async def _cover(self, number: int, batch: Sequence[Copy]) -> None:
        await self.coverage.cover(number, await self._catalog.workers.run(_etags_of, batch))

    async def write(self, least: int) -> None:
        counts = dict(await self.coverage.counts())
        uncovered = counts.pop(None, 0)
        if uncovered < max(least, 1):
            return
        merged = _to_merge(uncovered, {number: count for number, count in counts.items() if number is not None})
        file = CheckpointFile()
        after = b""
        while found := await self.coverage.rows(merged, after, BATCH):
            after = id_bytes(found[-1][0].id)
            for copy in await self._copies(found):
                file.add(copy)
                if len(file.etags) == ROWS:
                    await self._put(file)
                    file = CheckpointFile()
            await self._catalog.workers.run(file.compress)
        if file.etags:
            await self._put(file)

    async def _copies(self, found: Sequence[tuple[Snapshot, str]]) -> Sequence[Copy]:
        """The metadata objects of these, byte by byte: made here where that is certain, else read."""
        copies = await self._catalog.workers.run(_made, found)
        objects = [(metadata_key(snapshot.id), etag) for snapshot, etag in found]

        async def fetch(key: str, etag: str) -> None:
            try:
                body = await self._store.get(key)
            except ObjectNotFound:
                return
            if body.etag == etag:
                copies[key] = Copy(key, etag, body.content.decode())

        wanted = [(key, etag) for key, etag in objects if key not in copies]
        self.read += len(wanted)
        await run_all((fetch(key, etag) for key, etag in wanted), at_once=_AT_ONCE)
        return [copies[key] for key, _ in objects if key in copies]

    async def _put(self, file: CheckpointFile) -> None:
        name, content = await self._catalog.workers.run(file.finish)
        info = await self._store.put(name, content)
        self._now = info.modified or self._now
        number = await self.coverage.add(name, self._now)
        for start in range(0, len(file.etags), BATCH):
            await self.coverage.cover(number, file.etags[start : start + BATCH])
        await self.coverage.complete(number, len(file.etags))
        self.written += 1
        if self._progress is not None:
            self._progress(Progress("checkpoint", len(file.etags), 0, len(content), 0))

    async def remove_superseded(self, listed: Sequence[ObjectInfo]) -> None:
        """What no row belongs to any more."""
        counts = await self.coverage.counts()
        old = {info.key for info in listed if info.modified < self._now - _GRACE}
        gone = [
            known for known in await self.coverage.checkpoints() if known.name in old and known.number not in counts
        ]
        for known in gone:
            await self._store.delete(known.name)
        await self.coverage.forget({known.number for known in gone})
        self.removed = len(gone)


def _to_merge(uncovered: int, counts: dict[int, int]) -> Collection[int]:
    """The checkpoints to write anew with what is new: each at most twice as large as what is merged with it.

    So a row is copied a few times in its life, and there are few small files.
    """
    total, merged = uncovered, set()
    for number, count in sorted(counts.items(), key=lambda item: item[1]):
        if count >= ROWS // 2 or count > 2 * total:
            break
        merged.add(number)
        total += count
    return merged


def _made(found: Iterable[tuple[Snapshot, str]]) -> dict[str, Copy]:
    """By key, those whose objects can only be what we would write: where an ETag is an MD5, and ours is the same."""
    made: dict[str, Copy] = {}
    for snapshot, etag in found:
        body = metadata.encode(snapshot)
        if hashlib.md5(body, usedforsecurity=False).hexdigest() == etag:
            key = metadata_key(snapshot.id)
            made[key] = Copy(key, etag, body.decode())
    return made


def _rows_of(batch: Iterable[Copy]) -> Sequence[Row]:
    found = []
    for key, etag, content in batch:
        try:
            found.append(rows.pack(metadata.decode(key, content.encode()), etag))
        except MetadataInvalid:
            continue  # it is read by itself, and reported then
    return found


def _etags_of(batch: Iterable[Copy]) -> Sequence[tuple[bytes, str]]:
    ids = ((canonical_id(key.removeprefix(METADATA_PREFIX)), etag) for key, etag, _ in batch)
    return [(id_bytes(snapshot_id), etag) for snapshot_id, etag in ids if snapshot_id]
