"""The archives in a bucket, laid beside the index: those without metadata, and metadata without them.

The older system leaves both, and ours an archive without metadata where a create or a delete was killed half-way. None
of them keeps the rest from being listed.
"""

import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import aclosing, closing
from typing import NamedTuple

from snapstore import keys
from snapstore.aio import run_all
from snapstore.errors import ObjectNotFound
from snapstore.index import damage, file
from snapstore.index.catalog import Catalog
from snapstore.index.walk import PAGE
from snapstore.model import Progress, ProgressCallback, Snapshot
from snapstore.objectstore import ObjectInfo, ObjectStore

GRACE = 3600.0
"""Seconds for which an archive may be without metadata: its snapshot is being made."""
_TOLD = 1000
_AT_ONCE = 32
_OURS = (keys.CHECKPOINT_PREFIX, keys.METADATA_PREFIX)


class Archive(NamedTuple):
    """An object whose name is that of an archive."""

    id: bytes
    info: ObjectInfo


class Archives:
    """What `collect` has found in a bucket."""

    def __init__(self, store: ObjectStore, catalog: Catalog, *, every: bool = False) -> None:
        """``every``: all without metadata are found, not only so many as are told of."""
        self._store = store
        self._catalog = catalog
        self._every = every
        self.unlisted: list[Archive] = []
        """Those of snapshots that the index does not have, `GRACE` old or older."""
        self.recent = 0
        """How many of those are younger."""
        self.oddly_named: list[str] = []
        self._strays = 0
        """Objects that are nothing of ours."""
        self._stray = ""
        """The name of one of them."""
        self._listed = 0
        self._progress: ProgressCallback | None = None
        self._seen = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        """Ids; a million of them take 30 MB here, and three times as much in a set."""
        self._seen.execute("CREATE TABLE archived (id BLOB PRIMARY KEY) WITHOUT ROWID")

    def close(self) -> None:
        self._seen.close()

    async def collect(self, progress: ProgressCallback | None) -> None:
        """List all that is in the bucket, but for what is ours below ``_``."""
        self._progress = progress
        edges = await self._edges()
        spans = zip(["", *edges], [*edges, None], strict=True)
        await run_all((self._list(after, upto) for after, upto in spans), at_once=self._store.listings)

    async def _edges(self) -> Sequence[str]:
        """Keys that cut the bucket into parts of about one size, for as many listings at once."""
        if self._store.listings == 1:
            return []
        # By what archives' names begin with: the colon comes after some of what an app's name may go on with.
        counts = sorted((f"{keys.encode(count.name)}:", count.snapshots) for count in await self._catalog.apps())
        step = max(PAGE, -(-sum(count for _, count in counts) // self._store.listings))
        edges, passed = [], 0
        for name, count in counts:
            if passed + count >= step:
                edges.append(name)
                passed = 0
            passed += count
        return edges

    async def _list(self, after: str, upto: str | None) -> None:
        start: str | None = after
        while start is not None:
            start = await self._list_until_ours(start, upto)

    async def _list_until_ours(self, after: str, upto: str | None) -> str | None:
        """List up to what is not archives, and return after what to go on; None at the end."""
        async with aclosing(self._store.list(start_after=after)) as pages:
            async for page in pages:
                inside = [info for info in page if upto is None or info.key <= upto]
                await self._take([info for info in inside if not info.key.startswith(_OURS)])
                if len(inside) < len(page):
                    return None
                for prefix in _OURS:
                    if page and page[-1].key.startswith(prefix):
                        return prefix[:-1] + "0"  # which follows the slash
        return None

    async def _take(self, listed: Sequence[ObjectInfo]) -> None:
        found = []
        for info in listed:
            if archive := archive_of(info):
                found.append(archive)
            else:
                self._strays += 1
                self._stray = info.key
        await self._compare(found)
        self._listed += len(listed)
        if self._progress is not None:
            self._progress(Progress("archives", self._listed, 0, 0, 0))

    async def _compare(self, found: Sequence[Archive]) -> None:
        known = await self._catalog.those_read({archive.id for archive in found})
        limit = time.time() - GRACE
        for archive in found:
            parts = archive.info.key.count(":") + 1
            if parts != 4 and len(self.oddly_named) < _TOLD:
                self.oddly_named.append(
                    f"{archive.info.key}: its name has {parts} parts, not four (the older system writes the colons of"
                    " apps' and labels' names into it), so that system does not find it"
                )
            if archive.id in known:
                continue
            if archive.info.modified >= limit:
                self.recent += 1
            elif self._every or len(self.unlisted) < _TOLD:
                self.unlisted.append(archive)
        await self._catalog.workers.run(self._remember, found)

    def _remember(self, found: Iterable[Archive]) -> None:
        self._seen.executemany("INSERT OR IGNORE INTO archived VALUES (?)", [(archive.id,) for archive in found])

    async def problems(self) -> Sequence[str]:
        """What does not belong together, a sentence each; all of it asked for once more in the bucket."""
        orphans = [
            f"{archive.info.key}: an archive without metadata, which no listing shows: `snapstore index rebuild"
            " --from-archives` shows whether its snapshot can be brought back"
            for archive in await self.without_metadata()
        ]
        strays = [_strays(self._strays, self._stray)] if self._strays else []
        return [*self.oddly_named, *strays, *orphans, *await self._without_archive()]

    async def without_metadata(self) -> Sequence[Archive]:
        found: list[Archive] = []

        async def ask(archive: Archive) -> None:
            try:
                await self._store.head(keys.metadata_key(keys.id_text(archive.id)))
            except ObjectNotFound:
                found.append(archive)

        await run_all((ask(archive) for archive in self.unlisted), at_once=_AT_ONCE)
        return sorted(found, key=lambda archive: archive.info.key)

    async def _without_archive(self) -> Sequence[str]:
        found: list[str] = []

        async def ask(snapshot_id: bytes) -> None:
            snapshot = await self._catalog.find(keys.id_text(snapshot_id))
            if snapshot is not None and not await self._is_there(snapshot):
                key = keys.metadata_key(snapshot.id)
                found.append(
                    f"{key}: the archive of this snapshot is not in the store: it cannot be restored, and `snapstore"
                    " delete` removes it"
                )

        missing = await self._catalog.workers.run(self._missing)
        await run_all((ask(snapshot_id) for snapshot_id in missing), at_once=_AT_ONCE)
        return sorted(found)

    def _missing(self) -> Sequence[bytes]:
        path = self._catalog.path
        found = []
        try:
            with closing(file.connect(path)) as index:
                for (snapshot_id,) in index.execute("SELECT id FROM snapshot ORDER BY id"):
                    if not self._seen.execute("SELECT 1 FROM archived WHERE id = ?", [snapshot_id]).fetchone():
                        found.append(snapshot_id)
                    if len(found) == _TOLD:
                        break
        except damage.ERRORS as error:
            raise damage.unusable(path, error) from error
        return found

    async def _is_there(self, snapshot: Snapshot) -> bool:
        """Whether both its objects are; one that was deleted meanwhile is no problem either."""
        try:
            if snapshot.key is not None:
                await self._store.head(snapshot.key)
                return True
            async for page in self._store.list(keys.older_archive_prefix(snapshot.app, snapshot.id)):
                if page:
                    return True
        except ObjectNotFound:
            pass
        try:
            await self._store.head(keys.metadata_key(snapshot.id))
        except ObjectNotFound:
            return True
        return False


def archive_of(info: ObjectInfo) -> Archive | None:
    """An archive's id is the second part of its name; where a name was written with colons in it, a later one."""
    parts = [] if info.key.startswith("_") else info.key.split(":")
    for part in parts[1:-1]:
        if keys.canonical_id(part) == part:
            return Archive(keys.id_bytes(part), info)
    return None


def _strays(count: int, example: str) -> str:
    if count == 1:
        return f"{example}: it is nothing of snapstore's, and left alone"
    return f"{example} and {count - 1:,} more: they are nothing of snapstore's, and left alone"
