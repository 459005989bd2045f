"""How long a command takes from its start to its end."""

from collections.abc import Iterable

from benchmarks.contestants import PROGRAM, RESTIC_RESTORE, restic_environment
from benchmarks.processes import Command
from benchmarks.race import Bench, Contestant
from benchmarks.restoring import Stored

LIST = "snapstore list"
SNAPSHOTS = "restic snapshots"


def start(bench: Bench) -> None:
    _start(bench, None)


def start_judged(bench: Bench) -> None:
    _start(bench, {LIST, SNAPSHOTS})


def _start(bench: Bench, names: Iterable[str] | None) -> None:
    corpus = bench.corpus("small-files:2000", quick="small-files:200")
    stored = Stored(bench, corpus, {RESTIC_RESTORE})
    where = ["--url", bench.place.url("stored-ours"), "--index", str(bench.workplace / "stored" / "index.db")]
    own = {
        "--version": ["--version"],
        "--help": ["--help"],
        **{
            name: [*name.split(), *where]
            for name in ("list", "latest app-0", "show app-0@latest", "apps", "labels", "index status")
        },
        "ls app-0@latest (asks the store)": ["ls", "app-0@latest", *where],
        "index sync (asks the store)": ["index", "sync", *where],
    }

    def ours(arguments: list[str]) -> Contestant:
        name = next(name for name, given in own.items() if given is arguments)
        return Contestant(f"snapstore {name}", lambda _: Command([PROGRAM, *arguments], bench.place.environment))

    def theirs(name: str, program: str, *argv: str) -> Contestant:
        return Contestant(
            name, lambda _: Command([program, *argv], restic_environment(bench, "stored-restic")), program, (program,)
        )

    everyone = [
        *map(ours, own.values()),
        theirs(SNAPSHOTS, "restic", "snapshots"),
        theirs("restic version", "restic", "version"),
        theirs("rclone version", "rclone", "version"),
        theirs("aws --version", "aws", "--version"),
    ]
    bench.race("start", corpus, [one for one in everyone if names is None or one.name in names])
    stored.remove()
