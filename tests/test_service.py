"""The example service (docs/examples/service), in a real uvicorn process and asked by a real HTTP client.

It is started with two routes more, for what can't be seen from outside: what runs in it, and cancellation by lot.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import servers
from tests.conftest import BUCKET
from tests.proxy import Answer, Proxy
from tests.servers import Server

SEED = 20261124
EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "service"
ROUNDS = int(os.environ.get("SNAPSTORE_ROUNDS", "16"))
READY_SECONDS = 30.0
SETTLE_SECONDS = 10.0

PROBED = """
import asyncio, gc, os, random, threading, time
from concurrent.futures import ThreadPoolExecutor
from service import app

@app.get("/probe")
async def probe():
    if app.state.jobs:
        await asyncio.wait(app.state.jobs)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    pools = [pool for pool in gc.get_objects() if isinstance(pool, ThreadPoolExecutor)]
    return {
        "tasks": sorted(task.get_coro().__qualname__ for task in others),
        # Each pool counts as full: it makes its threads when it first has so much to do, and keeps them.
        "threads": threading.active_count() + sum(pool._max_workers - len(pool._threads) for pool in pools),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }

@app.get("/probe/busy")
async def busy():
    time.sleep(0.05)  # the whole process, so that others take the next connections
    return os.getpid()

@app.post("/probe/cancel")
async def cancel(seed: int):
    drawn = random.Random(seed)
    for job in list(app.state.jobs):
        if drawn.random() < 0.5:
            job.cancel()
"""


class Service:
    """A uvicorn process that answers, and the folders that it works on."""

    def __init__(self, base: Path, process: subprocess.Popen[bytes], url: str) -> None:
        self.base = base
        self.process = process
        self.url = url
        self.apps = base / "apps"

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False, verify=False)

    def make_app(self, files: dict[str, bytes] | None = None) -> str:
        name = f"app-{uuid.uuid4().hex[:8]}"
        for path, content in (files or {"index.html": b"<h1>hello</h1>", "deep/notes": b"n" * 1000}).items():
            (self.apps / name / path).parent.mkdir(parents=True, exist_ok=True)
            (self.apps / name / path).write_bytes(content)
        return name

    def check_folders(self, snapshots: Sequence[dict[str, Any]]) -> None:
        """Nothing is in the store but whole snapshots, and nothing among the applications that was not meant to be."""
        store = self.base / "store"
        archives = {path.name for path in store.iterdir() if path.name not in (".snapstore", "_metadata")}
        assert archives == {snapshot["key"] for snapshot in snapshots}
        assert {path.name for path in (store / "_metadata").glob("*")} == {snapshot["id"] for snapshot in snapshots}
        assert not list((store / ".snapstore" / "uploads").iterdir())
        assert not list((store / ".snapstore" / "tmp").iterdir())
        self.check_apps()

    def check_apps(self) -> None:
        assert not [path for path in self.apps.rglob("*") if path.name.startswith(".snapstore-")]

    def stop(self) -> float:
        """SIGTERM, and how long it took to end."""
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(SETTLE_SECONDS * 3)
        return time.monotonic() - began


@contextmanager
def serving(
    base: Path,
    *,
    url: str | None = None,
    workers: int = 1,
    loop: str = "auto",
    wait: int = 1,
    grace: float = 5.0,
    queue: int = 100,
) -> Iterator[Service]:
    (base / "apps").mkdir(parents=True, exist_ok=True)
    (base / "probed.py").write_text(PROBED)
    environment = os.environ | {
        "SNAPSTORE_URL": url or str(base / "store"),
        "SNAPSTORE_INDEX": str(base / "index.db"),
        "SNAPSTORE_APPS": str(base / "apps"),
        "SERVICE_GRACE": str(grace),
        "SERVICE_MOST_WAITING": str(queue),
        "PYTHONPATH": f"{base}:{EXAMPLE}",
    }
    options = ["--workers", str(workers), "--timeout-graceful-shutdown", str(wait), "--log-level", "warning"]
    options += ["--loop", loop]
    options += ["--timeout-worker-healthcheck", "60"]  # on a busy machine, too
    for attempt in range(1, servers.ATTEMPTS + 1):
        (port,) = servers.free_ports(1)
        command = [sys.executable, "-m", "uvicorn", "probed:app", "--port", str(port), *options]
        with (base / "service.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", servers.DIES_WITH_PARENT, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        try:
            if not answers(process, f"http://127.0.0.1:{port}", last=attempt == servers.ATTEMPTS):
                continue
            yield Service(base, process, f"http://127.0.0.1:{port}")
            return
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SETTLE_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(process: subprocess.Popen[bytes], url: str, *, last: bool) -> bool:
    """Whether it comes to answer; not if another process took its port."""
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None or last:
        with suppress(httpx.TransportError):
            return httpx.get(f"{url}/probe", trust_env=False).status_code == 200
        assert process.poll() is None, "the service ended at once: see its log"
        assert time.monotonic() < deadline, "the service does not start"
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service")) as started:
        yield started


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with service.client() as opened:
        yield opened


Event = tuple[str, dict[str, Any]]


@asynccontextmanager
async def following(client: httpx.AsyncClient, path: str, **asked: Any) -> AsyncIterator[AsyncIterator[Event]]:
    """The events that a POST is answered with; leaving it closes the connection."""
    async with client.stream("POST", path, json=asked) as response:
        if response.status_code != 200:
            raise AssertionError((await response.aread()).decode())
        assert response.headers["content-type"].startswith("text/event-stream")
        yield events(response)


async def events(response: httpx.Response) -> AsyncIterator[Event]:
    name = ""
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


async def done(client: httpx.AsyncClient, path: str, **asked: Any) -> dict[str, Any]:
    async with following(client, path, **asked) as told:
        all_told = [event async for event in told]
    name, result = all_told[-1]
    assert name == "done", result
    return result


async def snapshot_of(client: httpx.AsyncClient, app: str, **asked: Any) -> dict[str, Any]:
    return await done(client, f"/apps/{app}/snapshots", **asked)


async def listed(client: httpx.AsyncClient, **asked: Any) -> list[dict[str, Any]]:
    response = await client.get("/snapshots", params={"limit": 10_000, **asked})
    snapshots: list[dict[str, Any]] = response.json()["snapshots"]
    return snapshots


# -- the routes ----------------------------------------------------------------------------------------------------


async def test_a_create_is_followed_to_its_end(service: Service, client: httpx.AsyncClient) -> None:
    app = service.make_app({"hole": b""})
    os.truncate(service.apps / app / "hole", 4 << 30)
    async with following(client, f"/apps/{app}/snapshots", labels=["owner:42"]) as told:
        *progress, (name, made) = [event async for event in told]
    assert {name for name, _ in progress} == {"progress"}
    packed = [told["bytes"] for _, told in progress if told["phase"] == "pack"]
    assert packed == sorted(packed)
    assert 0 < packed[0] < packed[-1] <= 4 << 30
    assert (name, made["app"], made["labels"], made["entries"]) == ("done", app, ["owner:42"], 2)
    shown = (await client.get(f"/snapshots/{made['id']}")).json()
    assert shown == {field: made[field] for field in shown}


async def test_a_listing_is_filtered_and_its_cursor_goes_on_where_it_ended(
    service: Service, client: httpx.AsyncClient
) -> None:
    app, other = service.make_app(), service.make_app()
    made = [(await snapshot_of(client, app, labels=[f"n:{number}", "env:prod"]))["id"] for number in range(5)]
    others = (await snapshot_of(client, other, labels=["env:prod"]))["id"]
    first = (await client.get("/snapshots", params={"app": app, "label": "env:prod", "limit": 2})).json()
    await snapshot_of(client, app, labels=["env:prod"])  # a newer one moves no page
    await client.delete(f"/snapshots/{made[1]}")
    asked = {"app": app, "label": "env:prod", "limit": 50, "cursor": first["cursor"]}
    second = (await client.get("/snapshots", params=asked)).json()
    assert [snapshot["id"] for snapshot in first["snapshots"] + second["snapshots"]] == [made[n] for n in (4, 3, 2, 0)]
    assert second["cursor"] is None
    assert [found["id"] for found in await listed(client, app=app, label=["env:prod", "n:3"])] == [made[3]]
    both = await listed(client, app=[app, other], until=first["snapshots"][0]["created_at"])
    assert [snapshot["id"] for snapshot in both] == [made[n] for n in (3, 2, 0)]
    assert others in [snapshot["id"] for snapshot in await listed(client, app=[app, other])]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("deep/logo.png", "image/png"),
        ("pack.tar.gz", "application/octet-stream"),
        ("no type, a % and a ü", "application/octet-stream"),
    ],
)
async def test_a_file_comes_with_its_length_type_and_etag(
    service: Service, client: httpx.AsyncClient, path: str, kind: str
) -> None:
    app = service.make_app({path: b"some content"})
    made = await snapshot_of(client, app)
    response = await client.get(f"/snapshots/{app}@latest/files/{path.replace('%', '%25')}")
    assert (response.status_code, response.content) == (200, b"some content")
    assert response.headers["content-length"] == "12"
    assert response.headers["content-type"] == kind
    assert response.headers["etag"] == f'"{made["id"]}"'
    again = await client.get(response.request.url, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    missing = await client.get(f"{response.request.url}x", headers={"If-None-Match": response.headers["etag"]})
    assert missing.status_code == 404
    head = await client.head(response.request.url)
    compared = ("content-length", "content-type", "etag", "accept-ranges")
    assert [head.headers[name] for name in compared] == [response.headers[name] for name in compared]


CONTENT = random.Random(SEED).randbytes(9 << 20)


@pytest.mark.parametrize(
    ("asked", "status", "wanted"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=5000000-", 206, slice(5_000_000, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=-99999999", 206, slice(0, None)),
        ("bytes=100-99999999", 206, slice(100, None)),
        ("bytes=4194300-4194310", 206, slice(4_194_300, 4_194_311)),
        ("bytes=9-1", 200, slice(0, None)),
        ("bytes=-", 200, slice(0, None)),
        ("bytes=0-1,5-6", 200, slice(0, None)),
        ("lines=1-2", 200, slice(0, None)),
        ("bytes=99999999-", 416, None),
        ("bytes=-0", 416, None),
    ],
)
async def test_ranges_are_answered_as_rfc_9110_has_it(
    service: Service, client: httpx.AsyncClient, asked: str, status: int, wanted: slice | None
) -> None:
    app = "ranges"
    if not (service.apps / app).exists():
        (service.apps / app).mkdir()
        (service.apps / app / "file").write_bytes(CONTENT)
        os.link(service.apps / app / "file", service.apps / app / "hard")
        await snapshot_of(client, app)
    for path in ("file", "hard"):
        response = await client.get(f"/snapshots/{app}@latest/files/{path}", headers={"Range": asked})
        assert response.status_code == status
        if wanted is None:
            assert response.headers["content-range"] == f"bytes */{len(CONTENT)}"
            continue
        start, end, _ = wanted.indices(len(CONTENT))
        assert response.content == CONTENT[start:end]
        if status == 206:
            assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
    head = await client.head(f"/snapshots/{app}@latest/files/file", headers={"Range": asked})
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(CONTENT)))
    assert "content-range" not in head.headers
    stale = {"Range": asked, "If-Range": '"another"'}
    response = await client.get(f"/snapshots/{app}@latest/files/file", headers=stale)
    assert (response.status_code, len(response.content)) == (200, len(CONTENT))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", "/apps/missing/snapshots", {}, 404, "SourceNotFound"),
        ("POST", "/apps/..%2F..%2Fetc/snapshots", {}, 404, "HTTPException"),
        ("POST", "/apps/_x/snapshots", {}, 422, "InvalidInput"),
        ("POST", "/apps/known/snapshots", {"labels": [":x"]}, 422, "InvalidInput"),
        ("POST", "/apps/known/snapshots", {"folder": "/etc"}, 422, "InvalidInput"),
        ("GET", "/snapshots?cursor=x", None, 422, "InvalidInput"),
        ("GET", "/snapshots?limit=0", None, 422, "InvalidInput"),
        ("GET", "/snapshots?since=2026-01-01T00:00:00", None, 422, "InvalidInput"),
        ("GET", "/snapshots/ffffffff", None, 404, "SnapshotNotFound"),
        ("GET", "/snapshots/0", None, 422, "AmbiguousId"),
        ("GET", "/snapshots/known@latest/files/missing", None, 404, "MemberNotFound"),
        ("GET", "/snapshots/known@latest/files/deep", None, 404, "MemberNotFound"),
        ("GET", "/snapshots/ffffffff/archive", None, 404, "SnapshotNotFound"),
        ("POST", "/snapshots/known@latest/restore", {}, 409, "TargetNotEmpty"),
        ("POST", "/snapshots/known@latest/restore", {"app": "../x"}, 422, "InvalidInput"),
        ("POST", "/snapshots/known@latest/restore", {"app": "x", "paths": ["no"]}, 404, "MemberNotFound"),
        ("PATCH", "/snapshots/known@latest/labels", {"add": ["size:1"]}, 422, "InvalidInput"),
        ("POST", "/snapshots/known@latest/restore", {"app": ""}, 422, "InvalidInput"),
        ("DELETE", f"/snapshots/{uuid.UUID(int=1)}", None, 404, "SnapshotNotFound"),
        ("DELETE", "/snapshots/ffffffff", None, 422, "InvalidInput"),
        ("DELETE", "/snapshots/known@latest", None, 422, "InvalidInput"),
        ("GET", "/snapshots?labels=owner:42", None, 422, "InvalidInput"),
        ("GET", "/snapshots/known@latest/files/no", None, 404, "MemberNotFound"),
        ("GET", "/snapshots/no@latest/files", None, 404, "SnapshotNotFound"),
        ("GET", "/none", None, 404, "HTTPException"),
    ],
)
async def test_errors_have_their_status(
    service: Service,
    client: httpx.AsyncClient,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    status: int,
    error: str,
) -> None:
    if not (service.apps / "known").exists():
        (service.apps / "known" / "deep").mkdir(parents=True)
        await snapshot_of(client, "known")
        await snapshot_of(client, "known")
    response = await client.request(method, path, json=body)
    assert response.status_code == status, response.text
    assert (response.json()["status"], response.json()["error"]) == (status, error)
    assert response.json()["detail"]


async def test_a_file_that_cannot_be_read_is_no_answer_that_breaks_off(
    service: Service, client: httpx.AsyncClient
) -> None:
    made = await snapshot_of(client, service.make_app({"file": random.Random(SEED).randbytes(1000)}))
    archive = service.base / "store" / made["key"]
    content = bytearray(archive.read_bytes())
    content[100:200] = bytes(100)
    archive.write_bytes(content)
    response = await client.get(f"/snapshots/{made['id']}/files/file")
    assert (response.status_code, response.json()["error"]) == (500, "ArchiveDamaged")


async def test_what_is_in_a_snapshot_is_listed(service: Service, client: httpx.AsyncClient) -> None:
    app = service.make_app({"a/file": b"x", "ü": b""})
    await snapshot_of(client, app)
    response = await client.get(f"/snapshots/{app}@latest/files")
    paths = {json.loads(line)["path"] for line in response.text.splitlines()}
    assert {"a/file", "ü", "a", "."} <= paths


async def test_a_queue_that_is_too_long_is_told(tmp_path: Path) -> None:
    with serving(tmp_path, queue=0) as service:
        app = service.make_app()
        async with service.client() as client:
            response = await client.post(f"/apps/{app}/snapshots", json={})
            assert (response.status_code, response.headers["retry-after"]) == (503, "10")
            assert response.json()["error"] == "HTTPException"


async def test_snapshots_are_restored_relabelled_and_deleted(service: Service, client: httpx.AsyncClient) -> None:
    app, copy = service.make_app(), f"copy-{uuid.uuid4().hex[:8]}"
    made = await snapshot_of(client, app, labels=["owner:42", "env:test"])
    at = f"/snapshots/{made['id']}"
    report = await done(client, f"{at}/restore", app=copy, exclude=["*.html"])
    assert (report["snapshot"]["id"], report["target"]) == (made["id"], str(service.apps / copy))
    assert [path.name for path in (service.apps / copy).rglob("*")] == ["deep", "notes"]
    await done(client, f"{at}/restore", app=copy, existing="merge")
    assert (service.apps / copy / "index.html").read_bytes() == b"<h1>hello</h1>"
    relabelled = await client.patch(f"{at}/labels", json={"add": ["env:prod"], "remove": ["env"]})
    assert relabelled.json()["labels"] == ["owner:42", "env:prod"]
    assert (await client.delete(at)).status_code == 204
    assert (await client.get(at)).status_code == 404
    assert await listed(client, app=app) == []


async def test_an_archive_of_a_folder_store_is_streamed(service: Service, client: httpx.AsyncClient) -> None:
    app = service.make_app()
    made = await snapshot_of(client, app)
    response = await client.get(f"/snapshots/{made['id']}/archive")
    archive = (service.base / "store" / made["key"]).read_bytes()
    assert (response.status_code, response.content) == (200, archive)
    assert response.headers["content-length"] == str(len(archive))
    assert f"{app}-{made['id']}.tar.zst" in response.headers["content-disposition"]
    head = await client.head(response.request.url)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(archive)))
    part = await client.get(response.request.url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, archive[10:20])


@asynccontextmanager
async def started(base: Path, **options: Any) -> AsyncIterator[Service]:
    """`serving`, from a thread: what the service needs of this loop, such as the proxy, goes on meanwhile."""
    context = serving(base, **options)
    service = await asyncio.to_thread(context.__enter__)
    try:
        yield service
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def test_on_s3_links_lead_to_the_bucket_and_throttling_is_passed_on(
    tmp_path: Path, proxy: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    async with (
        started(tmp_path, url=f"s3://{BUCKET}/{prefix}?attempts=1") as service,
        service.client() as client,
        httpx.AsyncClient(trust_env=False) as bare,
    ):
        app = service.make_app()
        made = await snapshot_of(client, app)
        answer = await client.get(f"/snapshots/{made['id']}/archive")
        assert answer.status_code == 307
        assert answer.headers["location"].startswith(proxy.endpoint)
        assert len((await bare.get(answer.headers["location"])).content) == made["size"]
        proxy.fault(Answer(503, "SlowDown", headers={"Retry-After": "7"}), times=2)
        read = await client.get(f"/snapshots/{made['id']}/files/index.html")
        begun = await client.post(f"/apps/{app}/snapshots", json={})
        for throttled in (read, begun):
            assert (throttled.status_code, throttled.headers["retry-after"]) == (503, "7")
            assert throttled.json()["error"] == "Throttled"
            assert BUCKET not in throttled.text, "where snapshots are kept is nobody's business"
        assert (await client.get(f"/snapshots/{made['id']}/files/index.html")).content == b"<h1>hello</h1>"


# -- clients that leave --------------------------------------------------------------------------------------------


def make_long(service: Service) -> str:
    """An app that takes seconds to pack, and little room: some parts of noise, then a hole."""
    app = service.make_app({"a": random.Random(SEED).randbytes(20 << 20)})
    os.truncate(service.apps / app / "a", 4 << 30)
    return app


async def packing(told: AsyncIterator[Event]) -> None:
    """Until the first bytes are packed or restored."""
    async for name, progress in told:
        assert name == "progress"
        if progress["phase"] != "scan":
            return


@pytest.mark.parametrize("when", ["at once", "midway"])
async def test_a_client_that_leaves_cancels_its_create_if_it_asked_so(
    service: Service, client: httpx.AsyncClient, when: str
) -> None:
    app = make_long(service)
    path = f"/apps/{app}/snapshots"
    if when == "at once":
        with pytest.raises(httpx.ReadTimeout):
            await client.post(path, json={"if_client_leaves": "cancel"}, timeout=0.05)
    else:
        async with following(client, path, if_client_leaves="cancel") as told:
            await packing(told)
    await client.get("/probe")  # waits for what runs
    assert await listed(client, app=app) == []
    service.check_folders(await listed(client))


async def test_a_client_that_leaves_without_a_word_gets_its_snapshot(
    service: Service, client: httpx.AsyncClient
) -> None:
    app = make_long(service)
    async with following(client, f"/apps/{app}/snapshots") as told:
        await anext(told)
    await client.get("/probe")
    assert len(await listed(client, app=app)) == 1


async def probe(service: Service) -> dict[str, Any]:
    async with service.client() as client:
        found: dict[str, Any] = (await client.get("/probe")).json()
        return found


def is_less(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return (
        now["tasks"] == before["tasks"]
        and now["threads"] <= before["threads"]
        and now["descriptors"] <= before["descriptors"]
    )


class Guests:
    """Clients that ask for everything at once, and of whom most leave before they have it."""

    def __init__(self, service: Service, app: str, snapshot_id: str) -> None:
        self.service = service
        self.app = app
        self.snapshot = f"/snapshots/{snapshot_id}"
        self.drawn = random.Random(SEED)
        self.targets: set[str] = set()
        self.visits = (self.create, self.create, self.restore, self.restore, self.read, self.download)

    async def round(self, longest: float) -> None:
        async with asyncio.TaskGroup() as group:
            for visit in self.visits:
                group.create_task(self.leave(visit, self.drawn.uniform(0, longest)))
            group.create_task(self.cancel(self.drawn.uniform(0, longest)))

    async def stay(self) -> None:
        """As many at once as there are threads for, each until it has what it wanted."""
        async with asyncio.TaskGroup() as group:
            for visit in self.visits * 4:
                group.create_task(self.leave(visit, SETTLE_SECONDS * 3))

    async def leave(self, visit: Callable[[httpx.AsyncClient], Awaitable[None]], after: float) -> None:
        """Each has connections of its own, which are closed with the request under way."""
        async with self.service.client() as client:
            with suppress(TimeoutError):
                async with asyncio.timeout(after):
                    await visit(client)

    async def create(self, client: httpx.AsyncClient) -> None:
        await self.follow(client, f"/apps/{self.app}/snapshots")

    async def restore(self, client: httpx.AsyncClient) -> None:
        target = f"target-{uuid.uuid4().hex[:8]}"
        self.targets.add(target)
        await self.follow(client, f"{self.snapshot}/restore", app=target)

    async def follow(self, client: httpx.AsyncClient, path: str, **asked: Any) -> None:
        leaves = self.drawn.choice(["finish", "cancel", "cancel"])
        async with following(client, path, if_client_leaves=leaves, **asked) as told:
            async for _ in told:
                pass

    async def read(self, client: httpx.AsyncClient) -> None:
        (await client.get(f"{self.snapshot}/files/1")).raise_for_status()

    async def download(self, client: httpx.AsyncClient) -> None:
        (await client.get(f"{self.snapshot}/archive")).raise_for_status()

    async def cancel(self, after: float) -> None:
        await asyncio.sleep(after)
        async with self.service.client() as client:
            await client.post("/probe/cancel", params={"seed": self.drawn.randrange(1 << 30)})

    def check_targets(self) -> None:
        """Each is whole, or was never there."""
        whole = contents(self.service.apps / self.app)
        for target in self.targets:
            folder = self.service.apps / target
            assert not folder.exists() or contents(folder) == whole, target


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.timeout(20 * max(ROUNDS, 16))
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_rounds_of_leaving_clients_and_cancellation_leave_nothing(tmp_path: Path, loop: str) -> None:
    """``SNAPSTORE_ROUNDS`` says how many, half of them on each loop."""
    async with started(tmp_path, loop=loop) as service:
        app = service.make_app({f"{number}": random.Random(number).randbytes(1 << 20) for number in range(10)})
        async with service.client() as client:
            made = await snapshot_of(client, app)
            # All threads and all readers of the index are there once, so that what is counted does not grow by itself.
            await asyncio.gather(*(listed(client) for _ in range(32)))
        guests = Guests(service, app, made["id"])
        await guests.stay()
        before = await probe(service)
        for _ in range(ROUNDS // 2):
            await guests.round(0.2)
        now = await probe(service)
        deadline = time.monotonic() + SETTLE_SECONDS
        while not is_less(now, before) and time.monotonic() < deadline:  # the server learns of the last departures
            await asyncio.sleep(0.1)
            now = await probe(service)
        assert is_less(now, before), (before, now)
        async with service.client() as client:
            snapshots = await listed(client)
        service.check_folders(snapshots)
        guests.check_targets()


# -- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["folder", "seaweedfs"])
async def test_sigterm_amid_creates_and_restores_leaves_nothing(
    tmp_path: Path, prefix: str, request: pytest.FixtureRequest, place: str
) -> None:
    server: Server | None = request.getfixturevalue("seaweedfs") if place == "seaweedfs" else None
    url = f"s3://{BUCKET}/{prefix}" if server else None
    loop = "uvloop" if server else "asyncio"
    async with started(tmp_path, url=url, loop=loop, wait=1, grace=1) as service, service.client() as client:
        wide = service.make_app({f"{number}": random.Random(number).randbytes(1 << 20) for number in range(32)})
        made = await snapshot_of(client, wide)
        long = make_long(service)
        targets = [f"target-{number}" for number in range(8)]
        async with AsyncExitStack() as stack:
            told = []
            for target in targets:
                creating = following(client, f"/apps/{long}/snapshots")
                restoring = following(client, f"/snapshots/{made['id']}/restore", app=target)
                told += [asyncio.create_task(stack.enter_async_context(one)) for one in (creating, restoring)]
            begun = await asyncio.gather(*told)
            await packing(begun[0])
            stopping = asyncio.create_task(asyncio.to_thread(service.stop))
            endings = await asyncio.gather(*(ending(one) for one in begun))
            took = await stopping
        assert None in endings, "all was done before the end"
        assert took < 1 + 1 + SETTLE_SECONDS / 2
        assert b"never retrieved" not in (tmp_path / "service.log").read_bytes()
        finished = [result for result in endings if result is not None]
        snapshots = [made, *(result for result in finished if "snapshot" not in result)]
        check_stopped(service, server, prefix, snapshots)
        whole = contents(service.apps / wide)
        for target in targets:
            assert not (service.apps / target).exists() or contents(service.apps / target) == whole


async def ending(told: AsyncIterator[Event]) -> dict[str, Any] | None:
    """What was done; None where the connection ended, or an error came, before that."""
    try:
        async for name, result in told:
            if name == "done":
                return result
    except httpx.TransportError:
        pass
    return None


def check_stopped(service: Service, server: Server | None, prefix: str, least: Sequence[dict[str, Any]]) -> None:
    """Some may have been done that nobody heard of any more: those are whole too."""
    assert service.process.returncode == -signal.SIGTERM
    if server is None:
        store = service.base / "store"
        archives = {path.name for path in store.iterdir() if path.name not in (".snapstore", "_metadata")}
        metadata = {path.name for path in (store / "_metadata").iterdir()}
        assert not list((store / ".snapstore" / "uploads").iterdir())
        assert not list((store / ".snapstore" / "tmp").iterdir())
    else:
        with closing(servers.client(server)) as s3:
            found = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
            uploads = s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        names = [entry["Key"].removeprefix(f"{prefix}/") for entry in found]
        metadata = {name.removeprefix("_metadata/") for name in names if name.startswith("_metadata/")}
        archives = {name for name in names if not name.startswith("_")}
        assert not [upload for upload in uploads if upload["Key"].startswith(prefix)]
    assert {name.split(":")[1] for name in archives} == metadata
    assert {snapshot["id"] for snapshot in least} <= metadata
    service.check_apps()


# -- several processes ---------------------------------------------------------------------------------------------


async def test_four_workers_share_one_index(tmp_path: Path) -> None:
    async with started(tmp_path, workers=4) as service:
        app = service.make_app()

        async def worker() -> int:
            async with service.client() as client:
                answer: int = (await client.get("/probe/busy")).json()
                return answer

        workers: set[int] = set()
        deadline = time.monotonic() + READY_SECONDS
        while len(workers) < 4:  # one of them was ready when the first answer came
            assert time.monotonic() < deadline
            workers.update(await asyncio.gather(*(worker() for _ in range(8))))

        async def one(number: int) -> tuple[str, int]:
            """A connection of its own, so that any worker may answer."""
            async with service.client() as client:
                pid = (await client.get("/probe/busy")).json()
                made = await snapshot_of(client, app, labels=[f"n:{number}"])
                assert [found["id"] for found in await listed(client, label=f"n:{number}")] == [made["id"]]
                return made["id"], pid

        async def label(snapshot_id: str, number: int) -> int:
            async with service.client() as client:
                answer = await client.patch(f"/snapshots/{snapshot_id}/labels", json={"add": [f"x:{number}"]})
                return answer.status_code

        async def delete(snapshot_id: str) -> int:
            async with service.client() as client:
                return (await client.delete(f"/snapshots/{snapshot_id}")).status_code

        made = await asyncio.gather(*(one(number) for number in range(32)))
        assert len({pid for _, pid in made}) > 1
        ids = [snapshot_id for snapshot_id, _ in made]
        for _ in range(4):
            async with service.client() as client:
                assert sorted(found["id"] for found in await listed(client)) == sorted(ids)
        assert set(await asyncio.gather(*(label(ids[0], number) for number in range(8)))) == {200}
        async with service.client() as client:
            labels = (await client.get(f"/snapshots/{ids[0]}")).json()["labels"]
        assert sorted(labels) == sorted(["n:0", *(f"x:{number}" for number in range(8))])
        statuses = await asyncio.gather(*(delete(snapshot_id) for snapshot_id in ids for _ in range(2)))
        assert set(statuses) <= {204, 404}
        async with service.client() as client:
            assert await listed(client) == []
        service.check_folders([])
