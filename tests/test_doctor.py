"""What `diagnose` and `snapstore doctor` tell of a store: of good ones, of poor ones, and of such that lie."""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from snapstore import AccessDenied, Check, InvalidInput, NotAStore, S3Options, SnapStore, StorageError, diagnose
from snapstore.cli.commands import app as command_line
from snapstore.objectstore import Body, ObjectInfo, ObjectStore
from snapstore.storage.local import LocalStore
from snapstore.storage.s3.store import S3Store
from tests import servers
from tests.conftest import BUCKET
from tests.servers import Server

QUICK = S3Options(attempts=1, connect_timeout=1, read_timeout=2, deadline=5)
NEEDED = (
    *("list objects", "write an object", "read an object", "read a range", "list what was just written"),
    *("start a listing at a key", "multipart upload", "abort an upload", "delete objects"),
)
OPTIONAL = (
    *("list uploads", "refuse to overwrite", "replace one version only", "copy a part", "download link", "clock"),
)
CONDITIONS = {"refuse to overwrite", "replace one version only"}


async def collect(url: str | Path, checks: list[Check]) -> None:
    """As `diagnosed`, for those that end with an error."""
    async for check in diagnose(url):
        checks.append(check)  # noqa: PERF401


async def diagnosed(url: str | Path, s3: S3Options | None = None) -> list[Check]:
    async with aclosing(diagnose(url, s3=s3)) as checks:
        return [check async for check in checks]


def not_ok(checks: Sequence[Check]) -> dict[str, str]:
    return {check.name: check.result for check in checks if check.result != "ok"}


def files_in(folder: Path) -> list[str]:
    """Objects and uploads of a folder store, those that are half-written included."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    found |= {str(path.relative_to(folder)) for path in folder.glob(".snapstore/*/*")}
    return sorted(found - {".snapstore/lock"})


def left_in(server: Server, prefix: str) -> list[str]:
    """Objects (and what a server calls folders), and uploads that are neither completed nor aborted."""
    with closing(servers.client(server)) as s3:
        objects = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        uploads = s3.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix).get("Uploads", [])
        return [found["Key"] for found in (*objects, *uploads)]


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A folder store with nothing in it."""
    store = LocalStore(tmp_path / "store")
    await store.open()
    await store.aclose()
    return tmp_path / "store"


async def test_a_folder_can_do_everything(folder: Path) -> None:
    checks = await diagnosed(folder)
    assert not_ok(checks) == {}
    assert {check.name for check in checks} == {*NEEDED, *OPTIONAL}
    assert len(checks) == len(NEEDED) + len(OPTIONAL)
    assert all(check.use and check.seconds >= 0 for check in checks)
    assert files_in(folder) == []


async def test_no_empty_folder_is_left(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    await diagnosed(folder)
    assert [path for path in sorted(folder.rglob("*")) if path.name != "lock"] == before


async def test_what_is_in_the_store_stays(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        await store.create("blog", tmp_path / "app")
        before = files_in(tmp_path / "store")
        assert not_ok(await diagnosed(tmp_path / "store")) == {}
        assert files_in(tmp_path / "store") == before


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("seaweedfs", set()),
        pytest.param("juicefs", CONDITIONS, marks=pytest.mark.servers),
        pytest.param("rclone", {*CONDITIONS, "copy a part"}, marks=pytest.mark.servers),
        pytest.param("moto", set(), marks=pytest.mark.servers),
    ],
)
async def test_what_each_server_cannot_do(
    running: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch, name: str, missing: set[str]
) -> None:
    server, prefix = running(name), uuid.uuid4().hex
    servers.use(server, monkeypatch)
    checks = await diagnosed(f"s3://{BUCKET}/{prefix}")
    assert not_ok(checks) == dict.fromkeys(missing, "missing")
    assert {check.name for check in checks} == {*NEEDED, *OPTIONAL}
    assert [name for name in left_in(server, prefix) if not name.endswith("/")] == []


@pytest.mark.servers
async def test_no_empty_folder_is_left_in_a_bucket(
    running: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, prefix = running("juicefs"), uuid.uuid4().hex
    servers.use(server, monkeypatch)
    await diagnosed(f"s3://{BUCKET}/{prefix}")
    assert left_in(server, prefix) in ([], [f"{prefix}/"])


async def test_options_that_nobody_can_see_are_named(seaweedfs: Server) -> None:
    options = S3Options(acl="private", tags={"team": "web"}, connections=4)
    *_, last = await diagnosed(f"s3://{BUCKET}/{uuid.uuid4().hex}?storage_class=STANDARD_IA", options)
    assert (last.name, last.result) == ("options", "skipped")
    assert last.detail == "not verified: storage_class, tags, acl"


async def test_options_are_used(seaweedfs: Server) -> None:
    checks = await diagnosed(f"s3://{BUCKET}/{uuid.uuid4().hex}", S3Options(part_size=16 << 20))
    assert [check.detail for check in checks if check.name == "multipart upload"] == ["parts of 16 MiB"]
    with pytest.raises(InvalidInput):
        await diagnosed(f"s3://{BUCKET}?part_size=1")


# -- where nothing works at all -----------------------------------------------------------------------------------

UNUSABLE = {
    "wrong secret": (BUCKET, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "check access key"),
    "wrong key": (BUCKET, {"AWS_ACCESS_KEY_ID": "AKWRONG"}, "check access key"),
    "no credentials": (BUCKET, {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "set AWS_ACCESS_KEY_ID"),
    "no such profile": (BUCKET, {"AWS_PROFILE": "nobodys"}, "set AWS_PROFILE"),
    "no bucket": ("no-such-bucket", {}, "make it first"),
    "unreachable": (BUCKET, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "AWS_ENDPOINT_URL"),
}


@pytest.fixture(params=UNUSABLE)
def unusable(
    request: pytest.FixtureRequest, seaweedfs: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """A bucket that cannot be used as the environment is, and what is to be told of it."""
    bucket, environment, told = UNUSABLE[request.param]
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    prefix = uuid.uuid4().hex
    yield f"s3://{bucket}/{prefix}", told
    servers.use(seaweedfs, monkeypatch)
    assert left_in(seaweedfs, prefix) == []


async def test_where_the_first_thing_fails_nothing_else_is_tried(unusable: tuple[str, str]) -> None:
    url, told = unusable
    checks = await diagnosed(url, QUICK)
    assert not_ok(checks) == {"list objects": "failed"}
    assert len(checks) == 1
    assert told in checks[0].detail


async def test_the_command_tells_of_it(unusable: tuple[str, str], tmp_path: Path) -> None:
    url, told = unusable
    done = await asyncio.to_thread(run, tmp_path, "doctor", "--url", f"{url}?attempts=1&connect_timeout=1")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.split("\t")[:2] == ["failed", "list objects"]
    assert told in line
    assert done.stderr == "snapstore: this store cannot be used as it is\n"


async def test_a_folder_that_is_no_store_is_not_made_one(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "file").touch()
    for name in ("missing", "others", "others/file"):
        with pytest.raises(NotAStore):
            await diagnosed(tmp_path / name)
    assert not (tmp_path / "missing").exists()
    assert files_in(tmp_path / "others") == ["file"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAStore, match=r"empty folder.*`snapstore create` makes it one"):
        await diagnosed(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


async def test_what_only_the_first_request_finds_wrong_is_wrong_usage(seaweedfs: Server, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}?customer_key_file={tmp_path}/none"
    with pytest.raises(InvalidInput, match="customer_key_file"):
        await diagnosed(url)
    done = await asyncio.to_thread(run, tmp_path, "doctor", "--url", url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("snapstore: cannot read customer_key_file")


async def test_what_failed_at_once_is_not_asked_again(folder: Path, wrap: Callable[..., None]) -> None:
    asked: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        async def refuse(_store: ObjectStore, *_given: Any, **_named: Any) -> Any:
            asked.append(name)
            raise AccessDenied("not allowed: ask for the permission")

        return refuse

    names = ("put", "delete", "delete_many", "head", "create_upload", "abort_upload")
    wrap(list=refuse_listing, list_uploads=refuse_listing, **{name: counted(name) for name in names})
    assert not_ok(await diagnosed(folder)) == failing("list objects")
    assert asked == []


# -- the command --------------------------------------------------------------------------------------------------


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return subprocess.run(
        [sys.executable, "-m", "snapstore", *arguments],
        cwd=home,
        env=environment | {"HOME": str(home), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_the_command_on_a_folder(folder: Path, tmp_path: Path) -> None:
    done = await asyncio.to_thread(run, tmp_path, "doctor", "--url", "store")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert {name: result for result, name, _use, _detail in lines} == dict.fromkeys((*NEEDED, *OPTIONAL), "ok")
    assert files_in(folder) == []
    assert not (tmp_path / ".local").exists(), "it needs no index"


async def test_json_is_a_line_a_check(seaweedfs: Server, tmp_path: Path) -> None:
    prefix = uuid.uuid4().hex
    done = await asyncio.to_thread(run, tmp_path, "doctor", "--url", f"s3://{BUCKET}/{prefix}", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    checks = [msgspec.json.decode(line, type=Check) for line in done.stdout.splitlines()]
    assert not_ok(checks) == {}
    assert {check.name for check in checks} == {*NEEDED, *OPTIONAL}
    assert json.loads(done.stdout.splitlines()[0]).keys() == {"name", "result", "use", "detail", "seconds"}
    assert left_in(seaweedfs, prefix) == []


def test_the_command_takes_no_option_that_it_does_not_use(folder: Path, tmp_path: Path) -> None:
    for option in ("--index", "--index-label", "--apps"):
        done = run(tmp_path, "doctor", "--url", str(folder), option, "any")
        assert (done.returncode, done.stdout) == (2, "")
        assert option in done.stderr


async def test_the_command_on_what_is_no_store(tmp_path: Path) -> None:
    done = await asyncio.to_thread(run, tmp_path, "doctor", "--url", "missing")
    assert (done.returncode, done.stdout) == (1, "")
    assert "snapstore create" in done.stderr
    assert not (tmp_path / "missing").exists()


# -- stores that fail or lie --------------------------------------------------------------------------------------


class Wrapped:
    """A store of which some methods are others, which get the real one first."""

    def __init__(self, store: ObjectStore, methods: dict[str, Callable[..., Any]]) -> None:
        self._store = store
        for name, method in methods.items():
            setattr(self, name, lambda *given, _method=method, **named: _method(store, *given, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def wrap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Whatever the doctor opens from now on has these methods."""

    def choose(**methods: Callable[..., Any]) -> None:
        async def opened(url: str, *, create: bool = True, s3: S3Options | None = None) -> Any:
            store: ObjectStore = S3Store(url, s3) if url.startswith("s3:") else LocalStore(url)
            if isinstance(store, LocalStore):
                await store.open(create=create)
            return Wrapped(store, methods)

        monkeypatch.setattr("snapstore.engine.doctor.open_store", opened)

    return choose


async def refused(_store: ObjectStore, *_given: Any, **_named: Any) -> Any:
    raise AccessDenied("not allowed: ask for the permission")


async def nothing(_store: ObjectStore, *_given: Any, **_named: Any) -> None:
    pass


async def refuse_listing(_store: ObjectStore, *_given: Any, **_named: Any) -> AsyncIterator[Any]:
    raise AccessDenied("not allowed: ask for the permission")
    yield


async def empty_listing(_store: ObjectStore, *_given: Any, **_named: Any) -> AsyncIterator[Any]:
    yield []


async def whole(store: ObjectStore, key: str, **_range: Any) -> Body:
    return await store.get(key)


async def other_bytes(store: ObjectStore, key: str, **where: Any) -> Body:
    return Body(b"?" * 5, (await store.get(key, **where)).etag)


async def list_from_the_first(store: ObjectStore, prefix: str = "", **_start: str) -> AsyncIterator[Any]:
    async for page in store.list(prefix):
        yield page


async def unconditional(store: ObjectStore, key: str, body: bytes, **_conditions: Any) -> ObjectInfo:
    return await store.put(key, body)


async def ahead(store: ObjectStore, key: str, body: bytes, **conditions: Any) -> ObjectInfo:
    info = await store.put(key, body, **conditions)
    return msgspec.structs.replace(info, modified=info.modified + 300)


async def elsewhere(_store: ObjectStore, *_given: Any, **_named: Any) -> str:
    return "http://127.0.0.1:1/nothing"


async def others_content(_store: ObjectStore, *_given: Any, **_named: Any) -> str:
    return Path(__file__).as_uri()


def failing(*names: str) -> dict[str, str]:
    return {name: "missing" if name in OPTIONAL else "failed" for name in names}


WITHOUT_UPLOADS = dict.fromkeys(("abort an upload", "list uploads", "copy a part"), "skipped")
WITHOUT_RANGES = WITHOUT_UPLOADS | {"multipart upload": "skipped"}
WITHOUT_READS = WITHOUT_RANGES | dict.fromkeys(("read a range", "replace one version only", "download link"), "skipped")


FAULTS: dict[str, tuple[dict[str, Callable[..., Any]], dict[str, str]]] = {
    "reads are refused": ({"get": refused}, failing("read an object") | WITHOUT_READS),
    "reads lie": ({"get": other_bytes}, failing("read an object") | WITHOUT_READS),
    "ranges are ignored": ({"get": whole}, failing("read a range") | WITHOUT_RANGES),
    "starts of listings are ignored": ({"list": list_from_the_first}, failing("start a listing at a key")),
    "uploads are refused": ({"create_upload": refused}, failing("multipart upload") | WITHOUT_UPLOADS),
    "parts are refused": ({"upload_part": refused}, failing("multipart upload") | WITHOUT_UPLOADS),
    "completions are refused": ({"complete_upload": refused}, failing("multipart upload") | WITHOUT_UPLOADS),
    "listings of uploads are refused": ({"list_uploads": refuse_listing}, failing("list uploads")),
    "listings of uploads are empty": ({"list_uploads": empty_listing}, failing("list uploads")),
    "conditions are ignored": ({"put": unconditional}, failing(*CONDITIONS)),
    "copies are refused": ({"copy_part": refused}, failing("copy a part")),
    "heads are refused": ({"head": refused}, failing("replace one version only", "copy a part")),
    "links are refused": ({"download_url": refused}, failing("download link")),
    "links lead nowhere": ({"download_url": elsewhere}, failing("download link")),
    "links lead elsewhere": ({"download_url": others_content}, failing("download link")),
    "the clock is wrong": ({"put": ahead}, failing("clock")),
    "single deletes are refused": ({"delete": refused}, failing("delete objects")),
    "single deletes do nothing": ({"delete": nothing}, failing("delete objects")),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_fails_or_lies_is_told_and_cleaned_up(
    folder: Path, wrap: Callable[..., None], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    methods, expected = FAULTS[fault]
    wrap(**methods)
    checks = await diagnosed(folder)
    assert not_ok(checks) == expected
    assert {check.name for check in checks} == {*NEEDED, *OPTIONAL}, "nothing is left out"
    blamed = next((name for name, result in expected.items() if result == "failed"), "")
    assert {check.detail for check in checks if check.result == "skipped"} <= {f'needs "{blamed}"'}
    assert all(check.detail for check in checks if check.result != "ok")
    assert files_in(folder) == []


async def test_where_nothing_can_be_written_nothing_else_is_said_to_fail(
    folder: Path, wrap: Callable[..., None]
) -> None:
    wrap(put=refused, create_upload=refused)
    first, write, *others = await diagnosed(folder)
    assert (first.result, write.result) == ("ok", "failed")
    assert {check.result for check in others} == {"skipped"}
    assert all(check.detail.startswith('needs "write an object"') for check in others)
    assert files_in(folder) == []


@pytest.fixture
async def metadata_key(tmp_path: Path, folder: Path) -> str:
    """Of the one snapshot that is in the folder store."""
    (tmp_path / "app").mkdir()
    async with SnapStore.open(folder, index=tmp_path / "index.db") as store:
        return f"_metadata/{(await store.create('blog', tmp_path / 'app')).id}"


async def test_what_cannot_be_written_may_be_readable(
    folder: Path, metadata_key: str, wrap: Callable[..., None]
) -> None:
    wrap(put=refused, create_upload=refused)
    checks = await diagnosed(folder)
    assert {check.name for check in checks if check.result == "ok"} == {"list objects", "read an object"}
    assert [check.detail for check in checks if check.name == "read an object"] == [metadata_key]


def test_the_command_tells_that_a_store_can_only_be_read(
    folder: Path, metadata_key: str, wrap: Callable[..., None]
) -> None:
    wrap(put=refused, create_upload=refused)
    done = CliRunner().invoke(command_line, ["doctor", "--url", str(folder)])
    assert done.exit_code == 1
    assert done.stderr == "snapstore: this store can be read, and not written\n"


async def test_listings_that_lag_are_told_and_cleaned_up(folder: Path, wrap: Callable[..., None]) -> None:
    wrap(list=empty_listing)
    found = not_ok(await diagnosed(folder))
    assert found == failing("list what was just written") | {"start a listing at a key": "skipped"}
    assert files_in(folder) == []


async def test_aborts_that_do_nothing_are_told(folder: Path, wrap: Callable[..., None]) -> None:
    wrap(abort_upload=nothing)
    checks: list[Check] = []
    with pytest.raises(StorageError, match="could not be removed"):
        await collect(folder, checks)
    assert not_ok(checks) == failing("abort an upload")


async def test_uploads_that_cannot_be_removed_are_named(folder: Path, wrap: Callable[..., None]) -> None:
    wrap(abort_upload=refused)
    checks: list[Check] = []
    with pytest.raises(StorageError, match=r"could not be removed.*an upload of doctor-\w+[./]aborted"):
        await collect(folder, checks)
    assert not_ok(checks) == failing("abort an upload", "list uploads")
    assert {name.split("/")[1] for name in files_in(folder)} <= {"uploads"}, "all objects are removed nevertheless"


async def test_objects_that_cannot_be_removed_are_named(folder: Path, wrap: Callable[..., None]) -> None:
    wrap(delete=refused, delete_many=refused)
    checks: list[Check] = []
    with pytest.raises(StorageError, match=r"could not be removed.*objects .*doctor-\w+[./]"):
        await collect(folder, checks)
    assert not_ok(checks) == failing("delete objects")


async def test_deletes_that_do_nothing_are_told(folder: Path, wrap: Callable[..., None]) -> None:
    wrap(delete=nothing, delete_many=nothing)
    checks: list[Check] = []
    with pytest.raises(StorageError, match="could not be removed"):
        await collect(folder, checks)
    assert not_ok(checks) == failing("delete objects")


async def test_a_link_that_is_answered_with_garbage_is_missing(folder: Path, wrap: Callable[..., None]) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is not HTTP\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        async def garbage(_store: ObjectStore, *_given: Any, **_named: Any) -> str:
            return f"http://127.0.0.1:{port}/"

        wrap(download_url=garbage)
        assert not_ok(await diagnosed(folder)) == failing("download link")


def test_the_command_tells_what_is_failing_and_exits_with_1(folder: Path, wrap: Callable[..., None]) -> None:
    wrap(get=whole)
    done = CliRunner().invoke(command_line, ["doctor", "--url", str(folder)])
    assert done.exit_code == 1
    assert "failed\tread a range" in done.stdout
    assert "cannot be used as it is" in done.stderr


def test_the_command_tells_what_is_missing_and_exits_with_3(folder: Path, wrap: Callable[..., None]) -> None:
    wrap(copy_part=refused)
    done = CliRunner().invoke(command_line, ["doctor", "--url", str(folder)])
    assert done.exit_code == 3
    assert "missing\tcopy a part" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("json_option", [["--json"], []])
def test_the_command_tells_all_it_found_and_what_it_could_not_remove(
    folder: Path, wrap: Callable[..., None], json_option: list[str]
) -> None:
    wrap(abort_upload=refused)
    done = CliRunner().invoke(command_line, ["doctor", "--url", str(folder), *json_option])
    assert done.exit_code == 1
    assert "could not be removed" in done.stderr
    assert "abort an upload" in done.stdout


# -- ended early --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 9, 14])
async def test_closing_it_early_cleans_up(folder: Path, count: int) -> None:
    async with aclosing(diagnose(folder)) as checks:
        for _ in range(count):
            await anext(checks)
    assert files_in(folder) == []


@pytest.mark.parametrize("method", ["list", "put", "create_upload"])
async def test_nobody_waits_long_for_a_store_that_does_not_answer(
    folder: Path, wrap: Callable[..., None], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("snapstore.aio.TIDY_SECONDS", 0.2)
    reached = asyncio.Event()

    def stalling(name: str) -> Callable[..., Any]:
        async def stall(store: ObjectStore, *given: Any, **named: Any) -> Any:
            if name == method:
                reached.set()
            if reached.is_set():
                await asyncio.sleep(60)
            return await getattr(store, name)(*given, **named)

        return stall

    async def stalled_listing(_store: ObjectStore, *_given: Any, **_named: Any) -> AsyncIterator[Any]:
        reached.set()
        await asyncio.sleep(60)
        yield []

    stalling_calls = ("put", "delete", "delete_many", "head", "create_upload", "abort_upload")
    methods = {name: stalling(name) for name in stalling_calls}
    wrap(**methods | {"list_uploads": stalled_listing} | ({"list": stalled_listing} if method == "list" else {}))
    task = asyncio.create_task(diagnosed(folder))
    await reached.wait()
    started = time.monotonic()
    task.cancel()
    if method == "list":  # then nothing is there that would have to be removed
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(StorageError, match=r"what begins with doctor-\w+\., as the store does not answer"):
            await task
    assert time.monotonic() - started < 2


BEFORE = ("put", "get", "upload_part", "complete_upload", "abort_upload", "copy_part", "download_url")
AFTER = ("put", "create_upload", "upload_part", "complete_upload", "copy_part", "delete")


async def cancelled_in(url: str, wrap: Callable[..., None], method: str, *, applied: bool) -> None:
    """Cancel a diagnosis while the store has yet to answer a call, which it has (or not) ``applied`` already."""
    reached = asyncio.Event()

    async def stuck(store: ObjectStore, *given: Any, **named: Any) -> Any:
        if reached.is_set():  # the cleaning up is answered
            return await getattr(store, method)(*given, **named)
        if not applied:
            reached.set()
            await asyncio.sleep(60)
        answer = await getattr(store, method)(*given, **named)
        reached.set()
        await asyncio.sleep(0.05)
        return answer

    wrap(**{method: stuck})
    task = asyncio.create_task(diagnosed(url))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("method", BEFORE)
async def test_a_cancellation_cleans_up(folder: Path, wrap: Callable[..., None], method: str) -> None:
    await cancelled_in(str(folder), wrap, method, applied=False)
    assert files_in(folder) == []


@pytest.mark.parametrize("method", AFTER)
async def test_a_cancellation_cleans_up_what_was_done_already(
    folder: Path, wrap: Callable[..., None], method: str
) -> None:
    await cancelled_in(str(folder), wrap, method, applied=True)
    assert files_in(folder) == []


@pytest.mark.parametrize("method", ["get", "upload_part", "complete_upload", "copy_part"])
async def test_a_cancellation_cleans_up_a_bucket(seaweedfs: Server, wrap: Callable[..., None], method: str) -> None:
    prefix = uuid.uuid4().hex
    await cancelled_in(f"s3://{BUCKET}/{prefix}", wrap, method, applied=True)
    assert left_in(seaweedfs, prefix) == []
