"""Sizes that matter: a file beyond 8 GiB, a tree of 20,000 files, and what one file of it costs to read."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapstore import SnapStore
from snapstore.archive import toc
from snapstore.objectstore import ObjectStore
from tests import trees
from tests.places import wrapped
from tests.trees import FRAME, describe, differences

GIB = 1 << 30
FILES = 20_000


def extents(path: Path) -> Iterator[tuple[int, bytes]]:
    """A sparse file's data, without reading its holes."""
    with open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        position = 0
        while position < end:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:  # nothing but a hole from here on
                return
            stop = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            yield position, os.pread(file.fileno(), stop - position, position)
            position = stop


async def test_a_file_beyond_8_gib_is_kept_with_its_holes(store: SnapStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    size = 8 * GIB + 5 * FRAME + 777
    with open(source / "huge", "wb") as file:
        for position in (0, 3 * FRAME - 4096, 5 * GIB, 8 * GIB, size - 777):
            os.pwrite(file.fileno(), trees.noise(777, position), position)
        file.truncate(size)
    os.utime(source / "huge", ns=(0, 1_600_000_000_000_000_000))
    if (source / "huge").stat().st_blocks * 512 > 1 << 20:
        pytest.skip("needs a file system that keeps holes")

    snapshot = await store.create("app", source)
    assert snapshot.content_size == size
    assert snapshot.size is not None
    assert snapshot.size < 1 << 20
    assert snapshot.key is not None

    await store.restore(snapshot.id, tmp_path / "out")
    found = (tmp_path / "out" / "huge").stat()
    assert (found.st_size, found.st_mtime_ns) == (size, 1_600_000_000_000_000_000)
    assert found.st_blocks * 512 < 1 << 20
    assert list(extents(tmp_path / "out" / "huge")) == list(extents(source / "huge"))

    some = [piece async for piece in store.read(snapshot.id, "huge", start=8 * GIB - 10, size=20)]
    assert b"".join(some) == bytes(10) + trees.noise(777, 8 * GIB)[:10]

    if not (shutil.which("tar") and shutil.which("zstd")):
        pytest.skip("all but the listing was checked: that needs tar and zstd (packages of these names)")
    archive = tmp_path / "store" / snapshot.key
    listing = subprocess.run(["tar", "--zstd", "-tvf", archive], check=True, capture_output=True, text=True).stdout
    assert [line.split()[2] for line in listing.splitlines()] == [str(size), "0"]


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an application's folder is like: many small files, some folders deep, all of them different."""
    root = tmp_path_factory.mktemp("many") / "source"
    line = trees.noise(16 << 10)
    for number in range(FILES):
        if number % 100 == 0:
            folder = root / f"package-{number // 2000}" / f"module-{number // 500}" / f"part-{number // 100}"
            folder.mkdir(parents=True)
            os.symlink("file-0", folder / "link")
        with open(folder / f"file-{number}.txt", "xb", buffering=0) as file:
            file.write(b"%d " % number + line[: number * 37 % 5000])
    os.link(folder / f"file-{FILES - 1}.txt", root / "linked")
    return root


async def test_twenty_thousand_files_come_back(store: SnapStore, many_files: Path, tmp_path: Path) -> None:
    snapshot = await store.create("app", many_files)
    report = await store.restore(snapshot.id, tmp_path / "out")
    assert report.members == snapshot.entries > FILES
    assert differences(describe(many_files), describe(tmp_path / "out")) == {}
    if diff := shutil.which("diff"):
        command = [diff, "-r", "--no-dereference", os.fspath(many_files), os.fspath(tmp_path / "out")]
        assert subprocess.run(command, check=False, capture_output=True).stdout == b""


class Counting:
    """An object store that counts what is asked of it, and how many bytes it gave."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.calls: Counter[str] = Counter()
        self.ranges: list[tuple[int, int | None]] = []

    def __getattr__(self, name: str) -> object:
        found = getattr(self._store, name)
        if callable(found):
            self.calls[name] += 1
        return found

    async def get(self, key: str, *, start: int = 0, size: int | None = None, if_match: str | None = None) -> object:
        self.calls["get"] += 1
        self.ranges.append((start, size))
        return await self._store.get(key, start=start, size=size, if_match=if_match)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Counting]:
    """The object stores that were opened during a test."""
    return wrapped(monkeypatch, Counting)


async def test_one_file_of_many_costs_two_requests(opened: list[Counting], many_files: Path, tmp_path: Path) -> None:
    """One for the table of contents, one for the frame that holds the file, and no byte beyond these."""
    wanted = f"package-5/module-20/part-100/file-{FILES // 2}.txt"
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        snapshot = await store.create("app", many_files)
        assert snapshot.key is not None
        assert snapshot.toc is not None
        assert snapshot.root is not None
        (counting,) = opened
        counting.calls.clear()
        counting.ranges.clear()
        content = b"".join([piece async for piece in store.read(snapshot.id, wanted)])
    assert content == (many_files / wanted).read_bytes()

    archive = (tmp_path / "store" / snapshot.key).read_bytes()
    contents = toc.parse(archive[snapshot.toc.offset :][: snapshot.toc.size], snapshot.root)
    assert len(contents.frames) > 10
    (frame,) = (frame for frame in contents.frames if wanted in {member.path for member in frame.members})
    assert counting.ranges == [(snapshot.toc.offset, snapshot.toc.size), (frame.entry.offset, frame.entry.size)]
    counting.calls.pop("aclose", None)
    assert counting.calls == {"get": 2}


async def test_a_listing_of_members_costs_one_request(opened: list[Counting], many_files: Path, tmp_path: Path) -> None:
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        snapshot = await store.create("app", many_files)
        assert snapshot.toc is not None
        (counting,) = opened
        counting.calls.clear()
        counting.ranges.clear()
        listed = [member.path async for member in store.members(snapshot.id)]
        assert counting.calls == {"get": 1}
    assert counting.ranges == [(snapshot.toc.offset, snapshot.toc.size)]
    assert len(listed) == len(set(listed)) == snapshot.entries


async def test_a_listing_of_snapshots_costs_none(opened: list[Counting], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        made = [(await store.create("app", tmp_path / "source", labels=["n:1"])).id for _ in range(3)]
        (counting,) = opened
        counting.calls.clear()
        assert {found.id async for found in store.list(labels=["n:1"])} == set(made)
        assert counting.calls == {}
