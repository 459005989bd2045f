"""What all tests share: an open store on a folder of its own, and real S3 servers, started when first asked for."""

import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import botocore.loaders  # type: ignore[import-untyped]
import pytest

from snapstore import SnapStore
from snapstore.aio import Workers
from tests import scripts, servers
from tests.proxy import Proxy
from tests.servers import Server

BUCKET = "snapshots"


def pytest_configure() -> None:
    """Unless TMPDIR says where, tests work in memory, if it has room: of a disk they would wait for each sync."""
    if "TMPDIR" not in os.environ and servers.memory_has_room():
        os.environ["TMPDIR"] = tempfile.tempdir = str(servers.MEMORY)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SnapStore]:
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as opened:
        yield opened


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(4, "test")
    yield made
    made.close()


@pytest.fixture(scope="session")
def one_model() -> Iterator[None]:
    """Each store's session would parse the model of S3 anew, which takes longer than most tests."""
    loader = botocore.loaders.create_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", lambda *_: loader)
        patch.setattr("aiobotocore.session.create_loader", lambda *_: loader, raising=False)
        yield


@pytest.fixture(scope="session")
def running(one_model: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """A server by its name, with the bucket `BUCKET`; a test is skipped where it cannot be had."""
    started: dict[str, Server] = {}
    with ExitStack() as stack:

        def start(name: str) -> Server:
            if reason := servers.missing(name):
                pytest.skip(reason)
            if name not in started:
                started[name] = stack.enter_context(servers.SERVERS[name](tmp_path_factory.mktemp(name)))
                servers.make_bucket(started[name], BUCKET)
            return started[name]

        yield start


@pytest.fixture
def seaweedfs(running: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """SeaweedFS, to which this test's AWS configuration leads."""
    server = running("seaweedfs")
    servers.use(server, monkeypatch)
    return server


@pytest.fixture(autouse=True)
def no_script_is_left() -> Iterator[None]:
    yield
    scripts.end_all()


@pytest.fixture
def prefix() -> str:
    """A folder of the bucket for this test alone."""
    return uuid.uuid4().hex


@pytest.fixture
async def proxy(seaweedfs: Server) -> AsyncIterator[Proxy]:
    async with Proxy(seaweedfs.endpoint) as opened:
        yield opened
