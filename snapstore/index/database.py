"""The index file, open: by aiosqlite, one connection that writes and a few that read.

The file is shared by any number of processes (WAL). Locks are held for one short transaction; where another process
holds the write lock, we wait in Python, so that a cancelled caller stops waiting.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiosqlite

from snapstore.aio import uninterrupted
from snapstore.errors import CatalogBusy
from snapstore.index.file import is_damage, is_locked, remember_damage, unusable, uri
from snapstore.index.lock import when_free

_READERS = 2
_BUSY_SECONDS = 0.05

_FileId = tuple[int, int]
Change = Callable[[aiosqlite.Connection], Awaitable[Any]]


class Incomplete(CatalogBusy):
    """Another file has taken the index's place, and does not hold all of its bucket yet."""


class Database:
    """Statements on the file at ``path``, which `snapstore.index.file.prepare` has made ready."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._writer: aiosqlite.Connection | None = None
        self._writing = asyncio.Lock()
        self._idle: list[aiosqlite.Connection] = []
        self._read_file: _FileId | None = None
        self._written_file: _FileId | None = None
        """What the connections are to: another process may put a new file in the place of a damaged one."""
        self._readers = asyncio.Semaphore(_READERS)
        self.complete = False
        """Whether it has held all of its bucket: then a file that takes its place is read once that does too."""

    async def aclose(self) -> None:
        connections = [*self._idle, *([self._writer] if self._writer else [])]
        self._idle, self._writer = [], None
        await uninterrupted(_close(connections))

    async def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows that a statement gives. CatalogError."""
        async with self._reader() as connection:
            # Not left half-way: a statement cannot be taken back from its thread, and the connection is shared.
            return list(await uninterrupted(connection.execute_fetchall(sql, values)))

    async def change(self, change: Change) -> None:
        """Await ``change(connection)`` in a transaction of its own, once the write lock is ours. CatalogError."""
        async with self._writing:
            if self._writer is not None and self._there(self._written_file) != self._written_file:
                old, self._writer = self._writer, None
                await uninterrupted(_close([old]))
            await when_free(self.path, lambda: self._attempt(change))

    async def _attempt(self, change: Change) -> bool:
        if self._writer is None:
            await uninterrupted(self._add_writer())
        assert self._writer is not None
        return await uninterrupted(self._try_change(self._writer, change))

    async def _try_change(self, connection: aiosqlite.Connection, change: Change) -> bool:
        try:
            await connection.execute("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            if is_locked(error):
                return False
            self._writer = await self._let_go(connection, self._written_file, error)
            raise unusable(self.path, error) from error
        try:
            await change(connection)
            await connection.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):  # rolled back by itself, where the file is damaged
                await connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.DatabaseError):
                self._writer = await self._let_go(connection, self._written_file, error)
                raise unusable(self.path, error) from error
            raise
        return True

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[aiosqlite.Connection]:
        async with self._readers:
            if (there := self._there(self._read_file)) != self._read_file:
                old, self._idle, self._read_file = self._idle, [], there
                await uninterrupted(_close(old))
            while not self._idle:
                # Into the pool first: a caller that is cancelled meanwhile leaves the connection to the next, and one
                # that comes meanwhile may take it.
                await uninterrupted(self._add_reader())
            connection: aiosqlite.Connection | None = self._idle.pop()
            assert connection is not None
            file = self._read_file
            try:
                yield connection
            except sqlite3.DatabaseError as error:
                connection = await uninterrupted(self._let_go(connection, file, error))
                raise unusable(self.path, error) from error
            finally:
                if connection is not None and file == self._read_file:
                    self._idle.append(connection)
                elif connection is not None:
                    await uninterrupted(_close([connection]))

    def _there(self, known: _FileId | None) -> _FileId | None:
        """What the path leads to. Where it leads nowhere, or a new file is just being put there, ``known`` serves."""
        try:
            status = os.stat(self.path)
        except OSError:
            return known
        return status.st_dev, status.st_ino

    async def _let_go(
        self, connection: aiosqlite.Connection, file: _FileId | None, error: sqlite3.DatabaseError
    ) -> aiosqlite.Connection | None:
        """Close a connection to a damaged file: the next one finds what has been put in its place by then."""
        if not is_damage(error):
            return connection
        if self._there(None) == file:  # not one that has been put there since
            remember_damage(self.path)
        await _close([connection])
        return None

    async def _add_reader(self) -> None:
        self._idle.append(await self._connect(whole=self.complete))

    async def _add_writer(self) -> None:
        self._written_file = self._there(None)
        self._writer = await self._connect()

    async def _connect(self, *, whole: bool = False) -> aiosqlite.Connection:
        """With ``whole``, Incomplete where the file does not hold all of its bucket."""
        address = uri(self.path, writes=True)
        connecting = aiosqlite.connect(address, uri=True, isolation_level=None, timeout=_BUSY_SECONDS)
        # A process that ends without closing its store must end all the same; SQLite needs no farewell.
        if (thread := getattr(connecting, "_thread", None)) is not None:
            thread.daemon = True
        try:
            connection = await connecting
        except sqlite3.DatabaseError as error:
            raise unusable(self.path, error) from error
        try:
            await connection.execute("PRAGMA foreign_keys = ON")
            await connection.execute("PRAGMA synchronous = NORMAL")
            if whole and not await _is_complete(connection):
                raise Incomplete(
                    self.path, f"the index {self.path!r} is being filled anew from its store: try again later"
                )
        except sqlite3.DatabaseError as error:
            await connection.close()
            raise unusable(self.path, error) from error
        except BaseException:
            await connection.close()
            raise
        return connection


async def _is_complete(connection: aiosqlite.Connection) -> bool:
    [(filled,)] = await connection.execute_fetchall("SELECT filled FROM store")
    return bool(filled)


async def _close(connections: Sequence[aiosqlite.Connection]) -> None:
    for connection in connections:
        with suppress(sqlite3.Error):  # we are done with it, and so with what it could not do
            await connection.close()
