"""Object stores that only measurements need, for `SnapStore.open` to take in place of a URL."""

import hashlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from datetime import timedelta

from snapstore.errors import ObjectNotFound
from snapstore.objectstore import Body, Chunks, ObjectInfo, Part, UploadInfo


class PartialStore:
    """What a store for measurements answers to all that it is not asked."""

    url = "partial://"
    part_size = 8 << 20
    equal_parts = False
    listings = 1
    ca_bundle: str | None = None

    async def connect(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        raise NotImplementedError

    async def get(self, key: str, *, start: int = 0, size: int | None = None, if_match: str | None = None) -> Body:
        raise ObjectNotFound(key, self.url)

    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncGenerator[bytes, None]:
        raise ObjectNotFound(key, self.url)
        yield b""

    async def head(self, key: str) -> ObjectInfo:
        raise ObjectNotFound(key, self.url)

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        yield []

    async def delete(self, key: str) -> None:
        pass

    async def delete_many(self, keys: Iterable[str]) -> None:
        for key in keys:
            await self.delete(key)

    async def create_upload(self, key: str) -> str:
        raise NotImplementedError

    async def upload_part(self, key: str, upload_id: str, number: int, body: Chunks) -> Part:
        raise NotImplementedError

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, size: int, *, if_match: str
    ) -> Part:
        raise NotImplementedError

    async def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        raise NotImplementedError

    async def abort_upload(self, key: str, upload_id: str) -> None:
        pass

    async def list_uploads(self) -> AsyncGenerator[Sequence[UploadInfo], None]:
        yield []

    async def download_url(self, key: str, *, expires: timedelta, filename: str) -> str:
        raise NotImplementedError


class Sink(PartialStore):
    """Takes everything and keeps nothing: what is left is the work of making an archive. It counts bytes."""

    url = "sink://"

    def __init__(self) -> None:
        self.taken = 0

    async def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        self.taken += len(body)
        return ObjectInfo(key, len(body), etag(body), 0.0)

    async def create_upload(self, key: str) -> str:
        return key

    async def upload_part(self, key: str, upload_id: str, number: int, body: Chunks) -> Part:
        size = sum(map(len, body))
        self.taken += size
        return Part(number, str(number), size)

    async def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        return ObjectInfo(key, sum(part.size for part in parts), key, 0.0)


def etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
