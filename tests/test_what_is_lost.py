"""What a salvage and a sync once got wrong: archives that lost a piece, and things told or counted twice."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import zstandard

from snapstore import Snapshot
from snapstore.archive import recover, toc
from snapstore.cli.commands import app as command_line
from snapstore.model import Extent
from tests import test_older, test_salvage
from tests.test_older import OLDER
from tests.test_salvage import Place, leaves_alone, listed, made, plain, retold, with_document

aged, all_lost, app, folder = test_salvage.aged, test_salvage.all_lost, test_salvage.app, test_salvage.folder
archive, tree = test_older.archive, test_older.tree


def document(content: bytes) -> bytes:
    place = recover.locate(content, len(content))
    assert isinstance(place, Extent)
    return toc.document(content[place.offset : place.offset + place.size])


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    before = document(content)
    assert old in before
    return with_document(content, before.replace(old, new, 1))


NESTED = b"[" * 100_000 + b"]" * 100_000
DAMAGE: Mapping[str, Callable[[bytes], bytes]] = {
    # 2: brought back, though it cannot be restored
    "its beginning cut off": lambda content: content[100:],
    "more at its beginning": lambda content: bytes(100) + content,
    "no frames": lambda content: with_document(content, document(content).partition(b"\n")[0] + b"\n"),
    # 3: brought back as of format 1
    "a newer format": lambda content: retold(content, format=2),
    # 4: ends the whole salvage with an error that is not ours
    "a path not UTF-8": lambda content: replaced(content, b"index.html", b"index\xffhtml"),
    "its app not UTF-8": lambda content: replaced(content, b'"app": "', b'"app": "\xff'),
    "members nested deeply": lambda content: replaced(content, b'"members":[', b'"members":[' + NESTED + b","),
    "a header nested deeply": lambda content: replaced(content, b'{"format"', b'{"x":' + NESTED + b',"format"'),
    "its time before all": lambda content: retold(content, created_at="0001-01-01T00:00:00+10:00"),
    "its time after all": lambda content: retold(content, created_at="9999-12-31T23:59:59-10:00"),
    "its time without zone": lambda content: retold(content, created_at="2026-01-02T03:04:05"),
}


async def test_a_sync_does_not_count_malformed_metadata_as_snapshots(folder: Place, archive: bytes) -> None:
    await folder.raw.put(f"_metadata/{OLDER[0].id}", json.dumps(OLDER[0].described(archive)).encode())
    await folder.raw.put(f"_metadata/{OLDER[1].id}", b"no JSON")
    async with folder.node() as store:
        assert (await store.index_status()).snapshots == 1
        assert (await store.sync()).snapshots == 1


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_archive_is_told_and_left_alone(folder: Place, aged: None, app: Path, damage: str) -> None:
    async with folder.node() as store:
        await leaves_alone(folder, store, app, [DAMAGE[damage]])


async def test_all_that_is_lost_comes_back_however_much_it_is(
    folder: Place, aged: None, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapstore.index.archives._TOLD", 3)
    async with folder.node() as store:
        snapshots = await made(store, app)
        await folder.lose(*snapshots)
        assert (await store.salvage(apply=True)).snapshots == tuple(snapshots)


async def test_malformed_metadata_takes_no_lost_ones_place(
    folder: Place, aged: None, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapstore.index.archives._TOLD", 3)
    async with folder.node() as store:
        *malformed, lost = [plain(await store.create("blog", app)) for _ in range(4)]
        for snapshot in malformed:
            await folder.raw.put(f"_metadata/{snapshot.id}", b"no JSON")
        await folder.lose(lost)
        assert [problem for problem in (await store.rebuild()).problems if str(lost.key) in problem]
        assert (await store.salvage()).snapshots == (lost,)


async def test_a_name_that_is_no_id_is_logged_once(folder: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "snapstore")
    await folder.raw.put("_metadata/README", b"read me")
    async with folder.node() as store:
        for _ in range(3):
            assert len((await store.sync()).problems) == 1
    assert len(caplog.messages) == 1


async def test_what_two_salvages_bring_back_at_once_is_listed_by_both(folder: Place, aged: None, app: Path) -> None:
    async with folder.node() as one, folder.node("two") as two:
        snapshots = await made(one, app)
        await two.sync()
        await folder.lose(*snapshots)
        await asyncio.gather(one.salvage(apply=True), two.salvage(apply=True))
        assert await listed(one) == await listed(two) == snapshots[::-1]


@pytest.fixture
def place(folder: Place) -> Place:
    return folder


def test_a_damaged_archive_does_lack_its_metadata(
    all_lost: tuple[Place, list[Snapshot]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--url", str(tmp_path / "store"), "--index", str(tmp_path / "new.db")]
    for path in (tmp_path / "store").glob("*:*"):
        path.write_bytes(zstandard.compress(bytes(10_240)))
    with pytest.raises(SystemExit) as ended:
        command_line(["index", "rebuild", "--from-archives", *options])
    assert ended.value.code == 3
    shown = capsys.readouterr()
    assert "nothing can be made of this archive" in shown.err
    assert "no archive lacks" not in shown.out
