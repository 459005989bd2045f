"""The S3 client: aiobotocore, set up as real servers need it. Importing this module costs half a second.

**Retries** are botocore's "standard" mode, for every request and in this one place: jittered exponential pauses (up to
20 s), the right errors (connections lost, timeouts, 500, 502, 503, 504, throttling, an error document inside a 200),
and a quota over all requests of the client, so that a failing server is not buried under repetitions. It repeats until
the headers of the answer are there; bodies are taken up again where they were cut by `download.py`.

**Digests**: botocore's own checksums break on several servers (S3.md, 1), so they are off where they may be, and each
write carries Content-MD5, which all servers check. Bodies are not signed besides: the digest is, and it covers them.
"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import aiohttp
import botocore
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import exceptions as boto

import snapstore
from snapstore.errors import StorageUnavailable
from snapstore.storage.s3 import errors
from snapstore.storage.s3.listing import EntriesReader, parse_time
from snapstore.storage.s3.options import S3Options, customer_key
from snapstore.storage.s3.payload import Payload

_DEFAULT_REGION = "us-east-1"
_SLOWEST = 128 << 10
"""Bytes a second below which a transfer is given up at last."""
_REDIRECTIONS = (301, 302, 303, 307, 308)
CUT = (aiohttp.ClientError, boto.HTTPClientError, boto.IncompleteReadError, TimeoutError, ConnectionError)
"""What reading a body raises when the connection is lost."""


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
    ) -> None:
        self._client = client
        self._stack = stack
        self._bucket = bucket
        self._store = store
        self._options = options
        self._extras = extras

    async def call(self, operation: str, key: str | None, *, size: int = 0, **parameters: Any) -> dict[str, Any]:
        """One request, with its repetitions. ``key`` is for errors; ``size`` is how many bytes the body has."""
        known = self._client.meta.service_model.operation_model(operation).input_shape.members
        extras = {name: value for name, value in self._extras.items() if name in known}
        method = getattr(self._client, _METHODS[operation])
        try:
            async with asyncio.timeout(self.deadline(size)):
                answer: dict[str, Any] = await method(Bucket=self._bucket, **{**extras, **parameters})
                return answer
        except (boto.BotoCoreError, boto.ClientError) as error:
            raise errors.translate(error, operation, key, self._store) from error
        except TimeoutError as error:
            raise StorageUnavailable(
                f"{self._store} did not finish {operation} within {self.deadline(size):.0f} s: try again later, or"
                " raise the deadline",
                key,
            ) from error

    def deadline(self, size: int) -> float:
        """Seconds that a request with a body of so many bytes may take."""
        return self._options.deadline + size / _SLOWEST

    async def link(self, key: str, expires: int, headers: Mapping[str, str]) -> str:
        """A presigned URL that fetches the object ``key`` (with its prefix), answered with these headers."""
        url: str = await self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": key, **headers}, ExpiresIn=expires
        )
        return url

    async def aclose(self) -> None:
        await self._stack.aclose()


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


class Configuration(NamedTuple):
    """What was read from files, in a thread."""

    session: AioSession
    extras: Mapping[str, str]
    """Parameters that go with every operation that knows them."""


def read_configuration(options: S3Options) -> Configuration:
    """Reads the AWS configuration, and the key of SSE-C; blocks. InvalidInput."""
    session = AioSession(profile=options.profile)
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_time)
    return Configuration(session, _extras(options))


async def connect(
    configuration: Configuration,
    bucket: str,
    store: str,
    endpoint: str | None,
    options: S3Options,
    entries: EntriesReader,
) -> Client:
    """A client for the bucket; nothing is sent yet. Errors as `Client.call` has them."""
    session, extras = configuration
    stack = AsyncExitStack()
    try:
        client = await stack.enter_async_context(
            session.create_client(
                "s3",
                region_name=options.region or session.get_config_variable("region") or _DEFAULT_REGION,
                endpoint_url=endpoint,
                config=_config(session, endpoint, options),
            )
        )
    except (boto.BotoCoreError, ValueError) as error:
        raise errors.translate(error, "connect", None, store) from error
    client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
    client.meta.events.register("before-parse.s3.ListObjectsV2", entries)
    return Client(client, stack, bucket, store, options, extras)


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
        max_pool_connections=options.connections,
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
        warm_up_loader_caches=True,
        http_session_cls=_Session,
        # Whole, or botocore would put one together anew for every request.
        user_agent=f"snapstore/{snapstore.__version__} botocore/{botocore.__version__}",
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


class _Session(AIOHTTPSession):  # type: ignore[misc]
    """Sends each single attempt of a request."""

    async def _get_session(self, proxy_url: Any) -> Any:
        return _Direct(await super()._get_session(proxy_url))

    async def send(self, request: Any) -> Any:
        body = request.body
        # Some gateways never answer the question; a part that is refused costs no more than its own bytes.
        request.headers.pop("Expect", None)
        stall = self._timeout.sock_read
        try:
            async with asyncio.timeout(None) as timer:
                if isinstance(body, Payload):
                    request.body = _watched(body, timer, stall)
                response = await super().send(request)
        except TimeoutError as error:
            raise boto.ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except boto.SSLError as error:
            # A certificate that is not trusted now is not trusted a second later: botocore would try again.
            raise errors.CertificateRefused(error=error) from error
        finally:
            request.body = body  # for its next attempt
        if response.status_code in _REDIRECTIONS and "x-amz-bucket-region" not in response.headers:
            # botocore would ask for the region, be redirected again, and ask for the region.
            raise errors.Redirected(location=response.headers.get("location", "nowhere"))
        if response.status_code == 429:
            response.status_code = 503  # which the standard mode of retries knows
        return response


class _Direct:
    """An aiohttp session that follows no redirection: what is signed is for one host, and botocore finds the other."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        # aiohttp would repeat a request by itself on a connection that was closed, with a body that is half spent.
        session._retry_connection = False

    def request(self, method: str, **options: Any) -> Any:
        return self._session.request(method, allow_redirects=False, **options)


async def _watched(body: Payload, timer: asyncio.Timeout, stall: float) -> AsyncIterator[memoryview]:
    """The body, while the server takes it: aiohttp watches over what it reads, and not over what it writes."""
    now = asyncio.get_running_loop().time

    def sent() -> None:
        timer.reschedule(now() + stall)

    sent()
    async for piece in body.pieces(sent):
        yield piece
    timer.reschedule(None)  # from here on aiohttp's own timeout watches for the answer
