"""An S3 bucket as an object store.

The client is made by the first request (or by `connect`, ahead of it): whoever only reads the index never pays for it.

**Was it applied?** A write whose answer was lost is repeated, and the repetition may be refused because of the first.
So where that could be, we look: a conditional put compares what is there with what it wrote, a completion looks for its
object.

**What a server cannot do** is learnt from its answers and remembered for as long as the store is open: conditions and
DeleteObjects that it does not know are left out, a part that it did not copy is an error at once the next time. Servers
that take a condition and ignore it cannot be told from others by that; `snapstore doctor` tells.
"""

import asyncio
import importlib
import logging
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec

from snapstore.aio import Workers, run_all
from snapstore.errors import (
    InvalidInput,
    ObjectNotFound,
    PreconditionFailed,
    StorageError,
    StoreClosed,
)
from snapstore.objectstore import Body, Chunks, ObjectInfo, Part, UploadInfo, check_key
from snapstore.storage.s3.answers import (
    OutOfRange,
    Unsupported,
    bare,
    code_of,
    etag_of_parts,
    quoted,
    time_of,
)
from snapstore.storage.s3.listing import ENTRIES, EntriesReader
from snapstore.storage.s3.options import S3Options, endpoint_of, parse
from snapstore.storage.s3.payload import Payload

if TYPE_CHECKING:
    from snapstore.storage.s3.client import Client
    from snapstore.storage.s3.download import Download

log = logging.getLogger("snapstore")

_Failures = list[StorageError]

_THREADS = 2
_INLINE = 64 << 10
"""Bodies up to this size are digested on the loop: in less time than a thread takes to be asked."""
_STREAM = 4 << 20
"""Bytes that one request of a stream asks for."""
_PIECE = 1 << 20
_DELETES = 1000
_PAGE = 1000
"""What AWS gives at most; JuiceFS gives 4,500 where nothing is asked for."""
_DELETES_AT_ONCE = 8
_LISTINGS = 8
_LONGEST_LINK = timedelta(days=7)
_R2 = ".r2.cloudflarestorage.com"
"""It refuses to complete an upload whose parts differ in size, but for the last one."""
_UNITS = {"day": timedelta(days=1), "hour": timedelta(hours=1), "minute": timedelta(minutes=1)}


class S3Store:
    """Keeps `ObjectStore`'s contract as far as the server does."""

    def __init__(self, url: str, options: S3Options | None = None, requesting: asyncio.Semaphore | None = None) -> None:
        """InvalidInput where the URL or its options cannot be used; nothing is sent.

        ``requesting`` is held by each request, where several stores share one.
        """
        self._location, self._options = parse(url, options)
        self._requesting = requesting or asyncio.Semaphore(self._options.connections)
        self._endpoint = endpoint_of(self._options)
        self._workers = Workers(_THREADS, "s3")
        self._client: Client | None = None
        self._ca_bundle: str | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._conditions = self._copies = self._deletes_many = True

    @property
    def url(self) -> str:
        return self._location.url(self._endpoint)

    @property
    def part_size(self) -> int:
        return self._options.part_size

    @property
    def equal_parts(self) -> bool:
        return self._client is not None and (urlsplit(self._client.endpoint).hostname or "").endswith(_R2)

    @property
    def listings(self) -> int:
        return _LISTINGS

    @property
    def ca_bundle(self) -> str | None:
        return self._ca_bundle

    async def connect(self) -> None:
        await self._connected()

    async def _connected(self) -> "Client":
        if self._client is None:
            async with self._connecting:
                if self._closed:
                    raise StoreClosed("the store is closed")
                if self._client is None:
                    module = await self._workers.run(importlib.import_module, "snapstore.storage.s3.client")
                    configuration = await self._workers.run(module.read_configuration, self._options)
                    self._ca_bundle = configuration.ca_bundle
                    self._client = await module.connect(
                        configuration,
                        self._location.bucket,
                        self.url,
                        self._endpoint,
                        self._options,
                        EntriesReader(self._workers.run),
                        self._requesting,
                    )
        return self._client

    async def aclose(self) -> None:
        async with self._connecting:
            self._closed = True
            if self._client is not None:
                await self._client.aclose()
                self._client = None
        self._workers.close()

    # -- whole objects -------------------------------------------------------------------------------------------

    async def put(
        self, key: str, body: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        parameters: dict[str, Any] = {"Key": self._name(key), **self._class_of(key), **await self._payload([body])}
        conditions: dict[str, Any] = {}
        if self._conditions and if_none_match:
            conditions["IfNoneMatch"] = "*"
        if self._conditions and if_match is not None:
            conditions["IfMatch"] = quoted(if_match)
        try:
            answer = await self._put(key, parameters, conditions)
        except ObjectNotFound as error:
            raise PreconditionFailed(key) from error  # If-Match on what is not there
        except PreconditionFailed:
            # It may be there by an earlier attempt of our own, whose answer was lost.
            if ours := await self._written(key, body):
                return ours
            raise
        return ObjectInfo(key, len(body), bare(answer["ETag"]), time_of(answer))

    async def _put(self, key: str, parameters: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
        """With the conditions; without them where the server says twice that it does not know them."""
        for last in (False, True):
            try:
                return await self._call("PutObject", key, **parameters, **conditions)
            except Unsupported:
                if not conditions:
                    raise
                # One such answer may have been a proxy's, in passing: conditions are not given up for that.
                if last:
                    break
        answer = await self._call("PutObject", key, **parameters)
        log.warning("%s knows no conditional writes: going on without, the last of several writers wins", self.url)
        self._conditions = False
        return answer

    async def _written(self, key: str, body: bytes) -> ObjectInfo | None:
        """What is there, if that is ``body``: then an earlier attempt was applied, and its answer lost."""
        try:
            there = await self.head(key)
            same = there.size == len(body) and (await self.get(key, if_match=there.etag)).content == body
        except (ObjectNotFound, PreconditionFailed, StorageError):
            return None
        return there if same else None

    def _class_of(self, key: str) -> dict[str, Any]:
        """What is not an archive stays in the standard class: it is small, and read often."""
        return {"StorageClass": "STANDARD"} if self._options.storage_class and key.startswith("_") else {}

    async def get(self, key: str, *, start: int = 0, size: int | None = None, if_match: str | None = None) -> Body:
        if size == 0:
            return await self._nothing_of(key, if_match)
        download = await self._download(key, start, size, if_match)
        try:
            content = await download.read()
        except OutOfRange:
            return await self._nothing_of(key, if_match)
        assert download.etag is not None
        return Body(content, download.etag)

    async def _nothing_of(self, key: str, if_match: str | None) -> Body:
        info = await self.head(key)
        if if_match is not None and info.etag != if_match:
            raise PreconditionFailed(key)
        return Body(b"", info.etag)

    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncGenerator[bytes, None]:
        # Range by range: a consumer that stops half-way, or is slow, holds no connection.
        body = await self.get(key, size=_STREAM, if_match=if_match)
        position = 0
        while body.content:
            for start in range(0, len(body.content), _PIECE):
                yield body.content[start : start + _PIECE]
            position += len(body.content)
            if len(body.content) < _STREAM:
                return
            try:
                body = await self.get(key, start=position, size=_STREAM, if_match=body.etag)
            except (ObjectNotFound, PreconditionFailed) as error:
                raise StorageError(f"{key!r} was deleted or replaced while it was read", key) from error

    async def _download(self, key: str, start: int, size: int | None, if_match: str | None) -> "Download":
        name = self._name(key)
        return (await self._connected()).download(name, key, start, size, if_match)

    async def head(self, key: str) -> ObjectInfo:
        answer = await self._call("HeadObject", key, Key=self._name(key))
        return ObjectInfo(key, answer["ContentLength"], bare(answer["ETag"]), answer["LastModified"].timestamp())

    async def list(self, prefix: str = "", *, start_after: str = "") -> AsyncGenerator[Sequence[ObjectInfo], None]:
        if not _may_begin_keys(prefix):
            return
        ours = self._location.prefix
        parameters: dict[str, Any] = {"Prefix": ours + prefix, "MaxKeys": _PAGE}
        if start_after.startswith(prefix) and start_after:
            parameters["StartAfter"] = ours + start_after
        elif start_after.encode() > prefix.encode():
            return  # all keys that begin so come before it; some servers know no start outside of the prefix
        while True:
            answer = await self._call("ListObjectsV2", None, **parameters)
            yield [
                msgspec.structs.replace(found, key=found.key.removeprefix(ours)) if ours else found
                for found in answer.get(ENTRIES, ())
                if not found.key.endswith("/")  # a folder, as consoles and some servers make them
            ]
            if not answer.get("IsTruncated"):
                return
            parameters |= self._next(answer, parameters, "ContinuationToken")

    async def delete(self, key: str) -> None:
        try:
            await self._call("DeleteObject", key, Key=self._name(key))
        except ObjectNotFound:
            return

    async def delete_many(self, keys: Iterable[str]) -> None:
        failures: _Failures = []
        for batch in _batches(keys):
            if self._deletes_many:
                try:
                    await self._delete_batch(batch, failures)
                    continue
                except Unsupported:
                    log.info("%s deletes no objects together: going on one by one", self.url)
                    self._deletes_many = False
                except StorageError as error:
                    failures += [error] * len(batch)
                    continue
            await run_all((self._try_to_delete(key, failures) for key in batch), at_once=_DELETES_AT_ONCE)
        if failures:
            raise StorageError(f"{len(failures)} objects were not deleted; the first: {failures[0]}") from failures[0]

    async def _delete_batch(self, batch: Sequence[str], failures: _Failures) -> None:
        names = {self._name(key): key for key in batch}
        answer = await self._call(
            "DeleteObjects", None, Delete={"Objects": [{"Key": name} for name in names], "Quiet": True}
        )
        for failed in answer.get("Errors", ()):
            code, key = failed.get("Code", ""), names.get(failed.get("Key", ""))
            if code not in ("NoSuchKey", "NotFound"):
                need = ": these credentials need s3:DeleteObject" if code == "AccessDenied" else ""
                failures.append(StorageError(f"{key!r}: {code} {failed.get('Message', '')}".rstrip() + need, key))

    async def _try_to_delete(self, key: str, failures: _Failures) -> None:
        try:
            await self.delete(key)
        except StorageError as error:
            failures.append(error)

    # -- multipart uploads ---------------------------------------------------------------------------------------

    async def create_upload(self, key: str) -> str:
        answer = await self._call("CreateMultipartUpload", key, Key=self._name(key), **self._class_of(key))
        upload_id: str = answer["UploadId"]
        return upload_id

    async def upload_part(self, key: str, upload_id: str, number: int, body: Chunks) -> Part:
        name = self._name(key)
        payload = await self._payload(body)
        answer = await self._call("UploadPart", key, Key=name, UploadId=upload_id, PartNumber=number, **payload)
        return Part(number, bare(answer["ETag"]), len(payload["Body"]))

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: str, start: int, size: int, *, if_match: str
    ) -> Part:
        name, source_name = self._name(key), self._name(source)
        if not self._copies:
            raise Unsupported(f"{self.url} copies no parts of objects", key)
        try:
            answer = await self._call(
                "UploadPartCopy",
                source,
                Key=name,
                UploadId=upload_id,
                PartNumber=number,
                CopySource={"Bucket": self._location.bucket, "Key": source_name},
                CopySourceRange=f"bytes={start}-{start + size - 1}",
                CopySourceIfMatch=quoted(if_match),
            )
        except Unsupported:
            self._copies = False
            raise
        etag = answer.get("CopyPartResult", {}).get("ETag")
        if not etag:
            # Some answer 200 and copy nothing.
            self._copies = False
            raise Unsupported(f"{self.url} copies no parts of objects: its answer has no ETag", key)
        return Part(number, bare(etag), size)

    async def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        parts = sorted(parts, key=lambda part: part.number)
        listed = [{"PartNumber": part.number, "ETag": quoted(part.etag)} for part in parts]
        size = sum(part.size for part in parts)
        try:
            answer = await self._call(
                "CompleteMultipartUpload",
                key,
                Key=self._name(key),
                UploadId=upload_id,
                MultipartUpload={"Parts": listed},
            )
        except (StorageError, ObjectNotFound) as error:
            done = await self._completed_nevertheless(key, parts, size)
            if done is None:
                if isinstance(error, ObjectNotFound):
                    raise StorageError(f"the upload of {key!r} is not there (any more)", key) from error
                raise
            log.info("the answer to the completion of %s was lost, but it is there", key)
            return done
        return ObjectInfo(key, size, bare(answer["ETag"]), time_of(answer))

    async def _completed_nevertheless(self, key: str, parts: Sequence[Part], size: int) -> ObjectInfo | None:
        """The object, if it is there and made of these parts: then a completion was applied, and its answer lost."""
        try:
            found = await self.head(key)
        except (StorageError, ObjectNotFound):
            return None
        expected = etag_of_parts([part.etag for part in parts])
        # Where parts' digests do not tell, only an object of parts (not one put whole, before) has such an ETag.
        fits = found.etag == expected if expected else found.etag.endswith(f"-{len(parts)}")
        return found if fits and found.size == size else None

    async def abort_upload(self, key: str, upload_id: str) -> None:
        try:
            await self._call("AbortMultipartUpload", key, Key=self._name(key), UploadId=upload_id)
        except ObjectNotFound:
            return
        except StorageError as error:
            if code_of(error) != "NoSuchUpload":
                raise

    async def list_uploads(self) -> AsyncGenerator[Sequence[UploadInfo], None]:
        ours = self._location.prefix
        parameters: dict[str, Any] = {"Prefix": ours}
        while True:
            answer = await self._call("ListMultipartUploads", None, **parameters)
            yield [
                UploadInfo(found["Key"].removeprefix(ours), found["UploadId"], found["Initiated"].timestamp())
                for found in answer.get("Uploads", ())
                if found["Key"].startswith(ours)
            ]
            if not answer.get("IsTruncated"):
                return
            # SeaweedFS gives the one of the two alone, and goes on by that.
            parameters = {"Prefix": ours, **self._next(answer, parameters, "KeyMarker", "UploadIdMarker")}

    async def download_url(self, key: str, *, expires: timedelta, filename: str) -> str:
        name = self._name(key)
        if not timedelta(seconds=1) <= expires <= _LONGEST_LINK:
            raise InvalidInput(f"a link to S3 is valid for 1 second to 7 days, not {_in_words(expires)}")
        if self._options.customer_key or self._options.customer_key_file:
            raise InvalidInput("objects that are encrypted with a key of yours cannot be linked: read them instead")
        if self._options.requester_pays:
            raise InvalidInput("a bucket whose readers pay cannot be linked: each of them has to say so in a header")
        client = await self._connected()
        plain = filename.encode("ascii", "replace").decode().translate(str.maketrans('"\\', "__"))
        disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
        return await client.link(
            name,
            int(expires.total_seconds()),
            {"ResponseContentDisposition": disposition, "ResponseContentType": "application/zstd"},
        )

    # -- requests ------------------------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        return self._location.prefix + check_key(key)

    async def _call(self, operation: str, key: str | None, **parameters: Any) -> dict[str, Any]:
        return await (await self._connected()).call(operation, key, **parameters)

    def _next(self, answer: dict[str, Any], asked: dict[str, Any], *markers: str) -> dict[str, str]:
        """Where the rest of a listing begins: one that ended here unnoticed would pass for all that there is."""
        found = {marker: answer[f"Next{marker}"] for marker in markers if answer.get(f"Next{marker}")}
        if not found or found.items() <= asked.items():
            raise StorageError(f"{self.url} gives a listing in part, and not how it goes on (no new Next{markers[0]})")
        return found

    async def _payload(self, chunks: Chunks) -> dict[str, Any]:
        payload = Payload(chunks)
        inline = len(payload) <= _INLINE
        digest = payload.content_md5() if inline else await self._workers.run(payload.content_md5)
        return {"Body": payload, "ContentMD5": digest}


def _in_words(duration: timedelta) -> str:
    """As one would write it: ``8 days``, ``36 hours``."""
    for name, unit in _UNITS.items():
        count, rest = divmod(duration, unit)
        if count and not rest:
            return f"{count} {name}{'' if count == 1 else 's'}"
    return f"{duration.total_seconds():g} seconds"


def _may_begin_keys(prefix: str) -> bool:
    """Whether there can be keys that begin so; servers that keep keys as paths would list others."""
    *folders, last = prefix.split("/")
    return all(folder not in ("", ".", "..") for folder in folders) and "\0" not in last


def _batches(keys: Iterable[str]) -> Iterator[Sequence[str]]:
    batch: list[str] = []
    for key in keys:
        batch.append(check_key(key))
        if len(batch) == _DELETES:
            yield batch
            batch = []
    if batch:
        yield batch
