"""What snapstore is for, from the first snapshot to the last, on every store; and what is left when a server dies."""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest
import zstandard

from snapstore import Progress, S3Options, Snapshot, SnapshotNotFound, SnapStore, StorageUnavailable, keys
from snapstore.storage.local import LocalStore
from snapstore.storage.s3.store import S3Store
from snapstore.storage.urls import open_store
from tests import servers
from tests.conftest import BUCKET
from tests.servers import Server
from tests.trees import describe, differences, has_xattrs, noise, without, write

BIG = 21 << 20
YEAR_2026 = 1_767_225_600_000_000_000


class Place(NamedTuple):
    """A store of one test's own, and its two nodes' indexes."""

    url: str
    indexes: Path

    def node(self, name: str) -> SnapStore:
        return SnapStore.open(self.url, index=self.indexes / f"{name}.db", index_label="owner")

    async def content(self, key: str) -> bytes:
        """An object's, with nothing but the store in between."""
        store = await open_store(self.url)
        try:
            async with aclosing(store.stream(key)) as pieces:
                return b"".join([piece async for piece in pieces])
        finally:
            await store.aclose()

    async def keys(self) -> list[str]:
        store = await open_store(self.url)
        try:
            # Some servers list a folder that was made for a key.
            return [info.key async for page in store.list() for info in page if info.key and info.key[-1] != "/"]
        finally:
            await store.aclose()


@pytest.fixture(
    params=[
        "folder",
        "seaweedfs",
        *(pytest.param(name, marks=pytest.mark.servers) for name in ("juicefs", "rclone", "moto", "swift")),
    ]
)
def place(
    request: pytest.FixtureRequest,
    running: Callable[[str], Server],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Place:
    if request.param == "folder":
        return Place(str(tmp_path / "store"), tmp_path)
    servers.use(running(request.param), monkeypatch)
    return Place(f"s3://{BUCKET}/{uuid.uuid4().hex}/a prefix", tmp_path)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the parts that are uploaded from now on."""
    numbers: list[int] = []
    for kind in (LocalStore, S3Store):
        upload_part = kind.upload_part

        async def counted(
            store: Any, key: str, upload_id: str, number: int, *rest: Any, _real: Any = upload_part
        ) -> Any:
            numbers.append(number)
            return await _real(store, key, upload_id, number, *rest)

        monkeypatch.setattr(kind, "upload_part", counted)
    return numbers


@pytest.fixture
def blog(tmp_path: Path) -> Path:
    """A few small files."""
    folder = tmp_path / "blog"
    (folder / "static").mkdir(parents=True)
    write(folder / "index.html", b"<h1>hello</h1>\n")
    write(folder / "static" / "style.css", b"body {}\n")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """More than 20 MiB that do not compress, and all that a folder of users' may hold."""
    folder = tmp_path / "photos"
    (folder / "albums" / "empty").mkdir(parents=True)
    (folder / "größe 日本語 🙂").mkdir()
    write(folder / "big", noise(BIG))
    write(folder / "none", b"")
    write(folder / "albums" / "one", b"first\n" * 1000)
    os.link(folder / "albums" / "one", folder / "albums" / "hard")
    os.link(folder / "albums" / "one", folder / "hard of another folder")
    write(folder / "größe 日本語 🙂" / "ä\nb.jpg", noise(5000, 1))
    write(folder / ("n" * 150), b"a long name")
    (folder / "to-file").symlink_to("albums/one")
    (folder / "to-folder").symlink_to("albums")
    (folder / "dangling").symlink_to("../nowhere")
    os.mkfifo(folder / "albums" / "pipe")
    (folder / "albums" / "one").chmod(0o640)
    (folder / "albums" / "empty").chmod(0o1777)
    if has_xattrs(folder):
        os.setxattr(folder / "big", "user.note", b"on a file")
        os.setxattr(folder / "albums", "user.note", b"on a folder \0\xff")
    for number, path in enumerate(sorted(folder.rglob("*"), reverse=True)):  # folders after what is in them
        os.utime(path, ns=(0, YEAR_2026 + number * 1_000_000_001), follow_symlinks=False)
    os.utime(folder, ns=(0, YEAR_2026 - 1))
    return folder


async def every(listing: AsyncIterator[Snapshot]) -> list[Snapshot]:
    return [snapshot async for snapshot in listing]


async def ids(listing: AsyncIterator[Snapshot]) -> list[str]:
    return [snapshot.id for snapshot in await every(listing)]


async def read(store: SnapStore, snapshot_id: str, path: str, **part: int) -> bytes:
    return b"".join([piece async for piece in store.read(snapshot_id, path, **part)])


def fetch(url: str) -> bytes:
    with urlopen(url, timeout=30) as response:
        content: bytes = response.read()
        return content


def unpack(archive: Path, target: Path) -> None:
    """By the tools that everybody has."""
    target.mkdir()
    if shutil.which("zstd") and shutil.which("tar"):
        with subprocess.Popen(["zstd", "-dc", archive], stdout=subprocess.PIPE) as decompressed:
            subprocess.run(["tar", "-xpf", "-", "-C", target], stdin=decompressed.stdout, check=True)
        assert decompressed.returncode == 0
        return
    with (
        archive.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        tar.extraction_filter = lambda member, _path: (
            member
        )  # newer Pythons warn without one, 3.11.2 takes no other way
        tar.extractall(target)
        for member in tar.getmembers():  # it keeps times as floating-point numbers, which are not exact
            mtime = int(Decimal(member.pax_headers.get("mtime", member.mtime)) * 1_000_000_000)
            os.utime(target / member.name, ns=(mtime, mtime), follow_symlinks=False)


async def test_all_that_snapshots_are_for(
    place: Place, blog: Path, photos: Path, parts: list[int], tmp_path: Path
) -> None:
    async with place.node("one") as store:
        # Create: one that fits a part, one of several parts, and a second one of an app.
        small = await store.create("blog", blog, labels=["owner:42", "env:prod"])
        assert parts == []
        large = await store.create("photos & more", photos, labels=["owner:42", "tier:gold"])
        assert len(parts) == len(set(parts)) >= 3
        (blog / "index.html").write_text("<h1>hello again</h1>\n")
        newer = await store.create("blog", blog, labels=["owner:43"])
        assert {*await place.keys()} == {
            name for made in (small, large, newer) for name in (made.key, f"_metadata/{made.id}")
        }
        assert large.content_size is not None
        assert large.content_size > BIG

        # List: by app, by label, by time; page by page.
        assert await ids(store.list()) == [newer.id, large.id, small.id]
        assert await ids(store.list(apps=["blog"])) == [newer.id, small.id]
        assert await ids(store.list(labels=["owner:42"])) == [large.id, small.id]
        assert await ids(store.list(labels=["owner"], apps=["photos & more"])) == [large.id]
        assert await ids(store.list(labels=["owner:42", "tier"])) == [large.id]
        assert await ids(store.list(since=large.created_at)) == [newer.id, large.id]
        assert await ids(store.list(until=large.created_at)) == [small.id]
        first = await store.page(limit=2)
        second = await store.page(limit=2, cursor=first.cursor)
        assert [found.id for found in (*first.snapshots, *second.snapshots)] == [newer.id, large.id, small.id]
        assert second.cursor is None

        # Get: by an id, by its beginning, by the app.
        rows = await every(store.list())
        unique = next(
            large.id[:end] for end in range(1, 37) if sum(row.id.startswith(large.id[:end]) for row in rows) == 1
        )
        assert (
            await store.get(large.id) == await store.get(unique) == await store.get("photos & more@latest") == rows[1]
        )
        assert (await store.get("blog@latest")).id == newer.id

        # Look into it.
        expected = describe(photos)
        members = [member async for member in store.members(large.id)]
        assert len(members) == large.entries == len(expected)
        assert {member.path for member in members} == expected.keys()
        assert {member.path: member.mtime for member in members if member.type != "h"}.items() <= {
            path: facts.mtime for path, facts in expected.items()
        }.items()
        assert await read(store, small.id, "index.html") == b"<h1>hello</h1>\n"
        assert await read(store, large.id, "big") == (photos / "big").read_bytes()
        part = await read(store, large.id, "big", start=(9 << 20) + 5, size=5_000_000)
        assert part == (photos / "big").read_bytes()[(9 << 20) + 5 :][:5_000_000]
        assert await read(store, large.id, "hard of another folder") == b"first\n" * 1000

        # Restore: all of it, one folder of it, and an older state in place of a newer one.
        await store.restore(large.id, tmp_path / "whole")
        assert differences(expected, describe(tmp_path / "whole")) == {}
        await store.restore(large.id, tmp_path / "some", paths=["albums"])
        found = describe(tmp_path / "some")
        wanted = {path: facts for path, facts in expected.items() if path.split("/")[0] == "albums"}
        assert found.keys() == {".", *wanted}
        assert differences(without(wanted, "names"), without({path: found[path] for path in wanted}, "names")) == {}
        await store.restore(small.id, blog, existing="replace")
        assert (blog / "index.html").read_text() == "<h1>hello</h1>\n"

        # Download: what a link gives is what is kept, and a plain tar.zst.
        assert large.key is not None
        archive = tmp_path / "archive.tar.zst"
        archive.write_bytes(await asyncio.to_thread(fetch, await store.download_url(large.id)))
        assert archive.stat().st_size == large.size
        assert archive.read_bytes() == await place.content(large.key)
        await asyncio.to_thread(unpack, archive, tmp_path / "unpacked")
        assert differences(without(expected, "xattrs"), without(describe(tmp_path / "unpacked"), "xattrs")) == {}

        async with place.node("two") as other:
            assert await every(other.list()) == rows

            # Relabel: seen at once by this node, and by the other when it reads the store again.
            await store.relabel(small.id, add=["keep", "n:1"])
            await store.relabel(small.id, remove=["env"])
            await store.relabel(newer.id, replace=["n:2"])
            assert (await store.get(small.id)).labels == ("owner:42", "keep", "n:1")
            assert await ids(store.list(labels=["n"])) == [newer.id, small.id]
            assert await ids(store.list(labels=["env"])) == []
            assert await ids(other.list(labels=["n"])) == []
            await other.rebuild()
            assert await every(other.list()) == await every(store.list())
            assert await ids(other.list(labels=["n"])) == [newer.id, small.id]
            described = json.loads(await place.content(keys.metadata_key(small.id)))
            assert described["labels"] == ["owner:42", "keep", "n:1", f"size:{small.size}"]

            # Delete: the other node learns of it when it reads the snapshot.
            await other.delete(small.id)
            assert small.id in await ids(store.list())
            with pytest.raises(SnapshotNotFound):
                await read(store, small.id, "index.html")
            assert await ids(store.list()) == [newer.id, large.id]
            extra = await store.create("blog", blog)
            deleted = await store.delete_app("blog")
            assert [snapshot.id for snapshot in deleted] == [extra.id, newer.id]
            assert await ids(store.list()) == [large.id]

            # An index is only a cache: a new one is the same.
            await other.rebuild()
            async with place.node("three") as fresh:
                assert await every(fresh.list()) == await every(other.list()) == await every(store.list())

        assert {*await place.keys()} == {large.key, f"_metadata/{large.id}"}
        await store.delete("photos & more@latest")
        assert await place.keys() == []


@pytest.fixture
def server_folder(tmp_path: Path) -> Path:
    if reason := servers.missing("seaweedfs"):
        pytest.skip(reason)
    return tmp_path / "server"


async def test_a_server_that_is_killed_makes_no_snapshot_and_loses_none(
    server_folder: Path, blog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/app"
    quick = S3Options(attempts=2, connect_timeout=1, read_timeout=2, deadline=5)
    large = tmp_path / "large"
    large.mkdir()
    for number in range(6):
        write(large / str(number), random.Random(number).randbytes(8 << 20))

    with servers.seaweedfs(server_folder) as server:
        servers.use(server, monkeypatch)
        servers.make_bucket(server, BUCKET)
        async with SnapStore.open(url, index=tmp_path / "before.db", s3=quick) as store:
            kept = await store.create("blog", blog, labels=["owner:42"])
            killed = 0.0

            def kill(progress: Progress) -> None:
                nonlocal killed
                if progress.phase == "pack" and progress.bytes > 16 << 20 and not killed:
                    server.process.kill()
                    server.process.wait()
                    killed = time.monotonic()

            with pytest.raises(StorageUnavailable, match=r"[Tt]ry again later|cannot reach"):
                await store.create("large", large, progress=kill)
            assert killed
            assert time.monotonic() - killed < 15
            assert await ids(store.list()) == [kept.id]
            for call in (store.rebuild, lambda: read(store, kept.id, "index.html")):
                with pytest.raises(StorageUnavailable):
                    await call()
            assert await ids(store.list()) == [kept.id]

    with servers.seaweedfs(server_folder) as server:
        servers.use(server, monkeypatch)
        async with SnapStore.open(url, index=tmp_path / "after.db", s3=quick) as store:
            assert await ids(store.list()) == [kept.id]
            await store.restore(kept.id, tmp_path / "out")
            assert differences(describe(blog), describe(tmp_path / "out")) == {}
            made = await store.create("large", large)
            assert await ids(store.list()) == [made.id, kept.id]


async def test_the_command_line_on_a_bucket(seaweedfs: Server, blog: Path, tmp_path: Path) -> None:
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    environment = aws | {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    environment["SNAPSTORE_URL"] = f"s3://{BUCKET}/{uuid.uuid4().hex}?part_size=5242880"

    def run(*arguments: str) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "snapstore", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, b""), arguments
        return done.stdout

    def documents(*arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in run(*arguments, "--json").splitlines()]

    def all_of_them() -> None:
        (made,) = documents("create", "blog", "blog", "--label", "owner:42")
        (listed,) = documents("list", "--label", "owner:42")
        assert {name: made[name] for name in listed} == listed
        assert {member["path"] for member in documents("ls", made["id"])} == describe(blog).keys()
        assert run("cat", "blog@latest", "static/style.css") == b"body {}\n"
        assert documents("restore", "blog@latest", "copy")[0]["members"] == 4
        assert differences(describe(blog), describe(tmp_path / "copy")) == {}
        (changed,) = documents("label", made["id"][:30], "--add", "env:prod", "--remove", "owner")
        assert changed["labels"] == ["env:prod"]
        assert documents("list", "--label", "env:prod") == [changed]
        (tmp_path / "blog.tar.zst").write_bytes(fetch(documents("link", "blog@latest")[0]["url"]))
        unpack(tmp_path / "blog.tar.zst", tmp_path / "unpacked")
        assert differences(describe(blog), describe(tmp_path / "unpacked")) == {}
        shutil.rmtree(tmp_path / ".local")  # the index: the next command reads all of it anew
        assert documents("list") == [changed]
        assert documents("index", "rebuild")[0]["snapshots"] == 1
        assert documents("delete", made["id"]) == [changed]
        assert documents("index", "rebuild")[0]["snapshots"] == 0

    await asyncio.to_thread(all_of_them)
