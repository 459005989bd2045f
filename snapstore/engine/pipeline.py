"""Frames on their way from a folder into an upload.

One thread reads the folder into frames, a few compress and digest them, and the event loop only passes them on, in
order. While there are enough frames to be compressed or sent, the reading thread goes on with the walk: so reading need
not wait for all of it, and how much there is becomes known early all the same.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import Any, NamedTuple

from snapstore.aio import drop
from snapstore.archive import frames, toc
from snapstore.archive.frames import FRAME, RawFrame, SealedFrame
from snapstore.archive.pack import Packer
from snapstore.archive.toc import TocBuilder
from snapstore.archive.walk import Walk
from snapstore.engine.limits import Limits
from snapstore.engine.parts import KNOWN_BY, ArchiveUpload, memory
from snapstore.model import Progress, ProgressCallback
from snapstore.objectstore import ObjectStore

_BYTES_A_MEMBER = 2048
"""Headers and line in the table of contents, generously: to choose the size of parts, and to ask for memory."""


def archive_size(walk: Walk) -> int:
    """About how many bytes the archive will have at most, by what was found so far."""
    return walk.content_size + walk.found * _BYTES_A_MEMBER


def most_memory(limits: Limits, size_of_part: int) -> int:
    """Bytes that may be in buffers at once: every frame and part under way."""
    return (_depth(limits) + 2) * FRAME + memory(size_of_part)


def _depth(limits: Limits) -> int:
    """Frames that wait for compression, or for their turn to be sent: enough that no thread is ever idle."""
    return limits.threads + 1


class Ends(NamedTuple):
    """Where frames come from, and where they go."""

    walk: Walk
    packer: Packer
    builder: TocBuilder
    upload: ArchiveUpload


class Pipeline:
    """Of one snapshot; `run` is called once."""

    def __init__(
        self, store: ObjectStore, limits: Limits, ends: Ends, *, level: int, progress: ProgressCallback | None
    ) -> None:
        self._store = store
        self._limits = limits
        self._walk, self._packer, self._builder, self._upload = ends
        self._level = level
        self._progress = progress
        self._walked = asyncio.Event()
        """Whether the walk is over."""
        self._size_is_known = ends.walk.over
        self._members = self._content = 0

    async def run(self, connecting: "asyncio.Task[None]") -> None:
        """All frames into the upload, once the store is connected. SourceUnreadable, StorageError."""
        raw_frames = self._packer.frames()
        sealing: deque[asyncio.Task[tuple[SealedFrame, bytes]]] = deque()
        try:
            more = True
            while more or sealing:
                if more:
                    async with self._limits.pace.work():
                        raw = await self._limits.files.run(_next, raw_frames)
                    if isinstance(raw, RawFrame):
                        sealing.append(self._limits.compute.start(self._seal, raw))
                    else:
                        more = raw
                if sealing and (len(sealing) > _depth(self._limits) or not more):
                    await self._walk_until(self._pass_on(sealing, connecting))
        finally:
            await drop(sealing)
            await self._limits.files.finish(raw_frames.close)

    def _seal(self, raw: RawFrame) -> tuple[SealedFrame, bytes]:
        sealed = frames.seal(raw, self._level)
        self._packer.buffers.give(raw.buffer)
        return sealed, toc.encode_members(sealed.members)

    async def _pass_on(
        self, sealing: "deque[asyncio.Task[tuple[SealedFrame, bytes]]]", connecting: "asyncio.Task[None]"
    ) -> None:
        """The first frame, to the upload."""
        frame, encoded_members = await sealing[0]
        sealing.popleft()
        if self._upload.has_part_with(len(frame.compressed)):
            await connecting
            await self._learn_size()
        self._builder.add(frame, encoded_members)
        await self._upload.write(frame.compressed)
        self._members += len(frame.members)
        self._content += frame.content
        if self._progress is not None:
            totals = (self._walk.found, self._walk.content_size) if self._walk.over else (0, 0)
            self._progress(Progress("pack", self._members, totals[0], self._content, totals[1]))

    async def _walk_until(self, step: Coroutine[Any, Any, None]) -> None:
        """Await ``step``, and walk meanwhile."""
        if self._walk.over:
            self._walked.set()
            await step
            return
        task = asyncio.create_task(step)
        try:
            while not self._walk.over and not task.done():
                async with self._limits.pace.work():
                    await self._limits.files.run(self._walk.go_on)
            if self._walk.over:
                self._walked.set()
            await task
        finally:
            await drop([task])

    async def _learn_size(self) -> None:
        """Of the archive, from the walk, once that is over; which it must be before too many parts are sent."""
        if not self._size_is_known:
            if self._store.equal_parts or self._upload.parts >= KNOWN_BY:
                await self._walked.wait()
            if self._walk.over:
                self._upload.expect(archive_size(self._walk))
                self._size_is_known = True


def _next(raw_frames: Iterator[RawFrame | None]) -> RawFrame | bool:
    """The next frame; where there is none, whether there may be one later."""
    for raw in raw_frames:
        return True if raw is None else raw
    return False
