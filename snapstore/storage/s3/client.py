"""The S3 client: aiobotocore, set up as real servers need it. Importing this module costs half a second.

**Retries** are botocore's "standard" mode, for every request and in this one place: jittered exponential pauses (up to
20 s), the right errors (connections lost, timeouts, 500, 502, 503, 504, throttling, an error document inside a 200),
and a quota over all requests of the client, so that a failing server is not buried under repetitions. It repeats until
the headers of the answer are there; bodies are taken up again where they were cut by `download.py`.

**Digests**: botocore's own checksums break on several servers, so they are off where they may be, and each write
carries Content-MD5, which all servers check. Bodies are not signed besides: the digest is, and it covers them.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import exceptions as boto
from botocore.loaders import Loader, create_loader

import snapstore
from snapstore.errors import InvalidInput, StorageError, StorageUnavailable, reason_of
from snapstore.storage.s3 import errors
from snapstore.storage.s3.answers import NotS3
from snapstore.storage.s3.download import Download
from snapstore.storage.s3.listing import ENTRIES, EntriesReader, parse_time
from snapstore.storage.s3.options import S3Options, customer_key
from snapstore.storage.s3.transport import Transport

_DEFAULT_REGION = "us-east-1"
_SLOWEST = 128 << 10
"""Bytes a second below which a transfer is given up at last."""


class Client:
    """Requests to one bucket. Every error comes out as one of snapstore's."""

    def __init__(
        self,
        client: Any,
        stack: AsyncExitStack,
        bucket: str,
        store: str,
        options: S3Options,
        extras: Mapping[str, str],
        requesting: asyncio.Semaphore,
    ) -> None:
        self._requesting = (asyncio.Semaphore(options.connections), requesting)
        """Of this store, and of all that share one."""
        self._client = client
        self._stack = stack
        self._bucket = bucket
        self._store = store
        self._options = options
        self._extras = extras

    @property
    def endpoint(self) -> str:
        return str(self._client.meta.endpoint_url)

    async def call(self, operation: str, key: str | None, **parameters: Any) -> dict[str, Any]:
        """One request, with its repetitions; ``key`` is for errors."""
        if operation in _TIDYING:
            return await self.ask(operation, key, **parameters)
        async with self.connection():
            return await self.ask(operation, key, **parameters)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        """Held while a request has a connection; waited for outside of deadlines, as that is no fault of a server."""
        own, shared = self._requesting
        async with own, shared:
            yield

    async def ask(self, operation: str, key: str | None, **parameters: Any) -> dict[str, Any]:
        """`call`, by somebody who has a `connection`, since the answer's body is still to be read."""
        known = self._client.meta.service_model.operation_model(operation).input_shape.members
        extras = {name: value for name, value in self._extras.items() if name in known}
        method = getattr(self._client, _METHODS[operation])
        try:
            async with self.deadline(operation, key, len(parameters.get("Body", b""))):
                answer: dict[str, Any] = await method(Bucket=self._bucket, **{**extras, **parameters})
                self._check(operation, key, answer)
                return answer
        except (boto.BotoCoreError, boto.ClientError, NotS3) as error:
            raise errors.translate(error, operation, key, self._store, self._options.read_timeout) from error

    def _check(self, operation: str, key: str | None, answer: Mapping[str, Any]) -> None:
        for field in _FIELDS.get(operation, ()):
            if answer.get(field) in (None, ""):
                if "Body" in answer:
                    answer["Body"].close()
                raise StorageError(
                    f"{self._store} does not answer {operation} as S3 does (no {field}): check the endpoint", key
                )

    def download(self, name: str, key: str, start: int, size: int | None, if_match: str | None) -> Download:
        """A range of the object ``name`` (with its prefix); ``key`` is for errors."""
        return Download(self, name, key, start, size, if_match, self._options.attempts)

    @asynccontextmanager
    async def deadline(self, operation: str, key: str | None, size: int) -> AsyncIterator[None]:
        """StorageUnavailable where what is within takes longer than it may, with a body of so many bytes."""
        seconds = self._options.deadline + size / _SLOWEST
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise StorageUnavailable(
                f"{self._store} did not finish {operation} within {seconds:.0f} s: try again later, or raise the"
                " deadline",
                key,
            ) from error

    async def link(self, key: str, expires: int, headers: Mapping[str, str]) -> str:
        """A presigned URL that fetches the object ``key`` (with its prefix), answered with these headers."""
        url: str = await self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": key, **headers}, ExpiresIn=expires
        )
        return url

    async def aclose(self) -> None:
        await self._stack.aclose()


_TIDYING = ("AbortMultipartUpload", "DeleteObject", "DeleteObjects")
"""They take back what must not stay, in little time: they do not wait for others' connections."""
_METHODS = {
    "AbortMultipartUpload": "abort_multipart_upload",
    "CompleteMultipartUpload": "complete_multipart_upload",
    "CreateMultipartUpload": "create_multipart_upload",
    "DeleteObject": "delete_object",
    "DeleteObjects": "delete_objects",
    "GetObject": "get_object",
    "HeadObject": "head_object",
    "ListMultipartUploads": "list_multipart_uploads",
    "ListObjectsV2": "list_objects_v2",
    "PutObject": "put_object",
    "UploadPart": "upload_part",
    "UploadPartCopy": "upload_part_copy",
}


_FIELDS = {
    "CompleteMultipartUpload": ["ETag"],
    "CreateMultipartUpload": ["UploadId"],
    "GetObject": ["ETag"],
    "HeadObject": ["ETag", "ContentLength", "LastModified"],
    "ListObjectsV2": [ENTRIES],
    "PutObject": ["ETag"],
    "UploadPart": ["ETag"],
}
"""What we need of an answer, and what every S3 server gives; a copied part is looked at by `S3Store`."""


class Configuration(NamedTuple):
    """What was read from files, in a thread."""

    session: AioSession
    extras: Mapping[str, str]
    """Parameters that go with every operation that knows them."""
    ca_bundle: str | None
    """A file with the certificates to trust, in place of the usual ones."""


def read_configuration(options: S3Options) -> Configuration:
    """Reads the AWS configuration, the key of SSE-C and the certificates to trust; blocks. InvalidInput."""
    session = AioSession(profile=options.profile)
    with contextlib.suppress(boto.BotoCoreError):  # `connect` meets the same error, and tells of it
        session.register_component("data_loader", _models(session.get_config_variable("data_path")))
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_time)
    # botocore alone does not know AWS_REGION, which comes before AWS_DEFAULT_REGION in all other AWS tools.
    if region := options.region or os.environ.get("AWS_REGION"):
        session.set_config_variable("region", region)
    return Configuration(session, _extras(options), _ca_bundle(session))


@functools.cache
def _models(data_path: str | None) -> Loader:
    """botocore's descriptions of the services, kept for all clients of the process.

    They are 30,000 objects: parsed for each client, they would make Python collect its garbage each time, which holds
    the loop for 0.1 s and longer.
    """
    return create_loader(data_path)


def _ca_bundle(session: AioSession) -> str | None:
    try:
        bundle: str | None = session.get_config_variable("ca_bundle") or None
    except boto.BotoCoreError:
        return None  # `connect` meets the same error, and tells of it
    if bundle is not None:
        try:
            ssl.create_default_context(cafile=bundle)
        except OSError as error:
            raise InvalidInput(
                f"cannot read certificates from {bundle!r} ({reason_of(error)}): check AWS_CA_BUNDLE, or the profile's"
                " ca_bundle"
            ) from error
    return bundle


async def connect(
    configuration: Configuration,
    bucket: str,
    store: str,
    endpoint: str | None,
    options: S3Options,
    entries: EntriesReader,
    requesting: asyncio.Semaphore,
) -> Client:
    """A client for the bucket; nothing is sent yet. Errors as `Client.call` has them."""
    session, extras, _ = configuration
    stack = AsyncExitStack()
    try:
        client = await stack.enter_async_context(
            session.create_client(
                "s3",
                region_name=session.get_config_variable("region") or _DEFAULT_REGION,
                endpoint_url=endpoint,
                config=_config(session, endpoint, options),
            )
        )
    except (boto.BotoCoreError, ValueError) as error:
        raise errors.translate(error, "connect", None, store, options.read_timeout) from error
    client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
    # Before botocore's own handler, which makes a failure of an answer that it cannot read: more wildcards come first.
    client.meta.events.register("before-parse.*.*", entries)
    return Client(client, stack, bucket, store, options, extras, requesting)


def _config(session: AioSession, endpoint: str | None, options: S3Options) -> AioConfig:
    s3: dict[str, Any] = {"payload_signing_enabled": options.sign_payload}
    configured = session.get_scoped_config().get("s3", {})
    addressing = options.addressing or (configured.get("addressing_style") if isinstance(configured, dict) else None)
    if addressing or endpoint:
        # Names of buckets in front of an endpoint's need a wildcard in its DNS, which few servers of one's own have.
        s3["addressing_style"] = addressing or "path"
    return AioConfig(
        signature_version="s3v4",
        s3=s3,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": options.attempts},
        max_pool_connections=0,  # no bound: `connection` is one, and what tidies up goes past it
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
        warm_up_loader_caches=True,
        http_session_cls=Transport,
        # Whole, or botocore would put one together anew for every request.
        user_agent=f"snapstore/{snapstore.__version__}",
    )


def _extras(options: S3Options) -> dict[str, str]:
    extras: dict[str, str | None] = {
        "StorageClass": options.storage_class,
        "ServerSideEncryption": options.encryption,
        "SSEKMSKeyId": options.kms_key_id,
        "Tagging": urlencode(options.tags, quote_via=quote),
        "ACL": options.acl,
        "RequestPayer": "requester" if options.requester_pays else None,
        "ExpectedBucketOwner": options.bucket_owner,
        "ExpectedSourceBucketOwner": options.bucket_owner,
    }
    if key := customer_key(options):
        digest = base64.b64encode(hashlib.md5(key, usedforsecurity=False).digest()).decode()
        encoded = base64.b64encode(key).decode()
        for prefix in ("SSECustomer", "CopySourceSSECustomer"):
            extras |= {f"{prefix}Algorithm": "AES256", f"{prefix}Key": encoded, f"{prefix}KeyMD5": digest}
    return {name: value for name, value in extras.items() if value}


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """DeleteObjects must carry a digest, and older servers know no other than this."""
    params["context"].pop("checksum", None)  # botocore would add one of its own
    params["headers"].pop("x-amz-sdk-checksum-algorithm", None)
    params["headers"]["Content-MD5"] = base64.b64encode(
        hashlib.md5(params["body"], usedforsecurity=False).digest()
    ).decode()
