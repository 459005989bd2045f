"""Living inside somebody's service: cancelled anywhere, shared by many, closed without a trace.

Three ways lead to each await: the task's own suspensions one after another (`Interrupted`), the calls of the object
store (`Gated`), and turns of the event loop drawn by lot.
"""

import asyncio
import errno
import gc
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard

from snapstore import (
    InvalidInput,
    Limits,
    MemberNotFound,
    Progress,
    SnapshotNotFound,
    SnapStore,
    SourceNotFound,
    SourceUnreadable,
    StorageError,
    StoreClosed,
)
from snapstore.aio import Workers
from snapstore.engine import opened as engine_store
from snapstore.engine import parts, reader, writer
from snapstore.objectstore import ObjectStore
from snapstore.storage.local import LocalStore
from snapstore.storage.urls import open_store
from tests.places import wrapped

SEED = 20260102
EXISTING = ("refuse", "merge", "replace")


class Interrupted:
    """Runs a coroutine and cancels its task at the ``at``-th suspension of all tasks that it begins; counts them.

    With ``late``, just when the awaited answer has come, and before the task that awaits it has seen it.
    """

    def __init__(self, at: int = 0, *, late: bool = False) -> None:
        self._at = at
        self._late = late
        self._task: asyncio.Task[Any] | None = None
        self.steps = 0

    async def run(self, work: Coroutine[Any, Any, Any]) -> BaseException | None:
        """The CancelledError, where it came to that. Other errors come out."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, started, **more: asyncio.Task(Stepped(started, self), loop=loop, **more))
        try:
            self._task = asyncio.create_task(work)
            return await outcome(self._task)
        finally:
            loop.set_task_factory(None)

    def suspended(self, awaited: Any) -> None:
        self.steps += 1
        if self.steps != self._at:
            return
        assert self._task is not None
        if self._late and awaited is not None:
            awaited.add_done_callback(lambda _: self._task.cancel())  # type: ignore[union-attr]
        else:
            asyncio.get_running_loop().call_soon(self._task.cancel)


class Stepped(Coroutine[Any, Any, Any]):
    """A coroutine whose suspensions are told to somebody."""

    def __init__(self, work: Coroutine[Any, Any, Any], watcher: Interrupted) -> None:
        self._work = work
        self._watcher = watcher

    def send(self, value: Any) -> Any:
        return self._told(self._work.send(value))

    def throw(self, *error: Any) -> Any:
        return self._told(self._work.throw(*error))

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()

    def _told(self, awaited: Any) -> Any:
        self._watcher.suspended(awaited)
        return awaited


class Gated:
    """A store whose ``at``-th call waits at a gate, before it is done or (``after``) when it is done already."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.arm(0)

    def arm(self, at: int, *, after: bool = False) -> None:
        self.calls = 0
        self._at = at
        self._after = after
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(found) or name == "aclose":
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            stops = self.calls == self._at
            if stops and not self._after:
                await self._wait()
            result = await found(*args, **kwargs)
            if stops and self._after:
                await self._wait()
            return result

        return call

    async def _wait(self) -> None:
        self.reached.set()
        await self.gate.wait()


class House:
    """An open store, what it must look like from outside, and a folder to pack."""

    def __init__(self, base: Path, store: SnapStore, gated: Gated) -> None:
        self.base = base
        self.store = store
        self.gated = gated
        self.app = base / "app"
        self.target = base / "around" / "target"
        self.kept: dict[str, bytes] = {}
        self.snapshot_id = ""
        self.open_files: set[str] = set()
        self.tasks: set[asyncio.Task[Any]] = set()

    async def prepare(self) -> None:
        make_app(self.app)
        self.target.parent.mkdir()
        self.snapshot_id = (await self.store.create("blog", self.app)).id
        await self.store.restore(self.snapshot_id, self.base / "first")
        # All readers of the index, so that what is open does not grow by itself.
        await asyncio.gather(*(self.store.page() for _ in range(32)))
        self.open_files = open_files()
        self.tasks = other_tasks()

    async def create(self) -> Any:
        return await self.store.create("blog", self.app)

    def lay_out(self, existing: str) -> None:
        """The target as it is before a restore: empty or, where something may be there, with a file of its own."""
        self.target.mkdir()
        self.kept = {}
        if existing != "refuse":
            (self.target / "big").write_bytes(b"old")
            (self.target / "own").write_bytes(b"own")
            self.kept = contents(self.target)

    def restoring(self, existing: str) -> Coroutine[Any, Any, Any]:
        return self.store.restore(self.snapshot_id, self.target, existing=existing)  # type: ignore[arg-type]

    async def check_bucket(self, snapshots: int = 1) -> None:
        listed = [snapshot async for snapshot in self.store.list()]
        assert len(listed) == snapshots
        root = self.base / "store"
        objects = {path.name for path in root.iterdir() if path.name not in (".snapstore", "_metadata")}
        assert objects == {snapshot.key for snapshot in listed}, "an archive without a snapshot"
        assert {path.name for path in (root / "_metadata").iterdir()} == {snapshot.id for snapshot in listed}
        assert [page async for page in self.gated.list_uploads()] == [[]]
        assert not list((root / ".snapstore" / "tmp").iterdir())
        self.check_process()

    def check_target(self, existing: str, *, done: bool) -> None:
        """Whole, or as it was; in a merge each file is the old or the new one."""
        assert not list(self.target.parent.rglob(".snapstore-*"))
        assert [path.name for path in self.target.parent.iterdir()] == ["target"]
        found, new = contents(self.target), contents(self.app)
        if existing == "merge":
            new |= {"own": b"own"}
            for path, content in found.items():
                assert content in (self.kept.get(path), new.get(path)), path
            assert self.kept.keys() <= found.keys()
        assert existing == "merge" or found in (self.kept, new)
        assert not done or found == new
        self.check_process()

    def check_process(self) -> None:
        assert open_files() == self.open_files
        assert {task for task in other_tasks() if not task.done()} <= self.tasks


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """Small parts and groups, so that a small folder makes all kinds of calls."""
    monkeypatch.setattr(writer, "part_size", lambda *_: 64 << 10)
    monkeypatch.setattr(reader, "_GROUP", 1)
    async with gated_store(tmp_path, monkeypatch) as (store, gated):
        made = House(tmp_path, store, gated)
        await made.prepare()
        yield made


@asynccontextmanager
async def gated_store(base: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[SnapStore, Gated]]:
    opened = wrapped(monkeypatch, Gated)
    async with SnapStore.open(base / "store", index=base / "index.db") as store:
        yield store, opened[0]


def make_app(folder: Path, files: int = 5) -> None:
    """Some files that do not compress, one large sparse one, and links."""
    drawn = random.Random(SEED)
    (folder / "deep" / "er").mkdir(parents=True)
    for number in range(files):
        (folder / "deep" / f"{number}").write_bytes(drawn.randbytes(40_000))
    with open(folder / "big", "wb") as file:
        file.write(b"head")
        file.truncate(9 << 20)
    os.link(folder / "deep" / "0", folder / "hard")
    (folder / "soft").symlink_to("deep/0")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def open_files() -> set[str]:
    """Every descriptor with what it is open on; SQLite's own shared memory comes and goes."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return {line for line in found if "/proc/" not in line}


def other_tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[return-value]


def ours() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread is not threading.current_thread()}


def join(threads: set[threading.Thread]) -> None:
    """A thread that was told to end needs a moment; one that was not would keep us until the limit."""
    limit = time.monotonic() + 5
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))


@pytest.fixture
def traceless() -> Iterator[None]:
    """Nothing but the test's own things is left: no thread, no descriptor."""
    threads, files = ours(), open_files()
    yield
    join(ours() - threads)
    gc.collect()
    assert ours() - threads == set()
    assert open_files() == files


async def outcome(work: Awaitable[Any]) -> BaseException | None:
    """How a cancelled task ended. Anything but success and CancelledError is a failure of the test."""
    try:
        await work
    except asyncio.CancelledError as cancelled:
        return cancelled
    return None


async def count_steps(work: Coroutine[Any, Any, Any]) -> int:
    counted = Interrupted()
    await counted.run(work)
    return counted.steps


async def interrupted(work: Coroutine[Any, Any, Any], at: int, *, late: bool) -> BaseException | None:
    return await Interrupted(at, late=late).run(work)


@pytest.mark.parametrize("late", [False, True])
async def test_a_create_cancelled_at_any_of_its_awaits_leaves_nothing(house: House, late: bool) -> None:
    total = await count_steps(house.create())
    await house.store.delete("blog@latest")
    for at in range(1, total + 1):
        ended = await interrupted(house.create(), at, late=late)
        if ended is None:
            await house.store.delete("blog@latest")
        await house.check_bucket()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("existing", EXISTING)
async def test_a_restore_cancelled_at_any_of_its_awaits_leaves_all_or_nothing(
    house: House, existing: str, late: bool
) -> None:
    house.lay_out(existing)
    total = await count_steps(house.restoring(existing))
    for at in range(1, total + 1):
        clear(house.target)
        house.lay_out(existing)
        ended = await interrupted(house.restoring(existing), at, late=late)
        house.check_target(existing, done=ended is None)


@pytest.mark.parametrize("after", [False, True])
async def test_a_create_cancelled_at_any_call_of_the_store_leaves_nothing(house: House, after: bool) -> None:
    house.gated.arm(0)
    await house.create()
    total = house.gated.calls
    await house.store.delete("blog@latest")
    assert total > 4, "no multipart upload"
    for at in range(1, total + 1):
        assert await cancelled_at_gate(house, house.create(), at, after=after)
        await house.check_bucket()


@pytest.mark.parametrize("existing", EXISTING)
async def test_a_restore_cancelled_at_any_call_of_the_store_leaves_nothing(house: House, existing: str) -> None:
    house.lay_out(existing)
    house.gated.arm(0)
    await house.restoring(existing)
    total = house.gated.calls
    assert total > 2, "one request"
    for at in range(1, total + 1):
        clear(house.target)
        house.lay_out(existing)
        assert await cancelled_at_gate(house, house.restoring(existing), at, after=at % 2 == 0)
        house.check_target(existing, done=False)


async def cancelled_at_gate(house: House, work: Coroutine[Any, Any, Any], at: int, *, after: bool) -> bool:
    house.gated.arm(at, after=after)
    task = asyncio.create_task(work)
    await house.gated.reached.wait()
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    house.gated.gate.set()  # some calls are not left half-way
    return await outcome(task) is not None


async def test_a_create_cancelled_at_any_turn_of_the_loop_leaves_nothing(house: House) -> None:
    turns = await turns_of(house.create())
    await house.store.delete("blog@latest")
    drawn = random.Random(SEED)
    for _ in range(60):
        if await cancelled_in_turn(house.create(), drawn.randrange(turns)) is None:
            await house.store.delete("blog@latest")
        await house.check_bucket()


@pytest.mark.parametrize("existing", EXISTING)
async def test_a_restore_cancelled_at_any_turn_of_the_loop_leaves_all_or_nothing(house: House, existing: str) -> None:
    house.lay_out(existing)
    turns = await turns_of(house.restoring(existing))
    drawn = random.Random(SEED)
    for _ in range(20):
        clear(house.target)
        house.lay_out(existing)
        ended = await cancelled_in_turn(house.restoring(existing), drawn.randrange(turns))
        house.check_target(existing, done=ended is None)


async def turns_of(work: Coroutine[Any, Any, Any]) -> int:
    task = asyncio.create_task(work)
    turns = 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    return turns


async def cancelled_in_turn(work: Coroutine[Any, Any, Any], turn: int) -> BaseException | None:
    task = asyncio.create_task(work)
    for _ in range(turn):
        await asyncio.sleep(0)
    task.cancel()
    return await outcome(task)


def clear(folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder)], check=True)


async def test_a_second_cancel_changes_nothing(house: House) -> None:
    total = await count_steps(house.create())
    await house.store.delete("blog@latest")
    for at in range(2, total, 3):
        task = asyncio.create_task(house.create())
        for _ in range(at * 5):
            await asyncio.sleep(0)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        with suppress(asyncio.CancelledError):
            await task
            await house.store.delete("blog@latest")
        await house.check_bucket()


@pytest.mark.usefixtures("traceless")
async def test_an_opening_cancelled_at_any_of_its_awaits_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    make_app(tmp_path / "app")
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        await store.create("blog", tmp_path / "app")

    async def open_and_close(name: str) -> None:
        async with SnapStore.open(tmp_path / "store", index=tmp_path / name) as opened:
            assert (await opened.latest("blog")).app == "blog"

    total = await count_steps(open_and_close("counted.db"))
    for at in range(1, total + 1):
        for late in (False, True):
            await interrupted(open_and_close(f"{at}{late}.db"), at, late=late)


@pytest.mark.usefixtures("traceless")
async def test_a_first_call_that_is_cancelled_keeps_no_connection_to_the_index(tmp_path: Path) -> None:
    make_app(tmp_path / "app")

    async def first_calls(store: SnapStore) -> None:
        await store.page()
        await store.create("blog", tmp_path / "app")

    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        total = await count_steps(first_calls(store))
    for at in range(1, total + 1):
        async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
            await interrupted(first_calls(store), at, late=False)


@pytest.mark.usefixtures("traceless")
async def test_a_close_that_is_cancelled_still_ends_everything(tmp_path: Path) -> None:
    for at in range(1, 4):
        store = await SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")
        await store.page()
        await interrupted(store.aclose(), at, late=False)


@pytest.mark.usefixtures("traceless")
async def test_a_rebuild_that_is_cancelled_is_made_again_when_the_index_is_opened(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        for _ in range(3):
            await store.create("blog", tmp_path / "app")
    opening = SnapStore.open(tmp_path / "store", index=tmp_path / "new.db")
    total = await count_steps(opening.__aenter__())
    await opening.aclose()
    for at in range(1, total + 1):
        index = tmp_path / f"{at}.db"
        opening = SnapStore.open(tmp_path / "store", index=index)
        if await interrupted(opening.__aenter__(), at, late=False) is None:
            await opening.aclose()
        async with SnapStore.open(tmp_path / "store", index=index) as store:
            assert len((await store.page()).snapshots) == 3


async def test_a_delete_that_is_cancelled_leaves_what_is_listed_whole(house: House) -> None:
    total = await count_steps(house.store.delete("blog@latest"))
    for at in range(1, total + 1):
        made = await house.create()
        await interrupted(house.store.delete(made.id), at, late=False)
        listed = [snapshot async for snapshot in house.store.list()]
        await house.check_bucket(len(listed))
        for snapshot in listed:
            await house.store.delete(snapshot.id)


async def test_iterations_that_are_left_hold_nothing(house: House) -> None:
    for listing in (house.store.members(house.snapshot_id), house.store.read(house.snapshot_id, "big")):
        assert await anext(aiter(listing))
        await listing.aclose()
    house.check_process()
    assert house.store._reading._value == 8


async def test_a_file_is_found_once_and_read_in_parts(store: SnapStore, tmp_path: Path) -> None:
    """In archives of our own, and in those that others made."""
    make_foreign(tmp_path)
    await store.create("ours", tmp_path / "app")
    await store.sync()
    for app in ("ours", "blog"):
        for path in ("big", "hard", "deep/0"):
            content = b"".join([piece async for piece in store.read(f"{app}@latest", path)])
            file = await store.file(f"{app}@latest", path)
            assert file.member.size == len(content)
            assert file.member.type == "f"
            for start, size in [(0, None), (1, 5), (len(content) - 3, 9), (len(content), 1)]:
                part = b"".join([piece async for piece in file.read(start=start, size=size)])
                assert part == content[start : None if size is None else start + size]
            with pytest.raises(InvalidInput, match="start"):
                file.read(start=-1)
        for path in ("deep", "soft", "missing"):
            with pytest.raises(MemberNotFound):
                await store.file(f"{app}@latest", path)
        gone = await store.file(f"{app}@latest", "big")
        await store.delete(f"{app}@latest")
        with pytest.raises(SnapshotNotFound):
            await anext(gone.read())


async def test_moments_without_a_time_zone_are_refused(store: SnapStore) -> None:
    for since, until in [(datetime(2026, 1, 1), datetime.now(UTC)), (None, datetime(2026, 1, 1))]:
        with pytest.raises(InvalidInput, match="time zone"):
            await store.page(since=since, until=until)


async def test_two_snapshots_of_one_app_at_once_are_both_made(store: SnapStore, tmp_path: Path) -> None:
    make_app(tmp_path / "app")
    first, second = await asyncio.gather(
        store.create("blog", tmp_path / "app"), store.create("blog", tmp_path / "app", labels=["n:2"])
    )
    assert {first.id, second.id} == {snapshot.id async for snapshot in store.list(apps=["blog"])}
    for number, snapshot in enumerate((first, second)):
        await store.restore(snapshot.id, tmp_path / f"out{number}")
        assert contents(tmp_path / f"out{number}") == contents(tmp_path / "app")


async def test_hundreds_of_calls_share_one_budget(tmp_path: Path) -> None:
    limits = Limits(operations=5, memory=8 << 20)
    for number in range(20):
        (tmp_path / f"app{number}").mkdir()
        (tmp_path / f"app{number}" / "file").write_text(f"{number}" * 1000)
    seen: list[int] = []

    def watch(progress: Progress) -> None:
        seen.append(limits.running)
        assert limits.running <= 5
        assert 0 <= limits._memory.free <= limits.memory

    async def one(store: SnapStore, number: int) -> None:
        app = tmp_path / f"app{number % 20}"
        made = await store.create(app.name, app, progress=watch)
        await store.restore(made.id, tmp_path / "out" / f"{number}", progress=watch)

    async with (
        SnapStore.open(tmp_path / "one", index=tmp_path / "one.db", limits=limits) as one_store,
        SnapStore.open(tmp_path / "two", index=tmp_path / "two.db", limits=limits) as two_store,
    ):
        await asyncio.gather(*(one((one_store, two_store)[number % 2], number) for number in range(100)))
        assert max(seen) == 5
        assert (limits.running, limits.waiting, limits._memory.free) == (0, 0, limits.memory)
        assert len([snapshot async for snapshot in one_store.list()]) == 50
    for number in range(100):
        assert (tmp_path / "out" / f"{number}" / "file").read_text() == f"{number % 20}" * 1000


async def test_turns_come_in_order_even_where_a_later_one_would_fit() -> None:
    limits = Limits(operations=4, memory=100)
    order: list[str] = []
    ends = {name: asyncio.Event() for name in ("first", "large", "small")}

    async def hold(name: str, memory: int) -> None:
        async with limits.admit(memory):
            order.append(name)
            await ends[name].wait()

    async with asyncio.TaskGroup() as group:
        for name, memory in (("first", 60), ("large", 60), ("small", 10)):
            group.create_task(hold(name, memory))
        await settle()
        assert (order, limits.running, limits.waiting) == (["first"], 1, 2)
        ends["first"].set()
        await settle()
        assert order == ["first", "large", "small"]
        for end in ends.values():
            end.set()
    assert (limits.running, limits.waiting, limits._memory.free) == (0, 0, 100)


async def test_more_than_all_memory_is_admitted_alone() -> None:
    limits = Limits(operations=4, memory=100)
    async with limits.admit(1000):
        waiting = asyncio.create_task(enter(limits))
        await settle()
        assert (limits.running, limits.waiting) == (1, 1)
    await waiting
    assert limits._memory.free == 100


@pytest.mark.parametrize("when", ["before", "at once", "after"])
async def test_a_waiter_that_is_cancelled_leaves_the_queue_right(when: str) -> None:
    """Before its turn comes, in the very turn of the loop in which it comes, and when it has come."""
    limits = Limits(operations=1)
    holder = limits.admit(1)
    await holder.__aenter__()
    first, second = asyncio.create_task(enter(limits)), asyncio.create_task(enter(limits))
    await settle()
    if when == "before":
        first.cancel()
        await settle()
        await holder.__aexit__(None, None, None)
    elif when == "at once":
        first.cancel()
        await holder.__aexit__(None, None, None)
    else:
        await holder.__aexit__(None, None, None)
        first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert (limits.running, limits.waiting, limits._memory.free) == (0, 0, limits.memory)


async def enter(limits: Limits) -> None:
    async with limits.admit(1):
        pass


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_event_loop_goes_on_while_thousands_of_files_are_packed_and_restored(
    store: SnapStore, tmp_path: Path
) -> None:
    drawn = random.Random(SEED)
    for folder in range(50):
        (tmp_path / "app" / f"{folder}").mkdir(parents=True)
        for number in range(100):
            (tmp_path / "app" / f"{folder}" / f"{number}").write_bytes(drawn.randbytes(500))
    worst = 0.0

    async def heartbeat() -> None:
        nonlocal worst
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            worst = max(worst, time.monotonic() - before)

    beating = asyncio.create_task(heartbeat())
    made = await store.create("blog", tmp_path / "app")
    await store.restore(made.id, tmp_path / "out")
    assert len([member async for member in store.members(made.id)]) == 5051
    await store.restore(made.id, tmp_path / "out", existing="replace")
    beating.cancel()
    assert worst < 0.5


@pytest.mark.usefixtures("traceless")
async def test_nothing_is_left_after_closing(tmp_path: Path) -> None:
    make_app(tmp_path / "app")
    tasks = asyncio.all_tasks()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        made = await store.create("blog", tmp_path / "app")
        await store.restore(made.id, tmp_path / "out")
        await asyncio.gather(*(store.page() for _ in range(20)))
    assert asyncio.all_tasks() == tasks


@pytest.mark.usefixtures("traceless")
async def test_an_object_store_of_ones_own_takes_the_place_of_a_url(tmp_path: Path) -> None:
    make_app(tmp_path / "app")
    own = LocalStore(tmp_path / "store")
    await own.open()
    async with SnapStore.open(own, index=tmp_path / "one.db") as store:
        assert store.url == own.url
        made = await store.create("blog", tmp_path / "app")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("snapstore-")], "it is closed too"
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "two.db") as store:
        assert (await store.get(made.id)).key == made.key
    with pytest.raises(InvalidInput, match="no store"):
        SnapStore.open(7)  # type: ignore[arg-type]


async def test_a_failed_opening_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(StorageError):
        await SnapStore.open(tmp_path / "other", index=tmp_path / "index.db")
    (tmp_path / "text").write_text("no index")
    with pytest.raises(Exception, match="no index of snapstore's"):
        await SnapStore.open(tmp_path / "store", index=tmp_path / "text")


async def test_calls_after_closing_say_so(tmp_path: Path) -> None:
    store = await SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")
    await store.aclose()
    await store.aclose()
    (tmp_path / "app").mkdir()
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.create("blog", tmp_path / "app"),
        lambda: store.get("00"),
        lambda: store.latest("blog"),
        lambda: anext(aiter(store.list())),
        lambda: store.page(),
        lambda: anext(aiter(store.members("00"))),
        lambda: anext(aiter(store.read("00", "file"))),
        lambda: store.restore("00", tmp_path / "out"),
        lambda: store.download_url("00"),
        lambda: store.delete("00"),
        lambda: store.delete_app("blog"),
        lambda: store.rebuild(),
    ]
    for call in calls:
        with pytest.raises(StoreClosed):
            await call()
    with pytest.raises(StoreClosed):
        _ = store.url


@pytest.mark.usefixtures("traceless")
async def test_a_store_that_was_closed_can_be_opened_again(tmp_path: Path) -> None:
    store = SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")
    for _ in range(2):
        async with store:
            assert (await store.page()).snapshots == ()
    async with store:
        with pytest.raises(InvalidInput):
            await store


@pytest.mark.usefixtures("traceless")
async def test_another_event_loop_is_told_so_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    limits = Limits()
    (tmp_path / "app").mkdir()

    async def elsewhere() -> None:
        for call in (store.page(), store.create("blog", tmp_path / "app"), anext(aiter(store.list())), store.aclose()):
            with pytest.raises(InvalidInput, match="another event loop"):
                await call
        other = SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", limits=limits)
        with pytest.raises(InvalidInput, match="another event loop"):
            await other

    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", limits=limits) as store:
        await asyncio.to_thread(asyncio.run, elsewhere())
        assert (await store.create("blog", tmp_path / "app")).app == "blog"


@pytest.mark.usefixtures("traceless")
async def test_limits_serve_one_event_loop_after_another(tmp_path: Path) -> None:
    limits = Limits()
    store = SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", limits=limits)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "file").write_bytes(b"content")

    async def crowd() -> None:
        async with store:
            made = await store.create("blog", tmp_path / "app")
            await asyncio.gather(*(store.file(made.id, "file") for _ in range(40)))

    for _ in range(2):
        await asyncio.to_thread(asyncio.run, crowd())


@pytest.mark.usefixtures("traceless")
async def test_a_close_that_was_asked_for_wrongly_closes_nothing(tmp_path: Path) -> None:
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        with pytest.raises(InvalidInput, match="seconds"):
            await store.aclose(grace="5")  # type: ignore[arg-type]
        assert (await store.page()).snapshots == ()


@pytest.mark.usefixtures("traceless")
async def test_a_store_is_opened_once_however_many_open_it_at_once(tmp_path: Path) -> None:
    store = SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")
    opened = await asyncio.gather(*(store.__aenter__() for _ in range(4)), return_exceptions=True)
    assert [type(found) for found in opened[1:]] == [InvalidInput] * 3
    await store.aclose()


@pytest.mark.usefixtures("traceless")
async def test_closing_ends_the_calls_that_still_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each call of the store: they fail with StoreClosed, and leave as little as a cancelled one."""
    monkeypatch.setattr(writer, "part_size", lambda *_: 64 << 10)
    make_app(tmp_path / "app")
    total = 1
    at = 0
    while at < total:
        at += 1
        async with gated_store(tmp_path, monkeypatch) as (store, gated):
            gated.arm(at)
            running = asyncio.create_task(store.create("blog", tmp_path / "app"))
            reached = asyncio.create_task(gated.reached.wait())
            await asyncio.wait([running, reached], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                reached.cancel()
                break
            total = at + 1
            closing = asyncio.create_task(store.aclose())
            await settle()
            gated.gate.set()
            await closing
            with pytest.raises(StoreClosed):
                await running
        left = [path.name for path in (tmp_path / "store").iterdir() if path.name != ".snapstore"]
        assert [name for name in left if name != "_metadata"] == []
        assert not list((tmp_path / "store" / ".snapstore" / "uploads").iterdir())
    assert at > 3


@pytest.mark.usefixtures("traceless")
async def test_an_iteration_under_way_ends_within_the_grace_time(tmp_path: Path) -> None:
    make_app(tmp_path / "app")
    store = await SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")
    made = await store.create("blog", tmp_path / "app")
    reading, others = store.read(made.id, "big"), store.members(made.id)
    pieces, members = [await anext(reading)], [await anext(others)]
    closing = asyncio.create_task(store.aclose(grace=30))
    await settle()
    pieces += [piece async for piece in reading]
    assert b"".join(pieces) == (tmp_path / "app" / "big").read_bytes()
    with pytest.raises(StoreClosed):
        await store.page()
    assert not closing.done()
    members += [member async for member in others]
    assert len(members) == made.entries
    await closing


@pytest.mark.usefixtures("traceless")
async def test_an_iteration_that_nobody_goes_on_with_ends_with_the_grace_time(tmp_path: Path) -> None:
    make_app(tmp_path / "app")
    store = await SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")
    made = await store.create("blog", tmp_path / "app")
    reading = store.read(made.id, "big")
    await anext(reading)
    await store.aclose(grace=0.05)
    with pytest.raises(StoreClosed):
        await anext(reading)


async def test_closing_does_not_wait_for_a_thread_that_waits_for_the_loop(tmp_path: Path) -> None:
    """A restore of an archive that others made asks the loop for each piece, from its thread."""
    script = """
import asyncio, sys
from snapstore import SnapStore
from snapstore.storage.local import LocalStore

async def main(base):
    store = await SnapStore.open(base + "/store", index=base + "/index.db")
    waiting, gate = asyncio.Event(), asyncio.Event()
    whole = LocalStore.stream

    async def stream(self, key, *, if_match=None):
        async for piece in whole(self, key, if_match=if_match):
            waiting.set()
            await gate.wait()
            yield piece

    LocalStore.stream = stream
    running = asyncio.create_task(store.restore("00000000", base + "/out"))
    await waiting.wait()
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(closing, running, return_exceptions=True)
    print("closed")

asyncio.run(main(sys.argv[1]))
"""
    make_foreign(tmp_path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=10, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.fail("the event loop waited for the thread, and the thread for the event loop")
    assert done.stdout == "closed\n", done.stderr


def make_foreign(base: Path) -> None:
    """A bucket of the older system with one snapshot."""
    snapshot_id = "00000000-0000-4000-8000-000000000000"
    (base / "store" / "_metadata").mkdir(parents=True)
    (base / "store" / "_metadata" / snapshot_id).write_text(
        f'{{"uuid":"{snapshot_id}","app_name":"blog","ts":1600000000,"labels":[]}}'
    )
    make_app(base / "app")
    archive = base / "store" / f"blog:{snapshot_id}:-:1600000000"
    packed = subprocess.run(["tar", "-cf", "-", "-C", str(base / "app"), "."], check=True, capture_output=True)
    archive.write_bytes(zstandard.compress(packed.stdout))


async def test_the_process_is_left_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> tuple[Any, ...]:
        mask = os.umask(0o022)
        os.umask(mask)
        return os.getcwd(), mask, dict(os.environ), sys.getswitchinterval(), os.getpriority(os.PRIO_PROCESS, 0)

    make_app(tmp_path / "app")
    before = state()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        made = await store.create("blog", tmp_path / "app")
        await store.restore(made.id, tmp_path / "out")
        assert state() == before
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_even_where_nobody_configured_logging(tmp_path: Path) -> None:
    """Python writes a library's warnings to stderr unless the library says that it has nobody to tell."""
    script = """
import asyncio, os, sys
from pathlib import Path
from snapstore import SnapStore

async def main(base):
    (base / "app").mkdir()
    (base / "app" / "file").write_text("x")
    def fails(*args):
        raise OSError(5, "I/O error")
    os.preadv = fails
    async with SnapStore.open(base / "store", index=base / "index.db") as store:
        made = await store.create("blog", base / "app", on_error="skip")
        assert made.warnings == 1, made

asyncio.run(main(Path(sys.argv[1])))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_errors_come_out_as_they_are(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceNotFound):
        await house.store.create("blog", house.base / "missing")
    with pytest.raises(SnapshotNotFound):
        await house.store.restore("00", house.target)

    class OfTheCaller(Exception):
        pass

    def fail(progress: Progress) -> None:
        if progress.phase in phases:
            raise OfTheCaller

    phases = ["pack", "restore"]
    with pytest.raises(OfTheCaller):
        await house.store.create("blog", house.app, progress=fail)
    phases.append("scan")
    with pytest.raises(OfTheCaller):
        await house.store.create("blog", house.app, progress=fail)
    with pytest.raises(OfTheCaller):
        await house.store.restore(house.snapshot_id, house.target, progress=fail)
    await house.check_bucket()
    assert list(house.target.parent.iterdir()) == []
    monkeypatch.setattr(os, "preadv", raise_oserror)
    with pytest.raises(SourceUnreadable):
        await house.store.create("blog", house.app)
    await house.check_bucket()


def raise_oserror(*args: Any) -> int:
    raise OSError(5, "Input/output error")


async def test_parts_that_fail_together_are_one_error(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is left for the event loop to complain about when it is collected."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    started, gate = 0, asyncio.Event()

    async def upload_part(self: LocalStore, *args: Any) -> Any:
        nonlocal started
        started += 1
        if started == parts.IN_FLIGHT:
            gate.set()
        await gate.wait()
        raise StorageError("no part today")

    monkeypatch.setattr(LocalStore, "upload_part", upload_part)
    with pytest.raises(StorageError, match="no part today"):
        await house.create()
    await house.check_bucket()
    gc.collect()
    await settle()
    assert complaints == []


async def test_a_job_that_has_not_begun_is_dropped_when_it_is_cancelled() -> None:
    workers = Workers(1, "test")
    gate = threading.Event()
    began: list[str] = []
    running = asyncio.create_task(workers.run(gate.wait))
    await settle()
    queued = asyncio.create_task(workers.run(began.append, "queued"))
    await settle()
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    gate.set()
    assert await running
    workers.close()
    assert began == []


async def test_the_folder_of_the_apps_is_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="is no folder"):
        await SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", apps=tmp_path / "file")
    make_app(tmp_path / "app")
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", apps=tmp_path / "none") as store:
        assert "is not there (yet)" in caplog.text
        made = await store.create("blog", tmp_path / "app")
        with pytest.raises(InvalidInput, match="is not there: check its name"):
            await store.restore(made.id)
        assert not (tmp_path / "none").exists()
        (tmp_path / "none").mkdir()
        assert (await store.restore(made.id)).target == str(tmp_path / "none" / "blog")


@pytest.mark.parametrize("by", ["closing", "cancelling"])
async def test_closing_ends_an_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    began, wait = asyncio.Event(), True

    async def open_late(*args: Any, **options: Any) -> Any:
        began.set()
        await asyncio.sleep(60 if wait else 0)
        return await open_store(*args, **options)

    monkeypatch.setattr(engine_store, "open_store", open_late)
    limits = Limits()
    store = SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", limits=limits)
    opening = asyncio.create_task(store.__aenter__())
    await began.wait()
    if by == "closing":
        await store.aclose()
    else:
        opening.cancel()
    with pytest.raises(StoreClosed if by == "closing" else asyncio.CancelledError):
        await opening
    assert limits._users == 0
    with pytest.raises(StoreClosed):
        await store.page()
    wait = False
    async with store:  # again
        assert (await store.page()).snapshots == ()


async def test_closing_ends_iterations_that_are_paused(tmp_path: Path) -> None:
    """What they hold of Limits that others share is free then."""
    make_app(tmp_path / "app")
    limits = Limits()
    async with SnapStore.open(tmp_path / "other", index=tmp_path / "other.db", limits=limits):
        store = await SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", limits=limits)
        made = await store.create("blog", tmp_path / "app")
        members = store.members(made.id)
        await anext(members)
        inner = next(iter(store._calls._generators))
        await store.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(inner)
        with pytest.raises(StoreClosed):
            await anext(members)


async def test_creates_that_wait_for_their_turn_hold_no_descriptor_and_no_plan(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / "app" / f"{number}").mkdir(parents=True)
    limits = Limits(operations=1)
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", limits=limits) as store:
        await store.create("blog", tmp_path / "app")
        before = len(os.listdir("/proc/self/fd"))
        async with limits.turn():
            creating = [asyncio.create_task(store.create("blog", tmp_path / "app")) for _ in range(20)]
            while limits.waiting < 20:
                await asyncio.sleep(0.01)
            assert len(os.listdir("/proc/self/fd")) <= before + 2
            with pytest.raises(SourceNotFound):  # which nobody has to wait for
                await store.create("blog", tmp_path / "none")
        assert len({report.id for report in await asyncio.gather(*creating)}) == 20


@pytest.mark.parametrize("call", ["open", "scandir"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_what_the_process_lacks_is_no_fault_of_a_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A snapshot that skips what cannot be read would lack nearly all, and be listed."""
    make_app(tmp_path / "app")
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        really = getattr(os, call)

        def fail(path: Any, *args: Any, **options: Any) -> Any:
            if isinstance(path, int) or os.fsdecode(path) == "1":
                raise OSError(number, os.strerror(number))
            return really(path, *args, **options)

        monkeypatch.setattr(os, call, fail)
        with pytest.raises(SourceUnreadable):
            await store.create("blog", tmp_path / "app", on_error="skip")
        monkeypatch.undo()
        assert [one async for one in store.list()] == []
