"""Salvage: metadata that is lost is made again from the archives, and nothing else is.

The archives' tables of contents say what the metadata said (FORMAT.md). What does not fit is told, and left alone.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from snapstore import Snapshot, SnapshotNotFound, SnapStore
from snapstore.archive import frames, recover, toc
from snapstore.cli.commands import app as command_line
from snapstore.engine import salvage
from snapstore.errors import ArchiveDamaged
from snapstore.index.archives import Archives
from snapstore.model import Extent
from snapstore.objectstore import Body
from tests import places
from tests.places import place_of, server_of
from tests.test_changing import Reads
from tests.trees import Description, describe, differences, write

Objects = dict[str, bytes]


class Place(places.Place):
    async def objects(self) -> Objects:
        return {info.key: (await self.raw.get(info.key)).content async for page in self.raw.list() for info in page}

    async def lose(self, *snapshots: Snapshot) -> None:
        for snapshot in snapshots:
            await self.raw.delete(f"_metadata/{snapshot.id}")


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of(Place, tmp_path) as made:
        yield made


@pytest.fixture(params=["folder", "seaweedfs"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of(Place, tmp_path, server_of(request)) as made:
        yield made


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives are taken for old ones as soon as they are there."""
    monkeypatch.setattr("snapstore.index.archives.GRACE", -60)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    root = tmp_path / "app"
    (root / "static" / "empty").mkdir(parents=True)
    write(root / "index.html", b"<h1>hello</h1>\n")
    write(root / "static" / "hole", b"a" * 4096 + bytes(1 << 20) + b"b")
    write(root / "größe", random.Random(1).randbytes(100_000))
    os.link(root / "index.html", root / "static" / "again")
    (root / "link").symlink_to("index.html")
    return root


@pytest.fixture
def app_described(app: Path) -> Description:
    return describe(app)


async def listed(store: SnapStore, **filters: Any) -> list[Snapshot]:
    return [snapshot async for snapshot in store.list(**filters)]


def plain(snapshot: Snapshot) -> Snapshot:
    """A report of `create` as the snapshot that is listed."""
    return Snapshot(**{field: getattr(snapshot, field) for field in Snapshot.__struct_fields__})


CREATED: Sequence[tuple[str, Sequence[str]]] = (
    ("blog", ["owner:42", "env:prod", "plain"]),
    ("größe & co: eins/zwei", ["owner:a:b/c", "größe:ä", "owner:a:b/c d"]),
    ("x" * 128, [f"owner:{'v' * 500}"]),
    (".hidden", []),
)


async def made(store: SnapStore, app: Path) -> list[Snapshot]:
    return [plain(await store.create(name, app, labels=labels)) for name, labels in CREATED]


# What is brought back


async def test_lost_metadata_comes_back_byte_for_byte(
    place: Place, aged: None, app: Path, app_described: Description, tmp_path: Path
) -> None:
    async with place.node(index_label="owner") as store, place.node("two") as other:
        snapshots = await made(store, app)
        before = await place.objects()
        await place.lose(*snapshots)
        await other.sync()
        report = await store.salvage(apply=True)
        assert (report.snapshots, report.applied, report.problems) == (tuple(snapshots), True, ())
        assert await place.objects() == before
        assert await listed(store) == snapshots[::-1]
        assert await listed(store, labels=["owner:a:b/c"]) == [snapshots[1]]
        await store.restore(snapshots[1].id, tmp_path / "out")
        assert differences(app_described, describe(tmp_path / "out")) == {}
        assert await listed(other) == []
        assert (await other.sync()).read == len(snapshots)
        assert await listed(other) == snapshots[::-1]
        assert (await store.rebuild()).problems == ()
        assert (await store.salvage(apply=True)).snapshots == ()


async def test_nothing_is_written_unless_it_is_asked_for(place: Place, aged: None, app: Path) -> None:
    async with place.node() as store:
        snapshots = await made(store, app)
        await place.lose(*snapshots[:2])
        before = await place.objects()
        for _ in range(2):
            report = await store.salvage()
            assert (report.snapshots, report.applied, report.problems) == (tuple(snapshots[:2]), False, ())
        assert await place.objects() == before
        assert await listed(store) == snapshots[:1:-1]
        with pytest.raises(SnapshotNotFound):
            await store.get(snapshots[0].id)


async def test_where_nothing_is_lost_nothing_is_read_or_written(
    folder: Place, aged: None, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with folder.node() as store:
        snapshots = await made(store, app)
        before = await folder.objects()
        monkeypatch.setattr(type(folder.raw), "get", None)
        monkeypatch.setattr(type(folder.raw), "put", None)
        report = await store.salvage(apply=True)
        assert (report.snapshots, report.problems) == ((), ())
        monkeypatch.undo()
        assert await folder.objects() == before
        assert await listed(store) == snapshots[::-1]


async def test_what_was_not_lost_stays_as_it_is(folder: Place, aged: None, app: Path) -> None:
    async with folder.node() as store:
        snapshots = await made(store, app)
        kept = await store.relabel(snapshots[0].id, replace=["new:1"])
        await folder.lose(*snapshots[1:])
        await store.salvage(apply=True)
        assert await listed(store) == [*snapshots[:0:-1], kept]


async def test_labels_are_as_they_were_at_creation(folder: Place, aged: None, app: Path) -> None:
    async with folder.node() as store:
        snapshot = plain(await store.create("blog", app, labels=["owner:42", "env:test"]))
        await store.relabel(snapshot.id, replace=["owner:43"])
        await folder.lose(snapshot)
        await store.salvage(apply=True)
        assert await store.get(snapshot.id) == snapshot
        assert await listed(store, labels=["owner:43"]) == []
        assert (await store.relabel(snapshot.id, add=["env:prod"])).revision == 2


async def test_members_that_changed_are_counted_again(
    folder: Place, aged: None, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch, app / "größe")
    reads.after = lambda number: (app / "größe").write_bytes(b"%d" % (number % 10) * 1000)
    async with folder.node() as store:
        snapshot = plain(await store.create("blog", app))
        assert snapshot.warnings == 1
        await folder.lose(snapshot)
        assert (await store.salvage(apply=True)).snapshots == (snapshot,)
        assert await store.get(snapshot.id) == snapshot


async def test_members_that_could_not_be_read_are_in_no_archive_and_not_counted(
    folder: Place, aged: None, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(number: int) -> None:
        raise OSError(5, "Input/output error")

    Reads(monkeypatch, app / "größe").before = unreadable
    async with folder.node() as store:
        snapshot = plain(await store.create("blog", app, on_error="skip"))
        assert snapshot.warnings == 1
        await folder.lose(snapshot)
        (found,) = (await store.salvage(apply=True)).snapshots
        assert found == msgspec.structs.replace(snapshot, warnings=0)


async def test_a_bucket_of_archives_alone_is_brought_back_into_a_new_index(
    place: Place, aged: None, app: Path, tmp_path: Path
) -> None:
    async with place.node() as store:
        snapshots = await made(store, app)
    await place.lose(*snapshots)
    async with place.node("new") as store:
        assert await listed(store) == []
        assert len((await store.rebuild()).problems) == len(snapshots)
        await store.salvage(apply=True)
        assert await listed(store) == snapshots[::-1]
        for number, snapshot in enumerate(snapshots):
            await store.restore(snapshot.id, tmp_path / f"out{number}")
        await store.delete_app("blog")
        await place.lose(*snapshots[1:])
        assert (await store.salvage()).snapshots == tuple(snapshots[1:])


async def test_an_empty_folder_comes_back(folder: Place, aged: None, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    async with folder.node() as store:
        snapshot = plain(await store.create("blog", tmp_path / "empty"))
        await folder.lose(snapshot)
        assert (await store.salvage(apply=True)).snapshots == (snapshot,)
        await store.restore(snapshot.id, tmp_path / "out")


@pytest.mark.parametrize("tail", [9, 40, 1 << 20])
async def test_a_seek_table_that_the_first_read_does_not_hold_is_read_once_more(
    place: Place, aged: None, app: Path, tail: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(salvage, "_TAIL", tail)
    write(app / "large", bytes(13 << 20), holes=False)  # four frames, the end and the table of contents
    async with place.node() as store:
        snapshot = plain(await store.create("blog", app))
        await place.lose(snapshot)
        asked: list[tuple[int, int]] = []
        get = type(place.raw).get

        async def noted(raw: Any, key: str, *, start: int = 0, size: int | None = None, **rest: Any) -> Body:
            assert size is not None
            asked.append((start, size))
            return await get(raw, key, start=start, size=size, **rest)

        with monkeypatch.context() as patched:
            patched.setattr(type(place.raw), "get", noted)
            (found,) = (await store.salvage()).snapshots
    assert found == snapshot
    assert snapshot.size is not None
    assert snapshot.toc is not None
    table = snapshot.size - snapshot.toc.offset - snapshot.toc.size
    reads = [tail] if tail >= table else [tail, table]
    assert asked == [
        *((max(0, snapshot.size - size), min(size, snapshot.size)) for size in reads),
        (snapshot.toc.offset, snapshot.toc.size),
    ]


def test_a_table_over_64_kib_is_asked_for_whole() -> None:
    """As an archive of over 8,000 frames has."""
    rows = [(10, 20)] * 9000 + [(500, 0)]
    table = frames.seek_table(rows)
    assert len(table) > salvage._TAIL
    size = 90_500 + len(table)
    assert recover.locate(table[-salvage._TAIL :], size) == len(table)
    assert recover.locate(table, size) == Extent(90_000, 500)


# What is left alone


async def test_an_archive_younger_than_an_hour_is_left_out(folder: Place, app: Path) -> None:
    async with folder.node() as store:
        young, old = [plain(await store.create("blog", app)) for _ in range(2)]
        assert young.key is not None
        assert old.key is not None
        await folder.lose(young, old)
        for snapshot, age in ((young, 3500), (old, 3700)):
            os.utime(Path(folder.url) / str(snapshot.key), (time.time() - age,) * 2)
        assert (await store.salvage(apply=True)).snapshots == (old,)
        assert await listed(store) == [old]
        os.utime(Path(folder.url) / young.key, (time.time() - 3700,) * 2)
        assert (await store.salvage(apply=True)).snapshots == (young,)


async def test_an_archive_of_a_bucket_younger_than_an_hour_is_left_out(place: Place, app: Path) -> None:
    async with place.node() as store:
        snapshot = await store.create("blog", app)
        await place.lose(snapshot)
        before = await place.objects()
        report = await store.salvage(apply=True)
        assert (report.snapshots, report.problems, report.recent) == ((), (), 1)
        assert await place.objects() == before


async def test_metadata_that_is_there_is_never_written_over_however_it_is(place: Place, aged: None, app: Path) -> None:
    bodies = [b"", b"no JSON", b"{}", b'{"uuid":1}']
    async with place.node() as store:
        lost, *snapshots = [plain(await store.create("blog", app)) for _ in range(1 + len(bodies))]
        await place.lose(lost)
        for snapshot, body in zip(snapshots, bodies, strict=True):
            await place.raw.put(f"_metadata/{snapshot.id}", body)
        report = await store.salvage(apply=True)
        assert (report.snapshots, report.problems) == ((lost,), ())
        after = await place.objects()
        assert [after[f"_metadata/{snapshot.id}"] for snapshot in snapshots] == bodies
        assert await listed(store) == [lost]


async def test_metadata_that_comes_just_before_ours_is_not_written_over(
    place: Place, aged: None, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.node() as store:
        snapshot = await store.create("blog", app, labels=["owner:42"])
        relabelled = await store.relabel(snapshot.id, add=["owner:43"])
        content = (await place.raw.get(f"_metadata/{snapshot.id}")).content
        await place.lose(snapshot)
        put = type(place.raw).put

        async def late(raw: Any, key: str, body: bytes, **conditions: Any) -> Any:
            await put(raw, key, content)  # by another node
            return await put(raw, key, body, **conditions)

        with monkeypatch.context() as patched:
            patched.setattr(type(place.raw), "put", late)
            assert (await store.salvage(apply=True)).problems == ()
        assert (await place.raw.get(f"_metadata/{snapshot.id}")).content == content
        await store.sync()
        assert await listed(store) == [relabelled]


async def test_what_another_node_makes_or_deletes_meanwhile_is_neither_lost_nor_a_problem(
    folder: Place, aged: None, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with folder.node() as store, folder.node("two") as other:
        gone = await other.create("blog", app)
        await store.sync()
        collect = Archives.collect

        async def late(archives: Archives, progress: Any) -> None:
            await other.create("blog", app)
            await other.delete(gone.id)
            await collect(archives, progress)

        monkeypatch.setattr(Archives, "collect", late)
        report = await store.salvage()
        assert (report.snapshots, report.problems) == ((), ())
        gone = await other.create("blog", app)
        assert (await store.rebuild()).problems == ()


async def test_a_snapshot_that_another_node_is_deleting_does_not_come_back_without_its_archive(
    folder: Place, aged: None, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with folder.node() as store, folder.node("two") as other:
        gone = await other.create("blog", app)
        await store.sync()
        put = type(folder.raw).put
        await folder.lose(plain(gone))

        async def put_as_the_archive_goes(raw: Any, key: str, *args: Any, **options: Any) -> Any:
            await raw.delete(gone.key)
            return await put(raw, key, *args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(type(folder.raw), "put", put_as_the_archive_goes)
            assert (await store.salvage(apply=True)).snapshots == ()
        await other.sync()
        assert await listed(store) == await listed(other) == []


async def test_an_archive_that_is_deleted_meanwhile_is_nobodys_problem(
    place: Place, aged: None, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.node() as store:
        gone, kept = [plain(await store.create("blog", app)) for _ in range(2)]
        await place.lose(gone, kept)
        get = type(place.raw).get

        async def late(raw: Any, key: str, **options: Any) -> Body:
            if key == gone.key:
                await raw.delete(key)
            return await get(raw, key, **options)

        with monkeypatch.context() as patched:
            patched.setattr(type(place.raw), "get", late)
            report = await store.salvage(apply=True)
        assert (report.snapshots, report.problems) == ((kept,), ())
        assert (await place.objects()).keys() == {kept.key, f"_metadata/{kept.id}"}


async def test_an_archive_that_is_replaced_meanwhile_is_a_problem(
    place: Place, aged: None, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.node() as store:
        snapshot = await store.create("blog", app)
        assert snapshot.key is not None
        await place.lose(snapshot)
        content = (await place.raw.get(snapshot.key)).content
        get = type(place.raw).get

        async def late(raw: Any, key: str, **options: Any) -> Body:
            found = await get(raw, key, **options)
            await raw.put(key, content + b"more")
            return found

        with monkeypatch.context() as patched:
            patched.setattr(type(place.raw), "get", late)
            report = await store.salvage(apply=True)
        assert report.snapshots == ()
        (problem,) = report.problems
        assert problem.startswith(f"{snapshot.key}: nothing can be made")
        assert f"_metadata/{snapshot.id}" not in await place.objects()


async def test_salvages_at_once_bring_all_back_once(place: Place, aged: None, app: Path) -> None:
    async with place.node() as one, place.node("two") as two:
        snapshots = await made(one, app)
        before = await place.objects()
        await two.sync()
        await place.lose(*snapshots)
        reports = await asyncio.gather(*(store.salvage(apply=True) for store in (one, two, one)))
        assert {found.id for report in reports for found in report.snapshots} == {found.id for found in snapshots}
        assert [report.problems for report in reports] == [(), (), ()]
        assert await place.objects() == before
        for store in (one, two):
            await store.sync()
            assert await listed(store) == snapshots[::-1]


# What cannot be brought back


def retold(content: bytes, **changes: Any) -> bytes:
    """An archive whose table of contents says something else in its first line, and is whole in itself."""
    place = recover.locate(content, len(content))
    assert isinstance(place, Extent)
    document = toc.document(content[place.offset : place.offset + place.size])
    first, _, rest = document.partition(b"\n")
    return with_document(content, json.dumps(json.loads(first) | changes).encode() + b"\n" + rest)


def with_document(content: bytes, document: bytes) -> bytes:
    place = recover.locate(content, len(content))
    assert isinstance(place, Extent)
    table = frames.read_seek_table(content[place.offset + place.size :])
    frame = frames.skippable(toc.TOC_MAGIC, b"SNAPTOC1" + frames.compress(document))
    return content[: place.offset] + frame + frames.seek_table([*table[:-1], (len(frame), 0)])


def flipped(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 0x10
    return bytes(changed)


DAMAGE: Mapping[str, Callable[[bytes], bytes]] = {
    "nothing left": lambda content: b"",
    "a byte left": lambda content: content[:1],
    "half left": lambda content: content[: len(content) // 2],
    "without its seek table": lambda content: content[: content.rindex(b"\x5e\x2a\x4d\x18")],
    "cut by a byte": lambda content: content[:-1],
    "more at its end": lambda content: content + b"\0",
    "its last byte flipped": lambda content: flipped(content, -1),
    "its count of frames flipped": lambda content: flipped(content, -9),
    "its count of frames huge": lambda content: content[:-9] + b"\xff\xff\xff\xff" + content[-5:],
    "its count of frames zero": lambda content: content[:-9] + bytes(4) + content[-5:],
    "its table of contents flipped": lambda content: flipped(content, content.index(b"SNAPTOC1") + 40),
    "its table of contents no JSON": lambda content: with_document(content, b"no JSON\n"),
    "its table of contents empty": lambda content: with_document(content, b""),
    "zeros": lambda content: bytes(len(content)),
    "a tar by others": lambda content: zstandard.compress(bytes(10_240)),
    "another snapshot's": lambda content: retold(content, id=str(uuid.uuid4())),
    "its app no app": lambda content: retold(content, app=".."),
    "its app empty": lambda content: retold(content, app=""),
    "its app missing": lambda content: retold(content, app=None),
    "its labels no strings": lambda content: retold(content, labels=[1]),
    "its time no time": lambda content: retold(content, created_at="yesterday"),
    "its time before all": lambda content: retold(content, created_at="1900-01-02T03:04:05Z"),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_archive_is_told_and_left_alone(
    folder: Place, aged: None, app: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with folder.node() as store:
        await leaves_alone(folder, store, app, [DAMAGE[damage]])


async def test_damaged_archives_in_a_bucket_are_told_and_left_alone(place: Place, aged: None, app: Path) -> None:
    async with place.node() as store:
        await leaves_alone(place, store, app, [*DAMAGE.values()])


async def leaves_alone(place: Place, store: SnapStore, app: Path, damages: Sequence[Callable[[bytes], bytes]]) -> None:
    """Of several archives without metadata, one of which is whole, that one alone comes back."""
    whole = plain(await store.create("blog", app))
    template = (await place.raw.get(str(whole.key))).content
    await place.lose(whole)
    told = set()
    for number, damage in enumerate(damages):
        name = f"bad{number}:{uuid.uuid4()}:-:1700000000"
        told.add(name)
        await place.raw.put(name, damage(retold(template, id=name.split(":")[1], app=f"bad{number}")))
    before = await place.objects()
    report = await store.salvage(apply=True)
    assert report.snapshots == (whole,)
    assert len(report.problems) == len(told)
    assert {problem.split(": ")[0] for problem in report.problems} == told
    after = await place.objects()
    assert after.pop(f"_metadata/{whole.id}")
    assert after == before
    assert await listed(store) == [whole]
    assert (await store.salvage()).problems == report.problems


async def test_archives_whose_names_were_swapped_are_told_with_both_ids(place: Place, aged: None, app: Path) -> None:
    async with place.node() as store:
        one, two = [await store.create(name, app) for name in ("blog", "wiki")]
        assert one.key is not None
        assert two.key is not None
        contents = [(await place.raw.get(snapshot.key or "")).content for snapshot in (two, one)]
        await place.raw.put(one.key, contents[0])
        await place.raw.put(two.key, contents[1])
        await place.lose(one, two)
        before = await place.objects()
        report = await store.salvage(apply=True)
        assert report.snapshots == ()
        assert len(report.problems) == 2
        assert all(one.id in problem and two.id in problem for problem in report.problems)
        assert await place.objects() == before


async def test_archives_of_the_older_system_and_odd_names_are_told_and_left_alone(
    place: Place, aged: None, app: Path
) -> None:
    async with place.node() as store:
        whole = plain(await store.create("blog", app))
        content = (await place.raw.get(str(whole.key))).content
        await place.lose(whole)
        foreign = [f"{name}:{uuid.uuid4()}:-:1700000000" for name in ("shop", "team:shop")]
        for name in foreign:
            await place.raw.put(name, zstandard.compress(bytes(10_240)))
        other_id = str(uuid.uuid4())
        colons = f"team:shop:{other_id}:-:1700000000"
        await place.raw.put(colons, retold(content, id=other_id, app="team:shop"))
        for name in ("README", "a:b:c:d", f"two:{uuid.uuid4()}", "_own:thing"):
            await place.raw.put(name, content)
        before = await place.objects()
        report = await store.salvage(apply=True)
        assert report.snapshots == (whole,)
        assert {problem.rpartition(": nothing")[0] for problem in report.problems} == {*foreign, colons}
        assert (await place.objects()).keys() - before.keys() == {f"_metadata/{whole.id}"}


async def test_no_flipped_byte_behind_the_frames_makes_another_snapshot(folder: Place, app: Path) -> None:
    async with folder.node() as store:
        snapshot = await store.create("blog", app, labels=["owner:42"])
    assert snapshot.toc is not None
    content = (Path(folder.url) / str(snapshot.key)).read_bytes()

    def found(archive: bytes) -> tuple[Extent, recover.Recovered]:
        place = recover.locate(archive, len(archive))
        assert isinstance(place, Extent)
        return place, recover.recover(archive[place.offset : place.offset + place.size])

    expected = found(content)
    assert expected[0] == snapshot.toc
    noticed = 0
    for position in range(snapshot.toc.offset, len(content)):
        try:
            assert found(flipped(content, position)) == expected
        except ArchiveDamaged:
            noticed += 1
    assert noticed > snapshot.toc.size - 8, "all of the table of contents"


# The command line


class Shell:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {"HOME": str(home), "PATH": os.environ["PATH"]}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "snapstore", *arguments, "--url", "store", "--index", "index.db"]
        return subprocess.run(command, cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


async def lost(tmp_path: Path, app: Path) -> tuple[Snapshot, Path]:
    """A snapshot whose metadata is lost, in a store where it is alone."""
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as store:
        snapshot = plain(await store.create("blog", app, labels=["owner:42"]))
    archive = tmp_path / "store" / str(snapshot.key)
    os.utime(archive, (time.time() - 7200,) * 2)
    metadata = tmp_path / "store" / "_metadata" / snapshot.id
    metadata.unlink()
    return snapshot, metadata


def as_document(snapshot: Snapshot) -> Any:
    return json.loads(msgspec.json.encode(snapshot))


async def test_the_command_shows_first_and_acts_when_asked(shell: Shell, app: Path, tmp_path: Path) -> None:
    snapshot, metadata = await lost(tmp_path, app)
    rebuild = ("index", "rebuild", "--from-archives")

    def commands() -> None:
        shown = shell(*rebuild)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert f"can be brought back: {snapshot.id} of blog" in shown.stdout
        assert "owner:42" in shown.stdout
        assert "--yes" in shown.stdout
        assert not metadata.exists()

        done = shell(*rebuild, "--yes")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"brought back: {snapshot.id} of blog")
        assert "--yes" not in done.stdout
        assert metadata.exists()
        again = shell(*rebuild, "--yes")
        assert (again.returncode, again.stdout) == (0, "no archive lacks its metadata\n")

    await asyncio.to_thread(commands)


async def test_the_command_warns_of_what_cannot_be_brought_back(shell: Shell, app: Path, tmp_path: Path) -> None:
    snapshot, metadata = await lost(tmp_path, app)
    bad = tmp_path / "store" / f"shop:{uuid.uuid4()}:-:1700000000"
    bad.write_bytes(zstandard.compress(bytes(10_240)))
    os.utime(bad, (time.time() - 7200,) * 2)
    done = await asyncio.to_thread(shell, "index", "rebuild", "--from-archives", "--yes", "--json")
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert (document["snapshots"], document["applied"]) == ([as_document(snapshot)], True)
    (problem,) = document["problems"]
    assert problem.startswith(f"{bad.name}: nothing can be made of this archive alone")
    assert done.stderr == f"warning: {problem}\n"
    assert metadata.exists()


@pytest.fixture
async def all_lost(place: Place, aged: None, app: Path) -> tuple[Place, list[Snapshot]]:
    async with place.node() as store:
        snapshots = await made(store, app)
    await place.lose(*snapshots)
    return place, snapshots


def test_the_command_works_on_any_store(
    all_lost: tuple[Place, list[Snapshot]], capsys: pytest.CaptureFixture[str]
) -> None:
    place, snapshots = all_lost
    options = ["--json", "--url", place.url, "--index", str(place.indexes / "new.db")]

    def run(*arguments: str) -> list[Any]:
        with pytest.raises(SystemExit) as ended:
            command_line([*arguments, *options])
        assert ended.value.code == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    documents = [as_document(snapshot) for snapshot in snapshots]
    expected = {"snapshots": documents, "applied": False, "problems": [], "recent": 0}
    (document,) = run("index", "rebuild", "--from-archives")
    assert {field: document[field] for field in expected} == expected
    assert run("list") == []
    (document,) = run("index", "rebuild", "--from-archives", "--yes")
    assert {field: document[field] for field in expected} == expected | {"applied": True}
    assert run("list") == documents[::-1]
