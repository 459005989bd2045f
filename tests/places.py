"""A store of one test's own, nodes on it, and what is there behind their backs."""

import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from snapstore import SnapStore
from snapstore.aio import Workers
from snapstore.engine import opened as engine
from snapstore.index.catalog import Catalog
from snapstore.objectstore import ObjectStore
from snapstore.storage.urls import open_store
from tests.conftest import BUCKET
from tests.servers import Server

T = TypeVar("T")
P = TypeVar("P", bound="Place")


@dataclass(frozen=True)
class Place:
    """Tests add to it what they look at."""

    url: str
    indexes: Path
    raw: ObjectStore
    server: Server | None
    """None for a folder."""

    def node(self, name: str = "one", **options: Any) -> SnapStore:
        return SnapStore.open(self.url, index=self.indexes / f"{name}.db", **options)


@asynccontextmanager
async def place_of(kind: type[P], folder: Path, server: Server | None = None) -> AsyncIterator[P]:
    """A place in ``folder``, or on a server, whose AWS configuration is this test's."""
    url = str(folder / "store") if server is None else f"s3://{BUCKET}/{uuid.uuid4().hex}"
    raw = await open_store(url)
    try:
        yield kind(url, folder, raw, server)
    finally:
        await raw.aclose()


@asynccontextmanager
async def catalog_at(path: Path, url: str, workers: Workers) -> AsyncIterator[Catalog]:
    """An index by itself, without a store."""
    catalog = await Catalog.open(str(path), url, workers)
    try:
        yield catalog
    finally:
        await catalog.aclose()


def look(path: Path, sql: str) -> Any:
    """What SQL finds in an index file, behind the back of those that have it open."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def server_of(request: pytest.FixtureRequest) -> Server | None:
    """For a fixture with the parameters ``folder`` and ``seaweedfs``."""
    return request.getfixturevalue("seaweedfs") if request.param == "seaweedfs" else None


def wrapped(patch: pytest.MonkeyPatch, wrap: Callable[[ObjectStore], T]) -> list[T]:
    """The object stores that are opened from now on, in their order, each in a wrapper."""
    made: list[T] = []

    async def open_wrapped(*args: Any, **options: Any) -> T:
        made.append(wrap(await open_store(*args, **options)))
        return made[-1]

    patch.setattr(engine, "open_store", open_wrapped)
    return made
