"""Who restores what was packed: all of it, a folder, one file. What comes back is compared with its source."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from shlex import quote

from benchmarks import corpora
from benchmarks.contestants import (
    BORG_CREATE,
    BORG_EXTRACT,
    CAT,
    COMMAND_LINE,
    PROGRAM,
    RESTIC_BACKUP,
    RESTIC_DUMP,
    RESTIC_RESTORE,
    SNAPSTORE,
    borg_environment,
    done,
    packed,
    restic_environment,
)
from benchmarks.corpora import Corpus
from benchmarks.peers import missing
from benchmarks.processes import Command, Failed, pipeline
from benchmarks.race import Bench, Contestant

_PIPE = ("rclone", "tar", "zstd")


class Stored:
    """One snapshot of a corpus by everyone who shall restore it."""

    def __init__(self, bench: Bench, corpus: Corpus, names: Iterable[str] | None = None) -> None:
        self._bench = bench
        self._corpus = corpus
        self._names = names
        place = bench.place
        self._index = str(bench.scratch("stored") / "index.db")
        worker = bench.worker(
            "create", folder=str(corpus.folder), url=place.url("stored-ours"), index=self._index, warm=False
        )
        done(worker.argv, worker.environment, worker.folder)
        if self._wants(CAT, "rclone", _PIPE):
            to = quote(place.rclone("stored-rclone/archive"))
            done(pipeline(*packed(corpus.folder), f"rclone rcat {to}"), place.environment)
        if self._wants(RESTIC_RESTORE, "restic", ("restic",)):
            restic = restic_environment(bench, "stored-restic")
            done(["restic", "init"], restic)
            done(RESTIC_BACKUP, restic, corpus.folder)
        if self._wants(BORG_EXTRACT, "borg", ("borg",)):
            done(["borg", "init", "-e", "none", f"{bench.workplace}/borg-stored"], borg_environment(bench))
            archive = f"{bench.workplace}/borg-stored::archive"
            done([*BORG_CREATE, archive, "."], borg_environment(bench), corpus.folder)

    def _wants(self, name: str, peer: str, needs: tuple[str, ...]) -> bool:
        """Whether that contestant takes part: asked for, and all here that it needs."""
        asked = self._bench.asks_for(peer) and (self._names is None or name in self._names)
        return asked and not missing(needs)

    def restoring(self, paths: tuple[str, ...] = ()) -> list[Contestant]:
        """Those that restore all of it, or these files and folders, to memory."""
        bench, place = self._bench, self._bench.place
        url = place.url("stored-ours")

        def target(name: str) -> Callable[[int], Path]:
            return lambda number: bench.memory / f"{name}-{number}"

        def ours(number: int) -> Command:
            to = str(target("ours")(number))
            return bench.worker("restore", url=url, index=self._index, target=to, paths=paths)

        def command_line(number: int) -> Command:
            chosen = [word for path in paths for word in ("--path", path)]
            to = str(target("cli")(number))
            argv = [PROGRAM, "restore", "app-0@latest", to, *chosen, "--url", url, "--index", self._index]
            return Command(argv, place.environment)

        def cat(number: int) -> Command:
            chosen = " ".join(quote(f"./{path}") for path in paths)
            unpack = f"tar --zstd -xf - -C {quote(str(target('rclone')(number)))} {chosen}"
            archive = quote(place.rclone("stored-rclone/archive"))
            return Command(pipeline(f"rclone cat {archive}", unpack), place.environment)

        def restic(number: int) -> Command:
            chosen = [word for path in paths for word in ("--include", f"/{path}")]
            argv = ["restic", "restore", "-q", "latest", "--target", str(target("restic")(number)), *chosen]
            return Command(argv, restic_environment(bench, "stored-restic"))

        def borg(number: int) -> Command:
            argv = ["borg", "extract", f"{bench.workplace}/borg-stored::archive", *paths]
            return Command(argv, borg_environment(bench), target("borg")(number))

        everyone = [
            Contestant(SNAPSTORE, ours, after=self._checked(target("ours"), paths)),
            Contestant(COMMAND_LINE, command_line, after=self._checked(target("cli"), paths)),
            Contestant(
                CAT,
                cat,
                "rclone",
                _PIPE,
                before=lambda number: target("rclone")(number).mkdir(),
                after=self._checked(target("rclone"), paths),
            ),
            Contestant(RESTIC_RESTORE, restic, "restic", ("restic",), after=self._checked(target("restic"), paths)),
            Contestant(
                BORG_EXTRACT,
                borg,
                "borg",
                ("borg",),
                before=lambda number: target("borg")(number).mkdir(),
                after=self._checked(target("borg"), paths),
            ),
        ]
        return [one for one in everyone if self._names is None or one.name in self._names]

    def reading(self, path: str) -> list[Contestant]:
        """Those that give one file's content."""
        bench, place = self._bench, self._bench.place
        url = place.url("stored-ours")
        out = bench.memory / "one-file"
        expected = (self._corpus.folder / path).read_bytes()

        def same(_: int) -> None:
            if out.read_bytes() != expected:
                raise Failed(f"{path} did not come back as it was")
            out.unlink()

        def to_file(*argv: str) -> list[str]:
            return pipeline(f"{' '.join(map(quote, argv))} > {quote(str(out))}")

        command_line = to_file(PROGRAM, "cat", "app-0@latest", path, "--url", url, "--index", self._index)
        restic = to_file("restic", "dump", "-q", "latest", f"/{path}")
        unpack = f"tar --zstd -xOf - {quote(f'./{path}')} > {quote(str(out))}"
        cat = pipeline(f"rclone cat {quote(place.rclone('stored-rclone/archive'))}", unpack)
        everyone = [
            Contestant(
                SNAPSTORE,
                lambda _: bench.worker("read", url=url, index=self._index, path=path, target=str(out)),
                after=same,
            ),
            Contestant(COMMAND_LINE, lambda _: Command(command_line, place.environment), after=same),
            Contestant(CAT, lambda _: Command(cat, place.environment), "rclone", _PIPE, after=same),
            Contestant(
                RESTIC_DUMP,
                lambda _: Command(restic, restic_environment(bench, "stored-restic")),
                "restic",
                ("restic",),
                after=same,
            ),
        ]
        wanted = self._names
        return [one for one in everyone if wanted is None or one.name.replace(RESTIC_DUMP, RESTIC_RESTORE) in wanted]

    def remove(self) -> None:
        for name in ("ours", "rclone", "restic"):
            self._bench.place.remove(f"stored-{name}")
        shutil.rmtree(self._bench.workplace / "borg-stored", ignore_errors=True)

    def _checked(self, target: Callable[[int], Path], paths: tuple[str, ...]) -> Callable[[int], None]:
        def check(number: int) -> None:
            folder = target(number)
            for path in paths or (".",):
                came, was = (corpora.describe(root / path) for root in (folder, self._corpus.folder))
                if came.digest != was.digest:
                    is_changed = path == "." and was.digest != self._corpus.used.digest
                    why = " (the source was changed while it was measured)" if is_changed else ""
                    raise Failed(
                        f"{folder / path} is not what was packed: {came.files:,} files of {came.size:,} bytes, instead"
                        f" of {was.files:,} of {was.size:,}{why}"
                    )
            shutil.rmtree(folder)

        return check
