"""The index on a real store: metadata objects of a made-up fleet are put there, and read into a new index.

Requests are those that botocore has sent, so that there are none to count on a folder.
"""

import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.clock import Traffic, clock
from benchmarks.fleet import snapshot
from snapstore import SnapStore, keys, metadata
from snapstore.aio import run_all
from snapstore.storage.urls import open_store

_AT_ONCE = 32


async def index_on_store(url: str, count: int) -> None:
    """Every phase in turn, with ``count`` snapshots, of which only the metadata is there."""
    traffic = Traffic()
    await _put(url, count)
    with tempfile.TemporaryDirectory(prefix="index-") as folder:
        path = Path(folder)
        await _open(url, path / "first.db", traffic, count, "rebuild without checkpoints")
        async with SnapStore.open(url, index=path / "first.db") as store:
            await _phase(traffic, "write checkpoints", count, store.checkpoint)
            await _phase(traffic, "sync, nothing new", count, store.sync)
        await _open(url, path / "second.db", traffic, count, "rebuild with checkpoints")


async def _put(url: str, count: int) -> None:
    store = await open_store(url)
    try:

        async def put(number: int) -> None:
            made = snapshot(number)
            await store.put(keys.metadata_key(made.id), metadata.encode(made))

        await run_all((put(number) for number in range(count)), at_once=_AT_ONCE)
    finally:
        await store.aclose()


async def _open(url: str, index: Path, traffic: Traffic, count: int, name: str) -> None:
    """Opening a store with a new index fills it."""

    async def open_and_close() -> None:
        async with SnapStore.open(url, index=index):
            pass

    await _phase(traffic, name, count, open_and_close)


async def _phase(traffic: Traffic, name: str, count: int, work: Callable[[], Awaitable[object]]) -> None:
    with clock(traffic, name=name, memory=True) as inside:
        began = time.perf_counter()
        await work()
        inside.values["snapshots_a_second"] = count / (time.perf_counter() - began)
    inside.tell()
