"""asyncio's own event loop and uvloop: the same calls, the same cancellations, and nothing left on either."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from snapstore import S3Options, SnapStore, StoreClosed
from snapstore.engine import writer
from tests.conftest import BUCKET
from tests.servers import Server
from tests.test_embedding import clear, contents, make_app, make_foreign, traceless

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}
uvloop.new_event_loop().close()  # libuv opens a pipe with its first loop, for as long as the process lives
SEED = 20261124
CANCELLATIONS = 6

__all__ = ["traceless"]  # a fixture


class Loop:
    """Runs a coroutine on a loop of its kind, which is closed afterwards."""

    def __init__(self, name: str) -> None:
        self._name = name

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[self._name]) as runner:
            assert type(runner.get_loop()).__module__.startswith(self._name)
            runner.run(scenario)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    return Loop(request.param)


async def every_call(store: SnapStore, base: Path) -> None:
    made = await store.create("blog", base / "app", labels=["owner:42"])
    assert [snapshot.id async for snapshot in store.list(labels=["owner:42"])] == [made.id]
    assert len([member async for member in store.members(made.id)]) == made.entries
    content = b"".join([piece async for piece in store.read(made.id, "deep/0")])
    assert content == (base / "app" / "deep" / "0").read_bytes()
    await store.restore(made.id, base / "out")
    assert contents(base / "out") == contents(base / "app")
    assert (await store.relabel(made.id, add=["env:prod"])).labels == ("owner:42", "env:prod")
    assert (await store.sync()).snapshots == 1
    await store.delete(made.id)
    assert (await store.page()).snapshots == ()


async def cancelled_anywhere(store: SnapStore, base: Path) -> None:
    """Creates and restores, at moments drawn by lot."""
    drawn = random.Random(SEED)
    began = time.monotonic()
    made = await store.create("kept", base / "app")
    await store.restore(made.id, base / "out")
    longest = time.monotonic() - began
    for _ in range(CANCELLATIONS):
        clear(base / "out")
        for call in (store.create("blog", base / "app"), store.restore(made.id, base / "out")):
            with suppress(TimeoutError):
                async with asyncio.timeout(drawn.uniform(0, longest)):
                    await call
        assert not (base / "out").exists() or contents(base / "out") == contents(base / "app")
    await store.delete_app("blog")
    assert [page async for page in store._store.list_uploads() if page] == []
    archives = [info.key async for page in store._store.list() for info in page if not info.key.startswith("_")]
    assert archives == [made.key]
    assert not list(base.rglob(".snapstore-*"))


@pytest.mark.usefixtures("traceless")
@pytest.mark.parametrize("scenario", [every_call, cancelled_anywhere])
def test_a_folder_store_on_either_loop(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    monkeypatch.setattr(writer, "part_size", lambda *_: 64 << 10)
    make_app(tmp_path / "app")

    async def run() -> None:
        async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
            await scenario(store, tmp_path)

    loop.run(run())


@pytest.mark.parametrize("scenario", [every_call, cancelled_anywhere])
def test_s3_on_either_loop(
    loop: Loop, tmp_path: Path, seaweedfs: Server, prefix: str, scenario: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    make_app(tmp_path / "app", files=150)
    options = S3Options(part_size=5 << 20)  # less than that is in it

    async def run() -> None:
        async with SnapStore.open(f"s3://{BUCKET}/{prefix}", index=tmp_path / "index.db", s3=options) as store:
            await scenario(store, tmp_path)

    loop.run(run())


@pytest.mark.usefixtures("traceless")
def test_archives_that_others_made_on_either_loop(loop: Loop, tmp_path: Path) -> None:
    """Their reader's thread asks the loop for each piece."""
    make_foreign(tmp_path)

    async def run() -> None:
        async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
            await store.restore("blog@latest", tmp_path / "out")
            assert contents(tmp_path / "out") == contents(tmp_path / "app")

    loop.run(run())


@pytest.mark.usefixtures("traceless")
def test_a_store_is_opened_used_and_closed_in_three_tasks_on_either_loop(loop: Loop, tmp_path: Path) -> None:
    make_app(tmp_path / "app")

    async def run() -> None:
        store = SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")
        await asyncio.create_task(store.__aenter__())
        running = asyncio.create_task(store.create("blog", tmp_path / "app"))
        await asyncio.sleep(0)
        await asyncio.create_task(store.aclose(grace=10))
        assert (await running).app == "blog"
        with pytest.raises(StoreClosed):
            await store.page()

    loop.run(run())
