"""What a service feels that has snapstore in it, and what the parts of the work cost alone."""

import shutil

from benchmarks.race import Bench
from benchmarks.suite.archives import QUICK

_CROWD = 200


def load(bench: Bench) -> None:
    corpus = bench.corpus("small-files:25000", quick=QUICK)
    for number in range(1, bench.repeat + 1):
        targets = bench.target("load")
        targets.mkdir()
        url = bench.place.url(f"load-{number}")
        command = bench.worker("application", url=url, folder=str(corpus.folder), targets=str(targets))
        bench.run("load", "", number, corpus, command)
        shutil.rmtree(targets)
        bench.place.remove(f"load-{number}")


def crowd(bench: Bench) -> None:
    corpus = bench.corpus("small-files:5000", quick=QUICK)
    targets = bench.target("crowd")
    targets.mkdir()
    command = bench.worker(
        "crowd",
        url=bench.place.url("crowd"),
        folder=str(corpus.folder),
        targets=str(targets),
        count=8 if bench.quick else _CROWD,
    )
    bench.run("crowd", "", 1, corpus, command)
    shutil.rmtree(targets)
    bench.place.remove("crowd")


def floors(bench: Bench) -> None:
    corpus = bench.corpus("small-files", quick=QUICK)
    for number in range(1, bench.repeat + 1):
        url = bench.place.url(f"floors-{number}")
        bench.run("floors", "", number, corpus, bench.worker("floors", folder=str(corpus.folder), url=url))
        bench.place.remove(f"floors-{number}")
