"""The label index, on a made-up fleet."""

from collections.abc import Callable

from benchmarks import older
from benchmarks.processes import measured
from benchmarks.race import Bench, Contestant

PAGE_OF_OURS = "snapstore"
PAGE_OF_OLDER = "older system at 1,000"
_QUICK = 10_000


def of(count: int) -> Callable[[Bench], None]:
    """All phases in one process, once: they take long at a million."""

    def index(bench: Bench) -> None:
        if bench.quick and count > _QUICK:
            bench.say("  takes too long to be only seen to run")
            return
        snapshots, latency = (1_000, 0.001) if bench.quick else (count, 0.1)
        bench.say(f"a fleet of {snapshots:,} snapshots")
        command = bench.worker("index", count=snapshots, cache=str(bench.cache), latency=latency)
        bench.run(f"index {snapshots}", "", 1, None, command)

    return index


def on_store(bench: Bench) -> None:
    """Of a store that is there, with its requests."""
    count = 200 if bench.quick else 10_000
    bench.say(f"the metadata of {count:,} snapshots is put into the store")
    command = bench.worker("index-on-store", url=bench.place.url("index"), count=count)
    bench.run(f"index on the store {count}", "", 1, None, command)
    bench.place.remove("index")


def list_page(bench: Bench) -> None:
    """Ours is the mean of 200 pages, each of another label; theirs is one listing."""
    count, theirs = (1_000, 20) if bench.quick else (1_000_000, 1_000)
    place = bench.place
    if place.is_bucket:
        older.put_metadata(place.url("older-list"), theirs, place.client())
    bench.say(f"an index of {count:,} snapshots (filled once, and kept)")
    ours = bench.worker("pages", count=count, cache=str(bench.cache))
    measured(ours)
    listed = bench.worker("older-list", url=place.url("older-list"), label="owner:7")
    name = f"list-page at {count:,}" if bench.quick else "list-page"  # a smaller one is not judged
    contestants = [
        Contestant(PAGE_OF_OURS, lambda _: ours),
        Contestant(PAGE_OF_OLDER, lambda _: listed, "older", needs_bucket=True),
    ]
    bench.race(name, None, contestants)
    place.remove("older-list")
