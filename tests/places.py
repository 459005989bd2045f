"""A store of one test's own, nodes on it, and what is there behind their backs."""

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from snapstore import SnapStore
from snapstore.engine import opened as engine
from snapstore.storage.base import ObjectStore
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
