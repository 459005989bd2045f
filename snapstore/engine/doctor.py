"""What a store can do: each thing that snapstore asks of it, tried on a few small objects that are removed again."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from datetime import timedelta
from typing import Literal, NamedTuple

from snapstore.aio import ended, tidy_seconds, uninterrupted
from snapstore.errors import InvalidInput, ObjectNotFound, PreconditionFailed, SnapstoreError, StorageError
from snapstore.keys import METADATA_PREFIX
from snapstore.model import Check
from snapstore.objectstore import ObjectInfo, ObjectStore, Part
from snapstore.storage.s3.options import S3Options, parse, unverified
from snapstore.storage.urls import is_bucket, open_store

_PART = 5 << 20
"""The least that a part other than the last may have on AWS."""
_SKEW_SECONDS = 120.0


LIST, WRITE, READ = "list objects", "write an object", "read an object"
_RANGE, _LISTED, _MULTIPART = "read a range", "list what was just written", "multipart upload"


class _Failed(Exception):
    """The store answered, and not as it should."""


class _Skipped(Exception):
    """Nobody can tell, and why."""


class _Step(NamedTuple):
    name: str
    needed: bool
    use: str
    """What it is for; where it is not needed, what is lost without it."""
    run: Callable[[], Awaitable[str]]
    needs: tuple[str, ...] = ()
    """The steps without which it would fail, whatever the store can do."""


async def diagnose(url: str | os.PathLike[str], *, s3: S3Options | None = None) -> AsyncGenerator[Check, None]:
    """Try everything that snapstore asks of the store at ``url``, and leave nothing behind there.

    The index is not touched. What does not work is a `Check` with its reason, and no error; StorageError at the end
    where something could not be removed. InvalidInput (also for what only the first request finds), NotAStore.
    """
    store = await open_store(os.fspath(url), create=False, s3=s3)
    options = parse(os.fspath(url), s3)[1] if is_bucket(os.fspath(url)) else S3Options()
    try:
        async with aclosing(examine(store, unverified(options))) as checks:
            async for check in checks:
                yield check
    finally:
        await uninterrupted(store.aclose())


async def examine(store: ObjectStore, unverified: Sequence[str] = ()) -> AsyncGenerator[Check, None]:
    """`diagnose`, on an open store; in an order in which the first failure explains the most.

    ``unverified`` are the options in use that are not looked at.
    """
    patient = _Patient(store)
    lacking: dict[str, str] = {}
    """The steps that did not succeed, each with the one that is to blame."""
    try:
        for step in patient.steps():
            check = await _tried(step, lacking)
            yield check
            if check.result == "failed" and step.name == LIST:
                return  # nothing else can work
        if unverified:
            yield _row_of(unverified)
    finally:
        await uninterrupted(patient.clean())


async def _tried(step: _Step, lacking: dict[str, str]) -> Check:
    started = time.monotonic()
    result: Literal["ok", "missing", "failed", "skipped"] = "ok"
    try:
        if missed := [name for name in step.needs if name in lacking]:
            raise _Skipped(f'needs "{lacking[missed[0]]}"')
        detail = await step.run()
    except _Skipped as reason:
        result, detail = "skipped", str(reason)
        lacking[step.name] = lacking[missed[0]] if missed else step.name
    except (SnapstoreError, _Failed) as error:
        if isinstance(error, InvalidInput) and step.name == LIST:
            raise  # what was asked for cannot be tried
        result, detail = "failed" if step.needed else "missing", str(error)
        lacking[step.name] = step.name
    return Check(name=step.name, result=result, use=step.use, detail=detail, seconds=time.monotonic() - started)


def _row_of(unverified: Sequence[str]) -> Check:
    return Check(
        name="options", result="skipped", use="what else was asked for", detail=f"not verified: {', '.join(unverified)}"
    )


class _Patient:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        # Without a slash: some servers would keep an empty folder.
        self._prefix = f"doctor-{uuid.uuid4().hex}."
        self._small = f"{self._prefix}small"
        self._large = f"{self._prefix}large"
        self._wrote = False
        """Whether the small object is there."""
        self._uploads: list[tuple[str, str]] = []
        self._written: set[str] = set()
        """What may be there."""

    def steps(self) -> Sequence[_Step]:
        return [
            _Step(LIST, True, "reaching the store with these credentials; rebuilding the index", self.list_nothing),
            _Step(WRITE, True, "metadata, small archives", self.write),
            _Step(READ, True, "metadata; rebuilding the index", self.read),
            _Step(_RANGE, True, "single files, parallel restores", self.read_range, (WRITE, READ)),
            _Step(_LISTED, True, "an index that is right", self.list_written, (WRITE,)),
            _Step("start a listing at a key", True, "syncing the index", self.list_after, (_LISTED,)),
            _Step(_MULTIPART, True, "archives over one part", self.multipart, (WRITE, _RANGE)),
            _Step("abort an upload", True, "leaving nothing behind when a snapshot fails", self.abort, (_MULTIPART,)),
            _Step("list uploads", False, "finding what a crash left behind", self.list_uploads, (_MULTIPART,)),
            _Step(
                "refuse to overwrite", False, "a second guard against writing an id twice", self.create_only, (WRITE,)
            ),
            _Step(
                "replace one version only",
                False,
                "two nodes relabelling at once: else the last wins",
                self.replace_only,
                (WRITE, READ),
            ),
            _Step(
                "copy a part",
                False,
                "unchanged data stays in the store, instead of being sent again",
                self.copy,
                (_MULTIPART,),
            ),
            _Step("download link", False, "links to archives", self.link, (WRITE, READ)),
            _Step("clock", False, "signatures and links: both clocks should agree", self.clock, (WRITE,)),
            _Step("delete objects", True, "deleting snapshots", self.delete, (WRITE,)),
        ]

    async def list_nothing(self) -> str:
        async for _ in self._store.list(self._prefix):
            pass
        return self._store.url

    async def write(self) -> str:
        await self._put(self._small, b"small object")
        self._wrote = True
        return ""

    async def read(self) -> str:
        if not self._wrote:
            return await self._read_another()
        _expect(
            (await self._store.get(self._small)).content == b"small object", "what was read is not what was written"
        )
        return ""

    async def _read_another(self) -> str:
        """Of a store that is not to be written, or not by these credentials."""
        async for page in self._store.list(METADATA_PREFIX):
            for found in page:
                await self._store.get(found.key)
                return found.key
        raise _Skipped(f'needs "{WRITE}": no snapshot is there that could be read instead')

    async def read_range(self) -> str:
        body = await self._store.get(self._small, start=6, size=3)
        _expect(body.content == b"obj", f"the range holds {body.content!r}, not b'obj'")
        return ""

    async def list_written(self) -> str:
        _expect(self._small in await self._keys(), "the listing does not have it yet: listings lag behind writes")
        return ""

    async def list_after(self) -> str:
        other = f"{self._prefix}tiny"
        await self._put(other, b"")
        found = await self._keys(self._small)
        _expect(found == [other], f"{len(found)} keys after the first of two, not 1")
        return ""

    async def multipart(self) -> str:
        first, last = b"a" * _PART, b"b" * 1000
        upload_id = await self._begin(self._large)
        parts = [
            await self._store.upload_part(self._large, upload_id, number, [body])
            for number, body in ((1, first), (2, last))
        ]
        await self._store.complete_upload(self._large, upload_id, parts)
        body = await self._store.get(self._large, start=_PART - 2, size=4)
        _expect(body.content == b"aabb", "the object is not made of its parts")
        return f"parts of {self._store.part_size >> 20} MiB"

    async def abort(self) -> str:
        upload_id = await self._begin(f"{self._prefix}aborted")
        await self._store.abort_upload(f"{self._prefix}aborted", upload_id)
        _expect(upload_id not in await self._begun_ids(), "it is still listed afterwards")
        return ""

    async def list_uploads(self) -> str:
        key = f"{self._prefix}begun"
        upload_id = await self._begin(key)
        listed = [found.upload_id async for page in self._store.list_uploads() for found in page]
        await self._store.abort_upload(key, upload_id)
        _expect(upload_id in listed, "an upload that was begun is not listed")
        return ""

    async def create_only(self) -> str:
        try:
            await self._store.put(self._small, b"small object, over it", if_none_match=True)
        except PreconditionFailed:
            return ""
        raise _Failed("the condition (If-None-Match) is ignored")

    async def replace_only(self) -> str:
        etag = (await self._store.head(self._small)).etag
        await self._store.put(self._small, b"small object, again", if_match=etag)
        try:
            await self._store.put(self._small, b"small object, late", if_match=etag)
        except PreconditionFailed:
            return ""
        raise _Failed("the condition (If-Match) is ignored")

    async def copy(self) -> str:
        key = f"{self._prefix}copy"
        etag = (await self._store.head(self._large)).etag
        upload_id = await self._begin(key)
        part: Part = await self._store.copy_part(key, upload_id, 1, self._large, _PART - 2, 4, if_match=etag)
        await self._store.complete_upload(key, upload_id, [part])
        _expect((await self._store.get(key)).content == b"aabb", "the copy is not what was copied")
        return ""

    async def link(self) -> str:
        url = await self._store.download_url(self._small, expires=timedelta(minutes=1), filename="doctor.txt")
        try:
            content = await asyncio.to_thread(_fetch, url, self._store.ca_bundle)
        except (OSError, ValueError) as error:
            raise _Failed(f"cannot be fetched from here: {error}") from error
        _expect(content.startswith(b"small object"), "the link leads to something else")
        return url.partition("?")[0] if url.startswith("file:") else ""

    async def clock(self) -> str:
        before = time.time()
        skew = (await self._put(f"{self._prefix}clock", b"")).modified - before
        _expect(abs(skew) < _SKEW_SECONDS, f"the store's clock is {skew:+.0f} s off this machine's")
        return f"{max(0.0, abs(skew) - 1):.0f} s apart"

    async def delete(self) -> str:
        await self._store.delete(self._small)
        await self._store.delete_many(key for key in self._written if key != self._small)
        left = await self._keys()
        _expect(not left, f"{len(left)} objects are still listed after they were deleted")
        return ""

    async def clean(self) -> None:
        """Whatever is left, also after a failure in the middle. StorageError for what cannot be removed."""
        try:
            async with asyncio.timeout(tidy_seconds()):
                left = [*await self._uploads_left(), *await self._objects_left()]
        except TimeoutError:
            left = [f"what begins with {self._prefix}, as the store does not answer"]
        if left:
            raise StorageError(f"could not be removed from {self._store.url}: {', '.join(left)}")

    async def _uploads_left(self) -> Sequence[str]:
        if not self._uploads:
            return []
        left = []
        for key, upload_id in self._uploads:
            with suppress(SnapstoreError):  # looked at below
                await self._store.abort_upload(key, upload_id)
                continue
            left.append(f"an upload of {key}")
        begun = await self._begun_ids()
        return [*left, *(f"an upload of {key}" for key, upload_id in self._uploads if upload_id in begun)]

    async def _objects_left(self) -> Sequence[str]:
        # By what was written, not by what is listed: listings may lag behind.
        stuck = [key for key in self._written if not await self._removed(key)]
        return [f"objects {', '.join(sorted(stuck))}"] if stuck else []

    async def _removed(self, key: str) -> bool:
        """Whether an object is gone, by whichever way of deleting works here."""
        deleted = False
        with suppress(SnapstoreError):  # the other may do
            await self._store.delete(key)
            deleted = True
        with suppress(SnapstoreError):
            await self._store.delete_many([key])
            deleted = True
        try:
            await self._store.head(key)
        except ObjectNotFound:
            return True
        except SnapstoreError:
            return deleted
        return False

    async def _begun_ids(self) -> set[str]:
        """The uploads that are under way; none where they cannot be listed."""
        try:
            return {found.upload_id async for page in self._store.list_uploads() for found in page}
        except SnapstoreError:
            return set()

    async def _put(self, key: str, body: bytes) -> ObjectInfo:
        self._written.add(key)
        return await self._store.put(key, body)

    async def _begin(self, key: str) -> str:
        return await ended(self._begun(key))

    async def _begun(self, key: str) -> str:
        self._written.add(key)
        upload_id = await self._store.create_upload(key)
        self._uploads.append((key, upload_id))
        return upload_id

    async def _keys(self, start_after: str = "") -> list[str]:
        return [found.key async for page in self._store.list(self._prefix, start_after=start_after) for found in page]


def _expect(holds: bool, complaint: str) -> None:
    if not holds:
        raise _Failed(complaint)


def _fetch(url: str, ca_bundle: str | None) -> bytes:
    """As any program would that is given the link. OSError, ValueError."""
    # Here, as every command would wait for them, and only this one needs them.
    import ssl
    from http.client import HTTPException
    from urllib.request import urlopen

    trusted = ssl.create_default_context(cafile=ca_bundle) if ca_bundle else None
    try:
        with urlopen(url, timeout=30, context=trusted) as response:
            content: bytes = response.read(1000)
            return content
    except HTTPException as error:
        raise OSError(f"the answer is not HTTP: {error!r}") from error
