"""What a service feels that has snapstore in it.

The service is a small web server that another process asks all the time, over a few connections, each for the next
answer as soon as it has one; meanwhile it takes snapshots and restores them. A task that should wake each millisecond
notes how late it is: that is the delay of the event loop.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from benchmarks import load_client
from benchmarks.clock import Inside, clock
from benchmarks.inside_index import spread
from snapstore import Limits, SnapStore

_TICK = 0.001
_IDLE = 4.0
_MANY = 8


async def application(url: str, folder: str, targets: str) -> None:
    """Each phase: how late the loop is, and what the service's clients get, against what they get while it is idle."""
    with tempfile.TemporaryDirectory() as scratch:
        async with _clients() as clients:
            async with SnapStore.open(url, index=f"{scratch}/index.db") as store:
                await _phase(clients, "idle", asyncio.sleep(_IDLE))
                await _beside_idle(clients, "one create", store.create("app", folder))
                await _beside_idle(clients, "one restore", store.restore("app@latest", f"{targets}/one"))
                together = [
                    work
                    for number in range(_MANY)
                    for work in (
                        store.create(f"app-{number}", folder),
                        store.restore("app@latest", f"{targets}/{number}"),
                    )
                ]
                await _beside_idle(clients, f"{_MANY} creates and {_MANY} restores", _all(together))
            limits = Limits(threads=1)
            async with SnapStore.open(url, index=f"{scratch}/index.db", limits=limits) as store:
                await _beside_idle(clients, "one create, one thread", store.create("app", folder))
                await _beside_idle(clients, "one restore, one thread", store.restore("app@latest", f"{targets}/slow"))


async def crowd(url: str, folder: str, targets: str, count: int) -> None:
    """So many creates and restores, half and half, asked for at once: the memory of the whole process."""
    limits = Limits()
    with tempfile.TemporaryDirectory() as scratch:
        async with SnapStore.open(url, index=f"{scratch}/index.db", limits=limits) as store:
            await store.create("app", folder)
            with clock(name=f"{count} at once", memory=True) as inside:
                await asyncio.gather(
                    *(store.create(f"app-{number}", folder) for number in range(count // 2)),
                    *(store.restore("app@latest", f"{targets}/{number}") for number in range(count - count // 2)),
                )
    inside.values["mib_of_limits"] = limits.memory / 2**20
    inside.tell()


class _Clients:
    """The process that asks."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def told(self) -> dict[str, float]:
        """What its connections have met since the last time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        found: dict[str, float] = msgspec.json.decode(await self._process.stdout.readline())
        return found


async def _all(works: Sequence[Awaitable[Any]]) -> None:
    await asyncio.gather(*works)


async def _beside_idle(clients: _Clients, name: str, work: Awaitable[Any]) -> None:
    """A phase, and its answers a second as a share of those right before and after it: machines have their moods."""
    before = await _rate_when_idle(clients)
    inside = await _measured(clients, name, work)
    inside.values["of_idle"] = inside.values["answers_a_second"] * 2 / (before + await _rate_when_idle(clients))
    inside.tell()


async def _rate_when_idle(clients: _Clients) -> float:
    await clients.told()
    await asyncio.sleep(_IDLE / 2)
    found = await clients.told()
    return found["count"] / found["seconds"]


async def _phase(clients: _Clients, name: str, work: Awaitable[Any]) -> None:
    (await _measured(clients, name, work)).tell()


async def _measured(clients: _Clients, name: str, work: Awaitable[Any]) -> Inside:
    """The service during ``work``: how late its loop is, and what its clients get."""
    late: list[float] = []
    await clients.told()
    ticking = asyncio.create_task(_tick(late))
    with clock(name=name) as inside:
        await work
    ticking.cancel()
    inside.values |= {f"delay_{name}": value for name, value in spread(late).items()}
    found = await clients.told()
    inside.values |= {f"answer_{name}": value for name, value in found.items()}
    inside.values["answers_a_second"] = found["count"] / found["seconds"]
    return inside


async def _tick(late: list[float]) -> None:
    while True:
        due = time.perf_counter() + _TICK
        await asyncio.sleep(_TICK)
        late.append(max(0.0, time.perf_counter() - due))


@asynccontextmanager
async def _clients() -> AsyncIterator[_Clients]:
    """A server in this process, and its clients in another."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    application = web.Application()
    application.router.add_get("/", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-I", "-S", str(Path(load_client.__file__)), str(runner.addresses[0][1])]
    client = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield _Clients(client)
    finally:
        client.kill()
        await client.wait()
        await runner.cleanup()
