"""Calls that are mistakes: each line that says so is an error to every type checker, and no other line is."""

from datetime import timedelta

from snapstore import Limits, Member, Progress, RestoreReport, Snapshot, SnapStore, Throttled, diagnose


def not_told() -> None: ...


async def told(progress: Progress) -> None: ...


async def wrong(store: SnapStore, snapshot: Snapshot, member: Member, limits: Limits, error: Throttled) -> None:
    SnapStore.open()  # wrong
    SnapStore.open(7)  # wrong
    SnapStore.open("s3://bucket", index=7)  # wrong
    SnapStore.open("s3://bucket", sync_every=10)  # wrong
    SnapStore.open("s3://bucket", limits=128 << 20)  # wrong
    SnapStore.open("s3://bucket", s3={"part_size": 8 << 20})  # wrong
    SnapStore.open("s3://bucket", region="eu-west-1")  # wrong
    with SnapStore.open("s3://bucket"):  # wrong
        pass
    Limits(memory="128M")  # wrong
    Limits(128 << 20)  # wrong
    limits.running = 3  # wrong

    await store.create()  # wrong
    await store.create(7)  # wrong
    await store.create("blog", 7)  # wrong
    await store.create("blog", "/srv/apps/blog", ["owner:42"])  # wrong
    await store.create("blog", label=["owner:42"])  # wrong
    await store.create("blog", labels=7)  # wrong
    await store.create("blog", labels=[42])  # wrong
    await store.create("blog", on_error="ignore")  # wrong
    await store.create("blog", level="fast")  # wrong
    await store.create("blog", progress=not_told)  # wrong
    await store.create("blog", progress=told)  # wrong

    await store.restore()  # wrong
    await store.restore(snapshot, "/srv/copy")  # wrong
    await store.restore(snapshot.id, "/srv/copy", existing="overwrite")  # wrong
    await store.restore(snapshot.id, "/srv/copy", caps=100)  # wrong
    await store.restore(snapshot.id, path="a")  # wrong

    await store.list()  # wrong
    for _ in store.list():  # wrong
        pass
    store.list(since="2026-01-01")  # wrong
    store.list(limit="10")  # wrong
    await store.page(cursor=7)  # wrong
    await store.get(7)  # wrong
    await store.members(snapshot.id)  # wrong
    store.read(snapshot.id)  # wrong
    store.read(snapshot.id, b"index.html")  # wrong
    store.read(snapshot.id, "index.html", 0, 10)  # wrong
    await diagnose("s3://bucket")  # wrong

    await store.relabel(snapshot.id, ["a:b"])  # wrong
    await store.relabel(snapshot.id, add=[("a", "b")])  # wrong
    await store.delete(snapshot)  # wrong
    await store.download_url(snapshot.id, expires=3600)  # wrong
    await store.sync(recent=60)  # wrong
    await store.aclose(5)  # wrong
    await store.aclose(grace=timedelta(seconds=5))  # wrong
    store.url = "s3://other"  # wrong

    snapshot.app = "other"  # wrong
    member.size = 7  # wrong
    snapshot.name  # wrong
    member.type == "file"  # wrong
    snapshot.size + 1  # wrong
    error.retry_after + 1  # wrong
    made: RestoreReport = await store.create("blog")  # wrong
    Snapshot("0192", "blog")  # wrong
