"""More threads, and more snapshots at once."""

from benchmarks.processes import Command
from benchmarks.race import Bench, Contestant
from benchmarks.restoring import Stored
from benchmarks.suite.archives import QUICK


def threads(bench: Bench) -> None:
    corpus = bench.corpus("small-files", quick=QUICK)
    stored = Stored(bench, corpus, ())
    index = str(bench.workplace / "stored" / "index.db")

    def create(count: int) -> Contestant:
        return Contestant(
            f"create, threads: {count}", lambda _: bench.worker("create", folder=str(corpus.folder), threads=count)
        )

    def restore(count: int) -> Contestant:
        def command(_: int) -> Command:
            target = str(bench.target("threads"))
            url = bench.place.url("stored-ours")
            return bench.worker("restore", url=url, index=index, target=target, threads=count)

        return Contestant(f"restore, threads: {count}", command)

    counts = (1, 2, 4)
    bench.race("threads", corpus, [*map(create, counts), *map(restore, counts)])
    bench.target("threads")
    stored.remove()


def concurrent(bench: Bench) -> None:
    """The time is that of all of them together."""
    corpus = bench.corpus("small-files:5000", quick=QUICK)

    def create(count: int) -> Contestant:
        url = bench.place.url(f"concurrent-{count}")
        return Contestant(
            f"{count} at once",
            lambda _: bench.worker("create", folder=str(corpus.folder), url=url, at_once=count),
            after=lambda _: bench.place.remove(f"concurrent-{count}"),
        )

    bench.race("concurrent", corpus, [create(count) for count in (1, 4, 8)])
