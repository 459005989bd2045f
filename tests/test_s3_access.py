"""Getting at a bucket: credentials, endpoints, URLs and options, links, TLS; and errors that say what to do."""

import asyncio
import base64
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import trustme

from snapstore import (
    AccessDenied,
    BadCredentials,
    BucketNotFound,
    ClockSkewed,
    InvalidInput,
    PreconditionFailed,
    S3Options,
    SnapStore,
    SnapstoreError,
    StorageError,
    StorageFull,
    StorageUnavailable,
    Throttled,
    diagnose,
)
from snapstore.errors import ObjectNotFound
from snapstore.storage.s3.store import S3Store
from snapstore.storage.urls import open_store
from tests import servers
from tests.conftest import BUCKET
from tests.proxy import Answer, Proxy, StallAnswer
from tests.servers import Certificate, Server
from tests.trees import describe, differences

KEY = "apps/blog.tar.zst"
PART = os.urandom(1 << 20) * 5
QUICK = S3Options(attempts=1, read_timeout=2, connect_timeout=2, deadline=10, part_size=5 << 20)
SOON = 5.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between attempts: how long they are is botocore's business."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)


Opener = Callable[..., S3Store]


@pytest.fixture
async def opener(prefix: str) -> AsyncIterator[Opener]:
    """Makes stores of `QUICK` and what else is given; of this test's own folder of the bucket unless told otherwise."""
    opened: list[S3Store] = []

    def make(url: str | None = None, **options: Any) -> S3Store:
        opened.append(S3Store(url or f"s3://{BUCKET}/{prefix}", msgspec.structs.replace(QUICK, **options)))
        return opened[-1]

    yield make
    for store in opened:
        await store.aclose()


async def listed(store: S3Store) -> list[str]:
    return [info.key async for page in store.list() for info in page]


async def works(store: S3Store) -> None:
    await store.put(KEY, b"body")
    assert (await store.get(KEY)).content == b"body"


# -- errors --------------------------------------------------------------------------------------------------------


async def test_no_such_bucket(seaweedfs: Server, opener: Opener) -> None:
    store = opener(f"s3://none-{uuid.uuid4().hex}")
    calls: list[Callable[[], Any]] = [
        lambda: store.put(KEY, b"body"),
        lambda: store.get(KEY),
        lambda: listed(store),
        lambda: store.create_upload(KEY),
        lambda: anext(store.stream(KEY)),
    ]
    for call in calls:
        with pytest.raises(BucketNotFound, match=r"check its name and the endpoint, or make it first"):
            await call()


@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
async def test_wrong_credentials(
    seaweedfs: Server, opener: Opener, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv(wrong, "AKWRONGWRONGWRONG")
    store = opener()
    with pytest.raises(BadCredentials, match="check access key, secret"):
        await store.put(KEY, b"body")
    with pytest.raises(BadCredentials, match="check access key, secret"):
        await listed(store)


async def test_no_credentials(seaweedfs: Server, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    started = time.monotonic()
    with pytest.raises(BadCredentials, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"):
        await opener().put(KEY, b"body")
    assert time.monotonic() - started < SOON


async def test_half_of_the_credentials(seaweedfs: Server, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(BadCredentials, match="AWS_SECRET_ACCESS_KEY"):
        await opener().put(KEY, b"body")


@pytest.mark.parametrize("given", ["environment", "option", "url"])
async def test_an_unknown_profile(
    seaweedfs: Server, opener: Opener, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    if given == "environment":
        monkeypatch.setenv("AWS_PROFILE", "nobody")
    store = opener(f"s3://{BUCKET}?profile=nobody" if given == "url" else None)
    if given == "option":
        store = opener(profile="nobody")
    with pytest.raises(BadCredentials, match=r"nobody.*set AWS_PROFILE"):
        await store.put(KEY, b"body")


ANSWERS: list[tuple[int, str, type[SnapstoreError], str]] = [
    (403, "AccessDenied", AccessDenied, "does not allow PutObject.*these credentials need s3:PutObject"),
    (403, "AllAccessDisabled", AccessDenied, "s3:PutObject"),
    (403, "RequestTimeTooSkewed", ClockSkewed, "set this machine's clock"),
    (403, "InvalidAccessKeyId", BadCredentials, "check access key"),
    (400, "ExpiredToken", BadCredentials, "token"),
    (400, "InvalidToken", BadCredentials, "token"),
    (401, "Unauthorized", BadCredentials, "check access key"),
    (404, "NoSuchBucket", BucketNotFound, "check its name"),
    (403, "InvalidObjectState", StorageError, "archive class.*restore it first"),
    (403, "QuotaExceeded", StorageFull, "free some space"),
    (507, "XMinioStorageFull", StorageFull, "free some space"),
    (429, "TooManyRequests", Throttled, "try again later"),
    (503, "SlowDown", Throttled, "try again later"),
    (500, "InternalError", StorageUnavailable, "try again later"),
    (301, "PermanentRedirect", InvalidInput, "AWS_REGION"),
    (400, "AuthorizationHeaderMalformed", InvalidInput, "AWS_REGION"),
    (412, "PreconditionFailed", PreconditionFailed, "try again"),
    (409, "ConditionalRequestConflict", PreconditionFailed, "try again"),
    (400, "InvalidStorageClass", InvalidInput, "give another storage_class, or none"),
    (400, "InvalidRequest", StorageError, "InvalidRequest: So the server says"),
]


@pytest.mark.parametrize(("status", "code", "error", "advice"), ANSWERS, ids=[row[1] for row in ANSWERS])
async def test_what_the_server_answers(
    proxy: Proxy,
    opener: Opener,
    status: int,
    code: str,
    error: type[SnapstoreError],
    advice: str,
) -> None:
    proxy.fault(Answer(status, code, "So the server says"), "PutObject", times=None)
    with pytest.raises(error, match=advice) as raised:
        await opener(endpoint=proxy.endpoint).put(KEY, b"body")
    assert type(raised.value) is error
    assert raised.value.__cause__ is not None
    assert getattr(raised.value, "key", KEY) == KEY


PERMISSIONS: dict[str, tuple[str, Callable[[S3Store], Any]]] = {
    "ListObjectsV2": ("s3:ListBucket", lambda store: listed(store)),
    "GetObject": ("s3:GetObject", lambda store: store.get(KEY)),
    "HeadObject": ("s3:GetObject", lambda store: store.head(KEY)),
    "DeleteObject": ("s3:DeleteObject", lambda store: store.delete(KEY)),
    "DeleteObjects": ("s3:DeleteObject", lambda store: store.delete_many([KEY])),
    "CreateMultipartUpload": ("s3:PutObject", lambda store: store.create_upload(KEY)),
    "AbortMultipartUpload": ("s3:AbortMultipartUpload", lambda store: store.abort_upload(KEY, "id")),
    "ListMultipartUploads": ("s3:ListBucketMultipartUploads", lambda store: anext(store.list_uploads())),
}


@pytest.mark.parametrize("operation", PERMISSIONS)
async def test_the_permission_that_is_needed_is_named(proxy: Proxy, opener: Opener, operation: str) -> None:
    permission, call = PERMISSIONS[operation]
    proxy.fault(Answer(403, "AccessDenied", "Access Denied"), operation)
    with pytest.raises(StorageError, match=rf"these credentials need {permission}$"):
        await call(opener(endpoint=proxy.endpoint))


async def test_a_permission_of_another_service_is_named_as_the_server_does(proxy: Proxy, opener: Opener) -> None:
    said = "User: arn:aws:iam::1:user/a is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:1"
    proxy.fault(Answer(403, "AccessDenied", said), "PutObject")
    with pytest.raises(AccessDenied, match=r"these credentials need kms:GenerateDataKey$"):
        await opener(endpoint=proxy.endpoint).put(KEY, b"body")


async def test_a_server_that_stalls_is_told_with_what_to_raise(proxy: Proxy, opener: Opener) -> None:
    proxy.fault(StallAnswer(), "GetObject")
    with pytest.raises(StorageUnavailable, match=r"did not go on with GetObject for 0\.2 s.*raise read_timeout"):
        await opener(endpoint=proxy.endpoint, read_timeout=0.2).get(KEY)


@asynccontextmanager
async def answering(status: str, body: bytes) -> AsyncIterator[str]:
    """Something that speaks HTTP, at this address; and not S3."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(2000)
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("404 Not Found", b""),
        ("404 Not Found", b"<html><body>nothing here</body></html>"),
        ("405 Method Not Allowed", b"no"),
        ("200 OK", b"<!DOCTYPE html>\n<html><br>Welcome!"),
        ("200 OK", b"<html><body>Welcome!</body></html>"),
    ],
    ids=str,
)
async def test_what_is_no_s3_server(seaweedfs: Server, opener: Opener, status: str, body: bytes) -> None:
    async with answering(status, body) as host:
        with pytest.raises(InvalidInput, match=r"does not look like S3.*check AWS_ENDPOINT_URL"):
            await listed(opener(endpoint=f"http://{host}", attempts=5))


async def test_https_where_the_server_speaks_http(seaweedfs: Server, opener: Opener) -> None:
    async with answering("400 Bad Request", b"") as host:
        with pytest.raises(InvalidInput, match="the server speaks http: write http://"):
            await listed(opener(endpoint=f"https://{host}"))


@pytest.mark.parametrize("status", [301, 307, 308])
@pytest.mark.parametrize("operation", ["GetObject", "PutObject"])
async def test_no_redirection_is_followed_to_another_host(
    proxy: Proxy, opener: Opener, operation: str, status: int
) -> None:
    """It would learn the key of SSE-C."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.close()

    store = opener(endpoint=proxy.endpoint, customer_key=bytes(32))
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        place = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        proxy.fault(Answer(status, "TemporaryRedirect", headers={"Location": place}), times=None)
        with pytest.raises(InvalidInput, match=place):
            await (store.get(KEY) if operation == "GetObject" else store.put(KEY, b"body"))
    assert heard == []
    assert proxy.count() == 1


async def test_a_bucket_in_another_region_is_found(proxy: Proxy, opener: Opener) -> None:
    proxy.fault(Answer(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-central-1"}))
    await works(opener(endpoint=proxy.endpoint))
    regions = [request.headers["authorization"].split("/")[2] for request in proxy.requests]
    assert regions == ["us-east-1", "eu-central-1", "eu-central-1"]


@pytest.mark.parametrize("operation", ["GetObject", "HeadObject"])
async def test_an_object_that_is_not_there(seaweedfs: Server, opener: Opener, operation: str) -> None:
    store = opener()
    with pytest.raises(ObjectNotFound, match=KEY) as raised:
        await (store.get(KEY) if operation == "GetObject" else store.head(KEY))
    assert raised.value.key == KEY


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
async def test_an_endpoint_that_cannot_be_reached(seaweedfs: Server, opener: Opener, host: str) -> None:
    store = opener(f"s3://{BUCKET}?endpoint=http://{host}:{closed_port()}")
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"cannot reach .*Check the endpoint \(AWS_ENDPOINT_URL\)"):
        await store.put(KEY, b"body")
    assert time.monotonic() - started < SOON


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:8333",
        "s3.example.com",
        "ftp://s3.example.com",
        "http://",
        "http:// a",
    ],
)
async def test_an_endpoint_that_is_none(seaweedfs: Server, opener: Opener, endpoint: str) -> None:
    with pytest.raises(InvalidInput, match="endpoint"):
        await opener(endpoint=endpoint).put(KEY, b"body")


# -- where credentials and endpoints are found -------------------------------------------------------------------------


@pytest.fixture
def keys_of(seaweedfs: Server) -> str:
    """Lines of a profile."""
    return f"aws_access_key_id = {seaweedfs.access_key}\naws_secret_access_key = {seaweedfs.secret_key}\n"


@pytest.fixture
def without_keys(seaweedfs: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)


async def test_credentials_from_the_environment(seaweedfs: Server, opener: Opener) -> None:
    await works(opener())


@pytest.mark.parametrize("named", ["default", "environment", "option", "url"])
@pytest.mark.parametrize("file", ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"])
async def test_credentials_from_a_profile(
    keys_of: str,
    without_keys: None,
    opener: Opener,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    file: str,
    named: str,
) -> None:
    section = "default" if named == "default" else "backup" if "CREDENTIALS" in file else "profile backup"
    (tmp_path / "file").write_text(f"[{section}]\n{keys_of}")
    monkeypatch.setenv(file, str(tmp_path / "file"))
    if named == "environment":
        monkeypatch.setenv("AWS_PROFILE", "backup")
    url = f"s3://{BUCKET}/{prefix}{'?profile=backup' if named == 'url' else ''}"
    await works(opener(url, profile="backup" if named == "option" else None))


WHERE = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "url", "option", "profile", "services"]


@pytest.mark.parametrize("where", WHERE)
async def test_where_the_endpoint_is_found(
    seaweedfs: Server, opener: Opener, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    right, wrong = seaweedfs.endpoint, f"http://127.0.0.1:{closed_port()}"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    url, options = f"s3://{BUCKET}/{prefix}", {}
    if where in ("profile", "services"):
        config = f"[default]\nendpoint_url = {right}\n"
        if where == "services":
            config = f"[default]\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = {right}\n"
        (tmp_path / "config").write_text(config)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    elif where == "AWS_ENDPOINT_URL":
        monkeypatch.setenv(where, right)
    else:  # comes before the general one
        monkeypatch.setenv("AWS_ENDPOINT_URL", wrong)
        if where == "AWS_ENDPOINT_URL_S3":
            monkeypatch.setenv(where, right)
        elif where == "option":
            options = {"endpoint": right}
        else:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", wrong)
            url, options = f"{url}?endpoint={quote(right, safe='')}", {"endpoint": wrong}
    await works(opener(url, **options))


REGIONS = {
    "option": "option-1",
    "AWS_REGION": "first-1",
    "AWS_DEFAULT_REGION": "second-1",
    "profile": "profile-1",
    "nowhere": "us-east-1",
}
"""In the order in which they are looked for."""


@pytest.mark.parametrize("where", REGIONS)
async def test_where_the_region_is_found(
    proxy: Proxy, opener: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    named = list(REGIONS)[list(REGIONS).index(where) :]  # each comes before those that follow
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if name in named:
            monkeypatch.setenv(name, REGIONS[name])
    if "profile" in named:
        (tmp_path / "config").write_text(f"[default]\nregion = {REGIONS['profile']}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    await works(opener(endpoint=proxy.endpoint, region=REGIONS["option"] if "option" in named else None))
    assert {request.headers["authorization"].split("/")[2] for request in proxy.requests} == {REGIONS[where]}


async def test_buckets_stand_in_the_path_below_a_profiles_endpoint(
    proxy: Proxy, opener: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    named = proxy.endpoint.replace("127.0.0.1", "localhost")  # of which `bucket.localhost` would be made
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {named}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    await works(opener())
    assert {request.bucket for request in proxy.requests} == {BUCKET}


async def test_addressing_can_be_chosen(proxy: Proxy, opener: Opener, prefix: str) -> None:
    endpoint = proxy.endpoint.replace("127.0.0.1", "localhost")
    for addressing, path in (("path", f"/{BUCKET}/{prefix}/{KEY}"), ("virtual", f"/{prefix}/{KEY}")):
        proxy.clear()
        proxy.fault(Answer(403, "AccessDenied"))
        try:
            await opener(endpoint=endpoint, addressing=addressing).put(KEY, b"")
        except AccessDenied:
            assert [request.path for request in proxy.requests] == [path]
        except StorageUnavailable:
            assert addressing == "virtual"


# -- URLs and options --------------------------------------------------------------------------------------------------

BAD_URLS: dict[str, str] = {
    "s3://": "names no bucket",
    "s3:///prefix": "names no bucket",
    "s3://b": "names no bucket",
    "s3://-bucket": "names no bucket",
    "s3://buc ket": "names no bucket",
    "s3://bucket#part": "names no bucket",
    "s3://bucket/../x": "cannot be a key",
    "s3://bucket/a//b": "cannot be a key",
    "s3://AK:secret@bucket/x": "no credentials",
    "s3://AK@bucket/x": "no credentials",
    "s3://bucket?colour=red": "colour",
    "s3://bucket?connections=many": "connections",
    "s3://bucket?connections=0": "connections",
    "s3://bucket?attempts=1.5": "attempts",
    "s3://bucket?read_timeout=-1": "read_timeout",
    "s3://bucket?part_size=1000": "part_size",
    "s3://bucket?sign_payload=perhaps": "sign_payload",
    "s3://bucket?addressing=dns": "addressing",
    "s3://bucket?encryption=rot13": "encryption",
    "s3://bucket?customer_key=abc": "customer_key_file",
    "s3://bucket?customer_key_file=/k&encryption=AES256": "customer_key",
    "s3://bucket?kms_key_id=1": "kms_key_id",
    "s3://bucket?tags=nonsense": "tags",
    "s3://bucket?region": "region",
}


OPTION_ERRORS = {
    "part_size=16MiB": "part_size is bytes, 5242880 (5 MiB) or more, and at most 5368709120 (5 GiB), not '16MiB'",
    "encryption=rot13": "encryption is AES256, aws:kms or aws:kms:dsse, not 'rot13'",
    "addressing=dns": "addressing is path, virtual or auto, not 'dns'",
    "attempts=1.5": "attempts is a whole number, 1 or more, not '1.5'",
    "read_timeout=-1": "read_timeout is seconds, more than 0, not '-1'",
    "sign_payload=perhaps": "sign_payload is true or false, not 'perhaps'",
    "kms_key_id=1": "kms_key_id needs encryption 'aws:kms'",
    "region": "write options as option=value, with & between two of them: bad query field: 'region'",
}


@pytest.mark.parametrize(("query", "told"), OPTION_ERRORS.items(), ids=OPTION_ERRORS.keys())
def test_what_an_option_takes_is_told(query: str, told: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        S3Store(f"s3://{BUCKET}?{query}")
    assert str(raised.value) == told


def test_all_options_are_listed_for_an_unknown_one() -> None:
    with pytest.raises(InvalidInput, match=r"no option 'colour': options are region, endpoint, .*deadline$"):
        S3Store(f"s3://{BUCKET}?colour=red")


async def test_options_in_a_dict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"s3= takes S3Options\(.*not a dict"):
        await SnapStore.open(f"s3://{BUCKET}", index=tmp_path / "index.db", s3={"region": "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["s3:snapshots/pre", "s3:/snapshots/pre", "S3:snapshots", "file:srv/snapshots", "s3:"])
async def test_urls_that_lack_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=r"lacks slashes: write s3://bucket/prefix"):
        await SnapStore.open(url, index=tmp_path / "index.db")
    assert list(tmp_path.iterdir()) == []


async def test_a_scheme_may_be_written_in_capitals() -> None:
    store = await open_store("S3://Bucket/Prefix?endpoint=https://s3.example.com")
    assert store.url == "s3://Bucket/Prefix?endpoint=https://s3.example.com"
    await store.aclose()


@pytest.mark.parametrize(("url", "named"), BAD_URLS.items(), ids=BAD_URLS.keys())
async def test_urls_that_cannot_be_used(url: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=named) as raised:
        S3Store(url)
    assert "secret" not in str(raised.value)
    with pytest.raises(InvalidInput):
        await SnapStore.open(url, index=tmp_path / "index.db")


@pytest.mark.parametrize(
    "options",
    [{"customer_key": b"short"}, {"customer_key": bytes(32), "encryption": "AES256"}, {"kms_key_id": "k"}],
    ids=str,
)
def test_options_that_cannot_be_used(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        S3Options(**options)


@pytest.mark.parametrize("content", [None, b"short", b"!" * 44, base64.b64encode(bytes(31))], ids=str)
async def test_key_files_that_cannot_be_used(
    seaweedfs: Server, opener: Opener, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInput, match="customer_key_file") as raised:
        await opener(customer_key_file=str(file)).put(KEY, b"body")
    assert str(file) in str(raised.value)


async def test_what_names_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for url, named in {
        "s3://bucket": "s3://bucket",
        "s3://bucket/": "s3://bucket",
        "s3://bucket/a/b/": "s3://bucket/a/b",
        "s3://bucket/a%20b?region=eu-central-1&storage_class=GLACIER_IR&tags=a%3Db": "s3://bucket/a%20b",
        "s3://bucket/a?profile=p&endpoint=https://s3.example.com/": "s3://bucket/a?endpoint=https://s3.example.com",
    }.items():
        store = S3Store(url, S3Options(customer_key=bytes(32), acl="private"))
        assert store.url == named
        await store.aclose()
        again = S3Store(named)
        assert again.url == named
        await again.aclose()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1/")
    store = S3Store("s3://bucket")
    assert store.url == "s3://bucket?endpoint=http://127.0.0.1:1"
    await store.aclose()


@pytest.mark.parametrize("given", ["url", "environment"])
async def test_an_endpoint_holds_no_credentials(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = "https://user:secret@s3.example.com"
    url = "s3://bucket"
    if given == "url":
        url += f"?endpoint={quote(endpoint, safe='')}"
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(InvalidInput) as raised:
        S3Store(url)
    assert "secret" not in str(raised.value)


Heads = Mapping[str, list[Mapping[str, str]]]


async def heads_of(proxy: Proxy, prefix: str, tmp_path: Path, **options: Any) -> Heads:
    """What a large and a small snapshot, reading and deleting send, by operation, ``Meta`` in front for metadata."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(os.urandom(6 << 20))
    (tmp_path / "small").mkdir()
    url = f"s3://{BUCKET}/{prefix}?endpoint={proxy.endpoint}"
    s3 = msgspec.structs.replace(QUICK, **options)
    async with SnapStore.open(url, index=tmp_path / "index.db", s3=s3) as store:
        for name in ("large", "small"):
            made = await store.create("blog", tmp_path / name)
            await store.restore(made.id, tmp_path / f"restored-{name}")
            assert differences(describe(tmp_path / name), describe(tmp_path / f"restored-{name}")) == {}
        await store.relabel(made.id, add=["a:1"])
        await store.delete(made.id)
    found: dict[str, list[Mapping[str, str]]] = {}
    for request in proxy.requests:
        kind = "Meta" if "/_metadata/" in request.key else ""
        found.setdefault(kind + request.operation, []).append(request.headers)
    assert {"PutObject", "MetaPutObject", "CreateMultipartUpload", "UploadPart", "DeleteObject"} <= found.keys()
    return found


WRITES = ("PutObject", "MetaPutObject", "CreateMultipartUpload")


def with_header(heads: Heads, name: str, value: str) -> set[str]:
    """The operations of which every request has the header; none of the others has it at all."""
    having = {operation for operation, all_ in heads.items() if all(head.get(name) == value for head in all_)}
    for operation in heads.keys() - having:
        assert not [head for head in heads[operation] if name in head], operation
    return having


async def test_tags_and_access_are_of_all_that_is_written(proxy: Proxy, prefix: str, tmp_path: Path) -> None:
    tags = {"team": "web & co", "umlaut": "ä"}
    heads = await heads_of(proxy, prefix, tmp_path, tags=tags, acl="bucket-owner-full-control")
    assert with_header(heads, "x-amz-tagging", "team=web%20%26%20co&umlaut=%C3%A4") == set(WRITES)
    assert with_header(heads, "x-amz-acl", "bucket-owner-full-control") == set(WRITES)


async def test_who_pays_and_who_owns_is_in_every_request(proxy: Proxy, prefix: str, tmp_path: Path) -> None:
    heads = await heads_of(proxy, prefix, tmp_path, requester_pays=True, bucket_owner="123456789012")
    assert with_header(heads, "x-amz-request-payer", "requester") == set(heads)
    assert with_header(heads, "x-amz-expected-bucket-owner", "123456789012") == set(heads)


async def test_the_storage_class_is_of_archives_alone(proxy: Proxy, prefix: str, tmp_path: Path) -> None:
    heads = await heads_of(proxy, prefix, tmp_path, storage_class="STANDARD_IA")
    assert {head["x-amz-storage-class"] for head in heads["PutObject"] + heads["CreateMultipartUpload"]} == {
        "STANDARD_IA"
    }
    assert {head.get("x-amz-storage-class", "STANDARD") for head in heads["MetaPutObject"]} == {"STANDARD"}
    others = [head for operation in heads.keys() - set(WRITES) for head in heads[operation]]
    assert not [head for head in others if "x-amz-storage-class" in head]


async def test_encryption_with_the_servers_key(proxy: Proxy, prefix: str, tmp_path: Path) -> None:
    heads = await heads_of(proxy, prefix, tmp_path, encryption="AES256")
    assert with_header(heads, "x-amz-server-side-encryption", "AES256") == set(WRITES)


async def test_encryption_with_a_key_of_kms(proxy: Proxy, opener: Opener) -> None:
    store = opener(endpoint=proxy.endpoint, encryption="aws:kms", kms_key_id="a-key")
    proxy.fault(Answer(400, "KMS.NotFoundException"), times=None)
    for call in (lambda: store.put(KEY, b"body"), lambda: store.create_upload(KEY)):
        with pytest.raises(StorageError):
            await call()
    for request in proxy.requests:
        assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
        assert request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "a-key"


@pytest.mark.parametrize("given", ["option", "file", "base64-file"])
async def test_encryption_with_a_key_of_ones_own(
    proxy: Proxy, prefix: str, opener: Opener, tmp_path: Path, given: str
) -> None:
    key = os.urandom(32)
    file = tmp_path / "key"
    file.write_bytes(base64.b64encode(key) + b"\n" if given == "base64-file" else key)
    options: dict[str, Any] = {"customer_key": key} if given == "option" else {"customer_key_file": str(file)}
    store = opener(endpoint=proxy.endpoint, **options)

    info = await store.put("small", b"small object")
    assert (await store.get("small", start=2, size=3)).content == b"all"
    assert await store.head("small") == info
    upload = await store.create_upload(KEY)
    parts = [await store.upload_part(KEY, upload, n, [body]) for n, body in ((1, PART), (2, b"the end"))]
    whole = await store.complete_upload(KEY, upload, parts)
    assert b"".join([piece async for piece in store.stream(KEY, if_match=whole.etag)]) == PART + b"the end"
    with pytest.raises(PreconditionFailed):
        await store.put("small", b"other", if_none_match=True)
    with pytest.raises(InvalidInput, match="key of yours"):
        await store.download_url("small", expires=timedelta(hours=1), filename="x")
    for read in (opener().get, opener().head):
        with pytest.raises(StorageError, match=r"encrypted with a key of yours, give customer_key_file="):
            await read("small")
    for others in ({}, {"customer_key": os.urandom(32)}):
        stranger = opener(**others)
        for key_of in ("small", KEY):
            with pytest.raises(StorageError):
                await stranger.get(key_of)
    assert sorted(await listed(stranger)) == [KEY, "small"]
    await store.delete_many(["small", KEY])


async def test_parts_are_copied_with_a_key_of_ones_own(proxy: Proxy, opener: Opener) -> None:
    store = opener(endpoint=proxy.endpoint, customer_key=bytes(32))
    proxy.fault(Answer(501, "NotImplemented"), "UploadPartCopy")  # as SeaweedFS answers
    upload = await store.create_upload(KEY)
    with pytest.raises(StorageError, match="UploadPartCopy"):
        await store.copy_part(KEY, upload, 1, "source", 1000, 100_000, if_match="0" * 32)
    await store.abort_upload(KEY, upload)
    (copied,) = [request.headers for request in proxy.requests if request.operation == "UploadPartCopy"]
    for name in ("x-amz-server-side-encryption-customer", "x-amz-copy-source-server-side-encryption-customer"):
        assert copied[f"{name}-algorithm"] == "AES256"
        assert copied[f"{name}-key"] == base64.b64encode(bytes(32)).decode()
        assert copied[f"{name}-key-md5"] == base64.b64encode(hashlib.md5(bytes(32)).digest()).decode()


async def test_a_whole_snapshot_with_a_key_of_ones_own(proxy: Proxy, prefix: str, tmp_path: Path) -> None:
    heads = await heads_of(proxy, prefix, tmp_path, customer_key=os.urandom(32))
    with_key = with_header(heads, "x-amz-server-side-encryption-customer-algorithm", "AES256")
    assert {*WRITES, "UploadPart", "GetObject", "MetaGetObject"} <= with_key


# -- download links ----------------------------------------------------------------------------------------------------


class Clock:
    @staticmethod
    def now(_: Any) -> datetime:
        return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("app", ["blog", 'blög "x"', "日本語", "a;b=c,d", "team/blog"])
async def test_a_link_to_an_archive(
    seaweedfs: Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: str
) -> None:
    monkeypatch.setattr("snapstore.engine.writer.datetime", Clock)
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("text")
    async with SnapStore.open(f"s3://{BUCKET}/{prefix}", index=tmp_path / "index.db", s3=QUICK) as store:
        made = await store.create(app, source)
        url = await store.download_url(made.id)
        with pytest.raises(InvalidInput, match="7 days"):
            await store.download_url(made.id, expires=timedelta(days=7, seconds=1))
        with pytest.raises(InvalidInput, match="1 second"):
            await store.download_url(made.id, expires=timedelta(0))
        with pytest.raises(InvalidInput, match=r"not 8 days$"):
            await store.download_url(made.id, expires=timedelta(days=8))
        with pytest.raises(InvalidInput, match=r"not 169 hours$"):
            await store.download_url(made.id, expires=timedelta(hours=169))
        with pytest.raises(InvalidInput, match=r"expires is a timedelta, .*, not 3600$"):
            await store.download_url(made.id, expires=3600)  # type: ignore[arg-type]
        await store.download_url(made.id, expires=timedelta(days=7))
    headers, content = await asyncio.to_thread(fetch, url)
    assert len(content) == made.size
    name = f"{app.replace('/', '_')}-20260102T030405Z.tar.zst"
    disposition = headers["Content-Disposition"]
    assert f"filename*=UTF-8''{quote(name, safe='')}" in disposition
    assert disposition.isascii()
    assert disposition.count('"') == 2
    if app == "blog":
        assert f'filename="{name}"' in disposition
    assert seaweedfs.secret_key not in url
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    (tmp_path / "archive").write_bytes(content)
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "--zstd", "-xf", tmp_path / "archive", "-C", tmp_path / "unpacked"], check=True)
    assert differences(describe(source), describe(tmp_path / "unpacked")) == {}


def fetch(url: str) -> tuple[Mapping[str, str], bytes]:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.headers, response.read()


async def test_a_link_that_has_expired_is_refused(seaweedfs: Server, opener: Opener) -> None:
    store = opener()
    await store.put(KEY, b"body")
    url = await store.download_url(KEY, expires=timedelta(seconds=1), filename="x.tar.zst")
    assert (await asyncio.to_thread(fetch, url))[1] == b"body"
    await asyncio.sleep(2.1)
    with pytest.raises(urllib.error.HTTPError) as raised:
        await asyncio.to_thread(fetch, url)
    raised.value.close()
    assert raised.value.code in (400, 403)


async def test_a_bucket_whose_readers_pay_is_not_linked(seaweedfs: Server, opener: Opener) -> None:
    store = opener(requester_pays=True)
    await works(store)
    with pytest.raises(InvalidInput, match="header"):
        await store.download_url(KEY, expires=timedelta(hours=1), filename="x")


# -- https -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return servers.certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def secure(trusted: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if reason := servers.missing("seaweedfs"):
        pytest.skip(reason)
    with servers.seaweedfs(tmp_path_factory.mktemp("secure"), tls=trusted) as server:
        servers.make_bucket(server, BUCKET)
        yield server


Send = Callable[[Any, Any], Any]


async def test_a_snapshot_over_https(
    secure: Server, trusted: Certificate, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.use(secure, monkeypatch)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(trusted.ca_file))
    sent: list[tuple[str, Mapping[str, str]]] = []
    module = "aiobotocore.httpsession.AIOHTTPSession.send"
    from aiobotocore.httpsession import AIOHTTPSession

    send: Send = AIOHTTPSession.send

    async def record(session: Any, request: Any) -> Any:
        sent.append((request.method, {name.lower(): text(value) for name, value in request.headers.items()}))
        return await send(session, request)

    def read_by_python(*_: Any) -> int:
        raise AssertionError("the body is read, to be hashed")

    monkeypatch.setattr(module, record)
    monkeypatch.setattr("snapstore.storage.s3.payload.Payload.readinto", read_by_python)
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(12 << 20))
    async with SnapStore.open(f"s3://{BUCKET}/{prefix}", index=tmp_path / "index.db", s3=QUICK) as store:
        made = await store.create("blog", source)
        await store.restore(made.id, tmp_path / "restored")
    assert differences(describe(source), describe(tmp_path / "restored")) == {}
    writes = [headers for method, headers in sent if method == "PUT"]
    assert len(writes) == 4  # three parts and the metadata
    assert {headers["x-amz-content-sha256"] for headers in writes} == {"UNSIGNED-PAYLOAD"}
    assert all(headers["content-md5"] for headers in writes)
    assert not [name for _, headers in sent for name in headers if name.startswith(("x-amz-checksum", "x-amz-trailer"))]


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


async def test_objects_are_deleted_together_over_https(
    secure: Server, trusted: Certificate, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.use(secure, monkeypatch)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(trusted.ca_file))
    store = opener()
    await works(store)
    await store.delete_many([KEY, "none"])
    assert await listed(store) == []
    await works(opener(sign_payload=True))


@pytest.mark.parametrize("where", ["AWS_CA_BUNDLE", "profile"])
async def test_the_doctor_trusts_whom_the_store_trusts(
    secure: Server,
    trusted: Certificate,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    where: str,
) -> None:
    servers.use(secure, monkeypatch)
    if where == "AWS_CA_BUNDLE":
        monkeypatch.setenv(where, str(trusted.ca_file))
    else:
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {trusted.ca_file}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    async with aclosing(diagnose(f"s3://{BUCKET}/{prefix}", s3=QUICK)) as checks:
        assert [check async for check in checks if check.result != "ok"] == []


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_certificates_that_cannot_be_read(
    proxy: Proxy, opener: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    with pytest.raises(InvalidInput, match=r"cannot read certificates from .*ca\.pem.*check AWS_CA_BUNDLE"):
        await opener(endpoint=proxy.endpoint).put(KEY, b"body")
    assert proxy.count() == 0


async def test_an_authority_that_is_not_trusted(
    secure: Server, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.use(secure, monkeypatch)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the handshake's, once it has failed
    store = opener(attempts=5)
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match="AWS_CA_BUNDLE"):
        await store.put(KEY, PART)
    assert time.monotonic() - started < SOON


@pytest.mark.parametrize("case", ["another-host", "another-authority"])
async def test_a_certificate_that_does_not_fit_is_refused_at_once(
    opener: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("s3.example.com" if case == "another-host" else "127.0.0.1").configure_cert(context)
    trusted = authority if case == "another-host" else trustme.CA()
    trusted.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    heard: list[bytes] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.close()

    def listen() -> socket.socket:
        return socket.create_server(("127.0.0.1", 0))

    def count(connection: ssl.SSLObject, *_: Any) -> None:
        nonlocal connections
        connections += 1

    context.sni_callback = count
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the server's, of the handshake
    server = await asyncio.start_server(serve, sock=listen(), ssl=context)
    try:
        port = server.sockets[0].getsockname()[1]
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match=r"no secure connection.*AWS_CA_BUNDLE"):
            await opener(endpoint=f"https://127.0.0.1:{port}", attempts=5).put(KEY, b"a secret")
        assert time.monotonic() - started < SOON
        assert not any(heard)
        assert connections == 1
    finally:
        server.close()
        await server.wait_closed()
