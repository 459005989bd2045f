"""The index file: made where it is missing, found to be ours and this store's, brought to the newest schema.

It is a cache: one that is ours and damaged is moved aside, and a new one made, which is then filled from the store.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from snapstore.errors import CatalogError, CatalogMismatch, reason_of
from snapstore.index import damage
from snapstore.index.migrations import migrate, version

log = logging.getLogger("snapstore.index")

_APPLICATION_ID = b"SNAP"  # as the first migration sets it: no other program's file is taken for ours
_APPLICATION_ID_AT = 68  # https://www.sqlite.org/fileformat2.html, 1.3
_MAGIC = b"SQLite format 3\0"
PATIENCE = 60.0
"""Seconds to wait for another process that has the same file locked: its transactions take milliseconds."""
_LOCKED_SECONDS = 0.5
"""Of those, how long a thread waits at a time."""
_SMALLEST = 512
"""Bytes of a database: a page."""
_GIVEN = "(index=, --index, SNAPSTORE_INDEX)"
_OTHER_FILE = f"move it away, or give another file {_GIVEN}"
_SUFFIXES = ("", "-wal", "-shm")
"""The files of an index: itself, and what SQLite keeps beside it."""
_ENDS = (
    ("snapshot", ("position", "id", "app")),
    ("snapshot_label", ("label", "position")),
    ("label", ("label", "name")),
    ("app", ("app", "name")),
)
"""Tables and columns with an index: both ends of each are read, which a file that was cut or overwritten lacks."""


_in_use: Counter[str] = Counter()
"""The indexes that this process has open."""
_counting = threading.Lock()


class Damaged(Exception):
    """An index of ours that SQLite cannot read."""


class Locked(Exception):
    """Another process has the file to itself, for a moment."""


def prepare_or_replace(path: str, store_url: str) -> None:
    """`prepare`, and make a new file in the place of a damaged one. The caller holds the index's lock."""
    try:
        prepare(path, store_url)  # another process may have put it right meanwhile
    except Damaged as error:
        log.warning(
            "the index %s is damaged (%s): moved to %s; a new one is filled from the store",
            path,
            error.__cause__ or "as was found in use",
            _move_aside(path),
        )
        prepare(path, store_url)


def prepare_aside(path: str, store_url: str) -> None:
    """`prepare`, for a file that nobody else uses and that need not be kept: what cannot be used is thrown away."""
    try:
        prepare(path, store_url)
    except (Damaged, CatalogError):
        remove(path)
        prepare(path, store_url)


def prepare(path: str, store_url: str) -> None:
    """Make the file ready for the store at ``store_url``.

    CatalogTooNew, CatalogMismatch, CatalogError; Damaged; and Locked: then it is to be tried again.
    """
    _make(path)
    ours = False
    try:
        with closing(connect(path, writes=True, patience=_LOCKED_SECONDS)) as connection:
            ours = _is_ours(connection, path)
            if damage.is_remembered(path):
                raise Damaged
            # A cache may lose its last transactions with the machine's power; each need not wait for the disk.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_mode = WAL")
            _migrate(connection, path, store_url)
            (found,) = connection.execute("SELECT url FROM store").fetchone()
            _probe(connection, path)
    except damage.ERRORS as error:
        if is_locked(error):
            raise Locked from error
        if not damage.is_damage(error):
            raise damage.unusable(path, error) from error
        if ours or _header_is_ours(path):
            raise Damaged from error
        raise _other_file(path) from error
    if found != store_url:
        raise CatalogMismatch(
            path,
            f"the index {path!r} belongs to {found}, not to {store_url}: {_OTHER_FILE}, which is filled from it",
        )


def _migrate(connection: sqlite3.Connection, path: str, store_url: str) -> None:
    try:
        migrate(connection, path, store_url)
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_ERROR:
            raise
        # The script's fault, or that of a file that others have changed: ours to leave alone.
        message = f"the index {path!r} cannot be brought to schema {version()} ({error}): {_OTHER_FILE}"
        raise CatalogError(path, message) from error


def _probe(connection: sqlite3.Connection, path: str) -> None:
    for table, columns in _ENDS:
        for column in columns:
            for end in ("min", "max"):  # one by one: for both at once SQLite would read it all
                connection.execute(f"SELECT {end}({column}) FROM {table}").fetchone()
    pages, page_size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    logged = os.path.exists(f"{path}-wal") and os.path.getsize(f"{path}-wal")
    if not logged and os.path.getsize(path) < pages * page_size:
        error = sqlite3.DatabaseError("the file is shorter than it says")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def connect(path: str, *, writes: bool = False, patience: float = PATIENCE) -> sqlite3.Connection:
    """A connection of one's own to an index; where it was deleted, none is made."""
    return sqlite3.connect(uri(path, writes=writes), uri=True, isolation_level=None, timeout=patience)


def uri(path: str, *, writes: bool) -> str:
    """What SQLite opens an index by, whatever its name holds, and makes none where it was deleted."""
    return f"{Path(path).as_uri()}?mode={'rw' if writes else 'ro'}"


def is_locked(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _move_aside(path: str) -> str:
    aside = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    # The index itself comes last: once it is gone, another process may make a new one, with companions of its own.
    for suffix in reversed(_SUFFIXES):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + suffix, aside + suffix)
    damage.forget(path)
    return aside


def _make(path: str) -> None:
    """An empty private file where there is none; SQLite makes a database of it, and gives its companions its mode.

    One that is there is never opened but by SQLite: the system's locks belong to the process, and closing any
    descriptor of a file gives up all that the process has on it (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        size = os.path.getsize(path)
    except OSError as error:
        reason = reason_of(error)
        raise CatalogError(
            path, f"the index {path!r} cannot be opened ({reason}): give another file {_GIVEN}"
        ) from error
    if os.path.isdir(path):
        raise CatalogError(path, f"the index {path!r} is a folder: give a file {_GIVEN}")
    if 0 < size < _SMALLEST:  # which SQLite would take for an empty one
        raise _other_file(path)


def _other_file(path: str) -> CatalogMismatch:
    return CatalogMismatch(path, f"{path!r} is no index of snapstore's, but some other file: {_OTHER_FILE}")


def _is_ours(connection: sqlite3.Connection, path: str) -> bool:
    """Whether it says so; a file that is still empty will be. CatalogMismatch for another program's database."""
    (found,) = connection.execute("PRAGMA application_id").fetchone()
    if found == int.from_bytes(_APPLICATION_ID, "big"):
        return True
    if connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise CatalogMismatch(path, f"{path!r} is no index of snapstore's, but another database: {_OTHER_FILE}")
    return False


def _header_is_ours(path: str) -> bool:
    """Whether what SQLite takes for no database begins as an index of ours."""
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError:
        return False
    return header.startswith(_MAGIC) and header[_APPLICATION_ID_AT:].startswith(_APPLICATION_ID)


def use(path: str, times: int) -> None:
    """This process has opened an index (1), or closed it (-1)."""
    with _counting:
        _in_use[path] += times
        if not _in_use[path]:
            del _in_use[path]


def in_use() -> frozenset[tuple[int, int]]:
    """Device and inode of each file of the indexes that this process has open: to be left to SQLite, see `_make`."""
    with _counting:
        paths = tuple(_in_use)
    found = set()
    for path in (path + suffix for path in paths for suffix in _SUFFIXES):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def size(path: str) -> int:
    """Bytes of an index, with what SQLite keeps beside it."""
    return sum(os.path.getsize(file) for suffix in _SUFFIXES if os.path.exists(file := path + suffix))


def remove(path: str) -> None:
    """An index with all that belongs to it, where it is there."""
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)
    damage.forget(path)
