"""Reading archives that others made: streamed from the beginning, parsed in a thread.

The thread asks the event loop for each next piece and waits for it; the loop never waits for the thread.
"""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

from snapstore.aio import Stopped, Workers
from snapstore.archive import foreign
from snapstore.archive.exclude import Excludes
from snapstore.archive.extract import TreeWriter
from snapstore.archive.foreign import Decompressed
from snapstore.archive.frames import FRAME
from snapstore.archive.names import clean_path, to_text
from snapstore.archive.restore import RestoreOptions
from snapstore.archive.select import EVERYTHING, Choice, choose
from snapstore.engine.file import Found
from snapstore.engine.limits import Limits
from snapstore.engine.restoring import report, restoring
from snapstore.engine.telling import told_from_thread
from snapstore.errors import ArchiveDamaged, MemberNotFound, PreconditionFailed
from snapstore.model import Member, MemberType, Progress, ProgressCallback, RestoreReport, Snapshot
from snapstore.objectstore import ObjectStore

P = ParamSpec("P")
T = TypeVar("T")

_MEMORY = 32 << 20
"""Of a stream's buffers: zstd's window (8 MiB for its usual levels), and a few pieces of 1 MiB."""
_MEMBERS_A_STEP = 256
_PIECE = 1 << 20


class _HardLink(Exception):
    """What is wanted is another name of the file ``target``."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.target = target


class _Stop(threading.Event):
    """Tells the thread to end; set by the loop, which then also gives up the piece that the thread waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.pulling: asyncio.Task[bytes] | None = None

    def set(self) -> None:
        super().set()
        if self.pulling is not None:
            self.pulling.cancel()


class _Stream(NamedTuple):
    """An archive's raw bytes, and the threads that read them."""

    raw: Decompressed
    threads: Workers
    stop: _Stop

    async def run(self, job: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.threads.run_stoppable(self.stop, job, *args, **kwargs)


class ForeignReader:
    """Reads one snapshot's archive, without a table of contents."""

    def __init__(self, store: ObjectStore, limits: Limits, snapshot: Snapshot) -> None:
        assert snapshot.key is not None
        self._store = store
        self._limits = limits
        self.snapshot = snapshot
        self._key = snapshot.key
        self._loop = asyncio.get_running_loop()
        self._etag: str | None = None

    async def members(self) -> AsyncGenerator[Member, None]:
        async with self._stream() as stream:
            listed = _listed(stream.raw)
            while batch := await stream.run(_next, listed):
                for member in batch:
                    yield member

    async def find(self, path: str) -> Found:
        """The file ``path``, or the one that it is a hard link to: it stands before it, so that takes a second pass."""
        wanted = clean_path(path)
        for _ in range(2):
            found = None
            async with aclosing(self.members()) as members:
                async for member in members:
                    found = member if member.path == wanted else found
            if found is None or found.type not in ("f", "h"):
                break
            if found.type == "f":
                return Found(found, partial(self.read, found.path))
            wanted = found.link
        raise MemberNotFound(path, self.snapshot.id)

    async def read(self, path: str, start: int, size: int | None) -> AsyncGenerator[bytes, None]:
        """A file's content from ``start``, in pieces of up to 1 MiB."""
        wanted = clean_path(path)
        for _ in range(2):
            async with self._stream() as stream:
                pieces = _content(stream.raw, wanted, start, size)
                try:
                    while piece := await stream.run(_next_piece, pieces):
                        yield piece
                    return
                except _HardLink as link:
                    # Its content stands with its first name, which the stream has passed by then: once more.
                    wanted = link.target
                except LookupError:
                    raise MemberNotFound(path, self.snapshot.id) from None
                except ValueError:
                    raise MemberNotFound(path, self.snapshot.id, f"{path!r} is no file: it has no content") from None
        raise MemberNotFound(path, self.snapshot.id)

    async def restore(self, options: RestoreOptions, progress: ProgressCallback | None) -> RestoreReport:
        started = time.monotonic()
        excludes = Excludes(options.exclude)
        async with restoring(self._limits, options, _MEMORY) as restoration:
            choice = EVERYTHING
            if restoration.target.merges or not options.all:
                # By a pass of its own: what a hard link means, and whether a path is there, is known only at the end.
                async with self._stream() as stream:
                    kinds = await stream.run(_kinds, stream.raw)
                if not options.all:
                    choice = await self._limits.compute.run(
                        choose, kinds, self.snapshot.id, paths=options.paths, excludes=excludes, drop=options.drop
                    )
                wanted = ((path, kind) for path, (kind, _) in kinds.items() if path in choice)
                await self._limits.files.run(restoration.check_conflicts, wanted)
            with told_from_thread(progress) as tell:
                async with self._stream() as stream:
                    await stream.run(_unpack, stream.raw, restoration.writer, choice, tell)
        return report(restoration, self.snapshot, started)

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator["_Stream"]:
        """The raw bytes of the archive, for a thread to read; always of the version that was met first."""
        stop = _Stop()
        if self._etag is None:
            self._etag = (await self._store.head(self._key)).etag
        async with aclosing(self._store.stream(self._key, if_match=self._etag)) as body:

            async def pull() -> bytes:
                if stop.is_set():
                    raise Stopped
                stop.pulling = asyncio.current_task()
                try:
                    return await anext(body, b"")
                except PreconditionFailed as error:
                    raise ArchiveDamaged(f"{self._key!r} was replaced while it was read") from error
                finally:
                    stop.pulling = None

            def read() -> bytes:
                try:
                    return asyncio.run_coroutine_threadsafe(pull(), self._loop).result()
                except concurrent.futures.CancelledError:
                    raise Stopped from None

            yield _Stream(Decompressed(read), self._limits.parsers, stop)


def _unpack(raw: Decompressed, writer: TreeWriter, choice: Choice, tell: ProgressCallback | None) -> None:
    told = 0
    for member in foreign.read_members(raw):
        if to_text(member.header.path) not in choice:
            continue
        foreign.write(member._replace(header=choice.renamed(member.header)), writer)
        if tell is not None and writer.content_size - told >= FRAME:
            told = writer.content_size
            tell(Progress("restore", writer.members, 0, told, 0))


def _listed(raw: Decompressed) -> Iterator[list[Member]]:
    batch: list[Member] = []
    for member in foreign.read_members(raw):
        batch.append(foreign.as_listed(member.header))
        if len(batch) == _MEMBERS_A_STEP:
            yield batch
            batch = []
    yield batch


def _kinds(raw: Decompressed) -> dict[str, tuple[MemberType, str]]:
    headers = (member.header for member in foreign.read_members(raw))
    return {to_text(header.path): (header.type, to_text(header.link)) for header in headers}


def _content(raw: Decompressed, path: str, start: int, size: int | None) -> Iterator[bytes]:
    """A file's content. _HardLink for another name of a file; LookupError, ValueError for what is none, or no file."""
    for member in foreign.read_members(raw):
        if to_text(member.header.path) != path:
            continue
        if member.header.type == "h":
            raise _HardLink(to_text(member.header.link))
        if member.content is None:
            raise ValueError(path)
        end = member.header.size if size is None else min(member.header.size, start + size)
        position = 0
        while piece := foreign.read_piece(member.content, min(_PIECE, end - position)):
            if position + len(piece) > start:
                yield piece[max(0, start - position) :]
            position += len(piece)
        return
    raise LookupError(path)


def _next(batches: Iterator[list[Member]]) -> list[Member]:
    return next(batches, [])


def _next_piece(pieces: Iterator[bytes]) -> bytes:
    return next(pieces, b"")
