"""A snapshot's two objects, its metadata and its archive, and the index's row: found, changed and deleted together.

The order is FORMAT.md's commit protocol: the metadata goes first and comes last, so what is listed has its archive; the
index follows the bucket.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import msgspec

from snapstore import keys, metadata
from snapstore.errors import ObjectNotFound, PreconditionFailed, SnapshotNotFound, SnapstoreError, UnsupportedFormat
from snapstore.index.catalog import Catalog
from snapstore.model import FORMAT, Snapshot
from snapstore.objectstore import ObjectStore

log = logging.getLogger("snapstore")

_RELABEL_ATTEMPTS = 8


async def with_key(store: ObjectStore, catalog: Catalog, snapshot: Snapshot) -> Snapshot:
    """With its archive's key; the older system's metadata leaves it out, so the bucket is asked for it."""
    if snapshot.key is not None:
        return snapshot
    async for page in store.list(keys.older_archive_prefix(snapshot.app, snapshot.id)):
        for info in page:
            return msgspec.structs.replace(snapshot, key=info.key)
    raise await without_archive(store, catalog, snapshot)


async def without_archive(store: ObjectStore, catalog: Catalog, snapshot: Snapshot) -> SnapshotNotFound:
    """What to raise. Another node may have deleted the snapshot: then it is no longer listed here either."""
    try:
        await store.head(keys.metadata_key(snapshot.id))
    except ObjectNotFound:
        await catalog.remove([keys.id_bytes(snapshot.id)])
        return SnapshotNotFound(snapshot.id, f"snapshot {snapshot.id} was deleted meanwhile")
    return SnapshotNotFound(
        snapshot.id,
        f"the archive of snapshot {snapshot.id} is not in the store: `snapstore delete {snapshot.id}` removes what is"
        " left of it",
    )


async def delete(store: ObjectStore, catalog: Catalog, snapshot: Snapshot, key: str | None) -> None:
    """First it stops existing, here and for all nodes, then its archive (``key``, where there is one) goes."""
    await store.delete(keys.metadata_key(snapshot.id))
    try:
        await catalog.remove([keys.id_bytes(snapshot.id)])
    finally:
        if key is not None:
            await _delete_archive(store, snapshot, key)


async def _delete_archive(store: ObjectStore, snapshot: Snapshot, key: str) -> None:
    try:
        await store.delete(key)
    except SnapstoreError:
        log.warning(
            "snapshot %s is deleted, but its archive %r is not: it stays until it is removed by hand", snapshot.id, key
        )
        raise


async def relabel(
    store: ObjectStore, catalog: Catalog, snapshot: Snapshot, change: Callable[[Sequence[str]], Sequence[str]]
) -> Snapshot:
    """Its metadata with the labels that ``change`` makes of those it has; all else in it stays, known here or not.

    Where another node changes it at the same time, the change is made anew on what that one wrote; where the server
    knows no conditions, the last writer wins. SnapshotNotFound where it is gone.
    """
    key = keys.metadata_key(snapshot.id)
    for attempt in range(_RELABEL_ATTEMPTS):
        try:
            body = await store.get(key)
        except ObjectNotFound as error:
            await catalog.remove([keys.id_bytes(snapshot.id)])
            raise SnapshotNotFound(snapshot.id) from error
        before = metadata.decode(key, body.content)
        if before.format > FORMAT:
            raise UnsupportedFormat(snapshot.id, before.format, FORMAT)
        labels = change(before.labels)
        if tuple(labels) == before.labels:
            await catalog.update(before, body.etag)
            return before
        content = metadata.relabelled(body.content, labels)
        after = metadata.decode(key, content)  # before it is written: what nobody could read must not be
        try:
            info = await store.put(key, content, if_match=body.etag)
        except PreconditionFailed:
            if attempt == _RELABEL_ATTEMPTS - 1:
                raise
            continue
        await catalog.update(after, info.etag)
        return after
    raise AssertionError("unreachable")


def changed_labels(
    labels: Sequence[str], add: Iterable[str], remove: Iterable[str], replace: Iterable[str] | None
) -> Sequence[str]:
    """``labels`` (or ``replace`` in their place) without those in ``remove`` (whole ones, or keys), then ``add``."""
    gone = set(remove)
    kept = [
        label
        for label in (labels if replace is None else replace)
        if label not in gone and keys.split_label(label)[0] not in gone
    ]
    return tuple(dict.fromkeys([*kept, *add]))
