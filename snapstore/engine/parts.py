"""An archive on its way to the store: bytes in order, cut into parts, a few of them being sent.

An archive that fits one part is a single put. Left without `finish`, nothing of it stays.
"""

from types import TracebackType

from snapstore.aio import ended
from snapstore.objectstore import ObjectStore
from snapstore.storage.upload import MAX_PARTS, MultipartUpload

IN_FLIGHT = 3
KNOWN_BY = MAX_PARTS // 10
"""After so many parts it must be known how large the archive will be, so that the others suffice for it."""
_MARGIN = 1.1
"""Files may grow between the walk and the read."""
_MEMORY = 128 << 20
"""Bytes that parts may hold altogether, before fewer of them are sent at once: what `Limits` give by default."""


def part_size(size: int, at_least: int, parts: int = MAX_PARTS) -> int:
    """Bytes a part, so that about ``size`` bytes have fewer than ``parts``; whole MiB where more are needed."""
    needed = int(size * _MARGIN) // parts
    return max(at_least, -(-needed >> 20) << 20)


def in_flight(size_of_part: int) -> int:
    """How many parts of this size are sent at once: fewer where they had to grow for the sake of a large archive."""
    return max(1, min(IN_FLIGHT, _MEMORY // size_of_part - 1))


def memory(size_of_part: int) -> int:
    """Bytes in parts: those being sent, and the one that is being filled."""
    return (in_flight(size_of_part) + 1) * size_of_part


class ArchiveUpload:
    """Takes an archive piece by piece; left without `finish`, it leaves nothing."""

    def __init__(self, store: ObjectStore, key: str, size_of_part: int) -> None:
        self._store = store
        self._key = key
        self._size_of_part = size_of_part
        self._multipart = MultipartUpload(store, key, in_flight=in_flight(size_of_part))
        self._chunks: list[bytes] = []
        self._filled = 0
        self.parts = 0
        """How many were handed over to be sent."""
        self.size = 0

    async def __aenter__(self) -> "ArchiveUpload":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._multipart.__aexit__(kind, error, trace)

    def expect(self, size: int) -> None:
        """The archive will have about ``size`` bytes: from the next part on, parts are as large as that needs."""
        rest = max(0, size - self.size + self._filled)
        self._size_of_part = part_size(rest, self._size_of_part, MAX_PARTS - self.parts)
        self._multipart.in_flight = in_flight(self._size_of_part)

    def has_part_with(self, size: int) -> bool:
        """Whether ``size`` bytes more are enough for a part to be sent."""
        return self._filled + size >= self._size_of_part

    async def write(self, chunk: bytes) -> None:
        """The next bytes; waits while enough parts are on their way."""
        self.size += len(chunk)
        while self.has_part_with(len(chunk)):
            room = self._size_of_part - self._filled
            self._chunks.append(chunk[:room])
            chunk = chunk[room:]
            await self._send()
        if chunk:
            self._chunks.append(chunk)
            self._filled += len(chunk)

    async def _send(self) -> None:
        body, self._chunks, self._filled = self._chunks, [], 0
        self.parts += 1
        await self._multipart.part(self.parts, body)

    async def finish(self) -> None:
        """The object is there, whole, when this returns."""
        if self.parts == 0:
            await ended(self._store.put(self._key, b"".join(self._chunks)))
            return
        if self._chunks:
            await self._send()
        await self._multipart.complete()
