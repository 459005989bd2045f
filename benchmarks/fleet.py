"""A fleet's bucket of any size, made up: metadata objects that nobody wrote, each the same whenever it is asked for.

It answers as a bucket does, and counts and delays what is asked of it, so that the index can be measured at a million
snapshots without a million uploads. Of each it keeps 32 bytes (its id, and the digest that is its ETag), and whole what
is written to it (checkpoints): all in files, so that the memory of what is measured is its own.
"""

import asyncio
import os
import random
import shutil
import tempfile
import uuid
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import overload

from benchmarks.stores import PartialStore, etag
from snapstore import keys, metadata
from snapstore.errors import ObjectNotFound
from snapstore.model import Extent, Snapshot
from snapstore.objectstore import Body, ObjectInfo

APPS = 20_000
_PAGE = 1000
_ROW = 32
_SIZE = 700
_START = datetime(2026, 1, 1, tzinfo=UTC)
_TIERS = ("free", "basic", "gold", "internal")


def snapshot(number: int, apps: int = APPS) -> Snapshot:
    """The ``number``-th of a fleet of so many apps, which are packed one after the other, again and again."""
    chance = random.Random(number)
    created = _START + timedelta(seconds=number * 4.32, microseconds=chance.randrange(1000))
    unix_ms = int(created.timestamp() * 1000)
    snapshot_id = str(uuid.UUID(int=(unix_ms << 80) | 0x7 << 76 | 0x2 << 62 | number))
    app = number % apps
    name = f"app-{app:05}"
    labels = (f"owner:{app // 4}", f"tier:{_TIERS[app % 4]}", f"reason:{'deploy' if number % 7 == 0 else 'nightly'}")
    size = chance.randrange(1 << 20, 1 << 30)
    return Snapshot(
        id=snapshot_id,
        app=name,
        created_at=created,
        labels=labels,
        key=keys.archive_key(name, snapshot_id, str(app // 4), unix_ms // 1000),
        size=size,
        content_size=size * 3,
        entries=chance.randrange(10, 50_000),
        toc=Extent(size - 100_000, 99_000),
        root=f"{chance.getrandbits(256):064x}",
        revision=1,
        format=1,
    )


class FleetStore(PartialStore):
    """An object store with ``count`` snapshots; each request takes ``latency`` seconds.

    ``cache`` is a folder that keeps what is made once. Only the first `shown` snapshots are there: raise that, and
    others have written new ones.
    """

    url = "fleet://snapshots"

    def __init__(
        self,
        count: int,
        *,
        apps: int = APPS,
        latency: float = 0.0,
        listings: int = 8,
        shown: int | None = None,
        cache: Path | None = None,
    ) -> None:
        self.listings = listings
        self.latency = latency
        self.requests: Counter[str] = Counter()
        self.shown = count if shown is None else shown
        self._apps = apps
        self._folder = Path(tempfile.mkdtemp(prefix="fleet-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._rows = _rows(count, apps, cache or self._folder)
        self._kept: dict[str, ObjectInfo] = {}

    async def _asked(self, what: str) -> None:
        self.requests[what] += 1
        await asyncio.sleep(self.latency)

    async def get(self, key: str, *, start: int = 0, size: int | None = None, if_match: str | None = None) -> Body:
        await self._asked("get")
        if key in self._kept:
            return Body(self._file(key).read_bytes(), self._kept[key].etag)
        number = self._number(key)
        return Body(metadata.encode(snapshot(number, self._apps)), self._rows.etag(number))

    async def head(self, key: str) -> ObjectInfo:
        await self._asked("head")
        return self._info(self._number(key))

    async def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        await self._asked("put")
        self._file(key).write_bytes(body)
        self._kept[key] = ObjectInfo(key, len(body), etag(body), 0.0)
        return self._kept[key]

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        if prefix != keys.METADATA_PREFIX:
            await self._asked("list")
            yield [info for key, info in self._kept.items() if key.startswith(prefix)]
            return
        position = bisect_right(self._rows, start_after, hi=self.shown)
        while True:
            await self._asked("list")
            end = min(position + _PAGE, self.shown)
            yield [ObjectInfo(key, _SIZE, etag, 0.0) for key, etag in self._rows.between(position, end)]
            position = end
            if position == self.shown:
                return

    async def delete(self, key: str) -> None:
        await self._asked("delete")
        if self._kept.pop(key, None):
            self._file(key).unlink()

    def forget(self) -> None:
        """Drop what was written, and begin counting anew."""
        for key in list(self._kept):
            self._file(key).unlink()
        self._kept.clear()
        self.requests.clear()

    def _number(self, key: str) -> int:
        number = bisect_right(self._rows, key, hi=self.shown) - 1
        if number < 0 or self._rows[number] != key:
            raise ObjectNotFound(key, self.url)
        return number

    def _info(self, number: int) -> ObjectInfo:
        return ObjectInfo(self._rows[number], _SIZE, self._rows.etag(number), 0.0)

    def _file(self, key: str) -> Path:
        return Path(self._folder, key.replace("/", "-"))


class _Rows(Sequence[str]):
    """The keys of all metadata objects, in order, with their ETags: 32 bytes each, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return os.fstat(self._file).st_size // _ROW

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[str]: ...
    def __getitem__(self, number: int | slice) -> str | Sequence[str]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        return _key(self.row(number))

    def etag(self, number: int) -> str:
        return _etag(self.row(number))

    def row(self, number: int) -> bytes:
        return os.pread(self._file, _ROW, number * _ROW)

    def between(self, first: int, end: int) -> Iterator[tuple[str, str]]:
        """Key and ETag of each from the ``first`` to before the ``end``."""
        packed = os.pread(self._file, (end - first) * _ROW, first * _ROW)
        for start in range(0, len(packed), _ROW):
            row = packed[start : start + _ROW]
            yield _key(row), _etag(row)


def _rows(count: int, apps: int, folder: Path) -> _Rows:
    file = folder / f"fleet-{count}-{apps}"
    if file.exists():
        rows = _Rows(file)
        # Metadata may be written in another way than when it was kept.
        if len(rows) == count and rows.row(count - 1) == _row(count - 1, apps):
            return rows
    folder.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as written:
        written.writelines(_row(number, apps) for number in range(count))
    return _Rows(file)


def _row(number: int, apps: int) -> bytes:
    made = snapshot(number, apps)
    return keys.id_bytes(made.id) + bytes.fromhex(etag(metadata.encode(made)))


def _key(row: bytes) -> str:
    return keys.metadata_key(str(uuid.UUID(bytes=row[:16])))


def _etag(row: bytes) -> str:
    return row[16:].hex()
