"""Reading archives that others made: streamed from the beginning, parsed in a thread.

The thread asks the event loop for each next piece and waits for it; the loop never waits for the thread.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from snapstore.aio import uninterrupted
from snapstore.archive import foreign
from snapstore.archive.foreign import Decompressed
from snapstore.archive.names import to_text
from snapstore.archive.plan import FRAME, Stopped
from snapstore.archive.restore import Restoration, RestoreOptions, StreamFilter
from snapstore.archive.select import clean_path
from snapstore.engine.limits import Limits
from snapstore.errors import MemberNotFound
from snapstore.model import Member, Progress, ProgressCallback, RestoreReport, Snapshot
from snapstore.storage.base import ObjectStore

_MEMORY = 32 << 20
"""Of a stream's buffers: zstd's window (8 MiB for its usual levels), and a few pieces of 1 MiB."""
_MEMBERS_A_STEP = 256
_PIECE = 1 << 20


class ForeignReader:
    """Reads one snapshot's archive, without a table of contents."""

    def __init__(self, store: ObjectStore, limits: Limits, snapshot: Snapshot) -> None:
        assert snapshot.key is not None
        self._store = store
        self._limits = limits
        self.snapshot = snapshot
        self._key = snapshot.key
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()

    async def members(self) -> AsyncGenerator[Member, None]:
        async with aclosing(self._store.stream(self._key)) as stream:
            listed = self._list(stream)
            while batch := await self._limits.files.run_stoppable(self._stop, _next, listed):
                for member in batch:
                    yield member

    def _list(self, stream: AsyncGenerator[bytes, None]) -> Iterator[list[Member]]:
        batch: list[Member] = []
        for member in foreign.read_members(self._decompressed(stream)):
            batch.append(foreign.as_listed(member.header))
            if len(batch) == _MEMBERS_A_STEP:
                yield batch
                batch = []
        yield batch

    async def read(self, path: str, start: int, size: int | None) -> AsyncGenerator[bytes, None]:
        """A file's content from ``start``, in pieces of up to 1 MiB."""
        async with aclosing(self._store.stream(self._key)) as stream:
            pieces = self._content(stream, path, start, size)
            while piece := await self._limits.files.run_stoppable(self._stop, _next_piece, pieces):
                yield piece

    def _content(self, stream: AsyncGenerator[bytes, None], path: str, start: int, size: int | None) -> Iterator[bytes]:
        wanted = clean_path(path)
        for member in foreign.read_members(self._decompressed(stream)):
            if to_text(member.header.path) != wanted:
                continue
            if member.content is None:
                raise MemberNotFound(
                    path, self.snapshot.id, f"{path!r} is no file (or a link to one): it has no content"
                )
            end = member.header.size if size is None else min(member.header.size, start + size)
            position = 0
            while piece := member.content.read(min(_PIECE, end - position)):
                if position + len(piece) > start:
                    yield piece[max(0, start - position) :]
                position += len(piece)
            return
        raise MemberNotFound(path, self.snapshot.id)

    async def restore(self, options: RestoreOptions, progress: ProgressCallback | None) -> RestoreReport:
        started = time.monotonic()
        files = self._limits.files
        restoration = Restoration(options)
        try:
            async with self._limits.admit(_MEMORY):
                await files.run(restoration.open)
                async with aclosing(self._store.stream(self._key)) as stream:
                    await files.run_stoppable(self._stop, self._unpack, stream, restoration, options, progress)
                await files.run(restoration.finish)
        finally:
            await uninterrupted(files.run(restoration.close))
        return RestoreReport(
            snapshot=self.snapshot,
            target=restoration.target.path,
            members=restoration.writer.members,
            content_size=restoration.writer.content_size,
            seconds=time.monotonic() - started,
            skipped=restoration.writer.notes.lines(),
        )

    def _unpack(
        self,
        stream: AsyncGenerator[bytes, None],
        restoration: Restoration,
        options: RestoreOptions,
        progress: ProgressCallback | None,
    ) -> None:
        wanted = StreamFilter(options)
        writer = restoration.writer
        told = 0
        for member in foreign.read_members(self._decompressed(stream)):
            if not wanted.wants(member.header):
                continue
            foreign.write(member, writer)
            if progress is not None and writer.content_size - told >= FRAME:
                told = writer.content_size
                self._loop.call_soon_threadsafe(progress, Progress("restore", writer.members, 0, told, 0))
        for path in sorted(wanted.unseen()):
            raise MemberNotFound(path, self.snapshot.id)

    def _decompressed(self, stream: AsyncGenerator[bytes, None]) -> Decompressed:
        async def pull() -> bytes:
            return await anext(stream, b"")

        def read() -> bytes:
            if self._stop.is_set():
                raise Stopped
            return asyncio.run_coroutine_threadsafe(pull(), self._loop).result()

        return Decompressed(read)


def _next(batches: Iterator[list[Member]]) -> list[Member]:
    return next(batches, [])


def _next_piece(pieces: Iterator[bytes]) -> bytes:
    return next(pieces, b"")
