"""Who is measured against each other: their names, and what their commands need around them."""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from shlex import quote

from benchmarks.processes import Failed, environment
from benchmarks.race import Bench

SNAPSTORE = "snapstore, in process"
COMMAND_LINE = "snapstore, command line"
RCLONE = "tar | zstd | rclone rcat"
RESTIC = "restic backup"
TO_NOWHERE = "tar | zstd > /dev/null"
CAT = "rclone cat | tar -x"
RESTIC_RESTORE = "restic restore"
RESTIC_DUMP = "restic dump"
BORG_EXTRACT = "borg extract (a folder)"

PROGRAM = str(Path(sys.executable).parent / "snapstore")
"""Our command line."""


RESTIC_BACKUP = ["restic", "backup", "-q", "."]
BORG_CREATE = ["borg", "create", "-C", "zstd,3"]


def packed(folder: Path) -> tuple[str, str]:
    """The programs of a pipe that an archive of ``folder`` comes out of."""
    return f"tar -cf - -C {quote(str(folder))} .", "zstd -3 -T0 -q"


def restic_environment(bench: Bench, name: str) -> dict[str, str]:
    """For commands on the repository of this name in the store."""
    cache = str(bench.workplace / "restic-cache")
    place = bench.place
    return {**place.environment, "RESTIC_REPOSITORY": place.restic(name), "RESTIC_CACHE_DIR": cache}


def borg_environment(bench: Bench) -> dict[str, str]:
    return {"BORG_BASE_DIR": str(bench.workplace / "borg"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}


def done(argv: Iterable[str], more: Mapping[str, str], folder: Path | None = None) -> None:
    """Run what is not measured; Failed where it fails."""
    argv = list(argv)
    done = subprocess.run(argv, env=environment(more), cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr[-2000:]}")
