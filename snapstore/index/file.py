"""The index file: made where it is missing, found to be ours and this store's, brought to the newest schema.

It is a cache: one that is ours and damaged is moved aside, and a new one made, which is then filled from the store.
"""

import contextlib
import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from snapstore.errors import CatalogError, CatalogMismatch, reason_of
from snapstore.index.migrations import migrate

log = logging.getLogger("snapstore.index")

_APPLICATION_ID = b"SNAP"  # as the first migration sets it: no other program's file is taken for ours
_APPLICATION_ID_AT = 68  # https://www.sqlite.org/fileformat2.html, 1.3
_MAGIC = b"SQLite format 3\0"
PATIENCE = 60.0
"""Seconds to wait for another process that has the same file locked: its transactions take milliseconds."""
_LOCKED_SECONDS = 0.5
"""Of those, how long a thread waits at a time."""
_OTHER_FILE = "move it away, or give another file (index=, --index, SNAPSTORE_INDEX)"
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SUFFIXES = ("", "-wal", "-shm")
"""The files of an index: itself, and what SQLite keeps beside it."""
_ENDS = (
    ("snapshot", ("position", "id", "app")),
    ("snapshot_label", ("label", "position")),
    ("label", ("label", "name")),
    ("app", ("app", "name")),
)
"""Tables and columns with an index: both ends of each are read, which a file that was cut or overwritten lacks."""


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
    ours = _make(path)
    if ours and os.path.exists(_mark(path)):
        raise Damaged
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=_LOCKED_SECONDS)) as connection:
            _check_ours(connection, path)
            # A cache may lose its last transactions with the machine's power; each need not wait for the disk.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_mode = WAL")
            migrate(connection, path)
            connection.execute("INSERT OR IGNORE INTO store (only, url) VALUES (1, ?)", [store_url])
            (found,) = connection.execute("SELECT url FROM store").fetchone()
            _probe(connection, path)
    except sqlite3.DatabaseError as error:
        if ours and is_damage(error):
            raise Damaged from error
        if is_locked(error):
            raise Locked from error
        raise unusable(path, error) from error
    if found != store_url:
        raise CatalogMismatch(
            path,
            f"the index {path!r} belongs to {found}, not to {store_url}: {_OTHER_FILE}, which is filled from it",
        )


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


def connect(path: str, *, writes: bool = False) -> sqlite3.Connection:
    """A connection of one's own to an index; where it was deleted, none is made."""
    return sqlite3.connect(uri(path, writes=writes), uri=True, isolation_level=None, timeout=PATIENCE)


def uri(path: str, *, writes: bool) -> str:
    """What SQLite opens an index by, whatever its name holds, and makes none where it was deleted."""
    return f"{Path(path).as_uri()}?mode={'rw' if writes else 'ro'}"


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether SQLite says that the file's content is wrong, rather than that it cannot be had."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def is_locked(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def remember_damage(path: str) -> None:
    """It was found in use: whoever opens the index next shall not take it for a sound one."""
    with contextlib.suppress(OSError):
        os.close(os.open(_mark(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _mark(path: str) -> str:
    return f"{path}-damaged"


def _move_aside(path: str) -> str:
    aside = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + suffix, aside + suffix)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_mark(path))
    return aside


def unusable(path: str, error: sqlite3.DatabaseError) -> CatalogError:
    """What SQLite says of a file that is damaged, on a full disk, or not ours to write to."""
    if is_damage(error) or not os.path.exists(path) or _lacks_tables(error):
        advice = "open the store again (or run `snapstore index rebuild`), and a new one is filled from it"
    else:
        advice = "make room for it and check that it may be written to"
    return CatalogError(path, f"the index {path!r} cannot be used ({error}): {advice}")


def _lacks_tables(error: sqlite3.DatabaseError) -> bool:
    """Whether it is not the file that was opened: that had them, and another program has put this one there."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR and "no such" in str(error)


def _make(path: str) -> bool:
    """An empty private file where there is none; SQLite makes a database of it, and gives its companions its mode.

    Returns whether one is there that says it is ours.
    """
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(descriptor, "rb") as file:
            header = file.read(100)
    except OSError as error:
        reason = reason_of(error)
        raise CatalogError(path, f"the index {path!r} cannot be opened ({reason}): {_OTHER_FILE}") from error
    if header and not header.startswith(_MAGIC):
        raise CatalogMismatch(path, f"{path!r} is no index of snapstore's, but some other file: {_OTHER_FILE}")
    return header[_APPLICATION_ID_AT:].startswith(_APPLICATION_ID)


def _check_ours(connection: sqlite3.Connection, path: str) -> None:
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    found = connection.execute("PRAGMA application_id").fetchone()[0]
    if tables and found != int.from_bytes(_APPLICATION_ID, "big"):
        raise CatalogMismatch(path, f"{path!r} is no index of snapstore's, but another database: {_OTHER_FILE}")


def size(path: str) -> int:
    """Bytes of an index, with what SQLite keeps beside it."""
    return sum(os.path.getsize(file) for suffix in _SUFFIXES if os.path.exists(file := path + suffix))


def remove(path: str) -> None:
    """An index with all that belongs to it, where it is there."""
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_mark(path))
