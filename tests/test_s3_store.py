"""S3Store on real servers: the contract of `ObjectStore`, with what each of them cannot do."""

import uuid
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from snapstore.storage.base import ObjectStore
from snapstore.storage.s3.options import S3Options
from snapstore.storage.s3.store import S3Store
from tests import servers
from tests.conftest import BUCKET
from tests.servers import Server
from tests.storage_contract import StorageContract, Unsupported


class ServerContract(StorageContract):
    """The contract on a real server; each test has a folder of the bucket for itself."""

    server_name: str

    @pytest.fixture
    async def bucket(
        self, running: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[ObjectStore]:
        servers.use(running(self.server_name), monkeypatch)
        store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}/data", S3Options(attempts=3))
        try:
            yield store
        finally:
            await store.aclose()


class TestSeaweedFS(ServerContract):
    server_name = "seaweedfs"
    supports_byte_order = Unsupported("SeaweedFS lists `a/` before `a!`")
    unusable_names: Mapping[str, str] = {"back\\slash": "SeaweedFS takes a backslash for a slash"}


class TestMinIO(ServerContract):
    """MinIO's handlers, in the JuiceFS gateway."""

    pytestmark = pytest.mark.servers
    server_name = "juicefs"


class TestRclone(ServerContract):
    pytestmark = pytest.mark.servers
    server_name = "rclone"


class TestMoto(ServerContract):
    pytestmark = pytest.mark.servers
    server_name = "moto"
