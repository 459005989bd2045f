"""A folder as a store: the whole contract, and what only a folder can get wrong (paths, disks, other processes)."""

import asyncio
import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, TypeVar

import pytest

from snapstore.errors import InvalidInput, NotAStore, ObjectNotFound, PreconditionFailed, StorageError, StorageFull
from snapstore.objectstore import ObjectInfo, ObjectStore
from snapstore.storage.local import LocalStore
from tests.storage_contract import StorageContract, drained, keys_of, letters, numbered, whole

T = TypeVar("T")

PROCESSES = 4
DAY = 24 * 3600


@contextlib.asynccontextmanager
async def opened(root: Path) -> AsyncIterator[LocalStore]:
    store = LocalStore(root)
    try:
        await store.open()
        yield store
    finally:
        await store.aclose()


async def open_and_close(root: Path) -> None:
    async with opened(root):
        pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def bucket(root: Path) -> AsyncIterator[LocalStore]:
    async with opened(root) as store:
        yield store


class TestLocalStore(StorageContract):
    part_size = 10_000


def temporaries(root: Path) -> list[str]:
    return os.listdir(root / ".snapstore" / "tmp")


def files_below(root: Path) -> list[Path]:
    """The files of objects, not the store's own."""
    return [path for path in root.rglob("*") if path.is_file() and ".snapstore" not in path.parts]


# -- its folder ----------------------------------------------------------------------------------------------------


async def test_an_object_is_a_file_of_its_name(root: Path, bucket: LocalStore) -> None:
    await bucket.put("apps/blog/1.tar.zst", b"plain")
    assert (root / "apps/blog/1.tar.zst").read_bytes() == b"plain"
    assert files_below(root) == [root / "apps/blog/1.tar.zst"]


async def test_its_url_is_the_same_however_its_folder_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    monkeypatch.chdir(root)
    assert LocalStore(".").url == LocalStore(str(root)).url == LocalStore(root / "x" / "..").url == root.as_uri()


async def test_a_later_change_of_directory_does_not_move_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    async with opened(Path("store")) as store:
        monkeypatch.chdir("/")
        await store.put("a", b"x")
    assert (root / "a").read_bytes() == b"x"


async def test_it_makes_a_missing_folder(tmp_path: Path) -> None:
    async with opened(tmp_path / "deep" / "er") as store:
        await store.put("a", b"")
        assert await keys_of(store) == ["a"]


async def test_it_adopts_an_empty_folder(root: Path) -> None:
    root.mkdir()
    async with opened(root) as store:
        assert await keys_of(store) == []


async def test_it_adopts_a_copied_bucket(root: Path) -> None:
    (root / "_metadata/blog").mkdir(parents=True)
    (root / "blog").mkdir()
    (root / "_metadata/blog/1.json").write_bytes(b"{}")
    (root / "blog/1.tar.zst").write_bytes(b"archive")
    async with opened(root) as store:
        assert await keys_of(store) == ["_metadata/blog/1.json", "blog/1.tar.zst"]
        assert await whole(store, "blog/1.tar.zst") == b"archive"


async def test_it_refuses_a_folder_with_other_files(root: Path) -> None:
    root.mkdir()
    (root / "letter.txt").write_text("mine")
    with pytest.raises(NotAStore, match=r"letter\.txt"):
        await open_and_close(root)
    assert os.listdir(root) == ["letter.txt"]


async def test_it_refuses_a_file(root: Path) -> None:
    root.write_text("mine")
    with pytest.raises(NotAStore):
        await open_and_close(root)
    assert root.read_text() == "mine"


async def test_it_opens_again_with_what_it_held(root: Path) -> None:
    async with opened(root) as store:
        written = await store.put("a", b"kept")
    async with opened(root) as store:
        assert await store.get("a", if_match=written.etag) == await store.get("a")


async def test_it_opens_a_folder_that_another_process_is_just_making_a_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir()
    listdir = os.listdir

    def listed_after_the_other(path: Any) -> list[str]:
        (root / ".snapstore").mkdir(exist_ok=True)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", listed_after_the_other)
    async with opened(root) as store:
        monkeypatch.undo()
        await store.put("a", b"")


async def test_closing_ends_its_threads(root: Path) -> None:
    before = set(threading.enumerate())
    async with opened(root) as store:
        await asyncio.gather(*(store.put(f"a{number}", b"") for number in range(20)))
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) - before == set()


# -- nothing outside of it -----------------------------------------------------------------------------------------

OUTSIDE = ["../secret", "a/../../secret", "{outside}", ".snapstore", ".snapstore/lock", ".snapstore/tmp/x"]


@pytest.mark.parametrize("key", OUTSIDE)
async def test_no_key_leads_out_of_its_folder_or_into_its_own(root: Path, bucket: LocalStore, key: str) -> None:
    outside = root.parent / "secret"
    outside.write_bytes(b"secret")
    key = key.format(outside=outside)
    await bucket.put("source", b"source")
    upload_id = await bucket.create_upload("good")
    part = await bucket.upload_part("good", upload_id, 1, [b"x"])
    await refuses_everywhere(bucket, key, upload_id, part)
    assert outside.read_bytes() == b"secret"
    assert sorted(os.listdir(root.parent)) == ["secret", "store"]


async def refuses_everywhere(bucket: ObjectStore, key: str, upload_id: str, part: Any) -> None:
    for attempt in (
        bucket.put(key, b"x"),
        bucket.get(key),
        bucket.head(key),
        drained(bucket.stream(key)),
        bucket.delete(key),
        bucket.delete_many([key]),
        bucket.create_upload(key),
        bucket.copy_part("good", upload_id, 2, key, 0, 1, if_match="x"),
        bucket.complete_upload(key, upload_id, [part]),
        bucket.download_url(key, expires=timedelta(hours=1), filename="x"),
    ):
        with pytest.raises(InvalidInput):
            await attempt


@pytest.mark.parametrize(
    "prefix", ["../", "../sec", "{outside}/", "a/../../", ".snapstore/", ".snapstore/tmp/", ".snap"]
)
async def test_no_prefix_lists_what_is_outside_or_its_own(root: Path, bucket: LocalStore, prefix: str) -> None:
    outside = root.parent / "secret"
    outside.mkdir()
    (outside / "file").touch()
    await bucket.put("a/b", b"")
    assert await keys_of(bucket, prefix.format(outside=outside)) == []


@pytest.mark.parametrize("upload_id", ["", ".", "..", "../../secret", "/etc", "nul\0"])
async def test_an_id_that_is_no_uploads_reaches_nothing(root: Path, bucket: LocalStore, upload_id: str) -> None:
    (root.parent / "secret").mkdir()
    begun = await bucket.create_upload("a")
    part = await bucket.upload_part("a", begun, 1, [b"x"])
    with pytest.raises(StorageError):
        await bucket.upload_part("a", upload_id, 1, [b"x"])
    with pytest.raises(StorageError):
        await bucket.complete_upload("a", upload_id, [part])
    with contextlib.suppress(StorageError):
        await bucket.abort_upload("a", upload_id)
    assert sorted(os.listdir(root.parent)) == ["secret", "store"]
    await bucket.complete_upload("a", begun, [part])


@pytest.mark.parametrize("upload_id", ["neverwas", "never-was", "never.was_one"])
async def test_aborting_an_upload_that_never_was_is_no_error(bucket: LocalStore, upload_id: str) -> None:
    await bucket.abort_upload("a", upload_id)


async def test_what_is_no_object_of_its_own_is_not_listed(root: Path, bucket: LocalStore) -> None:
    (root.parent / "secret").write_bytes(b"secret")
    await bucket.put("a", b"")
    (root / "link").symlink_to(root.parent / "secret")
    os.mkfifo(root / "pipe")
    os.close(os.open(os.fsencode(root) + b"/\xff", os.O_CREAT, 0o600))
    (root / "line\nbreak").touch()
    assert await keys_of(bucket) == ["a"]


async def test_a_link_is_not_an_object(root: Path, bucket: LocalStore) -> None:
    (root.parent / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(root.parent / "secret")
    for attempt in (bucket.get, bucket.head):
        with pytest.raises(ObjectNotFound):
            await attempt("link")
    await bucket.put("link", b"object")
    assert (root.parent / "secret").read_bytes() == b"secret"
    assert await whole(bucket, "link") == b"object"


async def test_a_key_and_a_key_below_it_cannot_both_exist(root: Path, bucket: LocalStore) -> None:
    await bucket.put("file", b"old")
    await bucket.put("folder/below", b"old")
    for key in ("folder", "file/below", "file/far/below"):
        with pytest.raises(StorageError):
            await bucket.put(key, b"new")
    assert await keys_of(bucket) == ["file", "folder/below"]
    assert temporaries(root) == []


async def test_everything_it_makes_is_private(root: Path, bucket: LocalStore) -> None:
    await bucket.put("a/b/c", b"")
    upload_id = await bucket.create_upload("a/d")
    parts = [await bucket.upload_part("a/d", upload_id, number, [b"x"]) for number in (2, 1)]
    open_to_others = {str(path) for path in [root, *root.rglob("*")] if path.stat().st_mode & 0o077}
    await bucket.complete_upload("a/d", upload_id, parts)
    open_to_others |= {str(path) for path in root.rglob("*") if path.stat().st_mode & 0o077}
    assert open_to_others == set()


# -- durability ----------------------------------------------------------------------------------------------------


class Steps:
    """What was synced, renamed and removed, in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[tuple[str, str]] = []
        self._fsync, self._rename, self._unlink = os.fsync, os.rename, os.unlink
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "rename", self.rename)
        monkeypatch.setattr(os, "unlink", self.unlink)

    def fsync(self, fd: int) -> None:
        self._fsync(fd)
        self.taken.append(("synced", os.readlink(f"/proc/self/fd/{fd}")))

    def rename(self, source: str, target: str) -> None:
        self._rename(source, target)
        self.taken += [("left", source), ("appeared", target)]

    def unlink(self, path: str, **options: Any) -> None:
        self._unlink(path, **options)
        self.taken.append(("removed", path))

    def index(self, what: str, path: Path | str) -> int:
        return self.taken.index((what, str(path)))

    def assert_durable(self, path: Path) -> None:
        """The file was synced before it got its name, and the folder that holds the name was synced after."""
        appeared = self.index("appeared", path)
        source = self.taken[appeared - 1][1]
        assert ("synced", source) in self.taken[:appeared]
        assert ("synced", str(path.parent)) in self.taken[appeared:]


async def test_a_put_is_synced_before_it_appears_and_its_folder_after(
    root: Path, bucket: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("top", "a/b/c", "a/b/c"):
        steps = Steps(monkeypatch)
        await bucket.put(key, b"x")
        monkeypatch.undo()
        steps.assert_durable(root / key)


@pytest.mark.parametrize("numbers", [(1, 2), (2, 1)], ids=["in order", "out of order"])
async def test_an_upload_is_synced_before_it_appears_and_its_folder_after(
    root: Path, bucket: LocalStore, monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, ...]
) -> None:
    upload_id = await bucket.create_upload("a/b")
    parts = [await bucket.upload_part("a/b", upload_id, number, [b"x"]) for number in numbers]
    steps = Steps(monkeypatch)
    await bucket.complete_upload("a/b", upload_id, parts)
    steps.assert_durable(root / "a/b")


async def test_new_folders_are_synced_into_their_parents(
    root: Path, bucket: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    await bucket.put("a/b/c/d", b"x")
    synced = {path for what, path in steps.taken if what == "synced"}
    assert {str(root), str(root / "a"), str(root / "a/b"), str(root / "a/b/c")} <= synced


async def test_a_new_store_is_synced_into_its_parent(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    async with opened(root) as store:
        await store.put("a", b"x")
    assert ("synced", str(root.parent)) in steps.taken


async def test_a_deletion_is_synced(root: Path, bucket: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await bucket.put("a/b", b"x")
    steps = Steps(monkeypatch)
    await bucket.delete("a/b")
    assert ("synced", str(root / "a")) in steps.taken[steps.index("removed", root / "a/b") :]


async def test_parts_that_came_in_order_become_the_object_without_a_copy(
    root: Path, bucket: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[tuple[object, ...]] = []

    def copy(*range_: object) -> int:
        copies.append(range_)
        return 0

    monkeypatch.setattr(os, "copy_file_range", copy)
    bodies = [numbered(10_000, seed) for seed in range(4)]
    upload_id = await bucket.create_upload("a")
    parts = [
        await bucket.upload_part("a", upload_id, number, [body[:10], body[10:]])
        for number, body in enumerate(bodies, 1)
    ]
    [log] = [path for path in (root / ".snapstore/uploads" / upload_id).iterdir() if path.name.startswith("parts")]
    inode = log.stat().st_ino
    await bucket.complete_upload("a", upload_id, parts)
    assert (root / "a").read_bytes() == b"".join(bodies)
    assert (root / "a").stat().st_ino == inode
    assert copies == []


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS])
async def test_copies_work_where_the_kernel_cannot_copy(
    bucket: LocalStore, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    content = numbered(3_000_000)
    etag = (await bucket.put("source", content)).etag
    upload_id = await bucket.create_upload("a")
    second = await bucket.upload_part("a", upload_id, 2, [b"last"])
    first = await bucket.copy_part("a", upload_id, 1, "source", 5, 2_900_000, if_match=etag)
    await bucket.complete_upload("a", upload_id, [first, second])
    assert await whole(bucket, "a") == content[5:2_900_005] + b"last"


async def test_an_upload_leaves_nothing_of_its_own(root: Path, bucket: LocalStore) -> None:
    for end in (bucket.complete_upload, lambda key, upload_id, _: bucket.abort_upload(key, upload_id)):
        upload_id = await bucket.create_upload("a")
        parts = [await bucket.upload_part("a", upload_id, number, [b"x"]) for number in (3, 1, 2)]
        await end("a", upload_id, parts)
    assert os.listdir(root / ".snapstore/uploads") == []
    assert temporaries(root) == []


# -- faults --------------------------------------------------------------------------------------------------------


def failing(reason: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(reason, os.strerror(reason))

    return fail


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "rename", "utime"])
async def test_a_put_that_finds_no_space_leaves_the_old_object_and_nothing_else(
    root: Path, bucket: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str, reason: int
) -> None:
    old = await bucket.put("a", b"old")
    monkeypatch.setattr(os, call, failing(reason))
    for key in ("a", "b"):
        with pytest.raises(StorageFull) as caught:
            await bucket.put(key, b"new")
        assert caught.value.key == key
        assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert await bucket.head("a") == old
    assert await keys_of(bucket) == ["a"]
    assert temporaries(root) == []


async def test_a_put_that_fails_is_a_storage_error_and_leaves_nothing(
    root: Path, bucket: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(StorageError) as caught:
        await bucket.put("a", b"new")
    assert not isinstance(caught.value, StorageFull)
    monkeypatch.undo()
    assert await keys_of(bucket) == []
    assert temporaries(root) == []


async def test_delete_many_tries_all_before_it_fails(bucket: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in "abcd":
        await bucket.put(key, b"")
    unlink = os.unlink

    def refuse_two(path: str) -> None:
        if path.endswith(("a", "c")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse_two)
    with pytest.raises(StorageError):
        await bucket.delete_many("abcd")
    monkeypatch.undo()
    assert await keys_of(bucket) == ["a", "c"]


async def test_a_refused_condition_leaves_nothing(root: Path, bucket: LocalStore) -> None:
    await bucket.put("a", b"old")
    for attempt in (bucket.put("a", b"new", if_none_match=True), bucket.put("a", b"new", if_match='"x"')):
        with pytest.raises(PreconditionFailed):
            await attempt
    assert temporaries(root) == []


async def test_a_part_that_finds_no_space_can_be_sent_again(
    bucket: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = await bucket.create_upload("a")
    first = await bucket.upload_part("a", upload_id, 1, [b"first "])
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
    with pytest.raises(StorageFull) as caught:
        await bucket.upload_part("a", upload_id, 2, [b"second "])
    assert caught.value.key == "a"
    monkeypatch.undo()
    second = await bucket.upload_part("a", upload_id, 2, [b"second "])
    third = await bucket.upload_part("a", upload_id, 3, [b"third"])
    await bucket.complete_upload("a", upload_id, [first, second, third])
    assert await whole(bucket, "a") == b"first second third"


async def test_a_short_write_is_carried_on(bucket: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, body, position: pwrite(fd, body[:700], position))
    upload_id = await bucket.create_upload("a")
    part = await bucket.upload_part("a", upload_id, 1, [numbered(5000), numbered(300)])
    await bucket.complete_upload("a", upload_id, [part])
    assert await whole(bucket, "a") == numbered(5000) + numbered(300)


async def test_an_upload_that_finds_no_space_to_begin_leaves_nothing(
    root: Path, bucket: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "rename", failing(errno.ENOSPC))
    with pytest.raises(StorageFull):
        await bucket.create_upload("a")
    monkeypatch.undo()
    assert temporaries(root) == []
    assert os.listdir(root / ".snapstore/uploads") == []


@pytest.mark.parametrize("numbers", [(1, 2, 3), (3, 2, 1)], ids=["in order", "out of order"])
@pytest.mark.parametrize("call", ["fsync", "rename", "copy_file_range"])
async def test_a_completion_that_finds_no_space_can_be_repeated_or_aborted(
    root: Path, bucket: LocalStore, monkeypatch: pytest.MonkeyPatch, call: str, numbers: tuple[int, ...]
) -> None:
    if call == "copy_file_range" and numbers == (1, 2, 3):
        pytest.skip("parts in order are not copied")
    await bucket.put("a", b"old")
    for end in ("repeated", "aborted"):
        upload_id = await bucket.create_upload("a")
        parts = [await bucket.upload_part("a", upload_id, number, [b"part%d" % number]) for number in numbers]
        monkeypatch.setattr(os, call, failing(errno.ENOSPC))
        with pytest.raises(StorageFull):
            await bucket.complete_upload("a", upload_id, parts)
        monkeypatch.undo()
        assert await whole(bucket, "a") == b"old"
        if end == "repeated":
            await bucket.complete_upload("a", upload_id, parts)
            assert await whole(bucket, "a") == b"part1part2part3"
            await bucket.put("a", b"old")
        else:
            await bucket.abort_upload("a", upload_id)
    assert os.listdir(root / ".snapstore/uploads") == []
    assert temporaries(root) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no mount command to make a small disk with")
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


async def test_a_full_disk_leaves_what_was_there(small_disk: Path) -> None:
    root = small_disk / "store"
    async with opened(root) as store:
        old = await store.put("old", letters("o", 500_000))
        for key in ("old", "new"):
            with pytest.raises(StorageFull):
                await store.put(key, numbered(4 << 20))
        upload_id = await store.create_upload("old")
        await store.upload_part("old", upload_id, 1, [numbered(500_000)])
        with pytest.raises(StorageFull):
            await store.upload_part("old", upload_id, 2, [numbered(400_000)] * 10)
        await store.abort_upload("old", upload_id)
        assert await store.head("old") == old
        assert await keys_of(store) == ["old"]
        assert temporaries(root) == []
        await store.put("next", letters("n", 500_000))


async def test_on_a_full_disk_objects_can_be_read_listed_and_deleted(small_disk: Path) -> None:
    async with opened(small_disk / "store") as store:
        await store.put("a", letters("a", 500_000))
        with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        with pytest.raises(StorageFull):
            await store.put("b", b"x" * 4096)
        assert await whole(store, "a") == letters("a", 500_000)
        assert await keys_of(store) == ["a"]
        await store.delete("a")
        await store.put("b", b"x" * 4096)


# -- a store whose folder vanishes ---------------------------------------------------------------------------------

VANISHED: dict[str, Callable[[LocalStore], Awaitable[object]]] = {
    "put": lambda store: store.put("a", b"x"),
    "put in a folder": lambda store: store.put("new/a", b"x"),
    "get": lambda store: store.get("a"),
    "head": lambda store: store.head("a"),
    "stream": lambda store: drained(store.stream("a")),
    "list": lambda store: keys_of(store),
    "list a folder": lambda store: keys_of(store, "folder/"),
    "delete": lambda store: store.delete("a"),
    "delete_many": lambda store: store.delete_many(["a", "b"]),
    "create_upload": lambda store: store.create_upload("a"),
    "list_uploads": lambda store: drained_uploads(store),
}


async def drained_uploads(store: LocalStore) -> list[object]:
    return [upload async for page in store.list_uploads() for upload in page]


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
@pytest.mark.parametrize("call", VANISHED)
async def test_a_folder_that_vanished_is_told_and_not_made_again(
    root: Path, bucket: LocalStore, call: str, left: str
) -> None:
    await bucket.put("a", b"x")
    await bucket.put("folder/b", b"x")
    shutil.rmtree(root)
    if left == "an empty folder":
        root.mkdir()  # what unmounting a disk leaves
    with pytest.raises(StorageError, match="gone") as caught:
        await VANISHED[call](bucket)
    assert str(root) in str(caught.value)
    assert not root.exists() or os.listdir(root) == []


async def test_parts_of_an_upload_whose_folder_vanished_fail(root: Path, bucket: LocalStore) -> None:
    upload_id = await bucket.create_upload("a")
    part = await bucket.upload_part("a", upload_id, 1, [b"x"])
    shutil.rmtree(root)
    with pytest.raises(StorageError):
        await bucket.upload_part("a", upload_id, 2, [b"x"])
    with pytest.raises(StorageError):
        await bucket.complete_upload("a", upload_id, [part])
    assert not root.exists()


# -- leftovers of a crash ------------------------------------------------------------------------------------------


async def test_stale_temporaries_are_removed_when_it_opens(root: Path) -> None:
    await open_and_close(root)
    tmp = root / ".snapstore/tmp"
    (tmp / "stale").write_bytes(b"x")
    (tmp / "stale-upload").mkdir()
    (tmp / "stale-upload/key").write_text("a")
    (tmp / "fresh").write_bytes(b"x")
    for name in ("stale", "stale-upload"):
        os.utime(tmp / name, (time.time() - 2 * DAY,) * 2)
    async with opened(root) as store:
        assert temporaries(root) == ["fresh"]
        assert await keys_of(store) == []


KILLED_WHILE_UPLOADING = """
import asyncio, sys
from snapstore.storage.local import LocalStore

async def upload(root):
    store = LocalStore(root)
    await store.open()
    upload_id = await store.create_upload("a/b")
    await store.upload_part("a/b", upload_id, 1, [b"half"])
    print(upload_id, flush=True)
    await asyncio.Event().wait()

asyncio.run(upload(sys.argv[1]))
"""


async def test_the_upload_of_a_killed_process_can_be_aborted_by_another(root: Path, bucket: LocalStore) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED_WHILE_UPLOADING, root], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        upload_id = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
        process.send_signal(signal.SIGKILL)
    assert await keys_of(bucket) == []
    [found] = [upload async for page in bucket.list_uploads() for upload in page]
    assert (found.key, found.upload_id) == ("a/b", upload_id)
    assert abs(found.started - time.time()) < 60
    await bucket.abort_upload(found.key, found.upload_id)
    assert await drained_uploads(bucket) == []
    assert os.listdir(root / ".snapstore/uploads") == []


KILLED_WHILE_PUTTING = """
import asyncio, os, sys
from snapstore.storage.local import LocalStore

async def put(root, call):
    store = LocalStore(root)
    await store.open()
    setattr(os, call, lambda *_, **__: os._exit(9))
    await store.put("a", b"new")

asyncio.run(put(*sys.argv[1:]))
"""


@pytest.mark.parametrize("call", ["utime", "fsync", "rename"])
async def test_a_process_killed_while_it_puts_leaves_the_old_object(root: Path, bucket: LocalStore, call: str) -> None:
    old = await bucket.put("a", b"old")
    command = [sys.executable, "-c", KILLED_WHILE_PUTTING, str(root), call]
    ended = await asyncio.to_thread(lambda: subprocess.run(command, check=False))
    assert ended.returncode == 9
    assert await bucket.head("a") == old
    assert await keys_of(bucket) == ["a"]
    await bucket.put("a", b"the lock is free")


async def test_parts_may_come_from_several_processes(root: Path, bucket: LocalStore) -> None:
    upload_id = await bucket.create_upload("a")
    first = await bucket.upload_part("a", upload_id, 1, [b"one "])
    async with opened(root) as other:
        second = await other.upload_part("a", upload_id, 2, [b"two "])
        third = await bucket.upload_part("a", upload_id, 3, [b"three"])
        await other.complete_upload("a", upload_id, [first, second, third])
    assert await whole(bucket, "a") == b"one two three"


async def test_an_upload_completed_twice_at_once_makes_one_whole_object(root: Path, bucket: LocalStore) -> None:
    async with opened(root) as other:
        for numbers in [(1, 2), (2, 1)] * 10:
            upload_id = await bucket.create_upload("a")
            bodies = {number: numbered(100_000, number) for number in numbers}
            parts = [await bucket.upload_part("a", upload_id, number, [bodies[number]]) for number in numbers]
            results = await asyncio.gather(
                *(store.complete_upload("a", upload_id, parts) for store in (bucket, other)), return_exceptions=True
            )
            errors = [result for result in results if not isinstance(result, ObjectInfo)]
            assert all(isinstance(error, StorageError) for error in errors), errors
            body = await bucket.get("a")
            assert body.content == bodies[1] + bodies[2]
            assert body.etag in [result.etag for result in results if isinstance(result, ObjectInfo)]


# -- several processes ---------------------------------------------------------------------------------------------

together: Barrier


def be_ready(barrier: Barrier) -> None:
    global together
    together = barrier


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Others that begin each job at the same instant."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES, timeout=30)
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=be_ready, initargs=(barrier,)) as pool:
        yield pool


async def each(processes: ProcessPoolExecutor, job: Callable[..., T], *args: object) -> list[T]:
    """What ``job(number, *args)`` returned in each process."""
    loop = asyncio.get_running_loop()
    return await asyncio.gather(*(loop.run_in_executor(processes, job, number, *args) for number in range(PROCESSES)))


def use(root: Path, job: Callable[[LocalStore], Awaitable[T]]) -> T:
    async def run() -> T:
        async with opened(root) as store:
            together.wait()
            return await job(store)

    return asyncio.run(run())


def create_all(number: int, root: Path, keys: list[str]) -> list[str]:
    async def job(store: LocalStore) -> list[str]:
        won = []
        for key in keys:
            with contextlib.suppress(PreconditionFailed):
                await store.put(key, b"%d" % number, if_none_match=True)
                won.append(key)
        return won

    return use(root, job)


async def test_one_of_many_processes_creates_each_object(root: Path, processes: ProcessPoolExecutor) -> None:
    keys = [f"new/{number}/object" for number in range(50)]
    won = await each(processes, create_all, root, keys)
    assert sorted(key for mine in won for key in mine) == sorted(keys)
    async with opened(root) as store:
        for number, mine in enumerate(won):
            for key in mine:
                assert await whole(store, key) == b"%d" % number
    assert temporaries(root) == []


def count_up(_: int, root: Path, times: int) -> None:
    async def job(store: LocalStore) -> None:
        counted = 0
        while counted < times:
            body = await store.get("counter")
            with contextlib.suppress(PreconditionFailed):
                await store.put("counter", b"%d" % (int(body.content) + 1), if_match=body.etag)
                counted += 1

    use(root, job)


async def test_no_change_of_many_processes_is_lost(
    root: Path, bucket: LocalStore, processes: ProcessPoolExecutor
) -> None:
    await bucket.put("counter", b"0")
    await each(processes, count_up, root, 25)
    assert await whole(bucket, "counter") == b"%d" % (25 * PROCESSES)


def write_and_read(number: int, root: Path) -> list[bytes]:
    """Bodies that were not whole."""

    async def job(store: LocalStore) -> list[bytes]:
        torn = []
        content = letters("abcd"[number], 100_000 + number)
        for turn in range(25):
            if turn % 2:
                await store.put("a/b", content)
            else:
                upload_id = await store.create_upload("a/b")
                order = (1, 2) if turn % 4 else (2, 1)
                halves = {1: content[:50_000], 2: content[50_000:]}
                parts = [await store.upload_part("a/b", upload_id, part, [halves[part]]) for part in order]
                await store.complete_upload("a/b", upload_id, parts)
            read = await whole(store, "a/b")
            if read not in [letters(letter, 100_000 + size) for size, letter in enumerate("abcd")]:
                torn.append(read)
        return torn

    return use(root, job)


async def test_processes_that_write_one_key_leave_whole_bodies(root: Path, processes: ProcessPoolExecutor) -> None:
    assert await each(processes, write_and_read, root) == [[]] * PROCESSES
    async with opened(root) as store:
        [found] = [found async for page in store.list() for found in page]
        assert found.etag == (await store.get("a/b")).etag
        assert await drained_uploads(store) == []


def open_new(_: int, folder: Path, names: list[str]) -> int:
    async def run() -> int:
        failures = 0
        for name in names:
            together.wait()
            try:
                async with opened(folder / name) as store:
                    await store.put("a", b"")
            except StorageError:
                failures += 1
        return failures

    return asyncio.run(run())


async def test_many_processes_may_open_a_new_store_at_once(tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    names = [f"store-{number}" for number in range(25)]
    assert await each(processes, open_new, tmp_path, names) == [0] * PROCESSES
