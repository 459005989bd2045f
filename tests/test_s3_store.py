"""S3Store on real servers: the contract of `ObjectStore`, with what each of them cannot do."""

import uuid
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from snapstore.objectstore import ObjectStore
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
    """MinIO's handlers, in the JuiceFS gateway: its pages hold 4,500 keys, unless a request asks for fewer."""

    pytestmark = pytest.mark.servers
    server_name = "juicefs"
    supports_conditional_writes = Unsupported("MinIO's handlers of 2021 ignore If-Match and If-None-Match on PutObject")
    supports_etags_while_overwriting = Unsupported("JuiceFS exchanges the content first, and its ETag an instant later")


class TestRclone(ServerContract):
    pytestmark = pytest.mark.servers
    server_name = "rclone"
    supports_completed_etags = Unsupported("rclone answers a completion with another ETag than the object then has")
    supports_conditional_writes = Unsupported("rclone ignores If-Match and If-None-Match on PutObject")
    supports_copy = Unsupported("rclone answers UploadPartCopy without an ETag, and stores an empty part")
    supports_cut_overwrites = Unsupported("rclone writes a body over the old one, and shows what there is of it")
    supports_paths_beside_objects = Unsupported(
        "rclone keeps keys as paths: deleting a folder answers 500, deleting below an object removes the object"
    )
    supports_part_gaps = Unsupported("rclone appends parts to the object in the order of their numbers, all of them")
    supports_part_replacement = Unsupported("rclone has appended the part to the object, and answers NotImplemented")


class TestMoto(ServerContract):
    pytestmark = pytest.mark.servers
    server_name = "moto"
    supports_upload_times = Unsupported("moto lists every upload as begun in 2010")
    supports_copy_conditions = Unsupported("moto ignores x-amz-copy-source-if-match on UploadPartCopy")
    supports_copy_range_checks = Unsupported("moto copies what there is of a range that reaches beyond the source")
