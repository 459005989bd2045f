"""sync: the index is made equal to the bucket, by reading what is new or changed and nothing else."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from snapstore import InvalidInput, SnapStore, StorageError
from snapstore.index.comparison import Comparison
from snapstore.objectstore import ObjectInfo, ObjectStore
from tests.places import wrapped


class Watched:
    """A store that counts what is asked of it, and does something between a listing and what follows."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.asked: Counter[str] = Counter()
        self.reads_left: int | None = None
        self.after_listing: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, key: str, **options: Any) -> Any:
        if self.reads_left is not None:
            if self.reads_left == 0:
                raise StorageError("the line was cut", key)
            self.reads_left -= 1
        self.asked["get"] += 1
        return await self._store.get(key, **options)

    async def head(self, key: str) -> ObjectInfo:
        self.asked["head"] += 1
        return await self._store.head(key)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        async for page in self._store.list(prefix, start_after=start_after):
            if self.after_listing is not None:
                await self.after_listing()
            yield page


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    return wrapped(monkeypatch, Watched)


@pytest.fixture
async def nodes(watched: list[Watched], tmp_path: Path) -> AsyncIterator[tuple[SnapStore, SnapStore]]:
    """Two nodes over one bucket, each with an index of its own."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "file").write_text("content")
    async with (
        SnapStore.open(tmp_path / "store", index=tmp_path / "one.db") as one,
        SnapStore.open(tmp_path / "store", index=tmp_path / "two.db") as two,
    ):
        yield one, two


async def ids(store: SnapStore) -> list[str]:
    return [snapshot.id async for snapshot in store.list()]


async def test_what_is_new_is_read_and_what_is_known_is_not(
    nodes: tuple[SnapStore, SnapStore], watched: list[Watched], tmp_path: Path
) -> None:
    one, two = nodes
    made = [(await one.create("blog", tmp_path / "app")).id for _ in range(3)]
    report = await two.sync()
    assert (report.snapshots, report.read, report.removed) == (3, 3, 0)
    assert await ids(two) == made[::-1]

    watched[1].asked.clear()
    report = await two.sync()
    assert (report.snapshots, report.read, report.removed) == (3, 0, 0)
    assert watched[1].asked == Counter()

    made.append((await one.create("blog", tmp_path / "app")).id)
    assert (await two.sync()).read == 1
    assert await ids(two) == made[::-1]


async def test_what_changed_is_read_again(nodes: tuple[SnapStore, SnapStore], tmp_path: Path) -> None:
    one, two = nodes
    made = await one.create("blog", tmp_path / "app", labels=["env:test"])
    await two.sync()
    await one.relabel(made.id, add=["env:prod"], remove=["env:test"])
    assert (await two.sync()).read == 1
    assert [snapshot.labels async for snapshot in two.list(labels=["env:prod"])] == [("env:prod",)]
    assert await two.get(made.id) == await one.get(made.id)


async def test_what_is_gone_is_dropped(nodes: tuple[SnapStore, SnapStore], tmp_path: Path) -> None:
    one, two = nodes
    made = [(await one.create("blog", tmp_path / "app")).id for _ in range(4)]
    await two.sync()
    for gone in (made[0], made[2], made[3]):  # at the beginning, between, at the end
        await one.delete(gone)
    report = await two.sync()
    assert (report.snapshots, report.read, report.removed) == (1, 0, 3)
    assert await ids(two) == [made[1]]
    await one.delete(made[1])
    assert (await two.sync()).removed == 1
    assert await ids(two) == []


async def test_a_snapshot_that_was_made_after_the_listing_is_not_taken_for_gone(
    nodes: tuple[SnapStore, SnapStore], watched: list[Watched], tmp_path: Path
) -> None:
    one, _ = nodes
    made = [(await one.create("blog", tmp_path / "app")).id]

    async def make() -> None:
        watched[0].after_listing = None
        made.append((await one.create("blog", tmp_path / "app")).id)

    watched[0].after_listing = make
    assert (await one.sync()).removed == 0
    assert await ids(one) == made[::-1]


async def test_a_row_that_comes_long_after_its_call_changed_the_bucket_is_looked_at_again(
    nodes: tuple[SnapStore, SnapStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node has changed it since, and our sync has read that already."""
    one, other = nodes
    before = set(await ids(one))
    put, go_on = one._catalog.put, asyncio.Event()

    async def put_late(entries: Any) -> None:
        await go_on.wait()
        await put(entries)

    monkeypatch.setattr(one._catalog, "put", put_late)
    creating = asyncio.create_task(one.create("blog", tmp_path / "app"))
    while not (new := set(await ids(other)) - before):
        await other.sync()
    (made,) = new
    await other.relabel(made, add=["changed:yes"])
    look_again = Comparison.look_again

    async def let_it_come(comparison: Comparison) -> None:
        go_on.set()
        await creating
        await look_again(comparison)

    monkeypatch.setattr(Comparison, "look_again", let_it_come)
    await one.sync()
    assert (await one.get(made)).labels == ("changed:yes",)


async def test_a_sync_that_was_cut_off_goes_on(
    watched: list[Watched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapstore.storage.local._PAGE", 5)
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "one.db") as one:
        made = [(await one.create("blog", tmp_path / "app")).id for _ in range(12)]
    async with SnapStore.open(tmp_path / "other", index=tmp_path / "first.db"):
        pass
    two = SnapStore.open(tmp_path / "store", index=tmp_path / "two.db")

    def cut(store: ObjectStore) -> Watched:
        made = Watched(store)
        made.reads_left = 7
        return made

    with monkeypatch.context() as patch:
        wrapped(patch, cut)
        with pytest.raises(StorageError, match="cut"):
            await two
    async with two:
        assert watched[-1].asked["get"] == 7, "the first page of five was kept"
        assert await ids(two) == made[::-1]


async def test_what_cannot_be_understood_is_told_and_not_listed(
    nodes: tuple[SnapStore, SnapStore], tmp_path: Path
) -> None:
    one, two = nodes
    made = await one.create("blog", tmp_path / "app")
    other = await one.create("blog", tmp_path / "app")
    await two.sync()
    path = tmp_path / "store" / "_metadata" / made.id
    path.write_text(json.dumps({"uuid": made.id}))
    report = await two.sync()
    assert [made.id in problem for problem in report.problems] == [True]
    assert (report.snapshots, report.removed) == (1, 1)
    assert await ids(two) == [other.id]


async def test_apps_and_labels_are_counted(nodes: tuple[SnapStore, SnapStore], tmp_path: Path) -> None:
    one, _ = nodes
    for app, labels in (
        ("blog", ["owner:42", "pinned"]),
        ("blog", ["owner:42:a"]),
        ("wiki", ["owner:7", "ownership:x"]),
    ):
        await one.create(app, tmp_path / "app", labels=labels)
    assert [(found.name, found.snapshots) for found in await one.apps()] == [("blog", 2), ("wiki", 1)]
    assert [(found.name, found.snapshots) for found in await one.labels()] == [
        ("owner", 3),
        ("ownership", 1),
        ("pinned", 1),
    ]
    assert [(found.name, found.snapshots) for found in await one.labels("owner")] == [
        ("owner:42", 1),
        ("owner:42:a", 1),
        ("owner:7", 1),
    ]
    assert await one.labels("nothing") == []


async def test_the_index_says_how_much_it_holds_and_how_old_that_is(
    nodes: tuple[SnapStore, SnapStore], tmp_path: Path
) -> None:
    one, two = nodes
    await one.create("blog", tmp_path / "app")
    before = await two.index_status()
    assert (before.snapshots, before.path, before.store) == (0, str(tmp_path / "two.db"), two.url)
    await two.sync()
    after = await two.index_status()
    assert after.snapshots == 1
    assert after.size > 0
    assert before.synced_at is not None
    assert after.synced_at is not None
    assert before.synced_at < after.synced_at


async def test_a_window_may_reach_further_back_than_time(nodes: tuple[SnapStore, SnapStore], tmp_path: Path) -> None:
    one, two = nodes
    made = await two.create("blog", tmp_path / "app")
    for window in (timedelta(days=900_000), timedelta.max):
        report = await one.sync(recent=window)
        assert made.id in await ids(one)
        assert report.snapshots == len(await ids(one))  # of the index, whatever the window
    assert (await one.sync(recent=timedelta(0))).snapshots == len(await ids(one))


async def test_durations_are_timedeltas(nodes: tuple[SnapStore, SnapStore], tmp_path: Path) -> None:
    one, _ = nodes
    number: Any = 3600
    with pytest.raises(InvalidInput, match="timedelta"):
        await one.sync(recent=number)
    with pytest.raises(InvalidInput, match="timedelta"):
        await SnapStore.open(tmp_path / "store", index=tmp_path / "one.db", sync_every=number)
