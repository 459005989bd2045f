"""What an application feels, and what the parts of the work cost alone."""

from benchmarks.race import Bench
from benchmarks.suite.archives import QUICK


def loop(bench: Bench) -> None:
    corpus = bench.corpus("small-files:25000", quick=QUICK)
    for number in range(1, bench.repeat + 1):
        target = str(bench.target("loop"))
        url = bench.place.url(f"loop-{number}")
        command = bench.worker("application", url=url, folder=str(corpus.folder), target=target)
        bench.run("loop", "", number, corpus, command)
        bench.place.remove(f"loop-{number}")


def floors(bench: Bench) -> None:
    corpus = bench.corpus("small-files", quick=QUICK)
    for number in range(1, bench.repeat + 1):
        url = bench.place.url(f"floors-{number}")
        bench.run("floors", "", number, corpus, bench.worker("floors", folder=str(corpus.folder), url=url))
        bench.place.remove(f"floors-{number}")
