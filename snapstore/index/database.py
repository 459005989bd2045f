"""The index file, open: by aiosqlite, one connection that writes, a few that read, and one that reads much at once.

The file is shared by any number of processes (WAL). Locks are held for one short transaction; where another process
holds the write lock, we wait in Python, so that a cancelled caller stops waiting.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import aiosqlite

from snapstore.aio import uninterrupted
from snapstore.errors import CatalogBusy
from snapstore.index import damage, file
from snapstore.index.lock import when_free

_READERS = 2
_BUSY_SECONDS = 0.05

_FileId = tuple[int, int]
Change = Callable[[aiosqlite.Connection], Awaitable[Any]]
Read = Callable[[Any], Any]
"""Makes something of a row. Garbled."""


class NotFilled(CatalogBusy):
    """Another file has taken the index's place, and does not hold all of its bucket yet."""


class Database:
    """Statements on the file at ``path``, which `snapstore.index.file.prepare` has made ready."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._used = True
        file.use(path, 1)
        self._writer: aiosqlite.Connection | None = None
        self._writing = asyncio.Lock()
        self._written_file: _FileId | None = None
        """What the writer is to: another process may put a new file in the place of a damaged one."""
        self._readers = _Readers(self, _READERS)
        self._scanners = _Readers(self, 1)
        self.read_at = 0.0
        """When something was last fetched, in the seconds of time.monotonic."""
        self.filled = False
        """Whether it has held all of its bucket: then a file that takes its place is read once that does too."""

    async def aclose(self) -> None:
        writer, self._writer = self._writer, None
        await uninterrupted(_close([*self._readers.taken(), *self._scanners.taken(), *([writer] if writer else [])]))
        if self._used:
            self._used = False
            file.use(self.path, -1)

    async def fetch(self, sql: str, values: Sequence[Any] = (), *, read: Read | None = None) -> list[Any]:
        """The rows that a statement gives, or what ``read`` makes of each. CatalogError."""
        self.read_at = time.monotonic()
        return self._read(await self._readers.fetch(sql, values), read)

    async def scan(self, sql: str, values: Sequence[Any] = (), *, read: Read | None = None) -> list[Any]:
        """`fetch` of so much that no listing shall wait for it. CatalogError."""
        return self._read(await self._scanners.fetch(sql, values), read)

    def _read(self, found: list[Any], read: Read | None) -> list[Any]:
        if read is None:
            return found
        try:
            return [read(row) for row in found]
        except damage.Garbled as error:
            damage.remember(self.path)
            raise damage.unusable(self.path, error) from error

    async def change(self, change: Change, *, patience: float | None = None) -> None:
        """Await ``change(connection)`` in a transaction of its own, once the write lock is ours. CatalogError.

        CatalogBusy where that takes longer than ``patience`` seconds (default: as long as anybody waits).
        """
        async with self._writing:
            if self._writer is not None and self.there(self._written_file) != self._written_file:
                old, self._writer = self._writer, None
                await uninterrupted(_close([old]))
            await when_free(self.path, lambda: self._attempt(change), patience)

    async def _attempt(self, change: Change) -> bool:
        if self._writer is None:
            await uninterrupted(self._add_writer())
        assert self._writer is not None
        return await uninterrupted(self._try_change(self._writer, change))

    async def _try_change(self, connection: aiosqlite.Connection, change: Change) -> bool:
        try:
            await connection.execute("BEGIN IMMEDIATE")
        except damage.ERRORS as error:
            if file.is_locked(error):
                return False
            self._writer = await self.let_go(connection, self._written_file, error)
            raise damage.unusable(self.path, error) from error
        try:
            await change(connection)
            await connection.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.Error):  # rolled back by itself, where the file is damaged
                await connection.execute("ROLLBACK")
            if isinstance(error, damage.ERRORS):
                self._writer = await self.let_go(connection, self._written_file, error)
                raise damage.unusable(self.path, error) from error
            raise
        return True

    def there(self, known: _FileId | None) -> _FileId | None:
        """What the path leads to. Where it leads nowhere, or a new file is just being put there, ``known`` serves."""
        try:
            status = os.stat(self.path)
        except OSError:
            return known
        return status.st_dev, status.st_ino

    async def let_go(
        self, connection: aiosqlite.Connection, opened: _FileId | None, error: Exception
    ) -> aiosqlite.Connection | None:
        """Close a connection to a damaged file: the next one finds what has been put in its place by then."""
        if not damage.is_damage(error):
            return connection
        if self.there(None) == opened:  # not one that has been put there since
            damage.remember(self.path)
        await _close([connection])
        return None

    async def _add_writer(self) -> None:
        self._written_file = self.there(None)
        self._writer = await self.connect()

    async def connect(self, *, filled: bool = False) -> aiosqlite.Connection:
        """With ``filled``, NotFilled where the file does not hold all of its bucket."""
        address = file.uri(self.path, writes=True)
        connecting = aiosqlite.connect(address, uri=True, isolation_level=None, timeout=_BUSY_SECONDS)
        # A process that ends without closing its store must end all the same; SQLite needs no farewell.
        if (thread := getattr(connecting, "_thread", None)) is not None:
            thread.daemon = True
        try:
            connection = await connecting
        except damage.ERRORS as error:
            raise damage.unusable(self.path, error) from error
        try:
            await connection.execute("PRAGMA foreign_keys = ON")
            await connection.execute("PRAGMA synchronous = NORMAL")
            if filled and not await _is_filled(connection):
                raise NotFilled(
                    self.path, f"the index {self.path!r} is being filled anew from its store: try again later"
                )
        except damage.ERRORS as error:
            await connection.close()
            raise damage.unusable(self.path, error) from error
        except BaseException:
            await connection.close()
            raise
        return connection


class _Reader:
    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection
        self.asked = 0
        """Statements that its thread has not answered."""


class _Readers:
    """A few connections of a database, each with a thread that answers one statement after the other.

    A statement waits for its turn in the thread's own queue: were it the event loop that hands connections from one to
    the next, each would wait for several rounds of a loop that has other things to do.
    """

    def __init__(self, database: Database, count: int) -> None:
        self._database = database
        self._count = count
        self._open: list[_Reader] = []
        self._file: _FileId | None = None
        """What they are to."""
        self._adding = asyncio.Lock()

    def taken(self) -> Sequence[aiosqlite.Connection]:
        """The connections, which are the caller's to close from now on: that comes after what they were asked."""
        taken, self._open = self._open, []
        return [reader.connection for reader in taken]

    async def fetch(self, sql: str, values: Sequence[Any]) -> list[Any]:
        reader = await self._least_asked()
        opened = self._file
        reader.asked += 1
        try:
            # A caller that is cancelled leaves a statement behind, which reads and is forgotten.
            return list(await reader.connection.execute_fetchall(sql, values))
        except damage.ERRORS as error:
            if damage.is_damage(error) and reader in self._open:
                self._open.remove(reader)
                await uninterrupted(self._database.let_go(reader.connection, opened, error))
            raise damage.unusable(self._database.path, error) from error
        finally:
            reader.asked -= 1

    async def _least_asked(self) -> _Reader:
        while True:
            if (there := self._database.there(self._file)) != self._file:
                old, self._file = self.taken(), there
                await uninterrupted(_close(old))
                continue
            enough = len(self._open) == self._count or self._adding.locked()
            if self._open and (enough or not all(reader.asked for reader in self._open)):
                return min(self._open, key=lambda reader: reader.asked)
            async with self._adding:
                if len(self._open) < self._count:
                    await uninterrupted(self._add())

    async def _add(self) -> None:
        opened = self._database.there(self._file)
        connection = await self._database.connect(filled=self._database.filled)
        if opened == self._file:
            self._open.append(_Reader(connection))
        else:  # another took its place meanwhile
            await _close([connection])


async def _is_filled(connection: aiosqlite.Connection) -> bool:
    # An index that was begun by an older snapstore may have no row yet.
    return [*await connection.execute_fetchall("SELECT 1 FROM store WHERE filled")] != []


async def _close(connections: Sequence[aiosqlite.Connection]) -> None:
    for connection in connections:
        with suppress(sqlite3.Error):  # we are done with it, and so with what it could not do
            await connection.close()
