"""What is never written, never taken for whole and never left behind, whatever the bucket holds and whoever meddles.

Each guard here stands alone: what it keeps out would pass all the others.
"""

import asyncio
import errno
import fcntl
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard
from blake3 import blake3

from snapstore import (
    ArchiveDamaged,
    Existing,
    Extent,
    Limits,
    Member,
    Snapshot,
    SnapStore,
    SnapstoreError,
    StorageError,
    UnsafeMember,
    keys,
    metadata,
)
from snapstore.archive import frames, removal, tar, target, toc
from snapstore.archive.folders import Folders
from snapstore.archive.target import Target
from snapstore.engine import restoring
from snapstore.errors import TargetConflict, TargetUnwritable
from snapstore.objectstore import Body
from tests.places import wrapped

NOISE = random.Random(1).randbytes(100_000)
MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
HOUR_NS = 3600 * 1_000_000_000


# A store that others meddle with.

Before = Callable[[str, str], Awaitable[None]]


class Meddled:
    """A store that tells ``before`` of every call, and lets ``answer`` change what it gives; both by name and key."""

    def __init__(self, store: Any) -> None:
        self.inner = store
        self.before: Before = nothing
        self.answer: Callable[[str, Any], Any] = lambda name, found: found

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not asyncio.iscoroutinefunction(found) or name == "aclose":
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self.before(name, args[0] if args else "")
            return self.answer(name, await found(*args, **kwargs))

        return call

    async def stream(self, key: str, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        await self.before("stream", key)
        async for piece in self.inner.stream(key, **kwargs):
            yield piece


async def nothing(name: str, key: str) -> None:
    """Meddles with nothing."""


BOTH: tuple[Existing, ...] = ("merge", "replace")


class House(NamedTuple):
    base: Path
    store: SnapStore
    meddled: Meddled
    limits: Limits
    app: Path
    target: Path

    async def create(self) -> Snapshot:
        return await self.store.create("blog", self.app)

    def bucket(self) -> set[str]:
        """The objects that are there, by their keys."""
        root = self.base / "store"
        found = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        return {key for key in found if not key.startswith(".")}

    def at_call(self, wanted: str, number: int, act: Callable[[str], Awaitable[None]]) -> None:
        """Let ``act`` run ahead of the ``number``-th call of this name."""
        count = 0

        async def before(name: str, key: str) -> None:
            nonlocal count
            count += name == wanted
            if name == wanted and count == number:
                await act(key)

        self.meddled.before = before

    async def replace(self, key: str) -> None:
        await self.meddled.inner.put(key, (await self.meddled.inner.get(key)).content[::-1])


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """An open store that runs one operation at a time, and an app."""
    opened = wrapped(monkeypatch, Meddled)
    app = tmp_path / "app"
    (app / "d").mkdir(parents=True)
    (app / "noise").write_bytes(NOISE)
    (app / "d" / "file").write_text("new")
    os.link(app / "noise", app / "d" / "hard")
    (app / "d" / "soft").symlink_to("file")
    (tmp_path / "around").mkdir()
    limits = Limits(operations=1)
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db", limits=limits) as store:
        yield House(tmp_path, store, opened[0], limits, app, tmp_path / "around" / "target")


# Archives that are forged: ours, with a table of contents that is signed whatever it says.


class Part(NamedTuple):
    """A frame: what it holds, the members that are listed in it, and what its line says otherwise (None: no line)."""

    raw: bytes
    members: Sequence[Member] = ()
    told: dict[str, Any] | None = {}  # noqa: RUF012


END = Part(tar.END)


def a_file(path: str = "file", content: bytes = b"content", **other: Any) -> Member:
    fields: dict[str, Any] = {
        "path": path,
        "type": "f",
        "offset": 0,
        "size": len(content),
        "mode": 0o644,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "mtime": 1_600_000_000 * 10**9,
        "ctime": 0,
        "ino": 0,
    }
    return Member(**fields | other)


def as_tar(member: Member, content: bytes = b"content") -> bytes:
    body = content if member.type == "f" else b""
    return tar.encode(tar.header_of(member)) + body + bytes(tar.padding(len(body)))


async def forge(store: SnapStore, base: Path, *parts: Part) -> str:
    """Put an archive of these frames into the store, with metadata that fit it; returns the id."""
    snapshot_id = keys.new_id(int(MOMENT.timestamp() * 1000))
    archive = b""
    lines: list[dict[str, Any]] = [
        {"format": 1, "id": snapshot_id, "app": "blog", "labels": [], "created_at": MOMENT.isoformat()}
    ]
    for raw, members, told in parts:
        compressed = frames.compress(raw)
        line = {"offset": len(archive), "size": len(compressed), "raw": len(raw), "digest": blake3(raw).hexdigest()}
        if told is not None:
            lines.append(line | told | {"members": json.loads(toc.encode_members(members))})
        archive += compressed
    document = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    contents = frames.skippable(toc.TOC_MAGIC, b"SNAPTOC1" + frames.compress(document))
    snapshot = Snapshot(
        id=snapshot_id,
        app="blog",
        created_at=MOMENT,
        key=keys.archive_key("blog", snapshot_id, None, int(MOMENT.timestamp())),
        size=len(archive + contents),
        toc=Extent(len(archive), len(contents)),
        root=blake3(document).hexdigest(),
        format=1,
    )
    assert snapshot.key is not None
    put(base, snapshot.key, archive + contents, snapshot_id, metadata.encode(snapshot))
    assert (await store.rebuild()).problems == ()
    return snapshot_id


async def put_foreign(store: SnapStore, base: Path, archive: bytes) -> str:
    """Put an archive into the store as the older system would; returns the id."""
    snapshot_id = str(uuid.UUID(int=random.Random(len(archive)).getrandbits(128), version=4))
    described = {"uuid": snapshot_id, "app_name": "blog", "ts": 1_600_000_000, "labels": []}
    put(base, f"blog:{snapshot_id}:-:1600000000", archive, snapshot_id, json.dumps(described).encode())
    assert (await store.rebuild()).problems == ()
    return snapshot_id


def put(base: Path, key: str, archive: bytes, snapshot_id: str, described: bytes) -> None:
    (base / "store" / key).write_bytes(archive)
    (base / "store" / "_metadata").mkdir(exist_ok=True)
    (base / "store" / "_metadata" / snapshot_id).write_bytes(described)


async def read(store: SnapStore, snapshot_id: str, path: str) -> bytes:
    return b"".join([piece async for piece in store.read(snapshot_id, path)])


def tree(folder: Path) -> dict[str, str | bytes]:
    """All that is in a folder: content of files, where links lead."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in found
    }


async def test_a_forged_archive_that_agrees_with_itself_is_restored(store: SnapStore, tmp_path: Path) -> None:
    forged = await forge(store, tmp_path, Part(as_tar(a_file()), [a_file()]), END)
    await store.restore(forged, tmp_path / "out")
    assert tree(tmp_path / "out") == {"file": b"content"}


async def test_a_frame_of_other_content_and_the_right_size_is_damage(store: SnapStore, tmp_path: Path) -> None:
    other = as_tar(a_file(), b"CONTENT")
    told = {"digest": blake3(as_tar(a_file())).hexdigest()}
    forged = await forge(store, tmp_path, Part(other, [a_file()], told), END)
    with pytest.raises(ArchiveDamaged, match="digest"):
        await store.restore(forged, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArchiveDamaged, match="digest"):
        await read(store, forged, "file")


@pytest.mark.parametrize(
    ("there", "listed"),
    [
        pytest.param(a_file(), a_file(path="other"), id="path"),
        pytest.param(a_file(), a_file(size=6), id="shorter"),
        pytest.param(a_file(), a_file(size=8), id="longer"),
        pytest.param(a_file(), a_file(mode=0o4755), id="mode"),
        pytest.param(a_file(), a_file(uid=os.getuid() + 1), id="uid"),
        pytest.param(a_file(), a_file(gid=os.getgid() + 1), id="gid"),
        pytest.param(a_file(), a_file(mtime=1_600_000_001 * 10**9), id="mtime"),
        pytest.param(a_file(), a_file(xattrs=("user.a",)), id="xattrs"),
        pytest.param(a_file(), a_file(type="p", size=0), id="a file listed as a FIFO"),
        pytest.param(a_file(type="p", size=0), a_file(size=0), id="a FIFO listed as a file"),
        pytest.param(a_file(type="l", size=0, link="a"), a_file(type="l", size=0, link="b"), id="symbolic link"),
        pytest.param(a_file(type="l", size=0, link="a"), a_file(type="h", size=0, link="a"), id="kind of link"),
        pytest.param(a_file(type="d", size=0), a_file(size=0), id="a folder listed as a file"),
    ],
)
async def test_a_table_of_contents_that_disagrees_with_a_header_is_damage(
    store: SnapStore, tmp_path: Path, there: Member, listed: Member
) -> None:
    forged = await forge(store, tmp_path, Part(as_tar(there), [listed]), END)
    with pytest.raises(ArchiveDamaged):
        await store.restore(forged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_a_hard_link_that_is_listed_with_another_target_is_damage(store: SnapStore, tmp_path: Path) -> None:
    first = as_tar(a_file("a")) + as_tar(a_file("b"))
    link = as_tar(a_file("link", type="h", size=0, link="a"))
    listed = [
        a_file("a"),
        a_file("b", offset=len(first) // 2),
        a_file("link", type="h", size=0, link="b", offset=len(first)),
    ]
    forged = await forge(store, tmp_path, Part(first + link, listed), END)
    with pytest.raises(ArchiveDamaged):
        await store.restore(forged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def do_not_add_up() -> Iterator[Any]:
    one = Part(as_tar(a_file("a")), [a_file("a")])
    both = as_tar(a_file("a")) + as_tar(a_file("b"))
    first, second = Part(both, [a_file("a")]), Part(both, [a_file("b", offset=len(both) // 2)])
    large = a_file("a", bytes(frames.FRAME))
    padded = as_tar(large, bytes(frames.FRAME)) + bytes(frames.MAX_RAW - frames.FRAME)
    twice = [a_file("a"), a_file("a", offset=len(one.raw))]
    yield pytest.param([first, second._replace(told={"offset": 0})], id="overlap")
    yield pytest.param([first, first._replace(told=None), second, END], id="gap")
    yield pytest.param([first._replace(told=None), second, END], id="gap at the beginning")
    yield pytest.param([one._replace(told={"offset": -1}), END], id="negative offset")
    yield pytest.param([one._replace(told={"size": 0}), END], id="no size")
    yield pytest.param([one._replace(told={"raw": -1}), END], id="negative raw")
    yield pytest.param([Part(padded, [large]), END], id="too large")
    yield pytest.param([one._replace(told={"raw": 1 << 40}), END], id="far too large")
    yield pytest.param([one, one, END], id="a member twice, in two frames")
    yield pytest.param([Part(one.raw * 2, twice), END], id="a member twice, in one frame")


@pytest.mark.parametrize("parts", list(do_not_add_up()))
async def test_frames_and_members_that_do_not_add_up_are_damage(
    store: SnapStore, tmp_path: Path, parts: Sequence[Part]
) -> None:
    forged = await forge(store, tmp_path, *parts)
    with pytest.raises(ArchiveDamaged):
        await store.restore(forged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def tar_of(*infos: tarfile.TarInfo, content: bytes = b"") -> bytes:
    """A whole tar.zst of members, the last of which has the content."""
    blocks = b"".join(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") for info in infos)
    return zstandard.compress(blocks + content + bytes(-len(content) % 512) + bytes(1024))


def an_info(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "foreign"])
async def test_a_hard_link_in_a_merge_leads_to_no_file_that_the_merge_did_not_write(
    store: SnapStore, tmp_path: Path, ours: bool
) -> None:
    link = a_file("link", type="h", size=0, link="victim")
    if ours:
        made = await forge(store, tmp_path, Part(as_tar(link), [link]), END)
    else:
        made = await put_foreign(
            store, tmp_path, tar_of(an_info("link", type=tarfile.LNKTYPE, linkname="victim", size=0))
        )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "victim").write_text("secret")
    with pytest.raises(UnsafeMember):
        await store.restore(made, tmp_path / "out", existing="merge")
    assert os.listdir(tmp_path / "out") == ["victim"]
    assert (tmp_path / "out" / "victim").stat().st_nlink == 1


# An archive that is exchanged, cut or gone while it is read.


async def test_an_archive_that_is_replaced_between_contents_and_frames_is_damaged(house: House) -> None:
    made = await house.create()
    house.at_call("get", 2, house.replace)
    with pytest.raises(ArchiveDamaged, match="replaced"):
        await house.store.restore(made.id, house.target)
    assert not house.target.exists()


async def test_a_file_whose_archive_is_replaced_while_it_is_read_is_damaged(house: House) -> None:
    made = await house.create()
    house.at_call("get", 2, house.replace)
    with pytest.raises(ArchiveDamaged, match="replaced"):
        await read(house.store, made.id, "noise")


async def test_a_foreign_archive_that_is_replaced_between_two_passes_is_damaged(house: House) -> None:
    info = an_info("file", size=7)
    made = await put_foreign(house.store, house.base, tar_of(info, content=b"content"))

    async def replace(key: str) -> None:
        await house.meddled.inner.put(key, tar_of(info, content=b"CONTENT"))

    house.at_call("stream", 2, replace)
    with pytest.raises(ArchiveDamaged, match="replaced"):
        await house.store.restore(made, house.target, paths=["file"])
    assert not house.target.exists()


@pytest.mark.parametrize("number", [1, 2], ids=["contents", "frames"])
async def test_an_answer_that_is_too_short_is_told_as_that(house: House, number: int) -> None:
    made = await house.create()
    count = 0

    def shorten(name: str, found: Any) -> Any:
        nonlocal count
        if name == "get":
            assert isinstance(found, Body)
            count += 1
            return Body(found.content[:-1], found.etag) if count == number else found
        return found

    house.meddled.answer = shorten
    with pytest.raises(ArchiveDamaged, match="cut short"):
        await house.store.restore(made.id, house.target)
    assert not house.target.exists()


# Deleting.


async def test_a_delete_ends_the_snapshot_before_its_archive(house: House) -> None:
    made = await house.create()
    deleted = []

    async def record(name: str, key: str) -> None:
        if name == "delete":
            deleted.append(key)

    house.meddled.before = record
    await house.store.delete(made.id)
    assert deleted == [f"_metadata/{made.id}", made.key]


async def test_a_delete_that_fails_half_way_leaves_no_snapshot_without_its_archive(house: House) -> None:
    made = await house.create()

    async def fail(key: str) -> None:
        raise StorageError(f"no {key!r} today")

    house.at_call("delete", 2, fail)
    with pytest.raises(StorageError, match="today"):
        await house.store.delete(made.id)
    assert house.bucket() == {made.key}
    await house.store.rebuild()
    assert [snapshot async for snapshot in house.store.list()] == []


# Publishing.


async def test_a_replaced_tree_goes_only_when_the_new_one_is_on_the_disk_and_in_its_place(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await house.create()
    lay_out(house.target, "replace")
    steps: list[tuple[str, bool]] = []

    def recorded(name: str) -> None:
        does = getattr(target, name)

        def step(*args: Any) -> Any:
            steps.append((name, (house.target / "own").exists()))
            return does(*args)

        monkeypatch.setattr(target, name, step)

    for name in ("_sync_file_system", "_rename", "remove_tree"):
        recorded(name)
    await house.store.restore(made.id, house.target, existing="replace")
    assert steps == [("_sync_file_system", True), ("_rename", True), ("remove_tree", False)]
    assert tree(house.target) == tree(house.app)


async def test_an_exchange_that_cannot_be_made_sure_of_is_taken_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await house.create()
    lay_out(house.target, "replace")

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(target.os, "fsync", failing)
    with pytest.raises(TargetUnwritable, match="input/output"):
        await house.store.restore(made.id, house.target, existing="replace")
    monkeypatch.undo()
    check_as_before(house.target, "replace")


def lay_out(target: Path, kind: str) -> None:
    """A target as it is before a restore: missing, empty, or with a file of its own."""
    if kind != "missing":
        target.mkdir()
    if kind == "replace":
        (target / "own").write_text("old")


def existing_of(kind: str) -> Existing:
    return "replace" if kind == "replace" else "refuse"


def check_as_before(target: Path, kind: str) -> None:
    assert os.listdir(target.parent) == ([] if kind == "missing" else ["target"])
    assert kind == "missing" or tree(target) == ({"own": b"old"} if kind == "replace" else {})
    assert kind == "missing" or os.listdir(target) == (["own"] if kind == "replace" else [])


class Held:
    """The first publishing waits in its thread, before it is done or when it is done already."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
        self.reached, self.released = threading.Event(), threading.Event()
        publish = Target.publish

        def held(target: Target, *args: Any) -> None:
            if self.reached.is_set():
                publish(target, *args)
                return
            if when == "after":
                publish(target, *args)
            self.reached.set()
            assert self.released.wait(20)
            if when == "before":
                publish(target, *args)

        monkeypatch.setattr(Target, "publish", held)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["missing", "empty", "replace"])
async def test_a_restore_that_is_cancelled_while_it_appears_is_taken_back(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: str, when: str
) -> None:
    made = await house.create()
    lay_out(house.target, kind)
    held = Held(monkeypatch, when)
    running = asyncio.create_task(house.store.restore(made.id, house.target, existing=existing_of(kind)))
    assert await asyncio.to_thread(held.reached.wait, 20)
    running.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    held.released.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    check_as_before(house.target, kind)


@pytest.fixture
async def beside(house: House) -> AsyncIterator[SnapStore]:
    """Another process with the same store."""
    async with SnapStore.open(house.base / "store", index=house.base / "beside.db") as opened:
        yield opened


async def test_what_is_about_to_be_removed_or_taken_back_is_not_stale_to_a_restore_beside(
    house: House, beside: SnapStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await house.create()
    lay_out(house.target, "replace")
    os.utime(house.target, (0, 0))
    held = Held(monkeypatch, "after")
    running = asyncio.create_task(house.store.restore(made.id, house.target, existing="replace"))
    assert await asyncio.to_thread(held.reached.wait, 20)
    await beside.sync()
    await beside.restore(made.id, house.target.with_name("sibling"))
    running.cancel()
    held.released.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert tree(house.target) == {"own": b"old"}
    assert tree(house.target.with_name("sibling")) == tree(house.app)
    assert len(os.listdir(house.target.parent)) == 2


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize(("first", "second"), [("replace", "replace"), ("replace", "merge"), ("merge", "replace")])
async def test_restores_into_one_target_come_one_after_the_other(
    house: House,
    beside: SnapStore,
    monkeypatch: pytest.MonkeyPatch,
    first: Existing,
    second: Existing,
    cancelled: bool,
) -> None:
    """Else one would take back, or remove, what the other has told to be there."""
    old, new = await house.create(), await create_with(house, "new")
    lay_out(house.target, "replace")
    held = Held(monkeypatch, "after")
    before = asyncio.create_task(house.store.restore(old.id, house.target, existing=first))
    assert await asyncio.to_thread(held.reached.wait, 20)
    await beside.sync()
    after = asyncio.create_task(beside.restore(new.id, house.target, existing=second))
    await asyncio.sleep(0.3)
    assert not after.done()
    if cancelled:
        before.cancel()
    held.released.set()
    await asyncio.wait([before])
    await after
    found = tree(house.target)
    assert found["new"] == b"new"
    assert ("own" in found) == (first == "replace" and second == "merge" and cancelled)
    assert os.listdir(house.target.parent) == ["target"]


async def test_restores_into_one_missing_target_replace_each_other(house: House, beside: SnapStore) -> None:
    made = await house.create()
    await beside.sync()
    for _ in range(10):
        both = [store.restore(made.id, house.target, existing="replace") for store in (house.store, beside)]
        await asyncio.gather(*both)
        assert tree(house.target) == tree(house.app)
        assert os.listdir(house.target.parent) == ["target"]
        shutil.rmtree(house.target)


async def test_a_child_process_does_not_keep_a_target_locked(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await house.create()
    lay_out(house.target, "replace")
    monkeypatch.setattr(restoring, "_PATIENCE", 0.2)
    children = []
    publish = Target.publish

    def forks(self: Target, *args: Any) -> None:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        children.append(pid)
        publish(self, *args)

    monkeypatch.setattr(Target, "publish", forks)
    try:
        for existing in ("replace", "merge", "replace"):
            await house.store.restore(made.id, house.target, existing=existing)  # type: ignore[arg-type]
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert len(children) == 3


async def test_what_is_removed_may_still_be_in_use(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await house.create()
    lay_out(house.target, "replace")
    for number in range(50):
        (house.target / f"{number}").touch()
    unlink, left = os.unlink, ["removed by others", "added by others"]

    def meddled(name: Any, *, dir_fd: int) -> None:
        unlink(name, dir_fd=dir_fd)
        if left and left.pop() == "removed by others":
            unlink(next(name for name in os.listdir(dir_fd)), dir_fd=dir_fd)
        elif left:
            os.close(os.open("log", os.O_CREAT | os.O_WRONLY, dir_fd=dir_fd))

    monkeypatch.setattr(removal.os, "unlink", meddled)
    report = await house.store.restore(made.id, house.target, existing="replace")
    assert not left
    assert report.skipped == ()
    assert os.listdir(house.target.parent) == ["target"]


async def test_a_restore_does_not_wait_for_ever_for_another(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await house.create()
    lay_out(house.target, "replace")
    monkeypatch.setattr(restoring, "_PATIENCE", 0.2)
    with held_open(house.target) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for existing in BOTH:
            with pytest.raises(TargetConflict, match="try again when that is done"):
                await house.store.restore(made.id, house.target, existing=existing)
    check_as_before(house.target, "replace")


async def test_a_target_that_others_exchange_meanwhile_is_theirs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await house.create()
    for existing in BOTH:
        lay_out(house.target, "replace")
        held = Held(monkeypatch, "before")
        running = asyncio.create_task(house.store.restore(made.id, house.target, existing=existing))
        assert await asyncio.to_thread(held.reached.wait, 20)
        house.target.rename(house.target.with_name("away"))
        house.target.mkdir()
        (house.target / "theirs").write_text("theirs")
        held.released.set()
        with pytest.raises(TargetConflict, match="somebody else"):
            await running
        monkeypatch.undo()
        assert tree(house.target) == {"theirs": b"theirs"}
        assert sorted(os.listdir(house.target.parent)) == ["away", "target"]
        for name in ("away", "target"):
            shutil.rmtree(house.target.with_name(name))


async def create_with(house: House, name: str) -> Snapshot:
    """A snapshot that holds just one file."""
    folder = house.app.with_name(name)
    folder.mkdir()
    (folder / name).write_text(name)
    return await house.store.create("blog", folder)


@contextmanager
def held_open(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("existing", ["refuse", "merge", "replace"])
@pytest.mark.parametrize("around", [(0, 0, 0o755), (0, 1000, 0o2777), (1000, 0, 0o2755), (0, 1000, 0o755)])
async def test_files_have_their_owners_whatever_those_of_the_folders_around_are(
    house: House, existing: Existing, around: tuple[int, int, int]
) -> None:
    """What is made in a folder with setgid has its group; only where it is known is an owner not set."""
    owners = {f"{user}-{group}": (user, group) for user in (0, 1000) for group in (0, 1000, 5)}
    for folder in (house.app, house.app / "inner"):
        folder.mkdir(exist_ok=True)
        for name, owner in owners.items():
            (folder / name).write_text(name)
            os.chown(folder / name, *owner)
    user, group, mode = around
    os.chown(house.target.parent, user, group)
    house.target.parent.chmod(mode)
    if existing != "refuse":
        lay_out(house.target, "replace")
        os.chown(house.target, user, group)
        house.target.chmod(mode)
    made = await house.create()
    await house.store.restore(made.id, house.target, existing=existing)
    for folder in (house.target, house.target / "inner"):
        found = {name: (status.st_uid, status.st_gid) for name in owners if (status := os.stat(folder / name))}
        assert found == owners


def test_a_folder_that_was_closed_is_not_given_again(tmp_path: Path) -> None:
    """A cache of few descriptors must forget the one that it gave last when it closes it."""
    deep = "/".join(["d"] * 40)
    (tmp_path / "a").mkdir()
    (tmp_path / deep).mkdir(parents=True)
    with held_open(tmp_path) as root:
        folders = Folders(root)
        for _ in range(3):
            assert os.path.samestat(os.fstat(folders.descriptor("a")), os.stat(tmp_path / "a"))
            with pytest.raises(FileNotFoundError):
                folders.descriptor(f"{deep}/missing")
        assert os.path.samestat(os.fstat(folders.descriptor(deep)), os.stat(tmp_path / deep))
        folders.close()
        assert folders.descriptor("") == root


# What a restore that was killed leaves.

KILLED = """
import asyncio, os, signal, sys
from snapstore import SnapStore
from snapstore.archive import extract, target

base, snapshot_id, path, existing, at = sys.argv[1:]
owner = {"finish": extract.TreeWriter, "remove_tree": target}[at]
setattr(owner, at, lambda *args: os.kill(os.getpid(), signal.SIGKILL))

async def main():
    async with SnapStore.open(base + "/store", index=base + "/index.db") as store:
        await store.restore(snapshot_id, path, existing=existing)

asyncio.run(main())
"""


def remains(around: Path) -> list[Path]:
    return [path for path in around.rglob(".snapstore-*") if path.name.startswith(".snapstore-restore-")]


@pytest.mark.parametrize(
    ("kind", "at"),
    [("missing", "finish"), ("empty", "finish"), ("replace", "finish"), ("replace", "remove_tree")],
)
async def test_a_restore_removes_what_one_that_was_killed_has_left(house: House, kind: str, at: str) -> None:
    made = await house.create()
    lay_out(house.target, kind)
    command = [sys.executable, "-c", KILLED, str(house.base), made.id, str(house.target), existing_of(kind), at]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, timeout=60)
    assert done.returncode == -9, done.stderr
    (left,) = remains(house.target.parent)
    back_date(left)
    await house.store.restore(made.id, house.target, existing=existing_of(kind))
    assert tree(house.target) == tree(house.app)
    assert os.listdir(house.target.parent) == ["target"]
    assert not remains(house.target.parent)


def back_date(path: Path) -> None:
    """As if nobody had touched it for an hour."""
    earlier = path.stat().st_mtime_ns - HOUR_NS
    os.utime(path, ns=(earlier, earlier))


async def test_a_restore_leaves_alone_what_another_one_is_at(
    store: SnapStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "file").write_text("content")
    (tmp_path / "around").mkdir()
    made = await store.create("blog", tmp_path / "app")
    with monkeypatch.context() as patch:
        held = Held(patch, "before")
        slow = asyncio.create_task(store.restore(made.id, tmp_path / "around" / "slow"))
        assert await asyncio.to_thread(held.reached.wait, 20)
    back_date(*remains(tmp_path / "around"))
    await store.restore(made.id, tmp_path / "around" / "quick")
    held.released.set()
    await slow
    assert tree(tmp_path / "around") == {"slow/file": b"content", "quick/file": b"content"}


async def test_what_killed_restores_left_is_never_packed(store: SnapStore, tmp_path: Path) -> None:
    left, app = "0123456789abcdef", tmp_path / "app"
    for folder in (app, app / "inner"):
        (folder / f".snapstore-restore-{left}" / "below").mkdir(parents=True)
        (folder / f".snapstore-restore-{left}" / "file").write_text("left")
        (folder / f".snapstore-{left}").write_text("left")
        (folder / ".snapstore-notes").write_text("the app's own")
    made = await store.create("blog", app)
    paths = {member.path async for member in store.members(made.id)}
    assert paths == {".", "inner", ".snapstore-notes", "inner/.snapstore-notes"}


# Admission.


async def fails(key: str) -> None:
    raise StorageError("not today")


@pytest.mark.parametrize("end", ["succeeds", "fails", "is cancelled"])
@pytest.mark.parametrize("call", ["create", "restore"])
async def test_what_was_admitted_is_given_back_however_it_ends(
    house: House, call: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapstore.aio.TIDY_SECONDS", 0.1)

    async def work() -> None:
        if call == "create":
            await house.create()
        else:
            await house.store.restore(made.id, house.target, existing="replace")

    made = await house.create()
    reached = asyncio.Event()

    async def waits(key: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(20):
        if end == "succeeds":
            await work()
        elif end == "fails":
            house.at_call("put" if call == "create" else "get", 1, fails)
            with pytest.raises(StorageError, match="not today"):
                await work()
        else:
            house.at_call("put" if call == "create" else "get", 1, waits)
            running = asyncio.create_task(work())
            await reached.wait()
            assert house.limits.running == 1
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
        house.meddled.before = nothing
        assert (house.limits.running, house.limits.waiting) == (0, 0)
        async with house.limits.admit(house.limits.memory):
            assert house.limits.running == 1
        await work()


# Folders that are exchanged for links while a restore writes into them.


async def test_a_folder_that_is_exchanged_for_a_link_leads_nothing_out_of_the_target(house: House) -> None:
    (house.app / "d" / "dropped").write_text("dropped")
    for number in range(20):
        (house.app / "d" / f"{number}").write_text("new")
    made = await house.create()
    outside, inside = house.base / "outside", house.target / "d"
    outside.mkdir(mode=0o700)
    for name in ("0", "dropped"):
        (outside / name).write_text("outside")
    before = outside.stat()
    inside.mkdir(parents=True)
    ended = threading.Event()

    def race() -> None:
        aside = house.target / "aside"
        while not ended.is_set():
            with suppress(OSError):
                os.rename(inside, aside)
                os.symlink(outside, inside)
            with suppress(OSError):
                if inside.is_symlink():
                    os.unlink(inside)
                os.rename(aside, inside)

    racing = threading.Thread(target=race)
    racing.start()
    try:
        for _ in range(30):
            with suppress(SnapstoreError):
                await house.store.restore(made.id, house.target, existing="merge", drop=["d/dropped"])
    finally:
        ended.set()
        racing.join()
    assert tree(outside) == {"0": b"outside", "dropped": b"outside"}
    after = outside.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


# Archives of others that mean harm.


def a_record(keyword: bytes, value: bytes) -> bytes:
    rest = len(keyword) + len(value) + 3
    length = next(length for length in range(rest, rest + 9) if len(str(length)) + rest == length)
    return b"%d %b=%b\n" % (length, keyword, value)


def extended(flag: bytes, records: bytes) -> bytes:
    """A header of tar's own that stands before a member: pax records, or a long name."""
    info = an_info("header", size=len(records), type=flag)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def a_member(name: str = "file", *, records: bytes = b"", **fields: Any) -> bytes:
    return (extended(b"x", records) if records else b"") + an_info(name, **fields).tobuf(tarfile.GNU_FORMAT)


def with_mtime(value: bytes, **fields: Any) -> bytes:
    return a_member(records=a_record(b"mtime", value), **fields)


def with_xattr(name: bytes, value: bytes = b"value") -> bytes:
    return a_member(records=a_record(b"SCHILY.xattr." + name, value))


HOSTILE = {
    "mtime beyond all times": with_mtime(b"99999999999999999999"),
    "mtime before all times": with_mtime(b"-99999999999999999999"),
    "mtime of a folder": with_mtime(b"99999999999999999999", type=tarfile.DIRTYPE),
    "mtime of a link": with_mtime(b"99999999999999999999", type=tarfile.SYMTYPE, linkname="x"),
    "mtime of a FIFO": with_mtime(b"99999999999999999999", type=tarfile.FIFOTYPE),
    "mtime that is none": with_mtime(b"yesterday"),
    "mtime that is infinite": with_mtime(b"inf"),
    "mtime that is no number": with_mtime(b"nan"),
    "mtime in base 256": a_member(mtime=2**80),
    "uid beyond all ids": a_member(uid=2**40),
    "uid that means none": a_member(uid=2**32 - 1),
    "gid that means none": a_member(gid=2**32 - 1, type=tarfile.DIRTYPE),
    "negative uid": a_member(uid=-5),
    "uid in a pax header": a_member(records=a_record(b"uid", b"%d" % 2**40)),
    "uid of thousands of digits": a_member(records=a_record(b"uid", b"9" * 10_000)),
    "size that is negative": a_member(records=a_record(b"size", b"-1")),
    "device numbers beyond all": a_member(type=tarfile.CHRTYPE, devmajor=2**50, devminor=2**50),
    "attribute with NUL in its name": with_xattr(b"user.a\0b"),
    "attribute without a name": with_xattr(b""),
    "attribute of nobody's": with_xattr(b"nobody"),
    "attribute with a long name": with_xattr(b"user." + b"n" * 1000),
    "attribute with a large value": with_xattr(b"user.a", bytes(200_000)),
    "name with NUL": a_member(records=a_record(b"path", b"a\0b")),
    "name that leads out": a_member(records=a_record(b"path", b"../out-of-it")),
    "name that is absolute": a_member(records=a_record(b"path", b"/out-of-it")),
    "name of a file that is empty": a_member(records=a_record(b"path", b"")),
    "name that is too long for a folder": a_member(records=a_record(b"path", b"n" * 300)),
    "name that is too long": a_member(records=a_record(b"path", b"n/" * 100_000 + b"n")),
    "link without a target": a_member(type=tarfile.SYMTYPE),
    "link with NUL": a_member(records=a_record(b"linkpath", b"a\0b"), type=tarfile.SYMTYPE, linkname="x"),
    "link that is too long": a_member(records=a_record(b"linkpath", b"n" * 10_000), type=tarfile.SYMTYPE, linkname="x"),
    "hard link that leads out": a_member(type=tarfile.LNKTYPE, linkname="../victim"),
    "hard link to itself": a_member(type=tarfile.LNKTYPE, linkname="file"),
    "file in a link": a_member("a", type=tarfile.SYMTYPE, linkname="..") + a_member("a/out-of-it"),
    "file in a file": a_member("a") + a_member("a/b"),
    "pax record without a length": extended(b"x", b"mtime=1\n") + a_member(),
    "pax record of an endless length": extended(b"x", b"9" * 5000 + b" mtime=1\n") + a_member(),
    "pax header before nothing": extended(b"x", a_record(b"mtime", b"1")),
    "charset that is none": a_member(records=a_record(b"hdrcharset", b"nonsense") + a_record(b"path", b"\xff")),
    "sparse map that is none": a_member(
        records=a_record(b"GNU.sparse.map", b"1,2,x") + a_record(b"GNU.sparse.size", b"9")
    ),
    "sparse file beyond all": a_member(
        records=a_record(b"GNU.sparse.map", b"0,1") + a_record(b"GNU.sparse.size", b"9" * 20), size=0
    ),
    "type of nobody's": a_member(type=b"!"),
}


@pytest.mark.parametrize("existing", ["refuse", "merge"])
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_archive_is_restored_or_refused_and_nothing_else(
    store: SnapStore, tmp_path: Path, hostile: bytes, existing: Existing
) -> None:
    made = await put_foreign(store, tmp_path, zstandard.compress(hostile + bytes(1024)))
    around = tmp_path / "around"
    (around / "out").mkdir(parents=True)
    (around / "victim").write_text("secret")
    with suppress(SnapstoreError):
        assert [member async for member in store.members(made)] != []
    refused = False
    try:
        await store.restore(made, around / "out", existing=existing, owner=True)
    except SnapstoreError:
        refused = True
    assert set(os.listdir(around)) == {"out", "victim"}
    assert (around / "victim").stat().st_nlink == 1
    assert not list(around.rglob(".snapstore-*"))
    assert not refused or existing == "merge" or not os.listdir(around / "out")


@pytest.mark.parametrize("owner", [True, False])
@pytest.mark.parametrize(
    "fields", [{"uid": 2**32 - 1}, {"gid": 2**32 - 1}, {"uid": 2**40}], ids=["uid", "gid", "too large"]
)
async def test_an_owner_that_cannot_be_one_is_refused(
    store: SnapStore, tmp_path: Path, fields: dict[str, int], owner: bool
) -> None:
    made = await put_foreign(store, tmp_path, zstandard.compress(a_member(**fields) + bytes(1024)))
    with pytest.raises(UnsafeMember, match="owner"):
        await store.restore(made, tmp_path / "out", owner=owner)
    assert not (tmp_path / "out").exists()


def compressed(*pieces: tuple[bytes, int]) -> bytes:
    """Pieces, each so many times, as one zstd frame, which is never in memory as a whole."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    sink = io.BytesIO()
    for piece, times in pieces:
        for _ in range(times):
            sink.write(compressor.compress(piece))
    sink.write(compressor.flush())
    return sink.getvalue()


def claiming(flag: bytes, size: int) -> bytes:
    return an_info("header", type=flag, size=size).tobuf(tarfile.GNU_FORMAT)


def old_sparse() -> bytes:
    """The header of a sparse file as GNU tar once wrote it, whose map goes on in the blocks that follow."""
    block = bytearray(an_info("file", type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


_NAMES = b"n" * (1 << 20)
_SPARSE = a_record(b"GNU.sparse.major", b"1") + a_record(b"GNU.sparse.minor", b"0")
_SPARSE += a_record(b"GNU.sparse.name", b"file") + a_record(b"GNU.sparse.realsize", b"7")
BOMBS: dict[str, Sequence[tuple[bytes, int]]] = {
    "zeros": [(claiming(b"0", 2 << 30), 1), (bytes(1 << 20), 2 << 10)],
    "long name": [(claiming(tarfile.GNUTYPE_LONGNAME, 1 << 30), 1), (_NAMES, 1 << 10), (a_member(), 1)],
    "long link": [(claiming(tarfile.GNUTYPE_LONGLINK, 1 << 30), 1), (_NAMES, 1 << 10), (a_member(), 1)],
    "long name of zeros": [(claiming(tarfile.GNUTYPE_LONGNAME, 1 << 30), 1), (bytes(1 << 20), 1 << 10)],
    "pax records": [(claiming(b"x", 1 << 30), 1), (_NAMES, 1 << 10), (a_member(), 1)],
    "global headers": [(extended(b"g", a_record(b"comment", b"c")), 100_000), (a_member(), 1)],
    "global records": [
        (extended(b"g", b"".join(a_record(b"%d" % n, b"") for n in range(1, 2000))), 1),
        (a_member(), 1),
    ],
    "long names in a row": [(extended(tarfile.GNUTYPE_LONGNAME, b"n" * 500 + b"\0"), 100_000), (a_member(), 1)],
    "sparse map in headers": [(old_sparse(), 1), ((b"%011o\0" % 1 * 42).ljust(504, b"\0") + b"\1" + bytes(7), 500_000)],
    "sparse map in the content": [
        (a_member("file", records=_SPARSE, size=1 << 30) + b"99999999\n0\n1" + b"\n1" * 250, 1),
        (b"1\n" * (1 << 19), 100),
    ],
    "size beyond all files": [(a_member(size=2**70), 1)],
    "size beyond all files in a pax header": [(a_member(records=a_record(b"size", b"9" * 18)), 1)],
}


LISTED = """
import asyncio, resource, sys
from snapstore import SnapStore, SnapstoreError

base, snapshot_id, restores = sys.argv[1:]

async def main():
    async with SnapStore.open(base + "/store", index=base + "/index.db") as store:
        try:
            print([member.path async for member in store.members(snapshot_id)])
            if restores:
                await store.restore(snapshot_id, base + "/out")
        except SnapstoreError as error:
            print(type(error).__name__)

resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))
asyncio.run(main())
"""


@pytest.mark.parametrize("kind", BOMBS)
async def test_a_small_archive_that_claims_much_takes_neither_all_memory_nor_all_time(
    store: SnapStore, tmp_path: Path, kind: str
) -> None:
    archive = compressed(*BOMBS[kind], (bytes(1024), 1))
    assert len(archive) < 1 << 20
    made = await put_foreign(store, tmp_path, archive)
    restores = "" if kind == "zeros" else "restores"
    command = [sys.executable, "-c", LISTED, str(tmp_path), made, restores]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("ArchiveDamaged\n" if restores else "['header']\n")
    assert not (tmp_path / "out").exists() or restores
    assert not list(tmp_path.glob(".snapstore-*"))
