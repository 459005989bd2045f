"""Which rows of the catalog stand in which checkpoint."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from aiosqlite import Connection

from snapstore.index import rows
from snapstore.index.database import Database
from snapstore.model import Snapshot


class Checkpoint(NamedTuple):
    """A checkpoint that this index has read or written."""

    number: int
    name: str
    complete: bool
    """Whether all its rows have been told."""


class Coverage:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def checkpoints(self) -> Sequence[Checkpoint]:
        found = await self._database.scan("SELECT checkpoint, name, snapshots > 0 FROM checkpoint")
        return [Checkpoint(number, name, bool(complete)) for number, name, complete in found]

    async def add(self, name: str, modified: float) -> int:
        """Remember a checkpoint whose rows will be told, and return its number."""

        async def change(connection: Connection) -> None:
            await connection.execute(
                "INSERT OR IGNORE INTO checkpoint (name, modified, snapshots) VALUES (?, ?, 0)", [name, modified]
            )

        await self._database.change(change)
        [(number,)] = await self._database.scan("SELECT checkpoint FROM checkpoint WHERE name = ?", [name])
        return int(number)

    async def complete(self, number: int, snapshots: int) -> None:
        """All its rows have been told."""
        values = [max(snapshots, 1), number]  # not 0, which says that it is not complete

        async def change(connection: Connection) -> None:
            await connection.execute("UPDATE checkpoint SET snapshots = ? WHERE checkpoint = ?", values)

        await self._database.change(change)

    async def date(self, dates: Sequence[tuple[float, str]]) -> None:
        """When these were written, by name."""

        async def change(connection: Connection) -> None:
            await connection.executemany("UPDATE checkpoint SET modified = ? WHERE name = ?", dates)

        await self._database.change(change)

    async def forget(self, numbers: Collection[int]) -> None:
        """They are not in the bucket any more."""
        if not numbers:
            return
        values = [(number,) for number in numbers]

        async def change(connection: Connection) -> None:
            await connection.executemany("UPDATE snapshot SET checkpoint = NULL WHERE checkpoint = ?", values)
            await connection.executemany("DELETE FROM checkpoint WHERE checkpoint = ?", values)

        await self._database.change(change)

    async def cover(self, number: int, etags: Sequence[tuple[bytes, str]]) -> None:
        """Ids and ETags that a checkpoint has. A row that several have belongs to the newest, on every node alike."""

        async def change(connection: Connection) -> None:
            await connection.executemany(_COVER, [(number, *found) for found in etags])

        await self._database.change(change)

    async def counts(self) -> Mapping[int | None, int]:
        """How many rows belong to each checkpoint, and (None) to none."""
        return dict(await self._database.scan("SELECT checkpoint, count(*) FROM snapshot GROUP BY checkpoint"))

    async def rows(self, numbers: Collection[int], after: bytes, limit: int) -> Sequence[tuple[Snapshot, str]]:
        """Snapshot and ETag of rows of these checkpoints, and of none, by id, from the first after ``after``."""
        places = ", ".join("?" * len(numbers))
        return await self._database.scan(
            "SELECT s.id, a.name, s.detail, s.etag FROM snapshot s JOIN app a USING (app)"
            f" WHERE s.id > ? AND (s.checkpoint IS NULL OR s.checkpoint IN ({places})) ORDER BY s.id LIMIT ?",
            [after, *numbers, limit],
            read=lambda row: (rows.unpack(row[:3]), row[3]),
        )


_COVER = """
UPDATE snapshot SET checkpoint = ?1 WHERE id = ?2 AND etag = ?3 AND NOT EXISTS (
    SELECT 1 FROM checkpoint has, checkpoint new WHERE has.checkpoint = snapshot.checkpoint AND new.checkpoint = ?1
        AND (has.modified, has.name) > (new.modified, new.name))
"""
