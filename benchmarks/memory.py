"""Peak resident memory of create and restore, each in a process of its own, against the folder's size.

The peak is the kernel's own account (``ru_maxrss``) of a child that imports snapstore, does one thing and ends.
"""

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import trees
from snapstore import SnapStore

CORPORA: dict[str, Callable[[Path], None]] = {
    "a file of 4 GiB": lambda folder: trees.random_file(folder, 4 << 30),
    "200,000 files": lambda folder: trees.tiny_files(folder, 200_000),
    "a file of 64 MiB": lambda folder: trees.random_file(folder, 64 << 20),
    "2,000 files": lambda folder: trees.tiny_files(folder, 2_000),
}


def measure(names: list[str], workplace: Path | None, store: str | None) -> None:
    """Print a line a corpus and step: seconds, and peak memory in MiB. ``store``: default a folder in the workplace."""
    print(f"{'corpus':20} {'step':8} {'seconds':>8} {'peak MiB':>9}")
    for name in names or CORPORA:
        with tempfile.TemporaryDirectory(dir=workplace) as folder:
            source = Path(folder, "source")
            source.mkdir()
            CORPORA[name](source)
            for step in ("create", "ls", "restore", "delete"):
                started = time.monotonic()
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.memory", step, folder, store or f"{folder}/store"],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                peak = json.loads(done.stdout)["peak"] / 1024
                print(f"{name:20} {step:8} {time.monotonic() - started:8.1f} {peak:9.0f}")


async def _step(step: str, folder: Path, url: str) -> None:
    async with SnapStore.open(url, index=folder / "index.db") as store:
        if step == "create":
            await store.create("app", folder / "source")
        elif step == "restore":
            await store.restore("app@latest", folder / "target")
        elif step == "delete":
            await store.delete_app("app")
        else:
            async for _ in store.members("app@latest"):
                pass


if __name__ == "__main__":
    asyncio.run(_step(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
