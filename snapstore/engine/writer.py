"""create: plan → frames → parts → commit.

One thread reads the folder into frames, a few compress and digest them, and the event loop only passes them on, in
order, to the upload. The number of frames and parts under way is bounded, so memory is the same for any folder, but for
the plan and the table of contents.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from snapstore import keys, metadata, operation
from snapstore.aio import TIDY_SECONDS, Stopped, drop, ended, uninterrupted
from snapstore.archive import frames, toc
from snapstore.archive.exclude import Excludes
from snapstore.archive.frames import FRAME, RawFrame, SealedFrame
from snapstore.archive.pack import Buffers, Packer
from snapstore.archive.plan import Plan, make_plan
from snapstore.archive.source import Source
from snapstore.archive.toc import TocBuilder, Trailer
from snapstore.engine.limits import Limits
from snapstore.engine.parts import ArchiveUpload, memory, part_size
from snapstore.errors import StorageUnavailable
from snapstore.index import file
from snapstore.index.catalog import Catalog
from snapstore.model import FORMAT, OnError, Progress, ProgressCallback, Snapshot, SnapshotReport
from snapstore.objectstore import ObjectInfo, ObjectStore

log = logging.getLogger("snapstore")

_BYTES_A_MEMBER = 2048
"""Headers and line in the table of contents, generously: to choose the size of parts, and to ask for memory."""


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
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._source: Source | None = None
        self._buffers = Buffers()
        self._uploading = self._committing = False
        self._unclear = False
        """Whether the store may still be given the metadata by a request of ours that it has not answered."""

    @property
    def id(self) -> str:
        """The snapshot's."""
        return self._id

    async def _plan(self) -> Plan:
        """What the folder holds; the store is made ready meanwhile."""
        connecting = asyncio.create_task(self._store.connect())
        try:
            plan = await self._limits.files.run_stoppable(self._stop, self._scan)
            await connecting
            return plan
        finally:
            await drop([connecting])

    async def write(self) -> SnapshotReport:
        started = time.monotonic()
        try:
            await self._limits.files.run(self._look)
            async with self._limits.turn() as turn:
                try:
                    plan = await self._plan()
                    await turn.hold(self._memory(plan))
                    snapshot, packer = await self._upload(plan)
                finally:
                    await uninterrupted(self._limits.files.run(self._close))
            await self._commit(snapshot)
        except BaseException:
            await uninterrupted(self.undo())
            raise
        if plan.left_out:
            log.info("snapshot %s: left out %s, files of an index in use", self._id, ", ".join(plan.left_out))
        problems = (*plan.problems, *packer.problems)
        for problem in problems:
            log.warning("snapshot %s: %s was %s: %s", self._id, problem.path, problem.kind, problem.reason)
        return SnapshotReport(
            **{field: getattr(snapshot, field) for field in Snapshot.__struct_fields__},
            problems=problems,
            sockets=plan.sockets,
            seconds=time.monotonic() - started,
        )

    def _look(self) -> None:
        """Whether there is such a folder: nobody shall have to wait for a turn to learn that there is none."""
        Source(self._request.folder).close()

    def _scan(self) -> Plan:
        self._source = Source(self._request.folder)
        excludes = Excludes([*self._source.ignore_lines(), *self._request.exclude])
        # Indexes that we have open are caches, and SQLite's alone to open.
        return make_plan(
            self._source, excludes, on_error=self._request.on_error, leave_out=file.in_use(), step=self._scanned
        )

    def _scanned(self, found: int) -> None:
        if self._stop.is_set():
            raise Stopped
        if self._request.progress is not None:
            self._loop.call_soon_threadsafe(self._request.progress, Progress("scan", found, found, 0, 0))

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()

    def _memory(self, plan: Plan) -> int:
        """Bytes that may be in buffers at once: every frame and part under way, or the whole folder if that is less."""
        size = _archive_size(plan)
        under_way = (self._depth + 2) * FRAME + memory(part_size(size, self._store.part_size))
        return min(under_way, 2 * size + (1 << 20))

    @property
    def _depth(self) -> int:
        """Frames that wait for compression, or for their turn to be sent: enough that no thread is ever idle."""
        return self._limits.threads + 1

    async def _upload(self, plan: Plan) -> tuple[Snapshot, Packer]:
        assert self._source is not None
        totals = plan.entries, plan.content_size
        packer = Packer(self._source, plan, self._buffers, on_error=self._request.on_error)
        builder = TocBuilder(self._id, self._request.app, self._request.labels, self._created_at)
        self._uploading = True
        async with ArchiveUpload(
            self._store, self._key, part_size(_archive_size(plan), self._store.part_size)
        ) as upload:
            await self._send_frames(packer, builder, upload, totals)
            trailer = await self._limits.compute.run(builder.finish)
            await upload.write(trailer.content)
            await upload.finish()
        return self._describe(plan, packer, upload.size, trailer), packer

    async def _send_frames(
        self, packer: Packer, builder: TocBuilder, upload: ArchiveUpload, totals: tuple[int, int]
    ) -> None:
        raw_frames = packer.frames()
        sealing: deque[asyncio.Task[tuple[SealedFrame, bytes]]] = deque()
        members = content = 0
        try:
            more = True
            while more or sealing:
                if more:
                    async with self._limits.pace.work():
                        raw = await self._limits.files.run(_next, raw_frames)
                    if raw is None:
                        more = False
                    else:
                        sealing.append(self._limits.compute.start(self._seal, raw))
                if sealing and (len(sealing) > self._depth or not more):
                    frame, encoded_members = await sealing[0]
                    sealing.popleft()
                    builder.add(frame, encoded_members)
                    await upload.write(frame.compressed)
                    members += len(frame.members)
                    content += frame.content
                    if self._request.progress is not None:
                        self._request.progress(Progress("pack", members, totals[0], content, totals[1]))
        finally:
            await drop(sealing)
            await uninterrupted(self._limits.files.run(raw_frames.close))

    def _seal(self, raw: RawFrame) -> tuple[SealedFrame, bytes]:
        sealed = frames.seal(raw, self._request.level)
        self._buffers.give(raw.buffer)
        return sealed, toc.encode_members(sealed.members)

    def _describe(self, plan: Plan, packer: Packer, size: int, trailer: Trailer) -> Snapshot:
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
            warnings=len(plan.problems) + len(packer.problems),
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
            async with asyncio.timeout(TIDY_SECONDS):
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


def _archive_size(plan: Plan) -> int:
    """About how many bytes the archive will have at most."""
    return plan.content_size + plan.entries * _BYTES_A_MEMBER


def _next(raw_frames: Iterator[RawFrame]) -> RawFrame | None:
    return next(raw_frames, None)


def _label_value(index_label: str | None, labels: Sequence[str]) -> str | None:
    """The value that stands in the archive's key: that of the store's index label, where the snapshot has it."""
    for label in labels:
        key, value = keys.split_label(label)
        if key == index_label:
            return value
    return None
