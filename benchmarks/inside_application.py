"""What an application feels that has snapstore in it, and what the parts of the work cost alone.

The application is a small web server that is asked all the time by another process, while it takes a snapshot and
restores it. A task that should wake each millisecond notes how late it is: that is the delay of the event loop.
"""

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import zstandard
from aiohttp import web
from blake3 import blake3

from benchmarks.clock import clock
from benchmarks.corpora import walk
from benchmarks.inside_index import spread
from snapstore import SnapStore
from snapstore.objectstore import Part
from snapstore.storage.urls import open_store

_TICK = 0.001
_IDLE = 2.0
_FRAME = 4 << 20
_PART = 8 << 20
_AT_ONCE = 3
_CLIENT = """
import http.client, sys, time
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
while True:
    connection.request("GET", "/"); connection.getresponse().read(); time.sleep(0.005)
"""


async def application(url: str, folder: str, target: str) -> None:
    """Delay of the event loop: idle, during a create, during a restore."""
    with tempfile.TemporaryDirectory() as scratch:
        async with SnapStore.open(url, index=f"{scratch}/index.db") as store, _traffic():
            await _delay("idle", asyncio.sleep(_IDLE))
            await _delay("create", store.create("app", folder))
            await _delay("restore", store.restore("app@latest", target))
    shutil.rmtree(target)


async def _delay(name: str, work: Awaitable[object]) -> None:
    late: list[float] = []
    ticking = asyncio.create_task(_tick(late))
    with clock(name=name) as inside:
        await work
    ticking.cancel()
    inside.values |= spread(late)
    inside.tell()


async def _tick(late: list[float]) -> None:
    while True:
        due = time.perf_counter() + _TICK
        await asyncio.sleep(_TICK)
        late.append(max(0.0, time.perf_counter() - due))


@asynccontextmanager
async def _traffic() -> AsyncIterator[None]:
    """A server in this process, and a client in another."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    application = web.Application()
    application.router.add_get("/", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    client = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", _CLIENT, str(port))
    try:
        yield
    finally:
        client.kill()
        await client.wait()
        await runner.cleanup()


async def floors(folder: str, url: str) -> None:
    """Each part of a create alone, in one thread: what no arrangement of them can do without."""
    packed = await asyncio.to_thread(_packing_floors, folder)
    store = await open_store(url)
    try:
        await store.connect()
        parts = [packed[start : start + _PART] for start in range(0, len(packed), _PART)]
        with clock(name=f"sending, {_AT_ONCE} parts at once") as inside:
            upload = await store.create_upload("floor")
            sending = asyncio.Semaphore(_AT_ONCE)

            async def send(number: int, part: bytes) -> Part:
                async with sending:
                    return await store.upload_part("floor", upload, number, [part])

            sent = await asyncio.gather(*(send(number, part) for number, part in enumerate(parts, 1)))
            await store.complete_upload("floor", upload, sent)
        inside.values["bytes"] = float(len(packed))
        inside.tell()
    finally:
        await store.aclose()


def _packing_floors(folder: str) -> bytes:
    """Reading, compressing and hashing; what was compressed."""
    files = [path for path, _ in walk(Path(folder)) if path.is_file() and not path.is_symlink()]
    buffer = bytearray()
    frames: list[bytes] = []
    with clock(name="reading") as inside:
        for path in files:
            with path.open("rb", buffering=0) as file:
                buffer += file.read()
            if len(buffer) >= _FRAME:
                frames.append(bytes(buffer))
                buffer.clear()
    frames.append(bytes(buffer))
    inside.values["files"] = float(len(files))
    inside.tell()
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with clock(name="zstd, level 3") as inside:
        packed = [compressor.compress(frame) for frame in frames]
    inside.values["ratio"] = sum(map(len, frames)) / max(1, sum(map(len, packed)))
    inside.tell()
    with clock(name="BLAKE3") as inside:
        for frame in frames:
            blake3(frame).digest()
    inside.tell()
    return b"".join(packed)
