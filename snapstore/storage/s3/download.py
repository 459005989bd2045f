"""A range of an object, read to its end whatever happens to the connection, and all of it of one version.

botocore repeats a request until its headers are there; what is lost afterwards is asked for again here, from the byte
where it stopped, with If-Match. Servers that ignore that are caught by comparing the ETags.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import aiohttp
from botocore import exceptions as boto

from snapstore.errors import ObjectNotFound, PreconditionFailed, StorageError, StorageUnavailable
from snapstore.storage.s3.answers import bare, quoted

if TYPE_CHECKING:
    from snapstore.storage.s3.client import Client

_PIECE = 1 << 20
_LONGEST_PAUSE = 20.0
_CUT = (aiohttp.ClientError, boto.HTTPClientError, boto.IncompleteReadError, TimeoutError, ConnectionError)
"""What reading a body raises when the connection is lost."""


class Download:
    """One range; ``etag`` is known once the first piece (or the end) is there. OutOfRange where it begins too late."""

    def __init__(
        self, client: "Client", name: str, key: str, start: int, size: int | None, if_match: str | None, attempts: int
    ) -> None:
        self._client = client
        self._name = name
        self._key = key
        self._position = start
        self._size = size or 0
        self._end = None if size is None else start + size
        self._attempts = attempts
        self._begun = False
        self.etag = if_match

    async def read(self) -> bytes:
        """All of it, in memory; within the deadline of a request for so many bytes."""
        async with (
            self._client.connection(),
            self._client.deadline("GetObject", self._key, self._size),
            aclosing(self._pieces()) as pieces,
        ):
            return b"".join([piece async for piece in pieces])

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        """Its bytes, in pieces of at most 1 MiB."""
        failures, since = 0, self._position
        while True:
            answer = await self._ask()
            body = answer["Body"]
            try:
                # No further than was asked for: some servers do not know ranges, and send all that there is.
                while (wanted := self._wanted()) and (piece := await body.read(wanted)):
                    self._position += len(piece)
                    if self._position - since >= _PIECE:
                        # Not for less: a body that is cut after every byte would be asked for as often as it has bytes.
                        failures, since = 0, self._position
                    yield piece
                if not wanted:
                    return
                cut: BaseException | None = None
            except _CUT as error:
                cut = error
            finally:
                body.close()  # one that is left half-read must not go back to the pool
            failures += 1
            if failures >= self._attempts:
                raise StorageUnavailable(
                    f"{self._key!r} was cut short at byte {self._position} again and again: try again later", self._key
                ) from cut
            await asyncio.sleep(random.random() * min(2 ** (failures - 1), _LONGEST_PAUSE))

    def _wanted(self) -> int:
        """How many bytes the next piece may have; 0 at the end."""
        assert self._end is not None  # known since the first answer
        return max(0, min(_PIECE, self._end - self._position))

    async def _ask(self) -> dict[str, Any]:
        """What is still missing, from the version that was begun with."""
        parameters: dict[str, Any] = {"Key": self._name}
        if self._position or self._end is not None:
            parameters["Range"] = f"bytes={self._position}-{'' if self._end is None else self._end - 1}"
        if self.etag is not None:
            parameters["IfMatch"] = quoted(self.etag)
        try:
            answer = await self._client.ask("GetObject", self._key, **parameters)
        except (PreconditionFailed, ObjectNotFound) as error:
            if self._begun:
                raise StorageError(f"{self._key!r} was replaced or deleted while it was read", self._key) from error
            raise
        try:
            self._check(answer)
        except BaseException:
            answer["Body"].close()
            raise
        return answer

    def _check(self, answer: dict[str, Any]) -> None:
        etag = bare(answer["ETag"])
        if self.etag is not None and etag != self.etag:
            if self._begun:
                raise StorageError(f"{self._key!r} was replaced while it was read", self._key)
            raise PreconditionFailed(self._key)
        self.etag = etag
        first, last = self._place(answer)
        if first != self._position:
            raise StorageError(f"the store answers a request for a part of {self._key!r} with another one", self._key)
        if not self._begun:
            # A range that reaches beyond the end of the object ends there.
            self._end = last if self._end is None else min(self._end, last)
        self._begun = True

    def _place(self, answer: dict[str, Any]) -> tuple[int, int]:
        """Where the body begins in the object, and the byte after its last."""
        unit, _, place = answer.get("ContentRange", "").partition(" ")
        try:
            if unit == "bytes":
                first, _, last = place.partition("/")[0].partition("-")
                return int(first), int(last) + 1
            return 0, int(answer["ContentLength"])
        except (KeyError, ValueError) as error:
            raise StorageError(
                f"the store does not tell which bytes of {self._key!r} it answers with", self._key
            ) from error
