"""The label index as calls use it: what is listed, and the changes that calls make to it themselves."""

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from aiosqlite import Connection

from snapstore.aio import Workers
from snapstore.errors import AmbiguousId
from snapstore.index import changes, file, rows
from snapstore.index.database import Database, NotFilled
from snapstore.index.lock import turn, when_free
from snapstore.index.mirror import Mirror
from snapstore.index.queries import COLUMNS, SELECT, Query, Rarity, counting, page_statement
from snapstore.model import Count, IndexStatus, Page, Snapshot

_ONE = f"SELECT {COLUMNS} FROM snapshot s JOIN app a USING (app) WHERE s.id = ?"
_PROBLEMS = "(SELECT count(*) FROM problem) + (SELECT count(*) FROM misnamed)"
_FIELDS = f"url, {_PROBLEMS}, (SELECT user_version FROM pragma_user_version)"


class Catalog:
    """An open index file; made by `Catalog.open`."""

    def __init__(self, database: Database, workers: Workers, store_url: str) -> None:
        self.database = database
        self.workers = workers
        self.store_url = store_url
        self.mirror = Mirror(database)

    @classmethod
    async def open(cls, path: str, store_url: str, workers: Workers) -> "Catalog":
        """Open the index at ``path`` for the store at ``store_url``, and make it where it is missing or damaged.

        CatalogTooNew, CatalogMismatch for another store's index or another program's file, CatalogError.
        """
        path = await workers.run(os.path.abspath, path)
        await when_free(path, lambda: _try_prepare(path, store_url, workers))
        return cls(Database(path), workers, store_url)

    @property
    def path(self) -> str:
        return self.database.path

    async def aclose(self) -> None:
        await self.database.aclose()

    async def is_filled(self) -> bool:
        """Whether it has held all of its bucket once."""
        try:
            self.database.filled = bool((await self.database.fetch("SELECT filled FROM store"))[0][0])
        except NotFilled:
            return False
        return self.database.filled

    async def page(self, query: Query, limit: int, cursor: str | None = None) -> Page:
        """Up to ``limit`` snapshots that fit, newest first, going on from ``cursor``. InvalidInput for a bad one."""
        after = rows.parse_cursor(cursor) if cursor is not None else None
        rarity = Rarity()
        if count := counting(query):
            [counts] = await self.database.fetch(count.sql, count.values)
            rarity = count.rarity(counts)
        sql, values = page_statement(query, after, rarity)
        found = await self.database.fetch(sql, [*values, limit + 1], read=_placed)
        snapshots = tuple(snapshot for _, snapshot in found[:limit])
        more = len(found) > limit
        return Page(snapshots, rows.make_cursor(found[limit - 1][0], snapshots[-1].id) if more else None)

    async def find(self, prefix: str) -> Snapshot | None:
        """The snapshot whose id is, or begins with, ``prefix``. AmbiguousId where several do."""
        digits = prefix.replace("-", "").lower()
        if not digits or len(digits) > 32 or not set(digits) <= set("0123456789abcdef"):
            return None
        first, last = bytes.fromhex(digits.ljust(32, "0")), bytes.fromhex(digits.ljust(32, "f"))
        sql = f"{SELECT} WHERE s.id BETWEEN ? AND ? ORDER BY s.id LIMIT 4"
        found = [snapshot for _, snapshot in await self.database.fetch(sql, [first, last], read=_placed)]
        if len(found) > 1:
            raise AmbiguousId(prefix, [snapshot.id for snapshot in found])
        return found[0] if found else None

    async def those_read(self, ids: Collection[bytes]) -> set[bytes]:
        """Those of these ids whose metadata it has read, be it that this could not be understood."""
        places = ", ".join("?" * len(ids))
        sql = f"SELECT id FROM snapshot WHERE id IN ({places}) UNION ALL SELECT id FROM problem WHERE id IN ({places})"
        return {row[0] for row in await self.database.fetch(sql, [*ids, *ids])}

    async def apps(self) -> list[Count]:
        """Every app, and how many snapshots it has, by name."""
        sql = "SELECT a.name, count(*) FROM app a JOIN snapshot s USING (app) GROUP BY a.app ORDER BY a.name"
        return [Count(*row) for row in await self.database.scan(sql)]

    async def labels(self, key: str | None) -> list[Count]:
        """Every label's key, or every label of a key, and how many snapshots have it, by name."""
        if key is None:
            where, values = "instr(l.name, ':') = 0", []
        else:
            # From `key:` to what comes after all that begins so: `;` follows `:`.
            where, values = "l.name >= ? AND l.name < ?", [f"{key}:", f"{key};"]
        sql = (
            f"SELECT l.name, count(*) FROM label l JOIN snapshot_label USING (label) WHERE {where}"
            " GROUP BY l.label ORDER BY l.name"
        )
        # A label without a value is written as it was given.
        return [Count(name.removesuffix(":"), count) for name, count in await self.database.scan(sql, values)]

    async def status(self) -> IndexStatus:
        [(url, problems, schema)] = await self.database.fetch(f"SELECT {_FIELDS} FROM store")
        covered = dict(
            await self.database.scan("SELECT checkpoint IS NOT NULL, count(*) FROM snapshot GROUP BY 1 ORDER BY 1")
        )
        return IndexStatus(
            path=self.path,
            store=url,
            snapshots=sum(covered.values()),
            covered=covered.get(1, 0),
            problems=problems,
            synced_at=(await self.mirror.synced()).whole,
            size=await self.workers.run(file.size, self.path),
            schema=schema,
        )

    async def put(self, entries: Sequence[tuple[Snapshot, str]]) -> None:
        """Add snapshots that we made, with their metadata's ETags."""
        found = [rows.pack(snapshot, etag) for snapshot, etag in entries]

        async def change(connection: Connection) -> None:
            await changes.put(connection, found)
            await changes.note(connection, [row.id for row in found])

        await self.database.change(change)

    async def update(self, snapshot: Snapshot, etag: str) -> None:
        """Bring a snapshot that we changed up to date, unless another process has changed or deleted it since."""
        row = rows.pack(snapshot, etag)

        async def change(connection: Connection) -> None:
            there = await connection.execute_fetchall(_ONE, [row.id])
            if any(rows.unpack(before).revision <= snapshot.revision for before in there):
                await changes.put(connection, [row])
            await changes.note(connection, [row.id])

        await self.database.change(change)

    async def remove(self, ids: Iterable[bytes]) -> None:
        """Drop snapshots that we found to be gone; those that are not there are no error."""
        gone = list(ids)

        async def change(connection: Connection) -> None:
            await changes.remove(connection, gone)
            await changes.note(connection, gone)

        await self.database.change(change)


def _placed(row: Any) -> tuple[int, Snapshot]:
    """A snapshot with its position."""
    return row[0], rows.unpack(row[1:])


async def _try_prepare(path: str, store_url: str, workers: Workers) -> bool:
    try:
        await _prepare(path, store_url, workers)
    except file.Locked:
        return False
    return True


async def _prepare(path: str, store_url: str, workers: Workers) -> None:
    try:
        await workers.run(file.prepare, path, store_url)
    except file.Damaged:
        async with turn(path):
            await workers.run(file.prepare_or_replace, path, store_url)
