"""Making and restoring archives."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.contestants import CAT, COMMAND_LINE, RCLONE, RESTIC, RESTIC_RESTORE, SNAPSTORE
from benchmarks.corpora import KINDS, Corpus, walk
from benchmarks.packing import creating, to_nowhere, uncompressed
from benchmarks.processes import Failed
from benchmarks.race import Bench
from benchmarks.restoring import Stored

QUICK = "small-files:200"
_SMALL_FILE = 64 << 10


def _mixed(bench: Bench) -> Corpus:
    return bench.corpus("small-files", quick=QUICK)


def create_null(bench: Bench) -> None:
    corpus = _mixed(bench)
    bench.race("create-null", corpus, to_nowhere(bench, corpus))


def create(bench: Bench) -> None:
    _create(bench, None)


def create_judged(bench: Bench) -> None:
    _create(bench, {SNAPSTORE, COMMAND_LINE, RCLONE, RESTIC})


def _create(bench: Bench, names: Iterable[str] | None) -> None:
    corpus = _mixed(bench)
    bench.race("create", corpus, creating(bench, corpus, names))


def restore(bench: Bench) -> None:
    _restore(bench, None)


def restore_judged(bench: Bench) -> None:
    _restore(bench, {SNAPSTORE, COMMAND_LINE, CAT, RESTIC_RESTORE})


def _restore(bench: Bench, names: Iterable[str] | None) -> None:
    corpus = _mixed(bench)
    stored = Stored(bench, corpus, names)
    bench.race("restore", corpus, stored.restoring())
    stored.remove()


def restore_folder(bench: Bench) -> None:
    corpus = _mixed(bench)
    stored = Stored(bench, corpus)
    folders = [path for path, _ in walk(corpus.folder) if path.is_dir()]
    if not folders:
        raise Failed(f"{corpus.folder} has no folder in it: choose another corpus")
    chosen = folders[len(folders) // 2]
    bench.race("restore-folder", corpus, stored.restoring((str(chosen.relative_to(corpus.folder)),)))
    stored.remove()


def restore_file(bench: Bench) -> None:
    _restore_file(bench, None)


def restore_file_judged(bench: Bench) -> None:
    _restore_file(bench, {SNAPSTORE, COMMAND_LINE, RESTIC_RESTORE})


def _restore_file(bench: Bench, names: Iterable[str] | None) -> None:
    corpus = _mixed(bench)
    stored = Stored(bench, corpus, names)
    bench.race("restore-file", corpus, stored.reading(str(_small_file(corpus.folder))))
    stored.remove()


def _small_file(folder: Path) -> Path:
    """The small file that stands in the middle of them all."""
    files = [path for path, status in walk(folder) if path.is_file() and 0 < status.st_size <= _SMALL_FILE]
    if not files:
        raise Failed(f"{folder} has no file of at most {_SMALL_FILE >> 10} KiB: choose another corpus")
    return files[len(files) // 2].relative_to(folder)


def random(bench: Bench) -> None:
    corpus = bench.corpus("large-random", quick="large-random:16M")
    bench.race("random", corpus, uncompressed(bench, corpus))


def memory(bench: Bench) -> None:
    """Whole processes, so snapstore's is its command line."""
    corpora = [QUICK] if bench.quick else ["small-files", "large-random:1G"]
    for name in [bench.chosen] if bench.chosen else corpora:
        corpus = bench.corpus(name, quick=name)
        bench.race("memory of create", corpus, creating(bench, corpus, {COMMAND_LINE, RCLONE}))
        stored = Stored(bench, corpus, {COMMAND_LINE, CAT})
        bench.race("memory of restore", corpus, stored.restoring())
        stored.remove()


def shapes(bench: Bench) -> None:
    sizes = {"tiny": "tiny:500", "wide": "wide:500", "deep": "deep:20", "webapp": "webapp:100"}
    small = sizes | {"large-compressible": "large-compressible:8M"}
    for name in KINDS:
        if name not in small:
            continue
        corpus = bench.corpus(name, quick=small[name])
        bench.race(f"create {name}", corpus, creating(bench, corpus, {SNAPSTORE, RCLONE}))
        stored = Stored(bench, corpus, {SNAPSTORE, CAT})
        bench.race(f"restore {name}", corpus, stored.restoring())
        stored.remove()


def cost(bench: Bench) -> None:
    corpus = bench.corpus("webapp", quick="webapp:100")
    bench.race("cost", corpus, creating(bench, corpus))
