"""The walk: in the archive's order however far it is ahead, and what a create does with one that goes on meanwhile."""

import asyncio
import errno
import os
import random
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from snapstore import Limits, Progress, SnapStore, SourceUnreadable
from snapstore.archive import walk
from snapstore.archive.exclude import Excludes
from snapstore.archive.frames import FRAME
from snapstore.archive.pack import Buffers, Packer
from snapstore.archive.source import Source
from snapstore.archive.walk import Walk
from snapstore.engine import parts, pipeline, writer
from tests.trees import describe, differences

NAMES = ("a", "a-b", "a.b", "a0", "b", "A", "ä", "aa", "~", "z" * 60)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Names that compare otherwise as folders than as files, some files with two names, and one large one."""
    drawn = random.Random(1)
    root = tmp_path / "tree"
    folders = [root]
    root.mkdir()
    for depth in range(3):
        for folder in folders[-(4**depth) :]:
            for name in drawn.sample(NAMES, 4):
                (folder / name).mkdir()
                folders.append(folder / name)
    for folder in folders:
        for name in NAMES:
            if not (folder / name).exists():
                (folder / name).write_bytes(drawn.randbytes(drawn.randrange(3000)))
    for number, folder in enumerate(folders[::5]):
        os.link(folder / next(name for name in NAMES if (folder / name).is_file()), root / f"link {number}")
    (root / "a large one").write_bytes(b"x" * (FRAME + 1))
    return root


def test_files_come_by_path_and_those_whose_place_is_known_at_the_end_behind_them(tree: Path) -> None:
    files = []
    with Source(str(tree)) as source:
        walk = Walk(source, Excludes([]))
        while not walk.over:
            walk.step()
            while not walk.over and walk.files:
                files.append(walk.files.popleft().path)
        rest = [member.path for member in walk.files]
    found = {path.relative_to(tree).as_posix(): path.lstat() for path in tree.rglob("*") if path.is_file()}
    alone = [path for path, status in found.items() if status.st_nlink == 1 and status.st_size <= FRAME]
    linked = {
        status.st_ino: min(p for p, s in found.items() if s.st_ino == status.st_ino)
        for status in found.values()
        if status.st_nlink > 1
    }
    expected = [*sorted(alone), *sorted(linked.values()), "a large one"]
    assert files + rest == expected
    assert len(files) > 0.9 * len(alone)  # before it was over
    assert walk.found == len(list(tree.rglob("*"))) + 1
    assert walk.content_size == sum({s.st_ino: s.st_size for s in found.values()}.values())


@pytest.mark.parametrize("ahead", [0, 1, 7, 10_000])
def test_an_archive_is_the_same_however_far_the_walk_is_ahead(tree: Path, ahead: int) -> None:
    def packed(steps: int) -> list[tuple[bytes, list[Any]]]:
        with Source(str(tree)) as source:
            walk = Walk(source, Excludes([]))
            packer = Packer(source, walk, Buffers())
            made = []
            for frame in packer.frames():
                if frame is None:
                    continue
                made.append((bytes(frame.buffer[: frame.length]), list(frame.members)))
                for _ in range(steps):
                    walk.step()
            return made

    assert packed(ahead) == packed(3)


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SnapStore]:
    """Where nothing is walked over before it is packed, but what the first step finds."""
    monkeypatch.setattr(writer, "_MEMBERS_AHEAD", 2)
    monkeypatch.setattr(writer, "most_memory", lambda *_: 0)
    monkeypatch.setattr(walk, "_MOMENT", 0)
    async with SnapStore.open(tmp_path / "store", limits=Limits(threads=1)) as opened:
        yield opened


def kept(store: Path) -> list[str]:
    """What is in a folder store besides its own files: archives, metadata, unfinished uploads."""
    return [path.name for path in store.rglob("*") if path.is_file() and path.parent.name != ".snapstore"]


async def test_a_create_packs_while_it_walks(store: SnapStore, tree: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    made = await store.create("blog", tree, progress=told.append)
    await store.restore(made.id, tmp_path / "out")
    assert differences(describe(tree), describe(tmp_path / "out")) == {}
    packed = [(step.total_members, step.total_bytes) for step in told if step.phase == "pack"]
    assert packed[-1] == (made.entries, made.content_size)
    assert set(packed) <= {(0, 0), packed[-1]}


async def test_a_folder_that_cannot_be_listed_ends_a_create_that_has_begun_to_pack(
    store: SnapStore, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_folder = Walk._list

    def fail(self: Walk, folder: str) -> Any:
        if folder.startswith("~") or folder.count("/") == 2:
            raise SourceUnreadable(folder, os.strerror(errno.EIO))
        return list_folder(self, folder)

    monkeypatch.setattr(Walk, "_list", fail)
    with pytest.raises(SourceUnreadable):
        await store.create("blog", tree)
    assert kept(tmp_path / "store") == []


@pytest.mark.parametrize("members", range(1, 60, 7))
async def test_a_create_that_is_cancelled_while_it_walks_leaves_nothing(
    store: SnapStore, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: int
) -> None:
    step, loop = Walk.step, asyncio.get_running_loop()

    def cancel(self: Walk) -> None:
        if self.found > members:
            loop.call_soon_threadsafe(creating.cancel)
        step(self)

    monkeypatch.setattr(Walk, "step", cancel)
    creating = asyncio.create_task(store.create("blog", tree))
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert kept(tmp_path / "store") == []


async def test_a_create_that_finds_nothing_to_pack_can_be_cancelled(
    store: SnapStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders, links and large files fill no frame before the walk is over."""
    for number in range(300):
        (tmp_path / "app" / f"{number}" / "x").mkdir(parents=True)
    step, begun = Walk.step, threading.Event()

    def slow(self: Walk) -> None:
        time.sleep(0.01)
        if self.found > 20:
            begun.set()
        step(self)

    monkeypatch.setattr(Walk, "step", slow)
    creating = asyncio.create_task(store.create("blog", tmp_path / "app"))
    assert await asyncio.to_thread(begun.wait, 20)
    creating.cancel()
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert time.monotonic() - started < 2  # the whole walk takes six seconds


@pytest.mark.parametrize("why", ["equal parts", "many parts"])
async def test_the_walk_is_over_before_the_size_of_parts_has_to_be_known(
    store: SnapStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """As R2 wants all of them alike, and 10,000 must do: what is found late would else need larger ones at the end."""
    drawn, sizes = random.Random(2), []
    for number in range(200):
        folder = tmp_path / "app" / f"{number}"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(drawn.randbytes(200_000))
    bucket = store._store
    upload_part = bucket.upload_part

    async def watched(key: str, upload_id: str, number: int, body: Any) -> Any:
        sizes.append(sum(map(len, body)))
        return await upload_part(key, upload_id, number, body)

    monkeypatch.setattr(type(bucket), "part_size", property(lambda _: 1 << 20))
    monkeypatch.setattr(bucket, "upload_part", watched)
    monkeypatch.setattr(parts, "MAX_PARTS", 20)
    if why == "equal parts":
        monkeypatch.setattr(type(bucket), "equal_parts", property(lambda _: True))
    else:
        monkeypatch.setattr(pipeline, "KNOWN_BY", 2)
    made = await store.create("blog", tmp_path / "app")
    assert made.size is not None
    assert made.size > 38 << 20  # more than twenty parts of 1 MiB
    assert len(sizes) <= 20
    if why == "equal parts":
        assert {size >> 20 for size in sizes[:-1]} == {3}
    else:
        assert (sizes[0], sizes[-2]) == (1 << 20, 3 << 20)
    assert (tmp_path / "store" / (made.key or "")).stat().st_size == made.size
