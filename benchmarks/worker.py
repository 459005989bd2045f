"""The calls that are measured inside a process: ``python -m benchmarks.worker STEP '{"option": …}'``.

Those of this module are what a service would do that has snapstore open: the process has started, the store is open,
and a tiny snapshot has been made and deleted, so that connections are there. Only then the clock starts.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks import inside_application, inside_floors, inside_index, inside_store, older
from benchmarks.clock import Traffic, clock
from benchmarks.stores import Sink
from snapstore import Limits, SnapStore

Step = Callable[..., Coroutine[Any, Any, None]]


async def create(
    folder: str, url: str = "", index: str = "", threads: int = 0, at_once: int = 1, warm: bool = True
) -> None:
    """Snapshots of a folder, into a store or into nothing; several at once share one store."""
    traffic = Traffic()
    limits = Limits(threads=threads or None)
    with tempfile.TemporaryDirectory() as scratch:
        async with SnapStore.open(url or Sink(), index=index or f"{scratch}/index.db", limits=limits) as store:
            if warm:
                await _warm(store, Path(scratch))
            with clock(traffic if url.startswith("s3:") else None) as inside:
                made = await asyncio.gather(*(store.create(f"app-{number}", folder) for number in range(at_once)))
            inside.values["archive_bytes"] = float(sum(report.size or 0 for report in made))
            if any(report.problems for report in made):
                raise SystemExit("members were changed or unreadable")
        inside.tell()


async def restore(url: str, index: str, target: str, paths: tuple[str, ...] = (), threads: int = 0) -> None:
    traffic = Traffic()
    async with SnapStore.open(url, index=index, limits=Limits(threads=threads or None)) as store:
        with tempfile.TemporaryDirectory() as scratch:
            await _warm(store, Path(scratch))
        with clock(traffic if url.startswith("s3:") else None) as inside:
            await store.restore("app-0@latest", target, paths=paths)
    inside.tell()


async def read(url: str, index: str, path: str, target: str) -> None:
    """One file's content."""
    traffic = Traffic()
    async with SnapStore.open(url, index=index) as store:
        with tempfile.TemporaryDirectory() as scratch:
            await _warm(store, Path(scratch))
        with clock(traffic if url.startswith("s3:") else None) as inside:
            pieces = [piece async for piece in store.read("app-0@latest", path)]
    Path(target).write_bytes(b"".join(pieces))
    inside.tell()


async def _warm(store: SnapStore, scratch: Path) -> None:
    folder = scratch / "warm"
    folder.mkdir()
    (folder / "file").write_text("warm")
    await store.delete((await store.create("warm", folder)).id)


STEPS: dict[str, Step] = {
    "create": create,
    "restore": restore,
    "read": read,
    "index": inside_index.index,
    "pages": inside_index.pages,
    "index-on-store": inside_store.index_on_store,
    "application": inside_application.application,
    "crowd": inside_application.crowd,
    "floors": inside_floors.floors,
    "older-create": older.create,
    "older-list": older.list_by_label,
    "tarfile-create": older.create_with_tarfile,
}


def main() -> None:
    step, options = sys.argv[1], json.loads(sys.argv[2])
    asyncio.run(STEPS[step](**options))


if __name__ == "__main__":
    main()
