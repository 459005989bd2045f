"""What a store answers from its index alone, and how the index is kept equal to the store."""

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta

import msgspec

from snapstore.engine import salvage
from snapstore.engine.arguments import check_count, check_duration, strings
from snapstore.engine.calls import one_call
from snapstore.engine.opened import OpenedStore
from snapstore.errors import InvalidInput, SnapshotNotFound
from snapstore.index.queries import Query
from snapstore.model import (
    CheckpointReport,
    Count,
    IndexStatus,
    Page,
    ProgressCallback,
    SalvageReport,
    Snapshot,
    SyncReport,
)
from snapstore.operation import reported

_PAGE = 200
MAX_PAGE = 10_000


class Listing(OpenedStore):
    """Snapshots, found and counted without a request; and the calls that ask the store, so that the index equals it."""

    @one_call
    async def get(self, snapshot_id: str) -> Snapshot:
        """The snapshot with this id, prefix of an id, or ``APP@latest``. SnapshotNotFound, AmbiguousId."""
        if not isinstance(snapshot_id, str):
            raise InvalidInput(f"{snapshot_id!r} is no snapshot's id: give a string, such as snapshot.id")
        app, at, name = snapshot_id.rpartition("@")
        if at and name == "latest":
            return await self.latest(app)
        found = await self._catalog.find(snapshot_id)
        if found is None:
            if (await self.page(apps=[snapshot_id], limit=1)).snapshots:
                raise SnapshotNotFound(
                    snapshot_id,
                    f"no snapshot {snapshot_id!r}, but an app of that name: its newest is {snapshot_id}@latest",
                )
            raise SnapshotNotFound(snapshot_id)
        return found

    @one_call
    async def latest(self, app: str, *, labels: Iterable[str] = ()) -> Snapshot:
        """The newest snapshot of an app that has all ``labels``. SnapshotNotFound where there is none."""
        page = await self.page(apps=[app], labels=labels, limit=1)
        if not page.snapshots:
            raise SnapshotNotFound(f"{app}@latest", await self._why_no_latest(app))
        return page.snapshots[0]

    async def _why_no_latest(self, app: str) -> str:
        if (await self.page(apps=[app], limit=1)).snapshots:
            return f"app {app!r} has no snapshot with all of these labels: `snapstore list {app}` shows what it has"
        return f"there are no snapshots of {app!r}: `snapstore apps` lists those that have some"

    async def list(
        self,
        *,
        apps: Iterable[str] = (),
        labels: Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        fresh: bool = False,
    ) -> AsyncGenerator[Snapshot, None]:
        """Snapshots, newest first, from the local index alone.

        Of any of ``apps``, with all ``labels`` (``key:value``, or ``key`` for any value), taken at ``since`` or later
        and before ``until``; at most ``limit``, going on from ``cursor``. With ``fresh``, the index is made equal to
        the store first (see `sync`). InvalidInput.
        """
        if limit is not None:
            check_count(limit, "limit", 0)
        query = _query(apps, labels, since, until)
        async with aclosing(self._calls.each(self._pages(query, limit, cursor, fresh))) as pages:
            async for page in pages:
                for snapshot in page.snapshots:
                    yield snapshot

    async def _pages(
        self, query: Query, left: int | None = None, cursor: str | None = None, fresh: bool = False
    ) -> AsyncGenerator[Page, None]:
        if fresh:
            await self.sync()
        while left is None or left > 0:
            page = await self._catalog.page(query, _PAGE if left is None else min(_PAGE, left), cursor)
            yield page
            if page.cursor is None:
                return
            cursor = page.cursor
            left = None if left is None else left - len(page.snapshots)

    @one_call
    async def page(
        self,
        *,
        apps: Iterable[str] = (),
        labels: Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
        fresh: bool = False,
    ) -> Page:
        """One page of what `list` gives, with the cursor of the next, which stays right while snapshots come and go."""
        check_count(limit, "limit", 1, MAX_PAGE)
        query = _query(apps, labels, since, until)
        if fresh:
            await self.sync()
        return await self._catalog.page(query, limit, cursor)

    async def apps(self) -> Sequence[Count]:
        """Every app with how many snapshots it has, by name; from the index alone."""
        return await self._calls.run(self._catalog.apps())

    async def labels(self, key: str | None = None) -> Sequence[Count]:
        """Every key of a label, or every label (``key:value``) of ``key``, and how many snapshots have it, by name."""
        return await self._calls.run(self._catalog.labels(key))

    async def index_status(self) -> IndexStatus:
        """How much is in the index, and how old that is."""
        return await self._calls.run(self._catalog.status())

    async def sync(self, *, recent: timedelta | None = None, progress: ProgressCallback | None = None) -> SyncReport:
        """Make the index equal to the store, which other nodes may have changed: reads what is new or changed only.

        It lists all metadata, a request for each thousand snapshots. With ``recent``, only those that were begun later
        than so long before the last sync (choose it longer than any upload takes): for services that sync every few
        seconds. Deletions and changes of older ones, and snapshots of the older system, are left to whole syncs.

        Tasks and processes that want a sync of an index at once share one.
        """
        if recent is not None:
            check_duration(recent, "recent")
            if recent < timedelta(0):
                raise InvalidInput(f"recent is a time before now, not {recent}")
        return await self._calls.run(self._syncing.sync(recent, progress))

    async def rebuild(self, *, archives: bool = True, progress: ProgressCallback | None = None) -> SyncReport:
        """Read the store's metadata into a new index, which takes the old one's place when it is complete.

        The old one is read and changed meanwhile. One that is interrupted is gone on with by the next. Where many
        snapshots stand in no checkpoint afterwards, one is written, if the credentials allow it. With ``archives``,
        these are listed too, and what has no metadata, or metadata without an archive, is among the report's problems.
        """
        return await self._calls.run(self._syncing.rebuild(archives, progress))

    async def salvage(self, *, apply: bool = False, progress: ProgressCallback | None = None) -> SalvageReport:
        """Find archives whose metadata is lost, and with ``apply`` write it anew from what they say of themselves.

        Labels are as they were when the snapshots were made. A snapshot whose deletion was cut off half-way would come
        back too: so look first at what would. Archives younger than an hour are left out, as theirs may be coming.
        """
        return await self._calls.run(reported("salvage", lambda: self._salvage(apply, progress)))

    async def _salvage(self, apply: bool, progress: ProgressCallback | None) -> SalvageReport:
        started = time.monotonic()
        await self._syncing.sync(None, progress)
        report = await salvage.salvage(self._store, self._catalog, self._limits, apply=apply, progress=progress)
        if apply:
            await self._syncing.sync(None, None)  # what another one has brought back at the same time
        return msgspec.structs.replace(report, seconds=time.monotonic() - started)

    async def checkpoint(self, *, progress: ProgressCallback | None = None) -> CheckpointReport:
        """Sync, then write checkpoints into the store: copies of metadata from which an index is rebuilt quickly.

        Snapshots that stand in one already are left alone; superseded ones are removed after a day.
        """
        return await self._calls.run(self._syncing.checkpoint(progress))


def _query(apps: Iterable[str], labels: Iterable[str], since: datetime | None, until: datetime | None) -> Query:
    """Made once for all pages of a listing: an iterator can be read once."""
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and (not isinstance(moment, datetime) or moment.utcoffset() is None):
            raise InvalidInput(
                f"{name} is a datetime with a time zone, as in datetime.now(timezone.utc), not {moment!r}"
            )
    if since is not None and until is not None and since > until:
        raise InvalidInput("`since` is later than `until`: exchange them")
    return Query(tuple(strings(apps, "apps")), tuple(strings(labels, "labels")), since, until)
