"""What all tests share: an open store on a folder of its own, and real S3 servers, started when first asked for."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapstore import SnapStore
from tests import servers
from tests.servers import Server

BUCKET = "snapshots"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SnapStore]:
    async with SnapStore.open(tmp_path / "store", index=tmp_path / "index.db") as opened:
        yield opened


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
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
