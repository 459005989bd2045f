"""create: walk → frames → parts → commit.

The number of frames and parts under way is bounded, so memory is the same for any folder, but for what the walk has
found and the table of contents.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from snapstore import keys, metadata, operation
from snapstore.aio import Stopped, drop, ended, tidy_seconds, uninterrupted
from snapstore.archive.exclude import Excludes
from snapstore.archive.pack import Buffers, Packer
from snapstore.archive.source import Source
from snapstore.archive.toc import TocBuilder, Trailer
from snapstore.archive.walk import Walk
from snapstore.engine.limits import Limits
from snapstore.engine.parts import ArchiveUpload, part_size
from snapstore.engine.pipeline import Ends, Pipeline, archive_size, most_memory
from snapstore.engine.telling import told_from_thread
from snapstore.errors import StorageUnavailable
from snapstore.index import file
from snapstore.index.catalog import Catalog
from snapstore.model import FORMAT, OnError, Progress, ProgressCallback, Snapshot, SnapshotReport
from snapstore.objectstore import ObjectInfo, ObjectStore

log = logging.getLogger("snapstore")

_MEMBERS_AHEAD = 1000
"""That are walked over before anything is packed, at least: of most folders all is known then."""


class Request(NamedTuple):
    """What `SnapStore.create` was asked for, checked."""

    app: str
    folder: str
    labels: Sequence[str]
    exclude: Sequence[str]
    on_error: OnError
    level: int
    progress: ProgressCallback | None


class SnapshotWriter:
    """Makes one snapshot, or leaves no trace of it, but for what the store may still do without having answered."""

    def __init__(
        self, store: ObjectStore, catalog: Catalog, limits: Limits, index_label: str | None, request: Request
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._limits = limits
        self._request = request
        self._created_at = datetime.now(UTC)
        self._id = keys.new_id(int(self._created_at.timestamp() * 1000))
        self._key = keys.archive_key(
            request.app, self._id, _label_value(index_label, request.labels), int(self._created_at.timestamp())
        )
        self._stop = threading.Event()
        self._source: Source | None = None
        self._uploading = self._committing = False
        self._unclear = False
        """Whether the store may still be given the metadata by a request of ours that it has not answered."""

    @property
    def id(self) -> str:
        """The snapshot's."""
        return self._id

    async def write(self) -> SnapshotReport:
        started = time.monotonic()
        try:
            await self._limits.files.run(self._look)
            async with self._limits.turn() as turn:
                connecting = asyncio.create_task(self._store.connect())  # the store is made ready meanwhile
                try:
                    walk = await self._look_ahead()
                    await turn.hold(self._memory(walk))
                    snapshot, packer = await self._upload(walk, connecting)
                finally:
                    await drop([connecting])
                    await self._limits.files.finish(self._close)
            await self._commit(snapshot)
        except BaseException:
            await uninterrupted(self.undo())
            raise
        if walk.left_out:
            log.info("snapshot %s: left out %s, files of an index in use", self._id, ", ".join(walk.left_out))
        problems = (*walk.problems, *packer.problems)
        for problem in problems:
            log.warning("snapshot %s: %s was %s: %s", self._id, problem.path, problem.kind, problem.reason)
        return SnapshotReport(
            **{field: getattr(snapshot, field) for field in Snapshot.__struct_fields__},
            problems=problems,
            sockets=walk.sockets,
            seconds=time.monotonic() - started,
        )

    def _look(self) -> None:
        """Whether there is such a folder: nobody shall have to wait for a turn to learn that there is none."""
        Source(self._request.folder).close()

    async def _look_ahead(self) -> Walk:
        """A walk that has come far enough to tell how much memory to ask for."""
        with told_from_thread(self._request.progress) as progress:
            return await self._limits.files.run_stoppable(self._stop, self._begin_walk, progress)

    def _begin_walk(self, progress: ProgressCallback | None) -> Walk:
        self._source = Source(self._request.folder)
        excludes = Excludes([*self._source.ignore_lines(), *self._request.exclude])
        # Indexes that we have open are caches, and SQLite's alone to open.
        walk = Walk(self._source, excludes, on_error=self._request.on_error, leave_out=file.in_use())
        while not walk.over and (walk.found < _MEMBERS_AHEAD or _whole(walk) < self._most_memory(walk)):
            if self._stop.is_set():
                raise Stopped
            walk.step()
            if progress is not None:
                progress(Progress("scan", walk.found, walk.found, 0, 0))
        return walk

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()

    def _memory(self, walk: Walk) -> int:
        """Bytes that may be in buffers at once: the whole folder, if that is less than what may be under way."""
        most = self._most_memory(walk)
        return min(most, _whole(walk)) if walk.over else most

    def _most_memory(self, walk: Walk) -> int:
        return most_memory(self._limits, self._part_size(walk))

    def _part_size(self, walk: Walk) -> int:
        return part_size(archive_size(walk), self._store.part_size)

    async def _upload(self, walk: Walk, connecting: asyncio.Task[None]) -> tuple[Snapshot, Packer]:
        assert self._source is not None
        packer = Packer(self._source, walk, Buffers(), on_error=self._request.on_error)
        builder = TocBuilder(self._id, self._request.app, self._request.labels, self._created_at)
        async with ArchiveUpload(self._store, self._key, self._part_size(walk)) as upload:
            ends = Ends(walk, packer, builder, upload)
            pipeline = Pipeline(
                self._store, self._limits, ends, level=self._request.level, progress=self._request.progress
            )
            await pipeline.run(connecting)
            trailer = await self._limits.compute.run(builder.finish)
            await upload.write(trailer.content)
            self._uploading = True
            await upload.finish()
        return self._describe(walk, packer, upload.size, trailer), packer

    def _describe(self, walk: Walk, packer: Packer, size: int, trailer: Trailer) -> Snapshot:
        return Snapshot(
            id=self._id,
            app=self._request.app,
            created_at=self._created_at,
            labels=tuple(self._request.labels),
            key=self._key,
            size=size,
            content_size=packer.content_size,
            entries=packer.entries,
            toc=trailer.toc,
            root=trailer.root,
            warnings=len(walk.problems) + len(packer.problems),
            revision=1,
            format=FORMAT,
        )

    async def _commit(self, snapshot: Snapshot) -> None:
        """Now the snapshot exists: its metadata, then its row in the index."""
        self._committing = True
        info = await ended(self._put_metadata(snapshot))
        await self._catalog.put([(snapshot, info.etag)])

    async def _put_metadata(self, snapshot: Snapshot) -> ObjectInfo:
        before = operation.requests()
        try:
            return await self._store.put(keys.metadata_key(self._id), metadata.encode(snapshot), if_none_match=True)
        except (StorageUnavailable, asyncio.CancelledError):
            # With any other error the store has answered, and will not do it later; nor what it was never sent.
            self._unclear = operation.requests() > before
            raise

    async def undo(self) -> None:
        """Remove whatever was made. The order is that of a delete: what is listed always has its archive.

        Metadata that the store was sent, and did not answer, may still arrive there after it was deleted. The archive
        stays then: a whole snapshot that nobody expects does less harm than one that is listed and cannot be restored.
        """
        left = "it may still be listed, whole"
        try:
            async with asyncio.timeout(tidy_seconds()):
                if self._committing:
                    await self._store.delete(keys.metadata_key(self._id))
                left = "its archive stays until it is removed by hand, and the next sync drops what the index has of it"
                try:
                    if self._committing:
                        await self._catalog.remove([keys.id_bytes(self._id)])
                finally:
                    if self._uploading and not self._unclear:
                        await self._store.delete(self._key)
        except Exception as failure:
            # The error that brought us here matters more.
            reason = str(failure) or "the store does not answer"
            log.warning("could not take all of snapshot %s back (%s): %s", self._id, left, reason)
            return
        if self._unclear:
            log.warning(
                "the store has not told whether it takes the metadata of snapshot %s: either it will be listed, whole,"
                " or its archive stays until it is removed by hand (`snapstore index rebuild` names it)",
                self._id,
            )


def _whole(walk: Walk) -> int:
    """Bytes that an archive takes which is in buffers as a whole, raw and compressed."""
    return 2 * archive_size(walk) + (1 << 20)


def _label_value(index_label: str | None, labels: Sequence[str]) -> str | None:
    """The value that stands in the archive's key: that of the store's index label, where the snapshot has it."""
    for label in labels:
        key, value = keys.split_label(label)
        if key == index_label:
            return value
    return None
