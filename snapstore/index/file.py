"""The index file: made where it is missing, found to be ours and this store's, and brought to the newest schema."""

import os
import sqlite3
from contextlib import closing

from snapstore.errors import CatalogError, CatalogMismatch, reason_of
from snapstore.index.migrations import migrate

_APPLICATION_ID = 0x534E4150  # "SNAP", as the first migration sets it: no other program's file is taken for ours
_MAGIC = b"SQLite format 3\0"
_PATIENCE = 60.0
"""Seconds to wait for another process that opens the same file."""
_OTHER_FILE = "move it away, or give another file (index=, --index, SNAPSTORE_INDEX)"


def prepare(path: str, store_url: str) -> None:
    """Make the file ready for the store at ``store_url``. CatalogTooNew, CatalogMismatch, CatalogError."""
    _make(path)
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=_PATIENCE)) as connection:
            _check_ours(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            migrate(connection, path)
            connection.execute("INSERT OR IGNORE INTO store (only, url) VALUES (1, ?)", [store_url])
            (found,) = connection.execute("SELECT url FROM store").fetchone()
    except sqlite3.DatabaseError as error:
        raise unusable(path, error) from error
    if found != store_url:
        raise CatalogMismatch(
            path,
            f"the index {path!r} belongs to {found}, not to {store_url}: {_OTHER_FILE}, which is filled from it",
        )


def unusable(path: str, error: sqlite3.DatabaseError) -> CatalogError:
    """What SQLite says of a file that is damaged, on a full disk, or not ours to write to."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        advice = "make room for it and check that it may be written to"
    else:
        advice = "move it away, and a new one is filled from the store"
    return CatalogError(path, f"the index {path!r} cannot be used ({error}): {advice}")


def _make(path: str) -> None:
    """An empty private file where there is none; SQLite makes a database of it, and gives its companions its mode."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(descriptor, "rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        reason = reason_of(error)
        raise CatalogError(path, f"the index {path!r} cannot be opened ({reason}): {_OTHER_FILE}") from error
    if magic not in (b"", _MAGIC):
        raise CatalogMismatch(path, f"{path!r} is no index of snapstore's, but some other file: {_OTHER_FILE}")


def _check_ours(connection: sqlite3.Connection, path: str) -> None:
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise CatalogMismatch(path, f"{path!r} is no index of snapstore's, but another database: {_OTHER_FILE}")
