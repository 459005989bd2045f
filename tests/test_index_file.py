"""The index file under those that have it open: deleted, exchanged, locked; and what is kept in it."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from snapstore import CatalogBusy, CatalogError, SnapshotNotFound, SnapStore
from snapstore.aio import Workers
from snapstore.index import damage, file, mirror
from snapstore.index.catalog import Catalog
from snapstore.index.lock import turn
from snapstore.keys import METADATA_PREFIX, id_bytes
from snapstore.objectstore import ObjectInfo, ObjectStore
from tests.places import catalog_at, look, wrapped


class Paused:
    """A store in which a listing of metadata waits after each page, once it is told to."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.waits = False
        self.listed = asyncio.Event()
        self.go_on = asyncio.Event()
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, key: str, **options: Any) -> Any:
        self.asked.append(key)
        return await self._store.get(key, **options)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        async for page in self._store.list(prefix, start_after=start_after):
            yield page
            if self.waits and prefix == METADATA_PREFIX:
                self.listed.set()
                await self.go_on.wait()


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> list[Paused]:
    return wrapped(monkeypatch, Paused)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "file").write_text("content")
    return tmp_path / "app"


def opening(tmp_path: Path, index: str = "index.db") -> SnapStore:
    return SnapStore.open(tmp_path / "store", index=tmp_path / index)


async def ids(store: SnapStore) -> set[str]:
    return {snapshot.id async for snapshot in store.list()}


def delete_index(tmp_path: Path) -> None:
    for path in tmp_path.glob("index.db*"):
        path.unlink()


# Another file in its place.


async def test_a_sync_whose_file_was_exchanged_does_not_call_the_new_one_whole(
    tmp_path: Path, app: Path, paused: list[Paused], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapstore.storage.local._PAGE", 4)
    async with opening(tmp_path, "other.db") as other, opening(tmp_path) as one:
        made = {(await other.create("blog", app)).id for _ in range(12)}
        paused[1].waits = True
        syncing = asyncio.create_task(one.sync())
        await paused[1].listed.wait()
        delete_index(tmp_path)
        await asyncio.to_thread(file.prepare, str(tmp_path / "index.db"), one.url)
        paused[1].go_on.set()
        with pytest.raises(CatalogError, match=r"took the place|filled anew"):
            await syncing
        assert look(tmp_path / "index.db", "SELECT filled FROM store") == [(0,)]
        assert (await one.sync()).snapshots == 12
        assert await ids(one) == made


async def test_a_rebuild_does_not_write_over_a_file_that_took_the_place_of_its_own(
    tmp_path: Path, app: Path, paused: list[Paused]
) -> None:
    async with opening(tmp_path) as one:
        await one.create("blog", app)
        paused[0].waits = True
        rebuilding = asyncio.create_task(one.rebuild())
        await paused[0].listed.wait()
        delete_index(tmp_path)
        paused[0].go_on.set()
        async with opening(tmp_path) as other:
            made = await other.create("wiki", app)
            with pytest.raises(CatalogError):
                await rebuilding
            assert made.id in await ids(other)
            assert len(await ids(one)) == 2


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "just_made"])
async def test_a_new_file_is_not_read_before_it_is_whole(
    tmp_path: Path, app: Path, paused: list[Paused], begun: bool
) -> None:
    async with opening(tmp_path) as one:
        made = await one.create("blog", app)
        delete_index(tmp_path)
        await asyncio.to_thread(file.prepare, str(tmp_path / "index.db"), one.url)
        if not begun:
            with closing(sqlite3.connect(tmp_path / "index.db", isolation_level=None)) as other:
                other.execute("DELETE FROM store")
        with pytest.raises(CatalogBusy, match="filled anew"):
            await one.get(made.id)
        async with opening(tmp_path):
            assert (await one.get(made.id)).id == made.id


async def test_a_deleted_index_is_not_made_anew_by_those_that_had_it_open(tmp_path: Path, app: Path) -> None:
    async with opening(tmp_path) as one:
        await one.create("blog", app)
    one = opening(tmp_path)
    async with one:
        delete_index(tmp_path)
        with pytest.raises(CatalogError, match="open the store again"):
            await one.create("blog", app)
        assert not (tmp_path / "index.db").exists()


# Locks.


async def test_who_waits_to_open_a_damaged_index_can_be_cancelled(tmp_path: Path, app: Path) -> None:
    async with opening(tmp_path) as one:
        made = await one.create("blog", app)
    damage.remember(str(tmp_path / "index.db"))
    async with turn(str(tmp_path / "index.db")):
        waiting = [asyncio.create_task(enter(opening(tmp_path))) for _ in range(12)]
        await asyncio.sleep(0.2)
        for task in waiting:
            task.cancel()
        async with asyncio.timeout(5):
            ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended)
    async with opening(tmp_path) as one:
        assert await ids(one) == {made.id}


async def enter(store: SnapStore) -> None:
    async with store:
        pass


async def test_opening_waits_for_another_process_that_has_the_file_to_itself(tmp_path: Path) -> None:
    async with opening(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "index.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        opened = asyncio.create_task(enter(opening(tmp_path)))
        await asyncio.sleep(1.2)  # longer than a thread waits at a time
        assert not opened.done()
        other.execute("COMMIT")
    await opened


async def test_a_lock_that_cannot_be_had_is_an_error_of_ours(tmp_path: Path) -> None:
    async with opening(tmp_path) as one:
        (tmp_path / "index.db-lock").unlink()
        (tmp_path / "index.db-lock").mkdir()
        with pytest.raises(CatalogError, match="cannot be locked"):
            await one.sync()


# What is kept.


async def test_names_go_with_the_last_snapshot_that_has_them(tmp_path: Path, app: Path) -> None:
    def names() -> tuple[set[Any], set[Any]]:
        found = [look(tmp_path / "index.db", f"SELECT name FROM {table}") for table in ("app", "label")]
        return {name for (name,) in found[0]}, {name for (name,) in found[1]}

    async with opening(tmp_path) as one, opening(tmp_path, "two.db") as two:
        kept = await one.create("blog", app, labels=["owner:42", "env:prod"])
        gone = await one.create("wiki", app, labels=["owner:42", "env:test"])
        assert names() == ({"blog", "wiki"}, {"owner", "owner:42", "env", "env:prod", "env:test"})
        await one.delete(gone.id)
        assert names() == ({"blog"}, {"owner", "owner:42", "env", "env:prod"})
        await one.relabel(kept.id, add=["env:live"], remove=["env:prod"])
        assert names() == ({"blog"}, {"owner", "owner:42", "env", "env:live"})
        await one.rebuild()
        assert names() == ({"blog"}, {"owner", "owner:42", "env", "env:live"})
        await two.sync()
        await two.delete(kept.id)
        await one.sync()
        assert names() == (set(), set())


async def test_what_was_deleted_elsewhere_is_dropped_piece_by_piece(
    tmp_path: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_AT_ONCE", 3)
    pieces: list[int] = []
    apply = mirror.Mirror.apply

    async def counted(self: Any, mark: int, found: Any = (), problems: Any = (), gone: Any = (), **rest: Any) -> Any:
        pieces.append(len(gone))
        return await apply(self, mark, found, problems, gone, **rest)

    async with opening(tmp_path) as one, opening(tmp_path, "two.db") as two:
        made = [(await one.create("blog", app)).id for _ in range(11)]
        await two.sync()
        for snapshot_id in made[:-1]:
            await one.delete(snapshot_id)
        monkeypatch.setattr(mirror.Mirror, "apply", counted)
        assert (await two.sync()).removed == 10
        assert await ids(two) == {made[-1]}
    assert max(pieces) <= 3
    assert sum(pieces) == 10


async def test_an_older_state_never_takes_the_place_of_a_newer_one(tmp_path: Path, app: Path) -> None:
    """Two processes share the index, and the one that changed the bucket first is the last to tell the index."""
    late: list[tuple[Any, str]] = []

    async def held(self: Catalog, snapshot: Any, etag: str) -> None:
        late.append((snapshot, etag))

    async with opening(tmp_path) as one:
        made = await one.create("blog", app)
        async with opening(tmp_path) as other:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Catalog, "update", held)
                await one.relabel(made.id, add=["first"])
            newest = await other.relabel(made.id, add=["second"])
            await one._catalog.update(*late[0])
            assert await one.get(made.id) == newest
            await other.delete(made.id)
            await one._catalog.update(*late[0])
            with pytest.raises(SnapshotNotFound):
                await one.get(made.id)


async def test_an_object_too_large_for_metadata_is_told_without_reading_it(
    tmp_path: Path, app: Path, paused: list[Paused]
) -> None:
    async with opening(tmp_path) as one:
        await one.create("blog", app)
        large = "01985a3e-7c31-7c1b-8f9a-3b5d2c4e6f70"
        with (tmp_path / "store" / "_metadata" / large).open("wb") as created:
            created.truncate(5 << 20)
        report = await one.sync()
        assert [large in problem and "too many" in problem for problem in report.problems] == [True]
        assert paused[0].asked == []
        assert (await one.sync()).read == 0


async def test_what_no_checkpoint_is_called_is_never_read(tmp_path: Path, app: Path, paused: list[Paused]) -> None:
    async with opening(tmp_path) as one:
        await one.create("blog", app)
        await one.checkpoint()
        folder = next((tmp_path / "store").glob("_checkpoints"))
        shutil.copy(next(folder.iterdir()), folder / "rubbish")
        paused[0].asked.clear()
        await one.rebuild()
        assert [key for key in paused[0].asked if key.endswith("rubbish")] == []
        assert len(paused[0].asked) == 1


async def test_windows_of_recent_syncs_are_not_remembered(tmp_path: Path) -> None:
    async with opening(tmp_path) as one:
        for seconds in range(5):
            await one.sync(recent=timedelta(seconds=seconds))
        assert one._syncing._shared == {}


async def test_a_change_during_the_last_reading_is_read_again(tmp_path: Path, app: Path, workers: Workers) -> None:
    """What was left out since a call of ours changed it is not forgotten."""
    async with opening(tmp_path) as one:
        made = await one.create("blog", app)
    async with catalog_at(tmp_path / "other.db", "file:///x", workers) as other:
        await other.mirror.begin()
        known = await other.mirror.known(b"", None)
        await other.put([(made, "newer")])
        left_out = await other.mirror.apply(known.mark, gone=[id_bytes(made.id)])
        assert list(left_out) == [id_bytes(made.id)]
        assert (await other.find(made.id)) is not None


async def test_a_checkpoint_of_another_node_covers_only_what_is_still_as_it_was(
    tmp_path: Path, app: Path, paused: list[Paused]
) -> None:
    async with opening(tmp_path) as one, opening(tmp_path, "two.db") as two:
        made = [await one.create("blog", app) for _ in range(3)]
        await two.checkpoint()
        await one.relabel(made[0].id, add=["env:prod"])
        report = await one.checkpoint()
        assert (report.covered, report.written) == (3, 1)
    async with opening(tmp_path, "three.db") as three:
        assert await ids(three) == {snapshot.id for snapshot in made}
        assert [key for key in paused[2].asked if key.startswith(METADATA_PREFIX)] == []
