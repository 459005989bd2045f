"""SQLite's locks on an index, which the system gives to a process and not to a descriptor.

Closing any descriptor of a file gives up all locks that the process has on it. Another process then believes that it is
alone, and deletes the log that we go on writing to (https://www.sqlite.org/howtocorrupt.html, 2.2).
"""

import asyncio
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from snapstore import CatalogBusy, SnapStore
from snapstore.index import file, rebuild, replacement
from tests.scripts import said, script

OTHER = """
import asyncio, sys
from pathlib import Path
from snapstore import SnapStore

async def main(base):
    async with SnapStore.open(base / "store", index=base / "app" / "index.db") as store:
        print(len([one async for one in store.list()]))

asyncio.run(main(Path(sys.argv[1])))
"""
HOLDER = """
import sqlite3, sys
index = sqlite3.connect(sys.argv[1], isolation_level=None)
index.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An application in whose folder the index is, too."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "file").write_text("content")
    return tmp_path / "app"


def opening(tmp_path: Path) -> SnapStore:
    return SnapStore.open(tmp_path / "store", index=tmp_path / "app" / "index.db")


async def listed_elsewhere(tmp_path: Path) -> int:
    """How many snapshots another process lists, which opens the index and closes it."""
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    return int(done.stdout)


async def test_a_second_store_on_an_index_gives_up_none_of_the_firsts_locks(tmp_path: Path, app: Path) -> None:
    async with opening(tmp_path) as one:
        await one.create("blog", app)
        async with opening(tmp_path):
            pass
        for count in (1, 2, 3):
            assert await listed_elsewhere(tmp_path) == count
            assert (app / "index.db-wal").exists()
            await one.create("blog", app)


async def test_a_snapshot_of_the_folder_of_an_open_index_leaves_that_out(tmp_path: Path, app: Path) -> None:
    async with opening(tmp_path) as one:
        for count in (1, 2, 3):
            made = await one.create("blog", app)
            assert await listed_elsewhere(tmp_path) == count
        paths = {member.path async for member in one.members(made.id)}
        assert paths == {".", "file", "index.db-lock"} or paths == {".", "file"}
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "other.db") as other:
        made = await other.create("blog", app)  # nobody has it open here
        assert "index.db" in {member.path async for member in other.members(made.id)}


async def test_a_rebuild_that_waits_for_another_process_can_be_cancelled(
    tmp_path: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opening(tmp_path) as store:
        await store.create("blog", app)
        await store.rebuild()
        holder = await held_before_it_is_replaced(app, monkeypatch)
        rebuilding = asyncio.create_task(store.rebuild())
        await holder.held.wait()
        began = time.monotonic()
        rebuilding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rebuilding
        assert time.monotonic() - began < 10
        holder.let_go()
        assert (await store.rebuild()).snapshots == 1


async def test_a_rebuild_does_not_wait_for_ever(tmp_path: Path, app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opening(tmp_path) as store:
        await store.create("blog", app)
        await store.rebuild()
        holder = await held_before_it_is_replaced(app, monkeypatch)
        monkeypatch.setattr(file, "PATIENCE", 0.5)
        with pytest.raises(CatalogBusy, match="locked by another process"):
            await store.rebuild()
        holder.let_go()


class Holder:
    """Another process, that has the index's write lock from just before its content is replaced."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self.held = asyncio.Event()
        self._process: Any = None

    async def hold(self) -> None:
        if self._process is None:
            self._process = script(HOLDER, self._index)
            assert await said(self._process) == "held\n"
            self.held.set()

    def let_go(self) -> None:
        self._process.communicate()


async def held_before_it_is_replaced(app: Path, monkeypatch: pytest.MonkeyPatch) -> Holder:
    holder = Holder(app / "index.db")
    fill = rebuild._fill

    async def fill_and_hold(*args: Any) -> Any:
        report = await fill(*args)
        await holder.hold()
        return report

    monkeypatch.setattr(rebuild, "_fill", fill_and_hold)
    return holder


async def test_a_file_that_takes_the_place_of_an_index_just_before_it_is_replaced_is_left_alone(
    tmp_path: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = replacement.replace

    def exchange_and_replace(path: str, *args: Any) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(path + suffix).unlink(missing_ok=True)
        file.prepare(path, (tmp_path / "store").as_uri())
        with closing(sqlite3.connect(path)) as index, index:
            index.execute("INSERT INTO app (name) VALUES ('of the new one')")
        replace(path, *args)

    async with opening(tmp_path) as store:
        await store.create("blog", app)
        await store.rebuild()
        monkeypatch.setattr(replacement, "replace", exchange_and_replace)
        with pytest.raises(Exception, match="took the place"):
            await store.rebuild()
        with closing(sqlite3.connect(app / "index.db")) as index:
            assert index.execute("SELECT name FROM app").fetchall() == [("of the new one",)]
