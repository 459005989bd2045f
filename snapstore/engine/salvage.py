"""Make lost metadata again from the archives, whose tables of contents begin with what it takes (FORMAT.md)."""

import logging
from collections.abc import Sequence
from contextlib import closing

import msgspec

from snapstore import keys, metadata
from snapstore.aio import run_all
from snapstore.archive import recover
from snapstore.engine.limits import Limits
from snapstore.errors import ArchiveDamaged, InvalidInput, MetadataInvalid, ObjectNotFound, PreconditionFailed
from snapstore.index.archives import Archive, Archives
from snapstore.index.catalog import Catalog
from snapstore.model import FORMAT, Extent, ProgressCallback, SalvageReport, Snapshot
from snapstore.objectstore import ObjectStore

log = logging.getLogger("snapstore")

_TAIL = 64 << 10
_AT_ONCE = 4
_LARGEST = 1 << 30
"""Bytes of a table of contents, compressed, that are read."""


async def salvage(
    store: ObjectStore, catalog: Catalog, limits: Limits, *, apply: bool, progress: ProgressCallback | None
) -> SalvageReport:
    """Find archives without metadata, and with ``apply`` write what they lack. The caller has just synced."""
    with closing(Archives(store, catalog, every=True)) as archives:
        await archives.collect(progress)
        lost = await archives.without_metadata()
    report = await _Salvage(store, catalog, limits).run(lost, apply)
    return msgspec.structs.replace(report, recent=archives.recent)


class _Salvage:
    def __init__(self, store: ObjectStore, catalog: Catalog, limits: Limits) -> None:
        self._store = store
        self._catalog = catalog
        self._limits = limits
        self._found: list[Snapshot] = []
        self._problems: list[str] = []

    async def run(self, lost: Sequence[Archive], apply: bool) -> SalvageReport:
        await run_all((self._bring_back(archive, apply) for archive in lost), at_once=_AT_ONCE)
        found = tuple(sorted(self._found, key=lambda snapshot: snapshot.id))
        return SalvageReport(snapshots=found, applied=apply, problems=tuple(sorted(self._problems)))

    async def _bring_back(self, archive: Archive, apply: bool) -> None:
        key = archive.info.key
        try:
            snapshot = await self._recover(archive)
            content = metadata.encode(snapshot)
            metadata.decode(keys.metadata_key(snapshot.id), content)  # what nobody could read must not be written
        except ObjectNotFound:
            return  # deleted meanwhile
        except (ArchiveDamaged, InvalidInput, MetadataInvalid, PreconditionFailed) as error:
            self._problems.append(f"{key}: nothing can be made of this archive alone: {error}")
            return
        if apply:
            try:
                info = await self._store.put(keys.metadata_key(snapshot.id), content, if_none_match=True)
            except PreconditionFailed:
                return  # somebody has just written it
            if not await self._is_whole(snapshot):
                return
            await self._catalog.put([(snapshot, info.etag)])
            log.info(
                "snapshot %s of %s is back: its metadata was made anew from its archive", snapshot.id, snapshot.app
            )
        self._found.append(snapshot)

    async def _is_whole(self, snapshot: Snapshot) -> bool:
        """Whether the archive is still there, now that its metadata is back. If not, that goes again: another node was
        deleting the snapshot, and metadata goes first then."""
        assert snapshot.key is not None
        try:
            await self._store.head(snapshot.key)
        except ObjectNotFound:
            await self._store.delete(keys.metadata_key(snapshot.id))
            return False
        return True

    async def _recover(self, archive: Archive) -> Snapshot:
        info = archive.info
        place = await self._locate(archive)
        if place.size > _LARGEST:
            raise ArchiveDamaged(f"its table of contents has {place.size} bytes")
        body = await self._store.get(info.key, start=place.offset, size=place.size, if_match=info.etag)
        found = await self._limits.compute.run(recover.recover, body.content)
        if found.end != place.offset:
            raise ArchiveDamaged("its table of contents does not follow its frames: some of it is lost")
        snapshot_id = keys.id_text(archive.id)
        if found.header.id != snapshot_id:
            raise ArchiveDamaged(f"its name says {snapshot_id}, its contents {found.header.id}")
        return Snapshot(
            id=snapshot_id,
            app=keys.check_app(found.header.app),
            created_at=found.header.created_at,
            labels=found.header.labels,
            key=info.key,
            size=info.size,
            content_size=found.content_size,
            entries=found.entries,
            toc=place,
            root=found.root,
            warnings=found.warnings,
            revision=1,
            format=FORMAT,
        )

    async def _locate(self, archive: Archive) -> Extent:
        info = archive.info
        size = min(_TAIL, info.size)
        while True:
            tail = await self._store.get(info.key, start=info.size - size, size=size, if_match=info.etag)
            place = recover.locate(tail.content, info.size)
            if isinstance(place, Extent):
                return place
            size = place
