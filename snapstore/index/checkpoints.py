"""Checkpoints: copies of metadata in the bucket, from which an index is filled without a request for each snapshot.

FORMAT.md, Checkpoints. They are a cache: a row counts only where key and ETag are those of the listing, and a file
whose bytes are not what its name says is passed over.
"""

import hashlib
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import aclosing

import msgspec
import zstandard
from blake3 import blake3

from snapstore import metadata
from snapstore.aio import drop, run_all
from snapstore.errors import MetadataInvalid, ObjectNotFound
from snapstore.index import rows
from snapstore.index.catalog import Catalog
from snapstore.index.coverage import Coverage
from snapstore.index.rows import Row
from snapstore.keys import CHECKPOINT_PREFIX, METADATA_PREFIX, canonical_id, id_bytes, metadata_key
from snapstore.model import CheckpointReport, Progress, ProgressCallback, Snapshot
from snapstore.objectstore import ObjectInfo, ObjectStore

log = logging.getLogger("snapstore")

ROWS = 100_000
"""At most so many in a file (FORMAT.md)."""
_BATCH = 2000
_AT_ONCE = 32
_LARGEST = 256 << 20
"""Bytes of a file beyond which it is not read: ours have about a hundred a snapshot."""
_CHUNK = 1 << 20
_LONGEST_LINE = 4 << 20
_LEVEL = 3
_GRACE = 24 * 3600.0
"""Seconds for which a superseded checkpoint stays: somebody may be reading it."""

_Copy = tuple[str, str, str]
"""Key, ETag and content of a metadata object."""
_decoder = msgspec.json.Decoder(_Copy)
_encoder = msgspec.json.Encoder()


async def load(store: ObjectStore, catalog: Catalog, progress: ProgressCallback | None) -> None:
    """Bring into a catalog that nobody reads yet all that checkpoints have, for a walk over the bucket to compare."""
    brought = 0

    async def bring(number: int, batch: Sequence[_Copy]) -> None:
        nonlocal brought
        await catalog.mirror.apply(0, await catalog.workers.run(_rows_of, batch), checkpoint=number)
        brought += len(batch)
        if progress is not None:
            progress(Progress("load", brought, 0, 0, 0))

    await _take_new(store, catalog, await _listed(store), bring)


async def write(
    store: ObjectStore, catalog: Catalog, progress: ProgressCallback | None = None, *, least: int = 1
) -> CheckpointReport:
    """Write checkpoints for what none has, if that is ``least`` snapshots or more, and remove superseded ones.

    Small ones are merged with what is new, so that their number stays in proportion to the bucket. The caller has just
    synced, and holds the index's lock.
    """
    started = time.monotonic()
    writer = _Writer(store, catalog, progress)
    listed = await _listed(store)
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
    take: Callable[[int, Sequence[_Copy]], Awaitable[None]],
) -> None:
    """Read those that the index does not know to their end, and give their numbers and rows to ``take``."""
    coverage = Coverage(catalog.database)
    known = {checkpoint.name for checkpoint in await coverage.checkpoints() if checkpoint.complete}
    for info in listed:
        if info.key in known or (content := await _read(store, catalog, info)) is None:
            continue
        number = await coverage.add(info.key, info.modified)
        count = 0
        async with aclosing(_batches(catalog, content)) as batches:
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

    async def _cover(self, number: int, batch: Sequence[_Copy]) -> None:
        await self.coverage.cover(number, await self._catalog.workers.run(_etags_of, batch))

    async def write(self, least: int) -> None:
        counts = dict(await self.coverage.counts())
        uncovered = counts.pop(None, 0)
        if uncovered < max(least, 1):
            return
        merged = _to_merge(uncovered, {number: count for number, count in counts.items() if number is not None})
        file = _File()
        after = b""
        while found := await self.coverage.rows(merged, after, _BATCH):
            after = id_bytes(found[-1][0].id)
            for copy in await self._copies(found):
                file.add(copy)
                if len(file.etags) == ROWS:
                    await self._put(file)
                    file = _File()
            await self._catalog.workers.run(file.compress)
        if file.etags:
            await self._put(file)

    async def _copies(self, found: Sequence[tuple[Snapshot, str]]) -> Sequence[_Copy]:
        """The metadata objects of these, byte by byte: made here where that is certain, else read."""
        copies = await self._catalog.workers.run(_made, found)
        objects = [(metadata_key(snapshot.id), etag) for snapshot, etag in found]

        async def fetch(key: str, etag: str) -> None:
            try:
                body = await self._store.get(key)
            except ObjectNotFound:
                return
            if body.etag == etag:
                copies[key] = (key, etag, body.content.decode())

        wanted = [(key, etag) for key, etag in objects if key not in copies]
        self.read += len(wanted)
        await run_all((fetch(key, etag) for key, etag in wanted), at_once=_AT_ONCE)
        return [copies[key] for key, _ in objects if key in copies]

    async def _put(self, file: "_File") -> None:
        name, content = await self._catalog.workers.run(file.finish)
        info = await self._store.put(name, content)
        self._now = info.modified or self._now
        number = await self.coverage.add(name, self._now)
        for start in range(0, len(file.etags), _BATCH):
            await self.coverage.cover(number, file.etags[start : start + _BATCH])
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


class _File:
    """A checkpoint in the making."""

    def __init__(self) -> None:
        self.etags: list[tuple[bytes, str]] = []
        self._lines: list[bytes] = []
        self._pieces: list[bytes] = []
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()

    def add(self, copy: _Copy) -> None:
        key, etag, _ = copy
        self.etags.append((id_bytes(key.removeprefix(METADATA_PREFIX)), etag))
        self._lines.append(_encoder.encode(copy))

    def compress(self) -> None:
        """What was added since; slow."""
        lines, self._lines = self._lines, []
        if lines:
            self._pieces.append(self._compressor.compress(b"\n".join(lines) + b"\n"))

    def finish(self) -> tuple[str, bytes]:
        """Its name and content; slow."""
        self.compress()
        content = b"".join([*self._pieces, self._compressor.flush()])
        return CHECKPOINT_PREFIX + blake3(content).hexdigest(), content


def _made(found: Iterable[tuple[Snapshot, str]]) -> dict[str, _Copy]:
    """By key, those whose objects can only be what we would write: where an ETag is an MD5, and ours is the same."""
    made: dict[str, _Copy] = {}
    for snapshot, etag in found:
        body = metadata.encode(snapshot)
        if hashlib.md5(body, usedforsecurity=False).hexdigest() == etag:
            key = metadata_key(snapshot.id)
            made[key] = (key, etag, body.decode())
    return made


async def _listed(store: ObjectStore) -> Sequence[ObjectInfo]:
    """The checkpoints there are, the oldest first: what comes later is newer."""
    found = [info async for page in store.list(CHECKPOINT_PREFIX) for info in page if _is_named(info)]
    return sorted(found, key=lambda info: (info.modified, info.key))


def _is_named(info: ObjectInfo) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", info.key.removeprefix(CHECKPOINT_PREFIX)) is not None


async def _read(store: ObjectStore, catalog: Catalog, info: ObjectInfo) -> bytes | None:
    """A checkpoint's bytes; None where they are not what its name says."""
    if info.size > _LARGEST:
        log.warning("passed over %s: %d bytes are too many for a checkpoint", info.key, info.size)
        return None
    try:
        content = (await store.get(info.key)).content
    except ObjectNotFound:
        return None  # superseded, and removed meanwhile
    digest = await catalog.workers.run(lambda: blake3(content).hexdigest())
    if info.key != CHECKPOINT_PREFIX + digest:
        log.warning("passed over %s: its bytes are not those that it was written with", info.key)
        return None
    return content


async def _batches(catalog: Catalog, content: bytes) -> AsyncGenerator[Sequence[_Copy], None]:
    """The rows of a checkpoint; the next ones are decoded while these are worked on."""
    batches = _decoded(content)
    following = catalog.workers.start(next, batches, ())
    try:
        while batch := await following:
            following = catalog.workers.start(next, batches, ())
            yield batch
    finally:
        await drop([following])


def _decoded(content: bytes) -> Iterator[Sequence[_Copy]]:
    batch: list[_Copy] = []
    for line in _lines(content):
        try:
            batch.append(_decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # of a format that we do not know; its objects are read one by one
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _lines(content: bytes) -> Iterator[bytes]:
    rest = b""
    try:
        with zstandard.ZstdDecompressor().stream_reader(content) as reader:
            while piece := reader.read(_CHUNK):
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
                if len(rest) > _LONGEST_LINE:
                    log.warning("passed over a checkpoint's rest: it has a line of more than %d bytes", _LONGEST_LINE)
                    return
    except zstandard.ZstdError as error:
        log.warning("passed over a checkpoint's rest: %s", error)


def _rows_of(batch: Iterable[_Copy]) -> Sequence[Row]:
    found = []
    for key, etag, content in batch:
        try:
            found.append(rows.pack(metadata.decode(key, content.encode()), etag))
        except MetadataInvalid:
            continue  # it is read by itself, and reported then
    return found


def _etags_of(batch: Iterable[_Copy]) -> Sequence[tuple[bytes, str]]:
    ids = ((canonical_id(key.removeprefix(METADATA_PREFIX)), etag) for key, etag, _ in batch)
    return [(id_bytes(snapshot_id), etag) for snapshot_id, etag in ids if snapshot_id]
