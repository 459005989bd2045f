"""The file of a checkpoint: what stands in it, how it is written, and how one that may be damaged is read.

FORMAT.md, Checkpoints. Where a file's bytes are not what its name says, it is passed over; so is a line that cannot be
understood.
"""

import logging
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import NamedTuple

import msgspec
import zstandard
from blake3 import blake3

from snapstore.aio import Workers, drop
from snapstore.errors import ObjectNotFound
from snapstore.keys import CHECKPOINT_PREFIX, METADATA_PREFIX, id_bytes
from snapstore.objectstore import ObjectInfo, ObjectStore

log = logging.getLogger("snapstore")

ROWS = 100_000
"""At most so many in a file (FORMAT.md)."""
BATCH = 2000
"""Rows that are worked on at a time, by a thread or in a transaction."""
_LARGEST = 256 << 20
"""Bytes of a file beyond which it is not read: ours have about a hundred a snapshot."""
_CHUNK = 1 << 20
_LONGEST_LINE = 4 << 20
_LEVEL = 3


class Copy(NamedTuple):
    """A metadata object, as it was."""

    key: str
    etag: str
    content: str


_decoder = msgspec.json.Decoder(Copy)
_encoder = msgspec.json.Encoder()


class CheckpointFile:
    """A checkpoint in the making."""

    def __init__(self) -> None:
        self.etags: list[tuple[bytes, str]] = []
        self._lines: list[bytes] = []
        self._pieces: list[bytes] = []
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()

    def add(self, copy: Copy) -> None:
        self.etags.append((id_bytes(copy.key.removeprefix(METADATA_PREFIX)), copy.etag))
        self._lines.append(_encoder.encode(copy))

    def compress(self) -> None:
        """What was added since; slow."""
        lines, self._lines = self._lines, []
        if lines:
            self._pieces.append(self._compressor.compress(b"\n".join(lines) + b"\n"))

    def finish(self) -> tuple[str, bytes]:
        """Its name and content; slow."""
        self.compress()
        content = b"".join([*self._pieces, self._compressor.flush()])
        return CHECKPOINT_PREFIX + blake3(content).hexdigest(), content


async def listed(store: ObjectStore) -> Sequence[ObjectInfo]:
    """The checkpoints there are, the oldest first: what comes later is newer."""
    found = [info async for page in store.list(CHECKPOINT_PREFIX) for info in page if _is_named(info)]
    return sorted(found, key=lambda info: (info.modified, info.key))


def _is_named(info: ObjectInfo) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", info.key.removeprefix(CHECKPOINT_PREFIX)) is not None


async def read(store: ObjectStore, workers: Workers, info: ObjectInfo) -> bytes | None:
    """A checkpoint's bytes; None where they are not what its name says."""
    if info.size > _LARGEST:
        log.warning("passed over %s: %d bytes are too many for a checkpoint", info.key, info.size)
        return None
    try:
        content = (await store.get(info.key)).content
    except ObjectNotFound:
        return None  # superseded, and removed meanwhile
    digest = await workers.run(lambda: blake3(content).hexdigest())
    if info.key != CHECKPOINT_PREFIX + digest:
        log.warning("passed over %s: its bytes are not those that it was written with", info.key)
        return None
    return content


async def batches(workers: Workers, content: bytes) -> AsyncGenerator[Sequence[Copy], None]:
    """The rows of a checkpoint; the next ones are decoded while these are worked on."""
    decoded = _decoded(content)
    following = workers.start(next, decoded, ())
    try:
        while batch := await following:
            following = workers.start(next, decoded, ())
            yield batch
    finally:
        await drop([following])


def _decoded(content: bytes) -> Iterator[Sequence[Copy]]:
    batch: list[Copy] = []
    for line in _lines(content):
        try:
            batch.append(_decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # of a format that we do not know; its objects are read one by one
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _lines(content: bytes) -> Iterator[bytes]:
    rest = b""
    try:
        with zstandard.ZstdDecompressor().stream_reader(content) as reader:
            while piece := reader.read(_CHUNK):
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
                if len(rest) > _LONGEST_LINE:
                    log.warning("passed over a checkpoint's rest: it has a line of more than %d bytes", _LONGEST_LINE)
                    return
    except zstandard.ZstdError as error:
        log.warning("passed over a checkpoint's rest: %s", error)
