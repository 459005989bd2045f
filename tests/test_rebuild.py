"""rebuild: a new index is filled beside the old one, and takes its place whole, under everybody's feet.

Readers of other processes go on; what calls changed meanwhile is carried over; what was cut off is gone on with.
"""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet import FleetStore, snapshot
from snapstore import CatalogError, CatalogMismatch, CatalogTooNew, Snapshot, SnapStore
from snapstore.aio import Workers
from snapstore.index import damage, rebuild, replacement
from snapstore.index.catalog import Catalog
from snapstore.index.mirror import Mirror
from snapstore.index.queries import Query, Rarity, counting, page_statement
from snapstore.keys import id_bytes
from tests.places import catalog_at, look
from tests.scripts import said, script

APPS = 50


@pytest.fixture
async def catalog(tmp_path: Path, workers: Workers) -> AsyncIterator[Catalog]:
    """An index of a fleet's bucket, not yet filled."""
    async with catalog_at(tmp_path / "index.db", FleetStore.url, workers) as made:
        yield made


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings of a tenth of their size: as if there were ten times as many snapshots."""
    monkeypatch.setattr("benchmarks.fleet._PAGE", 100)
    monkeypatch.setattr("snapstore.index.walk.PAGE", 100)
    monkeypatch.setattr("snapstore.index.sync.PAGE", 100)


def fleet(count: int, **options: Any) -> FleetStore:
    return FleetStore(count, apps=APPS, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def all_of(catalog: Catalog) -> list[Snapshot]:
    return list((await catalog.page(Query(), 100_000)).snapshots)


def newest_first(count: int) -> list[Snapshot]:
    return [snapshot(number, APPS) for number in reversed(range(count))]


async def replaced(index: Path, by: Path, workers: Workers) -> None:
    await workers.run(replacement.replace, str(index), str(by), lambda _: None, threading.Event())


READER = """
import os, sqlite3, sys
from snapstore.index.rows import unpack

path, total = sys.argv[1], int(sys.argv[2])
connection = sqlite3.connect(path, isolation_level=None, timeout=0)
reads, seen = 0, set()
print("reading", flush=True)
while not os.path.exists(path + "-stop"):
    connection.execute("BEGIN")
    rows = connection.execute("SELECT s.id, a.name, s.detail FROM snapshot s JOIN app a USING (app)").fetchall()
    connection.execute("COMMIT")
    assert len(rows) == total, len(rows)
    found = {unpack(row).labels[-1:] for row in rows}
    assert len(found) == 1, found   # the old state or the new one, and no mixture
    seen |= found
    reads += 1
print(reads, sorted(seen))
"""


async def test_readers_of_other_processes_meet_the_old_state_or_the_new_one_and_no_error(
    tmp_path: Path, workers: Workers
) -> None:
    """Each of 2,000 rows says in which state it is; five rebuilds change all of them."""
    total = 2000
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = [
        Snapshot(id=str(uuid.uuid4()), app=f"app{number % 7}", created_at=start + timedelta(seconds=number), format=1)
        for number in range(total)
    ]

    def of(version: int) -> list[tuple[Snapshot, str]]:
        return [
            (
                Snapshot(
                    id=one.id, app=one.app, created_at=one.created_at, labels=("x", f"version:{version}"), format=1
                ),
                f"etag{version}",
            )
            for one in made
        ]

    index = tmp_path / "index.db"
    async with catalog_at(index, "file:///x", workers) as catalog:
        await catalog.put(of(0))
        readers = [script(READER, index, total) for _ in range(2)]
        for reader in readers:
            assert await said(reader) == "reading\n"
        for version in range(1, 6):
            async with catalog_at(tmp_path / "beside.db", "file:///x", workers) as beside:
                await beside.put(of(version))
            await workers.run(
                replacement.replace, str(index), str(tmp_path / "beside.db"), lambda _: None, threading.Event()
            )
            assert {one.labels for one in await all_of(catalog)} == {("x", f"version:{version}")}
        (tmp_path / "index.db-stop").touch()
        for reader in readers:
            output, errors = await asyncio.to_thread(reader.communicate)
            assert errors == ""
            assert int(output.split()[0]) >= 1
    assert look(index, "PRAGMA integrity_check") == [("ok",)]


LISTER = """
import asyncio, os, sys
from pathlib import Path
from snapstore import SnapStore

async def main(base, total):
    async with SnapStore.open(base / "store", index=base / "index.db") as store:
        print("reading", flush=True)
        while not os.path.exists(base / "stop"):
            assert len([one async for one in store.list()]) == total
            assert (await store.latest("blog")).app == "blog"
            assert sum(count.snapshots for count in await store.apps()) == total
    print("ended")

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


async def test_another_process_lists_all_the_time_that_an_index_is_rebuilt(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        for _ in range(20):
            await store.create("blog", tmp_path / "app", labels=["owner:1"])
        lister = script(LISTER, tmp_path, 20)
        assert await said(lister) == "reading\n"
        for _ in range(8):
            assert (await store.rebuild()).snapshots == 20
        (tmp_path / "stop").touch()
        assert await asyncio.to_thread(lister.communicate) == ("ended\n", "")


async def cancelled_at(fleet: FleetStore, catalog: Catalog, gets: int) -> None:
    rebuilding = asyncio.create_task(rebuild.rebuild(fleet, catalog))
    while fleet.requests["get"] < gets:
        await asyncio.sleep(0)
    rebuilding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rebuilding


class Remembering(FleetStore):
    """Remembers what was read of it."""

    def __init__(self, count: int, **options: Any) -> None:
        super().__init__(count, apps=APPS, **options)
        self.read: list[str] = []

    async def get(self, key: str, **options: Any) -> Any:
        self.read.append(key)
        return await super().get(key, **options)


async def test_an_interrupted_rebuild_is_gone_on_with_and_leaves_the_old_index_alone(
    catalog: Catalog, tmp_path: Path
) -> None:
    store = Remembering(5000, listings=1)
    kept = [(snapshot(7, APPS), "an etag")]
    await catalog.put(kept)
    await cancelled_at(store, catalog, 3500)
    assert await all_of(catalog) == [snapshot(7, APPS)]
    [(brought,)] = look(tmp_path / "index.db-rebuild", "SELECT count(*) FROM snapshot")
    assert brought == 3250, "the pieces that were read whole"
    before = set(store.read[:3250])
    store.read.clear()
    report = await rebuild.rebuild(store, catalog)
    assert (report.snapshots, report.read) == (5000, 1750)
    assert not before.intersection(store.read)
    assert await all_of(catalog) == newest_first(5000)
    assert not [name for name in names(tmp_path) if "-rebuild" in name]


async def test_a_rebuild_tells_how_many_rows_were_of_snapshots_that_are_gone(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        made = [await store.create("blog", tmp_path / "app") for _ in range(3)]
        for snapshot in made[:2]:
            (tmp_path / "store" / "_metadata" / snapshot.id).unlink()
        report = await store.rebuild()
        assert (report.snapshots, report.removed) == (1, 2)
        assert (await store.rebuild()).removed == 0


async def test_an_index_that_was_lost_is_built_once_by_a_rebuild(tmp_path: Path) -> None:
    """Opening the store for it has built it already."""
    fleet = Remembering(100)
    async with SnapStore.open(fleet, index=tmp_path / "index.db") as store:
        report = await store.rebuild(archives=False)
        assert (report.snapshots, report.read) == (100, 100)
        assert len(fleet.read) == 100
        await store.rebuild(archives=False)
        assert len(fleet.read) == 200


async def test_a_rebuild_that_is_interrupted_again_and_again_comes_to_its_end(
    catalog: Catalog, small_pages: None
) -> None:
    store = fleet(1000, listings=4)
    for stop in (250, 520, 830):
        await cancelled_at(store, catalog, stop)
        assert await all_of(catalog) == []
    await rebuild.rebuild(store, catalog)
    assert await all_of(catalog) == newest_first(1000)
    assert store.requests["get"] <= 1000 + 3 * 4 * 100  # a page in each listing may be lost each time


async def test_what_went_from_the_bucket_after_an_interruption_is_not_in_the_rebuilt_index(
    catalog: Catalog, small_pages: None
) -> None:
    await cancelled_at(fleet(600, listings=1), catalog, 550)
    smaller = fleet(420)
    assert (await rebuild.rebuild(smaller, catalog)).snapshots == 420
    assert await all_of(catalog) == newest_first(420)
    assert smaller.requests["get"] == 0


async def test_a_rebuild_frees_the_lock_when_it_is_cancelled(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        made = await store.create("blog", tmp_path / "app")
        for turns in range(0, 60, 4):
            rebuilding = asyncio.create_task(store.rebuild())
            for _ in range(turns):
                await asyncio.sleep(0)
            rebuilding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await rebuilding
            assert [one.id async for one in store.list()] == [made.id]
        assert (await store.rebuild()).snapshots == 1
        assert look(tmp_path / "index.db", "SELECT syncing FROM store") == [(0,)]
        assert look(tmp_path / "index.db", "SELECT * FROM local_change") == []


OTHERS = """
import asyncio, sys
from pathlib import Path
from snapstore import SnapStore

async def main(base):
    async with SnapStore.open(base / "store", index=base / "index.db") as store:
        listed = [one.id async for one in store.list()]
        await store.delete(listed[0])
        await store.relabel(listed[1], replace=["other:process"])
        made = await store.create("other", base / "app", labels=["other:process"])
        print(made.id)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_what_another_process_changes_during_a_rebuild_is_carried_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app").mkdir()
    fill = rebuild._fill

    async def fill_and_wait(*args: Any) -> Any:
        """The new index is whole, and does not have what comes now."""
        report = await fill(*args)
        told = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", OTHERS, str(tmp_path)], capture_output=True, text=True
        )
        assert told.stderr == ""
        made.append(told.stdout.strip())
        return report

    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        made = [(await store.create("blog", tmp_path / "app")).id for _ in range(4)]
        await store.rebuild()  # the first one only adds to what opening has built
        monkeypatch.setattr(rebuild, "_fill", fill_and_wait)
        assert (await store.rebuild()).snapshots == 4
        gone, relabelled = made[3], made[2]
        assert {one.id async for one in store.list()} == set(made) - {gone}
        assert {one.id async for one in store.list(labels=["other:process"])} == {relabelled, made[4]}
        assert [(count.name, count.snapshots) for count in await store.apps()] == [("blog", 3), ("other", 1)]


async def carried(tmp_path: Path, workers: Workers, *, same_time: bool, order: int) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = [
        Snapshot(id=str(uuid.uuid4()), app=f"app{number}", created_at=start + timedelta(hours=number * (not same_time)))
        for number in range(4)
    ]
    url = "file:///x"
    async with (
        catalog_at(tmp_path / "index.db", url, workers) as old,
        catalog_at(tmp_path / "new.db", url, workers) as new,
    ):
        await old.put([(one, "before") for one in made])
        await Mirror(old.database).begin()
        await new.put([(one, "before") for one in made[::order]])
        changed = [Snapshot(id=one.id, app="renamed", created_at=one.created_at, labels=("a:1",)) for one in made[:2]]
        await old.put([(one, "after") for one in changed])
        await old.remove([id_bytes(made[2].id)])
        came = Snapshot(id=str(uuid.uuid4()), app="came", created_at=start, labels=("b",))
        await old.put([(came, "after")])
        await new.aclose()
        await replaced(tmp_path / "index.db", tmp_path / "new.db", workers)
        found = {one.id: (one.app, one.labels) for one in await all_of(old)}
        assert found == {
            made[0].id: ("renamed", ("a:1",)),
            made[1].id: ("renamed", ("a:1",)),
            made[3].id: ("app3", ()),
            came.id: ("came", ("b",)),
        }
        assert {one.id for one in (await old.page(Query(labels=("a:1",)), 9)).snapshots} == {made[0].id, made[1].id}
        assert look(tmp_path / "index.db", "PRAGMA foreign_key_check") == []


@pytest.mark.parametrize("order", [1, -1])
async def test_changes_are_carried_over_with_their_labels(tmp_path: Path, workers: Workers, order: int) -> None:
    await carried(tmp_path, workers, same_time=False, order=order)


@pytest.mark.parametrize(
    "order",
    [
        1,
        -1,
    ],
)
async def test_changes_of_snapshots_of_one_instant_are_carried_over(
    tmp_path: Path, workers: Workers, order: int
) -> None:
    """As those of the older system are, which knows seconds alone."""
    await carried(tmp_path, workers, same_time=True, order=order)


async def test_the_file_stays_the_same_and_private_and_nothing_is_left_beside_it(
    catalog: Catalog, tmp_path: Path
) -> None:
    index = tmp_path / "index.db"
    before = index.stat()
    for count in (1500, 10):
        await rebuild.rebuild(fleet(count), catalog)
        assert await all_of(catalog) == newest_first(count)
        after = index.stat()
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert after.st_size < 200_000, "it shrinks, too"
    assert set(names(tmp_path)) <= {"index.db", "index.db-wal", "index.db-shm", "index.db-lock"}


async def test_an_index_on_another_schema_beside_it_is_thrown_away(
    catalog: Catalog, tmp_path: Path, small_pages: None
) -> None:
    await cancelled_at(fleet(300, listings=1), catalog, 250)
    with closing(sqlite3.connect(tmp_path / "index.db-rebuild")) as beside:
        beside.execute("PRAGMA user_version = 99")
    await rebuild.rebuild(fleet(300), catalog)
    assert await all_of(catalog) == newest_first(300)
    assert not [name for name in names(tmp_path) if "-rebuild" in name]


async def test_an_index_of_another_store_beside_it_is_thrown_away(
    catalog: Catalog, tmp_path: Path, workers: Workers
) -> None:
    async with catalog_at(tmp_path / "index.db-rebuild", "file:///other", workers) as other:
        await other.put([(snapshot(9999, APPS), "etag")])
    await rebuild.rebuild(fleet(10), catalog)
    assert await all_of(catalog) == newest_first(10)
    assert not [name for name in names(tmp_path) if "-rebuild" in name]


def overwritten(body: bytes) -> bytes:
    return body[:4096] + b"\xff" * (len(body) - 4096)


def cut(body: bytes) -> bytes:
    return body[: len(body) // 2]


def no_database(body: bytes) -> bytes:
    return b"n" * 5000


@pytest.mark.parametrize("damage", [overwritten, cut, no_database])
async def test_what_is_damaged_beside_it_does_not_keep_a_rebuild_from_its_end(
    catalog: Catalog, tmp_path: Path, damage: Any, small_pages: None
) -> None:
    await damaged_beside(catalog, tmp_path, damage)


async def test_what_is_damaged_beside_it_is_thrown_away(catalog: Catalog, tmp_path: Path, small_pages: None) -> None:
    await damaged_beside(catalog, tmp_path, overwritten)
    assert not [name for name in names(tmp_path) if "-rebuild" in name]


async def damaged_beside(catalog: Catalog, tmp_path: Path, damage: Any) -> None:
    await cancelled_at(fleet(300, listings=1), catalog, 250)
    beside = tmp_path / "index.db-rebuild"
    with closing(sqlite3.connect(beside)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    beside.write_bytes(damage(beside.read_bytes()))
    await rebuild.rebuild(fleet(300), catalog)
    assert await all_of(catalog) == newest_first(300)


async def test_an_index_that_is_damaged_while_it_is_open_is_mended_by_a_rebuild(tmp_path: Path) -> None:
    """As the error advises; the caller need not open the store again."""
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        made = {(await store.create("blog", tmp_path / "app", labels=["x" * 900])).id for _ in range(12)}
        index = tmp_path / "index.db"
        with closing(sqlite3.connect(index)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            [(root,)] = connection.execute(
                "SELECT pageno FROM dbstat WHERE name = 'snapshot' AND pagetype = 'leaf' ORDER BY pageno LIMIT 1"
            )
        with index.open("r+b") as file:
            file.seek((root - 1) * 4096)
            file.write(b"\xff" * 4096)
        async with SnapStore.open(tmp_path / "store", index=tmp_path / "other.db") as other:
            made.add((await other.create("blog", tmp_path / "app")).id)
        with contextlib.suppress(CatalogError):
            await store.rebuild()
        async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as again:
            await again.sync()
            assert {one.id async for one in again.list()} == made


async def test_an_index_whose_file_was_deleted_while_it_was_open_is_told_or_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapstore.index.file.PATIENCE", 0.2)
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        made = await store.create("blog", tmp_path / "app")
        for file in tmp_path.glob("index.db*"):
            file.unlink()
        with contextlib.suppress(CatalogError):
            await store.rebuild()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        assert [one.id async for one in store.list()] == [made.id]


async def test_a_process_that_has_a_damaged_index_open_goes_over_to_the_new_one(tmp_path: Path) -> None:
    """Else two processes have two indexes, and neither is told what the other does."""
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        made = [(await store.create("blog", tmp_path / "app")).id]
        damage.remember(store.index)  # somebody met it in use
        async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as other:
            assert list(tmp_path.glob("index.db.damaged-*"))
            made.insert(0, (await store.create("blog", tmp_path / "app")).id)
            assert [one.id async for one in other.list()] == made
            made.insert(0, (await other.create("blog", tmp_path / "app")).id)
            assert [one.id async for one in store.list()] == made


@pytest.mark.parametrize("kind", ["foreign", "another store's", "newer"])
async def test_what_is_not_ours_to_replace_is_refused_and_kept(tmp_path: Path, workers: Workers, kind: str) -> None:
    index = tmp_path / "index.db"
    error: type[CatalogError] = CatalogMismatch
    if kind == "foreign":
        index.write_bytes(b"somebody's notes, longer than a header has to be" * 20)
    else:
        url = "fleet://other" if kind == "another store's" else FleetStore.url
        async with catalog_at(index, url, workers) as catalog:
            await catalog.put([(snapshot(1, APPS), "etag")])
        if kind == "newer":
            error = CatalogTooNew
            with closing(sqlite3.connect(index)) as connection:
                connection.execute("PRAGMA user_version = 99")
    before = index.read_bytes()
    with pytest.raises(error) as caught:
        await Catalog.open(str(index), FleetStore.url, workers)
    assert caught.value.path == str(index)
    assert index.read_bytes() == before
    assert not [name for name in names(tmp_path) if "damaged" in name]


def steps_of(path: Path, query: Query, limit: int) -> tuple[int, int]:
    """SQLite's own steps for a page, what is counted for it included, and how many rows it has."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    with closing(sqlite3.connect(path)) as connection:
        connection.set_progress_handler(step, 10)
        rarity = Rarity()
        if count := counting(query):
            rarity = count.rarity(connection.execute(count.sql, count.values).fetchone())
        sql, values = page_statement(query, None, rarity)
        return len(connection.execute(sql, [*values, limit + 1]).fetchall()), steps * 10


@pytest.mark.parametrize("count", [1000, 4000, 16000])
async def test_a_page_is_read_by_what_is_rarest_whatever_the_size(catalog: Catalog, tmp_path: Path, count: int) -> None:
    """One label that all have, and one of a few, which are the oldest: the worst for whoever reads by the first."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    few = 5
    made = [
        Snapshot(
            id=str(uuid.UUID(int=number)),
            app="rare" if number < few else "blog",
            created_at=start + timedelta(seconds=number),
            labels=("all", "few:1") if number < few else ("all",),
        )
        for number in range(count)
    ]
    await catalog.put([(one, "etag") for one in made])
    path = tmp_path / "index.db"
    queries = [
        Query(labels=("all", "few:1")),
        Query(labels=("few:1", "all")),
        Query(labels=("all", "few")),
        Query(labels=("all",), apps=("rare",)),
        Query(labels=("few:1",), apps=("blog", "rare")),
        Query(labels=("all", "few:1"), apps=("rare",)),
    ]
    for query in queries:
        found, steps = steps_of(path, query, 50)
        assert found == few, query
        assert steps < 40_000, (query, steps)  # for the largest, reading by `all` takes ten times as many
        assert [one.id for one in (await catalog.page(query, 50)).snapshots] == [one.id for one in made[few - 1 :: -1]]
    assert steps_of(path, Query(labels=("all", "nothing")), 50)[0] == 0


@pytest.mark.parametrize("name", ["a#b.db", "a?b.db", "a%41b.db", "a b.db"])
async def test_an_index_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    index = tmp_path / "indexes" / name
    async with SnapStore.open(tmp_path / "bucket", index=index) as store:
        made = await store.create("blog", tmp_path / "folder")
        report = await store.rebuild()
        assert (report.snapshots, report.problems) == (1, ())
        assert [one.id async for one in store.list()] == [made.id]
    assert names(index.parent) == [name, f"{name}-lock"]


async def test_thousands_of_one_instant_are_put_as_those_of_many_are(tmp_path: Path, workers: Workers) -> None:
    """As the older system's are, which knows seconds alone; counted in steps of SQLite's machine."""
    start, steps = datetime(2026, 1, 1, tzinfo=UTC), []
    for name, apart in (("many", timedelta(seconds=1)), ("one", timedelta())):
        made = [Snapshot(id=str(uuid.uuid4()), app="blog", created_at=start + number * apart) for number in range(4000)]
        async with catalog_at(tmp_path / f"{name}.db", "file:///x", workers) as catalog:
            await catalog.put([(made[0], "etag")])
            connection = catalog.database._writer
            assert connection is not None
            thousands = 0

            def count() -> int:
                nonlocal thousands
                thousands += 1
                return 0

            await connection.set_progress_handler(count, 1000)
            for first in range(0, len(made), 500):
                await catalog.put([(one, "etag") for one in made[first : first + 500]])
            steps.append(thousands)
            assert len(await all_of(catalog)) == len(made)
            found = [one.id async for one in _paged(catalog)]
            assert len(found) == len(set(found)) == len(made)
            positions = look(tmp_path / f"{name}.db", "SELECT max(position) - min(position) FROM snapshot")[0][0]
            assert positions < 1_000_000 or apart
    assert steps[1] < 10 * steps[0]  # to walk past all that are there took two hundred times as many


async def _paged(catalog: Catalog) -> AsyncIterator[Snapshot]:
    cursor = None
    while True:
        page = await catalog.page(Query(), 300, cursor)
        for one in page.snapshots:
            yield one
        if (cursor := page.cursor) is None:
            return


async def test_what_an_abandoned_rebuild_has_left_goes_with_a_later_sync(tmp_path: Path) -> None:
    fleet = Remembering(10)
    async with SnapStore.open(fleet, index=tmp_path / "index.db") as store:
        left = Path(f"{store.index}-rebuild")
        left.write_text("left behind")
        await store.sync()
        assert left.exists()
        os.utime(left, (0, 0))
        await store.sync(recent=timedelta(hours=1))
        assert left.exists()
        await store.sync()
        assert not left.exists()
