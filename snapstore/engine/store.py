"""`SnapStore`: the one class that users hold. It checks what is asked for, finds the snapshot, hands on the work."""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from snapstore import keys
from snapstore.aio import completed, run_all
from snapstore.archive.attributes import Policy
from snapstore.archive.exclude import Excludes
from snapstore.archive.frames import LEVEL
from snapstore.archive.restore import RestoreOptions
from snapstore.engine import objects
from snapstore.engine.arguments import app_folder, check_count, check_duration, strings
from snapstore.engine.calls import one_call
from snapstore.engine.file import SnapshotFile, check_part
from snapstore.engine.foreign import ForeignReader
from snapstore.engine.listing import Listing
from snapstore.engine.reader import ArchiveReader
from snapstore.engine.writer import Request, SnapshotWriter
from snapstore.errors import (
    ArchiveError,
    InvalidInput,
    ObjectNotFound,
    SnapshotNotFound,
    UnsupportedFormat,
)
from snapstore.index.queries import Query
from snapstore.model import (
    FORMAT,
    Caps,
    Existing,
    Member,
    OnError,
    ProgressCallback,
    RestoreReport,
    Snapshot,
    SnapshotReport,
)
from snapstore.operation import counted, operation, reported
from snapstore.storage.urls import local_path

T = TypeVar("T")
Reader = ArchiveReader | ForeignReader

_DELETES_AT_ONCE = 8
_UNFIT_IN_NAMES = re.compile(r"[/\x00-\x1f\x7f-\x9f]")
"""Slashes, which an app's name may hold, and control characters."""


class SnapStore(Listing):
    """Snapshots in one object store, listed from one local index.

    Made by `open`, and used as an async context manager (or awaited, and closed by `aclose`). One instance serves any
    number of tasks at once. Wherever a snapshot's id is asked for, an unambiguous prefix of it does, and so does
    ``APP@latest``; SnapshotNotFound and AmbiguousId where there is no such one.

    Besides what each call names, all may raise StorageError, CatalogError (CatalogBusy among them) and StoreClosed.
    """

    async def create(
        self,
        app: str,
        folder: str | os.PathLike[str] | None = None,
        *,
        labels: Iterable[str] = (),
        exclude: Iterable[str] = (),
        on_error: OnError = "fail",
        level: int = LEVEL,
        progress: ProgressCallback | None = None,
    ) -> SnapshotReport:
        """Take a snapshot of ``folder`` (default: the app's, below ``apps``), and return it with how it went.

        ``labels`` are ``key:value`` strings. ``exclude`` takes patterns in gitignore syntax, after those of the
        folder's own ``.snapignore``. With ``on_error="fail"`` a member that vanished or cannot be read raises
        SourceUnreadable; with ``"skip"`` it is left out and reported. ``level`` is zstd's, 1 to 19.

        When this raises, cancellation included, no snapshot was made. Only where the store did not answer at the very
        end may a whole one appear in it all the same, or an archive without metadata stay, which `rebuild` names; that
        is logged.

        Raises InvalidInput, SourceNotFound, SourceUnreadable.
        """
        if on_error not in ("fail", "skip"):
            raise InvalidInput(f"on_error is 'fail' or 'skip', not {on_error!r}")
        check_count(level, "level", 1, 19)
        request = Request(
            app=keys.check_app(app),
            folder=os.fspath(folder) if folder is not None else app_folder(self._apps, app),
            labels=tuple(dict.fromkeys(keys.check_label(label) for label in strings(labels, "labels"))),
            exclude=tuple(strings(exclude, "exclude")),
            on_error=on_error,
            level=level,
            progress=progress,
        )
        Excludes(request.exclude)  # a pattern that cannot be understood is found before anything is done
        writer = SnapshotWriter(self._store, self._catalog, self._limits, self._index_label, request)
        about = {"app": request.app, "snapshot_id": writer.id}

        async def undo() -> None:
            with operation("undo", **about):
                await writer.undo()

        return await self._calls.run(reported("create", writer.write, **about), undo=undo)

    @one_call
    async def file(self, snapshot_id: str, path: str) -> SnapshotFile:
        """The file ``path`` of a snapshot, to look at and to read; a hard link is followed.

        For whoever needs its size before its content, or several parts of it, as the archive's table of contents is
        asked for once. Raises MemberNotFound (also for what has no content), ArchiveError.
        """
        calls, reader = self._calls, await self._reader(await self.get(snapshot_id))
        snapshot = reader.snapshot
        async with self._explaining(snapshot):
            with operation("file", snapshot.app, snapshot.id):
                found = await reader.find(path)

        def content(start: int, size: int | None) -> AsyncGenerator[bytes, None]:
            return calls.each(self._counted("read", snapshot, found.content(start, size)))

        return SnapshotFile(found.member, content)

    def members(self, snapshot_id: str) -> AsyncGenerator[Member, None]:
        """What is in a snapshot, in the archive's order: files first, folders last. ArchiveError."""
        return self._calls.each(self._given("members", snapshot_id, lambda reader: reader.members()))

    def read(
        self, snapshot_id: str, path: str, *, start: int = 0, size: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """One file's content in pieces, or ``size`` bytes of it from ``start``; a hard link is followed.

        ``start`` and ``size`` are bytes. Raises InvalidInput, MemberNotFound (also for what has no content),
        ArchiveError.
        """
        check_part(start, size)
        return self._calls.each(self._given("read", snapshot_id, lambda reader: reader.read(path, start, size)))

    async def _given(
        self, name: str, snapshot_id: str, items: Callable[[Reader], AsyncGenerator[T, None]]
    ) -> AsyncGenerator[T, None]:
        """What a reader of the snapshot gives."""
        reader = await self._reader(await self.get(snapshot_id))
        async with aclosing(self._counted(name, reader.snapshot, items(reader))) as found:
            async for item in found:
                yield item

    async def _counted(self, name: str, snapshot: Snapshot, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """``items`` as an operation, whose errors say which archive they are about."""
        async with self._explaining(snapshot), aclosing(counted(name, snapshot.app, snapshot.id, items)) as found:
            async for item in found:
                yield item

    @one_call
    async def restore(
        self,
        snapshot_id: str,
        target: str | os.PathLike[str] | None = None,
        *,
        app: str | None = None,
        paths: Iterable[str] = (),
        exclude: Iterable[str] = (),
        drop: Iterable[str] = (),
        existing: Existing = "refuse",
        owner: bool | None = None,
        trusted: bool = False,
        caps: Caps | None = None,
        progress: ProgressCallback | None = None,
    ) -> RestoreReport:
        """Unpack a snapshot into ``target``, or into the folder of ``app`` below ``apps`` (default: its own app's).

        ``paths`` restores only these members and what is in them; ``exclude`` leaves out by gitignore patterns;
        ``drop`` names members (folders with all that is in them) that shall not be there afterwards. ``existing`` says
        what to do where the target holds something: ``"refuse"`` (TargetNotEmpty), ``"merge"`` (files are replaced one
        by one, others stay), or ``"replace"`` (unpacked beside it and exchanged). ``owner`` sets user and group ids
        (default: as root only). ``trusted`` allows devices, setuid and setgid bits and ``security.*`` attributes.

        When this raises, a target that was missing or empty is so again, one to replace is untouched, and in a merge
        each file is the old or the new one; but a cancellation that comes when all is in its place already comes out as
        well. Restores of one target come one after the other.

        Raises InvalidInput, MemberNotFound, Conflict and its kinds, TargetUnwritable, ArchiveError.
        """
        if existing not in ("refuse", "merge", "replace"):
            raise InvalidInput(f"existing is 'refuse', 'merge' or 'replace', not {existing!r}")
        if target is not None and app is not None:
            raise InvalidInput("give a target or an app to restore into, not both")
        snapshot = await self.get(snapshot_id)
        options = RestoreOptions(
            target=os.fspath(target)
            if target is not None
            else await self._app_target(snapshot.app if app is None else app),
            paths=tuple(strings(paths, "paths")),
            exclude=tuple(strings(exclude, "exclude")),
            drop=tuple(strings(drop, "drop")),
            existing=existing,
            policy=Policy(owner=os.geteuid() == 0 if owner is None else owner, trusted=trusted),
            caps=caps or Caps(),
            keep=(self._catalog.path, *(path for path in [local_path(self._store.url)] if path)),
        )
        reader = await self._reader(snapshot)
        async with self._explaining(reader.snapshot):
            work = partial(reader.restore, options, progress)
            return await reported("restore", work, app=snapshot.app, snapshot_id=snapshot.id)

    async def _app_target(self, app: str) -> str:
        """An app's folder, which a restore makes where it is missing; but never the folder of all of them."""
        folder = app_folder(self._apps, app)
        if not await self._limits.files.run(os.path.isdir, self._apps or ""):
            raise InvalidInput(
                f"the folder of the applications, {self._apps}, is not there: check its name, or make it"
            )
        return folder

    @one_call
    async def download_url(self, snapshot_id: str, *, expires: timedelta = timedelta(hours=1)) -> str:
        """A link to the archive, a plain ``.tar.zst``. A folder store gives ``file:///…``, which does not expire.

        On S3, InvalidInput for less than a second or more than 7 days, and where readers need a key or have to pay.
        """
        check_duration(expires, "expires")
        snapshot = await self._with_key(await self.get(snapshot_id))
        assert snapshot.key is not None
        name = f"{_UNFIT_IN_NAMES.sub('_', snapshot.app)}-{snapshot.created_at:%Y%m%dT%H%M%SZ}.tar.zst"
        return await self._store.download_url(snapshot.key, expires=expires, filename=name)

    @one_call
    async def relabel(
        self,
        snapshot_id: str,
        *,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        replace: Iterable[str] | None = None,
    ) -> Snapshot:
        """Change a snapshot's labels, and return it as it is then.

        ``replace`` takes the place of all that it has; ``remove`` takes whole labels (``key:value``) or keys (all
        labels of that key) from it; then ``add`` is added. Nodes that do this at the same time do not undo each other's
        work where the store knows conditional writes; elsewhere the last one wins. The archive's key keeps the value
        that it was made with. Raises InvalidInput, SnapshotNotFound, MetadataInvalid, PreconditionFailed.
        """
        added = [keys.check_label(label) for label in strings(add, "add")]
        removed = list(strings(remove, "remove"))
        others = None if replace is None else [keys.check_label(label) for label in strings(replace, "replace")]
        snapshot = await self.get(snapshot_id)
        if snapshot.format > FORMAT:
            raise UnsupportedFormat(snapshot.id, snapshot.format, FORMAT)

        def change(labels: Sequence[str]) -> Sequence[str]:
            return objects.changed_labels(labels, added, removed, others)

        work = partial(objects.relabel, self._store, self._catalog, snapshot, change)
        return await self._in_turn("relabel", snapshot, work)

    @one_call
    async def delete(self, snapshot_id: str) -> Snapshot:
        """Delete a snapshot, and return what it was.

        Where only its archive cannot be removed, this raises, but the snapshot is gone: `rebuild` names the archive.
        """
        snapshot = await self.get(snapshot_id)
        await self._delete(snapshot)
        return snapshot

    @one_call
    async def delete_app(self, app: str) -> Sequence[Snapshot]:
        """Delete all snapshots of an app, and return them."""
        query = Query(tuple(strings([app], "apps")))
        snapshots = [snapshot async for page in self._pages(query) for snapshot in page.snapshots]
        await run_all((self._delete(snapshot) for snapshot in snapshots), at_once=_DELETES_AT_ONCE)
        return snapshots

    async def _delete(self, snapshot: Snapshot) -> None:
        try:
            key = (await self._with_key(snapshot)).key
        except SnapshotNotFound:
            key = None  # the older system left metadata without an archive
        work = partial(objects.delete, self._store, self._catalog, snapshot, key)
        await self._in_turn("delete", snapshot, work)

    async def _in_turn(self, name: str, snapshot: Snapshot, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One change of a snapshot at a time: else an answer that comes late writes an older state into the index.

        A change that has begun ends by itself when it is cancelled, its update of the index included, if the store
        answers soon enough. Otherwise nobody knows what the store has done, and the next sync finds out.
        """
        async with self._changing.setdefault(snapshot.id, asyncio.Lock()):
            with operation(name, snapshot.app, snapshot.id):
                return await completed(change())

    async def _reader(self, snapshot: Snapshot) -> Reader:
        if snapshot.format > FORMAT:
            raise UnsupportedFormat(snapshot.id, snapshot.format, FORMAT)
        snapshot = await self._with_key(snapshot)
        if snapshot.toc is None:
            return ForeignReader(self._store, self._limits, snapshot)
        return ArchiveReader(self._store, self._limits, snapshot, self._reading)

    @asynccontextmanager
    async def _explaining(self, snapshot: Snapshot) -> AsyncIterator[None]:
        """Says which archive an error is about. A snapshot that another node has deleted is dropped from the index:
        SnapshotNotFound."""
        try:
            yield
        except ArchiveError as error:
            error.key = error.key or snapshot.key
            raise
        except ObjectNotFound as error:
            raise await objects.without_archive(self._store, self._catalog, snapshot) from error

    async def _with_key(self, snapshot: Snapshot) -> Snapshot:
        return await objects.with_key(self._store, self._catalog, snapshot)
