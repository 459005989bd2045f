"""How an index tells that its file is damaged, in whatever words, and that this was noticed.

SQLite has no digests: it notices what breaks its structure, and a flipped bit in a value shows where that is decoded,
or never. Since an index is a cache, all that shows is treated alike: the file is moved aside at its next opening.
"""

import contextlib
import os
import sqlite3

from snapstore.errors import CatalogError

ERRORS = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What reading an index raises: SQLite's messages quote what they found, which may be no text for Python."""

_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)
_WORDS = ("no such", "has no column", "malformed", "Could not decode")
"""Of a schema that is not ours (any more), and of texts that are none."""


class Garbled(sqlite3.DatabaseError):
    """A row whose content cannot be what was written."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def is_damage(error: Exception) -> bool:
    """Whether this says that the file's content is wrong, rather than that it cannot be had."""
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return code in _CODES or (code == sqlite3.SQLITE_ERROR and any(word in str(error) for word in _WORDS))


def unusable(path: str, error: Exception) -> CatalogError:
    """What SQLite says of a file that is damaged, on a full disk, or not ours to write to."""
    if is_damage(error) or not os.path.exists(path):
        advice = "open the store again (or run `snapstore index rebuild`), and a new one is filled from it"
    else:
        advice = "make room for it and check that it may be written to"
    return CatalogError(path, f"the index {path!r} cannot be used ({error}): {advice}")


def remember(path: str) -> None:
    """It was found in use: whoever opens the index next shall not take it for a sound one."""
    with contextlib.suppress(OSError):
        os.close(os.open(_mark(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def is_remembered(path: str) -> bool:
    return os.path.exists(_mark(path))


def forget(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_mark(path))


def _mark(path: str) -> str:
    return f"{path}-damaged"
