"""Who packs a folder into a store: snapstore and its peers, each as its own manual says.

All compress with zstd at level 3 where they can be told, and all read the same warm files.
"""

import shutil
from collections.abc import Callable, Iterable
from shlex import quote

from benchmarks.contestants import (
    BORG_CREATE,
    COMMAND_LINE,
    PROGRAM,
    RCLONE,
    RESTIC,
    RESTIC_BACKUP,
    SNAPSTORE,
    TO_NOWHERE,
    borg_environment,
    done,
    packed,
    restic_environment,
)
from benchmarks.corpora import Corpus
from benchmarks.processes import Command, pipeline
from benchmarks.race import Bench, Contestant


def creating(bench: Bench, corpus: Corpus, names: Iterable[str] | None = None) -> list[Contestant]:
    """Those that make a snapshot in the store, or only the named ones."""
    place, scratch = bench.place, bench.workplace

    def ours(number: int) -> Command:
        return bench.worker("create", folder=str(corpus.folder), url=place.url(f"ours-{number}"))

    def where(number: int) -> list[str]:
        return ["--url", place.url(f"cli-{number}"), "--index", str(scratch / "cli" / "index.db")]

    def command_line(number: int) -> Command:
        return Command([PROGRAM, "create", "app", str(corpus.folder), *where(number)], place.environment)

    def with_index(number: int) -> None:
        """As restic is given a repository: the first command on a bucket makes its index, an empty one here."""
        bench.scratch("cli")
        if place.is_bucket:
            done([PROGRAM, "list", *where(number)], place.environment)

    def rclone(number: int) -> Command:
        return Command(
            pipeline(*packed(corpus.folder), f"rclone rcat {quote(place.rclone(f'rclone-{number}/archive'))}"),
            place.environment,
        )

    def aws(number: int) -> Command:
        return Command(
            pipeline(*packed(corpus.folder), f"aws s3 cp --only-show-errors - {place.url(f'aws-{number}/archive')}"),
            place.environment,
        )

    def restic(number: int) -> Command:
        return Command(RESTIC_BACKUP, restic_environment(bench, f"restic-{number}"), corpus.folder)

    def borg(number: int) -> Command:
        argv = [*BORG_CREATE, f"{scratch}/borg-{number}::archive", "."]
        return Command(argv, borg_environment(bench), corpus.folder)

    def borg_init(number: int) -> None:
        done(["borg", "init", "-e", "none", f"{scratch}/borg-{number}"], borg_environment(bench))

    def in_python(step: str, name: str) -> Callable[[int], Command]:
        return lambda number: bench.worker(
            step, url=place.url(f"{name}-{number}"), folder=str(corpus.folder), scratch=str(bench.scratch(name))
        )

    def removed(name: str) -> Callable[[int], None]:
        return lambda number: place.remove(f"{name}-{number}")

    everyone = [
        Contestant(SNAPSTORE, ours, after=removed("ours")),
        Contestant(COMMAND_LINE, command_line, before=with_index, after=removed("cli")),
        Contestant(RCLONE, rclone, "rclone", ("tar", "zstd", "rclone"), after=removed("rclone")),
        Contestant("tar | zstd | aws s3 cp -", aws, "aws", ("tar", "zstd", "aws"), True, after=removed("aws")),
        Contestant(
            RESTIC,
            restic,
            "restic",
            ("restic",),
            before=lambda number: done(["restic", "init"], restic_environment(bench, f"restic-{number}")),
            after=removed("restic"),
        ),
        Contestant(
            "borg create (a folder)",
            borg,
            "borg",
            ("borg",),
            before=borg_init,
            after=lambda number: shutil.rmtree(scratch / f"borg-{number}"),
        ),
        Contestant(
            "tarfile, then boto3",
            in_python("tarfile-create", "tarfile"),
            "tarfile",
            ("boto3",),
            True,
            after=removed("tarfile"),
        ),
        Contestant(
            "older system: archive, then upload",
            in_python("older-create", "older"),
            "older",
            ("tar", "zstd", "boto3"),
            True,
            after=removed("older"),
        ),
    ]
    return [one for one in everyone if names is None or one.name in names]


def to_nowhere(bench: Bench, corpus: Corpus) -> list[Contestant]:
    """Making an archive that nobody keeps."""
    tar, zstd = packed(corpus.folder)
    return [
        Contestant(SNAPSTORE, lambda _: bench.worker("create", folder=str(corpus.folder))),
        Contestant(TO_NOWHERE, lambda _: Command(pipeline(tar, f"{zstd} > /dev/null")), "tar", ("tar", "zstd")),
    ]


def uncompressed(bench: Bench, corpus: Corpus) -> list[Contestant]:
    """A tar that is not worth compressing, sent as it is, beside snapstore as it always works."""
    [ours, *_] = creating(bench, corpus, [SNAPSTORE])

    def rclone(number: int) -> Command:
        to = quote(bench.place.rclone(f"plain-{number}/archive"))
        tar, _ = packed(corpus.folder)
        return Command(pipeline(tar, f"rclone rcat {to}"), bench.place.environment)

    removed: Callable[[int], None] = lambda number: bench.place.remove(f"plain-{number}")  # noqa: E731
    return [ours, Contestant("tar | rclone rcat", rclone, "rclone", ("tar", "rclone"), after=removed)]
