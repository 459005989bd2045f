"""Queries and changes of the label index, by aiosqlite: one connection that writes, a few that read.

The file is shared by any number of processes (WAL). Locks are held for one short transaction; where another process
holds the write lock, we wait in Python, so that a cancelled caller stops waiting.
"""

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import aiosqlite

from snapstore.aio import Workers, uninterrupted
from snapstore.errors import AmbiguousId, CatalogBusy, InvalidInput
from snapstore.index import rows
from snapstore.index.file import prepare, unusable
from snapstore.keys import split_label
from snapstore.model import Count, IndexStatus, Page, Snapshot

T = TypeVar("T")

_READERS = 4
_BUSY_MS = 50
_PATIENCE = 60.0
"""Seconds to wait for another process's write lock; its transactions take milliseconds."""


class Query(NamedTuple):
    """What a listing asks for: snapshots that fit all of it, newest first."""

    apps: Sequence[str] = ()
    labels: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None


class Catalog:
    """An open index file; made by `Catalog.open`."""

    def __init__(self, path: str, workers: Workers) -> None:
        self.path = path
        self._workers = workers
        self._writer: aiosqlite.Connection | None = None
        self._writing = asyncio.Lock()
        self._idle: list[aiosqlite.Connection] = []
        self._readers = asyncio.Semaphore(_READERS)
        self._removed: set[bytes] | None = None
        """What is removed while a rebuild runs, which may have read it just before."""

    @classmethod
    async def open(cls, path: str, store_url: str, workers: Workers) -> "Catalog":
        """Open the index at ``path`` for the store at ``store_url``, and make it where it is missing.

        CatalogTooNew, CatalogMismatch for another store's index or another program's file, CatalogError.
        """
        catalog = cls(await workers.run(os.path.abspath, path), workers)
        await workers.run(prepare, catalog.path, store_url)
        return catalog

    async def aclose(self) -> None:
        connections = [*self._idle, *([self._writer] if self._writer else [])]
        self._idle, self._writer = [], None
        for connection in connections:
            await uninterrupted(connection.close())

    async def is_filled(self) -> bool:
        """Whether it has held all of its bucket once."""
        return bool((await self._fetch("SELECT filled FROM store"))[0][0])

    async def page(self, query: Query, limit: int, cursor: str | None = None) -> Page:
        """Up to ``limit`` snapshots that fit, newest first, going on from ``cursor``. InvalidInput for a bad one."""
        sql, values = _page_sql(query, rows.parse_cursor(cursor) if cursor else None)
        found = await self._fetch(sql, [*values, limit + 1])
        snapshots = tuple(rows.unpack(row[1:]) for row in found[:limit])
        more = len(found) > limit and limit > 0
        return Page(snapshots, rows.make_cursor(found[limit - 1][0], snapshots[-1].id) if more else None)

    async def find(self, prefix: str) -> Snapshot | None:
        """The snapshot whose id is, or begins with, ``prefix``. AmbiguousId where several do."""
        digits = prefix.replace("-", "").lower()
        if not digits or len(digits) > 32 or not set(digits) <= set("0123456789abcdef"):
            return None
        first, last = bytes.fromhex(digits.ljust(32, "0")), bytes.fromhex(digits.ljust(32, "f"))
        found = await self._fetch(f"{_SELECT} WHERE s.id BETWEEN ? AND ? ORDER BY s.id LIMIT 4", [first, last])
        if len(found) > 1:
            raise AmbiguousId(prefix, [str(UUID(bytes=row[1])) for row in found])
        return rows.unpack(found[0][1:]) if found else None

    async def apps(self) -> list[Count]:
        """Every app, and how many snapshots it has, by name."""
        sql = "SELECT a.name, count(*) FROM app a JOIN snapshot s USING (app) GROUP BY a.app ORDER BY a.name"
        return [Count(*row) for row in await self._fetch(sql)]

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
        return [Count(*row) for row in await self._fetch(sql, values)]

    async def status(self) -> IndexStatus:
        [(url, synced, count, schema)] = await self._fetch(
            "SELECT url, synced, (SELECT count(*) FROM snapshot), (SELECT user_version FROM pragma_user_version)"
            " FROM store"
        )
        return IndexStatus(
            path=self.path,
            store=url,
            snapshots=count,
            synced_at=None if synced is None else rows.moment(synced),
            size=await self._workers.run(_size, self.path),
            schema=schema,
        )

    async def etags(self, after: bytes, upto: bytes, *, limit: int = -1) -> dict[bytes, str]:
        """Ids greater than ``after``, up to ``upto``, the first ``limit`` of them, with their metadata's ETags."""
        sql = "SELECT id, etag FROM snapshot WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
        return dict(await self._fetch(sql, [after, upto, limit]))

    @contextmanager
    def rebuilding(self) -> Iterator[Callable[[Sequence[tuple[Snapshot, str]]], Awaitable[None]]]:
        """A `put` for what a rebuild has read, which leaves out what is removed from now on."""
        removed = self._removed = set()

        async def put(entries: Sequence[tuple[Snapshot, str]]) -> None:
            await self._put(entries, removed)

        try:
            yield put
        finally:
            self._removed = None

    async def put(self, entries: Sequence[tuple[Snapshot, str]]) -> None:
        """Add snapshots with their metadata's ETags, or bring them up to date."""
        await self._put(entries, frozenset())

    async def _put(self, entries: Sequence[tuple[Snapshot, str]], removed: Collection[bytes]) -> None:
        packed = [rows.pack(snapshot, etag) for snapshot, etag in entries]
        names = {snapshot.id: _label_names(snapshot.labels) for snapshot, _ in entries}
        labels = [(name, UUID(snapshot_id).bytes) for snapshot_id, found in names.items() for name in found]

        async def change(connection: aiosqlite.Connection) -> None:
            # Known only now: this waits for its turn behind whatever removes something.
            kept = [row for row in packed if row[1] not in removed]
            await connection.executemany(
                "INSERT OR IGNORE INTO app (name) VALUES (?)", {(snapshot.app,) for snapshot, _ in entries}
            )
            await connection.executemany(
                "INSERT OR IGNORE INTO label (name) VALUES (?)", {(name,) for name, _ in labels}
            )
            await connection.executemany(_PUT, kept)
            await connection.executemany(
                "DELETE FROM snapshot_label WHERE position = (SELECT position FROM snapshot WHERE id = ?)",
                [(row[1],) for row in packed],
            )
            await connection.executemany(
                "INSERT OR IGNORE INTO snapshot_label SELECT l.label, s.position FROM label l, snapshot s"
                " WHERE l.name = ? AND s.id = ?",
                labels,
            )

        await self._change(change)

    async def remove(self, snapshot_ids: Iterable[bytes]) -> None:
        """Drop snapshots; those that are not there are no error."""
        ids = [(snapshot_id,) for snapshot_id in snapshot_ids]
        if self._removed is not None:
            self._removed.update(snapshot_id for (snapshot_id,) in ids)

        async def change(connection: aiosqlite.Connection) -> None:
            await connection.executemany("DELETE FROM snapshot WHERE id = ?", ids)

        await self._change(change)

    async def mark_filled(self, moment: datetime) -> None:
        """It holds all that its bucket held at ``moment``."""

        async def change(connection: aiosqlite.Connection) -> None:
            await connection.execute("UPDATE store SET filled = 1, synced = ?", [rows.microseconds(moment)])

        await self._change(change)

    async def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        async with self._reader() as connection:
            try:
                # Not left half-way: a statement cannot be taken back from its thread, and the connection is shared.
                return list(await uninterrupted(connection.execute_fetchall(sql, values)))
            except sqlite3.DatabaseError as error:
                raise unusable(self.path, error) from error

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self._readers:
            if not self._idle:
                # Into the pool first: a caller that is cancelled meanwhile leaves the connection to the next.
                await uninterrupted(self._add_reader())
            connection = self._idle.pop()
            try:
                yield connection
            finally:
                self._idle.append(connection)

    async def _add_reader(self) -> None:
        self._idle.append(await self._connect())

    async def _add_writer(self) -> None:
        self._writer = await self._connect()

    async def _connect(self) -> aiosqlite.Connection:
        connecting = aiosqlite.connect(self.path, isolation_level=None, timeout=_BUSY_MS / 1000)
        # A process that ends without closing its store must end all the same; SQLite needs no farewell.
        if (thread := getattr(connecting, "_thread", None)) is not None:
            thread.daemon = True
        connection = await connecting
        try:
            await connection.execute("PRAGMA foreign_keys = ON")
            await connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _change(self, change: Callable[[aiosqlite.Connection], Any]) -> None:
        """Run ``change`` in a transaction of its own, once the write lock is ours."""
        deadline = time.monotonic() + _PATIENCE
        async with self._writing:
            if self._writer is None:
                await uninterrupted(self._add_writer())
            assert self._writer is not None
            while not await uninterrupted(self._try_change(self._writer, change)):
                if time.monotonic() > deadline:
                    raise CatalogBusy(
                        self.path, f"the index {self.path!r} was locked by another process for {_PATIENCE:g} s"
                    )
                await asyncio.sleep(random.uniform(0.001, 0.02))

    async def _try_change(
        self, connection: aiosqlite.Connection, change: Callable[[aiosqlite.Connection], Any]
    ) -> bool:
        try:
            await connection.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                return False
            raise unusable(self.path, error) from error
        try:
            await change(connection)
            await connection.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):  # rolled back by itself, where the file is damaged
                await connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.DatabaseError):
                raise unusable(self.path, error) from error
            raise
        return True


_COLUMNS = "s.id, a.name, s.detail"
_SELECT = f"SELECT s.position, {_COLUMNS} FROM snapshot s JOIN app a USING (app)"

_PUT = """
INSERT INTO snapshot (position, id, app, etag, detail) VALUES (
    (WITH RECURSIVE taken (p) AS (
        SELECT ?1 UNION ALL
        SELECT p + 1 FROM taken WHERE EXISTS (SELECT 1 FROM snapshot WHERE position = p AND id <> ?2)
    ) SELECT max(p) FROM taken),
    ?2, (SELECT app FROM app WHERE name = ?3), ?4, ?5)
ON CONFLICT (id) DO UPDATE SET app = excluded.app, etag = excluded.etag, detail = excluded.detail
"""


def _page_sql(query: Query, after: tuple[int, bytes] | None) -> tuple[str, list[Any]]:
    """A page's statement and its values, the limit excepted; each reads one index from its newest end."""
    if not query.apps:
        sql, values = _one_listing(query, after, None)
        return f"{sql} LIMIT ?", values
    parts = [_one_listing(query, after, app) for app in dict.fromkeys(query.apps)]
    if len(parts) == 1:
        return f"{parts[0][0]} LIMIT ?", parts[0][1]
    # Several apps are as many listings in order of time, which SQLite merges without sorting.
    sql = " UNION ALL ".join(part.removesuffix(_order(query)) for part, _ in parts)
    return f"{sql} ORDER BY 1 DESC LIMIT ?", [value for _, values in parts for value in values]


def _order(query: Query) -> str:
    return f" ORDER BY {_driver(query)}.position DESC"


def _driver(query: Query) -> str:
    """The table whose index gives the order: that of the first label, where there is one."""
    return "l0" if query.labels else "s"


def _one_listing(query: Query, after: tuple[int, bytes] | None, app: str | None) -> tuple[str, list[Any]]:
    tables, conditions = [], []
    values: list[Any] = []
    for number, label in enumerate(query.labels):
        tables.append(f"snapshot_label l{number}")
        conditions.append(f"l{number}.label = (SELECT label FROM label WHERE name = ?)")
        values.append(_query_name(label))
        if number:
            conditions.append(f"l{number}.position = l0.position")
    if query.labels:
        conditions.append("s.position = l0.position")
    tables += ["snapshot s", "app a"]
    conditions.append("a.app = s.app")
    driver = _driver(query)
    if app is not None:
        conditions.append("s.app = (SELECT app FROM app WHERE name = ?)")
        values.append(app)
    if query.since is not None:
        conditions.append(f"{driver}.position >= ?")
        values.append(rows.microseconds(query.since))
    if query.until is not None:
        conditions.append(f"{driver}.position < ?")
        values.append(rows.microseconds(query.until))
    if after is not None:
        # Where the snapshot is now: a rebuild may have moved it among those of the same instant.
        conditions.append(f"{driver}.position < coalesce((SELECT position FROM snapshot WHERE id = ?), ?)")
        values += [after[1], after[0]]
    # CROSS JOIN keeps the order of the tables: that of their time, which a cleverer plan would have to sort by.
    sql = f"SELECT {driver}.position, {_COLUMNS} FROM {' CROSS JOIN '.join(tables)} WHERE {' AND '.join(conditions)}"
    return sql + _order(query), values


def _size(path: str) -> int:
    """Of the index with what SQLite keeps beside it."""
    return sum(os.path.getsize(file) for suffix in ("", "-wal", "-shm") if os.path.exists(file := path + suffix))


def _label_names(labels: Iterable[str]) -> set[str]:
    """What a label is found by: its key with its value, and its key alone."""
    names = set()
    for label in labels:
        key, value = split_label(label)
        names |= {key, f"{key}:{value}"}
    return names


def _query_name(label: str) -> str:
    if not label or label.startswith(":"):
        raise InvalidInput(f"{label!r} is no label to look for: give key:value, or key for any value")
    return label
