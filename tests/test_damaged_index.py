"""An index whose file is damaged, in whatever way it shows: told as our error, and made anew by the next opening."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from snapstore import CatalogError, CatalogMismatch, SnapStore
from snapstore.index import file

HEADER = 100
"""Bytes of a database's header (https://www.sqlite.org/fileformat2.html, 1.3)."""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "file").write_text("content")
    return tmp_path / "app"


def opening(tmp_path: Path) -> SnapStore:
    return SnapStore.open(tmp_path / "store", index=tmp_path / "index.db")


async def ids(store: SnapStore) -> list[str]:
    return [snapshot.id async for snapshot in store.list()]


async def made(tmp_path: Path, app: Path, count: int) -> list[str]:
    """The ids of so many snapshots, the newest first; their index is closed, and all in its one file."""
    async with opening(tmp_path) as store:
        found = [(await store.create("blog", app, labels=["owner:42"])).id for _ in range(count)]
    return found[::-1]


def remove_index(tmp_path: Path) -> None:
    for path in tmp_path.glob("index.db*"):
        path.unlink()


async def used(tmp_path: Path, expected: list[str]) -> bool:
    """Whether all that an index is asked for can be had from this one; it may say that it is damaged."""
    try:
        async with opening(tmp_path) as store:
            assert await ids(store) == expected
            await store.sync()
            return await ids(store) == expected and [one.snapshots for one in await store.apps()] == [len(expected)]
    except CatalogMismatch:
        raise
    except CatalogError:
        return False


@pytest.mark.parametrize("byte", [0x00, 0xF0])
async def test_a_byte_of_the_schema_costs_one_opening_more_at_most(tmp_path: Path, app: Path, byte: int) -> None:
    expected = await made(tmp_path, app, 2)
    sound = (tmp_path / "index.db").read_bytes()
    for position in range(HEADER, 4096, 97):
        remove_index(tmp_path)
        damaged = bytearray(sound)
        damaged[position] = byte
        (tmp_path / "index.db").write_bytes(damaged)
        assert await used(tmp_path, expected) or await used(tmp_path, expected), position


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE snapshot SET detail = x'c1'",
        "UPDATE snapshot SET detail = x'90'",
        "UPDATE snapshot SET etag = CAST(x'ff' AS TEXT)",
        "UPDATE app SET name = CAST(x'ff' AS TEXT)",
        "UPDATE label SET name = CAST(x'ff' AS TEXT) WHERE name = 'owner'",
        "UPDATE store SET synced = 'never'",
        "DROP TABLE problem",
        "ALTER TABLE snapshot RENAME COLUMN etag TO tag",
        "DROP TABLE local_change",
    ],
)
async def test_what_cannot_be_understood_is_damage(tmp_path: Path, app: Path, damage: str) -> None:
    expected = await made(tmp_path, app, 2)
    with closing(sqlite3.connect(tmp_path / "index.db")) as index, index:
        index.execute(damage)
    if await used(tmp_path, expected):
        return
    assert await used(tmp_path, expected)
    assert len([path for path in tmp_path.glob("index.db.damaged-*") if not path.name.endswith(("-wal", "-shm"))]) == 1


async def test_a_row_that_is_garbled_while_the_index_is_open_is_an_error_of_ours(tmp_path: Path, app: Path) -> None:
    async with opening(tmp_path) as store:
        snapshot = await store.create("blog", app)
        with closing(sqlite3.connect(tmp_path / "index.db")) as index, index:
            index.execute("UPDATE snapshot SET detail = x'c1'")
        for call in (store.get(snapshot.id), store.page(), store.relabel(snapshot.id, add=["x"]), store.checkpoint()):
            with pytest.raises(CatalogError, match="open the store again"):
                await call
    async with opening(tmp_path) as store:
        assert await ids(store) == [snapshot.id]


async def test_a_damaged_file_is_moved_aside_after_its_companions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is gone, another process may make a new one, whose companions must not go with it."""
    index = tmp_path / "index.db"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{index}{suffix}").write_text("damaged")
    order = []
    rename = file.os.rename

    def noted(source: str, target: str) -> None:
        order.append(source.removeprefix(str(index)))
        rename(source, target)

    monkeypatch.setattr(file.os, "rename", noted)
    await asyncio.to_thread(file._move_aside, str(index))
    assert order == ["-shm", "-wal", ""]
