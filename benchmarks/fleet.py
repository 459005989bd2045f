"""A fleet's bucket of any size, made up: metadata objects that nobody wrote, each the same whenever it is asked for.

It answers as a bucket does, and counts and delays what is asked of it, so that the index can be measured at a million
snapshots without a million uploads. Checkpoints that are written to it are kept.
"""

import asyncio
import hashlib
import random
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from snapstore import keys, metadata
from snapstore.errors import ObjectNotFound
from snapstore.model import Extent, Snapshot
from snapstore.storage.base import Body, ObjectInfo

_PAGE = 1000
_START = datetime(2026, 1, 1, tzinfo=UTC)
_TIERS = ("free", "basic", "gold", "internal")


def snapshot(number: int, apps: int) -> Snapshot:
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


class FleetStore:
    """An object store with ``count`` snapshots; each request takes ``latency`` seconds."""

    part_size = 8 << 20
    url = "fleet://snapshots"

    def __init__(self, count: int, *, apps: int = 20_000, latency: float = 0.0, listings: int = 8) -> None:
        self.listings = listings
        self.requests: Counter[str] = Counter()
        self._latency = latency
        self._apps = apps
        self._etags: list[str] = []
        self._keys: list[str] = []
        for number in range(count):
            made = snapshot(number, apps)
            self._keys.append(keys.metadata_key(made.id))
            self._etags.append(_etag(metadata.encode(made)))
        self._kept: dict[str, bytes] = {}

    async def _asked(self, what: str) -> None:
        self.requests[what] += 1
        await asyncio.sleep(self._latency)

    async def connect(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def get(self, key: str, *, start: int = 0, size: int | None = None, if_match: str | None = None) -> Body:
        await self._asked("get")
        if key in self._kept:
            return Body(self._kept[key], _etag(self._kept[key]))
        body = metadata.encode(snapshot(self._number(key), self._apps))
        return Body(body, _etag(body))

    async def head(self, key: str) -> ObjectInfo:
        await self._asked("head")
        return self._info(self._number(key))

    def _number(self, key: str) -> int:
        number = bisect_right(self._keys, key) - 1
        if number < 0 or self._keys[number] != key:
            raise ObjectNotFound(key, self.url)
        return number

    def _info(self, number: int) -> ObjectInfo:
        return ObjectInfo(self._keys[number], 700, self._etags[number], 0.0)

    async def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        await self._asked("put")
        self._kept[key] = body
        return ObjectInfo(key, len(body), _etag(body), 0.0)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        if prefix != keys.METADATA_PREFIX:
            await self._asked("list")
            yield [ObjectInfo(key, len(body), _etag(body), 0.0) for key, body in self._kept.items()]
            return
        position = bisect_right(self._keys, start_after)
        while True:
            await self._asked("list")
            end = min(position + _PAGE, len(self._keys))
            yield [self._info(number) for number in range(position, end)]
            position = end
            if position == len(self._keys):
                return

    async def delete(self, key: str) -> None:
        await self._asked("delete")
        self._kept.pop(key, None)

    async def delete_many(self, keys: Iterable[str]) -> None:
        for key in keys:
            await self.delete(key)


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
