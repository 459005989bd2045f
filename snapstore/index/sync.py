"""Make the catalog equal to the bucket: list ``_metadata/``, compare ETags, read what is new or changed.

Listings come in the order of ids, and so do the catalog's rows: piece by piece both are laid side by side, and nothing
is kept of either. What was read is committed piece by piece, so a sync that is interrupted is not repeated.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from snapstore import metadata
from snapstore.aio import run_all, uninterrupted
from snapstore.errors import CatalogError, MetadataInvalid, ObjectNotFound
from snapstore.index import checkpoints, file, replacement, rows
from snapstore.index.catalog import Catalog
from snapstore.index.database import Database
from snapstore.index.mirror import Known, Mirror, Problem, misnaming
from snapstore.index.rows import Row
from snapstore.index.walk import PAGE, Span, id_of, spans, walk
from snapstore.keys import first_id, metadata_key
from snapstore.model import Progress, ProgressCallback, SyncReport
from snapstore.objectstore import ObjectInfo, ObjectStore

log = logging.getLogger("snapstore")

_AT_ONCE = 32
_COMMITTED = 250
"""Snapshots that are read and then written in one transaction: calls that change the index wait for it."""
_LARGEST = 4 << 20
"""Bytes of an object beyond which it is no metadata: labels take a few hundred, and many are read at once."""
_LOOKS = 8
"""How often snapshots are read again that change while we read them; the next sync reads those that still do."""
_TOLD = 1000
_CLOCKS = timedelta(days=1)
"""By how much the clock of another node, whose ids these are, may be ahead of ours."""


async def sync(
    store: ObjectStore,
    catalog: Catalog,
    progress: ProgressCallback | None = None,
    *,
    recent: timedelta | None = None,
) -> SyncReport:
    """Bring the catalog up to date with the bucket. Readers see each piece when it is done.

    With ``recent``, only snapshots are looked at that were begun later than that before the last sync of either kind.
    The caller holds the index's lock.
    """
    began = datetime.now(UTC)
    mirror = catalog.mirror
    over, since = await _over(store, mirror, began, recent)
    async with _noting(mirror):
        walked = _Walk(store, mirror, progress)
        await walk(store, over, walked.compare)
        await walked.look_again()
        # A call's row may come long after the call changed the bucket: when we and others had been there since.
        late = _Walk(store, mirror, None)
        await late.read_again(await mirror.noted())
        await late.look_again()
        if since is None:
            await mirror.finish(began, walked.misnamed)
        else:
            await mirror.finish_recent(began)
    return await walked.report()


async def nothing_done(catalog: Catalog) -> SyncReport:
    """The report of a sync that another has made needless."""
    mirror = catalog.mirror
    return SyncReport(
        snapshots=await mirror.count(), read=0, removed=0, problems=tuple(await mirror.problems(_TOLD)), seconds=0.0
    )


async def _over(
    store: ObjectStore, mirror: Mirror, now: datetime, recent: timedelta | None
) -> tuple[Sequence[Span], datetime | None]:
    """What to walk over, and since when that is; None for all."""
    last = await mirror.last(whole=False)
    if recent is not None and last is not None:
        since = min(last, now) - recent
        return [Span(first_id(since), first_id(now + _CLOCKS))], since
    pages = -(-(await mirror.count()) // PAGE)
    each = max(2, -(-pages // store.listings))  # whole pages, so that no listing has to be asked for more than it needs
    return spans(await mirror.cuts(each * PAGE) if store.listings > 1 else ()), None


async def _fill(store: ObjectStore, catalog: Catalog, progress: ProgressCallback | None = None) -> SyncReport:
    """Fill a catalog that is ours alone. What an earlier attempt has brought into it is not fetched again."""
    began = datetime.now(UTC)
    mirror = catalog.mirror
    async with _noting(mirror):
        await checkpoints.load(store, catalog, progress)
        over, _ = await _over(store, mirror, began, None)
        walked = _Walk(store, mirror, progress, certain=True)
        await walk(store, over, walked.compare)
        await mirror.finish(began, walked.misnamed)
    return msgspec.structs.replace(await walked.report(), from_checkpoints=await mirror.covered())


async def rebuild(store: ObjectStore, catalog: Catalog, progress: ProgressCallback | None = None) -> SyncReport:
    """Read the whole bucket into a new index, and put it in the place of the catalog's, which is read meanwhile.

    One that was interrupted is gone on with, as long as nothing stands in the way. The caller holds the index's lock.
    """
    started = time.monotonic()
    mirror = catalog.mirror
    async with _noting(mirror):
        beside = await _open_beside(catalog)
        try:
            report = await _fill(store, beside, progress)
        finally:
            await uninterrupted(beside.aclose())
        await catalog.workers.run(replacement.replace, catalog.path, beside.path, mirror.check)
        catalog.database.complete = True
        await catalog.workers.run(file.remove, beside.path)
        walked = _Walk(store, mirror, progress)
        await walked.read_again(await mirror.noted())
        await walked.look_again()
    changed = await walked.report()
    return SyncReport(
        snapshots=await mirror.count(),
        read=report.read + changed.read,
        removed=changed.removed,
        problems=changed.problems,
        seconds=time.monotonic() - started,
        from_checkpoints=report.from_checkpoints,
    )


async def _open_beside(catalog: Catalog) -> Catalog:
    path = f"{catalog.path}-rebuild"
    await catalog.workers.run(file.prepare_aside, path, catalog.store_url)
    beside = Catalog(Database(path), catalog.workers, catalog.store_url)
    beside.mirror.logged = catalog.mirror.logged
    beside.mirror.pace = catalog.mirror.pace  # it is the old one that is read meanwhile
    return beside


@asynccontextmanager
async def _noting(mirror: Mirror) -> AsyncIterator[None]:
    await mirror.begin()
    try:
        yield
    except BaseException:
        # An error here matters less than what brought us here: the next sync begins by forgetting what was noted.
        with suppress(CatalogError):
            await uninterrupted(mirror.end())
        raise
    await uninterrupted(mirror.end())


class _Walk:
    """One walk over the bucket: what it does with each piece, and its counts."""

    def __init__(
        self,
        store: ObjectStore,
        mirror: Mirror,
        progress: ProgressCallback | None,
        *,
        certain: bool = False,
    ) -> None:
        """``certain``: a row that is not listed is gone, without asking, since nobody else adds rows."""
        self._store = store
        self._mirror = mirror
        self._progress = progress
        self._certain = certain
        self._reading = asyncio.Semaphore(_AT_ONCE)
        self._started = time.monotonic()
        self.misnamed: list[str] = []
        """Keys of objects that are no metadata at all, by their names."""
        self._changed: set[bytes] = set()
        self._snapshots = self._read = self._removed = 0

    async def compare(self, span: Span, listed: Sequence[ObjectInfo]) -> None:
        """What the bucket has, and what the catalog has, of one span."""
        found = self._named(listed)
        after: bytes | None = span.after
        while after is not None:
            await self._mirror.pace.step()
            known = await self._mirror.known(after, span.upto)
            await self._compare(known, _between(found, after, known.upto))
            after = known.upto

    async def _compare(self, known: Known, found: Mapping[bytes, ObjectInfo]) -> None:
        wanted = [snapshot_id for snapshot_id, info in found.items() if known.etags.get(snapshot_id) != info.etag]
        missing = [snapshot_id for snapshot_id in known.etags if snapshot_id not in found]
        gone = missing if self._certain else await self._gone(missing)
        small = [snapshot_id for snapshot_id in wanted if found[snapshot_id].size <= _LARGEST]
        large = [snapshot_id for snapshot_id in wanted if found[snapshot_id].size > _LARGEST]
        await self._bring(known, (), gone, [_too_large(snapshot_id, found[snapshot_id]) for snapshot_id in large])
        for first in range(0, len(small), _COMMITTED):
            await self._bring(known, small[first : first + _COMMITTED], ())
        unreadable = known.problems & (found.keys() - set(wanted))  # as they were when they were read
        self._snapshots += len(found) - len(wanted) - len(unreadable)
        self._tell()

    async def read_again(self, ids: Iterable[bytes]) -> None:
        """Read these, whatever is known of them."""
        await self._bring(await self._mirror.known(b"", b""), list(ids), ())

    async def look_again(self) -> None:
        """Read once more what calls changed while it was read."""
        for _ in range(_LOOKS):
            if not self._changed:
                return
            ids, self._changed = self._changed, set()
            await self.read_again(ids)

    async def _bring(
        self, known: Known, wanted: Sequence[bytes], gone: Sequence[bytes], problems: Sequence[Problem] = ()
    ) -> None:
        """Read the wanted ones, and write all into the catalog, of which this was known before."""
        if not wanted and not gone and not problems:
            return
        found: list[Row] = []
        problems = list(problems)
        lost: list[bytes] = []
        await run_all((self._get(wish, found, problems, lost) for wish in wanted), at_once=_AT_ONCE)
        dropped = [*gone, *lost]
        left_out = set(await self._mirror.apply(known.mark, found, problems, dropped))
        self._changed |= left_out
        self._read += len(wanted)
        self._snapshots += sum(row.id not in left_out for row in found)
        listed = known.etags.keys() - known.problems - left_out
        self._removed += len(listed.intersection([*dropped, *(problem.id for problem in problems)]))
        for problem in problems:
            if problem.id not in left_out:
                log.warning("not listed: %s", problem.reason)

    async def _get(self, snapshot_id: bytes, found: list[Row], problems: list[Problem], lost: list[bytes]) -> None:
        key = _key(snapshot_id)
        async with self._reading:
            await self._mirror.pace.step()
            try:
                body = await self._store.get(key)
            except ObjectNotFound:
                lost.append(snapshot_id)
                return
        try:
            found.append(rows.pack(metadata.decode(key, body.content), body.etag))
        except MetadataInvalid as error:
            problems.append(Problem(snapshot_id, body.etag, str(error)))

    async def _gone(self, candidates: Sequence[bytes]) -> Sequence[bytes]:
        """Those of these that are not there: some stores list a new object only after a while."""
        gone: list[bytes] = []

        async def ask(snapshot_id: bytes) -> None:
            async with self._reading:
                await self._mirror.pace.step()
                try:
                    await self._store.head(_key(snapshot_id))
                except ObjectNotFound:
                    gone.append(snapshot_id)

        await run_all((ask(candidate) for candidate in candidates), at_once=_AT_ONCE)
        return gone

    def _named(self, listed: Iterable[ObjectInfo]) -> Mapping[bytes, ObjectInfo]:
        found = {}
        for info in listed:
            snapshot_id = id_of(info)
            if snapshot_id is None:
                if len(self.misnamed) < _TOLD:
                    self.misnamed.append(info.key)
                if info.key not in self._mirror.logged and len(self._mirror.logged) < _TOLD:
                    self._mirror.logged.add(info.key)
                    log.warning("not listed: %s", misnaming(info.key))
            else:
                found[snapshot_id] = info
        return found

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(Progress("rebuild", self._snapshots, self._snapshots, 0, 0))

    async def report(self) -> SyncReport:
        return SyncReport(
            snapshots=self._snapshots,
            read=self._read,
            removed=self._removed,
            problems=tuple(await self._mirror.problems(_TOLD)),
            seconds=time.monotonic() - self._started,
        )


def _key(snapshot_id: bytes) -> str:
    return metadata_key(str(UUID(bytes=snapshot_id)))


def _between(found: Mapping[bytes, ObjectInfo], after: bytes, upto: bytes | None) -> Mapping[bytes, ObjectInfo]:
    return {key: info for key, info in found.items() if key > after and (upto is None or key <= upto)}


def _too_large(snapshot_id: bytes, info: ObjectInfo) -> Problem:
    return Problem(snapshot_id, info.etag, f"{info.key}: {info.size} bytes are too many for metadata")
