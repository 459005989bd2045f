"""Reading snapshots of our own: ranges → frames → members, files, folders.

The table of contents says where everything is: one ranged GET for it, one more for each 4 MiB of a single file (so that
a slow reader holds no more), and one for each 8 MiB of a whole archive. All of them are pinned to one version of the
object, and every byte is checked.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from snapstore.aio import run_all
from snapstore.archive import select, toc, unpack
from snapstore.archive.exclude import Excludes
from snapstore.archive.frames import FRAME, compressed_bound
from snapstore.archive.restore import RestoreOptions
from snapstore.archive.select import FramePieces, Selection
from snapstore.archive.toc import Toc
from snapstore.archive.unpack import Unpacker
from snapstore.engine.file import Found
from snapstore.engine.limits import Limits
from snapstore.engine.restoring import report, restoring
from snapstore.errors import ArchiveDamaged, PreconditionFailed
from snapstore.model import Member, MemberType, Progress, ProgressCallback, RestoreReport, Snapshot
from snapstore.objectstore import ObjectStore

_GROUP = 8 << 20
"""Compressed bytes that one request of a restore fetches at least, so that it makes few of them."""
_GROUPS_IN_FLIGHT = 3
_TOC_RATIO = 8
"""How much larger a table of contents is in memory than in the archive."""
_GAP = 1 << 20
"""Unwanted bytes between wanted frames that are fetched with them rather than asked around."""


class ArchiveReader:
    """Reads one snapshot's archive, by its table of contents."""

    def __init__(self, store: ObjectStore, limits: Limits, snapshot: Snapshot, reading: asyncio.Semaphore) -> None:
        """``reading`` is held while one piece of one file is fetched and checked, or a table of contents."""
        assert snapshot.key is not None
        assert snapshot.toc is not None
        self._store = store
        self._limits = limits
        self.snapshot = snapshot
        self._key = snapshot.key
        self._reading = reading
        self._etag: str | None = None
        self._unpacking = asyncio.Semaphore(limits.threads + 1)
        """Held while a frame is in a thread, or the next one for it: what waits must not be in its queue yet."""

    async def members(self) -> AsyncGenerator[Member, None]:
        async with self._reading:
            contents = await self._contents()
        for frame in contents.frames:
            for member in await self._limits.compute.run(_members_of, frame):
                yield member

    async def find(self, path: str) -> Found:
        """The file ``path``, or the one that it is a hard link to."""
        # What is kept is of this file alone: who reads slowly does not hold a line for each member.
        async with self._reading:
            contents = await self._contents()
            member, selection = await self._limits.compute.run(select.select_one, contents, path, self.snapshot.id)
        return Found(member, partial(self._content, member, selection))

    async def read(self, path: str, start: int, size: int | None) -> AsyncGenerator[bytes, None]:
        """A file's content from ``start``, in pieces of up to 256 KiB."""
        found = await self.find(path)
        async with aclosing(found.content(start, size)) as pieces:
            async for piece in pieces:
                yield piece

    async def _content(
        self, member: Member, selection: Selection, start: int, size: int | None
    ) -> AsyncGenerator[bytes, None]:
        end = member.size if size is None else min(member.size, start + size)
        if start >= end:
            return
        for wanted in selection.frames:
            (piece,) = wanted.pieces()
            if piece.position + piece.length <= start or piece.position >= end:
                continue
            async with self._reading:
                body = await self._fetch(wanted.frame.entry.offset, wanted.frame.entry.size)
                pieces = await self._limits.compute.run(unpack.content, wanted, body, start, end)
            del body
            while pieces:  # each is given away: of a frame, there is only what has not been asked for yet
                yield pieces.popleft()

    async def restore(self, options: RestoreOptions, progress: ProgressCallback | None) -> RestoreReport:
        started = time.monotonic()
        excludes = Excludes(options.exclude)
        async with restoring(self._limits, options, self._memory()) as restoration:
            contents = await self._contents()
            selection = await self._limits.compute.run(
                select.select, contents, self.snapshot.id, paths=options.paths, excludes=excludes, drop=options.drop
            )
            await self._limits.files.run(restoration.check_conflicts, _wanted_members(selection))
            await self._unpack(selection, Unpacker(restoration.writer, selection), _Meter(selection, progress))
        return report(restoration, self.snapshot, started)

    async def _contents(self) -> Toc:
        place, root = self.snapshot.toc, self.snapshot.root
        assert place is not None
        if root is None:
            raise ArchiveDamaged(f"the metadata of snapshot {self.snapshot.id} has no digest of its contents")
        if place.size > compressed_bound(toc.MAX_TOC) or place.offset + place.size > (self.snapshot.size or 0):
            raise ArchiveDamaged(f"the metadata of snapshot {self.snapshot.id} gives its contents an impossible place")
        return await self._limits.compute.run(toc.parse, await self._fetch(place.offset, place.size), root)

    async def _fetch(self, start: int, size: int) -> bytes:
        """A range of the archive, all of it, and all of one version."""
        try:
            body = await self._store.get(self._key, start=start, size=size, if_match=self._etag)
        except PreconditionFailed as error:
            raise ArchiveDamaged(f"{self._key!r} was replaced while it was read") from error
        if len(body.content) != size:
            raise ArchiveDamaged(f"{self._key!r} is cut short: {size} bytes from {start} are not all there")
        self._etag = body.etag
        return body.content

    def _memory(self) -> int:
        """Bytes that may be held at once: groups and frames under way, and the table of contents."""
        under_way = _GROUPS_IN_FLIGHT * (_GROUP + FRAME) + self._limits.threads * FRAME
        contents = self.snapshot.toc.size * _TOC_RATIO if self.snapshot.toc else 0
        return min(under_way, 2 * (self.snapshot.content_size or under_way)) + contents + (1 << 20)

    async def _unpack(self, selection: Selection, unpacker: Unpacker, meter: "_Meter") -> None:
        jobs = (self._unpack_group(group, unpacker, meter) for group in _groups(selection.frames))
        await run_all(jobs, at_once=_GROUPS_IN_FLIGHT)

    async def _unpack_group(self, group: Sequence[FramePieces], unpacker: Unpacker, meter: "_Meter") -> None:
        start = group[0].frame.entry.offset
        end = group[-1].frame.entry.offset + group[-1].frame.entry.size
        body = memoryview(await self._fetch(start, end - start))

        async def unpack_frame(wanted: FramePieces) -> None:
            entry = wanted.frame.entry
            compressed = body[entry.offset - start : entry.offset - start + entry.size]
            async with self._unpacking, self._limits.pace.work():
                meter.add(*await self._limits.compute.run(unpacker.unpack, wanted, compressed))

        jobs: Iterator[Coroutine[Any, Any, None]] = (unpack_frame(wanted) for wanted in group)
        await run_all(jobs, at_once=self._limits.threads)


class _Meter:
    """Counts what was restored and tells the caller's progress."""

    def __init__(self, selection: Selection, callback: ProgressCallback | None) -> None:
        self._selection = selection
        self._callback = callback
        self._members = self._bytes = 0

    def add(self, members: int, size: int) -> None:
        self._members += members
        self._bytes += size
        if self._callback is not None:
            totals = self._selection
            self._callback(Progress("restore", self._members, totals.members, self._bytes, totals.content_size))


def _groups(frames: Sequence[FramePieces]) -> Iterator[list[FramePieces]]:
    """Frames that are fetched by one request each."""
    group: list[FramePieces] = []
    start = end = 0
    for wanted in frames:
        entry = wanted.frame.entry
        if group and (end - start >= _GROUP or entry.offset - end > _GAP):
            yield group
            group = []
        if not group:
            start = entry.offset
        group.append(wanted)
        end = entry.offset + entry.size
    if group:
        yield group


def _members_of(frame: toc.Frame) -> Sequence[Member]:
    return frame.members


def _wanted_members(selection: Selection) -> Iterator[tuple[str, MemberType]]:
    for wanted in selection.frames:
        for piece in wanted.pieces():
            if piece.begins:
                yield piece.member.path, piece.member.type
