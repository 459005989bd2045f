"""The body of a write: its pieces as they are, never joined, replayable, with the digest that the server checks."""

import base64
import hashlib
import io
from collections.abc import AsyncIterator, Callable

from snapstore.objectstore import Chunks

_PIECE = 256 << 10
"""Bytes given to the transport at once: it copies what the socket does not take, and between two the loop goes on."""


class Payload(io.RawIOBase):
    """Looks like a file to botocore, which asks for its size and rewinds it; is sent by `pieces`."""

    def __init__(self, chunks: Chunks) -> None:
        super().__init__()
        self._chunks = chunks
        self._size = sum(map(len, chunks))
        self._position = 0

    def __len__(self) -> int:
        return self._size

    def content_md5(self) -> str:
        """As the header wants it. Not for security: every server that we know checks this digest, and few others."""
        digest = hashlib.md5(usedforsecurity=False)
        for chunk in self._chunks:
            digest.update(chunk)
        return base64.b64encode(digest.digest()).decode()

    async def pieces(self, sent: Callable[[], None]) -> AsyncIterator[memoryview]:
        """All of it, for the transport; ``sent`` is called each time that it has taken a piece."""
        for chunk in self._chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), _PIECE):
                yield view[start : start + _PIECE]
                sent()

    # What botocore uses where bodies are signed.

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        start = 0
        for chunk in self._chunks:
            if start + len(chunk) > self._position:
                piece = memoryview(chunk)[self._position - start :][: len(view)]
                view[: len(piece)] = piece
                self._position += len(piece)
                return len(piece)
            start += len(chunk)
        return 0
