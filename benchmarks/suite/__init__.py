"""All benchmarks by name, with what each of them shows."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.race import Bench
from benchmarks.suite import application, archives, commands, index, scaling


class Benchmark(NamedTuple):
    about: str
    run: Callable[[Bench], None]


BENCHMARKS = {
    "create-null": Benchmark("make an archive that nobody keeps: reading, compressing, hashing", archives.create_null),
    "create": Benchmark("a full snapshot into the store: snapstore and every peer", archives.create),
    "restore": Benchmark("the whole of it back into memory", archives.restore),
    "restore-folder": Benchmark("one folder of it", archives.restore_folder),
    "restore-file": Benchmark("one small file of it", archives.restore_file),
    "random": Benchmark("one large file that does not compress", archives.random),
    "memory": Benchmark("peak memory of create and restore, against the pipelines'", archives.memory),
    "shapes": Benchmark("a snapshot and its restore of every other corpus", archives.shapes),
    "list-page": Benchmark(
        "a page by label at a million snapshots, and the older system's way at 1,000", index.list_page
    ),
    "index-10k": Benchmark("the index: fill, rebuild, sync, open, ask, at 10,000 snapshots", index.of(10_000)),
    "index-100k": Benchmark("the same at 100,000", index.of(100_000)),
    "index-1m": Benchmark("the same at a million, which takes many minutes to fill", index.of(1_000_000)),
    "index-store": Benchmark(
        "the index of 10,000 snapshots in the store itself: rebuilds, a sync, and their requests", index.on_store
    ),
    "start": Benchmark("each command from start to end, as far as it needs no network", commands.start),
    "load": Benchmark("a service's answers and its loop's delay while it creates and restores", application.load),
    "crowd": Benchmark("memory of a service with 200 creates and restores asked for at once", application.crowd),
    "threads": Benchmark("create and restore with 1, 2 and 4 threads", scaling.threads),
    "concurrent": Benchmark("1, 4 and 8 snapshots at the same time", scaling.concurrent),
    "floors": Benchmark("reading, zstd, hashing and sending, each alone", application.floors),
    "cost": Benchmark("requests of one nightly snapshot, from which `report` makes a month's bill", archives.cost),
}

JUDGED = {
    "create-null": archives.create_null,
    "create": archives.create_judged,
    "restore": archives.restore_judged,
    "restore-file": archives.restore_file_judged,
    "random": archives.random,
    "memory": archives.memory,
    "list-page": index.list_page,
    "start": commands.start_judged,
}
"""``run judged``: what the table of the README is made of, with those contestants alone that stand in it."""
