"""Closing a store: calls end in their time or are taken back, and what was got from it says that it is closed."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextvars import Context, ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from snapstore import SnapStore, StoreClosed, aio
from snapstore.archive.frames import FRAME
from snapstore.engine import listing
from snapstore.engine.calls import Calls
from snapstore.storage.local import LocalStore
from tests.test_embedding import make_app, make_foreign, settle


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SnapStore]:
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as opened:
        yield opened


@pytest.fixture
def slow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    get = LocalStore.get

    async def late(*args: Any, **options: Any) -> Any:
        await asyncio.sleep(0.05)
        return await get(*args, **options)

    monkeypatch.setattr(LocalStore, "get", late)
    monkeypatch.setattr(listing, "_PAGE", 2)


async def taken(items: AsyncIterator[Any]) -> int:
    """How many there are, for somebody who takes their time."""
    count = 0
    async for _ in items:
        count += 1
        await asyncio.sleep(0.001)
    return count


@pytest.mark.parametrize("begun", ["read", "members", "list", "restore", "file", "relabel", "delete_app"])
async def test_a_call_is_one_from_its_first_step_to_its_last_when_the_store_is_closed(
    tmp_path: Path, slow_reads: None, begun: str
) -> None:
    make_app(tmp_path / "app")
    store = await SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")
    made = [await store.create("blog", tmp_path / "app") for _ in range(5)][-1]
    find, page = store._catalog.find, store._catalog.page

    async def later(step: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0.05)
        return await step(*args)

    store._catalog.find = partial(later, find)  # type: ignore[method-assign]
    store._catalog.page = partial(later, page)  # type: ignore[method-assign]
    calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "read": lambda: taken(store.read(made.id, "big")),
        "members": lambda: taken(store.members(made.id)),
        "list": lambda: taken(store.list()),
        "restore": lambda: store.restore(made.id, tmp_path / "out"),
        "file": lambda: store.file(made.id, "big"),
        "relabel": lambda: store.relabel(made.id, add=["keep:yes"]),
        "delete_app": lambda: store.delete_app("blog"),
    }
    call = asyncio.create_task(calls[begun]())
    await settle()
    await store.aclose(grace=20)
    assert call.done()
    found = await call
    if begun == "list":
        assert found == 5
    if begun == "delete_app":
        assert len(found) == 5
    if begun == "read":
        assert found > 2 * FRAME >> 18
    with pytest.raises(StoreClosed):
        await calls[begun]()


@pytest.mark.parametrize("hastened", ["second close", "cancelled close"])
async def test_a_close_that_waits_can_be_hastened(store: SnapStore, tmp_path: Path, hastened: str) -> None:
    make_app(tmp_path / "app")
    made = await store.create("blog", tmp_path / "app")
    members = store.members(made.id)
    await anext(members)  # and never again
    async with asyncio.timeout(10):
        closing = asyncio.create_task(store.aclose(grace=600))
        await settle()
        if hastened == "second close":
            await store.aclose(grace=0.1)
            await closing
        else:
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
    with pytest.raises(StoreClosed):
        await anext(members)
    with pytest.raises(StoreClosed):
        await store.page()


async def test_a_change_that_was_made_when_it_was_closed_is_told_as_made(
    store: SnapStore, tmp_path: Path, slow_reads: None
) -> None:
    make_app(tmp_path / "app")
    kept, gone = [await store.create("blog", tmp_path / "app") for _ in range(2)]
    relabelling = asyncio.create_task(store.relabel(kept.id, add=["keep:yes"]))
    deleting = asyncio.create_task(store.delete(gone.id))
    while not all(snapshot.id in store._changing for snapshot in (kept, gone)):
        await asyncio.sleep(0)
    await settle()
    await store.aclose()
    assert (await relabelling).labels == ("keep:yes",)
    assert (await deleting).id == gone.id


async def test_a_file_that_was_found_is_not_read_from_a_store_that_was_closed(tmp_path: Path) -> None:
    make_app(tmp_path / "app")
    store = SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")
    async with store:
        made = await store.create("blog", tmp_path / "app")
        file = await store.file(made.id, "big")
    with pytest.raises(StoreClosed):
        await taken(file.read())
    async with store:  # another one
        with pytest.raises(StoreClosed):
            await taken(file.read())


async def test_reads_of_one_foreign_file_do_not_end_each_other(store: SnapStore, tmp_path: Path) -> None:
    make_foreign(tmp_path)
    await store.sync()
    file = await store.file("blog@latest", "big")
    cancelled, other = [asyncio.create_task(taken(file.read())) for _ in range(2)]
    await asyncio.sleep(0.002)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await other == await taken(file.read()) > 0


async def test_what_is_kept_of_a_file_is_not_the_table_of_contents(store: SnapStore, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    for number in range(5000):
        (tmp_path / "app" / f"{number:0100}").touch()
    (tmp_path / "app" / "z").write_bytes(bytes(FRAME + 1))
    made = await store.create("blog", tmp_path / "app")
    await store.file(made.id, "z")  # what is made once
    gc.collect()
    tracemalloc.start()
    try:
        files = [await store.file(made.id, "z") for _ in range(10)]
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 2_000_000  # ten tables are seven million
    finally:
        tracemalloc.stop()
    assert {file.member.size for file in files} == {FRAME + 1}


async def test_all_that_takes_a_call_back_is_waited_for_no_longer_than_one_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aio, "TIDY_SECONDS", 5.0)
    calls = Calls()

    async def work() -> list[float]:
        first = aio.tidy_seconds()
        await asyncio.sleep(0.05)
        return [first, await asyncio.create_task(later())]

    async def later() -> float:
        return aio.tidy_seconds()

    first, second = await calls.run(work())
    assert first == 5.0
    assert second < 4.99
    assert aio.tidy_seconds() == 5.0, "outside of calls"
    assert (await calls.run(work()))[0] == 5.0, "and of another call"


async def test_closing_waits_for_what_takes_back_a_call_whose_caller_was_cancelled_as_it_ended() -> None:
    calls, undone = Calls(), []

    async def work() -> None:
        calling.cancel()

    async def undo() -> None:
        await asyncio.sleep(0.05)
        undone.append(True)

    calling = asyncio.create_task(calls.run(work(), undo=undo))
    await settle()
    assert not undone
    await calls.close(0)
    assert undone
    with pytest.raises(asyncio.CancelledError):
        await calling


async def test_items_of_one_iteration_share_a_context_though_it_is_empty() -> None:
    """What the generator sets while it makes one holds for the next, such as the operation that they are of."""
    known: ContextVar[int] = ContextVar("known", default=0)

    async def items() -> AsyncGenerator[int, None]:
        known.set(1)
        yield known.get()
        yield known.get()

    async def given() -> list[int]:
        return [item async for item in Calls().each(items())]

    assert await asyncio.create_task(given(), context=Context()) == [1, 1]


async def test_of_two_closes_in_one_instant_the_shorter_time_holds(store: SnapStore, tmp_path: Path) -> None:
    make_app(tmp_path / "app")
    made = await store.create("blog", tmp_path / "app")
    members = store.members(made.id)
    await anext(members)
    async with asyncio.timeout(10):
        await asyncio.gather(store.aclose(grace=600), store.aclose(grace=0))


def test_a_store_is_opened_and_closed_on_one_loop_after_another(tmp_path: Path) -> None:
    store = SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")

    async def together() -> None:
        await store
        await asyncio.gather(store.aclose(), store.aclose())

    for _ in range(3):
        asyncio.run(together())


async def test_what_cannot_be_closed_keeps_nothing_else_open(store: SnapStore, tmp_path: Path) -> None:
    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            raise OSError(5, "Input/output error")

    stuck = store._calls.each(items())  # type: ignore[arg-type]
    assert await anext(stuck) == 1
    await store.aclose()
    assert store.limits._users == 0
    with pytest.raises(StoreClosed):
        await anext(stuck)


async def test_a_task_that_was_cancelled_before_is_told_that_the_store_was_closed(
    store: SnapStore, tmp_path: Path, slow_reads: None
) -> None:
    make_app(tmp_path / "app")
    made = await store.create("blog", tmp_path / "app")

    async def last_work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await store.restore(made.id, tmp_path / "out")

    working = asyncio.create_task(last_work())
    await settle()
    working.cancel()
    await settle()
    await store.aclose()
    with pytest.raises(StoreClosed):
        await working
