"""Put the content of one index file into another, in one transaction that every process sees whole or not at all.

The file itself stays: others have it open, and SQLite's companions belong to its name. So its pages are overwritten, by
SQLite's online backup (https://www.sqlite.org/backup.html), which a reader meets as it meets any other commit.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing

from snapstore.aio import Stopped
from snapstore.index import damage, file
from snapstore.index.changes import FREE
from snapstore.index.lock import locked_too_long

_POLL = 0.05
"""Seconds for which we wait at a time while another process has the index locked."""
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_PAGES = 8
"""A step's: fewer than an index has, so that the first step is not the last."""

_BEFORE = (
    "DELETE FROM snapshot WHERE id IN (SELECT id FROM old.local_change)",
    """
    INSERT OR IGNORE INTO app (name)
    SELECT a.name FROM old.snapshot s JOIN old.app a USING (app) WHERE s.id IN (SELECT id FROM old.local_change)
    """,
    """
    INSERT OR IGNORE INTO label (name)
    SELECT l.name FROM old.snapshot s JOIN old.snapshot_label USING (position) JOIN old.label l USING (label)
    WHERE s.id IN (SELECT id FROM old.local_change)
    """,
)
_CARRY = (
    # At a free position, as it would have been put. One by one: a statement for all of them would look for free
    # positions before it took one.
    f"""
    INSERT INTO snapshot (position, id, app, etag, detail)
    SELECT {FREE.format(first="s.position", wanted="s.position", id="s.id")},
           s.id, (SELECT app FROM main.app WHERE name = a.name), s.etag, s.detail
    FROM old.snapshot s JOIN old.app a USING (app) WHERE s.id = ?1
    """,
    """
    INSERT OR IGNORE INTO snapshot_label (label, position)
    SELECT (SELECT label FROM main.label WHERE name = l.name), n.position
    FROM old.snapshot s JOIN old.snapshot_label sl USING (position) JOIN old.label l ON l.label = sl.label
         JOIN main.snapshot n ON n.id = s.id
    WHERE s.id = ?1
    """,
)
_GONE = "SELECT count(*) FROM old.snapshot s WHERE NOT EXISTS (SELECT 1 FROM main.snapshot WHERE id = s.id)"
_AFTER = (
    "DELETE FROM local_change",
    "INSERT INTO local_change SELECT * FROM old.local_change",
    "UPDATE store SET syncing = (SELECT syncing FROM old.store)",
)


def replace(path: str, successor: str, check: Callable[[int], None], stop: threading.Event) -> None:
    """Make the index at ``path`` what the one at ``successor`` is; blocks. CatalogError, Stopped.

    ``check`` is given the sync that the one at ``path`` says is under way, and raises where that is another one. While
    another process has the index locked it is tried again, for as long as for any other change, until ``stop`` is set.

    What calls changed in the old one meanwhile (`changes.note`) is carried over once no further change can come: the
    backup's first step has the write lock until it ends, and takes along what is written to its source.
    """
    try:
        _replace(path, successor, check, stop)
    except damage.ERRORS as error:
        raise damage.unusable(path, error) from error


def gone(path: str, successor: str) -> int:
    """How many snapshots of the index at ``path`` the one at ``successor`` does not have; blocks."""
    try:
        with closing(file.connect(successor)) as new:
            new.execute("ATTACH ? AS old", [file.uri(path, writes=False)])
            return int(new.execute(_GONE).fetchone()[0])
    except damage.ERRORS:
        return 0  # nobody knows what a damaged one had


def _replace(path: str, successor: str, check: Callable[[int], None], stop: threading.Event) -> None:
    with (
        closing(file.connect(successor, writes=True)) as source,
        closing(file.connect(path, writes=True, patience=_POLL)) as target,
    ):
        source.execute("PRAGMA foreign_keys = ON")
        source.execute("ATTACH ? AS old", [file.uri(path, writes=False)])
        carried = False
        deadline = time.monotonic() + file.PATIENCE

        def step(status: int, _left: int, _total: int) -> None:
            nonlocal carried
            if status in _LOCKED:
                if stop.is_set():
                    raise Stopped
                if time.monotonic() > deadline:
                    raise locked_too_long(path)
            elif status == sqlite3.SQLITE_OK and not carried:
                carried = True
                _carry(source, check)

        source.backup(target, pages=_PAGES, progress=step, sleep=_POLL)
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _carry(source: sqlite3.Connection, check: Callable[[int], None]) -> None:
    source.execute("BEGIN")  # not at once: that would want to write to the old one too
    check(source.execute("SELECT syncing FROM old.store").fetchone()[0])
    for statement in _BEFORE:
        source.execute(statement)
    changed = source.execute("SELECT DISTINCT id FROM old.local_change").fetchall()
    for statement in _CARRY:
        source.executemany(statement, changed)
    for statement in _AFTER:
        source.execute(statement)
    source.execute("COMMIT")
