"""A multipart upload as a context manager, over any store: several parts in flight, and no trace of a failed one."""

import asyncio
import logging
from types import TracebackType

from snapstore.aio import drop, ended, tidy_seconds, uninterrupted
from snapstore.errors import SnapstoreError
from snapstore.objectstore import Chunks, ObjectInfo, ObjectStore, Part

MAX_PARTS = 10_000

log = logging.getLogger("snapstore")


class MultipartUpload:
    """Parts of one object, sent at most ``in_flight`` at a time. Left without `complete`, the upload is aborted."""

    def __init__(self, store: ObjectStore, key: str, *, in_flight: int = 3) -> None:
        self._store = store
        self._key = key
        self.in_flight = in_flight
        self._upload_id: str | None = None
        self._sending: set[asyncio.Task[Part]] = set()
        self._parts: list[Part] = []

    async def __aenter__(self) -> "MultipartUpload":
        return self

    async def part(self, number: int, body: Chunks) -> None:
        """Send a part, once fewer than ``in_flight`` others are under way; an earlier one's error comes out here."""
        if self._upload_id is None:
            self._upload_id = await ended(self._begin())
        while len(self._sending) >= self.in_flight:
            await self._collect(asyncio.FIRST_COMPLETED)
        self._sending.add(asyncio.create_task(self._store.upload_part(self._key, self._upload_id, number, body)))

    async def _begin(self) -> str:
        # Kept here, not by the caller: one that is cancelled while the store answers would never learn the id. Where
        # that takes too long nobody does, and the upload stays until the bucket's lifecycle ends it.
        self._upload_id = await self._store.create_upload(self._key)
        return self._upload_id

    async def _collect(self, when: str) -> None:
        done, self._sending = await asyncio.wait(self._sending, return_when=when)
        # Each is asked for its error: those that nobody asked for are logged as lost when the tasks are collected.
        errors = [error for task in done if not task.cancelled() and (error := task.exception())]
        if errors:
            raise errors[0]
        self._parts += [task.result() for task in done]

    async def complete(self) -> ObjectInfo:
        """Wait for all parts and make the object of them."""
        if self._upload_id is None:
            raise ValueError("an upload needs a part at least")
        if self._sending:
            await self._collect(asyncio.FIRST_EXCEPTION)
        if self._sending:
            await self._collect(asyncio.ALL_COMPLETED)
        # One that was cut off on its way could still be applied, after the object was taken back.
        return await ended(self._complete(self._upload_id))

    async def _complete(self, upload_id: str) -> ObjectInfo:
        info = await self._store.complete_upload(self._key, upload_id, self._parts)
        self._upload_id = None
        return info

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await uninterrupted(self._abort())

    async def _abort(self) -> None:
        await drop(self._sending)
        if self._upload_id is None:
            return
        try:
            async with asyncio.timeout(tidy_seconds()):
                await self._store.abort_upload(self._key, self._upload_id)
        except (SnapstoreError, TimeoutError) as failure:
            # The error that brought us here matters more.
            reason = str(failure) or "the store does not answer"
            log.warning(
                "could not abort the upload of %s, whose parts may still be in the store: %s", self._key, reason
            )
