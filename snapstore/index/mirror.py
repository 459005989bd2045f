"""The catalog as a mirror of its bucket: what a sync asks of it, and writes into it.

While a sync runs, calls of this and other processes go on changing the bucket and the catalog. Each such change is
noted (`changes.note`), and what a sync has read of that snapshot is not written: it is read once more at the end.
"""

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence, Set
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from aiosqlite import Connection

from snapstore.aio import uninterrupted
from snapstore.errors import CatalogError
from snapstore.index import changes, rows
from snapstore.index.database import Database
from snapstore.index.pauses import Pauses
from snapstore.index.rows import Row

_LAST = b"\xff" * 17  # after every id

_KNOWN = """
SELECT * FROM (SELECT id, etag, 1 FROM snapshot WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3)
UNION ALL SELECT * FROM (SELECT id, etag, 0 FROM problem WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3)
UNION ALL SELECT NULL, coalesce(max(change), 0), 0 FROM local_change
"""
_LONGEST = timedelta(days=365_000)
"""A window beyond this is all of time."""
_AT_ONCE = 2000
"""Ids that are told at a time, and so dropped at most in one transaction."""


class Known(NamedTuple):
    """What a catalog has of a range of ids, at one moment."""

    etags: Mapping[bytes, str]
    """Of metadata objects, those that could not be understood among them."""
    problems: frozenset[bytes]
    """Those that could not be understood."""
    upto: bytes | None
    """How far these go, where there is more of them; None where there is not."""
    mark: int
    """The last change of calls of ours that is in it."""

    def listed(self) -> Set[bytes]:
        """Those that have a row."""
        return self.etags.keys() - self.problems


class Problem(NamedTuple):
    """A metadata object that could not be understood."""

    id: bytes
    etag: str
    reason: str


class Synced(NamedTuple):
    """When the last syncs of an index began; None where there was none."""

    whole: datetime | None
    latest: datetime | None
    """Of either kind."""
    window: timedelta | None
    """That of the latest; None where it was whole."""


class Mirror:
    """One sync at a time works with it: its caller holds the index's lock."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sync = 0
        """What the sync that is under way has signed the file with: another file could take its place meanwhile."""
        self.pauses = Pauses(lambda: database.read_at)
        """For a sync beside those who read the index."""
        self.logged: set[str] = set()
        """Objects that lie where metadata belongs and have no id's name, which were logged once."""

    @asynccontextmanager
    async def noting(self) -> AsyncIterator[None]:
        """Within it, changes that calls make are noted, and the file is signed: only so can anything be written."""
        await self.begin()
        try:
            yield
        except BaseException:
            # An error here matters less than what brought us here: the next sync begins by forgetting what was noted.
            with suppress(CatalogError):
                await uninterrupted(self._end(patience=0))
            raise
        await uninterrupted(self._end())

    async def begin(self) -> None:
        self._sync = sync = 1 + secrets.randbits(62)

        async def change(connection: Connection) -> None:
            await connection.execute("DELETE FROM local_change")
            await connection.execute("UPDATE store SET syncing = ?", [sync])

        await self._database.change(change)

    async def _end(self, patience: float | None = None) -> None:
        async def change(connection: Connection) -> None:
            await self._check(connection)
            await connection.execute("UPDATE store SET syncing = 0")
            await connection.execute("DELETE FROM local_change")

        await self._database.change(change, patience=patience)

    async def _check(self, connection: Connection) -> None:
        [(found,)] = await connection.execute_fetchall("SELECT syncing FROM store")
        self.check(found)

    def check(self, sync: int) -> None:
        """CatalogError where a file that says so is not the one any more in which our sync began."""
        if sync != self._sync:
            raise CatalogError(
                self._database.path,
                f"another file took the place of the index {self._database.path!r} while it was filled: do it again",
            )

    async def known(self, after: bytes, upto: bytes | None) -> Known:
        """What is in it of the ids greater than ``after``, up to ``upto`` (None: all that follow), or fewer of them."""
        last = _LAST if upto is None else upto
        *found, (_, mark, _) = await self._database.scan(_KNOWN, [after, last, _AT_ONCE])
        more = None
        for kind in (0, 1):
            ids = [snapshot_id for snapshot_id, _, listed in found if listed == kind]
            if len(ids) == _AT_ONCE:
                more = min(more or ids[-1], ids[-1])
        etags = {snapshot_id: etag for snapshot_id, etag, _ in found if more is None or snapshot_id <= more}
        problems = frozenset(snapshot_id for snapshot_id, _, listed in found if not listed and snapshot_id in etags)
        return Known(etags, problems, more, int(mark))

    async def apply(
        self,
        mark: int,
        found: Sequence[Row] = (),
        problems: Sequence[Problem] = (),
        gone: Iterable[bytes] = (),
        checkpoint: int | None = None,
    ) -> Sequence[bytes]:
        """Write what was read: snapshots, what could not be understood, and ids that are gone.

        Snapshots that calls of ours changed after ``mark`` are left out, and returned.
        """
        gone = set(gone)
        left_out: set[bytes] = set()

        async def change(connection: Connection) -> None:
            await self._check(connection)
            late = await connection.execute_fetchall("SELECT id FROM local_change WHERE change > ?", [mark])
            left_out.update(snapshot_id for (snapshot_id,) in late)
            kept = [row for row in found if row.id not in left_out]
            wrong = [problem for problem in problems if problem.id not in left_out]
            await changes.remove(connection, (gone - left_out) | {problem.id for problem in wrong})
            await connection.executemany(
                "DELETE FROM problem WHERE id = ?", [(snapshot_id,) for snapshot_id in gone | {row.id for row in kept}]
            )
            await connection.executemany("INSERT OR REPLACE INTO problem VALUES (?, ?, ?)", wrong)
            await changes.put(connection, kept, checkpoint)

        await self._database.change(change)
        seen = {row.id for row in found} | {problem.id for problem in problems} | gone
        return [snapshot_id for snapshot_id in left_out if snapshot_id in seen]

    async def mark(self) -> int:
        """The last change of calls of ours."""
        [(mark,)] = await self._database.scan("SELECT coalesce(max(change), 0) FROM local_change")
        return int(mark)

    async def noted(self) -> Sequence[bytes]:
        """The snapshots that calls of ours have changed since `begin`."""
        return [row[0] for row in await self._database.scan("SELECT DISTINCT id FROM local_change")]

    async def count(self) -> int:
        [(count,)] = await self._database.scan("SELECT count(*) FROM snapshot")
        return int(count)

    async def covered(self) -> int:
        """How many snapshots stand in checkpoints as they are here."""
        [(count,)] = await self._database.scan("SELECT count(checkpoint) FROM snapshot")
        return int(count)

    async def cuts(self, step: int) -> Sequence[bytes]:
        """Every ``step``-th id."""
        found: list[bytes] = []
        for number in range(step, await self.count(), step):
            found += [
                row[0]
                for row in await self._database.scan(
                    "SELECT id FROM snapshot ORDER BY id LIMIT 1 OFFSET ?", [number - 1]
                )
            ]
        return found

    async def problems(self, limit: int) -> Sequence[str]:
        """What is wrong with what lies where metadata belongs, a sentence each."""
        misnamed = await self._database.scan("SELECT key FROM misnamed ORDER BY key LIMIT ?", [limit])
        found = await self._database.scan("SELECT reason FROM problem ORDER BY id LIMIT ?", [limit])
        return [*(misnaming(key) for (key,) in misnamed), *(reason for (reason,) in found)][:limit]

    async def finish(self, began: datetime, misnamed: Sequence[str]) -> None:
        """It holds all that its bucket held when the sync began, but for these keys, which are no snapshots'."""

        async def change(connection: Connection) -> None:
            await self._check(connection)
            await connection.execute(
                "UPDATE store SET filled = 1, synced = ?1, synced_recent = ?1, recent_window = NULL",
                [rows.microseconds(began)],
            )
            await connection.execute("DELETE FROM misnamed")
            await connection.executemany("INSERT OR IGNORE INTO misnamed VALUES (?)", [(key,) for key in misnamed])

        await self._database.change(change)

    async def finish_recent(self, began: datetime, window: timedelta) -> None:
        """It holds all that was begun so long before the sync before this one, or since."""
        values = [rows.microseconds(began), min(window, _LONGEST) // timedelta(microseconds=1)]

        async def change(connection: Connection) -> None:
            await self._check(connection)
            await connection.execute("UPDATE store SET synced_recent = ?, recent_window = ?", values)

        await self._database.change(change)

    async def synced(self) -> Synced:
        """When the last syncs began."""
        sql = "SELECT synced, synced_recent, recent_window FROM store"
        found: list[Synced] = await self._database.scan(sql, read=_synced)
        return found[0]


def misnaming(key: str) -> str:
    """What is wrong with an object where metadata belongs that is named otherwise."""
    return f"{key}: its name is no snapshot's id"


def _synced(row: Any) -> Synced:
    whole, latest, window = row
    return Synced(
        None if whole is None else rows.moment(whole),
        None if latest is None else rows.moment(latest),
        None if window is None else rows.moment(window) - rows.moment(0),
    )
