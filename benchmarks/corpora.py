"""The folders to measure on: made once from a seed, kept in a cache, and read whole before they are used.

That reading checks the digest of what is there, and brings it into the page cache, where it is for everyone alike. A
corpus is never downloaded. ``NAME:SIZE`` makes another size of it: ``small-files:2000``, ``large-random:256M``.
"""

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from benchmarks import trees
from benchmarks.processes import Failed
from benchmarks.results import CorpusUsed

_PIECE = 1 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Kind(NamedTuple):
    about: str
    make: Callable[[Path, int], None]
    size: int
    """How many files, or bytes for large ones, unless told otherwise."""
    digest: str
    """Of that size, so that a number measured on one machine is of the same bytes as on another."""


class Corpus(NamedTuple):
    name: str
    folder: Path
    used: CorpusUsed


KINDS = {
    "small-files": Kind(
        "30,000 source-like files, 438 MB",
        trees.source_files,
        30_000,
        "27b6c14b4dd6dc73c324719694dd6c75feb1f83c9bd03afedd65f73b03f96c6d",
    ),
    "webapp": Kind(
        "code, uploads, a database file and logs",
        trees.web_application,
        6_000,
        "33f6577bde58d062585ba9be72e7e2a84305337ddc197e70fe46c14969b85f12",
    ),
    "large-compressible": Kind(
        "four large files of log lines",
        trees.compressible_files,
        1 << 30,
        "eb5eeda1a8df20344d533d5787a2d3127a2098323e6518c41d8048f6b42b7e98",
    ),
    "large-random": Kind(
        "one large file of random bytes",
        trees.random_file,
        4 << 30,
        "3f7589546eb92f5c774de9d142ac3e878672d7712c76c7220850bffb1f47fcff",
    ),
    "deep": Kind(
        "folders 200 deep",
        trees.deep_tree,
        200,
        "32213596a6cd71b3691a9215046f425e3278d677d840b48c725ae069213365ed",
    ),
    "wide": Kind(
        "50,000 files in one folder",
        trees.wide_folder,
        50_000,
        "2b1f5ba9e4b57d0fe1ff930753bca7ae12b32a97459f2c19334a393c31556475",
    ),
    "tiny": Kind(
        "200,000 files of up to 1 KiB",
        trees.tiny_files,
        200_000,
        "a969e08e4f214bef2cbdb392e4001c7912730c424f1bc731c11fbbe3b4e1af8e",
    ),
}


def check(name: str) -> None:
    """Failed where there is no such corpus, and no such folder."""
    if not _is_folder(name):
        _parse(name)


def _is_folder(name: str) -> bool:
    return ("/" in name or name == ".") and Path(name).is_dir()


def prepare(name: str, cache: Path) -> Corpus:
    """The corpus of this name (or a folder of the user's), made if it is not there yet, checked, and warm."""
    folder = Path(name)
    if _is_folder(name):
        return Corpus(name, folder.resolve(), _used(f"./{folder.resolve().name}", folder))
    kind, size = _parse(name)
    folder = cache / name.replace(":", "-")
    known = folder.with_suffix(".digest")
    if not known.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        kind.make(folder, size)
        known.write_text(_used(name, folder).digest)
    used = _used(name, folder)
    expected = (kind.digest if size == kind.size else "") or known.read_text()
    if used.digest != expected:
        raise Failed(f"the corpus in {folder} is not what its seed makes: remove it and {known}, then run again")
    return Corpus(name, folder, used)


def describe(folder: Path) -> CorpusUsed:
    """What a folder holds, such as a restored one; its digest is that of its source where all came back."""
    return _used("", folder)


def _parse(name: str) -> tuple[Kind, int]:
    found = re.fullmatch(r"([\w-]+)(?::(\d+)([KMG]?))?", name)
    if not found or found[1] not in KINDS:
        raise Failed(f"no corpus {name!r}: choose of {', '.join(KINDS)} (or NAME:SIZE), or give a folder with a slash")
    kind = KINDS[found[1]]
    return kind, int(found[2]) * _UNITS[found[3]] if found[2] else kind.size


def _used(name: str, folder: Path) -> CorpusUsed:
    digest = blake3()
    files = size = 0
    for path, status in walk(folder):
        digest.update(f"{path.relative_to(folder)}\0{stat.S_IFMT(status.st_mode):o}\0".encode(errors="surrogateescape"))
        if stat.S_ISLNK(status.st_mode):
            digest.update(os.fsencode(os.readlink(path)))
        elif stat.S_ISREG(status.st_mode):
            files += 1
            size += status.st_size
            digest.update(_content(path))
    return CorpusUsed(name, digest.hexdigest(), files, size)


def walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All that is below a folder, in the order of its names."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        yield Path(entry.path), entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))


def _content(path: Path) -> bytes:
    digest = blake3()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.digest()
