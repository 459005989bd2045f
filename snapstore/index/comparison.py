"""Listed objects laid beside the catalog's rows: what is new or changed is read, and what is gone is dropped.

What was read is committed piece by piece, so that whoever is interrupted need not read it again.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence, Set

from snapstore import metadata
from snapstore.aio import run_all
from snapstore.errors import MetadataInvalid, ObjectNotFound
from snapstore.index import rows
from snapstore.index.mirror import Known, Mirror, Problem, misnaming
from snapstore.index.rows import Row
from snapstore.index.walk import Span, id_of
from snapstore.keys import id_text, metadata_key
from snapstore.model import Progress, ProgressCallback, SyncReport
from snapstore.objectstore import ObjectInfo, ObjectStore

log = logging.getLogger("snapstore")

TOLD = 1000
"""Problems that a report names, at most."""
_AT_ONCE = 32
_COMMITTED = 250
"""Snapshots that are read and then written in one transaction: calls that change the index wait for it."""
_LARGEST = 4 << 20
"""Bytes of an object beyond which it is no metadata: labels take a few hundred, and many are read at once."""
_LOOKS = 8
"""How often snapshots are read again that change while we read them; the next sync reads those that still do."""


class Comparison:
    """One walk over the bucket: what is done with each piece of it, and the counts."""

    def __init__(
        self,
        store: ObjectStore,
        mirror: Mirror,
        progress: ProgressCallback | None = None,
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
            await self._mirror.pauses.take()
            known = await self._mirror.known(after, span.upto)
            await self._compare(known, _between(found, after, known.upto))
            after = known.upto

    async def _compare(self, known: Known, found: Mapping[bytes, ObjectInfo]) -> None:
        wanted = [snapshot_id for snapshot_id, info in found.items() if known.etags.get(snapshot_id) != info.etag]
        missing = [snapshot_id for snapshot_id in known.etags if snapshot_id not in found]
        gone = missing if self._certain else await self._gone(missing)
        small = [snapshot_id for snapshot_id in wanted if found[snapshot_id].size <= _LARGEST]
        large = [snapshot_id for snapshot_id in wanted if found[snapshot_id].size > _LARGEST]
        listed = known.listed()
        await self._bring(
            known.mark, (), gone, [_too_large(snapshot_id, found[snapshot_id]) for snapshot_id in large], listed
        )
        for first in range(0, len(small), _COMMITTED):
            await self._bring(known.mark, small[first : first + _COMMITTED], listed=listed)
        unreadable = known.problems & (found.keys() - set(wanted))  # as they were when they were read
        self._snapshots += len(found) - len(wanted) - len(unreadable)
        self._tell()

    async def read_again(self, ids: Iterable[bytes]) -> None:
        """Read these, whatever is known of them."""
        await self._bring(await self._mirror.mark(), list(ids))

    async def look_again(self) -> None:
        """Read once more what calls changed while it was read."""
        for _ in range(_LOOKS):
            if not self._changed:
                return
            ids, self._changed = self._changed, set()
            await self.read_again(ids)

    async def _bring(
        self,
        mark: int,
        wanted: Sequence[bytes],
        gone: Sequence[bytes] = (),
        problems: Sequence[Problem] = (),
        listed: Set[bytes] = frozenset(),
    ) -> None:
        """Read the wanted ones, and write all into the catalog as it was at ``mark``; ``listed`` had rows then."""
        if not wanted and not gone and not problems:
            return
        found: list[Row] = []
        problems = list(problems)
        lost: list[bytes] = []
        await run_all((self._get(wish, found, problems, lost) for wish in wanted), at_once=_AT_ONCE)
        dropped = [*gone, *lost]
        left_out = set(await self._mirror.apply(mark, found, problems, dropped))
        self._changed |= left_out
        self._read += len(wanted)
        self._snapshots += sum(row.id not in left_out for row in found)
        unlisted = {*dropped, *(problem.id for problem in problems)}
        self._removed += len((listed & unlisted) - left_out)
        for problem in problems:
            if problem.id not in left_out:
                log.warning("not listed: %s", problem.reason)

    async def _get(self, snapshot_id: bytes, found: list[Row], problems: list[Problem], lost: list[bytes]) -> None:
        key = _key(snapshot_id)
        async with self._reading:
            await self._mirror.pauses.take()
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
                await self._mirror.pauses.take()
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
                if len(self.misnamed) < TOLD:
                    self.misnamed.append(info.key)
                if info.key not in self._mirror.logged and len(self._mirror.logged) < TOLD:
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
            problems=tuple(await self._mirror.problems(TOLD)),
            seconds=time.monotonic() - self._started,
        )


def _key(snapshot_id: bytes) -> str:
    return metadata_key(id_text(snapshot_id))


def _between(found: Mapping[bytes, ObjectInfo], after: bytes, upto: bytes | None) -> Mapping[bytes, ObjectInfo]:
    return {key: info for key, info in found.items() if key > after and (upto is None or key <= upto)}


def _too_large(snapshot_id: bytes, info: ObjectInfo) -> Problem:
    return Problem(snapshot_id, info.etag, f"{info.key}: {info.size} bytes are too many for metadata")
