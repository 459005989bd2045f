"""Calls as they are meant: type checkers take all of them, and know what each returns."""

from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import assert_type

from snapstore import (
    Caps,
    Check,
    CheckpointReport,
    Count,
    IndexStatus,
    Limits,
    Member,
    Page,
    Progress,
    RestoreReport,
    S3Options,
    SalvageReport,
    Snapshot,
    SnapshotFile,
    SnapshotNotFound,
    SnapshotReport,
    SnapStore,
    SnapstoreError,
    SyncReport,
    Throttled,
    diagnose,
)
from snapstore.objectstore import ObjectStore


def told(progress: Progress) -> None:
    assert_type(progress.bytes, int)


async def opened(bucket: ObjectStore) -> None:
    limits = Limits(memory=128 << 20, threads=2, operations=8, nice=False)
    assert_type((limits.running, limits.waiting), tuple[int, int])
    async with SnapStore.open("/srv/snapshots") as store:
        assert_type(store, SnapStore)
    awaited = await SnapStore.open(
        Path("/srv/snapshots"),
        index=Path("index.db"),
        limits=limits,
        apps="/srv/apps",
        index_label="owner",
        create=False,
        s3=S3Options(part_size=8 << 20),
        sync_every=timedelta(seconds=10),
    )
    assert_type(awaited, SnapStore)
    assert_type(SnapStore.open(bucket), SnapStore)
    await awaited.aclose(grace=5)
    await awaited.aclose(grace=0.5)
    assert_type((awaited.url, awaited.index, awaited.limits), tuple[str, str, Limits])


async def written(store: SnapStore) -> None:
    made = await store.create("blog", Path("/srv/apps/blog"), labels=("owner:42",), exclude=iter(["*.tmp"]))
    assert_type(made, SnapshotReport)
    as_snapshot: Snapshot = made
    assert_type(as_snapshot.labels, tuple[str, ...])
    await store.create("blog", on_error="skip", level=19, progress=told)
    restored = await store.restore(
        made.id,
        "/srv/apps/copy",
        paths=["a"],
        exclude={"*.tmp"},
        drop=("b",),
        existing="replace",
        owner=True,
        trusted=True,
        caps=Caps(members=10),
        progress=told,
    )
    assert_type(restored, RestoreReport)
    await store.restore(made.id, app="copy")
    assert_type(await store.relabel(made.id, add=["a:b"], remove=["c"], replace=None), Snapshot)
    assert_type(await store.delete(made.id), Snapshot)
    assert_type(await store.delete_app("blog"), Sequence[Snapshot])


async def read(store: SnapStore) -> None:
    now = datetime.now(UTC)
    async for snapshot in store.list(apps=["blog"], labels=["owner"], since=now, until=now, limit=1, cursor=None):
        assert_type(snapshot, Snapshot)
        assert_type(snapshot.size, int | None)
    page = await store.page(limit=10, fresh=True)
    assert_type(page, Page)
    assert_type(page.cursor, str | None)
    assert_type(await store.get("0192"), Snapshot)
    assert_type(await store.latest("blog", labels=["a:b"]), Snapshot)
    async for member in store.members("0192"):
        assert_type(member, Member)
        if member.type == "f":
            assert_type(member.size, int)
    async for piece in store.read("0192", "index.html", start=10, size=20):
        assert_type(piece, bytes)
    async with aclosing(store.read("0192", "index.html")) as pieces:
        assert_type(await anext(pieces), bytes)
    async with aclosing(store.members("0192")) as members, aclosing(store.list()) as snapshots:
        assert_type((await anext(members), await anext(snapshots)), tuple[Member, Snapshot])
    file = await store.file("0192", "index.html")
    assert_type((file, file.member), tuple[SnapshotFile, Member])
    async with aclosing(file.read(start=10, size=20)) as pieces:
        assert_type(await anext(pieces), bytes)
    assert_type(await store.download_url("0192", expires=timedelta(hours=1)), str)
    assert_type([count async for count in diagnose("s3://bucket")], list[Check])
    assert_type(await store.apps(), Sequence[Count])
    assert_type(await store.labels("owner"), Sequence[Count])


async def kept_up(store: SnapStore) -> None:
    assert_type(await store.sync(recent=timedelta(hours=6), progress=told), SyncReport)
    assert_type(await store.rebuild(archives=False), SyncReport)
    assert_type(await store.checkpoint(), CheckpointReport)
    assert_type(await store.salvage(apply=True), SalvageReport)
    assert_type(await store.index_status(), IndexStatus)


async def failed(store: SnapStore) -> float:
    try:
        await store.get("0192")
    except SnapshotNotFound as error:
        assert_type(error.snapshot_id, str)
    except Throttled as error:
        assert_type(error.retry_after, float | None)
        return error.retry_after or 1.0
    except SnapstoreError:
        raise
    return 0.0
