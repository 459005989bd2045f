"""A proxy between a client and an S3 server, that counts requests and breaks them on demand.

It speaks HTTP/1.1 on asyncio streams and passes on the head of every request as it came, the Host header with it: the
client signs for the proxy's address, and the server checks the signature against the Host header, so it stays valid.
Bodies go through in pieces as they arrive; no more than a few hundred KiB are ever held.

    async with Proxy(server.endpoint) as proxy:
        proxy.fault(CutBody(1000), operation="GetObject", times=2)
        ...  # a client at proxy.endpoint
        assert proxy.count("GetObject") == 3
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus
from types import TracebackType
from typing import Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

PIECE_BYTES = 128 << 10
STALLED_AFTER_BYTES = 64 << 10
LINGER_SECONDS = 1.0


# What can go wrong.


@dataclass(frozen=True)
class Answer:
    """Answer with an S3 error, without asking the server."""

    status: int
    code: str
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ErrorIn200:
    """Answer 200 with an error document in it, as AWS may for copies and completions, without asking the server."""

    code: str
    message: str = ""


@dataclass(frozen=True)
class DropRequest:
    """Close the connection (or reset it) when the head of the request is read; the server never hears of it."""

    reset: bool = False


@dataclass(frozen=True)
class LoseAnswer:
    """Let the server do it, then close the connection (or reset it) before any byte of the answer."""

    reset: bool = False


@dataclass(frozen=True)
class CutBody:
    """Close the connection (or reset it) after so many bytes of the answer's body; the head promises all of it."""

    after_bytes: int
    reset: bool = False


@dataclass(frozen=True)
class StallBody:
    """Send no more after so many bytes of the answer's body, and keep the connection open."""

    after_bytes: int


@dataclass(frozen=True)
class StallAnswer:
    """Read all of the request and never answer; with `applied` the server does what was asked."""

    applied: bool = False


@dataclass(frozen=True)
class StallRequest:
    """Read no more of the request after 64 KiB of its body or a little more, and never answer.

    The server never hears of it. A client feels it when the kernel's buffers are full, after some MiB.
    Whether the client has gone cannot be seen then: the connection counts as open until the proxy is closed.
    """


@dataclass(frozen=True)
class ReplaceBetween:
    """Await `callback` before the request is passed on, for instance to replace the object that it is for."""

    callback: Callable[["Request"], Awaitable[object]]


@dataclass(frozen=True)
class Delay:
    """Pass the request on so many seconds later."""

    seconds: float


@dataclass(frozen=True)
class CorruptBody:
    """Change the byte at this offset of the answer's body."""

    at: int


@dataclass(frozen=True)
class CorruptUpload:
    """Change the byte at this offset of the request's body, on its way to the server."""

    at: int


Fault = (
    Answer
    | ErrorIn200
    | DropRequest
    | LoseAnswer
    | CutBody
    | StallBody
    | StallAnswer
    | StallRequest
    | ReplaceBetween
    | Delay
    | CorruptBody
    | CorruptUpload
)


# What was asked.


@dataclass
class Request:
    """A request that the proxy has read the head of; the byte counts are of bodies, and grow while they pass."""

    method: str
    path: str
    """As it came, percent-encoded."""
    query: dict[str, str]
    headers: dict[str, str]
    """By lower-case name."""
    operation: str
    bucket: str
    key: str
    status: int | None = None
    """That of the answer, from the server or made up; None while there is none."""
    bytes_in: int = 0
    bytes_out: int = 0
    fault: Fault | None = None


# The first row that fits names the operation: method, what the path names, a query parameter or header that is there.
OPERATIONS = [
    ("GET", "service", None, "ListBuckets"),
    ("GET", "bucket", "list-type", "ListObjectsV2"),
    ("GET", "bucket", "uploads", "ListMultipartUploads"),
    ("GET", "bucket", "versions", "ListObjectVersions"),
    ("GET", "bucket", "location", "GetBucketLocation"),
    ("GET", "bucket", "versioning", "GetBucketVersioning"),
    ("GET", "bucket", "lifecycle", "GetBucketLifecycleConfiguration"),
    ("GET", "bucket", "encryption", "GetBucketEncryption"),
    ("GET", "bucket", "object-lock", "GetObjectLockConfiguration"),
    ("GET", "bucket", None, "ListObjects"),
    ("PUT", "bucket", "versioning", "PutBucketVersioning"),
    ("PUT", "bucket", "lifecycle", "PutBucketLifecycleConfiguration"),
    ("PUT", "bucket", "encryption", "PutBucketEncryption"),
    ("PUT", "bucket", "object-lock", "PutObjectLockConfiguration"),
    ("PUT", "bucket", None, "CreateBucket"),
    ("HEAD", "bucket", None, "HeadBucket"),
    ("DELETE", "bucket", "lifecycle", "DeleteBucketLifecycle"),
    ("DELETE", "bucket", None, "DeleteBucket"),
    ("POST", "bucket", "delete", "DeleteObjects"),
    ("GET", "object", "uploadId", "ListParts"),
    ("GET", "object", "tagging", "GetObjectTagging"),
    ("GET", "object", "attributes", "GetObjectAttributes"),
    ("GET", "object", "retention", "GetObjectRetention"),
    ("GET", "object", None, "GetObject"),
    ("HEAD", "object", None, "HeadObject"),
    ("PUT", "object", "tagging", "PutObjectTagging"),
    ("PUT", "object", "retention", "PutObjectRetention"),
    ("PUT", "object", "uploadId", "UploadPart"),
    ("PUT", "object", "x-amz-copy-source", "CopyObject"),
    ("PUT", "object", None, "PutObject"),
    ("DELETE", "object", "uploadId", "AbortMultipartUpload"),
    ("DELETE", "object", "tagging", "DeleteObjectTagging"),
    ("DELETE", "object", None, "DeleteObject"),
    ("POST", "object", "uploads", "CreateMultipartUpload"),
    ("POST", "object", "uploadId", "CompleteMultipartUpload"),
    ("POST", "object", "restore", "RestoreObject"),
]


def operation_of(method: str, bucket: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """S3's name of the operation, as botocore has it; ``METHOD what`` for one that is not in `OPERATIONS`."""
    named = "object" if key else "bucket" if bucket else "service"
    for row_method, what, mark, operation in OPERATIONS:
        if (row_method, what) == (method, named) and (mark is None or mark in query or mark in headers):
            copies = operation == "UploadPart" and "x-amz-copy-source" in headers
            return "UploadPartCopy" if copies else operation
    return f"{method} {named}"


@dataclass
class Rule:
    """A fault, and the requests that it is for; `used` says how many it has met."""

    fault: Fault
    operation: str | None
    times: int | None
    skip: int
    key: str | None
    used: int = 0

    def takes(self, request: Request) -> bool:
        if self.used == self.times or self.operation not in {None, request.operation}:
            return False
        if self.key is not None and not fnmatchcase(request.key, self.key):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.used += 1
        return True


class Proxy:
    """The proxy; open while its ``async with`` runs, at `endpoint`. The server is at an http endpoint."""

    def __init__(self, endpoint: str) -> None:
        target = urlsplit(endpoint)
        if target.scheme != "http" or target.hostname is None or target.port is None:
            raise ValueError(f"not http://host:port: {endpoint}")
        self.target = (target.hostname, target.port)
        self.endpoint = ""
        self.requests: list[Request] = []
        self.rules: list[Rule] = []
        self.open_connections = 0
        self.under_way = 0
        """Requests whose answers have not ended."""
        self.most_under_way = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        # So that a client feels it soon when no more is read of what it sends.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=PIECE_BYTES)
        self.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections, the hanging ones too; raise what went wrong in the proxy itself."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if failures := [failure for failure in ended if isinstance(failure, Exception)]:
            raise ExceptionGroup("the proxy failed", failures)

    def fault(
        self,
        fault: Fault,
        operation: str | None = None,
        *,
        times: int | None = 1,
        skip: int = 0,
        key: str | None = None,
    ) -> Rule:
        """Break the next `times` requests (all, if None) of that operation and key, after `skip` of them.

        aiohttp itself repeats a GET, PUT or DELETE once if a connection that was in use before is dropped without an
        answer: give `DropRequest` and `LoseAnswer` two times for its client to see them.

        `key` is a pattern as of `fnmatch`, whose ``*`` takes slashes too. A request meets the first rule that takes it,
        in the order in which they were given, and no other.
        """
        rule = Rule(fault, operation, times, skip, key)
        self.rules.append(rule)
        return rule

    def heal(self) -> None:
        """Forget all faults; what hangs already goes on hanging."""
        self.rules.clear()

    def count(self, operation: str | None = None) -> int:
        return sum(operation in {None, request.operation} for request in self.requests)

    def clear(self) -> None:
        """Forget the requests so far; the faults stay."""
        self.requests.clear()

    def fault_for(self, request: Request) -> Fault | None:
        return next((rule.fault for rule in self.rules if rule.takes(request)), None)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        connection = _Connection(self, reader, writer)
        try:
            # A peer that goes away ends the connection to the other one, which is all that there is to tell.
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await connection.exchange():
                    pass
        finally:
            connection.close()
            self.open_connections -= 1


class _Head:
    """The head of a request or an answer: as it came, and parsed."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        self.start = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close" or self.start[0] == "HTTP/1.0"


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    return _Head(await reader.readuntil(b"\r\n\r\n"))


Framing = int | Literal["chunked", "closed"]


def _framing(head: _Head, otherwise: Framing) -> Framing:
    """How the body's end is known: its length, by chunks, or when the connection closes (RFC 9112, section 6.3)."""
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        return "chunked"
    length = head.headers.get("content-length")
    return otherwise if length is None else int(length)


class _Body:
    """A body as it arrives, without the framing of its chunks."""

    def __init__(self, reader: asyncio.StreamReader, framing: Framing) -> None:
        self._reader = reader
        self._framing = framing
        self._left = framing if isinstance(framing, int) else 0

    async def read(self) -> bytes:
        """The next piece; empty at the end. Raises `IncompleteReadError` if the body ends too early."""
        if self._framing == "closed":
            return await self._reader.read(PIECE_BYTES)
        if self._framing == "chunked" and not self._left:
            self._left = int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16)
            if not self._left:
                while await self._reader.readuntil(b"\r\n") != b"\r\n":
                    pass  # a trailer; S3 has its own inside of the body
                self._framing = 0
        if not self._left:
            return b""
        piece = await self._reader.read(min(self._left, PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", self._left)
        self._left -= len(piece)
        if self._framing == "chunked" and not self._left:
            await self._reader.readexactly(2)
        return piece


async def _send(writer: asyncio.StreamWriter, piece: bytes, framing: Framing) -> None:
    """Pass a piece on, framed again if it came in chunks; the empty piece is the end."""
    if framing == "chunked":
        piece = b"%x\r\n%b\r\n" % (len(piece), piece)
    writer.write(piece)
    await writer.drain()


def _flipped(piece: bytes, offset: int, at: int | None) -> bytes:
    """The piece of a body that begins at `offset`, with the body's byte `at` changed if it is in it."""
    if at is None or not offset <= at < offset + len(piece):
        return piece
    changed = bytearray(piece)
    changed[at - offset] ^= 0xFF
    return bytes(changed)


class _Connection:
    """A client's connection, and its own to the server, which is opened when it is needed."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        writer.transport.set_write_buffer_limits(0)  # so that after `drain` all is with the kernel

    def close(self) -> None:
        """Close both sides; what was written and drained is delivered."""
        self._writer.transport.abort()
        if self._server:
            self._server[1].transport.abort()

    def _reset_when_closed(self) -> None:
        """Close with a reset, which loses what the client's side has not acknowledged."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        head = await _read_head(self._reader)
        proxy = self._proxy
        proxy.under_way += 1
        proxy.most_under_way = max(proxy.most_under_way, proxy.under_way)
        try:
            return await self._exchange(head)
        finally:
            proxy.under_way -= 1

    async def _exchange(self, head: _Head) -> bool:
        request = self._request(head)
        body = _Body(self._reader, _framing(head, 0))
        match request.fault:
            case DropRequest(reset):
                if reset:
                    self._reset_when_closed()
                return False
            case Answer(status, code, message, headers):
                return await self._answer(request, body, status, _document(code, message, request), headers)
            case ErrorIn200(code, message):
                return await self._answer(request, body, 200, _document(code, message, request), {})
            case StallRequest():
                await self._swallow(request, body, STALLED_AFTER_BYTES)
                self._writer.transport.pause_reading()  # type: ignore[attr-defined]
                await asyncio.Event().wait()
            case StallAnswer(applied=False):
                await self._swallow(request, body)
                return await self._hang()
            case ReplaceBetween(callback):
                await callback(request)
            case Delay(seconds):
                await asyncio.sleep(seconds)
        return await self._forward(request, head, body)

    def _request(self, head: _Head) -> Request:
        method, target, _ = head.start
        path, _, query_string = target.partition("?")
        query = dict(parse_qsl(query_string, keep_blank_values=True))
        bucket, _, key = (unquote(part) for part in path.lstrip("/").partition("/"))
        operation = operation_of(method, bucket, key, query, head.headers)
        request = Request(method, path, query, head.headers, operation, bucket, key)
        self._proxy.requests.append(request)
        request.fault = self._proxy.fault_for(request)
        return request

    async def _answer(
        self, request: Request, body: _Body, status: int, document: bytes, headers: Mapping[str, str]
    ) -> bool:
        """Answer for the server: at once if the client asks before it sends its body, else when all of that is read."""
        asks_first = "expect" in request.headers
        if not asks_first:
            await self._swallow(request, body)
        lines = {"Content-Type": "application/xml", "Content-Length": str(len(document)), **headers}
        if asks_first:
            lines["Connection"] = "close"
        phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else "Unknown"
        fields = [f"{name}: {value}" for name, value in lines.items()]
        head = "\r\n".join([f"HTTP/1.1 {status} {phrase}", *fields, "", ""])
        request.status = status
        sent = b"" if request.method == "HEAD" else document
        request.bytes_out = len(sent)
        self._writer.write(head.encode("latin-1") + sent)
        await self._writer.drain()
        return not asks_first

    async def _swallow(self, request: Request, body: _Body, most: int | None = None) -> None:
        """Read the request's body, or the first `most` bytes of it, without passing it on."""
        if "expect" in request.headers:
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while (most is None or request.bytes_in < most) and (piece := await body.read()):
            request.bytes_in += len(piece)

    async def _hang(self) -> bool:
        """Do nothing until the client goes away."""
        while await self._reader.read(PIECE_BYTES):
            pass
        return False

    async def _forward(self, request: Request, head: _Head, body: _Body) -> bool:
        """Pass the request on while its answer comes back: a server may answer before it has read everything."""
        if self._server is None or self._server[0].at_eof():
            self._server = await asyncio.open_connection(*self._proxy.target, limit=PIECE_BYTES)
        reader, writer = self._server
        writer.write(head.raw)
        upload = asyncio.create_task(self._upload(request, body, _framing(head, 0), writer))
        try:
            goes_on = await self._relay(request, reader)
            if isinstance(request.fault, StallBody | StallAnswer):
                await asyncio.wait([upload])
                return await self._hang()
            if goes_on and not upload.done():
                await asyncio.wait([upload], timeout=LINGER_SECONDS)
            return goes_on and upload.done()
        finally:
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)

    async def _upload(self, request: Request, body: _Body, framing: Framing, writer: asyncio.StreamWriter) -> None:
        """Pass the request's body on. If the server stops reading, the rest is swallowed: the client shall see why."""
        at = request.fault.at if isinstance(request.fault, CorruptUpload) else None
        try:
            while piece := await body.read():
                with suppress(ConnectionError):
                    await _send(writer, _flipped(piece, request.bytes_in, at), framing)
                request.bytes_in += len(piece)
            if framing == "chunked":
                await _send(writer, b"", framing)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()  # the client has gone: the server must not take what came for all of it

    async def _relay(self, request: Request, reader: asyncio.StreamReader) -> bool:
        """Pass the answer on, as far as the fault lets it; whether the connection can be used again."""
        fault = request.fault
        silent = isinstance(fault, LoseAnswer | StallAnswer)
        head = await _read_head(reader)
        while head.start[1].startswith("1"):  # 100 Continue: the body may be sent
            self._writer.write(head.raw)
            head = await _read_head(reader)
        request.status = int(head.start[1])
        empty = request.method == "HEAD" or request.status in {204, 304}
        framing = 0 if empty else _framing(head, "closed")
        if not silent:
            self._writer.write(head.raw)
        body = _Body(reader, framing)
        most = fault.after_bytes if isinstance(fault, CutBody | StallBody) else None
        at = fault.at if isinstance(fault, CorruptBody) else None
        while piece := await body.read():
            if silent:
                continue
            if most is not None:
                piece = piece[: most - request.bytes_out]
            if piece:
                await _send(self._writer, _flipped(piece, request.bytes_out, at), framing)
                request.bytes_out += len(piece)
            if request.bytes_out == most:
                break
        await self._writer.drain()
        if silent or most is not None:
            if isinstance(fault, LoseAnswer | CutBody) and fault.reset:
                self._reset_when_closed()
            return False
        if framing == "chunked":
            await _send(self._writer, b"", framing)
        return framing != "closed" and not head.closes


def _document(code: str, message: str, request: Request) -> bytes:
    """An error as S3 writes it."""
    fields = {"Code": code, "Message": message or code, "Resource": request.path, "RequestId": "made-up-by-the-proxy"}
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'.encode()
