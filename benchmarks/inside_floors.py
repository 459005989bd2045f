"""What the parts of a create cost alone: what no arrangement of them can do without."""

import asyncio
from pathlib import Path

import zstandard
from blake3 import blake3

from benchmarks.clock import clock
from benchmarks.corpora import walk
from snapstore.objectstore import Part
from snapstore.storage.urls import open_store

_FRAME = 4 << 20
_PART = 8 << 20
_AT_ONCE = 3


async def floors(folder: str, url: str) -> None:
    """Each part of a create alone, in one thread."""
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
