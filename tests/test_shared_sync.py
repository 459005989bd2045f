"""Syncs are shared: who wants one at once has one together, and nobody gets one that began before he asked.

By tasks of a process, and by processes that use one index file; in the background; and with ten processes at once.
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet import FleetStore
from snapstore import InvalidInput, Progress, SnapStore, StorageError, keys
from snapstore.aio import Workers
from snapstore.engine import opened as engine
from snapstore.engine.shared import Asked
from snapstore.index import sync as index_sync
from snapstore.index.catalog import Catalog
from snapstore.index.comparison import Comparison
from snapstore.index.lock import turn
from snapstore.keys import METADATA_PREFIX
from snapstore.objectstore import ObjectInfo, ObjectStore
from tests.places import wrapped
from tests.scripts import said, script

HOUR = timedelta(hours=1)


class Counted:
    """A store whose listings of metadata are counted, can be held back, and can fail."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.asked: Counter[str] = Counter()
        self.listing = asyncio.Event()
        """One has begun."""
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, key: str, **options: Any) -> Any:
        self.asked["get"] += 1
        return await self._store.get(key, **options)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        if prefix == METADATA_PREFIX:
            self.asked["list"] += 1
            self.listing.set()
            await self.go_on.wait()
            if self.failure is not None:
                raise self.failure
        async for page in self._store.list(prefix, start_after=start_after):
            self.asked["listed"] += len(page)
            yield page


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    return wrapped(monkeypatch, Counted)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "app"
    made.mkdir()
    (made / "file").write_text("content")
    return made


def opening(tmp_path: Path, index: str = "one.db", **options: Any) -> SnapStore:
    return SnapStore.open(tmp_path / "store", index=tmp_path / index, **options)


@pytest.fixture
async def one(counted: list[Counted], tmp_path: Path, folder: Path) -> AsyncIterator[SnapStore]:
    async with opening(tmp_path) as store:
        counted[0].asked.clear()
        counted[0].listing.clear()
        yield store


@pytest.fixture
async def beside(one: SnapStore, counted: list[Counted], tmp_path: Path) -> AsyncIterator[SnapStore]:
    """Another on the same index, as another process would have."""
    async with opening(tmp_path) as store:
        counted[1].asked.clear()
        counted[1].listing.clear()
        yield store


@pytest.fixture
async def two(beside: SnapStore, tmp_path: Path) -> AsyncIterator[SnapStore]:
    """Another node."""
    async with opening(tmp_path, "two.db") as store:
        yield store


async def ids(store: SnapStore, **filters: Any) -> list[str]:
    return [snapshot.id async for snapshot in store.list(**filters)]


async def settled(turns: int = 20) -> None:
    """All that can run now has run."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.001)


async def test_tasks_that_want_a_sync_at_once_share_one(one: SnapStore, counted: list[Counted]) -> None:
    reports = await asyncio.gather(*(one.sync() for _ in range(20)))
    assert counted[0].asked["list"] == 1
    assert all(report is reports[0] for report in reports)


async def test_who_comes_while_one_runs_gets_the_next_together_with_all_who_do(
    one: SnapStore, two: SnapStore, counted: list[Counted], folder: Path
) -> None:
    counted[0].go_on.clear()
    first = asyncio.create_task(one.sync())
    await counted[0].listing.wait()
    late = [asyncio.create_task(one.sync()) for _ in range(10)]
    await settled()
    counted[0].go_on.set()
    await asyncio.gather(first, *late)
    assert counted[0].asked["list"] == 2


async def test_who_comes_later_gets_a_sync_that_began_after_he_asked(
    one: SnapStore, two: SnapStore, counted: list[Counted], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that runs has passed by already what was made since."""
    passed, go_on = asyncio.Event(), asyncio.Event()
    compare = Comparison.compare

    async def compare_late(self: Any, *args: Any) -> None:
        if not passed.is_set():
            passed.set()
            await go_on.wait()
        await compare(self, *args)

    monkeypatch.setattr(Comparison, "compare", compare_late)
    first = asyncio.create_task(one.sync())
    await passed.wait()
    made = await two.create("blog", folder)
    second = asyncio.create_task(one.sync())
    await settled()
    go_on.set()
    await first
    assert await ids(one) == []
    assert (await second).read == 1
    assert await ids(one) == [made.id]


async def test_all_who_share_a_sync_are_told_of_its_progress(
    one: SnapStore, two: SnapStore, folder: Path, counted: list[Counted]
) -> None:
    await two.create("blog", folder)
    told: list[list[Progress]] = [[], [], []]
    await asyncio.gather(*(one.sync(progress=steps.append) for steps in told))
    assert told[0]
    assert told[0] == told[1] == told[2]
    assert counted[0].asked["list"] == 1


async def test_processes_that_want_a_sync_at_once_share_one(
    one: SnapStore, beside: SnapStore, counted: list[Counted]
) -> None:
    """Both ask while a third has its turn: who has his next spares the other his own."""
    async with turn(one.index):
        waiting = [asyncio.create_task(store.sync()) for store in (one, beside)]
        await settled()
    reports = await asyncio.gather(*waiting)
    assert counted[0].asked["list"] + counted[1].asked["list"] == 1
    assert [report.snapshots for report in reports] == [0, 0]


async def test_who_is_spared_a_sync_is_told_of_the_same_problems(
    one: SnapStore, beside: SnapStore, folder: Path, tmp_path: Path
) -> None:
    metadata = tmp_path / "store" / "_metadata"
    metadata.mkdir()
    (metadata / "README").write_text("read me")
    async with turn(one.index):
        waiting = [asyncio.create_task(store.sync()) for store in (one, beside)]
        await settled()
    reports = await asyncio.gather(*waiting)
    assert [len(report.problems) for report in reports] == [1, 1]


async def test_who_asks_while_another_process_syncs_has_one_of_his_own(
    one: SnapStore, beside: SnapStore, counted: list[Counted]
) -> None:
    counted[0].go_on.clear()
    first = asyncio.create_task(one.sync())
    await counted[0].listing.wait()
    second = asyncio.create_task(beside.sync())
    await settled()
    counted[0].go_on.set()
    await asyncio.gather(first, second)
    assert (counted[0].asked["list"], counted[1].asked["list"]) == (1, 1)


async def test_a_recent_sync_of_another_process_does_not_spare_a_whole_one(
    one: SnapStore, beside: SnapStore, counted: list[Counted]
) -> None:
    await one.sync()
    async with turn(one.index):
        recent = asyncio.create_task(beside.sync(recent=HOUR))
        whole = asyncio.create_task(one.sync())
        await settled()
    await asyncio.gather(recent, whole)
    assert counted[0].asked["list"] == 2


async def test_a_recent_sync_of_another_process_spares_one_of_its_window_or_a_smaller(
    one: SnapStore, beside: SnapStore, counted: list[Counted], tmp_path: Path
) -> None:
    for window, asks in ((HOUR, 0), (HOUR / 2, 0), (HOUR * 2, 1)):
        asked = Asked()
        made = begun(tmp_path, hours=window / HOUR * 0.9)
        await beside.sync(recent=max(window, HOUR) if not asks else HOUR)
        before = counted[0].asked["list"]
        report = await one._syncing._sync(window, asked)
        assert counted[0].asked["list"] - before == asks
        assert made in await ids(one)
        assert report.snapshots == (len(await ids(one)) if not asks else 3)


async def test_a_sync_of_a_small_window_does_not_spare_one_of_a_large_window(
    one: SnapStore, beside: SnapStore, two: SnapStore, tmp_path: Path
) -> None:
    made = begun(tmp_path, hours=3)
    asked = Asked()
    await beside.sync(recent=timedelta(seconds=1))  # has its turn while the other waits for his
    await one._syncing._sync(timedelta(hours=6), asked)
    assert await ids(one) == [made]


async def test_a_clock_that_was_ahead_once_does_not_end_all_syncs(one: SnapStore, two: SnapStore, folder: Path) -> None:
    """As it is on a machine that has just booted, before it has asked for the time."""
    with closing(sqlite3.connect(one.index)) as index:
        index.execute("UPDATE store SET synced = synced + 86400000000, synced_recent = synced_recent + 86400000000")
        index.commit()
    made = await two.create("blog", folder)
    await one.sync(recent=HOUR)
    await one.sync()
    assert await ids(one) == [made.id]


async def test_who_is_cancelled_leaves_the_others_theirs(
    one: SnapStore, two: SnapStore, counted: list[Counted], folder: Path
) -> None:
    counted[0].go_on.clear()
    sharers = [asyncio.create_task(one.sync()) for _ in range(3)]
    await counted[0].listing.wait()
    for gone in sharers[:2]:
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
    assert not sharers[2].done()
    made = await two.create("blog", folder)
    counted[0].go_on.set()
    assert (await sharers[2]).read == 1
    assert await ids(one) == [made.id]
    assert counted[0].asked["list"] == 1


async def test_when_all_are_cancelled_the_work_ends_and_the_lock_is_free(
    one: SnapStore, beside: SnapStore, counted: list[Counted]
) -> None:
    counted[0].go_on.clear()
    sharers = [asyncio.create_task(one.sync()) for _ in range(3)]
    await counted[0].listing.wait()
    for gone in sharers:
        gone.cancel()
    assert [type(error) for error in await asyncio.gather(*sharers, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 3
    await beside.sync()  # has its turn, though the other's store answers nothing yet
    counted[0].go_on.set()
    await one.sync()
    assert counted[0].asked["list"] == 2
    with closing(sqlite3.connect(one.index)) as index:
        assert index.execute("SELECT syncing FROM store").fetchall() == [(0,)]


async def test_who_waits_for_his_turn_can_be_cancelled(one: SnapStore, counted: list[Counted]) -> None:
    async with turn(one.index):
        for call in (one.sync(), one.rebuild(), one.checkpoint(), one.sync(recent=HOUR)):
            waiting = asyncio.create_task(call)
            await settled()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
    await one.sync()
    assert counted[0].asked["list"] == 1


async def test_a_new_one_can_be_asked_for_while_a_cancelled_one_ends(one: SnapStore, counted: list[Counted]) -> None:
    counted[0].go_on.clear()
    first = asyncio.create_task(one.sync())
    await counted[0].listing.wait()
    first.cancel()
    second = asyncio.create_task(one.sync())
    await settled()
    counted[0].go_on.set()
    assert (await second).snapshots == 0
    with suppress(asyncio.CancelledError):
        await first


async def test_all_who_share_one_that_fails_are_told_and_the_next_is_made_anew(
    one: SnapStore, counted: list[Counted]
) -> None:
    counted[0].failure = StorageError("the line was cut")
    errors = await asyncio.gather(*(one.sync() for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in errors] == ["the line was cut"] * 3
    assert counted[0].asked["list"] == 1
    counted[0].failure = None
    assert (await one.sync()).snapshots == 0


async def test_one_that_is_killed_while_it_has_its_turn_frees_it(one: SnapStore, tmp_path: Path) -> None:
    holder = script(HOLDER, one.index)
    assert await said(holder) == "held\n"
    waiting = asyncio.create_task(one.sync())
    await settled()
    assert not waiting.done()
    holder.kill()
    assert (await waiting).snapshots == 0
    holder.communicate()


HOLDER = """
import asyncio, sys, time
from snapstore.index.lock import turn

async def main():
    async with turn(sys.argv[1]):
        print("held", flush=True)
        time.sleep(60)

asyncio.run(main())
"""


async def test_a_fresh_list_and_a_fresh_page_sync_first(
    one: SnapStore, two: SnapStore, counted: list[Counted], folder: Path
) -> None:
    made = [(await two.create("blog", folder)).id]
    assert await ids(one) == []
    assert await ids(one, fresh=True) == made
    made.insert(0, (await two.create("blog", folder)).id)
    assert [found.id for found in (await one.page()).snapshots] == made[1:]
    assert [found.id for found in (await one.page(fresh=True)).snapshots] == made
    counted[0].asked.clear()
    await asyncio.gather(*(one.page(fresh=True) for _ in range(10)))
    assert counted[0].asked == {"list": 1, "listed": 2}


async def test_a_fresh_list_syncs_once_whatever_its_length(
    one: SnapStore, two: SnapStore, counted: list[Counted], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapstore.engine.listing._PAGE", 2)
    made = [(await two.create("blog", folder)).id for _ in range(5)]
    assert await ids(one, fresh=True) == made[::-1]
    assert counted[0].asked["list"] == 1


async def test_a_fresh_list_that_cannot_sync_is_an_error(one: SnapStore, counted: list[Counted]) -> None:
    counted[0].failure = StorageError("the line was cut")
    with pytest.raises(StorageError):
        await ids(one, fresh=True)
    with pytest.raises(StorageError):
        await one.page(fresh=True)
    assert await ids(one) == []


def begun(tmp_path: Path, *, hours: float) -> str:
    """A snapshot that was begun so long ago, and whose metadata is written only now."""
    made = keys.new_id(int((time.time() - hours * 3600) * 1000))
    path = tmp_path / "store" / "_metadata" / made
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{{"uuid":"{made}","app_name":"slow","ts":{int(time.time())},"labels":[]}}')
    return made


async def test_a_recent_sync_misses_nothing_that_was_begun_within_its_window(
    one: SnapStore, two: SnapStore, tmp_path: Path
) -> None:
    within = begun(tmp_path, hours=5.9)
    beyond = begun(tmp_path, hours=6.1)
    assert (await one.sync(recent=timedelta(hours=6))).read == 1
    assert await ids(one) == [within]
    again = begun(tmp_path, hours=5.9)
    ahead = begun(tmp_path, hours=-23)  # of a node whose clock is ahead
    await one.sync(recent=timedelta(hours=6))
    assert set(await ids(one)) == {within, again, ahead}
    await one.sync()
    assert set(await ids(one)) == {within, again, ahead, beyond}


async def test_the_window_is_counted_from_the_last_sync_however_long_ago_that_was(
    one: SnapStore, two: SnapStore, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(one.index)) as index:
        index.execute("UPDATE store SET synced = synced - 864000000000, synced_recent = synced_recent - 864000000000")
        index.commit()
    made = begun(tmp_path, hours=9 * 24)
    await one.sync(recent=HOUR)
    assert await ids(one) == [made]


async def test_a_recent_sync_does_not_count_as_a_whole_one(one: SnapStore, two: SnapStore, folder: Path) -> None:
    before = await one.index_status()
    made = await two.create("blog", folder)
    await one.sync(recent=HOUR)
    assert await ids(one) == [made.id]
    assert (await one.index_status()).synced_at == before.synced_at


async def test_recent_syncs_keep_the_labels_and_deletions_of_old_ones_for_a_whole_one(
    one: SnapStore, two: SnapStore, folder: Path, tmp_path: Path
) -> None:
    old = begun(tmp_path, hours=48)
    new = await two.create("blog", folder)
    await one.sync()
    await two.sync()
    for wanted in (old, new.id):
        (tmp_path / "store" / "_metadata" / wanted).unlink()
    assert (await one.sync(recent=HOUR)).removed == 1
    assert await ids(one) == [old]
    assert (await one.sync()).removed == 1
    assert await ids(one) == []


async def test_a_negative_window_is_refused_and_none_at_all_is_not(one: SnapStore) -> None:
    with pytest.raises(InvalidInput):
        await one.sync(recent=timedelta(seconds=-1))
    await one.sync(recent=timedelta(0))


async def test_a_recent_sync_lists_none_of_the_old_ones(tmp_path: Path) -> None:
    """Of 10,000, which are months older than now: the window alone is listed, in one request."""
    store = FleetStore(10_000, apps=50)
    workers = Workers(2, "test")
    catalog = await Catalog.open(str(tmp_path / "index.db"), store.url, workers)
    try:
        assert (await index_sync.sync(store, catalog, recent=HOUR)).snapshots == 10_000, "the first one is whole"
        store.requests.clear()
        report = await index_sync.sync(store, catalog, recent=HOUR)
        assert report.read == 0
        assert store.requests == {"list": 1}
    finally:
        await catalog.aclose()
        workers.close()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> timedelta:
    """A pace that is refused otherwise."""
    monkeypatch.setattr(engine, "_FASTEST", timedelta(0))
    return timedelta(milliseconds=5)


@pytest.mark.parametrize("seconds", [0.999, 0.0, -5.0])
async def test_a_pace_under_a_second_is_refused(tmp_path: Path, seconds: float) -> None:
    store = opening(tmp_path, sync_every=timedelta(seconds=seconds))
    with pytest.raises(InvalidInput, match="sync_every"):
        await store
    assert not (tmp_path / "one.db").exists()


async def test_a_store_follows_what_other_nodes_do(
    tmp_path: Path, folder: Path, fast: timedelta, counted: list[Counted]
) -> None:
    async with opening(tmp_path, sync_every=fast) as one, opening(tmp_path, "two.db") as two:
        made = await two.create("blog", folder)
        async with asyncio.timeout(20):
            while await ids(one) != [made.id]:
                await asyncio.sleep(0.005)
        lists = counted[0].asked["list"]
        await until(lambda: counted[0].asked["list"] > lists + 3)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "it ended with the store"


async def test_of_processes_that_follow_with_one_index_one_asks_for_all(
    tmp_path: Path, folder: Path, counted: list[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_FASTEST", timedelta(0))
    every = timedelta(milliseconds=300)
    async with AsyncExitStack() as opened:
        stores = [await opened.enter_async_context(opening(tmp_path, sync_every=every)) for _ in range(4)]
        other = await opened.enter_async_context(opening(tmp_path, "two.db"))
        began, before = time.monotonic(), sum(each.asked["list"] for each in counted)
        made = await other.create("blog", folder)
        async with asyncio.timeout(20):
            while await ids(stores[3]) != [made.id]:
                await asyncio.sleep(0.01)
        await asyncio.sleep(10 * every.total_seconds())
        turns = (time.monotonic() - began) / every.total_seconds()
        lists = sum(each.asked["list"] for each in counted) - before
    assert turns / 2 <= lists <= turns * 1.5 + 2


async def test_the_first_is_whole_and_so_is_one_an_hour(
    tmp_path: Path, folder: Path, fast: timedelta, counted: list[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opening(tmp_path) as one:
        made = begun(tmp_path, hours=48)
    async with opening(tmp_path, sync_every=fast) as one:
        async with asyncio.timeout(20):
            while await ids(one) != [made]:
                await asyncio.sleep(0.005)
        later = begun(tmp_path, hours=48)
        lists = counted[-1].asked["list"]
        await until(lambda: counted[-1].asked["list"] > lists + 3)
        assert await ids(one) == [made], "those in between look for new ones alone"
        with closing(sqlite3.connect(one.index, isolation_level=None)) as index:
            index.execute("UPDATE store SET synced = synced - 3600 * 1000000")
        async with asyncio.timeout(20):
            while set(await ids(one)) != {made, later}:
                await asyncio.sleep(0.005)


async def test_the_background_goes_on_after_errors_and_tells_each_once(
    tmp_path: Path, folder: Path, fast: timedelta, counted: list[Counted], caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    async with opening(tmp_path, sync_every=fast) as one, opening(tmp_path, "two.db") as two:
        for message in ("the line was cut", "the disk is full"):
            counted[0].failure = StorageError(message)
            lists = counted[0].asked["list"]
            await until(lambda lists=lists: counted[0].asked["list"] > lists + 4)
            assert told()[-1].endswith(message)
        assert len(told()) == 2
        counted[0].failure = None
        made = await two.create("blog", folder)
        async with asyncio.timeout(20):
            while await ids(one) != [made.id]:
                await asyncio.sleep(0.005)
        counted[0].failure = StorageError("the disk is full")
        await until(lambda: len(told()) == 3)  # it was well in between
    assert len(told()) == 3


async def test_closing_ends_a_background_sync_that_hangs(
    tmp_path: Path, folder: Path, fast: timedelta, counted: list[Counted]
) -> None:
    async with opening(tmp_path):
        pass
    store = await opening(tmp_path, sync_every=fast)
    counted[-1].go_on.clear()
    counted[-1].listing.clear()
    await counted[-1].listing.wait()
    await store.aclose()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    async with turn(str(tmp_path / "one.db")):
        pass


async def test_a_call_shares_the_sync_of_the_background_or_gets_the_next(
    tmp_path: Path, folder: Path, fast: timedelta, counted: list[Counted]
) -> None:
    async with opening(tmp_path, sync_every=fast) as one, opening(tmp_path, "two.db") as two:
        for number in range(1, 11):
            await two.create("blog", folder)
            assert len(await ids(one, fresh=True)) == number


SYNCER = """
import asyncio, sys
from pathlib import Path
from snapstore import SnapStore
from snapstore.engine import opened as engine
from snapstore.storage.urls import open_store
from tests.test_shared_sync import Counted

async def main(base):
    made = []

    async def open_counted(*args, **options):
        made.append(Counted(await open_store(*args, **options)))
        return made[-1]

    engine.open_store = open_counted
    async with SnapStore.open(base / "store", index=base / "one.db") as store:
        made[0].asked.clear()
        waiting = asyncio.create_task(store.sync())
        await asyncio.sleep(0.05)
        print("asked", flush=True)
        report = await waiting
        print(made[0].asked["list"], report.snapshots)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_four_processes_that_wait_for_their_turn_share_one_listing(tmp_path: Path, folder: Path) -> None:
    async with opening(tmp_path, "two.db") as two, opening(tmp_path) as one:
        await two.create("blog", folder)
        async with turn(one.index):
            processes = [script(SYNCER, tmp_path) for _ in range(4)]
            for process in processes:
                assert await said(process) == "asked\n"
        ended = [await asyncio.to_thread(process.communicate) for process in processes]
    assert [errors for _, errors in ended if errors] == []
    counts = [tuple(map(int, output.split())) for output, _ in ended]
    assert sorted(lists for lists, _ in counts) == [0, 0, 0, 1]
    assert {snapshots for _, snapshots in counts} == {1}


SOAKED = """
import asyncio, sys, time
from datetime import timedelta
from pathlib import Path
from snapstore import SnapStore

async def main(base, number, seconds):
    app, made, until = f"app{number}", [], time.monotonic() + seconds
    async with SnapStore.open(base / "store", index=base / "one.db", sync_every=timedelta(seconds=1)) as store:

        async def work():
            while time.monotonic() < until:
                made.append((await store.create(app, base / "app", labels=["all", f"n:{len(made)}"])).id)
                assert [one.id async for one in store.list(apps=[app])] == made[::-1]
                if len(made) % 3 == 0:
                    await store.delete(made.pop(0))
                if len(made) % 4 == 0:
                    await store.relabel(made[-1], add=["more"])
                    assert "more" in (await store.get(made[-1])).labels

        async def read():
            while time.monotonic() < until:
                await asyncio.gather(*(store.page(labels=["all"], limit=20) for _ in range(4)), store.apps())
                await asyncio.sleep(0.01)

        async def sync():
            while time.monotonic() < until:
                await store.sync()
                await asyncio.sleep(0.05)
                if number == 0:
                    await store.rebuild()
                    await store.checkpoint()

        await asyncio.gather(work(), read(), sync())
        assert [one.id async for one in store.list(apps=[app], fresh=True)] == made[::-1]
    print(len(made))

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
"""


@pytest.mark.timeout(300)
def test_ten_processes_list_create_and_sync_on_one_index(tmp_path: Path, folder: Path) -> None:
    """For six seconds, or as many as SNAPSTORE_SOAK says: not one of them is told that the index is locked."""
    seconds = os.environ.get("SNAPSTORE_SOAK", "6")
    processes = [script(SOAKED, tmp_path, number, seconds) for number in range(10)]
    ended = [process.communicate(timeout=240) for process in processes]
    assert [errors for _, errors in ended if errors] == []
    total = sum(int(output) for output, _ in ended)
    with closing(sqlite3.connect(tmp_path / "one.db")) as index:
        assert index.execute("SELECT count(*) FROM snapshot").fetchall() == [(total,)]
        assert index.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert index.execute("PRAGMA foreign_key_check").fetchall() == []
    assert len(list((tmp_path / "store" / "_metadata").iterdir())) == total
