"""Bring an index file to the newest schema: numbered SQL files, applied in one transaction."""

import re
import sqlite3
from contextlib import suppress
from functools import cache
from pathlib import Path

from snapstore.errors import CatalogTooNew

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "migrations", _PACKAGE.parent / "migrations")
"""Within an installed wheel, and in a checkout."""


@cache
def scripts() -> tuple[str, ...]:
    """The migrations in order; the first makes version 1."""
    folder = next(folder for folder in _FOLDERS if folder.is_dir())
    files = sorted(path for path in folder.iterdir() if re.fullmatch(r"\d{4}_\w+\.sql", path.name))
    return tuple(path.read_text() for path in files)


def version() -> int:
    """The schema that this snapstore writes."""
    return len(scripts())


def migrate(connection: sqlite3.Connection, path: str, store_url: str) -> None:
    """Apply what is missing, and say whose index it is, where it does not. CatalogTooNew where the file is ahead of us.

    All in one transaction: others may be reading the file, who must not meet it half made.
    """
    if _found(connection, path) == version() and connection.execute("SELECT count(*) FROM store").fetchone()[0]:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked under the write lock: another process may have been here meanwhile.
        found = _found(connection, path)
        for script in scripts()[found:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version()}")
        connection.execute("INSERT OR IGNORE INTO store (only, url) VALUES (1, ?)", [store_url])
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # rolled back by itself, where the disk is full
            connection.execute("ROLLBACK")
        raise


def _found(connection: sqlite3.Connection, path: str) -> int:
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > version():
        raise CatalogTooNew(
            path,
            f"the index {path!r} has schema {found}, and this snapstore knows up to {version()}: upgrade snapstore, or"
            " move it away, or give another (index=, --index, SNAPSTORE_INDEX): it is filled from the store",
        )
    return found


def _statements(script: str) -> list[str]:
    """``executescript`` would commit the transaction that we are in, so statements are run one by one."""
    statements = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    if pending.strip():
        statements.append(pending)
    return statements
