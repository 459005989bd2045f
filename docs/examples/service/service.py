"""Snapshots over HTTP: one `SnapStore`, opened with the application and shared by all of its requests.

Creates and restores run in tasks of their own and are followed as server-sent events, in the answer to the request that
began them; so nothing is kept between requests, and any number of worker processes can serve. Clients name applications
and never folders of this machine. Who may do what is your own service's matter: put it in front of the routes.
"""

import asyncio
import json
import logging
import math
import mimetypes
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname
from uuid import UUID

import msgspec
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from pydantic import AwareDatetime, BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Receive, Scope, Send

import snapstore as s
from snapstore import SnapStore

log = logging.getLogger("service")

GRACE = float(os.environ.get("SERVICE_GRACE", 10))
"""Seconds that creates and restores get to end in when the service is stopped."""
WORKERS = int(os.environ.get("WEB_CONCURRENCY", 1))
"""How many processes uvicorn starts, if it is told so by this variable and not by ``--workers``."""
MOST_WAITING = int(os.environ.get("SERVICE_MOST_WAITING", 100))
"""Creates and restores that wait for their turn, before clients are told to come back later."""
SOON = 0.3
"""Seconds that an answer waits for errors which are found at once, so that they get a status and not an event."""
HEARTBEAT = 15.0
"""Seconds after which a proxy may take a silent connection for a dead one."""

STATUSES: tuple[tuple[type[s.SnapstoreError], int], ...] = (
    (s.NotFound, 404),
    (s.Conflict, 409),
    (s.SourceUnreadable, 409),  # a file has gone meanwhile, say: the same again may do, or on_error="skip"
    (s.InvalidInput, 422),
    (s.StorageUnavailable, 503),  # Throttled among them
    (s.CatalogBusy, 503),
    (s.StoreClosed, 503),  # this process is being stopped, another one may serve
    (s.StorageFull, 507),
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    store = await SnapStore.open(
        os.environ["SNAPSTORE_URL"],
        index=os.environ["SNAPSTORE_INDEX"],
        apps=os.environ["SNAPSTORE_APPS"],
        limits=s.Limits(memory=(128 << 20) // WORKERS, operations=max(1, 8 // WORKERS)),
        sync_every=timedelta(seconds=10),
    )
    app.state.store, app.state.jobs = store, set()
    try:
        yield
    finally:
        await store.aclose(grace=GRACE)  # what still runs then ends with StoreClosed, and leaves nothing
        await asyncio.gather(*app.state.jobs, return_exceptions=True)


def opened_store(request: Request) -> SnapStore:
    store: SnapStore = request.app.state.store
    return store


app = FastAPI(title="Snapshots", lifespan=lifespan)
Store = Annotated[SnapStore, Depends(opened_store)]


# -- answers -------------------------------------------------------------------------------------------------------


def as_json(value: Any) -> str:
    """In ASCII, since names of files need not be valid Unicode."""
    return json.dumps(msgspec.to_builtins(value))


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_json(value), status, headers, "application/json")


def problem(error: BaseException) -> dict[str, Any]:
    """What a client is told of an error: all of its own mistakes, and nothing of ours, which name buckets and hosts."""
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    ours = "this is our fault, and in our log" if status == 500 else "not now: try again later"
    told = {"status": status, "error": type(error).__name__, "detail": str(error) if status < 500 else ours}
    return told | ({"retry_after": math.ceil(getattr(error, "retry_after", None) or 1)} if status == 503 else {})


@app.exception_handler(s.SnapstoreError)
async def failed(request: Request, error: s.SnapstoreError) -> Response:
    told = problem(error)
    if told["status"] >= 500:
        log_failure(request, error)
    return answer(told, told["status"], {"Retry-After": str(told["retry_after"])} if "retry_after" in told else None)


@app.exception_handler(RequestValidationError)
async def misunderstood(request: Request, error: RequestValidationError) -> Response:
    detail = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return answer({"status": 422, "error": "InvalidInput", "detail": detail}, 422)


@app.exception_handler(StarletteHTTPException)
async def refused(request: Request, error: StarletteHTTPException) -> Response:
    told = {"status": error.status_code, "error": "HTTPException", "detail": error.detail}
    return answer(told, error.status_code, dict(error.headers or {}))


def log_failure(request: Request, error: BaseException) -> None:
    trace = error if problem(error)["status"] == 500 else None
    log.error("%s %s: %s", request.method, request.url.path, error, exc_info=trace)


class Streamed(StreamingResponse):
    """Closes what it streams when it ends, which Starlette leaves to the garbage collector; then does ``at_end``."""

    def __init__(
        self,
        pieces: AsyncGenerator[str | bytes, None],
        first: bytes = b"",
        *,
        at_end: Callable[[], object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(chained(first, pieces) if first else pieces, **options)
        self._pieces, self._at_end = pieces, at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._at_end:
                self._at_end()
            await self._pieces.aclose()


async def chained(first: bytes, rest: AsyncGenerator[str | bytes, None]) -> AsyncGenerator[str | bytes, None]:
    yield first
    async for piece in rest:
        yield piece


# -- work that is followed -----------------------------------------------------------------------------------------

IfClientLeaves = Literal["finish", "cancel"]
Work = Callable[[s.ProgressCallback], Coroutine[Any, Any, s.Snapshot | s.RestoreReport]]


class Job:
    """A create or a restore in a task of its own, and how far it is."""

    def __init__(self, work: Work) -> None:
        self._progress: s.Progress | None = None
        self._news = asyncio.Event()
        self.task = asyncio.create_task(work(self._tell))
        self.task.add_done_callback(lambda task: self._news.set())

    def _tell(self, progress: s.Progress) -> None:
        self._progress = progress  # the latest will do: who reads slowly misses some, and holds nobody up
        self._news.set()

    async def events(self) -> AsyncGenerator[str, None]:
        while not self.task.done():
            yield event("progress", self._progress) if self._progress else ": waits for its turn\n\n"
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._news.wait()
            self._news.clear()
        if not self.task.cancelled():
            error = self.task.exception()
            yield event("error", problem(error)) if error else event("done", self.task.result())


def event(name: str, value: Any) -> str:
    return f"event: {name}\ndata: {as_json(value)}\n\n"


async def follow(request: Request, store: SnapStore, work: Work, if_client_leaves: IfClientLeaves) -> Response:
    if store.limits.waiting >= MOST_WAITING:
        raise HTTPException(503, "too many wait already: try again later", {"Retry-After": "10"})
    job, jobs = Job(work), request.app.state.jobs
    jobs.add(job.task)
    job.task.add_done_callback(jobs.discard)
    await asyncio.wait([job.task], timeout=SOON)
    if job.task.done() and not job.task.cancelled():
        job.task.result()  # raises what went wrong

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()):
            log_failure(request, error)  # nobody may have stayed to be told

    job.task.add_done_callback(ended)
    at_end = job.task.cancel if if_client_leaves == "cancel" else None
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold events back until it has some
    return Streamed(job.events(), at_end=at_end, media_type="text/event-stream", headers=headers)


# -- the routes ----------------------------------------------------------------------------------------------------


class NewSnapshot(BaseModel, extra="forbid"):
    labels: list[str] = []
    exclude: list[str] = []
    on_error: s.OnError = "fail"
    if_client_leaves: IfClientLeaves = "finish"


@app.post("/apps/{name}/snapshots")
async def create(request: Request, store: Store, name: str, asked: NewSnapshot) -> Response:
    options = asked.model_dump(exclude={"if_client_leaves"})
    work = partial(store.create, name, **options)
    return await follow(request, store, lambda tell: work(progress=tell), asked.if_client_leaves)


class Asked(BaseModel, extra="forbid"):  # else a mistyped filter would list everything
    apps: list[str] = Field([], alias="app")
    labels: list[str] = Field([], alias="label")
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    limit: int = 50
    cursor: str | None = None


@app.get("/snapshots")
async def listing(store: Store, asked: Annotated[Asked, Query()]) -> Response:
    """Newest first; ``cursor`` of the answer, given back, asks for the next page, and is null on the last."""
    return answer(await store.page(**asked.model_dump()))


@app.get("/snapshots/{snapshot_id}")
async def show(store: Store, snapshot_id: str) -> Response:
    return answer(await store.get(snapshot_id))


@app.api_route("/snapshots/{snapshot_id}/files/{path:path}", methods=["GET", "HEAD"])
async def file(request: Request, store: Store, snapshot_id: str, path: str) -> Response:
    """One file; what is in a snapshot never changes, so its id is the ETag."""
    snapshot = await store.get(snapshot_id)
    etag = f'"{snapshot.id}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Security-Policy": "sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    found = await store.file(snapshot.id, path)
    known = request.headers.get("if-none-match", "")
    if etag in known or known.strip() == "*":
        return Response(status_code=304, headers=headers)
    size = found.member.size
    ranged = request.method == "GET" and request.headers.get("if-range", etag) == etag  # HEAD knows no ranges
    part = wanted_range(request.headers.get("range", "") if ranged else "", size)
    start, length = part or (0, size)
    headers["Content-Length"] = str(length)
    if part:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
    kind, encoding = mimetypes.guess_type(path)
    media_type = kind if kind and not encoding else "application/octet-stream"
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type)
    pieces = found.read(start=start, size=length)
    first = await anext(pieces, b"")  # what goes wrong here gets its status, instead of an answer that breaks off
    return Streamed(pieces, first, status_code=206 if part else 200, headers=headers, media_type=media_type)


def wanted_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and length of the one range asked for; None for all (RFC 9110, 14.2, lets us ignore several)."""
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header, re.IGNORECASE)
    first, last = found.groups() if found else ("", "")
    if not (first or last) or (first and last and int(first) > int(last)):
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise HTTPException(416, f"the file has {size} bytes", {"Content-Range": f"bytes */{size}"})
    return start, end - start


@app.get("/snapshots/{snapshot_id}/files")
async def members(store: Store, snapshot_id: str) -> Response:
    """What is in a snapshot, a line of JSON for each."""
    found = store.members((await store.get(snapshot_id)).id)

    async def lines() -> AsyncGenerator[str, None]:
        async with aclosing(found):
            async for member in found:
                told = {"path": member.path, "type": member.type, "size": member.size, "mtime_ns": member.mtime}
                yield as_json(told) + "\n"

    return Streamed(lines(), media_type="application/x-ndjson")


@app.api_route("/snapshots/{snapshot_id}/archive", methods=["GET", "HEAD"])
async def archive(store: Store, snapshot_id: str) -> Response:
    """The whole snapshot as one `.tar.zst`: straight from the bucket, or through us from a folder."""
    snapshot = await store.get(snapshot_id)
    url = await store.download_url(snapshot.id, expires=timedelta(minutes=10))
    if not url.startswith("file:"):
        return RedirectResponse(url, 307)
    path = url2pathname(urlsplit(url).path)
    try:
        status = await asyncio.to_thread(os.stat, path)
    except FileNotFoundError:
        raise s.SnapshotNotFound(snapshot.id) from None  # another process has deleted it meanwhile
    name = f"{snapshot.app}-{snapshot.id}.tar.zst"
    return FileResponse(path, media_type="application/zstd", filename=name, stat_result=status)


class Restore(BaseModel, extra="forbid"):
    app: str | None = None
    paths: list[str] = []
    exclude: list[str] = []
    existing: s.Existing = "refuse"
    if_client_leaves: IfClientLeaves = "finish"


@app.post("/snapshots/{snapshot_id}/restore")
async def restore(request: Request, store: Store, snapshot_id: str, asked: Restore) -> Response:
    """Into the folder of its own application, or of another."""
    options = asked.model_dump(exclude={"if_client_leaves"})
    work = partial(store.restore, snapshot_id, **options)
    return await follow(request, store, lambda tell: work(progress=tell), asked.if_client_leaves)


class Labels(BaseModel, extra="forbid"):
    add: list[str] = []
    remove: list[str] = []
    replace: list[str] | None = None


@app.patch("/snapshots/{snapshot_id}/labels")
async def relabel(store: Store, snapshot_id: str, labels: Labels) -> Response:
    return answer(await store.relabel(snapshot_id, **labels.model_dump()))


@app.delete("/snapshots/{snapshot_id}", status_code=204)
async def delete(store: Store, snapshot_id: UUID) -> None:
    """By its whole id: a client that asks again for the end of ``blog@latest`` would end the one before, too."""
    await store.delete(str(snapshot_id))
