"""The index on a made-up fleet's bucket: how long it takes to fill, to keep up to date and to ask, and its memory.

All of it through SnapStore's own calls. Every phase is told as a line of its own.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from benchmarks.clock import Inside, clock
from benchmarks.fleet import APPS, FleetStore
from snapstore import SnapStore

_QUERIES = 500
_READERS = 32
_NEW = 5_000
_COLD_WITH_LATENCY = 10_000
"""Beyond so many snapshots a rebuild without checkpoints over a slow network is not waited for."""

Query = Callable[[SnapStore, random.Random, int], Awaitable[object]]
"""With how many apps there are, of which it asks for any."""

QUERIES: dict[str, Query] = {
    "page by label": lambda store, chance, apps: store.page(labels=[f"owner:{chance.randrange(apps // 4)}"]),
    "page by app": lambda store, chance, apps: store.page(apps=[f"app-{chance.randrange(apps):05}"]),
    "page by two labels": lambda store, chance, apps: store.page(
        labels=[f"owner:{chance.randrange(apps // 4)}", "reason:nightly"]
    ),
    "page by two common labels": lambda store, _, __: store.page(labels=["tier:gold", "reason:deploy"]),
    "newest page": lambda store, _, __: store.page(),
}


async def index(count: int, cache: str, latency: float) -> None:
    """Every phase in turn, at ``count`` snapshots; ``latency`` seconds a request in those named so."""
    new = min(_NEW, count // 2)
    fleet = FleetStore(count + new, shown=count, cache=Path(cache))
    with tempfile.TemporaryDirectory(prefix="index-") as folder:
        await _fill(fleet, Path(folder), "rebuild without checkpoints")
        async with SnapStore.open(fleet, index=Path(folder, "index.db")) as store:
            await _phase(fleet, "write checkpoints", store.checkpoint)
            await _phase(fleet, "rebuild with checkpoints", lambda: store.rebuild(archives=False))
            await _phase(fleet, "sync, nothing new", store.sync)
            fleet.latency = latency
            await _phase(fleet, f"rebuild with checkpoints, {_ms(latency)}", lambda: store.rebuild(archives=False))
            await _phase(fleet, f"sync, nothing new, {_ms(latency)}", store.sync)
            fleet.latency = 0.0
        await _phase(fleet, "open", lambda: _open_and_close(fleet, Path(folder)))
        async with SnapStore.open(fleet, index=Path(folder, "index.db")) as store:
            for name, query in QUERIES.items():
                await _pages(store, name, query, _QUERIES, count)
            status = await store.index_status()
            Inside("size", values={"bytes_a_row": status.size / count, "mib": status.size / 2**20}).tell()
            await _readers_while_syncing(fleet, store, new)
    if count <= _COLD_WITH_LATENCY:
        fleet.shown, fleet.latency = count, latency
        fleet.forget()
        with tempfile.TemporaryDirectory(prefix="index-") as folder:
            await _fill(fleet, Path(folder), f"rebuild without checkpoints, {_ms(latency)}")


async def pages(count: int, cache: str, queries: int = 200) -> None:
    """The mean of many pages by label, from an index that was filled before (and is kept in ``cache``)."""
    folder = Path(cache, f"index-{count}")
    folder.mkdir(parents=True, exist_ok=True)
    fleet = FleetStore(count, cache=Path(cache))
    async with SnapStore.open(fleet, index=folder / "index.db") as store:  # fills it where it is new
        await _pages(store, "", QUERIES["page by label"], queries, count)


async def _fill(fleet: FleetStore, folder: Path, name: str) -> None:
    await _phase(fleet, name, lambda: _open_and_close(fleet, folder))


async def _open_and_close(fleet: FleetStore, folder: Path) -> None:
    async with SnapStore.open(fleet, index=folder / "index.db"):
        pass


async def _phase(fleet: FleetStore, name: str, work: Callable[[], Awaitable[object]]) -> None:
    fleet.requests.clear()
    with clock(name=name, memory=True) as inside:
        await work()
    inside.requests = dict(fleet.requests)
    inside.tell()


async def _pages(store: SnapStore, name: str, query: Query, count: int, snapshots: int) -> None:
    chance, apps = random.Random(1), min(APPS, snapshots)
    await query(store, chance, apps)
    with clock(name=name) as inside:
        times = [await _timed(query(store, chance, apps)) for _ in range(count)]
    inside.wall /= count
    inside.values |= spread(times)
    inside.tell()


async def _readers_while_syncing(fleet: FleetStore, store: SnapStore, new: int) -> None:
    """So many readers ask all the time, while a sync brings in what others have written."""
    times: list[float] = []
    syncing, apps = True, min(APPS, fleet.shown)

    async def reader(number: int) -> None:
        chance = random.Random(number)
        while syncing:
            times.append(await _timed(QUERIES["page by label"](store, chance, apps)))

    fleet.shown += new
    with clock(name=f"page by label, {_READERS} readers during a sync") as inside:
        reading = [asyncio.create_task(reader(number)) for number in range(_READERS)]
        await store.sync()
        syncing = False
        await asyncio.gather(*reading)
    inside.values |= spread(times) | {"pages": float(len(times)), "new_snapshots": float(new)}
    inside.tell()


async def _timed(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and most, of seconds, in milliseconds."""
    ordered = sorted(times)
    return {
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000,
        "max_ms": ordered[-1] * 1000,
    }


def _ms(latency: float) -> str:
    return f"{latency * 1000:.0f} ms a request"
